import ast
import re
from pathlib import Path

import jax
import pytest

from bertjax.config import load_described, load_experiment
from bertjax.finetuning.recipe import FineTuning
from bertjax.flops import batch_shapes

ALL = sorted(path for path in Path("experiments").glob("*.py") if "def experiment(" in path.read_text())
FINE_TUNING = [path for path in ALL if "FineTuning" in path.read_text()]
FILES = [path for path in ALL if path not in FINE_TUNING and path.stem != "embed"]  # which is built for a model


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_builds_and_traces_at_full_size(path, corpus):
    experiment = load_experiment(path, [f"data={corpus}"] if path.stem == "smoke" else [])
    key = jax.random.key(0)
    for phase in experiment.phases:
        shapes = batch_shapes(phase.batch_size, phase.rows.length, phase.rows.features)
        params = jax.eval_shape(experiment.objective.init, key, shapes)
        loss, _ = jax.eval_shape(lambda p, b, k: experiment.objective.loss(p, b, k, train=True), params, shapes, key)
        assert loss.shape == ()
    tx = experiment.optimizer.transform()
    updates, _ = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("path", [path for path in FINE_TUNING if path.stem != "own"], ids=lambda path: path.stem)
def test_every_family_has_a_recipe_for_every_task(path):
    families = ("bert", "small", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "xlnet", "modernbert",
                "deberta", "deberta-v2", "deberta-v3-large", "electra-large")  # fmt: skip
    with_recipes = {"small": ("glue", "tagging", "choice"), "electra-large": ("glue", "squad"), "deberta-v3-large": ()}
    tasks = re.search(r"task: Literal\[(.*?)\]", path.read_text(), re.DOTALL)
    for task in re.findall(r'"(\w+)"', tasks.group(1)):
        for family in families:
            if path.stem not in with_recipes.get(family, (path.stem,)):
                continue
            given = [f"task={task}", f"family={family}", "init=model", "data=folder"]
            tuning = load_described(path, given, FineTuning)
            steps = tuning.recipe.count(10_000)
            optimizer = tuning.recipe.optimizer(12, steps, ())
            assert 0 < float(optimizer.learning_rate(steps // 2)) <= tuning.recipe.learning_rate
            assert tuning.task.name == task and tuning.recipe.length <= 512


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_experiment_says_how_to_run_it(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert f"experiments/{path.name}" in doc or "make demo" in doc

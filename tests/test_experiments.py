import ast
from pathlib import Path

import jax
import pytest

from bertjax.config import load_experiment
from bertjax.flops import batch_shapes

FILES = sorted(path for path in Path("experiments").glob("*.py") if "def experiment(" in path.read_text())


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_says_how_to_run_it(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert f"experiments/{path.name}" in doc or "make demo" in doc

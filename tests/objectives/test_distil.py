"""Distil: the three terms by hand, what the student begins as, a teacher that stays, a run through the trainer."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, V, make_batch, small_albert, small_bert, small_modernbert, small_roberta

from bertjax.checkpoints.trained import load
from bertjax.checkpoints.warm_start import warm_start
from bertjax.commands.main import main
from bertjax.config import Experiment, Phase, Run, load_experiment
from bertjax.data.rows import FullSentences
from bertjax.errors import InputError
from bertjax.flops import batch_shapes, model_flops
from bertjax.masking import Masking, mask_tokens
from bertjax.objectives.distil import FROZEN_TEACHER, Distillation, divergence
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import ElectraLinear
from bertjax.plan.step import plan
from bertjax.rules import name_of
from bertjax.serialization.description import from_json, to_json
from bertjax.train import fit

pytestmark = pytest.mark.usefixtures("programs")
KEY = jax.random.key(3)
RATES = (*FROZEN_TEACHER, (".*", 1.0))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def by_hand(objective, params, batch):
    """Compute the terms from both models' own states and logits, in float64 and loops over real tokens."""
    masked = mask_tokens(jax.random.split(KEY)[0], batch, objective.masking)
    seen = batch | {"tokens": masked.tokens_BL}
    ours, theirs = (
        [np.asarray(jax.jit(ask)(params[name], seen), np.float64) for ask in (model.encode, model.language_logits)]
        for name, model in (("student", objective.student_objective), ("teacher", objective.teacher_objective))
    )
    T, soft, distances, nll = objective.temperature, [], [], []
    for row, column in np.argwhere(np.asarray(batch["mask"]) > 0):
        p, q = (log_softmax(logits[row, column] / T) for _, logits in (theirs, ours))
        soft.append((np.exp(p) * (p - q)).sum())
        a, b = ours[0][row, column], theirs[0][row, column]
        distances.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    positions_BP, targets_BP = np.asarray(masked.positions_BP), np.asarray(masked.targets_BP)
    for row, column in np.argwhere(np.asarray(masked.weights_BP) > 0):
        nll.append(-log_softmax(ours[1][row, positions_BP[row, column]])[targets_BP[row, column]])
    return np.mean(soft), np.mean(nll), np.mean(distances)


def test_the_loss_is_what_numpy_computes_with_a_teacher_without_dropout():
    student = small_albert(N=1, dropout=0.0, attention_dropout=0.0)
    objective = Distillation(student, small_roberta(dropout=0.5), MASKING, temperature=3.0, soft_weight=0.5,
                             mlm_weight=0.25, cosine_weight=4.0)  # fmt: skip
    batch, rng = make_batch(), np.random.default_rng(0)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    # At random init all distributions are nearly uniform: make them differ.
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)
    loss, metrics = jax.jit(partial(objective.loss, train=True))(params, batch, KEY)
    soft, nll, distance = by_hand(objective, params, batch)
    assert soft > 0.05 and distance > 0.05
    np.testing.assert_allclose(loss, 0.5 * 9 * soft + 0.25 * nll + 4 * distance, rtol=1e-4)
    unweighted = {"divergence/soft": soft, "cross_entropy/mlm": nll, "distance/cosine": distance}
    for name, expected in unweighted.items():
        np.testing.assert_allclose(metrics[name].sum / metrics[name].weight, expected, rtol=1e-4, err_msg=name)
    assert metrics["divergence/soft"].weight == metrics["distance/cosine"].weight == batch["mask"].sum()


def test_student_and_teacher_of_different_widths_have_no_cosine_loss():
    objective = Distillation(small_bert(), small_bert(D=48, H=3), MASKING, cosine_weight=0.0)
    params = jax.eval_shape(objective.init, KEY, make_batch())
    _, metrics = jax.eval_shape(partial(objective.loss, train=True), params, make_batch(), KEY)
    assert "loss/soft" in metrics and "loss/cosine" not in metrics


def test_the_divergence_punishes_a_student_that_rules_out_what_its_teacher_says():
    sure, torn = jnp.array([[[9.0, 0.0, 0.0]]]), jnp.array([[[9.0, 9.0, 0.0]]])
    assert divergence(torn, sure, 1.0)[0, 0] > 3 > 0.7 > divergence(sure, torn, 1.0)[0, 0]
    assert divergence(torn, torn, 2.0)[0, 0] == 0


def test_the_gradient_of_the_soft_term_keeps_its_size_whatever_the_temperature():
    teacher, student = (0.1 * jax.random.normal(jax.random.key(n), (1, 1, 50)) for n in (1, 2))
    gradient = jax.grad(lambda x, T: T**2 * divergence(teacher, x, T).sum())
    norms = [jnp.linalg.norm(gradient(student, T)) for T in (1.0, 2.0, 8.0)]
    np.testing.assert_allclose(norms, norms[0], rtol=0.05)


def test_the_student_is_initialised_from_the_named_layers():
    teacher = MaskedLM(small_bert(N=5), MASKING, pair=True)
    found = jax.jit(teacher.init)(KEY, make_batch())
    objective = Distillation(small_bert(N=3, types=0), small_bert(N=5), MASKING, layers=(4, 0, 2))
    fresh, begun = jax.eval_shape(objective.init, KEY, make_batch()), objective.remap_params(found)
    assert jax.tree.structure(begun["teacher"]) == jax.tree.structure(fresh["teacher"])
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(begun["student"])}
    own = {name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh["student"])}
    assert own == set(leaves) - {"encoder/embeddings/type/table"}
    theirs = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    for name in own:
        expected = theirs[name][np.array([4, 0, 2])] if "/layers/" in name else theirs[name]
        np.testing.assert_array_equal(leaves[name], expected, err_msg=name)


def test_a_student_that_inherits_nothing_is_freshly_initialised():
    found = jax.jit(MaskedLM(small_bert(), MASKING).init)(KEY, make_batch())
    objective = Distillation(small_bert(), small_bert(), MASKING)
    assert {*objective.remap_params(found)["student"]["encoder"]} == {"embeddings"}
    objective = dataclasses.replace(objective, inherited=((".*", False),))
    assert objective.remap_params(found)["student"] == {}
    both = {"student": found, "teacher": found}
    assert objective.remap_params(both) is both


def test_layers_of_a_modern_teacher_bring_their_own_norms():
    teacher = MaskedLM(small_modernbert(N=5), MASKING)
    found = jax.jit(teacher.init)(KEY, make_batch())
    norms = found["encoder"]["layers"]["attention_norm"]
    norms["scale"] = norms["scale"] * jnp.arange(1.0, 5)[:, None]  # of layers 1 to 4: the first has none
    objective = Distillation(small_modernbert(N=3), small_modernbert(N=5), MASKING, layers=(0, 2, 4))
    begun = objective.remap_params(found)["student"]
    shapes = jax.eval_shape(objective.init, KEY, make_batch())["student"]
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, shapes)
    assert begun["encoder"]["layers"]["attention_norm"]["scale"][:, 0].tolist() == [2, 4]
    for layers in ((1, 2, 3), (0, 0, 2)):
        with pytest.raises(ValueError, match="begin with layer 0 and name it only there"):
            dataclasses.replace(objective, layers=layers).remap_params(found)


def test_a_student_of_another_width_is_freshly_initialised():
    found = jax.jit(MaskedLM(small_bert(), MASKING).init)(KEY, make_batch())
    objective = Distillation(small_bert(D=16), small_bert(), MASKING, cosine_weight=0.0)
    assert objective.remap_params(found)["student"] == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (0, 1), "student": small_bert(D=48), "cosine_weight": 0.0}, "cannot begin as layers of a teacher"),
        ({"student": small_bert(V=V + 1)}, rf"V={V + 1} ids, the teacher of V={V}.*use the teacher's"),
        ({"student": small_bert(D=48)}, "D=48 wide, the teacher D=32.*cosine_weight=0"),
        ({"layers": (0, 1, 1)}, "names 3 of the teacher's layers, the student has N=2"),
        ({"layers": (0, 2)}, "the teacher's are 0 to 1"),
        ({"layers": (0, 1), "student": small_albert()}, "all layers of the student are one"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"soft_weight": -1.0}, "soft_weight=-1.0.* must be 0 or more"),
        ({"masking": dataclasses.replace(MASKING, mask_id=V)}, f"masking uses id {V}"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**({"student": small_bert(), "teacher": small_bert(), "masking": MASKING} | fields))


def test_an_optimizer_that_would_decay_the_teacher_is_refused():
    objective = Distillation(small_bert(), small_bert(), MASKING)
    phases = (Phase(1, 8, FullSentences("", 32)),)
    with pytest.raises(ValueError, match=r"does not train \^teacher/: put .* first in the optimizer's rates"):
        Experiment(objective, Optimizer(ElectraLinear(1e-3, 0, 1)), phases)


def test_the_teacher_counts_its_forward_pass_only():
    student, teacher = small_bert(N=1, types=0), small_bert()
    shapes = batch_shapes(4, 32, ())
    both = Distillation(student, teacher, MASKING)
    trained = Optimizer(ElectraLinear(1e-3, 0, 1), rates=RATES).trained

    def forward(encoder):
        D, F = encoder.D, encoder.F
        layer = 2 * 32 * (4 * D * D + 2 * D * F) + 2 * 2 * 32 * 32 * D
        return 4 * (encoder.N * layer + 2 * 32 * (D * D + D * V))

    assert model_flops(both, shapes, trained) == 3 * forward(student) + forward(teacher)
    assert model_flops(both, shapes) == 3 * (forward(student) + forward(teacher))


@pytest.mark.parametrize(("override", "count"), [("cased=false", 66_985_530), ("cased=true", 65_812_036)])
def test_the_student_of_the_recipe_is_as_large_as_published(override, count):
    planned = plan(load_experiment("experiments/distilbert.py", [override]))
    groups = planned["params_by_group"]
    assert planned["trained"] == groups["student/encoder"] + groups["student/head"] == count
    assert planned["params"] == count + groups["teacher/encoder"] + groups["teacher/head"]


QUIET = Run(log_every=1, evaluate_every=0, checkpoint_every=1)


def recipe(corpus, v, teacher="", **fields):
    """Describe a student of the second layer of a teacher with two."""
    encoder = small_bert(V=v.size, dropout=0.0, attention_dropout=0.0)
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    objective = Distillation(dataclasses.replace(encoder, N=1, types=0), encoder, masking, layers=(1,))
    optimizer = Optimizer(ElectraLinear(2e-3, 2, 8), weight_decay=0.1, rates=RATES)
    phases = (Phase(8, 32, FullSentences(corpus, 32), accumulate=2),)
    return dataclasses.replace(Experiment(objective, optimizer, phases, init=teacher, run=QUIET), **fields)


@pytest.fixture(scope="module")
def teacher(corpus, tokenizer, tmp_path_factory):
    """Train a teacher until it knows how often words occur; return its work folder."""
    encoder = recipe(corpus, tokenizer.vocabulary).objective.teacher
    objective = MaskedLM(encoder, recipe(corpus, tokenizer.vocabulary).objective.masking)
    folder = tmp_path_factory.mktemp("teacher")
    phases = (Phase(60, 32, FullSentences(corpus, 32)),)
    run = Run(checkpoint_every=0, evaluate_every=0, evaluate_batches=1)
    fit(Experiment(objective, Optimizer(ElectraLinear(2e-2, 5, 60)), phases, run=run), folder)
    return str(folder)


@pytest.fixture(scope="module")
def distilled(corpus, tokenizer, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    return folder, fit(recipe(corpus, tokenizer.vocabulary, teacher), folder)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_teacher_is_bit_equal_after_training_and_has_no_moments(teacher, distilled):
    folder, state = distilled
    taught = load(teacher)
    for a, b in zip(jax.tree.leaves(taught.params), jax.tree.leaves(state.params["teacher"]), strict=True):
        np.testing.assert_array_equal(a, b)
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt)]
    assert any("student/encoder" in name for name in names) and not any("teacher" in name for name in names)
    earlier = load(f"{folder}/checkpoints/6").params["student"]
    pairs = zip(jax.tree.leaves(earlier), jax.tree.leaves(state.params["student"]), strict=True)
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


@pytest.mark.slow
def test_a_distilled_student_beats_one_trained_without_the_teacher(corpus, tokenizer, distilled, teacher, tmp_path):
    whole = recipe(corpus, tokenizer.vocabulary, teacher)
    alone = dataclasses.replace(
        whole, objective=dataclasses.replace(whole.objective, layers=(), inherited=((".*", False),), soft_weight=0.0)
    )
    fit(alone, tmp_path)
    taught, untaught = (log_of(folder)[-1] for folder in (distilled[0], tmp_path))
    for name in ("validation/cross_entropy/mlm", "validation/divergence/soft"):
        assert taught[name] < 0.97 * untaught[name]


@pytest.mark.slow
def test_a_stopped_distillation_resumes_bit_for_bit_without_the_teachers_folder(
    corpus, tokenizer, teacher, distilled, tmp_path
):
    moved, again = shutil.copytree(teacher, tmp_path / "teacher"), tmp_path / "again"
    whole = recipe(corpus, tokenizer.vocabulary, str(moved))
    fit(whole, again)
    shutil.rmtree(again / "checkpoints" / "8")
    shutil.rmtree(moved)
    state = fit(whole, again)
    for a, b in zip(jax.tree.leaves(distilled[1]), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert log_of(again) == log_of(distilled[0])


@pytest.mark.slow
def test_the_student_alone_is_a_masked_language_model(distilled, tmp_path, capsys):
    folder = distilled[0]
    whole, student = load(folder), load(f"{folder}:student")
    assert isinstance(student.objective, MaskedLM) and from_json(to_json(whole.objective)) == whole.objective
    batch = {"tokens": jnp.arange(20, 32)[None], "mask": jnp.ones((1, 12), jnp.int32)}
    np.testing.assert_array_equal(whole.mlm_logits(batch), student.mlm_logits(batch))
    np.testing.assert_array_equal(whole.encode(batch), student.encode(batch))
    assert main(["convert", f"{folder}:student", str(tmp_path / "student")]) == 0
    assert main(["predict", "fill-mask", "--model", str(tmp_path / "student"), "the [MASK] man"]) == 0
    assert main(["evaluate", "--model", str(folder), "--json"]) == 0
    assert "divergence/soft" in capsys.readouterr().out


def test_the_recipe_takes_a_teacher_from_its_folder(corpus, teacher, tokenizer):
    overrides = [f"teacher={teacher}", f"data={corpus}", "layers=1,0", "length=16", "objective.soft_weight=3"]
    experiment = load_experiment("experiments/distilbert.py", overrides)
    objective = experiment.objective
    assert objective.soft_weight == 3 and objective.student.N == 2 and objective.teacher == load(teacher).encoder
    like = jax.eval_shape(objective.init, KEY, batch_shapes(8, 16, ()))
    start = warm_start(experiment.init, objective, like, tokenizer)
    assert set(start.params) == {name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)}


def refused(experiment, folder, message):
    with pytest.raises(InputError, match=message):
        fit(experiment, folder)
    assert not folder.exists()


def test_a_teacher_that_does_not_fit_is_refused(corpus, tokenizer, teacher, tmp_path):
    whole = recipe(corpus, tokenizer.vocabulary, teacher)
    missing = dataclasses.replace(whole, init="")
    refused(missing, tmp_path / "run", r"frozen parameters \(\^teacher/\) would stay random.*init=FOLDER")
    wider = dataclasses.replace(whole.objective, teacher=dataclasses.replace(whole.objective.teacher, F=48))
    refused(dataclasses.replace(whole, objective=wider), tmp_path / "run", r"teacher/.*of shape")
    with pytest.raises(ValueError, match=r"needs encoder and head/mlm, this model has encoder, head"):
        whole.objective.remap_params({"encoder": {}, "head": {"rtd": {}}})

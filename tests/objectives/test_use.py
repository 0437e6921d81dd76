"""Train XLNet and ELECTRA two steps through the trainer, then use, take apart and go on with what came out."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import replace_fields, small_bert, small_generator, small_xlnet

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import load
from bertjax.commands.main import main
from bertjax.config import Experiment, Phase, Run
from bertjax.data.segments import Segments
from bertjax.data.windows import Windows
from bertjax.errors import InputError
from bertjax.flops import batch_shapes
from bertjax.inference.fill_mask import fill_mask
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.objectives.rtd import DisentangledEmbeddings, ReplacedTokenDetection
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.permutation import Permutation
from bertjax.rules import name_of
from bertjax.serialization.description import to_json
from bertjax.train import fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]
QUIET = Run(log_every=1, evaluate_every=0, checkpoint_every=1)


def experiment(objective, rows, steps=2):
    return Experiment(objective, bert_adam(BertLinear(1e-2, 1, steps)), (Phase(steps, 8, rows),), run=QUIET)


@pytest.fixture(scope="module")
def recipes(corpus, tokenizer):
    """Describe one experiment of each kind."""
    v = tokenizer.vocabulary
    masking = Masking(v.mask, (0, v.size), (v.cls, v.sep))
    electra = ReplacedTokenDetection(small_generator(V=v.size), small_bert(V=v.size), masking)
    permutation = Permutation(functional=(v.cls, v.sep), parts=(16, 16), targets=6)
    return {
        "electra": experiment(electra, Segments(corpus, 32)),
        "deberta sharing": experiment(
            dataclasses.replace(electra, sharing=DisentangledEmbeddings()), Segments(corpus, 32)
        ),
        "xlnet": experiment(
            PermutationLM(small_xlnet(V=v.size), permutation, memory=24),
            Windows(corpus, reuse=16, length=96, window=32, boundary=v.sep),
        ),
    }


@pytest.fixture(scope="module")
def trained(recipes, tokenizer, tmp_path_factory):
    """Train each for two steps, but for one that is written as if it had been; return the folders."""
    folders = {name: tmp_path_factory.mktemp("run") / name.split()[0] for name in recipes}
    for name, folder in folders.items():
        if name != "deberta sharing":
            fit(recipes[name], folder)
    whole, rng = recipes["deberta sharing"], np.random.default_rng(0)
    shapes = jax.eval_shape(whole.objective.init, jax.random.key(0), batch_shapes(8, 32, ()))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    checkpoint.export(folders["deberta sharing"], params, experiment=to_json(whole), tokenizer=tokenizer)
    return folders


@pytest.mark.parametrize("name", ["electra", "xlnet"])
def test_a_stopped_run_resumes_bit_for_bit(name, recipes, trained, tmp_path):
    again = shutil.copytree(trained[name], tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "2")
    state = fit(recipes[name], again)
    for a, b in zip(jax.tree.leaves(load(trained[name]).params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (again / "log.jsonl").read_bytes() == (trained[name] / "log.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["electra", "deberta sharing", "xlnet"])
def test_masks_are_filled_depending_on_the_context(name, trained):
    model = load(trained[name])
    one, other = fill_mask(model, ["the [MASK] man time.", "the [MASK] woman and the week."], top=3)
    assert len(one.masks) == 1 and len(one.masks[0]) == 3
    assert one.masks[0][0].probability != other.masks[0][0].probability
    assert "[MASK]" not in one.best and one.best.endswith("man time.")


def test_xlnet_predicts_masks_from_the_query_stream_where_they_do_not_see_each_other(trained):
    model = load(trained["xlnet"])
    v = model.tokenizer.vocabulary
    assert model.objective.special_tokens(v) == ([], [(v.sep, 0), (v.cls, 2)])
    tokens = jnp.arange(20, 32)[None]
    batch = {"tokens": tokens.at[0, jnp.array([3, 7])].set(v.mask), "mask": jnp.ones_like(tokens)}
    found = model.mask_probabilities(batch, jnp.array([[3, 7]]))
    hidden = batch | {"tokens": batch["tokens"].at[0, 3].set(33).at[0, 7].set(34)}
    np.testing.assert_allclose(found, model.mask_probabilities(hidden, jnp.array([[3, 7]])), atol=1e-7)
    assert jnp.abs(found - model.mask_probabilities(batch | {"tokens": batch["tokens"].at[0, 5].set(33)},
                                                    jnp.array([[3, 7]]))).max() > 1e-7  # fmt: skip
    assert model.encode(batch).shape == (1, 12, 32) and model.mlm_logits(batch).shape == (1, 12, v.size)


@pytest.mark.parametrize("name", ["electra", "deberta sharing"])
def test_each_part_served_alone_equals_that_part_of_the_whole(name, trained):
    whole, generator, discriminator = (load(f"{trained[name]}{part}") for part in ("", ":generator", ":discriminator"))
    tokens = jnp.arange(20, 32)[None]
    batch = {"tokens": tokens, "mask": jnp.ones_like(tokens)}
    assert isinstance(generator.objective, MaskedLM) and set(generator.params) == {"encoder", "head"}
    np.testing.assert_allclose(whole.mlm_logits(batch), generator.mlm_logits(batch), atol=1e-6)
    np.testing.assert_allclose(whole.encode(batch), discriminator.encode(batch), atol=1e-6)
    judged = discriminator.objective.replaced_logits(discriminator.params, batch)
    assert judged.shape == (1, 12) and judged.dtype == jnp.float32
    for use in (lambda: discriminator.mlm_logits(batch), lambda: next(fill_mask(discriminator, ["a [MASK]"]))):
        with pytest.raises(InputError, match="Discriminator has no language-model head"):
            use()


@pytest.mark.parametrize("name", ["electra", "xlnet"])
def test_predictions_of_a_text_do_not_depend_on_other_texts_in_the_batch(name, trained):
    model = load(trained[name])
    (alone,) = fill_mask(model, ["the man [MASK] time"])
    group_size, _ = fill_mask(model, ["the man [MASK] time", "[MASK] the [MASK] and [MASK] woman"])
    for a, b in zip(alone.masks[0], group_size.masks[0], strict=True):
        assert a.piece == b.piece and abs(a.probability - b.probability) < 1e-6


def test_a_missing_part_of_a_model_is_an_error_that_lists_its_parts(trained):
    with pytest.raises(InputError, match="no part 'teacher': its parts are discriminator, generator, encoder"):
        load(f"{trained['electra']}:teacher")
    with pytest.raises(InputError, match=r"cannot be taken apart: .* without :head, or :encoder"):
        load(f"{trained['xlnet']}:head")


@pytest.mark.parametrize("name", ["electra", "xlnet"])
def test_the_encoder_is_a_part_of_every_model(name, trained):
    whole, alone = load(trained[name]), load(f"{trained[name]}:encoder")
    assert set(alone.params) == {"encoder"} and alone.encoder == whole.encoder and alone.tokenizer is not None
    assert alone.objective.cls_last == (name == "xlnet")
    tokens = jnp.arange(5, 13)[None]
    batch = {"tokens": tokens, "mask": jnp.ones_like(tokens)}
    np.testing.assert_array_equal(alone.encode(batch), whole.encode(batch))


def test_training_warm_starts_from_a_whole_model_or_either_part(recipes, trained, tmp_path, corpus, capsys):
    electra = recipes["electra"]
    frozen = dataclasses.replace(electra.optimizer, rates=((".*", 0.0),))

    def start(objective, source):
        """Begin from `source` and learn nothing; return the parameters by name and what was said."""
        begun = dataclasses.replace(electra, objective=objective, optimizer=frozen, init=source)
        state = fit(begun, tmp_path / str(len(list(tmp_path.iterdir()))))
        said = next(line for line in capsys.readouterr().err.splitlines() if "parameters from" in line)
        return {name_of(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state.params)}, said

    def own(source):
        return {name_of(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(load(source).params)}

    source = str(trained["electra"])
    found, said = start(electra.objective, source)
    assert said.endswith("freshly initialised: none")
    assert all((found[name] == array).all() for name, array in own(source).items())
    found, said = start(electra.objective.generator_objective, f"{source}:generator")
    assert said.endswith("freshly initialised: none")
    assert all((found[name] == array).all() for name, array in own(f"{source}:generator").items())
    found, said = start(MaskedLM(electra.objective.discriminator, electra.objective.masking), f"{source}:discriminator")
    made = set(said.split("freshly initialised: ")[1].split(", "))
    assert made == {name for name in found if name.startswith("head/mlm/")}
    theirs = own(f"{source}:discriminator")
    assert all((found[name] == theirs[name]).all() for name in set(found) - made)


@pytest.mark.parametrize(
    ("change", "source", "message"),
    [
        (lambda electra: electra, ":generator", "no parameter that this experiment has"),
        (lambda electra: replace_fields(electra, F=48), "", r"shape \(.*\), this experiment"),
        (
            lambda electra: dataclasses.replace(electra, sharing=DisentangledEmbeddings()),
            "",
            "shares embeddings in another way",
        ),
        (lambda electra: electra, "x", "there is no folder .*x"),
    ],
    ids=["part", "shape", "sharing", "folder"],
)
def test_a_start_that_does_not_fit_is_refused(change, source, message, recipes, trained, tmp_path):
    electra = recipes["electra"]
    objective = change(electra.objective)
    begun = dataclasses.replace(electra, objective=objective, init=f"{trained['electra']}{source}")
    with pytest.raises(InputError, match=message):
        fit(begun, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # a mistyped source claims no folder


def test_a_warm_started_run_resumes_without_the_initial_model(recipes, trained, tmp_path):
    begun = dataclasses.replace(recipes["electra"], init=str(trained["electra"]))
    whole = fit(begun, tmp_path / "whole")
    steps = sorted(int(path.name) for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert steps == [0, 1, 2]
    for step in steps[1:]:
        shutil.rmtree(tmp_path / "whole" / "checkpoints" / str(step))
    again = fit(dataclasses.replace(begun, init=begun.init), tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_commands_evaluate_and_predict_take_these_models(trained, capsys):
    assert main(["evaluate", "--model", str(trained["electra"]), "--json"]) == 0
    out = capsys.readouterr().out
    assert '"roc_auc/rtd"' in out and '"unigram_entropy/mlm"' in out
    assert main(["evaluate", "--model", str(trained["xlnet"]), "--batch-size", "8", "--json"]) == 0
    assert '"unigram_entropy/plm"' in capsys.readouterr().out
    assert main(["evaluate", "--model", f"{trained['electra']}:generator", "--json"]) == 0
    assert '"loss/mlm"' in capsys.readouterr().out
    assert main(["evaluate", "--model", f"{trained['electra']}:discriminator"]) == 2
    assert "no loss to evaluate" in capsys.readouterr().err
    assert main(["predict", "fill-mask", "--model", f"{trained['xlnet']}", "the [MASK] man"]) == 0
    assert "the [MASK] man" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["", ":generator", ":discriminator"])
def test_a_converted_model_is_the_model_alone(part, trained, tmp_path, capsys):
    source, folder = f"{trained['electra']}{part}", tmp_path / "new" / "model"
    assert main(["convert", source, str(folder)]) == 0
    before, after = load(source), load(folder)
    assert before.objective == after.objective and not (folder / "optimizer").exists()
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert main(["convert", source, str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err

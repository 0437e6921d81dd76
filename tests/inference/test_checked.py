import dataclasses
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_bert
from texts import with_spaces_in_pieces

import bertjax
from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, Phase, Run
from bertjax.data.masked_text import reading_masks
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.tokenizer import fingerprint
from bertjax.errors import InputError
from bertjax.inference import checked as infer
from bertjax.inference import predict
from bertjax.inference.fill_mask import _windows, fill_mask
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.sift import SiFT
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.serialization.description import to_json
from bertjax.train import fit


@pytest.fixture(scope="module")
def trained(corpus, tokenizer, tmp_path_factory):
    """Train two steps; return the work folder and the final state."""
    v = tokenizer.vocabulary
    objective = MaskedLM(small_bert(V=v.size), Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    phases = (Phase(2, 8, NextSentencePairs(corpus, 32, duplicates=1)),)
    experiment = Experiment(objective, bert_adam(BertLinear(1e-2, 1, 2)), phases, run=Run(evaluate_every=0))
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(experiment, folder), experiment


def test_a_loaded_model_equals_the_trained_one(trained, tokenizer):
    folder, state, experiment = trained
    model = bertjax.load(folder)
    assert model.encoder == experiment.objective.encoder
    assert fingerprint(model.tokenizer) == fingerprint(tokenizer)
    assert model.config["seed"] == 0
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.devices() == {jax.devices()[0]}


def test_a_model_trained_with_sift_is_served_as_the_wrapped_objective(trained, tokenizer, tmp_path):
    model, objective = load(trained[0]), trained[2].objective
    config = model.config | {"objective": to_json(SiFT(objective))}
    checkpoint.export(tmp_path / "model", model.params, experiment=config, tokenizer=tokenizer)
    again = load(tmp_path / "model")
    assert again.objective == objective and again.config["objective"] == to_json(objective)
    assert next(fill_mask(again, ["the [MASK]"])) == next(fill_mask(model, ["the [MASK]"]))


def test_hidden_states_and_logits_have_their_shapes_and_ignore_padding(trained):
    model = load(trained[0])
    tokens = jnp.array([[2, 40, 50, 60, 3, 0, 0, 0], [2, 41, 51, 61, 62, 63, 64, 3]])
    batch = {"tokens": tokens, "mask": (tokens > 0).astype(jnp.int32)}
    x_BLD, logits_BLV = model.encode(batch), model.mlm_logits(batch)
    assert x_BLD.shape == (2, 8, 32) and logits_BLV.shape == (2, 8, model.encoder.V)
    alone = model.encode({name: array[:1, :5] for name, array in batch.items()})
    np.testing.assert_allclose(alone[0], x_BLD[0, :5], atol=1e-5)


def test_masks_are_filled_with_the_probabilities_of_the_logits(trained):
    model = load(trained[0])
    v = model.tokenizer.vocabulary
    (filled,) = fill_mask(model, ["the [MASK] man [MASK]."], top=4)
    left, middle, right = model.tokenizer.ids(["the ", " man ", "."])
    ids = [v.cls, *left, v.mask, *middle, v.mask, *right, v.sep]
    logits = model.mlm_logits({"tokens": jnp.array([ids]), "mask": jnp.ones((1, len(ids)), jnp.int32)})
    probabilities = np.asarray(jax.nn.softmax(logits, -1))[0]
    places = [1 + len(left), 2 + len(left) + len(middle)]
    for guesses, place in zip(filled.masks, places, strict=True):
        best = np.argsort(-probabilities[place])[:4]
        assert [guess.piece for guess in guesses] == [model.tokenizer.piece(i) for i in best]
        np.testing.assert_allclose([guess.probability for guess in guesses], probabilities[place][best], rtol=1e-4)
    assert "[MASK]" not in filled.best and filled.best.count("man") >= 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("before", "word", "after"),
    [
        ("The time is ", "good", "."),
        ("The ", "time", " is new."),
        ("", "The", " time is good"),
        ("it (", "the", " man)"),
    ],
)
def test_text_around_a_mask_is_tokenised_as_in_the_whole_text(kind, before, word, after):
    tokenizer = with_spaces_in_pieces(kind)
    v = tokenizer.vocabulary
    encoding = tokenizer.encode(before + word + after)
    first, last = len(before), len(before) + len(word)
    ids = [
        v.mask if begin < last and first < end else index
        for index, (begin, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True)
    ]
    alone = [tokenizer.piece(index) in ("Ġ", "▁") and after == v.mask for index, after in pairwise([*ids, None])]
    ids = [index for index, space in zip(ids, alone, strict=True) if not space]
    expected = [*(index for previous, index in pairwise([None, *ids]) if (previous, index) != (v.mask, v.mask))]
    assert reading_masks(tokenizer)(before + tokenizer.piece(v.mask) + after) == expected


def test_masks_side_by_side_are_as_many_masks(trained):
    (filled,) = fill_mask(load(trained[0]), ["the [MASK][MASK] man [MASK] [MASK]"])
    assert len(filled.masks) == 4


def test_answers_come_in_order_whatever_the_batch_size(trained):
    model = load(trained[0])
    texts = [" ".join(["good"] * n) + " [MASK]" for n in (1, 30, 2, 50, 3)]
    one, many = list(fill_mask(model, texts, batch_size=1)), list(fill_mask(model, texts, batch_size=3))
    assert [filled.text for filled in one] == texts == [filled.text for filled in many]
    for a, b in zip(one, many, strict=True):
        assert a.best == b.best


def test_a_text_without_a_mask_is_an_error(trained):
    with pytest.raises(InputError, match=r"no \[MASK\] in 'plain'"):
        next(fill_mask(load(trained[0]), ["plain"]))


def test_masks_of_a_long_text_are_predicted_in_windows_around_them(trained):
    model = load(trained[0])
    words = ["good", "man", "time", "new"] * 50
    masked = [0, 3, 90, 91, 199]
    text = " ".join("[MASK]" if place in masked else word for place, word in enumerate(words))
    short, filled, _ = fill_mask(model, ["a [MASK] man", text, "a [MASK] man"], batch_size=2)
    assert filled.text == text and len(filled.masks) == len(masked) and len(short.masks) == 1
    best = filled.best.split()
    assert [word for place, word in enumerate(best) if place not in masked] == [
        word for place, word in enumerate(words) if place not in masked
    ]
    assert [best[place] for place in masked] == [guesses[0].text for guesses in filled.masks]
    # What each window holds: 62 tokens and their masks, seen as a short text by itself.
    for first, own, masks in ((0, [0, 3], [0, 1]), (60, [90, 91], [2, 3]), (138, [199], [4])):
        window = " ".join(text.split()[first : first + 62])
        (alone,) = fill_mask(model, [window])
        assert [word for word in window.split() if word == "[MASK]"] == ["[MASK]"] * len(own)
        for index, guesses in enumerate(alone.masks):
            expected = filled.masks[masks[index]]
            assert [guess.piece for guess in guesses] == [guess.piece for guess in expected]
            np.testing.assert_allclose([g.probability for g in guesses], [g.probability for g in expected], rtol=1e-4)


def test_windows_leave_text_on_both_sides_of_each_mask_and_hold_each_mask_once():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.3, 0.9):
        ids = [3 if place in (1, 250) or draw < share else 100 + place for place, draw in enumerate(rng.random(500))]
        held = []
        for window in _windows(0, ids, 3, 64):
            assert len(window.ids) == 64
            begin = next(index - 100 - place for place, index in enumerate(window.ids) if index != 3)
            masks = [begin + place for place, index in enumerate(window.ids) if index == 3]
            held += [masks[slot] for slot in window.own]
            for place in (masks[slot] for slot in window.own):
                assert place - begin >= min(place, 15) and begin + 63 - place >= min(499 - place, 15)
        assert held == [place for place, index in enumerate(ids) if index == 3]


def test_a_checkpoint_of_foreign_code_is_refused_by_the_name_of_its_class(trained, tokenizer, tmp_path):
    _, state, experiment = trained

    @dataclasses.dataclass(frozen=True)
    class Mine(MaskedLM):
        pass

    mine = Mine(experiment.objective.encoder, experiment.objective.masking, pair=True)
    described = to_json(dataclasses.replace(experiment, objective=mine))
    checkpoint.export(tmp_path / "model", state.params, experiment=described, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"Mine.* is not of bertjax, .*name the experiment file that has it"):
        load(tmp_path / "model")


def test_the_three_lines_of_the_notebook():
    encoder = bertjax.Encoder(V=100, D=16, N=1, H=2, F=32)
    objective = bertjax.MaskedLM(encoder, bertjax.Masking(mask_id=3, random_ids=(0, 100), specials=(1, 2)))
    batch = {"tokens": jnp.full((2, 16), 9), "mask": jnp.ones((2, 16), jnp.int32)}
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    loss, metrics = jax.jit(partial(objective.loss, train=True))(params, batch, jax.random.key(1))
    assert np.isfinite(loss) and "loss/mlm" in metrics
    assert bertjax.mask_tokens(jax.random.key(1), batch, objective.masking).positions_BP.shape == (2, 3)
    for module in (bertjax, bertjax.infer):
        assert set(module.__all__) <= set(dir(module)) and all(getattr(module, name) for name in module.__all__)
    assert "fill_mask" in dir(bertjax.infer) and "Callable" not in dir(bertjax.infer)


def test_predictions_from_python_name_foreign_words_once_and_refuse_a_foreign_tokenizer(trained, capsys):
    model = load(trained[0])
    bertjax.inference.checked.embed(model, ["time person", "Магия реальна"])  # before anything is asked of it
    warning = "warning: 2 of 4 words (50.0%) are unknown to this vocabulary: Магия, реальна\n"
    assert capsys.readouterr() == ("", warning)
    filled = list(bertjax.inference.checked.fill_mask(model, texts=(text for text in ["the Магия [MASK]"])))
    assert [each.text for each in filled] == ["the Магия [MASK]"] and "unknown" in capsys.readouterr().err
    bertjax.inference.checked.fill_mask(model, ["the [MASK] man"])
    assert capsys.readouterr() == ("", "")
    far = ["time " * 2000, "Магия " * 100]  # what is looked at is bounded
    bertjax.inference.checked.embed(model, far, max_length=16)
    assert capsys.readouterr().err == ""
    wide = dataclasses.replace(trained[2].objective, encoder=model.encoder.clone(V=model.encoder.V + 128))
    with pytest.raises(InputError, match="they do not belong together"):
        bertjax.inference.checked.embed(dataclasses.replace(model, objective=wide), ["time"])


def test_every_prediction_from_python_looks_at_all_parts_of_its_texts(monkeypatch, tokenizer):
    seen, model = [], object()
    monkeypatch.setattr(infer, "check_tokenizer", lambda model, origin: seen.append(model))
    monkeypatch.setattr(infer, "check_texts", lambda model, texts, say, most_words: seen.extend([*texts, say]))
    assert [infer.classify.__name__, infer.classify.__doc__] == [predict.classify.__name__, predict.classify.__doc__]
    for name, given, parts in [
        ("classify", ["a", ("b", "c")], ["a", "b", "c"]),
        ("tag", ["a b"], ["a b"]),
        ("answer", [("q", "c")], ["q", "c"]),
        ("choose", [("c", ["a", "b"])], ["c", "a", "b"]),
    ]:
        getattr(infer, name)(model, given, say=print)  # a generator: nothing of it has run
        assert seen == [model, *parts, print]
        seen.clear()

"""Holes are filled by masked diffusion and by masked LMs; what cannot be is refused before anything runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_bert, small_modernbert, small_xlnet

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import Model
from bertjax.commands.main import main
from bertjax.diffusion import Ancestral, Confident, Draw, InBlocks, Randomly, WhenChanged
from bertjax.errors import InputError
from bertjax.inference import checked as infer
from bertjax.inference.infill import expand_holes
from bertjax.masking import Masking
from bertjax.models.heads import PairHead
from bertjax.models.layers import Normal
from bertjax.models.published import Published
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.permutation import Permutation
from bertjax.serialization.description import to_json

INIT = Normal(0.5)


def model_of(tokenizer, make, objective):
    encoder = make(V=tokenizer.vocabulary.size, N=2, initializer=INIT)
    objective = objective(encoder, tokenizer.vocabulary)
    ones = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(objective.init)(jax.random.key(0), {"tokens": ones, "mask": ones, "types": ones})
    return Model(objective, params, tokenizer, {"objective": to_json(objective)})


def diffusion(encoder, v, **fields):
    return MaskedDiffusion(encoder, v.mask, (v.cls, v.sep), **fields)


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_of(tokenizer, small_bert, diffusion)


def test_holes_of_any_length_are_filled_and_the_rest_stays(model):
    texts = ["time [MASK:3] year [MASK]", "[MASK:2]", "the [MASK:5] way day"]
    found = list(infer.infill(model, texts, states=True, batch_size=2))
    assert [each.text for each in found] == texts
    assert [len(each.holes) for each in found] == [2, 1, 1]
    assert found[0].filled.startswith("time") and " year" in found[0].filled and "[MASK]" not in found[0].filled
    assert [each.steps for each in found] == [4, 4, 5] == [each.asked for each in found]
    assert found[2].states[0].count("[MASK]") == 4 and found[2].states[-1] == found[2].filled
    assert found[1].states[1] == found[1].filled  # one with fewer holes is done earlier
    again = list(infer.infill(model, texts[:1]))
    assert again[0].filled == found[0].filled and again[0].states == []


def test_the_likeliest_token_of_one_hole_is_that_of_fill_mask(model, tokenizer):
    (filled,), (guessed,) = infer.infill(model, ["the [MASK:1] way"]), infer.fill_mask(model, ["the [MASK] way"])
    assert filled.filled == guessed.best
    masked = model_of(tokenizer, small_bert, lambda encoder, v: MaskedLM(encoder, Masking(v.mask, (0, v.size))))
    (filled,), (guessed,) = infer.infill(masked, ["the [MASK:1] way"]), infer.fill_mask(masked, ["the [MASK] way"])
    assert filled.filled == guessed.best
    assert "[MASK]" not in next(infer.infill(masked, ["the [MASK:6] way"])).filled


def test_texts_are_generated_after_a_prompt_and_by_a_seed(model):
    options = {"length": 6, "draw": Draw(1.0)}
    one, two, other = (
        [each.filled for each in infer.generate(model, ["time way", ""], seed=seed, **options)] for seed in (0, 0, 1)
    )
    assert one == two != other and one[0].startswith("time way")
    first, second = infer.generate(model, ["time"] * 2, **options)
    assert first.filled != second.filled


def test_guidance_and_steps_change_what_is_found(model):
    def filled(**options):
        return next(infer.infill(model, ["time way [MASK:6] day"], **options))

    plain = filled()
    assert filled(guidance=3.0).filled != plain.filled
    assert filled(sampler=Randomly(1)).steps == 1 and filled(sampler=InBlocks(2)).steps == 6
    many = filled(sampler=Ancestral(60), ask=WhenChanged())
    assert many.steps == 60 > many.asked


def test_a_model_in_blocks_fills_them_from_left_to_right(tokenizer):
    model = model_of(tokenizer, small_modernbert, lambda encoder, v: diffusion(encoder, v, block=4))
    (found,) = infer.infill(model, ["time [MASK:8] day"], states=True)
    filled = [[part == "[MASK]" for part in state.replace("[MASK]", " [MASK] ").split()] for state in found.states]
    assert found.steps == 8 and filled[-1] == [False] * len(filled[-1])
    assert found.states[1].replace(" ", "").endswith("[MASK]" * 6 + "day")  # positions 2 and 3, of the first block
    after = next(infer.infill(model, ["time [MASK:2] way year person day thing"]))
    alone = next(infer.infill(model, ["time [MASK:2] way day"]))
    assert after.holes == alone.holes  # later blocks are not seen


def test_holes_are_written_as_the_tokenizer_spells_masks():
    assert expand_holes("a [MASK:2] b [MASK]", "[MASK]") == "a [MASK][MASK] b [MASK]"
    assert expand_holes("a <mask:2> b [MASK:1] <mask>", "<mask>") == "a <mask><mask> b <mask> <mask>"
    for hole in ("[MASK:0]", "[MASK:40000]", f"[MASK:{10**40}]"):
        with pytest.raises(InputError, match=r"a hole of .* tokens"):
            expand_holes(hole, "[MASK]")


REFUSED = {
    "no hole": (["time way"], {}, "no .MASK. in 'time way'"),
    "holes beyond the positions": (["[MASK:63]"], {}, "65 tokens exceed the 64 positions"),
    "a text beyond the positions": (["[MASK:2]" + " way" * 70], {}, "exceed the 64 positions"),
    "more steps than tokens": (["[MASK:3]"], {"sampler": Confident(4)}, "4 steps for 3 tokens"),
    "more steps than tokens of one text": (["[MASK:4]", "[MASK]"], {"sampler": Randomly(4)}, "4 steps for 1 tokens"),
    "more steps than a block": (["[MASK:8]"], {"sampler": InBlocks(2, Confident(4))}, "4 steps for 2 tokens"),
    "guidance below 0": (["[MASK]"], {"guidance": -1.0}, "guidance=-1.0 must be 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_filled_is_refused(name, model):
    texts, options, problem = REFUSED[name]
    with pytest.raises(InputError, match=problem):
        next(infer.infill(model, texts, **options))


def test_models_that_do_not_predict_from_masks_are_refused(tokenizer):
    labelled = model_of(
        tokenizer, small_bert, lambda e, v: Published(e, (("classify", PairHead(32, 2, INIT, "float32")),))
    )
    with pytest.raises(InputError, match="no language-model head"):
        next(infer.infill(labelled, ["[MASK]"]))
    query = model_of(tokenizer, small_xlnet, lambda e, v: PermutationLM(e, Permutation((1, 2), (16, 16), 6)))
    with pytest.raises(InputError, match="predicts by its query stream"):
        next(infer.infill(query, ["[MASK]"]))
    content = model_of(tokenizer, small_xlnet, diffusion)
    assert "[MASK]" not in next(infer.infill(content, ["time [MASK:3] day"])).filled


def test_the_commands_print_texts_and_refuse_in_one_line(model, tokenizer, tmp_path, capsys, monkeypatch):
    checkpoint.export(tmp_path / "model", model.params, experiment=model.config, tokenizer=tokenizer)
    where = ["--model", str(tmp_path / "model")]
    assert main(["predict", "infill", *where, "time [MASK:2] way", "--states"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0] == lines[2].strip() and "[MASK]" in lines[1]
    monkeypatch.setattr("sys.stdin", iter(["the [MASK:3] day\n", "\n", "[MASK]\n"]))
    assert (
        main(["predict", "infill", *where, "--json", "--sampler", "cached", "--steps", "9", "--batch-size", "1"]) == 0
    )
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["text"] for each in found] == ["the [MASK:3] day", "[MASK]"] and found[0]["steps"] == 9
    assert main(["predict", "generate", *where, "--length", "4", "--count", "2", "time", ""]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0] != lines[1] and lines[0].startswith("time")
    judge = ["--judge", str(tmp_path / "model"), "--length", "4", "time", "way"]
    assert main(["predict", "generate", *where, *judge]) == 0
    error = capsys.readouterr().err
    assert "generative_perplexity_bound " in error and "unigram_entropy " in error
    refused = {
        ("infill", "time way"): "no [MASK] in 'time way'",
        ("infill", "[MASK:2]", "--steps", "3"): "3 steps for 2 tokens in '[MASK:2]'",
        ("infill", "[MASK:99]"): "101 tokens exceed the 64 positions",
        ("infill", "[MASK]", "--temperature", "-1"): "--temperature -1.0 must be 0",
        ("infill", "[MASK]", "--top-p", "2"): "--top-p 2.0 is not a share",
        ("infill", "[MASK]", "--guidance", "nan"): "--guidance nan must be 0",
        ("infill", "[MASK]", "--sampler", "first-hitting", "--steps", "1"): "leave out --steps",
        ("generate", "time", "--length", "90"): "exceed the 64 positions",
    }
    for words, problem in refused.items():
        assert main(["predict", words[0], *where, *words[1:]]) == 2, words
        out, error = capsys.readouterr()
        assert problem in error and len(error.splitlines()) == 1 and not out
    assert np.isfinite(model.params["encoder"]["embeddings"]["word"]["table"]).all()

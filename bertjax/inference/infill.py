"""Fill holes of any length in texts by a language model, step by step, and generate texts from it."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.protocols import LanguageModel
from bertjax.checkpoints.trained import Model
from bertjax.data.tokenizer import Vocabulary
from bertjax.diffusion import (
    Ask,
    Confident,
    Draw,
    EveryStep,
    InBlocks,
    Predict,
    Randomly,
    Sampled,
    Sampler,
    guided,
    sample,
)
from bertjax.errors import InputError
from bertjax.inference.fill_mask import encode_masked, special_tokens_of
from bertjax.models.heads import LanguageHead
from bertjax.models.published import Published
from bertjax.models.xlnet import XLNet
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.random import stream
from bertjax.texts import several
from bertjax.types import Array, Key, Params

LONGEST_HOLE = 2**15
"""Tokens, as the longest row."""

LIKELIEST = Draw(temperature=0)


class Infilled(NamedTuple):
    """A text with its holes filled.

    holes: the text of each hole. states: the text after each step, where they were asked for, with masks where nothing
    was filled yet. steps: how many; asked: how often the model was run for them.
    """

    text: str
    filled: str
    holes: list[str]
    states: list[str]
    steps: int
    asked: int


class _Row(NamedTuple):
    """A text in tokens, special tokens and masks included, and the positions of its masks."""

    text: str
    ids: list[int]
    places: list[int]


def infill(
    model: Model,
    texts: str | Sequence[str],
    *,
    sampler: Sampler = Confident(),  # noqa: B008 frozen
    draw: Draw = LIKELIEST,
    ask: Ask = EveryStep(),  # noqa: B008 frozen
    guidance: float = 0.0,
    states: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> Iterator[Infilled]:
    """Fill the holes of each text: [MASK:8] is one of eight tokens, [MASK] of one, <mask:8> as the tokenizer spells it.

    sampler, draw, ask: see bertjax/diffusion.py; by default one token at a step, the surest one, as the model finds it
    likeliest. guidance: scale of classifier-free guidance, which runs the model twice. A model in blocks fills its
    blocks from left to right. What is drawn depends on `seed` and on the texts of a batch.
    Yields results in order. Raises InputError, before the model runs, for a text without a hole or longer than the
    model's positions, more steps than tokens of a hole, and a model without a language head.
    """
    _check_model(model)
    rows = [_encoded(model, text, sampler) for text in several(texts)]
    if not guidance >= 0:
        raise InputError(f"guidance={guidance} must be 0 or more")
    run = _compiled(model, sampler, draw, ask, guidance)
    key = stream(seed, "infill")
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for index, (row, states_TL, asked) in enumerate(_filled(model, run, jax.random.fold_in(key, start), batch)):
            yield _result(model, batch[index], row, states_TL if states else states_TL[:0], len(states_TL), asked)


def generate(model: Model, prompts: str | Sequence[str], *, length: int, **options: Any) -> Iterator[Infilled]:
    """Continue each prompt, which may be empty, by `length` tokens; options and errors as `infill`."""
    if length < 1:
        raise InputError(f"length={length} must be 1 token or more")
    return infill(model, [with_hole(prompt, length) for prompt in several(prompts)], **options)


def with_hole(prompt: str, length: int) -> str:
    """Return a prompt followed by a hole of so many tokens."""
    return f"{prompt} [MASK:{length}]".strip()


def checking_holes(model: Model, sampler: Sampler) -> Callable[[str], None]:
    """Return a function that raises InputError for a text that `infill` refuses, as this does for a model."""
    _check_model(model)

    def check(text: str) -> None:
        _encoded(model, text, sampler)

    return check


def expand_holes(text: str, mask_piece: str) -> str:
    """Write each hole as so many mask pieces. Raises InputError for a hole of no token, or of too many."""

    def masks(match: re.Match[str]) -> str:
        digits = match[1] or match[2]
        count = int(digits) if len(digits) < 9 else LONGEST_HOLE + 1
        if not 1 <= count <= LONGEST_HOLE:
            raise InputError(f"a hole of {digits} tokens, {match[0]}: give it 1 to {LONGEST_HOLE:,}")
        return mask_piece * count

    own = f"{re.escape(mask_piece[:-1])}:([0-9]+){re.escape(mask_piece[-1:])}"
    return re.sub(rf"{own}|\[MASK:([0-9]+)\]", masks, text).replace("[MASK]", mask_piece)


def _check_model(model: Model) -> None:
    """Raise InputError for a model that cannot predict tokens from those that it sees."""
    objective = model.language_model
    if isinstance(objective, Published) and not any(isinstance(h, LanguageHead) for h in objective.heads.values()):
        raise InputError("this model has no language-model head: fill holes by a masked LM or a diffusion model")
    if isinstance(model.encoder, XLNet) and not isinstance(objective, MaskedDiffusion):
        raise InputError(
            "this XLNet predicts by its query stream, one permutation at a time, and not from masks: train it by "
            "masked diffusion first (experiments/diffusion.py init=…)"
        )


def _encoded(model: Model, text: str, sampler: Sampler) -> _Row:
    v = model.text.vocabulary
    (ids,) = encode_masked(model, [expand_holes(text, model.text.piece(v.mask))])
    row = _Row(text, ids, [place for place, index in enumerate(ids) if index == v.mask])
    inner, most = sampler, len(row.places)
    if isinstance(sampler, InBlocks):
        inner, most = sampler.inner, min(most, sampler.length)
    most = min(most, getattr(model.objective, "block", None) or most)  # which has steps of its own
    if isinstance(inner, Confident | Randomly) and (inner.steps or 0) > most:
        raise InputError(
            f"{inner.steps} steps for {most} tokens in {text[:60]!r}: each step fills at least one, so use at most "
            f"{most}, or the ancestral sampler"
        )
    return row


Run = Callable[[Params, Array, Array, Array, Array, Array, Key], Sampled]
"""(params, tokens_BL, mask_BL, types_BL, positions_BP, holes_BP, key) -> what was sampled at the positions."""


def _compiled(model: Model, sampler: Sampler, draw: Draw, ask: Ask, guidance: float) -> Run:
    """Return the function that fills the holes of a batch; it is compiled once for each shape of one."""
    given: Any = (model.language_model, model.text.vocabulary, sampler, draw, ask, guidance)
    try:
        return _compiled_once(*given)
    except TypeError:  # an objective that holds what has no hash
        return _jitted(*given)


def _jitted(objective: LanguageModel, v: Vocabulary, sampler: Sampler, draw: Draw, ask: Ask, guidance: float) -> Run:
    V = objective.encoder.V

    def run(
        params: Params,
        tokens_BL: Array,
        mask_BL: Array,
        types_BL: Array,
        positions_BP: Array,
        holes_BP: Array,
        key: Key,
    ) -> Sampled:
        rows_B1 = jnp.arange(len(tokens_BL))[:, None]
        written_BP = jnp.where(holes_BP, positions_BP, tokens_BL.shape[1])  # beyond the row: dropped

        def logits(given_BL: Array, values_BP: Array) -> Array:
            put_BL = given_BL.at[rows_B1, written_BP].set(values_BP, mode="drop")
            batch = {"tokens": put_BL, "mask": mask_BL, "types": types_BL}
            return objective.language_logits(params, batch, positions_BP).astype(jnp.float32)

        predict: Predict = partial(logits, tokens_BL)
        if guidance:
            special_BL = (mask_BL == 0) | (tokens_BL == v.cls) | (tokens_BL == v.sep)
            predict = guided(predict, partial(logits, jnp.where(special_BL, tokens_BL, v.mask)), guidance)

        def of_pieces(values_BP: Array) -> Array:  # a word table may have more rows than there are pieces
            is_piece_V = jnp.arange(V) < v.size
            return jnp.where(jax.lax.broadcast_to_rank(is_piece_V, 3), predict(values_BP), -jnp.inf)

        return sample(of_pieces, holes_BP, key, mask_id=v.mask, sampler=sampler, draw=draw, ask=ask)

    return jax.jit(run)


_compiled_once = lru_cache(maxsize=8)(_jitted)


def _filled(model: Model, run: Run, key: Key, rows: Sequence[_Row]) -> Iterator[tuple[list[int], np.ndarray, int]]:
    """Yield for each row its ids, its ids after each step [T, L], and how often the model was asked."""
    v = model.text.vocabulary
    before, after = special_tokens_of(model)
    length = -(-max(len(row.ids) for row in rows) // 32) * 32  # few lengths, so few compilations
    length = min(model.encoder.max_length or length, length)
    tokens = np.full((len(rows), length), v.pad, np.int32)
    mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
    for index, row in enumerate(rows):
        tokens[index, : len(row.ids)], mask[index, : len(row.ids)] = row.ids, 1
        types[index, : len(before)] = [segment for _, segment in before]
        types[index, len(row.ids) - len(after) : len(row.ids)] = [segment for _, segment in after]
    all_states, all_asked = [], 0
    for number, places in enumerate(_in_turn([row.places for row in rows], getattr(model.objective, "block", None))):
        most = max(map(len, places))
        positions = np.array([[*each, *[each[0] if each else 0] * (most - len(each))] for each in places], np.int32)
        holes = np.array([[True] * len(each) + [False] * (most - len(each)) for each in places])
        inputs = map(jnp.asarray, (tokens, mask, types, positions, holes))
        given: Any = (*inputs, jax.random.fold_in(key, number))
        found = jax.device_get(run(model.params, *given))
        states = np.tile(tokens, (len(found.states_TBP), 1, 1))
        for index, each in enumerate(places):
            states[:, index, each] = found.states_TBP[:, index, : len(each)]
        all_states.append(states)
        all_asked += int(found.asked)
        tokens = states[-1].copy()
    whole = np.concatenate(all_states)
    for index, row in enumerate(rows):
        yield tokens[index, : len(row.ids)].tolist(), whole[:, index, : len(row.ids)], all_asked


def _in_turn(places: Sequence[Sequence[int]], block: int | None) -> Iterator[list[list[int]]]:
    """Yield the holes of each row that are filled together: all of them, or those of one block of the model."""
    if block is None:
        yield [list(each) for each in places]
        return
    for number in sorted({place // block for each in places for place in each}):
        yield [[place for place in each if place // block == number] for each in places]


def _result(model: Model, row: _Row, ids: list[int], states_TL: np.ndarray, steps: int, asked: int) -> Infilled:
    before, after = special_tokens_of(model)

    def text(ids: Sequence[int]) -> str:
        return model.text.decode(ids[len(before) : len(ids) - len(after)])

    starts = [i for i, place in enumerate(row.places) if not i or row.places[i - 1] != place - 1]
    runs = [row.places[first:end] for first, end in pairwise([*starts, len(row.places)])]
    holes = [model.text.decode([ids[place] for place in places]).strip() for places in runs]
    return Infilled(row.text, text(ids), holes, [text(each) for each in states_TL.tolist()], steps, asked)

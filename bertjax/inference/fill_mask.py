"""Predict the masked pieces of texts."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.trained import Model
from bertjax.data.masked_text import reading_masks
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.inference.template_of import templates_of
from bertjax.texts import several


class Guess(NamedTuple):
    """A predicted piece, its text, and its probability."""

    piece: str
    text: str
    probability: float


class Filled(NamedTuple):
    """A text, the best predictions for each of its masks, and the text with the best one at each."""

    text: str
    masks: list[list[Guess]]
    best: str


def fill_mask(model: Model, texts: str | Sequence[str], *, top: int = 5, batch_size: int = 32) -> Iterator[Filled]:
    """Predict the masks of each text, spelled as the tokenizer's mask piece ("[MASK]", "<mask>").

    A text longer than the model's position table is read in windows as long as the table allows. Each mask is predicted
    in one of them, together with masks near it, as much text before them as after them where the text has it. Yields
    results in order. Raises InputError for a text without a mask.
    """
    texts = several(texts)
    vocabulary = model.text.vocabulary
    before, after = special_tokens_of(model)
    room = _room(model, len(before) + len(after))
    encoded = list(map(reading_masked(model), texts))
    windows = [window for number, ids in enumerate(encoded) for window in _windows(number, ids, vocabulary.mask, room)]
    masks: list[list[Guess]] = []
    best: list[int] = []
    for start in range(0, len(windows), batch_size):
        part = windows[start : start + batch_size]
        rows = [[*(i for i, _ in before), *window.ids, *(i for i, _ in after)] for window in part]
        for window, probabilities_PV in zip(part, _probabilities(model, rows, before, after), strict=True):
            number, ids = window.text, encoded[window.text]
            masks += [_guesses(model.text, probabilities_PV[slot], top) for slot in window.own]
            best += [int(probabilities_PV[slot].argmax()) for slot in window.own]
            if len(masks) == ids.count(vocabulary.mask):
                found = iter(best)
                filled = [next(found) if index == vocabulary.mask else index for index in ids]
                yield Filled(texts[number], masks, model.text.decode(filled))
                masks, best = [], []


class _Window(NamedTuple):
    """A part of a text: the number of the text, its ids, and which of its masks are predicted in it, by their order."""

    text: int
    ids: list[int]
    own: range


def _room(model: Model, specials: int) -> int | None:
    """Return how many tokens of a text fit into a row, None for any number."""
    if model.encoder.max_length is None:
        return None
    room: int = model.encoder.max_length - specials
    if room < 1:
        raise InputError(f"the model has {model.encoder.max_length} positions, too few for a text: use a longer one")
    return room


def _windows(text: int, ids: list[int], mask: int, room: int | None) -> Iterator[_Window]:
    """Yield windows of at most `room` tokens around the masks of a text, each mask in one of them."""
    places = [place for place, index in enumerate(ids) if index == mask]
    if room is None or len(ids) <= room:
        yield _Window(text, ids, range(len(places)))
        return
    first = 0
    while first < len(places):
        # Masks that are no further apart than half a row share one, so that a quarter is left on each side.
        last = bisect_right(places, places[first] + room // 2) - 1
        middle = (places[first] + places[last] + 1) // 2
        begin = min(max(0, middle - room // 2), len(ids) - room)
        skipped = bisect_left(places, begin)
        yield _Window(text, ids[begin : begin + room], range(first - skipped, last + 1 - skipped))
        first = last + 1


def _probabilities(
    model: Model, rows: list[list[int]], before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """Yield the probability of every piece at each mask of a row, f32 [P, V], with unused slots at the end."""
    vocabulary = model.text.vocabulary
    length = -(-max(map(len, rows)) // 32) * 32  # few lengths, so few compilations
    length = min(model.encoder.max_length or length, length)
    tokens = np.full((len(rows), length), vocabulary.pad, np.int32)
    mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
    places = [[place for place, index in enumerate(ids) if index == vocabulary.mask] for ids in rows]
    positions = np.zeros((len(rows), 1 << (max(map(len, places)) - 1).bit_length()), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        types[row, : len(before)] = [segment for _, segment in before]
        types[row, len(ids) - len(after) : len(ids)] = [segment for _, segment in after]
        positions[row] = places[row][0]  # also in unused slots, since every listed position is masked
        positions[row, : len(places[row])] = places[row]
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "types": jnp.asarray(types)}
    yield from np.asarray(model.mask_probabilities(batch, jnp.asarray(positions)))


def encode_masked(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts with special tokens and masks.

    Raises InputError for a text without a mask, or longer than the model's position table.
    """
    before, after = special_tokens_of(model)
    room = _room(model, len(before) + len(after))
    found = []
    for text, ids in zip(texts, map(reading_masked(model), texts), strict=True):
        if room is not None and len(ids) > room:
            raise InputError(
                f"{len(ids) + len(before) + len(after)} tokens exceed the {model.encoder.max_length} positions of the "
                f"model: shorten {text[:60]!r}…"
            )
        found.append([*(index for index, _ in before), *ids, *(index for index, _ in after)])
    return found


def special_tokens_of(model: Model) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the special tokens before and after a text, as (id, segment)."""
    v = model.text.vocabulary
    if model.text.templates is None:
        return model.language_model.special_tokens(v)
    template = templates_of(model).text
    place = [part for part, _ in template].index("a")
    ids = [(v.cls if part == "cls" else v.sep, segment) for part, segment in template]
    return ids[:place], ids[place + 1 :]


def reading_masked(model: Model) -> Callable[[str], list[int]]:
    """Return a function that encodes a text, and raises InputError for one without a mask."""
    read, mask = reading_masks(model.text), model.text.vocabulary.mask

    def checked(text: str) -> list[int]:
        ids = read(text)
        if mask not in ids:
            raise InputError(f"no {model.text.piece(mask)} in {text!r}: write one where a word is to be predicted")
        return ids

    return checked


def _guesses(tokenizer: Tokenizer, probabilities_V: np.ndarray, top: int) -> list[Guess]:
    best = np.argsort(-probabilities_V, kind="stable")[:top]
    return [Guess(tokenizer.piece(i), tokenizer.decode([i]).strip(), float(probabilities_V[i])) for i in best]

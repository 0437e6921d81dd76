"""Predict the masked pieces of texts."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.trained import Model
from bertjax.data.tokenizer import Tokenizer, parsing_special_tokens
from bertjax.errors import InputError
from bertjax.inference.template_of import templates_of


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


def fill_mask(model: Model, texts: Sequence[str], *, top: int = 5, batch_size: int = 32) -> Iterator[Filled]:
    """Predict the masks of each text, spelled as the tokenizer's mask piece ("[MASK]", "<mask>").

    Yields results in order. Raises InputError for a text without a mask, or longer than the model's position table.
    """
    vocabulary = model.text.vocabulary
    before, after = special_tokens_of(model)
    encoded = encode_masked(model, texts)
    for start in range(0, len(texts), batch_size):
        rows = encoded[start : start + batch_size]
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
        probabilities = np.asarray(model.mask_probabilities(batch, jnp.asarray(positions)))
        for row, ids in enumerate(rows):
            masks = [_guesses(model.text, probabilities[row, slot], top) for slot in range(len(places[row]))]
            best = list(ids)
            for slot, place in enumerate(places[row]):
                best[place] = int(probabilities[row, slot].argmax())
            yield Filled(texts[start + row], masks, model.text.decode(best[len(before) : len(best) - len(after)]))


def encode_masked(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts with special tokens and masks. Raises InputError as `fill_mask`."""
    parsing = parsing_special_tokens(model.text, mask_only=True) if model.text.templates else None
    return [_with_masks(model, text) if parsing is None else _parsed(model, parsing, text) for text in texts]


def special_tokens_of(model: Model) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the special tokens before and after a text, as (id, segment)."""
    v = model.text.vocabulary
    if model.text.templates is None:
        return model.language_model.special_tokens(v)
    template = templates_of(model).text
    place = [part for part, _ in template].index("a")
    ids = [(v.cls if part == "cls" else v.sep, segment) for part, segment in template]
    return ids[:place], ids[place + 1 :]


def _parsed(model: Model, tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text whose masks are parsed as the files of the model's folder say."""
    v = model.text.vocabulary
    (ids,) = tokenizer.ids([text])
    if v.mask not in ids:
        raise InputError(f"no {tokenizer.piece(v.mask)} in {text!r}: write one where a word is to be predicted")
    before, after = special_tokens_of(model)
    return _checked(model, [*(index for index, _ in before), *ids, *(index for index, _ in after)], text)


_PLACEHOLDER = "中"  # replaces a mask in tokenisation: no vocabulary merges it with its neighbours


def _with_masks(model: Model, text: str) -> list[int]:
    """Encode a text with special tokens and masks.

    Each mask is tokenised as a placeholder word, so that the text around it is tokenised as in training: the preceding
    space belongs to the masked word if the vocabulary's pieces include their spaces, and the text after it continues.
    One function, despite its branches: each of them is a case of one placeholder in the encoding.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None  # checked in fill_mask
    vocabulary = tokenizer.vocabulary
    mask_piece = tokenizer.piece(vocabulary.mask)
    parts = text.split(mask_piece)
    if len(parts) == 1:
        raise InputError(f"no {mask_piece} in {text!r}: write one where a word is to be predicted")
    places = [end - 1 for end in accumulate(len(part) + 1 for part in parts[:-1])]
    encoding = tokenizer.encode(_PLACEHOLDER.join(parts))
    before, after = model.language_model.special_tokens(vocabulary)
    ids, seen = [index for index, _ in before], set()
    for index, (begin, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
        hidden = [place for place in places if begin <= place < end]
        if not hidden:
            ids.append(index)
        for place in hidden:
            if place in seen:  # further pieces of the placeholder
                continue
            seen.add(place)
            if begin == place and ids and tokenizer.piece(ids[-1]) in ("Ġ", "▁"):
                ids.pop()
            ids.append(vocabulary.mask)
    return _checked(model, ids + [index for index, _ in after], text)


def _checked(model: Model, ids: list[int], text: str) -> list[int]:
    if len(ids) > (model.encoder.max_length or len(ids)):
        raise InputError(
            f"{len(ids)} tokens exceed the {model.encoder.max_length} positions of the model: shorten {text[:60]!r}…"
        )
    return ids


def _guesses(tokenizer: Tokenizer, probabilities_V: np.ndarray, top: int) -> list[Guess]:
    best = np.argsort(-probabilities_V, kind="stable")[:top]
    return [Guess(tokenizer.piece(i), tokenizer.decode([i]).strip(), float(probabilities_V[i])) for i in best]

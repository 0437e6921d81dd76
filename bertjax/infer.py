"""Load a trained model and use it: hidden states, language-model logits, filled masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax import checkpoint
from bertjax.config import from_json
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.flops import batch_shapes
from bertjax.layers import apply
from bertjax.models.encoder import Encoder, word_table
from bertjax.objectives.mlm import MaskedLM
from bertjax.types import Array, Batch, Params


@dataclass(frozen=True)
class Model:
    """A trained model. config: the experiment that it comes from, as JSON types."""

    objective: MaskedLM
    params: Params
    tokenizer: Tokenizer
    config: dict[str, Any]

    @property
    def encoder(self) -> Encoder:
        """The encoder that was trained."""
        return self.objective.encoder

    def encode(self, batch: Batch) -> Array:
        """Return hidden states [B, L, D] of tokens and mask, and types where given."""
        return self._encode(self.params, dict(batch))

    def mlm_logits(self, batch: Batch) -> Array:
        """Return language-model logits [B, L, V]."""
        return self._mlm_logits(self.params, dict(batch))

    @cached_property
    def _guesses(self) -> Any:
        def guesses(params: Params, batch: Batch, positions_BP: Array) -> Array:
            x_BLD = _encode(self.encoder, params, batch)
            x_BPD = jnp.take_along_axis(x_BLD, positions_BP[..., None], axis=1, mode="promise_in_bounds")
            logits_BPV = apply(self.objective.head, params["head"]["mlm"], x_BPD, word_table(params["encoder"]))
            return jax.nn.softmax(logits_BPV.astype(jnp.float32), axis=-1)

        return jax.jit(guesses)

    def mask_probabilities(self, batch: Batch, positions_BP: Array) -> Array:
        """Return the probability of every piece at the given positions of each row: float32 [B, P, V]."""
        return self._guesses(self.params, dict(batch), positions_BP)

    @cached_property
    def _encode(self) -> Any:
        return jax.jit(partial(_encode, self.encoder))

    @cached_property
    def _mlm_logits(self) -> Any:
        def logits(params: Params, batch: Batch) -> Array:
            x_BLD = _encode(self.encoder, params, batch)
            return apply(self.objective.head, params["head"]["mlm"], x_BLD, word_table(params["encoder"]))

        return jax.jit(logits)


def _encode(encoder: Encoder, params: Params, batch: Batch) -> Array:
    return apply(encoder, params["encoder"], batch["tokens"], batch["mask"], batch.get("types"))


def load(path: str | Path) -> Model:
    """Load a model from the work folder of a run (its newest checkpoint) or from one checkpoint.

    Works on any device, whatever it was trained on. Raises InputError where there is none, or it is damaged.
    """
    step = checkpoint.latest_step(Path(path))
    info = checkpoint.read_info(step)
    objective = from_json(info["experiment"]["objective"])
    rows = from_json(info["experiment"]["phases"][0]["rows"])
    shapes = batch_shapes(1, rows.length, rows.features)
    params = jax.eval_shape(objective.init, jax.random.key(0), shapes)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), params)
    params = checkpoint.restore(step, "params", like, info)
    return Model(objective, params, checkpoint.saved_tokenizer(step, info), info["experiment"])


class Guess(NamedTuple):
    """A piece to fill a mask with, its text, and its probability."""

    piece: str
    text: str
    probability: float


class Filled(NamedTuple):
    """A text, the guesses for each of its masks, and the text with the best of them."""

    text: str
    masks: list[list[Guess]]
    best: str


def fill_mask(model: Model, texts: Sequence[str], *, top: int = 5, batch_size: int = 32) -> Iterator[Filled]:
    """Fill the masks of each text, written as the tokenizer spells its mask piece ("[MASK]", "<mask>").

    Yields in order. Raises InputError for a text without a mask, or longer than the model's position table.
    """
    vocabulary = model.tokenizer.vocabulary
    encoded = [_with_masks(model, text) for text in texts]
    for start in range(0, len(texts), batch_size):
        rows = encoded[start : start + batch_size]
        length = min(model.encoder.max_length, -(-max(map(len, rows)) // 32) * 32)  # few lengths, few compilations
        tokens = np.full((len(rows), length), vocabulary.pad, np.int32)
        mask = np.zeros_like(tokens)
        places = [[place for place, index in enumerate(ids) if index == vocabulary.mask] for ids in rows]
        positions = np.zeros((len(rows), 1 << (max(map(len, places)) - 1).bit_length()), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
            positions[row, : len(places[row])] = places[row]
        batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
        probabilities = np.asarray(model.mask_probabilities(batch, jnp.asarray(positions)))
        for row, ids in enumerate(rows):
            masks = [_guesses(model.tokenizer, probabilities[row, slot], top) for slot in range(len(places[row]))]
            best = list(ids)
            for slot, place in enumerate(places[row]):
                best[place] = int(probabilities[row, slot].argmax())
            yield Filled(texts[start + row], masks, model.tokenizer.decode(best[1:-1]))


_WORD = "中"  # stands for a mask while a text is tokenised: no vocabulary joins it to its neighbours


def _with_masks(model: Model, text: str) -> list[int]:
    """Encode a text with specials at its ends, and a mask for the pieces of each word that it stands for.

    So what is around a mask is tokenised as in training: the space before it belongs to the hidden word where the
    vocabulary's pieces carry their spaces, and what follows continues the text.
    """
    tokenizer, vocabulary = model.tokenizer, model.tokenizer.vocabulary
    mask_piece = tokenizer.piece(vocabulary.mask)
    parts = text.split(mask_piece)
    if len(parts) == 1:
        raise InputError(f"no {mask_piece} in {text!r}: write one where a word is to be guessed")
    places = [end - 1 for end in accumulate(len(part) + 1 for part in parts[:-1])]
    encoding = tokenizer.encode(_WORD.join(parts))
    ids, seen = [vocabulary.cls], set()
    for index, (begin, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
        hidden = [place for place in places if begin <= place < end]
        if not hidden:
            ids.append(index)
        for place in hidden:
            if place in seen:  # a word of several pieces
                continue
            seen.add(place)
            if begin == place and tokenizer.piece(ids[-1]) in ("Ġ", "▁"):
                ids.pop()
            ids.append(vocabulary.mask)
    ids.append(vocabulary.sep)
    if len(ids) > model.encoder.max_length:
        raise InputError(f"{len(ids)} tokens exceed the {model.encoder.max_length} of the model: {text[:60]!r}…")
    return ids


def _guesses(tokenizer: Tokenizer, probabilities_V: np.ndarray, top: int) -> list[Guess]:
    best = np.argsort(-probabilities_V, kind="stable")[:top]
    return [Guess(tokenizer.piece(i), tokenizer.decode([i]).strip(), float(probabilities_V[i])) for i in best]

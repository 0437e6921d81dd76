"""Load a trained model and use it: hidden states, language-model logits, filled masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
    rows = info["experiment"]["phases"][0]["rows"]
    shapes = batch_shapes(1, rows["length"], tuple(rows["features"]))
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

    Yields in order. Raises InputError for a text without a mask, or longer than the model's rows.
    """
    vocabulary = model.tokenizer.vocabulary
    encoded = [_with_masks(model, text) for text in texts]
    for start in range(0, len(texts), batch_size):
        rows = encoded[start : start + batch_size]
        length = min(model.encoder.max_length, -(-max(map(len, rows)) // 32) * 32)  # few lengths, few compilations
        tokens = np.full((len(rows), length), vocabulary.pad, np.int32)
        mask = np.zeros_like(tokens)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        logits = model.mlm_logits({"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)})
        probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))
        for row, ids in enumerate(rows):
            places = [place for place, index in enumerate(ids) if index == vocabulary.mask]
            masks = [_guesses(model.tokenizer, probabilities[row, place], top) for place in places]
            best = list(ids)
            for place in places:
                best[place] = int(probabilities[row, place].argmax())
            yield Filled(texts[start + row], masks, model.tokenizer.decode(best[1:-1]))


def _with_masks(model: Model, text: str) -> list[int]:
    """Encode a text with specials at its ends and mask ids where it spells them."""
    vocabulary = model.tokenizer.vocabulary
    mask_piece = model.tokenizer.piece(vocabulary.mask)
    if mask_piece not in text:
        raise InputError(f"no {mask_piece} in {text!r}: write one where a word is to be guessed")
    first, *others = model.tokenizer.ids(text.split(mask_piece))
    ids = [vocabulary.cls, *first]
    for part in others:
        ids += [vocabulary.mask, *part]
    ids.append(vocabulary.sep)
    if len(ids) > model.encoder.max_length:
        raise InputError(f"{len(ids)} tokens exceed the {model.encoder.max_length} of the model: {text[:60]!r}…")
    return ids


def _guesses(tokenizer: Tokenizer, probabilities_V: np.ndarray, top: int) -> list[Guess]:
    best = np.argsort(-probabilities_V, kind="stable")[:top]
    return [Guess(tokenizer.piece(i), tokenizer.decode([i]).strip(), float(probabilities_V[i])) for i in best]

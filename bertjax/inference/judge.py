"""Measure generated texts: the bound of their perplexity under another model, never without their entropy.

A text that repeats a word is likely under most models, so that a low perplexity alone says nothing
(s-sahoo/duo issue 16; arXiv 2409.02908).
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from bertjax.checkpoints.trained import Model, load
from bertjax.errors import InputError
from bertjax.evaluate import HostBatch
from bertjax.inference.compatible import check_tokenizer
from bertjax.inference.fill_mask import special_tokens_of
from bertjax.likelihood import bound, only_beside_entropy, unigram_entropy
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.sharding.mesh import MeshShape


def load_judge(path: str) -> Model:
    """Load a model that bounds the likelihood of texts. Raises InputError where it is no masked diffusion model."""
    judge = load(path)
    check_tokenizer(judge, path)
    if not isinstance(judge.objective, MaskedDiffusion):
        raise InputError(f"{path} is no masked diffusion model: only these bound the likelihood of a text")
    return judge


def generative_perplexity(
    judge: Model, texts: Sequence[str], *, draws: int = 16, batch_size: int = 32
) -> dict[str, float]:
    """Return the bound of the texts' perplexity under `judge` with its standard error, and their unigram entropy.

    Raises InputError for a text longer than the judge's positions, and another kind of model.
    """
    objective = judge.objective
    if not isinstance(objective, MaskedDiffusion):
        raise InputError("only a masked diffusion model bounds the likelihood of a text")
    v = judge.text.vocabulary
    before, after = special_tokens_of(judge)
    ids = judge.text.ids(list(texts))
    whole = [[*(index for index, _ in before), *each, *(index for index, _ in after)] for each in ids]
    longest = max(map(len, whole))
    if judge.encoder.max_length is not None and longest > judge.encoder.max_length:
        raise InputError(f"{longest} tokens exceed the {judge.encoder.max_length} positions of the judge")
    length = min(judge.encoder.max_length or 2**31, -(-longest // 32) * 32)

    def batches() -> Iterator[HostBatch]:
        for start in range(0, len(whole), batch_size):
            rows = whole[start : start + batch_size]
            tokens = np.full((batch_size, length), v.pad, np.int32)
            mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
            for index, row in enumerate(rows):
                tokens[index, : len(row)], mask[index, : len(row)] = row, 1
                types[index, : len(before)] = [segment for _, segment in before]
                types[index, len(row) - len(after) : len(row)] = [segment for _, segment in after]
            example = np.arange(start, start + batch_size, dtype=np.uint32)
            yield {"tokens": tokens, "mask": mask, "types": types, "example": example}

    mesh = MeshShape(data=1).mesh(batch_size, jax.local_devices()[:1])
    values = bound(objective, mesh, batch_size, draws=draws)(judge.params, batches())
    return only_beside_entropy(values, unigram_entropy(ids))

"""Bound the likelihood of text under a masked diffusion model, with standard errors.

The bound is the mean over k = 1 … n of n/k times the summed losses of k masked tokens of n (bertjax/noise.py), which
Monte Carlo estimates: each row is masked `draws` times, k spread over its range. Nie et al. 2025 (LLaDA,
get_log_likelihood.py) draw 128 times; over many rows far fewer do, since their errors are independent.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.evaluate import HostBatch, place_params
from bertjax.noise import ExactCount
from bertjax.objectives.diffusion import GOLDEN, MaskedDiffusion
from bertjax.objectives.losses import is_first_best, negative_log_likelihood
from bertjax.random import row_keys, stream
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import place_batch, replicated
from bertjax.types import Array, Batch, Key, Params

SHARES = 5
"""Equal ranges of the share of masked tokens, by which accuracy is told apart."""


class RowBounds(NamedTuple):
    """The estimates of each row, of T draws.

    nll_TB: f32, each an estimate of the bound on -log p(row), in nats. tokens_B: f32, those that may be masked.
    right_S, masked_S: f32, of all rows and draws: tokens predicted right, and masked, by the share that is masked.
    """

    nll_TB: Array
    tokens_B: Array
    right_S: Array
    masked_S: Array


def row_bounds(objective: MaskedDiffusion, params: Params, batch: Batch, rng: Key, draws: int) -> RowBounds:
    """Estimate the bound of every row of a batch `draws` times."""
    candidates_BL, groups_BL = objective.candidates(batch), objective.blocks(batch)
    keys_B = row_keys(rng, batch)
    offset_B = jax.vmap(jax.random.uniform)(keys_B)
    n_B = candidates_BL.sum(1)

    def of_row(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        x_LD, targets_L = inputs  # one row at a time: the logits of all would be large
        logits_LV = objective.logits(params, x_LD[None])[0]
        return negative_log_likelihood(logits_LV, targets_L), is_first_best(logits_LV, targets_L)

    def one(carry: tuple[Array, Array], draw: Array) -> tuple[tuple[Array, Array], Array]:
        bits_BL = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, draw), (groups_BL.shape[1],)))(keys_B)
        uniform_B = (offset_B + draw / draws) % 1
        uniform_BL = (uniform_B[:, None] + GOLDEN * groups_BL.astype(jnp.float32)) % 1
        noised = ExactCount()(bits_BL, uniform_BL, candidates_BL, groups_BL)
        x_BLD = objective.states(params, batch, noised.masked_BL)
        nll_BL, right_BL = jax.lax.map(of_row, (x_BLD, batch["tokens"]))
        nll_B = jnp.where(noised.masked_BL, noised.weights_BL * nll_BL, 0).sum(1)
        masked_B = noised.masked_BL.sum(1)
        share_B = jnp.ceil(masked_B / jnp.maximum(n_B, 1) * SHARES - 1e-6).astype(jnp.int32) - 1
        is_share_SB = jnp.arange(SHARES)[:, None] == jnp.maximum(share_B, 0)[None]
        right_B = (noised.masked_BL & right_BL).sum(1)
        right_S, masked_S = (jnp.where(is_share_SB, x_B[None], 0).sum(1) for x_B in (right_B, masked_B))
        return (carry[0] + right_S, carry[1] + masked_S), nll_B

    zeros = jnp.zeros(SHARES)
    (right_S, masked_S), nll_TB = jax.lax.scan(one, (zeros, zeros), jnp.arange(draws))
    return RowBounds(nll_TB, n_B.astype(jnp.float32), right_S, masked_S)


def bound(
    objective: MaskedDiffusion, mesh: Mesh, rows: int, *, draws: int, tokenizer: Tokenizer | None = None
) -> Callable[[Params, Iterable[HostBatch]], dict[str, float]]:
    """Return a function (params, batches) -> metrics, compiled once. rows: of a global batch.

    nelbo: the bound on -log p per token, in nats; perplexity_bound: exp of it; each with its standard error over rows,
    which includes that of Monte Carlo, nelbo_monte_carlo_error. bits_per_byte, with a tokenizer: of the bytes of the
    decoded text, in which an uncased vocabulary has lost some. accuracy/masked_20 … masked_100: of tokens where more
    than 20 percent less, and up to so many, are masked.
    """
    rng = stream(0, "likelihood")

    def found(params: Params, batch: Batch) -> tuple[RowBounds, Array, Array]:
        candidates_BL = objective.candidates(batch)
        return row_bounds(objective, gather_params(params), batch, rng, draws), batch["tokens"], candidates_BL

    compute = jax.jit(found, out_shardings=replicated(mesh))

    def evaluated(params: Params, batches: Iterable[HostBatch]) -> dict[str, float]:
        params, all_rows, texts = place_params(params, mesh), [], 0
        for batch in batches:
            with jax.set_mesh(mesh):
                row, tokens_BL, candidates_BL = jax.device_get(compute(params, place_batch(batch, mesh, rows)))
            all_rows.append(row)
            if tokenizer is not None:
                texts += sum(
                    len(tokenizer.decode(tokens_L[candidates_L].tolist()).encode(errors="replace"))
                    for tokens_L, candidates_L in zip(tokens_BL, candidates_BL, strict=True)
                )
        return dict(_summary(all_rows, texts))

    return evaluated


def _summary(rows: Sequence[RowBounds], size: int) -> Iterator[tuple[str, float]]:
    """Add up the estimates of all rows; size: bytes of their text, 0 if unknown."""
    nll_TR = np.concatenate([np.asarray(row.nll_TB, np.float64) for row in rows], axis=1)
    n_R = np.concatenate([np.asarray(row.tokens_B, np.float64) for row in rows])
    nll_TR, n_R = nll_TR[:, n_R > 0], n_R[n_R > 0]
    tokens, nll_R = float(n_R.sum()), nll_TR.mean(0)
    if not tokens:
        raise InputError("no token of this text may be masked, so there is nothing to bound")
    nelbo = float(nll_R.sum()) / tokens
    yield "nelbo", nelbo
    error = None
    if len(n_R) > 1:
        error = math.sqrt(((nll_R - nelbo * n_R) ** 2).sum() * len(n_R) / (len(n_R) - 1)) / tokens
        yield "nelbo_standard_error", error
    if len(nll_TR) > 1:
        yield "nelbo_monte_carlo_error", math.sqrt((nll_TR.var(0, ddof=1) / len(nll_TR)).sum()) / tokens
    yield "perplexity_bound", math.exp(min(nelbo, 700))
    if error is not None:
        yield "perplexity_bound_standard_error", math.exp(min(nelbo, 700)) * error
    if size:
        yield "bits_per_byte", float(nll_R.sum() / math.log(2) / size)
    right_S, masked_S = (
        np.sum(np.asarray(column, np.float64), axis=0)
        for column in ([row.right_S for row in rows], [row.masked_S for row in rows])
    )
    for share, (right, masked) in enumerate(zip(right_S, masked_S, strict=True), 1):
        if masked:
            yield f"accuracy/masked_{100 * share // SHARES}", float(right / masked)


def unigram_entropy(texts: Iterable[Sequence[int]]) -> float:
    """Return the mean entropy in nats of the ids of each text: low where a text repeats itself.

    Sahoo et al. 2024 and others report it, since a perplexity under another model is low for repetition too.
    """
    entropies = []
    for ids in texts:
        p = np.unique(np.asarray(ids), return_counts=True)[1] / max(1, len(ids))
        entropies.append(float(-(p * np.log(p)).sum()))
    return float(np.mean(entropies)) if entropies else 0.0


def only_beside_entropy(values: Mapping[str, float], entropy: float) -> dict[str, float]:
    """Return the bound of the perplexity of generated texts under another model, and the entropy of their tokens."""
    kept = ("perplexity_bound", "perplexity_bound_standard_error")
    return {f"generative_{name}": values[name] for name in kept if name in values} | {"unigram_entropy": entropy}

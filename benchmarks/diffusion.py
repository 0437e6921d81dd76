"""Time masked diffusion: a training step beside masked LM's, and a sampler beside a plain loop in torch.

    python benchmarks/diffusion.py step                  # BERT mini, 16 × 128, float32, on the CPU
    python benchmarks/diffusion.py sampler               # pip install '.[parity]'

step: loss, gradient and AdamW of both objectives on the same encoder and rows, with as many positions in the
vocabulary's product: masked LM masks half of each row, diffusion has slots for half of the batch. They take turns.
sampler: rows of which half are holes, filled by confidence at temperature 1 in as many steps on both sides, by the same
weights' shapes. The loop is that of LLaDA's generate.py with transformers' BertForMaskedLM: logits of all positions,
softmax and Gumbel noise in float64, top-k of the confidence of each row. Each side runs in turn, in one process, with
all the cores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bertjax.diffusion import Confident, Draw, EveryStep, sample
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.noise import RandomTime
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.objectives.mlm import MaskedLM

SIZES = {
    "tiny": {"N": 2, "D": 128, "H": 2, "F": 512},
    "mini": {"N": 4, "D": 256, "H": 4, "F": 1024},
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
}
V, CLS, SEP, MASK = 30522, 101, 102, 103


def rows_of(options: argparse.Namespace) -> np.ndarray:
    """Make full rows of random ids."""
    tokens = np.random.default_rng(0).integers(1000, V, (options.rows, options.length)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens


def waited(run: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function and wait for its result."""
    return jax.block_until_ready(run(*inputs))


def in_turn(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Run each side once to compile, then in turn; return the median seconds of each."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(each) for name, each in times.items()}


def time_step(options: argparse.Namespace) -> dict[str, Any]:
    """Time a training step of masked LM and of diffusion."""
    tokens = jnp.asarray(rows_of(options))
    example = jnp.arange(options.rows, dtype=jnp.uint32)
    batch = {"tokens": tokens, "mask": jnp.ones_like(tokens), "types": jnp.zeros_like(tokens), "example": example}
    encoder = Encoder(V=V, **SIZES[options.size])
    masking = Masking(MASK, (0, V), (CLS, SEP), rate=0.5, masked=1.0, random=0.0)
    objectives = {
        "masked LM": MaskedLM(encoder, masking),
        "diffusion": MaskedDiffusion(encoder, MASK, (CLS, SEP), RandomTime(), slots=0.5),
    }
    tx, sides = optax.adamw(1e-4), {}
    for name, objective in objectives.items():
        params = jax.jit(objective.init)(jax.random.key(0), batch)

        @jax.jit
        def step(params: Any, opt: Any, key: Any, objective: Any = objective) -> Any:
            gradient, _ = jax.grad(lambda p: objective.loss(p, batch, key, train=True), has_aux=True)(params)
            updates, opt = tx.update(gradient, opt, params)
            return optax.apply_updates(params, updates), opt

        sides[name] = partial(waited, step, params, tx.init(params), jax.random.key(1))
    found = in_turn(sides, options.repeats)
    return found | {"diffusion / masked LM": found["diffusion"] / found["masked LM"]}


def time_sampler(options: argparse.Namespace) -> dict[str, Any]:
    """Time a sampler here and in torch."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    tokens, P = rows_of(options), options.length // 2
    inner = np.tile(np.arange(1, options.length - 1), (options.rows, 1))
    positions = np.sort(np.random.default_rng(0).permuted(inner, axis=1)[:, :P])
    np.put_along_axis(tokens, positions, MASK, axis=1)
    size = SIZES[options.size]
    objective = MaskedDiffusion(Encoder(V=V, **size), MASK, (CLS, SEP))
    given_BL, positions_BP = jnp.asarray(tokens), jnp.asarray(positions)
    shape = {"tokens": given_BL, "mask": jnp.ones_like(given_BL)}
    params = jax.jit(objective.init)(jax.random.key(0), shape)

    @jax.jit
    def run(params: Any, key: Any) -> Any:
        def predict(values_BP: Any) -> Any:
            put_BL = given_BL.at[jnp.arange(options.rows)[:, None], positions_BP].set(values_BP)
            return objective.language_logits(params, shape | {"tokens": put_BL}, positions_BP)

        holes_BP = jnp.ones(positions.shape, bool)
        return sample(predict, holes_BP, key, mask_id=MASK, sampler=Confident(options.steps), draw=Draw(),
                      ask=EveryStep()).values_BP  # fmt: skip

    config = BertConfig(
        vocab_size=V, hidden_size=size["D"], num_hidden_layers=size["N"], num_attention_heads=size["H"],
        intermediate_size=size["F"],
    )  # fmt: skip
    theirs = BertForMaskedLM(config).eval()

    @torch.inference_mode()
    def loop() -> Any:
        ids, per_step = torch.tensor(tokens, dtype=torch.long), P // options.steps
        for _ in range(options.steps):
            masked = ids == MASK
            logits = theirs(ids).logits
            logits[..., MASK] = -torch.inf
            noise = -torch.log(torch.rand(logits.shape, dtype=torch.float64))
            x0 = (logits.to(torch.float64).exp() / noise).argmax(-1)
            p = torch.softmax(logits.to(torch.float64), -1)
            confidence = torch.where(masked, p.gather(-1, x0[..., None])[..., 0], -torch.inf)
            chosen = confidence.topk(per_step, dim=-1).indices
            ids.scatter_(1, chosen, x0.gather(1, chosen))
        return ids

    sides = {"bertjax": partial(waited, run, params, jax.random.key(1)), "torch": loop}
    found = in_turn(sides, options.repeats)
    assert not (loop() == MASK).any() and not (np.asarray(run(params, jax.random.key(1))) == MASK).any()
    return found | {"torch / bertjax": found["torch"] / found["bertjax"]}


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "sampler"))
    parser.add_argument("--size", choices=tuple(SIZES), default="mini")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16, help="of the sampler, a divisor of half the length")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    run = {"step": time_step, "sampler": time_sampler}[options.what]
    print(json.dumps(vars(options) | {name: round(value, 4) for name, value in run(options).items()}))


if __name__ == "__main__":
    main()

"""Time a training step of XLNet's two streams beside one of the content stream alone: what does the query stream cost?

    python benchmarks/two_streams.py                                       # base, 4 × 512, float32
    python benchmarks/two_streams.py --size tiny --rows 2 --length 128

Both steps are ours: the same window, permutation, targets and head, corruption, clipping and AdamW. One predicts from
the query stream, the other from the content stream at the same positions, which sees what it predicts: it learns
nothing, but costs what one stream costs. They take turns in one process. Printed: the median step of each, the ratio
pair by pair with its spread, and the FLOPs of both as XLA counts them. The goal is a ratio of at most 1.35.

XLA counts the body of a loop once, one layer that is; what each of the others adds is counted in steps without loops.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from train_step import IDS, SIZES

from bertjax.models.language import word_table
from bertjax.models.layers import apply
from bertjax.models.xlnet import XLNet
from bertjax.objectives.losses import scores
from bertjax.objectives.plm import PermutationLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import BertLinear
from bertjax.permutation import Permutation, permute
from bertjax.run.state import State
from bertjax.train import train_step
from bertjax.types import Array, Batch, Key, Metrics, Params, total

V, CLS, SEP, _ = IDS["xlnet"]


@dataclass(frozen=True)
class Streams:
    """Train on one window a row with two streams, or with the content stream alone."""

    encoder: XLNet
    permutation: Permutation
    two: bool

    def init(self, rng: Key, batch: Batch) -> Params:
        """Make what permutation language modelling has."""
        return PermutationLM(self.encoder, self.permutation).init(rng, batch)

    def loss(self, params: Params, batch: Batch, rng: Key) -> tuple[Array, Metrics]:
        """Return the loss on the targets and its metrics."""
        order_key, dropout_key = jax.random.split(rng)
        permuted = permute(order_key, batch, self.permutation)
        content_BLD, query_BPD, _ = self.encoder.apply(
            {"params": params["encoder"]}, batch["tokens"], batch["mask"], batch["types"], ranks_BL=permuted.ranks_BL,
            targets_BP=permuted.positions_BP if self.two else None, train=True, rngs={"dropout": dropout_key},
            method="streams",
        )  # fmt: skip
        if not self.two:
            query_BPD = jnp.take_along_axis(content_BLD, permuted.positions_BP[..., None], axis=1)
        head = PermutationLM(self.encoder, self.permutation).head
        logits_BPV = apply(head, params["head"]["plm"], query_BPD, word_table(params["encoder"]))
        metrics = scores("plm", logits_BPV, permuted.targets_BP, permuted.weights_BP)
        return total(metrics), metrics


def make_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    """Make full windows of random ids in two segments."""
    tokens = np.random.default_rng(0).integers(1000, V, (rows, length)).astype(np.int32)
    tokens[:, length // 2], tokens[:, -2], tokens[:, -1] = SEP, SEP, CLS
    types = np.broadcast_to(np.arange(length) > length // 2, tokens.shape).astype(np.int32)
    return {"tokens": tokens, "mask": np.ones_like(tokens), "types": types, "word_starts": np.ones_like(tokens)}


def start(streams: Streams, tx: Any, batch: Any) -> State:
    """Make the first state."""
    params = streams.init(jax.random.key(0), batch)
    return State(jnp.int32(0), params, tx.init(params))


def compiled(streams: Streams, tx: Any, batch: Any) -> Any:
    """Compile a step."""
    step = jax.jit(partial(train_step, loss=streams.loss, tx=tx, key=jax.random.key(0)), donate_argnums=0)
    return step.lower(jax.eval_shape(lambda: start(streams, tx, batch)), batch).compile()


def flops_of_layer(streams: Streams, tx: Any, batch: Any) -> float:
    """Count what one layer more adds to a step without loops."""
    scan = jax.lax.scan

    def unrolled(*arguments: Any, **options: Any) -> Any:
        return scan(*arguments, **options | {"unroll": True})

    def count(layers: int) -> float:
        few = replace(streams, encoder=replace(streams.encoder, N=layers))
        with patch("jax.lax.scan", unrolled):
            return float(compiled(few, tx, batch).cost_analysis()["flops"])

    return count(2) - count(1)


def main() -> None:
    """Measure and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--targets", type=int, help="of a window; a sixth of its length, which is 85 of 512")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of each, after two")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    half = options.length // 2
    permutation = Permutation((SEP, CLS), (half, options.length - half), options.targets or options.length // 6)
    encoder = XLNet(V=V, dtype=options.dtype, **SIZES[options.size])
    both = {name: Streams(encoder, permutation, two) for name, two in (("one stream", False), ("two streams", True))}
    batch: Any = jax.device_put(make_batch(options.rows, options.length))
    tx = Optimizer(BertLinear(1e-4, 10, 1000)).transform()
    steps = {name: compiled(streams, tx, batch) for name, streams in both.items()}
    flops = {
        name: float(steps[name].cost_analysis()["flops"]) + (encoder.N - 1) * flops_of_layer(streams, tx, batch)
        for name, streams in both.items()
    }
    state = jax.jit(lambda: start(both["two streams"], tx, batch))()
    times: dict[str, list[float]] = {name: [] for name in both}
    for number in range(options.steps + 2):
        for name, step in steps.items():
            begun = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            if number >= 2:
                times[name].append(time.perf_counter() - begun)

    ratios = np.array(times["two streams"]) / np.array(times["one stream"])
    result = {
        "device": jax.devices()[0].device_kind,
        "step_seconds": {name: float(np.median(found)) for name, found in times.items()},
        "time_ratio": {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())},
        "flops": flops,
        "flops_ratio": flops["two streams"] / flops["one stream"],
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, seconds in result["step_seconds"].items():
        print(f"{name:>11}: {1000 * seconds:8.1f} ms a step, {flops[name] / 1e9:8.1f} GFLOPs")
    ratio = result["time_ratio"]
    print(f"time, two over one: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"FLOPs, two over one: {result['flops_ratio']:.2f}")


if __name__ == "__main__":
    main()

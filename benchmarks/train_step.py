"""Time a pre-training step of BERT beside `transformers` with torch: the same shapes, tokens, masked positions, labels.

    pip install '.[parity]'
    python benchmarks/train_step.py                                        # BERT-base, 8 × 128, float32, on the CPU
    python benchmarks/train_step.py --size large --rows 32 --length 512 --dtype bfloat16       # where there is a GPU

Each side runs in a process of its own, and they take turns, a step each, so that both see the same machine. A step is
corruption, forward, backward, clipping and AdamW on our side; on the other forward, backward, clipping and fused AdamW
(eager; the corrupted tokens come ready). Dropout is on. Both use all the cores, or the GPU. Printed: the median step of
each side, the ratio pair by pair with its spread, peak memory of each process, and where our time goes.
"""

import argparse
import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

SIZES = {
    "tiny": {"N": 2, "D": 128, "H": 2, "F": 512},
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
    "large": {"N": 24, "D": 1024, "H": 16, "F": 4096},
}
V, CLS, SEP, MASK = 30522, 101, 102, 103


def make_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    """Make full rows of random ids in two segments."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, V, (rows, length)).astype(np.int32)
    tokens[:, 0], tokens[:, length // 2], tokens[:, -1] = CLS, SEP, SEP
    types = np.broadcast_to(np.arange(length) > length // 2, tokens.shape).astype(np.int32)
    return {
        "tokens": tokens,
        "mask": np.ones_like(tokens),
        "types": types,
        "pair": rng.integers(0, 2, rows).astype(np.int32),
    }


def run_bertjax(pipe: Connection, options: argparse.Namespace) -> None:
    """Answer "step", "forward" and "backward" with their seconds, "memory" with the peak so far; `None` ends."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from bertjax.masking import Masking, mask_tokens
    from bertjax.models.encoder import Encoder
    from bertjax.objectives.mlm import MaskedLM
    from bertjax.optim import BertLinear, Optimizer
    from bertjax.train import State, train_step

    masking = Masking(mask_id=MASK, random_ids=(0, V), specials=(CLS, SEP))
    encoder = Encoder(V=V, dtype=options.dtype, remat=options.remat, **SIZES[options.size])
    objective = MaskedLM(encoder, masking, pair=True)
    batch: Any = jax.device_put(make_batch(options.rows, options.length))
    key = jax.random.key(0)
    tx = Optimizer(BertLinear(1e-4, 10, 1000)).transform()
    loss = partial(objective.loss, train=True)

    @jax.jit
    def init() -> State:
        params = objective.init(key, batch)
        return State(jnp.int32(0), params, tx.init(params))

    state = init()
    # The positions that the first step will choose, for the other side.
    mask_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    masked = mask_tokens(mask_key, batch, masking)
    pipe.send(jax.device_get(masked._asdict()))
    forward = jax.jit(lambda params: loss(params, batch, key)[0])
    backward = jax.jit(jax.grad(lambda params: loss(params, batch, key)[0]))
    step = jax.jit(partial(train_step, loss=loss, tx=tx, key=key), donate_argnums=0)
    while (message := pipe.recv()) is not None:
        if message == "memory":
            stats = jax.devices()[0].memory_stats() or {}
            peak = stats.get("peak_bytes_in_use") or peak_memory()
            pipe.send({"device": jax.devices()[0].device_kind, "bytes": peak})
            continue
        begun = time.perf_counter()
        if message == "step":
            state, _ = step(state, batch)
            jax.block_until_ready(state.params)
        else:
            jax.block_until_ready((forward if message == "forward" else backward)(state.params))
        pipe.send(time.perf_counter() - begun)


def run_torch(pipe: Connection, options: argparse.Namespace) -> None:
    """Answer "step" with its seconds, "memory" with the peak so far; `None` ends."""
    import torch
    import transformers

    size = SIZES[options.size]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.BertConfig(
        num_hidden_layers=size["N"], hidden_size=size["D"], num_attention_heads=size["H"], intermediate_size=size["F"]
    )
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    if options.compile:
        model = torch.compile(model)
    masked = pipe.recv()
    batch = make_batch(options.rows, options.length)
    labels = np.full((options.rows, options.length), -100)
    for row in range(options.rows):
        used = masked["weights_BP"][row] > 0
        labels[row, masked["positions_BP"][row][used]] = masked["targets_BP"][row][used]
    inputs = {
        "input_ids": masked["tokens_BL"],
        "attention_mask": batch["mask"],
        "token_type_ids": batch["types"],
        "labels": labels,
        "next_sentence_label": batch["pair"],
    }
    inputs = {name: torch.tensor(array, dtype=torch.long, device=device) for name, array in inputs.items()}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    while (message := pipe.recv()) is not None:
        if message == "memory":
            pipe.send({"bytes": torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()})
            continue
        begun = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - begun)


def peak_memory() -> int:
    """Return the most memory that this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Let both sides take turns and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--compile", action="store_true", help="torch.compile the other side")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of each side, after two")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    for name, run in (("bertjax", run_bertjax), ("transformers", run_torch)):
        sides[name], theirs = context.Pipe()
        context.Process(target=run, args=(theirs, options), daemon=True).start()
    sides["transformers"].send(sides["bertjax"].recv())

    def ask(name: str, message: str) -> Any:
        sides[name].send(message)
        return sides[name].recv()

    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.steps + 2):
        for name in sides:
            seconds = ask(name, "step")
            if number >= 2:
                times[name].append(seconds)
    memory = {name: ask(name, "memory") for name in sides}
    parts = {part: float(np.median([ask("bertjax", part) for _ in range(6)][1:])) for part in ("forward", "backward")}
    for pipe in sides.values():
        pipe.send(None)

    ratios = np.array(times["transformers"]) / np.array(times["bertjax"])
    medians = {name: float(np.median(found)) for name, found in times.items()}
    tokens = options.rows * options.length
    result = {
        "device": memory["bertjax"]["device"],
        "step_seconds": medians,
        "tokens_per_second": {name: tokens / seconds for name, seconds in medians.items()},
        "speed_ratio": {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())},
        "peak_bytes": {name: found["bytes"] for name, found in memory.items()},
        "memory_ratio": memory["bertjax"]["bytes"] / memory["transformers"]["bytes"],
        "our_seconds": {
            "forward": parts["forward"],
            "backward": parts["backward"] - parts["forward"],
            "optimiser": medians["bertjax"] - parts["backward"],
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    for name in sides:
        peak = memory[name]["bytes"] / 2**20
        speed = f"{1000 * medians[name]:8.1f} ms a step, {tokens / medians[name]:8.0f} tokens/s"
        print(f"{name:>12}: {speed}, {peak:6.0f} MiB")
    ratio = result["speed_ratio"]
    print(f"speed, ours over theirs: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"peak memory, ours over theirs: {result['memory_ratio']:.2f}")
    print(
        "our step: " + ", ".join(f"{part} {1000 * seconds:.0f} ms" for part, seconds in result["our_seconds"].items())
    )


if __name__ == "__main__":
    main()

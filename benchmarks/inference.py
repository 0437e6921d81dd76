"""Time hidden states of a BERT-base encoder beside `transformers` with torch: the same weights, the same tokens.

    pip install '.[parity]'
    python benchmarks/inference.py                                         # 1 × 128, 8 × 128 and 1 × 512, float32
    python benchmarks/inference.py --size tiny --calls 3

Torch makes a random BertModel and saves it as a Hugging Face folder, from which `bertjax.load` reads it; each side runs
in a process of its own, with all the cores, and they take turns, a call each. The other side is eager, in inference
mode, with the attention that `transformers` chooses by itself. Printed: the median call of each side, our time over
theirs pair by pair with its spread, how far apart the hidden states are, and what the parts of our encoder cost: each
is timed alone on arrays of its size, times the number of layers.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from train_step import IDS, SIZES

SHAPES = ((1, 128), (8, 128), (1, 512))


def tokens_of(shape: tuple[int, int]) -> np.ndarray:
    """Make rows of random ids."""
    return np.random.default_rng(0).integers(1000, IDS["bert"][0], shape)


def answer(pipe: Connection, run: Callable[[np.ndarray], np.ndarray]) -> None:
    """Answer a shape with the seconds that `run` takes on it, and what it returns."""
    while (shape := pipe.recv()) is not None:
        tokens = tokens_of(shape)
        begun = time.perf_counter()
        states = run(tokens)
        pipe.send((time.perf_counter() - begun, states))


def run_torch(pipe: Connection, size: str, folder: str) -> None:
    """Save a random model, say so, then answer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    s = SIZES[size]
    config = BertConfig(
        vocab_size=IDS["bert"][0], hidden_size=s["D"], num_hidden_layers=s["N"], num_attention_heads=s["H"],
        intermediate_size=s["F"],
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    pipe.send("saved")

    @torch.inference_mode()
    def run(tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(tokens)
        return model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.numpy()

    answer(pipe, run)


def run_bertjax(pipe: Connection, folder: str) -> None:
    """Load that model and answer."""
    import jax.numpy as jnp

    import bertjax

    model = bertjax.load(folder)

    def run(tokens: np.ndarray) -> np.ndarray:
        ids = jnp.asarray(tokens, jnp.int32)
        return np.asarray(model.encode({"tokens": ids, "mask": jnp.ones_like(ids)}))

    answer(pipe, run)


def parts(size: str, shape: tuple[int, int], calls: int) -> dict[str, float]:
    """Time the parts of all layers alone, in seconds."""
    import jax
    import jax.numpy as jnp

    from bertjax.models import layers

    s, (B, L), key = SIZES[size], shape, jax.random.key(0)
    x_BLD, h_BLF = (jax.random.normal(key, (B, L, s[name])) for name in ("D", "F"))
    scores_BHLM = jax.random.normal(key, (B, s["H"], L, L))
    heads_BLHK = x_BLD.reshape(B, L, s["H"], -1)
    square, wide, narrow = (
        jax.random.normal(key, shape) for shape in ((s["D"],) * 2, (s["D"], s["F"]), (s["F"], s["D"]))
    )
    ones, zeros = jnp.ones(s["D"]), jnp.zeros(s["D"])
    timed: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
        "products with parameters": (
            lambda x, h, a, b, c: (x @ a, (x + 1) @ a, (x + 2) @ a, (x + 3) @ a, x @ b, h @ c),
            (x_BLD, h_BLF, square, wide, narrow), 1,
        ),
        "products of attention": (
            lambda q, p: (jnp.einsum("BLHK,BMHK->BHLM", q, q), jnp.einsum("BHLM,BMHK->BLHK", p, q)),
            (heads_BLHK, scores_BHLM), 1,
        ),
        "softmax": (lambda p: jax.nn.softmax(p, axis=-1), (scores_BHLM,), 1),
        "exact GELU": (layers.gelu, (h_BLF,), 1),
        "norms": (lambda x: layers.layer_norm(x, ones, zeros, 1e-12), (x_BLD,), 2),
    }  # fmt: skip
    found = {}
    for name, (function, inputs, times) in timed.items():
        compiled = jax.jit(function)
        jax.block_until_ready(compiled(*inputs))
        taken = []
        for _ in range(calls):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(*inputs))
            taken.append(time.perf_counter() - begun)
        found[name] = float(np.median(taken)) * times * s["N"]
    return found


def measure(size: str, calls: int) -> list[dict[str, Any]]:
    """Let both sides take turns on every shape."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        theirs, end = context.Pipe()
        context.Process(target=run_torch, args=(end, size, str(Path(folder) / "model")), daemon=True).start()
        theirs.recv()
        ours, end = context.Pipe()
        context.Process(target=run_bertjax, args=(end, str(Path(folder) / "model")), daemon=True).start()
        results = []
        for shape in SHAPES:
            seconds: dict[str, list[float]] = {"bertjax": [], "transformers": []}
            for number in range(calls + 3):
                states = {}
                for name, pipe in (("bertjax", ours), ("transformers", theirs)):
                    pipe.send(shape)
                    taken, states[name] = pipe.recv()
                    if number >= 3:
                        seconds[name].append(taken)
            ratios = np.array(seconds["bertjax"]) / np.array(seconds["transformers"])
            results.append(
                {
                    "shape": shape,
                    "seconds": {name: float(np.median(found)) for name, found in seconds.items()},
                    "ratio": {
                        "median": float(np.median(ratios)),
                        "quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
                    },
                    "apart": float(np.abs(states["bertjax"] - states["transformers"]).max()),
                }
            )
        for pipe in (ours, theirs):
            pipe.send(None)
    return [result | {"parts": parts(size, result["shape"], calls)} for result in results]


def main() -> None:
    """Measure and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--calls", type=int, default=30, help="counted calls of each side, after three")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for result in measure(options.size, options.calls):
        if options.json:
            print(json.dumps(result))
            continue
        B, L = result["shape"]
        ours, theirs = (1000 * seconds for seconds in result["seconds"].values())
        low, high = result["ratio"]["quartiles"]
        print(
            f"{B} × {L}: ours {ours:.1f} ms, theirs {theirs:.1f} ms; ours over theirs {result['ratio']['median']:.2f} "
            f"(quartiles {low:.2f} to {high:.2f}); hidden states {result['apart']:.1e} apart"
        )
        print("    " + ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in result["parts"].items()))


if __name__ == "__main__":
    main()

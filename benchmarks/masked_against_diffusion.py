"""Compare masked LM with masked diffusion at equal compute, as dBERT did (AntonXue/dBERT), on text of your own.

    python benchmarks/masked_against_diffusion.py train corpus/ runs/compared --seeds 0 1 2
    python benchmarks/masked_against_diffusion.py score corpus/ runs/compared --seeds 0 1 2

train: the same encoder (four layers of width 128), rows of 128, batches and number of tokens (30 million) for both,
some 45 minutes a run on one core: masked LM at 15% with 80/10/10, diffusion at random times weighted 1/t. Rows and
batches of a seed are the same for both.
score: on held-out rows with 15, 50 and 90% of the tokens masked, the same for both: the accuracy of the likeliest
tokens in one pass, and where the surest ones are filled in 16 steps; the bound on perplexity, for which masked LM
predicts at every rate as diffusion does; distinct bigrams and 4-grams of the rows filled at temperature 0.8 with top-k
1000 in 32 steps; and beside these a divergence from the real rows in the manner of MAUVE (Pillutla et al. 2021): 32
clusters by k-means of mean states of the last layer of the masked LM of the first seed, and the area under the curve of
exp(-5 KL) of both sides to their mixtures. The embedder is small, so compare these numbers with each other alone.

Expected before it ran, from dBERT at 13 billion tokens: masked LM ahead at 15%, diffusion ahead at 90% in steps.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bertjax
from bertjax.config import Experiment, Phase, Run
from bertjax.data.records import read_manifest
from bertjax.data.rows import FullSentences
from bertjax.data.source import evaluation_batches
from bertjax.diffusion import Confident, Draw, EveryStep, sample
from bertjax.likelihood import bound
from bertjax.masking import Masking
from bertjax.models.encoder import Encoder
from bertjax.models.layers import TruncatedNormal
from bertjax.noise import RandomTime
from bertjax.objectives.diffusion import MaskedDiffusion
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.random import row_keys
from bertjax.sharding.mesh import MeshShape

LENGTH, SHARES = 128, (0.15, 0.5, 0.9)
KINDS = ("masked LM", "diffusion")


def experiment(kind: str, corpus: str, seed: int, tokens: float, rows: int) -> Experiment:
    """Build the training of one side."""
    v, steps = read_manifest(corpus).vocabulary, round(tokens / (rows * LENGTH))
    encoder = Encoder(
        V=v.size, D=128, N=4, H=2, F=512, positions=LENGTH, types=0, dropout=0.0, attention_dropout=0.0,
        initializer=TruncatedNormal(0.06),
    )  # fmt: skip
    objectives: dict[str, Any] = {
        "masked LM": MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep))),
        "diffusion": MaskedDiffusion(encoder, v.mask, (v.cls, v.sep), RandomTime()),
    }
    optimizer = Optimizer(Schedule(1e-3, min(300, steps // 10), steps), b2=0.98)
    phases = (Phase(steps, rows, FullSentences(corpus, LENGTH)),)
    return Experiment(objectives[kind], optimizer, phases, seed=seed, run=Run(evaluate_every=0))


def folder_of(options: argparse.Namespace, kind: str, seed: int) -> Path:
    """Return the work directory of a run."""
    return Path(options.folder) / f"{kind.replace(' ', '-')}-{seed}"


def scored(model: Any, embedder: Any, batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Score one model on held-out batches."""
    v = model.text.vocabulary
    diffusion = MaskedDiffusion(model.encoder, v.mask, (v.cls, v.sep))  # the same parameters predict at every rate
    rows = len(batches[0]["tokens"])
    values = bound(diffusion, MeshShape(data=1).mesh(rows, jax.devices()[:1]), rows, draws=8, tokenizer=model.text)
    found = {name: value for name, value in values(model.params, batches).items() if "accuracy" not in name}

    @partial(jax.jit, static_argnames=("share", "steps", "draw"))
    def filled(params: Any, batch: Any, share: float, steps: int, draw: Draw) -> Any:
        candidates_BL = diffusion.candidates(batch)
        uniform_BL = jax.vmap(lambda key: jax.random.uniform(key, (LENGTH,)))(row_keys(jax.random.key(5), batch))
        order_BL = jnp.argsort(jnp.argsort(jnp.where(candidates_BL, uniform_BL, 2), axis=1), axis=1)
        holes_BL = candidates_BL & (order_BL < jnp.round(share * candidates_BL.sum(1))[:, None])

        def predict(values_BL: Any) -> Any:
            tokens_BL = jnp.where(holes_BL, values_BL, batch["tokens"])
            return diffusion.language_logits(params, batch | {"tokens": tokens_BL})

        values_BL = sample(predict, holes_BL, jax.random.key(6), mask_id=v.mask, sampler=Confident(steps), draw=draw,
                           ask=EveryStep()).values_BP  # fmt: skip
        return jnp.where(holes_BL, values_BL, batch["tokens"]), holes_BL

    for share in SHARES:
        for steps, name in ((1, "one pass"), (16, "16 steps")):
            right, holes = 0, 0
            for batch in batches:
                tokens_BL, holes_BL = jax.device_get(filled(model.params, batch, share, steps, Draw(0)))
                right, holes = right + ((tokens_BL == batch["tokens"]) & holes_BL).sum(), holes + holes_BL.sum()
            found[f"accuracy at {share:.0%}, {name}"] = float(right / holes)
    written = [jax.device_get(filled(model.params, each, 0.9, 32, Draw(0.8, 1000))[0]) for each in batches]
    real = [each["mask"] > 0 for each in batches]
    for n in (2, 4):
        grams = [
            tuple(row[i : i + n])
            for tokens, mask in zip(written, real, strict=True)
            for row in (t[m].tolist() for t, m in zip(tokens, mask, strict=True))
            for i in range(len(row) - n + 1)
        ]
        found[f"distinct {n}-grams at 90%"] = len(set(grams)) / len(grams)
    found["divergence at 90%"] = divergence(embedder, batches, written)
    return found


def divergence(embedder: Any, batches: list[dict[str, np.ndarray]], written: list[np.ndarray]) -> float:
    """Return the score in the manner of MAUVE of written rows beside the real ones: 1 where they are alike."""
    from sklearn.cluster import KMeans

    def means(rows: list[np.ndarray]) -> np.ndarray:
        states = [np.asarray(embedder.encode(replaced(batch, each))) for batch, each in zip(batches, rows, strict=True)]
        masks = [batch["mask"][..., None] > 0 for batch in batches]
        pooled = [np.where(m, s, 0).sum(1) / np.maximum(m.sum(1), 1) for s, m in zip(states, masks, strict=True)]
        return np.concatenate(pooled)

    vectors = [means([batch["tokens"] for batch in batches]), means(written)]
    clusters = KMeans(32, n_init=4, random_state=0).fit_predict(np.concatenate(vectors))
    halves = np.split(clusters, 2)
    p, q = (np.bincount(half, minlength=32) / len(half) for half in halves)
    points = [(0.0, 1.0), (1.0, 0.0)]
    for share in np.linspace(0.01, 0.99, 50):
        mixture = share * p + (1 - share) * q
        kl = [float(np.sum(each[each > 0] * np.log(each[each > 0] / mixture[each > 0]))) for each in (p, q)]
        points.append((float(np.exp(-5 * kl[1])), float(np.exp(-5 * kl[0]))))
    x, y = np.array(sorted(points)).T
    return float(np.trapezoid(y, x))


def replaced(batch: dict[str, np.ndarray], tokens: np.ndarray) -> dict[str, Any]:
    """Return the arrays of a batch that an encoder reads, with other tokens."""
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(batch["mask"])}


def main() -> None:
    """Train or score; scores are printed as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("corpus")
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=30e6)
    parser.add_argument("--rows", type=int, default=32, help="in a batch")
    parser.add_argument("--batches", type=int, default=16, help="held-out batches to score")
    options = parser.parse_args()
    runs = [(kind, seed) for seed in options.seeds for kind in KINDS]
    if options.what == "train":
        for kind, seed in runs:
            built = experiment(kind, options.corpus, seed, options.tokens, options.rows)
            bertjax.fit(replace(built, mesh=MeshShape()), folder_of(options, kind, seed))
        return
    source = FullSentences(options.corpus, LENGTH).open("validation")
    batches = list(islice(evaluation_batches(source, options.rows), options.batches))
    embedder = bertjax.load(folder_of(options, "masked LM", options.seeds[0]))
    for kind, seed in runs:
        values = scored(bertjax.load(folder_of(options, kind, seed)), embedder, batches)
        print(json.dumps({"kind": kind, "seed": seed} | {name: round(value, 4) for name, value in values.items()}))


if __name__ == "__main__":
    main()

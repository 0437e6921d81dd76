"""Time a pre-training step beside `transformers` with torch: the same shapes, tokens, predicted positions and labels.

    pip install '.[parity]'
    python benchmarks/train_step.py                                        # BERT-base, 8 × 128, float32, on the CPU
    python benchmarks/train_step.py --model xlnet                          # or electra
    python benchmarks/train_step.py --size large --rows 32 --length 512 --dtype bfloat16       # where there is a GPU

Each side runs in a process of its own, and they take turns, a step each, so that both see the same machine. A step is
corruption, forward, backward, clipping and AdamW on our side; on the other forward, backward, clipping and fused AdamW
(eager; corrupted tokens, ranks and targets come ready). Dropout is on. Both use all the cores, or the GPU. Printed: the
median step of each side, the ratio pair by pair with its spread, peak memory of each process, where our time goes, and
the loss of the first step on both sides, which start from other weights of the same distribution.

bert     BertForPreTraining: masked tokens and the pair. It computes logits at all positions, we at the masked ones.
xlnet    XLNetLMHeadModel: a row is one window of two parts, a sixth of it targets, no memory. Theirs also drops
         elements of the encoding of distances, ours does not (models/xlnet.py). Both have the tanh GELU.
electra  ElectraForMaskedLM, whose logits stand at all positions, samples by `torch.multinomial` at the masked ones, and
         ElectraForPreTraining, which shares its embeddings. Masked are 15% of a row, 85% of them by [MASK].
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

SIZES = {
    "tiny": {"N": 2, "D": 128, "H": 2, "F": 512},
    "base": {"N": 12, "D": 768, "H": 12, "F": 3072},
    "large": {"N": 24, "D": 1024, "H": 16, "F": 4096},
}
GENERATORS = {"tiny": 2, "base": 3, "large": 4}  # ELECTRA's generator is narrower by this
IDS = {  # vocabulary, <cls>, <sep>, <mask>
    "bert": (30522, 101, 102, 103),
    "xlnet": (32000, 3, 4, 6),
    "electra": (30522, 101, 102, 103),
}


def make_batch(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Make full rows of random ids in two segments."""
    V, cls, sep, _ = IDS[options.model]
    rows, length = options.rows, options.length
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, V, (rows, length)).astype(np.int32)
    tokens[:, 0], tokens[:, length // 2], tokens[:, -1] = cls, sep, sep
    types = np.broadcast_to(np.arange(length) > length // 2, tokens.shape).astype(np.int32)
    batch = {"tokens": tokens, "mask": np.ones_like(tokens), "types": types}
    if options.model == "bert":
        batch["pair"] = rng.integers(0, 2, rows).astype(np.int32)
    if options.model == "xlnet":
        batch["word_starts"] = np.ones_like(tokens)
    return batch


def our_side(options: argparse.Namespace) -> tuple[Any, Callable[..., Any]]:
    """Build the objective, and the function (rng of a step, batch) that says what the step will predict."""
    import jax

    from bertjax.masking import Masking, mask_tokens
    from bertjax.models.encoder import Encoder
    from bertjax.models.xlnet import XLNet
    from bertjax.objectives.mlm import MaskedLM
    from bertjax.objectives.plm import PermutationLM
    from bertjax.objectives.rtd import ReplacedTokenDetection
    from bertjax.permutation import Permutation, permute

    V, cls, sep, mask = IDS[options.model]
    size, half = SIZES[options.size], options.length // 2
    both = {"V": V, "dtype": options.dtype, "remat": options.remat}
    masking = Masking(mask_id=mask, random_ids=(0, V), specials=(cls, sep))
    if options.model == "bert":
        objective: Any = MaskedLM(Encoder(**both, **size), masking, pair=True)
        return objective, lambda rng, batch: mask_tokens(jax.random.split(rng)[0], batch, masking)
    if options.model == "electra":
        masking = Masking(mask_id=mask, random_ids=(0, V), specials=(cls, sep), masked=0.85, random=0)
        generator = Encoder(**both, **narrower(options.size), E=size["D"])
        objective = ReplacedTokenDetection(generator, Encoder(**both, **size), masking)
        return objective, lambda rng, batch: mask_tokens(jax.random.split(rng, 4)[0], batch, masking)
    permutation = Permutation((sep, cls), parts=(half, options.length - half), targets=options.length // 6)
    objective = PermutationLM(XLNet(**both, **size), permutation)
    return objective, lambda rng, batch: permute(jax.random.split(rng)[0], batch, permutation)


def narrower(size: str) -> dict[str, int]:
    """Return the size of ELECTRA's generator."""
    return SIZES[size] | {name: SIZES[size][name] // GENERATORS[size] for name in ("D", "H", "F")}


def run_bertjax(pipe: Connection, options: argparse.Namespace) -> None:
    """Answer "step" with seconds and loss, "forward" and "backward" with seconds, "memory"; `None` ends."""
    import jax
    import jax.numpy as jnp

    from bertjax.optim.optimizer import Optimizer
    from bertjax.optim.schedules import BertLinear
    from bertjax.run.state import State
    from bertjax.train import train_step
    from bertjax.types import total

    objective, chosen = our_side(options)
    batch: Any = jax.device_put(make_batch(options))
    key = jax.random.key(0)
    tx = Optimizer(BertLinear(1e-4, 10, 1000)).transform()
    loss = partial(objective.loss, train=True)

    @jax.jit
    def init() -> State:
        params = objective.init(key, batch)
        return State(jnp.int32(0), params, tx.init(params))

    state = init()
    pipe.send(jax.device_get(chosen(jax.random.fold_in(key, 0), batch)._asdict()))
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
            state, metrics = jax.block_until_ready(step(state, batch))
            pipe.send((time.perf_counter() - begun, float(total(metrics))))
        else:
            jax.block_until_ready((forward if message == "forward" else backward)(state.params))
            pipe.send(time.perf_counter() - begun)


Theirs = tuple[Any, Callable[[], Any]]
"""The module that holds all parameters, and what computes the loss."""


def their_bert(options: argparse.Namespace, batch: dict[str, Any], chosen: dict[str, Any]) -> Theirs:
    """Build BERT with both heads."""
    import transformers

    config = transformers.BertConfig(**their_size(SIZES[options.size]))
    model = transformers.BertForPreTraining(config)
    inputs = segments(batch) | {"input_ids": chosen["tokens_BL"], "labels": labels_of(batch, chosen)}
    return model, lambda: model(**inputs, next_sentence_label=batch["pair"]).loss


def their_electra(options: argparse.Namespace, batch: dict[str, Any], chosen: dict[str, Any]) -> Theirs:
    """Build a generator and a discriminator around the same embeddings."""
    import torch
    import transformers

    size = SIZES[options.size]
    configs = [
        transformers.ElectraConfig(**their_size(each), embedding_size=size["D"])
        for each in (narrower(options.size), size)
    ]
    generator = transformers.ElectraForMaskedLM(configs[0])
    discriminator = transformers.ElectraForPreTraining(configs[1])
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = generator.electra.embeddings.word_embeddings.weight
    labels, inputs = labels_of(batch, chosen), segments(batch)
    masked = labels >= 0

    def loss() -> Any:
        out = generator(chosen["tokens_BL"], labels=labels, **inputs)
        sampled = torch.multinomial(out.logits.detach()[masked].float().softmax(-1), 1)[:, 0]
        tokens = batch["tokens"].masked_scatter(masked, sampled)
        replaced = (tokens != batch["tokens"]).long()
        return out.loss + 50 * discriminator(tokens, labels=replaced, **inputs).loss

    return torch.nn.ModuleList([generator, discriminator]), loss


def their_xlnet(options: argparse.Namespace, batch: dict[str, Any], chosen: dict[str, Any]) -> Theirs:
    """Build XLNet with its language-model head."""
    import torch
    import transformers

    size, ranks, L = SIZES[options.size], chosen["ranks_BL"], options.length
    config = transformers.XLNetConfig(
        vocab_size=IDS["xlnet"][0], n_layer=size["N"], d_model=size["D"], n_head=size["H"], d_inner=size["F"],
        ff_activation="gelu_pytorch_tanh",
    )  # fmt: skip
    model = transformers.XLNetLMHeadModel(config)
    # What has a lower or the same rank is seen, but not oneself: the content stream there sees itself anyway.
    itself = torch.eye(L, dtype=torch.bool, device=ranks.device)
    hidden = (ranks[:, :, None] < ranks[:, None, :]) | itself
    inputs = {
        "input_ids": batch["tokens"],
        "token_type_ids": batch["types"],
        "perm_mask": hidden.float(),
        "target_mapping": torch.nn.functional.one_hot(chosen["positions_BP"], L).float(),
        "labels": torch.where(chosen["weights_BP"] > 0, chosen["targets_BP"], -100),
    }
    return model, lambda: model(**inputs).loss


THEIR_SIDES = {"bert": their_bert, "electra": their_electra, "xlnet": their_xlnet}


def their_size(size: dict[str, int]) -> dict[str, int]:
    """Name a size as the configurations of BERT and ELECTRA do."""
    return {
        "vocab_size": IDS["bert"][0],
        "num_hidden_layers": size["N"],
        "hidden_size": size["D"],
        "num_attention_heads": size["H"],
        "intermediate_size": size["F"],
    }


def segments(batch: dict[str, Any]) -> dict[str, Any]:
    """Name the inputs that BERT and ELECTRA have in common."""
    return {"attention_mask": batch["mask"], "token_type_ids": batch["types"]}


def labels_of(batch: dict[str, Any], chosen: dict[str, Any]) -> Any:
    """Spread the masked positions over rows: the ids there, -100 elsewhere."""
    import torch

    # Unused slots stand at position 0, which is never masked.
    targets = torch.where(chosen["weights_BP"] > 0, chosen["targets_BP"], -100)
    return torch.full_like(batch["tokens"], -100).scatter(1, chosen["positions_BP"], targets)


def run_torch(pipe: Connection, options: argparse.Namespace) -> None:
    """Answer "step" with its seconds and loss, "memory" with the peak so far; `None` ends."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {name: torch.tensor(array, dtype=torch.long, device=device) for name, array in arrays.items()}

    module, loss_of = THEIR_SIDES[options.model](options, tensors(make_batch(options)), tensors(pipe.recv()))
    parameters = list(module.to(device).train().parameters())  # those that are shared once
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    if options.compile:
        loss_of = torch.compile(loss_of)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    while (message := pipe.recv()) is not None:
        if message == "memory":
            pipe.send({"bytes": torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()})
            continue
        begun = time.perf_counter()
        loss = step()
        pipe.send((time.perf_counter() - begun, float(loss)))


def peak_memory() -> int:
    """Return the most memory that this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns."""
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
    losses: dict[str, float] = {}
    for number in range(options.steps + 2):
        for name in sides:
            seconds, loss = ask(name, "step")
            losses.setdefault(name, loss)
            if number >= 2:
                times[name].append(seconds)
    memory = {name: ask(name, "memory") for name in sides}
    parts = {part: float(np.median([ask("bertjax", part) for _ in range(6)][1:])) for part in ("forward", "backward")}
    for pipe in sides.values():
        pipe.send(None)

    ratios = np.array(times["transformers"]) / np.array(times["bertjax"])
    medians = {name: float(np.median(found)) for name, found in times.items()}
    return {
        "model": options.model,
        "device": memory["bertjax"]["device"],
        "step_seconds": medians,
        "tokens_per_second": {name: options.rows * options.length / seconds for name, seconds in medians.items()},
        "speed_ratio": {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())},
        "peak_bytes": {name: found["bytes"] for name, found in memory.items()},
        "memory_ratio": memory["bertjax"]["bytes"] / memory["transformers"]["bytes"],
        "our_seconds": {
            "forward": parts["forward"],
            "backward": parts["backward"] - parts["forward"],
            "optimiser": medians["bertjax"] - parts["backward"],
        },
        "first_loss": losses,
    }


def main() -> None:
    """Measure and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=THEIR_SIDES, default="bert")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--compile", action="store_true", help="torch.compile the other side")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of each side, after two")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    for name, seconds in result["step_seconds"].items():
        peak = result["peak_bytes"][name] / 2**20
        speed = f"{1000 * seconds:8.1f} ms a step, {result['tokens_per_second'][name]:8.0f} tokens/s"
        print(f"{name:>12}: {speed}, {peak:6.0f} MiB")
    ratio = result["speed_ratio"]
    print(f"speed, ours over theirs: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"peak memory, ours over theirs: {result['memory_ratio']:.2f}")
    print(
        "our step: " + ", ".join(f"{part} {1000 * seconds:.0f} ms" for part, seconds in result["our_seconds"].items())
    )
    ours, theirs = result["first_loss"].values()
    apart = abs(ours / theirs - 1)
    print(
        f"loss of the first step: ours {ours:.3f}, theirs {theirs:.3f}, {100 * apart:.1f}% apart"
        + (": too much for the same step" if apart > 0.05 else "")
    )


if __name__ == "__main__":
    main()

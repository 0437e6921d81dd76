"""Train: one step as a pure function, and the loop that drives, watches and keeps it.

The loop knows no model and no objective: only `loss`, an optax transform and where arrays lie. It never waits for the
device inside a step: the metrics of a step are read while the next one runs.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bertjax import checkpoint
from bertjax.config import Experiment, Phase, to_json
from bertjax.data.records import corpus_tokenizer, manifest_digest, read_manifest
from bertjax.data.source import evaluation_batches, training_batches
from bertjax.data.tokenizer import Tokenizer, fingerprint
from bertjax.errors import InputError
from bertjax.evaluate import evaluator
from bertjax.flops import PEAK_TFLOPS, abstract_params, batch_shapes, model_flops
from bertjax.random import stream
from bertjax.report import Log, Progress, Writer, append_timing, duration, tensorboard_writer, wandb_writer
from bertjax.sharding import data_mesh, place_batch, replicated
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params
from bertjax.workdir import claimed, record_experiment

Loss = Callable[[Params, Batch, Key], tuple[Array, Metrics]]


class State(NamedTuple):
    """All that changes: the number of updates made, parameters, optimiser state."""

    step: Array
    params: Params
    opt: Any


class Interrupted(Exception):
    """The run was asked to stop, and did so after a checkpoint; `signal` says by what."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}, checkpoint saved: run the same command again to go on")
        self.signal = number


def train_step(
    state: State, batch: Batch, *, loss: Loss, tx: optax.GradientTransformation, key: Key, parts: int = 1
) -> tuple[State, Metrics]:
    """Make one update on a batch, its gradient gathered over `parts` micro-batches."""
    rng = jax.random.fold_in(key, state.step)
    if parts == 1:
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, rng)
    else:
        grads, metrics = accumulated_gradient(loss, state.params, batch, rng, parts)
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {
        "norm/gradient": Mean(optax.tree.norm(grads), jnp.float32(1)),
        "norm/update": Mean(optax.tree.norm(updates), jnp.float32(1)),
    }
    return State(state.step + 1, params, opt), metrics


def accumulated_gradient(loss: Loss, params: Params, batch: Batch, rng: Key, parts: int) -> tuple[Params, Metrics]:
    """Compute the gradient of the loss of the whole batch from micro-batches, one at a time.

    Exact where micro-batches weigh differently: every term of the loss is divided by its weight in the whole batch.
    Those weights come first, from a pass whose forward computation the compiler drops, since they depend on data alone.
    Each micro-batch has random draws of its own.
    """
    # Every parts-th row, so that a batch split over devices stays where it is.
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    inputs = (micro, jax.vmap(lambda part: jax.random.fold_in(rng, part))(jnp.arange(parts)))

    def weigh(part: tuple[Batch, Key]) -> dict[str, Array]:
        metrics = loss(params, *part)[1]
        return {name: mean.weight for name, mean in metrics.items() if name.startswith("loss/")}

    weights = {name: jnp.maximum(weight.sum(), 1e-9) for name, weight in jax.lax.map(weigh, inputs).items()}

    def share(params: Params, part: tuple[Batch, Key]) -> tuple[Array, Metrics]:
        metrics = loss(params, *part)[1]
        return sum((metrics[name].sum / weight for name, weight in weights.items()), jnp.float32(0)), metrics

    def add(carry: tuple[Params, Metrics], part: tuple[Batch, Key]) -> tuple[tuple[Params, Metrics], None]:
        return jax.tree.map(jnp.add, carry, jax.grad(share, has_aux=True)(params, part)), None

    shapes = jax.eval_shape(jax.grad(share, has_aux=True), params, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, inputs)[0]


def fit(experiment: Experiment, workdir: str | Path, *, progress: Progress | None = None) -> State:
    """Train an experiment in a work folder, from its newest checkpoint if it has one, and return the final state.

    Raises InputError for whatever can be told before training, FloatingPointError where the loss or the gradient is no
    longer finite, Interrupted after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    progress = progress or Progress()
    run = experiment.run
    tokenizer, data = check_corpora(experiment)
    meshes = [data_mesh(phase.batch_size // phase.accumulate) for phase in experiment.phases]
    mesh = meshes[0]  # all the same; each made to see that its phase's batches divide
    with ExitStack() as held:
        folder, stop = held.enter_context(claimed(workdir)), held.enter_context(stop_requests())
        record_experiment(folder, experiment)
        manager = checkpoint.open_checkpoints(folder / "checkpoints", keep=run.keep, keep_every=run.keep_every)
        held.enter_context(closing(manager))  # waits for what is still being saved
        tx = experiment.optimizer.transform()
        state = initial_state(experiment, tx, mesh, folder, tokenizer, data)
        step = int(state.step)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        progress.say(
            f"{count:,} parameters on {mesh.size} {mesh.devices.flat[0].device_kind} device(s), from step {step}"
        )
        watch = _Watch(experiment, folder, step, progress)
        evaluate = evaluator(experiment.objective, mesh)
        loss = partial(experiment.objective.loss, train=True)
        key = stream(experiment.seed, "train")
        end = 0
        for phase in experiment.phases:
            begin, end = end, end + phase.steps
            if step >= end:
                continue
            held_out = _held_out(phase, progress)
            source = phase.rows.open("train")
            seed = experiment.seed
            batches = training_batches(source, phase.batch_size, phase.steps, seed, start=step - begin)
            update = jax.jit(
                partial(train_step, loss=loss, tx=tx, key=key, parts=phase.accumulate),
                donate_argnums=0,
                out_shardings=replicated(mesh),
            )
            watch.start_phase(phase)
            while step < end:
                waiting = time.perf_counter()
                batch = place_batch(next(batches), mesh)
                waited = time.perf_counter() - waiting
                state, metrics = update(state, batch)
                step += 1
                watch.step(step, metrics, waited)
                last = step == experiment.steps
                if held_out is not None and (last or _due(run.evaluate_every, step)):
                    watch.flush()
                    watch.evaluated(step, evaluate(state.params, islice(held_out(), run.evaluate_batches or None)))
                if last or stop.signal or _due(run.checkpoint_every, step):
                    watch.flush()
                    described = to_json(experiment)
                    checkpoint.save(
                        manager, step, state.params, state.opt, experiment=described, tokenizer=tokenizer, data=data
                    )
                    if stop.signal and not last:
                        raise Interrupted(step, stop.signal)
    return state


def check_corpora(experiment: Experiment) -> tuple[Tokenizer, list[str]]:
    """Load the tokenizer that all corpora of the experiment share, and the digest of each corpus.

    Raises InputError where a corpus is missing or damaged, where tokenizers differ, and where ids of the vocabulary
    exceed one of the objective's (any field V).
    """
    folders = [phase.rows.corpus for phase in experiment.phases]
    manifests = [read_manifest(folder) for folder in folders]
    tokenizer = corpus_tokenizer(folders[0])
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.tokenizer != fingerprint(tokenizer):
            raise InputError(
                f"corpus {folder} was built with another tokenizer than {folders[0]}/tokenizer: use one for both"
            )
    for size in _fields_named("V", to_json(experiment.objective)):
        if size < tokenizer.vocabulary.size:
            raise InputError(
                f"the corpus has {tokenizer.vocabulary.size} ids, but the model's vocabulary only V={size}: leave V to "
                "the experiment, or use a corpus built for this model"
            )
    return tokenizer, [manifest_digest(folder) for folder in folders]


def _fields_named(name: str, described: Any) -> Iterator[int]:
    if isinstance(described, dict):
        for key, value in described.items():
            if key == name:
                yield value
            yield from _fields_named(name, value)


def initial_state(
    experiment: Experiment,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    folder: Path,
    tokenizer: Tokenizer,
    data: list[str],
) -> State:
    """Restore the newest checkpoint of the folder, else make fresh parameters from the seed."""
    shapes = [batch_shapes(p.batch_size, p.rows.length, p.rows.features) for p in experiment.phases]
    for each in shapes:
        abstract_params(experiment.objective, each)

    def fresh() -> State:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])
        params = experiment.objective.init(stream(experiment.seed, "init"), batch)
        return State(jnp.zeros([], jnp.int32), params, tx.init(params))

    if not any(path.name.isdigit() for path in (folder / "checkpoints").iterdir()):
        return jax.jit(fresh, out_shardings=replicated(mesh))()
    newest = checkpoint.latest_step(folder)
    info = checkpoint.read_info(newest)
    if info["fingerprint"] != fingerprint(tokenizer):
        raise InputError(f"{newest} was trained with another tokenizer than that of the corpus: use its own corpus")
    if info["data"] != data:
        raise InputError(f"{newest} was trained on another corpus: go on with that one, or choose another --workdir")
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), jax.eval_shape(fresh)
    )
    params = checkpoint.restore(newest, "params", like.params, info)
    opt = checkpoint.restore(newest, "optimizer", like.opt, info)
    return State(jax.device_put(jnp.int32(info["step"]), replicated(mesh)), params, opt)


def _held_out(phase: Phase, progress: Progress) -> Callable[[], Iterator[dict[str, Any]]] | None:
    """Make a function that reads the held-out split of a phase from its start; None where the corpus has none."""
    manifest = read_manifest(phase.rows.corpus)
    if not manifest.splits.get("validation"):
        progress.say(f"corpus {phase.rows.corpus} holds nothing out: no evaluation")
        return None
    source = phase.rows.open("validation")
    size = phase.batch_size // phase.accumulate
    return partial(evaluation_batches, source, size, phase.rows.features, manifest.vocabulary.pad)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


@dataclass
class _Stop:
    signal: int = 0  # the signal that asked the run to stop, 0 while none has


@contextmanager
def stop_requests() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the step; a second one acts at once."""
    stop = _Stop()
    before: dict[int, Any] = {}

    def request(number: int, frame: Any) -> None:
        stop.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread, as in some notebooks: then nothing is caught
        pass
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass
class _Watch:
    """Read metrics one step late, log them, show progress, and stop a run that is no longer finite."""

    experiment: Experiment
    folder: Path
    start: int
    progress: Progress
    pending: tuple[int, Metrics] | None = None
    waited: float = 0.0
    writers: list[Writer] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = self.experiment.run
        self.writers.append(Log(self.folder, self.start))
        if run.tensorboard:
            self.writers.append(tensorboard_writer(self.folder))
        if run.wandb:
            self.writers.append(wandb_writer(self.folder, run.wandb, to_json(self.experiment)))
        self.last_loss = ""

    def start_phase(self, phase: Phase) -> None:
        """Begin to time a phase."""
        shapes = batch_shapes(phase.batch_size, phase.rows.length, phase.rows.features)
        self.tokens = phase.batch_size * phase.rows.length
        self.flops = model_flops(self.experiment.objective, shapes)
        kind = jax.devices()[0].device_kind
        self.peak = 1e12 * (self.experiment.run.peak_tflops or PEAK_TFLOPS.get(kind, 0)) * jax.local_device_count()
        self.timed = (-1, 0.0)  # set by the first step, whose compilation is not the run's speed

    def step(self, step: int, metrics: Metrics, waited: float) -> None:
        """Take the metrics of a step just dispatched; read those of the step before."""
        self.flush()
        self.pending = (step, metrics)
        self.waited += waited

    def flush(self) -> None:
        """Read what is pending: waits for that step."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {name: float(mean.sum / (mean.weight or 1)) for name, mean in jax.device_get(metrics).items()}
        values = {"loss": sum(v for name, v in values.items() if name.startswith("loss/"))} | values
        if not all(jnp.isfinite(jnp.array([values["loss"], values["norm/gradient"]]))):
            raise FloatingPointError(
                f"loss {values['loss']} and gradient norm {values['norm/gradient']} at step {step}: the checkpoints "
                f"before it are kept in {self.folder}; a lower learning rate or a longer warm-up may help"
            )
        values["learning_rate"] = float(self.experiment.optimizer.learning_rate(jnp.int32(step - 1)))
        due = step == self.experiment.steps or _due(self.experiment.run.log_every, step)
        if due:
            for write in self.writers:
                write(step, values)
        self._time(step, values, due)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of the held-out split."""
        named = {f"validation/{name}": value for name, value in values.items()}
        for write in self.writers:
            write(step, named)
        self.progress.say(f"step {step}  held out: {summary(values)}")
        self.timed = (step, time.perf_counter())

    def _time(self, step: int, values: Mapping[str, float], due: bool) -> None:
        since, at = self.timed
        now = time.perf_counter()
        if since < 0:
            self.timed = (step, now)
        elif step > since:
            seconds = (now - at) / (step - since)
            speed = {
                "tokens_per_second": round(self.tokens / seconds, 1),
                "real_tokens": round(values.get("tokens/real", 1.0), 4),
                "step_ms": round(1000 * seconds, 2),
                "data_wait_ms": round(1000 * self.waited / (step - since), 2),
            }
            if self.peak:
                speed["utilisation"] = round(self.flops / seconds / self.peak, 4)
            left = duration(seconds * (self.experiment.steps - step))
            used = f"  {100 * speed['utilisation']:.0f}% of peak" if self.peak else ""
            self.progress.line(
                f"step {step}/{self.experiment.steps}  {summary(values)}  lr {values['learning_rate']:.1e}  "
                f"{self.tokens / seconds:,.0f} tokens/s{used}  {left} left"
            )
            if due:
                append_timing(self.folder, step, speed)
                self.timed, self.waited = (step, now), 0.0


def summary(values: Mapping[str, float]) -> str:
    """Write the losses and accuracies of a set of metrics on one line."""
    shown = [(name.replace("loss/", ""), value) for name, value in values.items() if name.startswith("loss/")]
    shown += [(name, value) for name, value in values.items() if name.startswith(("accuracy/", "unigram_entropy/"))]
    return "  ".join(f"{name} {value:.3f}" for name, value in [("loss", values["loss"]), *shown])

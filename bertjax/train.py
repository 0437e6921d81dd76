"""Train: one step as a pure function, and the loop that drives, watches and keeps it.

The loop knows no model and no objective: only `loss`, an optax transform and where arrays lie. It never waits for the
device inside a step: the metrics of a step are read while the next one runs.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.warm_start import Start, warm_start
from bertjax.config import Experiment, Phase
from bertjax.data.records import corpus_tokenizer, manifest_digest, read_manifest
from bertjax.data.source import (
    Corpus,
    LabelledRows,
    ReportsDataIssues,
    Rows,
    Source,
    evaluation_batches,
    training_batches,
)
from bertjax.data.tokenizer import Tokenizer, fingerprint
from bertjax.description import to_json
from bertjax.errors import InputError
from bertjax.evaluate import evaluator
from bertjax.flops import abstract_params, row_shapes
from bertjax.random import stream
from bertjax.rules import EVERYTHING, Rules, combine, name_of, partition
from bertjax.run.metrics import Watch, due
from bertjax.run.processes import agree, failing_together, first, versions
from bertjax.run.profiler import Profile
from bertjax.run.workdir import claimed, lock_text, record_experiment
from bertjax.run.writers import Progress
from bertjax.sharding.collectives import gather_params, per_replica, psum_replicas
from bertjax.sharding.mesh import held_rows, place_batch, replicated
from bertjax.sharding.placement import storage_shardings
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params

Loss = Callable[[Params, Batch, Key], tuple[Array, Metrics]]


Judge = Callable[[int, Params], Mapping[str, float]]
"""(step, params) -> how good they are, by names as of metrics."""


class State(NamedTuple):
    """All that changes: the number of updates made, parameters, optimiser state."""

    step: Array
    params: Params
    opt: Any


Step = Callable[[State, Batch, Key], tuple[State, Metrics]]
"""(state, batch, key of the run) -> what comes after. The key is no part of the program, so all seeds share one."""


class Interrupted(Exception):
    """The run was asked to stop, and did so after a checkpoint; `signal` says by what."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}, checkpoint saved: run the same command again to go on")
        self.signal = number


def train_step(
    state: State,
    batch: Batch,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
    key: Key,
    parts: int = 1,
    trained: Rules = EVERYTHING,
) -> tuple[State, Metrics]:
    """Make one update on a batch, its gradient gathered over `parts` micro-batches.

    What is not `trained` stays as it is, and neither gradient nor optimiser state of it is ever made.
    """
    rng = jax.random.fold_in(key, state.step)
    params, frozen = partition(trained, state.params)

    def whole(params: Params, batch: Batch, rng: Key) -> tuple[Array, Metrics]:
        return loss(gather_params(combine(params, frozen)), batch, rng)

    if parts == 1:
        grads, metrics = jax.grad(whole, has_aux=True)(params, batch, rng)
    else:
        grads, metrics = accumulated_gradient(whole, params, batch, rng, parts)
    updates, opt = tx.update(grads, state.opt, params)
    params = combine(optax.apply_updates(params, updates), frozen)
    metrics |= {
        "norm/gradient": Mean(optax.tree.norm(grads), jnp.float32(1)),
        "norm/update": Mean(optax.tree.norm(updates), jnp.float32(1)),
    }
    return State(state.step + 1, params, opt), metrics


def with_loop_metrics(step: Step, rate: Callable[[Array], Array]) -> Step:
    """Add the learning rate that a step uses to its metrics, and whether some process was asked to `stop`.

    That comes in with the rows of each process, where there are several, so that all learn it of the same step.
    """

    def stepped(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        asked = {"stop": Mean(batch["stop"].max(), jnp.float32(1))} if "stop" in batch else {}
        after, metrics = step(state, {name: array for name, array in batch.items() if name != "stop"}, key)
        return after, metrics | asked | {"learning_rate": Mean(rate(state.step), jnp.float32(1))}

    return stepped


def sharded_step(experiment: Experiment, phase: Phase, mesh: Mesh) -> Step:
    """Make the step of a phase for a mesh, to be traced under `jax.set_mesh(mesh)`. It writes over the state given."""
    loss, tx = partial(experiment.objective.loss, train=True), experiment.optimizer.transform()
    parts, trained = phase.accumulate, experiment.optimizer.trained

    def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        return train_step(state, batch, loss=loss, tx=tx, key=key, parts=parts, trained=trained)

    after = jax.tree.map(lambda leaf: leaf.sharding, state_shapes(experiment, mesh))
    return jax.jit(
        with_loop_metrics(step, experiment.optimizer.learning_rate),
        donate_argnums=0,
        out_shardings=(after, replicated(mesh)),
    )


def state_shapes(experiment: Experiment, mesh: Mesh) -> State:
    """Describe the state of a run: shapes, dtypes, where each array lies; optimiser state lies where its parameter."""
    phase = experiment.phases[0]
    params = abstract_params(experiment.objective, row_shapes(phase.rows, phase.batch_size))
    tx, trained = experiment.optimizer.transform(), experiment.optimizer.trained
    places = storage_shardings(mesh, params)
    opt = jax.eval_shape(tx.init, partition(trained, params)[0])
    opt_places = optax.tree.map_params(
        tx, lambda _, place: place, opt, partition(trained, places)[0], transform_non_params=lambda _: replicated(mesh)
    )

    def placed(shape: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return State(step, jax.tree.map(placed, params, places), jax.tree.map(placed, opt, opt_places))


def accumulated_gradient(loss: Loss, params: Params, batch: Batch, rng: Key, parts: int) -> tuple[Params, Metrics]:
    """Compute the gradient of the loss of the whole batch from micro-batches, one at a time.

    Exact where micro-batches weigh differently: every term of the loss is divided by its weight in the whole batch.
    Those weights come first, from a pass whose forward computation the compiler drops, since they depend on data alone.
    Each micro-batch has random draws of its own. Each copy of the parameters adds up the gradient of its own rows; over
    copies they are summed once, after the last micro-batch.
    """
    return per_replica(partial(_accumulated, loss, parts))(params, batch, rng)


def _accumulated(loss: Loss, parts: int, params: Params, batch: Batch, rng: Key) -> tuple[Params, Metrics]:
    # Every parts-th row, so that a batch split over devices stays where it is.
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    inputs = (micro, jax.vmap(lambda part: jax.random.fold_in(rng, part))(jnp.arange(parts)))

    def weigh(part: tuple[Batch, Key]) -> dict[str, Array]:
        metrics = loss(params, *part)[1]
        return {name: mean.weight for name, mean in metrics.items() if name.startswith("loss/")}

    weights = psum_replicas(jax.tree.map(jnp.sum, jax.lax.map(weigh, inputs)))

    def share(params: Params, part: tuple[Batch, Key]) -> tuple[Array, Metrics]:
        metrics = loss(params, *part)[1]
        terms = (metrics[name].sum / jnp.maximum(weight, 1e-9) for name, weight in weights.items())
        return sum(terms, jnp.float32(0)), metrics

    def add(carry: tuple[Params, Metrics], part: tuple[Batch, Key]) -> tuple[tuple[Params, Metrics], None]:
        return jax.tree.map(jnp.add, carry, jax.grad(share, has_aux=True)(params, part)), None

    shapes = jax.eval_shape(jax.grad(share, has_aux=True), params, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    found: tuple[Params, Metrics] = psum_replicas(jax.lax.scan(add, zeros, inputs)[0])
    return found


def fit(
    experiment: Experiment,
    workdir: str | Path,
    *,
    progress: Progress | None = None,
    judge: Judge | None = None,
    make_step: Callable[[Experiment, Phase, Mesh], Step] = sharded_step,
    source: Source | None = None,
) -> State:
    """Train an experiment in a work folder, from its newest checkpoint if it has one, and return the final state.

    judge: what evaluates instead of the loss on the held-out split, before the checkpoint of the same step. make_step,
    source: of runs that differ in their seeds alone, one step that is compiled once, and training rows that are open
    already. Raises InputError for whatever can be told before training, FloatingPointError where the loss or the
    gradient is no longer finite, Interrupted after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    progress = progress or Progress()
    run = experiment.run
    with failing_together():
        check_platform(run.platform)
        tokenizer, data = check_corpora(experiment)
        meshes = [experiment.mesh.mesh(phase.batch_size // phase.accumulate) for phase in experiment.phases]
        mesh = meshes[0]  # all the same; each made to see that its phase's batches divide
        start, note = _start(experiment, Path(workdir), tokenizer)
    agree({"the experiment": to_json(experiment), "the data": data} | versions())
    with ExitStack() as held:
        held.enter_context(jax.set_mesh(mesh))
        stop = held.enter_context(stop_requests())
        folder = held.enter_context(_claimed_together(Path(workdir), experiment))
        manager = checkpoint.open_checkpoints(folder / "checkpoints", keep=run.keep, keep_every=run.keep_every)
        held.enter_context(closing(manager))  # waits for what is still being saved
        tx = experiment.optimizer.transform()
        state = initial_state(experiment, tx, mesh, folder, tokenizer, data, start)
        save = partial(checkpoint.save, manager, experiment=to_json(experiment), tokenizer=tokenizer, data=data)
        step = int(state.step)
        for line in _beginning(experiment, state, mesh, start, note):
            progress.say(line)
        if start:
            save(step, state.params, state.opt)  # the source may change; this run goes on from what it took
        watch = Watch(experiment, folder, step, progress)
        profile = held.enter_context(closing(Profile(folder, run.profile, progress)))
        key = jax.device_put(stream(experiment.seed, "train"), replicated(mesh))
        end = 0
        for phase in experiment.phases:
            begin, end = end, end + phase.steps
            if step >= end:
                continue
            judging = judge or _loss_held_out(experiment, phase, mesh, progress)
            rows = source or opened(phase.rows, "train", progress)
            batches = _batches(experiment, phase, rows, mesh, step - begin, stop)
            update = make_step(experiment, phase, mesh)
            watch.start_phase(phase)
            while step < end:
                profile.before(step + 1, state)
                waiting = time.perf_counter()
                batch = place_batch(next(batches), mesh, phase.batch_size)
                waited = time.perf_counter() - waiting
                state, metrics = update(state, batch, key)
                step += 1
                if profile.after(step, metrics):
                    watch.restart(step)  # writing a trace is not the speed of a step
                watch.step(step, metrics, waited, batch["tokens"].size)
                last = step == experiment.steps
                stopping = watch.stopping if jax.process_count() > 1 else stop.signal > 0
                if judging is not None and (last or due(run.evaluate_every, step)):
                    watch.flush()
                    watch.evaluated(step, judging(step, state.params))
                if last or stopping or due(run.checkpoint_every, step):
                    watch.flush()
                    save(step, state.params, state.opt)
                    watch.restart(step)
                    if stopping and not last:
                        raise Interrupted(step, stop.signal or signal.SIGTERM)
    return state


def _loss_held_out(experiment: Experiment, phase: Phase, mesh: Mesh, progress: Progress) -> Judge | None:
    """Judge by the objective's metrics on the held-out split; none, with a notice, without one."""
    size = phase.batch_size // phase.accumulate
    evaluate = evaluator(experiment.objective, mesh, size)
    held_out = _held_out(phase, held_rows(mesh, size), progress)
    if held_out is None:
        return None
    return lambda step, params: evaluate(params, islice(held_out(), experiment.run.evaluate_batches or None))


def _batches(
    experiment: Experiment, phase: Phase, source: Source, mesh: Mesh, start: int, stop: "_Stop"
) -> Iterator[dict[str, np.ndarray]]:
    """Yield what this process holds of each batch of a phase and, if there are others, whether it was asked to stop."""
    held = held_rows(mesh, phase.batch_size)
    for rows in training_batches(source, phase.batch_size, phase.steps, experiment.seed, start=start, held=held):
        if jax.process_count() > 1:
            rows["stop"] = np.full(len(held), stop.signal > 0, np.int32)
        yield rows


@contextmanager
def _claimed_together(folder: Path, experiment: Experiment) -> Iterator[Path]:
    """Hold the work folder: the first process for all, which must see the same one."""
    with ExitStack() as held:
        with failing_together():
            if first():
                held.enter_context(claimed(folder))
                record_experiment(folder, experiment)
        agree({"the work folder": lock_text(folder)})
        yield folder


def _beginning(
    experiment: Experiment, state: State, mesh: Mesh, start: Mapping[str, Array], note: str
) -> Iterator[str]:
    """Say what a run begins with: a line for its size, one for what it took from a trained model."""
    count, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, partition(experiment.optimizer.trained, state.params)[1])
    )
    yield (
        f"{count:,} parameters{f', {frozen:,} of them frozen,' if frozen else ''} on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} device(s), from step {int(state.step)}"
    )
    if start:
        names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
        made = ", ".join(name for name in names if name not in start)
        yield f"parameters from {experiment.init}, made anew: {made or 'none'}{note}"


def check_platform(wanted: str) -> None:
    """Raise InputError where the experiment asks for another platform than JAX runs on: a month on a CPU is lost."""
    found = jax.default_backend()
    if wanted not in ("", found):
        raise InputError(
            f"run.platform={wanted}, but JAX runs on {found}: see that the accelerator is free and that JAX is "
            "installed for it (pip install 'bertjax[tpu]'), or set run.platform to what you want"
        )


def check_corpora(experiment: Experiment) -> tuple[Tokenizer, list[str]]:
    """Load the tokenizer that all data of the experiment share, and the digest of each corpus or data set.

    Raises InputError where a corpus is missing or damaged, where tokenizers differ, and where ids of the vocabulary
    exceed one of the objective's (any field V).
    """
    rows = experiment.phases[0].rows
    if isinstance(rows, LabelledRows):
        return _check_own(experiment, rows)
    folders = [phase.rows.corpus for phase in experiment.phases]
    manifests = [read_manifest(folder) for folder in folders]
    tokenizer = corpus_tokenizer(folders[0])
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.tokenizer != fingerprint(tokenizer):
            raise InputError(
                f"corpus {folder} was built with another tokenizer than {folders[0]}/tokenizer: use one for both"
            )
    for folder, manifest in dict(zip(folders, manifests, strict=True)).items():
        for name in manifest.splits:
            Corpus(folder, name)  # sees that its files are there and undamaged
    _check_vocabulary(experiment, tokenizer)
    return tokenizer, [manifest_digest(folder) for folder in folders]


def _check_own(experiment: Experiment, rows: LabelledRows) -> tuple[Tokenizer, list[str]]:
    """Do the same for rows of labelled data, which all phases must have."""
    tokenizer = rows.load_tokenizer()
    digests = []
    for phase in experiment.phases:
        if not isinstance(phase.rows, LabelledRows):
            raise InputError(f"rows of a task and of the corpus {phase.rows.corpus} do not mix: run them one by one")
        if fingerprint(phase.rows.load_tokenizer()) != fingerprint(tokenizer):
            raise InputError("the phases have different tokenizers: use one for all")
        digests.append(phase.rows.digest())
    _check_vocabulary(experiment, tokenizer)
    return tokenizer, digests


def _check_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> None:
    for size in _fields_named("V", to_json(experiment.objective)):
        if size < tokenizer.vocabulary.size:
            raise InputError(
                f"the data have {tokenizer.vocabulary.size} ids, but the model's vocabulary only V={size}: leave V to "
                "the experiment, or use data encoded for this model"
            )


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
    start: Mapping[str, Array],
) -> State:
    """Restore the newest checkpoint of the folder, else make parameters from the seed, but for those in `start`."""
    shapes = [row_shapes(phase.rows, phase.batch_size) for phase in experiment.phases]
    for each in shapes:
        abstract_params(experiment.objective, each)

    def fresh(key: Key) -> State:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])
        params = experiment.objective.init(key, batch)
        return State(jnp.zeros([], jnp.int32), params, tx.init(partition(experiment.optimizer.trained, params)[0]))

    def taken(path: Any, ours: Array) -> Array:
        # Two may begin as the same array; each needs memory of its own, since the update writes over it.
        if name_of(path) not in start:
            return ours
        theirs = np.asarray(start[name_of(path)])
        if ours.ndim and len(theirs) < len(ours):  # the lower layers of a stack
            theirs = np.concatenate([theirs, np.asarray(ours)[len(theirs) :]])
        return jax.make_array_from_callback(ours.shape, ours.sharding, lambda index: theirs[index])

    like = state_shapes(experiment, mesh)
    if not checkpoint.has_checkpoint(folder):
        key = jax.device_put(stream(experiment.seed, "init"), replicated(mesh))
        state = jax.jit(fresh, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))(key)
        return state._replace(params=jax.tree_util.tree_map_with_path(taken, state.params))
    newest = checkpoint.latest_step(folder)
    info = checkpoint.read_info(newest)
    if info["fingerprint"] != fingerprint(tokenizer):
        raise InputError(f"{newest} was trained with another tokenizer than that of the corpus: use its own corpus")
    if info["data"] != data:
        raise InputError(f"{newest} was trained on another corpus: go on with that one, or choose another --workdir")
    params = checkpoint.restore(newest, "params", like.params, info)
    opt = checkpoint.restore(newest, "optimizer", like.opt, info)
    return State(jax.device_put(np.int32(info["step"]), replicated(mesh)), params, opt)


def _start(experiment: Experiment, workdir: Path, tokenizer: Tokenizer) -> Start:
    """Load the parameters to begin with, by name: none where there is no `init`, or the run goes on."""
    if checkpoint.has_checkpoint(workdir):
        return Start({}, "")
    if not experiment.init:
        frozen = [pattern for pattern, trained in experiment.optimizer.trained if not trained]
        if frozen:
            raise InputError(f"what is frozen ({', '.join(frozen)}) would stay random: begin with a model, init=FOLDER")
        return Start({}, "")
    phase = experiment.phases[0]
    shapes = row_shapes(phase.rows, phase.batch_size)
    like = abstract_params(experiment.objective, shapes)
    return warm_start(experiment.init, experiment.objective, like, tokenizer)


def opened(rows: Rows, split: str, progress: Progress) -> Source:
    """Open a split, and say what was treated in its data, how often."""
    source = rows.open(split)
    if isinstance(source, ReportsDataIssues):
        for what, count in source.notes.items():
            progress.say(f"{rows.corpus}, {split}: {count:,} {what}")
    return source


def _held_out(phase: Phase, held: np.ndarray, progress: Progress) -> Callable[[], Iterator[dict[str, Any]]] | None:
    """Make a function that reads the held-out split of a phase from its start; None, with a notice, without one."""
    size = phase.batch_size // phase.accumulate
    if isinstance(phase.rows, LabelledRows):
        if "validation" not in phase.rows.splits():
            progress.say(f"{phase.rows.corpus} has no validation split: no evaluation")
            return None
        return partial(evaluation_batches, opened(phase.rows, "validation", progress), size, (), 0)
    manifest = read_manifest(phase.rows.corpus)
    if not manifest.splits.get("validation"):
        progress.say(f"corpus {phase.rows.corpus} holds nothing out: no evaluation")
        return None
    try:
        source = phase.rows.open("validation")
    except InputError as error:  # too few documents for pairs; damaged files were found before
        progress.say(f"no evaluation: {error}")
        return None
    size = phase.batch_size // phase.accumulate
    return partial(evaluation_batches, source, size, phase.rows.features, manifest.vocabulary.pad, held=held)


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

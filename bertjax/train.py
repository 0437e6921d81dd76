"""Train: one step as a pure function, and the loop that runs it, evaluates, and saves checkpoints.

The loop depends on no model and no objective: only on `loss`, an optax transform and the sharding of arrays. It never
waits for the device inside a step: the metrics of a step are read while the next one runs.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bertjax import exits
from bertjax.checkpoints import checkpoint
from bertjax.config import Experiment, Phase
from bertjax.data.source import Batch as HostBatch
from bertjax.data.source import Source
from bertjax.errors import Diverged
from bertjax.evaluate import evaluator
from bertjax.faults import fault, poisoned
from bertjax.fields import check_kind
from bertjax.optim.skipping import Spikes, judge, total_loss
from bertjax.random import stream, with_global_rows
from bertjax.rules import EVERYTHING, Rules, combine, partition
from bertjax.run.batches import Inputs, first_examples, local_batches, open_split, validation_batches
from bertjax.run.checks import check_run
from bertjax.run.compiling import Compiling, told_if_long
from bertjax.run.leaving import end
from bertjax.run.local_files import local_files
from bertjax.run.metrics import MetricLogger, at_interval
from bertjax.run.processes import (
    is_coordinator,
    locked_by_coordinator,
    messages_path,
    raise_together,
    raising_on_all,
    stopping_together,
    telling_others,
)
from bertjax.run.profiler import Profile
from bertjax.run.replicas import check_repeatable, hashes_of
from bertjax.run.saves import Saves
from bertjax.run.state import State, describe_start, initial_state, state_shapes
from bertjax.run.stop import Interrupted, StopRequest, stop_requests
from bertjax.run.watch import COMPILATION, Watch
from bertjax.run.workdir import record_experiment
from bertjax.run.writers import Progress
from bertjax.serialization.description import to_json
from bertjax.sharding.collectives import gather_params, per_replica, psum_replicas
from bertjax.sharding.mesh import place_batch, replicated
from bertjax.storage.paths import path_of
from bertjax.types import Array, Batch, Key, Mean, Metrics, Params, positions

Loss = Callable[[Params, Batch, Key], tuple[Array, Metrics]]

Step = Callable[[State, Batch, Key], tuple[State, Metrics]]
"""(state, batch, key of the run) -> (next state, metrics). The key is an argument, so all seeds share a program."""

MakeStep = Callable[[Experiment, Phase, Mesh], Step]

Evaluate = Callable[[int, Params], Mapping[str, float]]
"""(step, params) -> metrics of the validation split, by names as in `Metrics`."""


def train_step(
    state: State,
    batch: Batch,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
    key: Key,
    parts: int = 1,
    trained: Rules = EVERYTHING,
    spikes: Spikes | None = None,
) -> tuple[State, Metrics]:
    """Return the state after one update on a batch, and its metrics; the gradient is accumulated over `parts`.

    Parameters that are not `trained` stay as they are, without gradient or optimiser state. Where loss, gradient or
    update are of no use, or a spike, all stay as they are, but for the counters: see optim/skipping.py.
    """
    rng = jax.random.fold_in(key, state.step)
    params, frozen = partition(trained, state.params)

    def whole(params: Params, batch: Batch, rng: Key) -> tuple[Array, Metrics]:
        return loss(gather_params(combine(params, frozen)), batch, rng)

    if parts == 1:
        grads, metrics = jax.grad(whole, has_aux=True)(params, batch, rng)
    else:
        grads, metrics = accumulated_gradient(whole, params, batch, rng, parts)
    grads, metrics = _with_faults(state.step + 1, grads, metrics)
    updates, opt = tx.update(grads, state.opt, params)
    norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
    usable, skips = judge(state.skips, total_loss(metrics), norm, update_norm, spikes)
    made = (optax.apply_updates(params, updates), opt)
    odd = jnp.isfinite(norm) & ~jnp.isfinite(update_norm)  # which is why the step is skipped
    # One selection for each element, in the loop that computes it: no copy of the state, and no branch.
    params, opt = jax.tree.map(partial(jnp.where, usable), made, (params, state.opt))
    metrics |= {
        "norm/gradient": Mean(norm, jnp.float32(1)),
        "norm/update": Mean(jnp.where(usable | odd, update_norm, 0), jnp.float32(1)),
        "skips/total": Mean(skips.total, jnp.float32(1)),
        "skips/in_a_row": Mean(skips.in_a_row, jnp.float32(1)),
    }
    return State(state.step + 1, combine(params, frozen), opt, skips), metrics


def _with_faults(step: Array, grads: Params, metrics: Metrics) -> tuple[Params, Metrics]:
    """Return gradient and metrics as they are, but for the faults of a drill: see faults.py."""
    losses = {
        name: Mean(poisoned("loss", step, mean.sum), mean.weight) if name.startswith("loss/") else mean
        for name, mean in metrics.items()
    }
    return jax.tree.map(partial(poisoned, "gradient", step), grads), losses


def with_loop_metrics(step: Step, rate: Callable[[Array], Array]) -> Step:
    """Add to the metrics of a step its learning rate and, where there are several processes, what they tell each other.

    The optimiser counts updates, so a skipped step does not advance the rate. Each process sends with its rows of the
    batch whether it has to `stop`: then the state stays as it was, on all of them, which end after the same step. It
    also sends the times of its `host`.
    """

    def stepped(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        rows = {name: array for name, array in batch.items() if name not in ("stop", "host")}
        after, metrics = step(state, rows, key)
        if "stop" in batch:
            stop = batch["stop"].max()
            after = jax.tree.map(partial(jnp.where, stop > 0), state, after)
            metrics |= {"stop": Mean(stop, jnp.float32(1)), "host": Mean(batch["host"], jnp.float32(1))}
        updates = state.step - state.skips.total
        return after, metrics | {"learning_rate": Mean(rate(updates), jnp.float32(1))}

    return stepped


def sharded_step(experiment: Experiment, phase: Phase, mesh: Mesh) -> Step:
    """Return the jitted step of a phase, to be called under `jax.set_mesh(mesh)`. It donates the state."""
    loss, tx = partial(experiment.objective.loss, train=True), experiment.optimizer.transform()
    parts, trained, spikes = phase.accumulate, experiment.optimizer.trained, experiment.optimizer.spikes

    def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        return train_step(state, batch, loss=loss, tx=tx, key=key, parts=parts, trained=trained, spikes=spikes)

    after = jax.tree.map(lambda leaf: leaf.sharding, state_shapes(experiment, mesh))
    return jax.jit(
        with_loop_metrics(step, experiment.optimizer.learning_rate),
        donate_argnums=0,
        out_shardings=(after, replicated(mesh)),
    )


def gradient_hashes(experiment: Experiment, phase: Phase, mesh: Mesh) -> Callable[[State, Batch, Key], Array]:
    """Return a jitted function that hashes the gradient of one micro-batch of a batch: u32 [parameters]."""
    loss, trained = partial(experiment.objective.loss, train=True), experiment.optimizer.trained

    def hashes(state: State, batch: Batch, key: Key) -> Array:
        params, frozen = partition(trained, state.params)
        rows = {name: array[:: phase.accumulate] for name, array in batch.items() if name not in ("stop", "host")}
        rng = jax.random.fold_in(key, state.step)

        def one(params: Params) -> Array:
            return loss(gather_params(combine(params, frozen)), rows, rng)[0]

        return hashes_of(jax.grad(one)(params))

    return jax.jit(hashes, out_shardings=replicated(mesh))


def _recomputing(update: Step, experiment: Experiment, phase: Phase, mesh: Mesh, first: int) -> Step:
    """Return the step with a check, at the interval of the run, that a gradient is the same when computed again."""
    hashes, steps = gradient_hashes(experiment, phase, mesh), count(first)

    def checked(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        step = next(steps)
        if at_interval(step, experiment.run.recompute_every):
            check_repeatable(partial(hashes, state, batch, key), step)
        return update(state, batch, key)

    return checked


def accumulated_gradient(loss: Loss, params: Params, batch: Batch, rng: Key, parts: int) -> tuple[Params, Metrics]:
    """Compute the gradient of the loss of the whole batch from `parts` micro-batches, one at a time.

    Exact where micro-batches weigh differently: every term of the loss is divided by its weight in the whole batch.
    Those weights come first, from a pass whose forward computation the compiler drops, since they depend on data alone.
    Each micro-batch has a key of its own; `random.global_rows` gives a row's number in the whole batch, and its key.
    Each replica accumulates the gradient of its own rows; replicas are summed once, after the last micro-batch.
    """
    return per_replica(partial(_accumulated, loss, parts))(params, batch, rng)


def _accumulated(loss: Loss, parts: int, params: Params, batch: Batch, rng: Key) -> tuple[Params, Metrics]:
    # Every parts-th row, so that a batch split over devices stays where it is.
    numbered = with_global_rows(rng, batch)
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), numbered)
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


class _Loop(NamedTuple):
    """State that the phases of a run share."""

    experiment: Experiment
    mesh: Mesh
    key: Key
    stop: StopRequest
    watch: Watch
    logger: MetricLogger
    profile: Profile
    saves: Saves
    compiling: Compiling
    enough: Callable[[], bool] = lambda: False


def fit(
    experiment: Experiment,
    workdir: str | Path,
    *,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
    make_step: MakeStep = sharded_step,
    source: Source | None = None,
    stop: StopRequest | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> State:
    """Train an experiment in a work directory, from its newest checkpoint if it has one, and return the final state.

    evaluate: replaces the loss on the validation split; called before the checkpoint of the same step. make_step,
    source: for runs that differ in their seeds alone, so that they share a compiled step and the opened training rows.
    stop: that of a command, which was there before. enough: asked after each evaluation, on all processes alike; where
    it returns True the run ends there, with a checkpoint.
    Raises InputError for mistakes found before training, Diverged after `run.tolerance` skipped steps in a row, or
    where the validation loss has diverged, Interrupted after a signal, once a checkpoint is saved, KeyboardInterrupt
    where there is none to save yet. An error of one process is raised on all, after a checkpoint where it came from its
    data.
    """
    check_kind("experiment", experiment, Experiment, ", such as load_experiment returns")
    progress, run, workdir = progress or Progress(), experiment.run, path_of(workdir)
    with ExitStack() as resources:
        watch = resources.enter_context(closing(Watch(run.patience, progress)))
        stop = stop or resources.enter_context(stop_requests(end=partial(end, progress), say=progress.note))
        stop.at_once, stop.starting, stop.saving = True, True, False
        resources.enter_context(telling_others())
        experiment, mesh, tokenizer, data, start = check_run(experiment, workdir)
        resources.enter_context(jax.set_mesh(mesh))
        check_lock = resources.enter_context(locked_by_coordinator(workdir))
        with raising_on_all():
            if is_coordinator():
                record_experiment(workdir, experiment)
        local = resources.enter_context(local_files(workdir, progress))
        progress.keep(messages_path(local.folder))
        with told_if_long(progress, lambda: _beginning(workdir)):
            state = initial_state(experiment, mesh, workdir, tokenizer, data, start, progress.say)
        folder, keep = workdir / "checkpoints", {"keep": run.keep, "keep_every": run.keep_every}
        manager = checkpoint.open_checkpoints(folder, **keep, report=progress.say)
        resources.enter_context(closing(manager))  # waits for a checkpoint that is still being written
        resources.enter_context(telling_others())  # before that
        seed = experiment.counters.stream_seed(experiment.seed, start.model)
        key = jax.device_put(stream(seed, "train"), replicated(mesh))
        facts = {"experiment": to_json(experiment), "tokenizer": tokenizer, "data": data, "model": start.model}
        before = (check_lock, local.upload)  # logs first, so that no step has a checkpoint but no line in the log
        saves = Saves(workdir, manager, facts, key, before)
        for line in describe_start(experiment, state, mesh, start):
            progress.say(line)
        saves.resumed(state)
        if start.params:
            saves.save(state)  # so that a resumed run does not read `init`, which may have changed
        with raising_on_all():  # only the coordinator writes metrics
            logger = MetricLogger(experiment, local.folder, int(state.step), progress, int(state.skips.in_a_row))
        profile = resources.enter_context(closing(Profile(local.folder, run.profile, progress)))
        loop = _Loop(experiment, mesh, key, stop, watch, logger, profile, saves, Compiling(progress), enough)
        examples = first_examples(experiment, data)
        state = _train_phases(loop, seed, examples, source, make_step, evaluate, progress, state)
        watch.now("the last checkpoint", COMPILATION)
    return state


def _beginning(workdir: Path) -> str:
    return f"{'restoring' if checkpoint.has_checkpoint(workdir) else 'initialising'} the state"


def _train_phases(
    loop: _Loop,
    seed: int,
    examples: Sequence[int],
    source: Source | None,
    make_step: MakeStep,
    evaluate: Evaluate | None,
    progress: Progress,
    state: State,
) -> State:
    """Run the phases that are left after `state`; examples: the number of the first example of each."""
    experiment, mesh, first, begun = loop.experiment, loop.mesh, 0, int(state.step)
    lacks = _evaluation_due(experiment, begun) and loop.logger.lacks_evaluation(begun)
    loop.stop.at_once = loop.stop.starting = False  # there may be steps to save from now on
    for phase, example in zip(experiment.amended_phases, examples, strict=True):
        end, evaluate_first = first + phase.steps, lacks and first < begun <= first + phase.steps
        if int(state.step) < end or evaluate_first:
            loop.watch.now("opening the data", COMPILATION)
            try:
                with _interruptible(loop.stop):
                    evaluation = evaluate or _validation_loss(experiment, phase, mesh, progress, loop.stop)
                    rows = source or open_split(phase.rows, "train", progress)
                    start = int(state.step) - first
                    batches = local_batches(phase, rows, mesh, seed=seed, start=start, first=example)
            except KeyboardInterrupt:
                _leave(loop, state)
            if evaluate_first and evaluation is not None:
                _evaluate_first(loop, evaluation, begun, state)
                if loop.enough():
                    return state
            inputs = Inputs(batches, rows, phase, mesh, loop.stop)
            for until in _segments(experiment, first, end):
                if int(state.step) < until:
                    step = int(state.step) + 1
                    loop.logger.amended([each for each in experiment.amend if each.step == step])
                    update = make_step(experiment.at(step), phase, mesh)
                    if experiment.run.recompute_every:
                        update = _recomputing(update, experiment, phase, mesh, step)
                    state = _train_phase(loop, phase, until, update, inputs, evaluation, state)
                    if int(state.step) < until:  # it was enough
                        return state
        first = end
    return state


def _evaluate_first(loop: _Loop, evaluate: Evaluate, step: int, state: State) -> None:
    try:
        if not _evaluated(loop, evaluate, step, state):
            _leave(loop, state)
    except FloatingPointError as error:
        _diverged(loop, state, error)


def _segments(experiment: Experiment, first: int, end: int) -> list[int]:
    """Return the last steps of the parts of a phase that an amendment divides; the phase has steps first + 1 … end."""
    return sorted({end, *(each.step - 1 for each in experiment.amend if first < each.step - 1 < end)})


def _train_phase(
    loop: _Loop, phase: Phase, end: int, update: Step, inputs: Inputs, evaluate: Evaluate | None, state: State
) -> State:
    """Run the steps of a phase that are left after `state`, up to step `end`."""
    # Long, since it is the loop: each line is one of the things that happen in a step, in their order.
    experiment, mesh, key, stop, watch, logger, profile, saves, compiling, enough = loop
    run, step = experiment.run, int(state.step)
    logger.start_phase(phase)
    try:
        while step < end:
            profile.before(step + 1, state)
            waiting = time.perf_counter()
            rows = _next_rows(loop, inputs, step + 1, state)
            saves.recent.append((step + 1, rows))
            batch = place_batch(rows, mesh, phase.batch_size)
            waited = time.perf_counter() - waiting
            program = (end, *(array.shape for array in batch.values()))
            watch.step(step + 1, program, logger.read_step)
            fault("update", step + 1)
            with compiling.first_call(program):
                state, metrics = update(state, batch, key)
            step += 1
            if profile.after(step, metrics):
                logger.restart(step)  # writing a trace does not count as time of a step
            logger.step(step, metrics, waited, positions(batch))
            watch.step(step + 1, program, logger.read_step)
            stop.step_seconds = logger.times[0]
            last = step == experiment.steps
            stopping = jax.process_count() == 1 and stop.signal > 0
            saves.due |= at_interval(step, run.checkpoint_every)
            evaluating = evaluate if _evaluation_due(experiment, step) else None
            if step == end or stopping or saves.due or evaluating:  # each part of a phase reads its own metrics
                logger.flush()
            if evaluating and not (stopping or logger.withdrawn):
                stopping = not _evaluated(loop, evaluating, step, state)
            if stopping or logger.withdrawn:
                _leave(loop, state, inputs.error)
            ended = evaluating is not None and enough()
            last |= ended
            if last:
                logger.check_end(step)
                stop.saving = True  # until it is on disk: the run is over, whatever signals come
            if last or (saves.due and not logger.in_a_row):  # else nothing shows yet that these parameters are good
                watch.now("saving", COMPILATION)
                saves.save(state)
                logger.restart(step)
                watch.now(f"step {step + 1}")
            if ended:
                break
    except FloatingPointError as error:
        _diverged(loop, state, error)
    return state


def _next_rows(loop: _Loop, inputs: Inputs, step: int, state: State) -> HostBatch:
    try:
        return inputs.next(step, loop.logger.times)
    except (Exception, KeyboardInterrupt) as error:  # whatever it is, the state is worth saving
        if jax.process_count() > 1:
            raise  # by this process alone: the others are in the step, so nothing can be saved together
        _leave(loop, state, error)


def _diverged(loop: _Loop, state: State, error: FloatingPointError) -> NoReturn:
    """Keep the batch and the state of a run that has diverged, and raise Diverged, also where they cannot be kept."""
    try:
        with telling_others():  # they may wait for this process, and end as it does
            try:
                kept = loop.saves.keep_diverged(state, loop.logger.read_step, loop.logger.good_step)
            except Exception as problem:
                problem.exit_code = exits.DIVERGED  # type: ignore[attr-defined]
                raise
    except Exception as problem:  # noqa: BLE001 whatever it is, the run has diverged
        raise Diverged(f"{error}. Its batch and state could not be kept: {problem}") from error
    where = f"Its batch and state: bertjax inspect-batch {kept}" if loop.saves.recent else f"Its state: {kept}"
    raise Diverged(f"{error}. {where}") from error


def _evaluation_due(experiment: Experiment, step: int) -> bool:
    return step == experiment.steps or at_interval(step, experiment.run.evaluate_every)


def _evaluated(loop: _Loop, evaluate: Evaluate, step: int, state: State) -> bool:
    """Evaluate and log; return False where a signal has prevented it: then the run that goes on evaluates first."""
    loop.watch.now("evaluation", COMPILATION)
    try:
        with _interruptible(loop.stop):
            values = evaluate(step, state.params)
    except KeyboardInterrupt:
        return False
    except Exception as error:
        if jax.process_count() > 1 and not getattr(error, "known_to_all", False):
            raise  # the others may be in the middle of it: nothing can be saved together
        _leave(loop, state, error)
    loop.logger.evaluated(step, values)
    loop.watch.now(f"step {step + 1}")
    return True


def _interruptible(stop: StopRequest) -> AbstractContextManager[None]:
    """Let a signal interrupt what a process does alone; several leave an evaluation together: `stopping_together`."""
    return stop.raising() if jax.process_count() == 1 else nullcontext()


def _leave(loop: _Loop, state: State, error: BaseException | None = None) -> NoReturn:
    """Save the state after the last step that all processes made, and raise on all of them what ends the run.

    error: of this process, where there is one. Without an error of any process that is Interrupted.
    """
    loop.logger.flush()  # raises where the state is of no use
    step, loop.stop.saving = int(state.step), True
    loop.watch.now("saving", COMPILATION)
    loop.saves.save(state)
    note = f"the checkpoint of step {step} is saved: run the same command again to resume"
    failure = error if isinstance(error, Exception) else None
    if failure is not None:
        failure.exit_code = getattr(failure, "exit_code", exits.FAILED)  # type: ignore[attr-defined]
        failure.add_note(note)
    if jax.process_count() > 1 and not getattr(failure, "known_to_all", False):
        raise_together(failure, f"; {note}")
    if failure is not None:
        raise failure
    raise Interrupted(step, loop.stop.signal or signal.SIGTERM)


def _validation_loss(
    experiment: Experiment, phase: Phase, mesh: Mesh, progress: Progress, stop: StopRequest
) -> Evaluate | None:
    """Return a function that computes the objective's metrics on the validation split; None, with a notice, without."""
    evaluate = evaluator(experiment.objective, mesh, phase.batch_size // phase.accumulate)
    check = stopping_together(stop)
    batches = validation_batches(phase, mesh, progress)
    if batches is None:
        return None

    def evaluated(step: int, params: Params) -> Mapping[str, float]:
        unfailing = batches(experiment.run.evaluate_batches)
        values = evaluate(params, _checked(unfailing, check))
        if jax.process_count() > 1:
            raise_together(unfailing.error)
        return values

    return evaluated


def _checked(batches: Iterable[HostBatch], check: Callable[[], None]) -> Iterator[HostBatch]:
    for batch in batches:
        check()
        yield batch

"""The state of a run: its shapes and shardings, and its initial value, random, warm-started or restored."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.checkpoint import Damaged
from bertjax.checkpoints.described import Init
from bertjax.checkpoints.newest import check_not_emptied, read_newest
from bertjax.checkpoints.warm_optimizer import newest_checkpoint, warm_optimizer
from bertjax.checkpoints.warm_start import Start, warm_start
from bertjax.config import Experiment, code_behind
from bertjax.data.tokenizer import Tokenizer, fingerprint
from bertjax.errors import InputError
from bertjax.flops import abstract_params, row_shapes
from bertjax.optim.skipping import Skips
from bertjax.random import stream
from bertjax.rules import name_of, partition
from bertjax.run.processes import allgather_text, is_coordinator, raising_on_all, together
from bertjax.serialization.description import own_names, to_json
from bertjax.sharding.mesh import replicated
from bertjax.sharding.placement import storage_shardings
from bertjax.types import Array, Key, Params


class State(NamedTuple):
    """All that changes in training: the number of steps made (i32), parameters, optimiser state, skipped steps."""

    step: Array
    params: Params
    opt: Any
    skips: Skips = Skips()


def state_shapes(experiment: Experiment, mesh: Mesh) -> State:
    """Return the shapes, dtypes and shardings of a run's state; moments are stored as their parameters are."""
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

    def scalar(value: Any) -> Any:
        return jax.ShapeDtypeStruct((), value.dtype, sharding=replicated(mesh))

    opt = jax.tree.map(placed, opt, opt_places)
    return State(scalar(np.int32(0)), jax.tree.map(placed, params, places), opt, jax.tree.map(scalar, Skips()))


def load_start(experiment: Experiment, workdir: Path, tokenizer: Tokenizer) -> Start:
    """Load the parameters of a warm start, by name: none without `init`, or where the run is resumed.

    Raises InputError where `init` does not fit, where all checkpoints are damaged, and where those that the run had
    are gone.
    """
    if checkpoint.has_checkpoint(workdir):
        info, *_ = read_newest(workdir, checkpoint.read_info, say=lambda text: None)  # said when all of it is read
        return Start({}, model=info.get("model", ""))
    check_not_emptied(workdir, experiment.run.checkpoint_every)
    if not experiment.init:
        frozen = [pattern for pattern, trained in experiment.optimizer.trained if not trained]
        if frozen:
            names = ", ".join(frozen)
            raise InputError(f"frozen parameters ({names}) would stay random: start from a trained model, init=FOLDER")
        return Start({})
    phase = experiment.phases[0]
    like = abstract_params(experiment.objective, row_shapes(phase.rows, phase.batch_size))
    init, code = Init.parse(experiment.init), code_behind(experiment)
    if not init.optimizer:
        return warm_start(init.source, experiment.objective, like, tokenizer, code)
    step = newest_checkpoint(init.source)
    start = warm_start(str(step), experiment.objective, like, tokenizer, code)
    kept = warm_optimizer(step, start.params, experiment.objective, like, experiment.optimizer, code)
    return start._replace(optimizer=kept)


def initial_state(
    experiment: Experiment,
    mesh: Mesh,
    folder: Path,
    tokenizer: Tokenizer,
    data: list[str],
    start: Start,
    say: Callable[[str], None],
) -> State:
    """Restore the newest checkpoint of the folder that is not damaged, or initialise the state by the seed and `start`.

    data: the digest of each phase's data. say: is told which checkpoints are damaged; those get new
    names, so that they are not in the way. Raises InputError where rows of a phase do not fit the model, and where the
    checkpoint was trained with another tokenizer or on other data.
    """
    for phase in experiment.phases:
        abstract_params(experiment.objective, row_shapes(phase.rows, phase.batch_size))
    like = state_shapes(experiment, mesh)
    if not together(lambda: checkpoint.has_checkpoint(folder)):
        fresh = _initialise(experiment, mesh, like)
        params, opt = _take_over(fresh.params, start.params), _take_over(fresh.opt, start.optimizer.arrays)
        return fresh._replace(params=params, opt=opt)

    def read(newest: Path) -> State:
        return _restore(like, tokenizer, data, mesh, newest, say)

    state, _, damaged = read_newest(folder, read, say, together)
    with raising_on_all():
        if is_coordinator():
            for path in damaged:
                say(f"renamed to {checkpoint.set_aside(path, 'damaged')}")
    return state


@contextmanager
def _damaged_for_all() -> Iterator[None]:
    """Raise on every process the errors that any of them raises inside; Damaged where it is damaged for any of them.

    Each part of a restoration ends here, before all processes compute together: else those that have read their part
    would wait for the one that has not.
    """
    problem = ""
    with raising_on_all():
        try:
            yield
        except Damaged as error:
            problem = str(error)
    problems = allgather_text(problem) if jax.process_count() > 1 else {"": problem}
    found = {name: text for name, text in problems.items() if text}
    if found:
        texts = set(found.values())
        alone = "" if len(found) == len(problems) else f" (for {', '.join(found)} alone)"
        raise Damaged("; ".join(sorted(texts)) + alone)


def _restore(
    like: State, tokenizer: Tokenizer, data: list[str], mesh: Mesh, newest: Path, say: Callable[[str], None]
) -> State:
    with _damaged_for_all():
        info = checkpoint.read_info(newest)
        if others := checkpoint.other_versions(info):
            say(f"{newest} was saved by {others}: the run goes on, but its numbers may differ in the last digits")
        if info["fingerprint"] != fingerprint(tokenizer):
            raise InputError(f"{newest} was trained with another tokenizer than that of the corpus: use its own corpus")
        if info["data"] != data:
            raise InputError(
                f"{newest} was trained on another corpus: resume with that one, or choose another --workdir"
            )
    arrays = {"params": like.params, "optimizer": like.opt}
    with _damaged_for_all():
        arrays = {item: checkpoint.read_arrays(newest, item, each) for item, each in arrays.items()}
    with _damaged_for_all():
        for item, each in arrays.items():
            checkpoint.verify(newest, item, each, info)
    step, skips = np.int32(info["step"]), Skips.of(info.get("skips", {}))
    params, opt = arrays["params"], arrays["optimizer"]
    return State(jax.device_put(step, replicated(mesh)), params, opt, jax.device_put(skips, replicated(mesh)))


def _initialise(experiment: Experiment, mesh: Mesh, like: State) -> State:
    """Initialise parameters from the seed, and optimiser state of those that are trained; stored as in `like`."""
    phase = experiment.phases[0]
    tx, trained = experiment.optimizer.transform(), experiment.optimizer.trained
    shapes = row_shapes(phase.rows, phase.batch_size)

    def fresh(key: Key) -> State:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        params = experiment.objective.init(key, batch)
        skips = jax.tree.map(jnp.asarray, Skips())
        return State(jnp.zeros([], jnp.int32), params, tx.init(partition(trained, params)[0]), skips)

    key = jax.device_put(stream(experiment.seed, "init"), replicated(mesh))
    return jax.jit(fresh, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))(key)


def _take_over(tree: Any, start: Mapping[str, Array]) -> Any:
    """Replace the arrays that are in `start`; of a stack of layers the lower ones, where `start` has fewer."""

    def take(path: Any, ours: Array) -> Array:
        # Two parameters may start as the same array; each needs memory of its own, since the update donates it.
        if name_of(path) not in start:
            return ours
        theirs = np.asarray(start[name_of(path)])
        if ours.ndim and len(theirs) < len(ours):
            theirs = np.concatenate([theirs, np.asarray(ours)[len(theirs) :]])
        return jax.make_array_from_callback(ours.shape, ours.sharding, lambda index: theirs[index])

    return jax.tree_util.tree_map_with_path(take, tree)


def describe_start(experiment: Experiment, state: State, mesh: Mesh, start: Start) -> Iterator[str]:
    """Yield lines for the user: the size of the run and, of a warm start, which parameters are freshly initialised."""
    count, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, partition(experiment.optimizer.trained, state.params)[1])
    )
    yield (
        f"{count:,} parameters{f', {frozen:,} of them frozen,' if frozen else ''} on {mesh.size} "
        f"{mesh.devices.flat[0].device_kind} {'device' if mesh.size == 1 else 'devices'}, from step {int(state.step)}"
    )
    if own := own_names(to_json(experiment)):
        yield (
            f"of your own files: {', '.join(own)}. To use the model give the file beside it, as --experiment FILE; a "
            "copy of the file is kept in the work directory, to be read"
        )
    params, note, model, optimizer = start
    if params:
        names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
        fresh = ", ".join(name for name in names if name not in params)
        source = Init.parse(experiment.init).source
        yield f"parameters from {source}; freshly initialised: {fresh or 'none'}{note}"
        if optimizer.arrays:
            yield f"state of the optimiser from {source}: {optimizer.note}"
        if experiment.counters.stream_seed(experiment.seed, model) != experiment.seed:
            yield "order of rows, masks and dropout are drawn anew for this model, not as in the run that trained it"

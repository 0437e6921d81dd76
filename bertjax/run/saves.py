"""Save the states of a run, with the facts that describe it, and keep what a look at a diverged run needs."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertjax.checkpoints import checkpoint
from bertjax.data.source import Batch
from bertjax.run.bad_batch import keep_bad_batch
from bertjax.run.processes import is_coordinator, raising_on_all
from bertjax.run.replicas import check_replicas, prepare_check
from bertjax.run.state import State
from bertjax.types import Key


@dataclass
class Saves:
    """Where the states of a run are saved, and with which facts.

    facts: experiment, tokenizer, data and model, see `checkpoint.save`. key: of the run. before: are called before each
    save. recent: the last two steps with this process's rows, since metrics are read one step late. newest: the step of
    the newest checkpoint, none at first. due: whether one is to be saved, once a step shows that the state is good.
    """

    workdir: Path
    manager: checkpoint.Saves
    facts: dict[str, Any]
    key: Key
    before: Sequence[Callable[[], object]]
    recent: deque[tuple[int, Batch]] = field(default_factory=lambda: deque(maxlen=2))
    newest: deque[int] = field(default_factory=lambda: deque(maxlen=1))
    due: bool = False

    def resumed(self, state: State) -> None:
        """Take a state for that of the newest checkpoint, also of step 0, if there is one; make the next save ready."""
        prepare_check({"params": state.params, "optimizer": state.opt})
        if checkpoint.has_checkpoint(self.workdir):
            self.newest.append(int(state.step))

    def save(self, state: State) -> None:
        """Save a state as the newest checkpoint, in the background, unless it is that already.

        Raises ReplicasDiffer where it is not the same on all devices.
        """
        step, self.due = int(state.step), False
        if step in self.newest:
            return
        check_replicas({"params": state.params, "optimizer": state.opt})
        for call in self.before:
            call()
        facts = self.facts | {"skips": state.skips.described()}
        checkpoint.save(self.manager, step, state.params, state.opt, **facts)
        self.newest.append(step)

    def keep_diverged(self, state: State, step: int, good: int) -> Path:
        """Keep the batch and the state of a run that diverged at a step, and return their folder.

        good: the newest step whose parameters are known to be good; later checkpoints get names that no run resumes.
        """
        with raising_on_all():
            try:
                self.manager.wait_until_finished()
            finally:  # also where the newest could not be saved: an older one may hold the same parameters
                if is_coordinator():
                    checkpoint.set_aside_later(self.workdir, good, "diverged")

        def write(folder: Path) -> None:
            facts = self.facts | {"skips": state.skips.described()}
            checkpoint.write(folder, int(state.step), state.params, state.opt, **facts)

        return keep_bad_batch(self.workdir, step, dict(self.recent).get(step, {}), self.key, write)

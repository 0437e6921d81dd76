"""Log a run: its metrics, read one step late, its speed and progress, skipped steps; end it where it diverged."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bertjax.amendments import STEPS, Amendment
from bertjax.config import Experiment, Phase
from bertjax.flops import PEAK_TFLOPS, model_flops, row_shapes
from bertjax.optim.skipping import LARGEST_LOSS
from bertjax.run.hosts import slow, slowest_host, step_times
from bertjax.run.processes import allgather_text, is_coordinator
from bertjax.run.targets import check_targets, few_targets
from bertjax.run.writers import (
    Log,
    Progress,
    Timing,
    Writer,
    dropped_at_an_error,
    duration,
    evaluated_at,
    tensorboard_writer,
    wandb_writer,
)
from bertjax.serialization.description import to_json
from bertjax.types import Metrics, positions


def at_interval(step: int, every: int) -> bool:
    """Return whether `step` is a multiple of `every`; never where `every` is 0."""
    return every > 0 and step % every == 0


_REMEDY = "try a lower learning rate or a longer warm-up"

_TIMED = 1000
"""Steps of which times are kept, the last ones; every logged step begins anew."""


class MetricLogger:
    """Read metrics one step late, log them, show progress, report skipped steps, and end a run that has diverged.

    Nothing here runs on the device, where it would be queued behind the step that is running.
    """

    def __init__(self, experiment: Experiment, folder: Path, start: int, progress: Progress, in_a_row: int = 0) -> None:
        """Log from step `start` on, before which so many steps `in_a_row` were skipped."""
        run = experiment.run
        self._experiment, self._folder, self._progress = experiment, folder, progress
        self._pending: tuple[int, Metrics, int] | None = None
        self._waited, self._seen = 0.0, 0
        self._ended = time.perf_counter()  # the end of the last step
        self._steps: deque[float] = deque(maxlen=_TIMED)  # times of steps
        self._hosts: deque[np.ndarray] = deque(maxlen=_TIMED)
        self._names = list(allgather_text("")) if jax.process_count() > 1 else []
        self.times = (0.0, 0.0)  # seconds that this process needed by itself for the last step, and for its data
        self._checked = False  # whether the first batch was seen to have its targets
        self.withdrawn = False  # whether a process had to stop, so that the last steps were not made
        self.in_a_row = in_a_row  # steps skipped since the last update, as of the step read last
        self.read_step = start  # whose metrics were read last
        self.good_step = start - 1 - in_a_row  # the newest step whose parameters are known to give a loss of use
        self._loss = 1.0  # the last one of an update
        self._writers: list[Writer] = []
        self._log: Log | None = None
        if not is_coordinator():
            return
        say = progress.say
        self._log = Log(folder, start, say, every=run.log_every)
        self._writers.append(self._log)
        self._timing = Timing(folder, say)
        if run.tensorboard:
            self._writers.append(dropped_at_an_error("TensorBoard", lambda: tensorboard_writer(folder), say))
        if run.wandb:
            described = to_json(experiment)
            wandb = dropped_at_an_error("W&B", lambda: wandb_writer(folder, run.wandb, described), say)
            self._writers.append(wandb)

    def amended(self, amendments: Sequence[Amendment]) -> None:
        """Log what changes with the next step, after all of the steps before."""
        if amendments:
            self.flush()
        for each in amendments:
            self._progress.say(_amended(self._experiment, each))
            if self._log is not None:
                self._log(each.step, {"amend": str(each)})

    def start_phase(self, phase: Phase) -> None:
        """Count the FLOPs of a phase, and begin to time it."""
        shapes = row_shapes(phase.rows, phase.batch_size)
        self._shape = shapes["tokens"].shape
        self._tokens = positions(shapes)
        self._flops = model_flops(self._experiment.objective, shapes, self._experiment.optimizer.trained)
        tflops = self._experiment.run.peak_tflops or PEAK_TFLOPS.get(jax.devices()[0].device_kind, 0)
        self._peak = 1e12 * tflops * jax.device_count()
        self.restart(-1)  # timed from the end of the first step, which includes compilation

    def step(self, step: int, metrics: Metrics, waited: float, tokens: int) -> None:
        """Take the metrics of a step just dispatched, on `tokens` tokens, and read those of the step before.

        waited: seconds that the step waited for its batch.
        """
        self.times = (time.perf_counter() - self._ended, waited)
        self.flush()
        self._pending = (step, metrics, tokens)
        self._waited += waited

    def flush(self) -> None:
        """Read and log the pending metrics, which waits for their step.

        Raises FloatingPointError after `run.tolerance` skipped steps in a row; InputError where no token was a target.
        """
        if self._pending is None:
            return
        step, metrics, tokens = self._pending
        self._pending, self.read_step = None, step
        self._seen += tokens
        read: Metrics = jax.device_get(metrics)
        now = time.perf_counter()
        self._steps.append(now - self._ended)
        self._ended = now
        if "stop" in read:
            self.withdrawn = self.withdrawn or bool(read.pop("stop").sum > 0)
            self._hosts.append(np.asarray(read.pop("host").sum))
        if self.withdrawn:
            return
        check_targets(step, self._experiment.objective, read, self._shape)
        if not self._checked:
            self._checked, warning = True, few_targets(self._experiment.objective, read, self._shape)
            if warning:
                self._progress.say(warning)
        values = {name: float(mean.sum / (mean.weight or 1)) for name, mean in read.items()}
        values = {"loss": sum(v for name, v in values.items() if name.startswith("loss/"))} | values
        self.in_a_row, total = int(values.pop("skips/in_a_row", 0)), int(values.pop("skips/total", 0))
        if self.in_a_row:
            self._skipped(step, values, total)
            return
        self._loss, self.good_step = values["loss"], step - 1
        logged = step == self._experiment.steps or at_interval(step, self._experiment.run.log_every)
        if logged:
            for write in self._writers:
                write(step, values)
        self._time(step, values, logged)

    def _skipped(self, step: int, values: Mapping[str, float], total: int) -> None:
        """Log a skipped step, and end the run where it is one too many."""
        loss, norm = values["loss"], values["norm/gradient"]
        finite = {"loss": loss, "norm/gradient": norm}
        text, remedy = f"step {step}: loss {loss:.6g}, norm of the gradient {norm:.6g}", _REMEDY
        if not math.isfinite(values["norm/update"]):
            finite["norm/update"] = values["norm/update"]
            text, remedy = f"{text}, of the update {values['norm/update']}", f"{_REMEDY}, or a larger optimizer.eps"
        line = {name: value if math.isfinite(value) else None for name, value in finite.items()}
        if self._log is not None:
            self._log(step, line | {"skipped": total, "skipped_in_a_row": self.in_a_row})
        for write in self._writers[1:]:
            write(step, {"skipped": float(total)})
        self._progress.say(f"{text}: skipped, {self.in_a_row} in a row, {total} in all")
        if self.in_a_row >= self._experiment.run.tolerance:
            raise FloatingPointError(f"diverged at {text}, {self.in_a_row} in a row: {remedy}")

    def check_end(self, step: int) -> None:
        """Raise FloatingPointError where the last steps of a run were skipped, more than one, and nothing contradicts.

        One alone may be its batch's fault.
        """
        if self.in_a_row > 1 and self.good_step < step:
            raise FloatingPointError(f"diverged at step {step}, the last: {self.in_a_row} skipped in a row: {_REMEDY}")

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of the validation split. Raises FloatingPointError where its loss has diverged."""
        loss = values.get("loss", 0.0)
        if not abs(loss) <= LARGEST_LOSS * max(1.0, abs(self._loss)):
            raise FloatingPointError(f"diverged at step {step}: the validation split has loss {loss:.6g}: {_REMEDY}")
        self.good_step = step if "loss" in values else self.good_step
        named = {f"validation/{name}": value for name, value in values.items()}
        for write in self._writers:
            write(step, named)
        self._progress.say(f"step {step}  validation: {summary(values)}")
        self.restart(step)

    def lacks_evaluation(self, step: int) -> bool:
        """Return, on all processes, whether the log has no evaluation of a step, as where a stop has prevented it."""
        lacks = is_coordinator() and not evaluated_at(self._folder, step)
        return lacks if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.int32(lacks)))

    def restart(self, step: int) -> None:
        """Time from here on: evaluation and saving do not count as time of a step."""
        self._timed, self._waited, self._seen = (step, time.perf_counter()), 0.0, 0
        self._ended = self._timed[1]
        self._steps.clear()
        self._hosts.clear()

    def _time(self, step: int, values: Mapping[str, float], logged: bool) -> None:
        since, at = self._timed
        now = time.perf_counter()
        if since < 0:
            self.restart(step)
        elif step > since:
            seconds = (now - at) / (step - since)
            tokens_per_second = self._seen / (now - at)
            speed = {
                "tokens_per_second": round(tokens_per_second, 1),
                "real_tokens": round(values.get("tokens/real", 1.0), 4),
                "step_ms": round(1000 * seconds, 2),
                "data_wait_ms": round(1000 * self._waited / (step - since), 2),
            }
            if self._peak:
                speed["utilisation"] = round(self._flops / self._tokens * tokens_per_second / self._peak, 4)
            hosts = slowest_host(list(self._hosts), self._names) if logged else {}
            left = duration(seconds * (self._experiment.steps - step))
            used = f"  {100 * speed['utilisation']:.0f}% of peak" if self._peak else ""
            self._progress.line(
                f"step {step}/{self._experiment.steps}  {summary(values)}  lr {values['learning_rate']:.1e}  "
                f"{tokens_per_second:,.0f} tokens/s{used}  {left} left"
                f"{slow(hosts, speed['step_ms'])}"
            )
            if logged:
                steps = list(self._steps)
                self.restart(step)
                if is_coordinator():
                    self._timing(step, speed | step_times(steps) | hosts)


def _amended(experiment: Experiment, amendment: Amendment) -> str:
    """Return what changes with an amendment; where the run becomes longer, how its rates go on."""
    step, before, after = amendment.step, experiment.at(amendment.step - 1), experiment.at(amendment.step)
    if amendment.name != STEPS:
        return f"from step {step} on {amendment.name} is {amendment.value}"
    totals = [each.optimizer.learning_rate.total for each in (before, after)]
    rates = [
        float(rate(jnp.int32(step - 1))) for rate in (before.optimizer.learning_rate, after.optimizer.learning_rate)
    ]
    return (
        f"the run is made longer, from {before.steps:,} to {after.steps:,} steps: from step {step:,} on its "
        f"learning-rate schedule ends at step {totals[1]:,}, no longer at {totals[0]:,}, so the rate of this step is "
        f"{rates[1]:.2e} instead of {rates[0]:.2e}"
    )


def summary(values: Mapping[str, float]) -> str:
    """Return losses, accuracies and the like on one line."""
    shown = [(name, value) for name, value in values.items() if "/" not in name and name != "learning_rate"]
    shown += [(name.replace("loss/", ""), value) for name, value in values.items() if name.startswith("loss/")]
    prefixes = ("accuracy/", "unigram_entropy/", "roc_auc/")
    shown += [(name, value) for name, value in values.items() if name.startswith(prefixes)]
    shown += [(name, value) for name, value in values.items() if name.startswith("overflow/") and value > 0]
    return "  ".join(f"{name} {value:.3f}" for name, value in shown)

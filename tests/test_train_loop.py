"""The loop with a step, a logger and saves of nothing: what it does at ends, at errors and at signals."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bertjax import train
from bertjax.errors import Diverged, InputError, SaveFailed
from bertjax.run.bad_batch import keep_bad_batch, read_bad_batch
from bertjax.run.compiling import Compiling
from bertjax.run.metrics import MetricLogger
from bertjax.run.saves import Saves
from bertjax.run.state import State
from bertjax.run.stop import Interrupted, StopRequest
from bertjax.run.writers import Progress


class Logger:
    """Read the metrics of a step only when asked to; `on_read` says what they hold."""

    def __init__(self, on_read=lambda logger, step: None):
        self.on_read, self.pending = on_read, None
        self.times, self.withdrawn, self.in_a_row, self.read_step, self.good_step = (0.0, 0.0), False, 0, 0, 0

    def step(self, step, *_):
        self.flush()
        self.pending = step

    def flush(self):
        if self.pending is not None:
            self.read_step, self.pending = self.pending, None
            self.on_read(self, self.read_step)

    def start_phase(self, phase): ...
    def restart(self, step): ...
    def check_end(self, step): ...


@pytest.fixture
def saved(monkeypatch):
    """Steps of the checkpoints that are handed over."""
    steps = []
    monkeypatch.setattr("bertjax.run.saves.checkpoint.save", lambda manager, step, *_, **__: steps.append(step))
    monkeypatch.setattr(train, "place_batch", lambda rows, *_: rows)
    return steps


def make_loop(folder, logger, *, steps=6, checkpoint_every=0, evaluate_every=0):
    run = SimpleNamespace(checkpoint_every=checkpoint_every, evaluate_every=evaluate_every, recompute_every=0)
    phase = SimpleNamespace(steps=steps, batch_size=2, rows=None)
    experiment = SimpleNamespace(steps=steps, run=run, phases=[phase], amended_phases=[phase], amend=[])
    watch = SimpleNamespace(now=lambda *_: None, step=lambda *_: None)
    profile = SimpleNamespace(before=lambda *_: None, after=lambda *_: False)
    return train._Loop(
        experiment,
        None,
        None,
        StopRequest(),
        watch,
        logger,
        profile,
        Saves(folder, None, {}, None, ()),
        Compiling(Progress()),
    )


def at(step):
    return State(np.int32(step), {}, {})


def next_batch(step, times):
    return {"tokens": np.zeros((2, 4), np.int32)}


def run_part(loop, end, state, batch=next_batch):
    def update(state, batch, key):
        return state._replace(step=state.step + 1), {}

    inputs = SimpleNamespace(next=batch, error=None)
    return train._train_phase(loop, loop.experiment.phases[0], end, update, inputs, None, state)


def test_a_request_to_stop_in_the_last_step_of_a_part_ends_the_run_there(saved, tmp_path):
    def withdraw(logger, step):
        logger.withdrawn = step == 3

    with pytest.raises(Interrupted):
        run_part(make_loop(tmp_path, Logger(withdraw)), 3, at(0))
    assert saved == [3]


def test_a_checkpoint_that_was_postponed_is_saved_in_the_next_part(saved, tmp_path):
    def skipped(logger, step):
        logger.in_a_row = int(step == 2)

    loop = make_loop(tmp_path, Logger(skipped), checkpoint_every=2)
    state = run_part(loop, 2, at(0))
    assert saved == []
    run_part(loop, 4, state)
    assert saved == [3, 4]


def test_an_error_that_one_of_several_processes_alone_has_is_raised_without_saving_together(
    saved, tmp_path, monkeypatch
):
    def fail(step, times):
        raise ValueError("a bad row")

    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="a bad row"):
        run_part(make_loop(tmp_path, Logger()), 3, at(0), fail)
    assert saved == []


def test_a_signal_during_the_last_checkpoint_lets_it_be_finished(saved, tmp_path, monkeypatch):
    loop, found = make_loop(tmp_path, Logger(), steps=4, checkpoint_every=2), []
    monkeypatch.setattr("bertjax.run.saves.checkpoint.save", lambda *_, **__: found.append(loop.stop.saving))
    run_part(loop, 4, at(0))
    assert found == [False, True] and loop.stop.saving

    def refuse(*_):
        raise InputError("enough")

    monkeypatch.setattr(train, "check_run", refuse)  # of the next seed of a fine-tuning
    experiment = SimpleNamespace(run=SimpleNamespace(patience=0))
    with pytest.raises(InputError, match="enough"):
        train.fit(experiment, tmp_path, stop=loop.stop)
    assert not loop.stop.saving


def diverge(*_):
    raise FloatingPointError("diverged at step 2")


def test_a_run_whose_batch_cannot_be_kept_has_still_diverged(saved, tmp_path, monkeypatch):
    def full(self, *_):
        raise SaveFailed("the disk is full")

    monkeypatch.setattr(Saves, "keep_diverged", full)
    with pytest.raises(Diverged, match=r"diverged at step 2\..* could not be kept: the disk is full"):
        run_part(make_loop(tmp_path, Logger(diverge)), 3, at(0))


def test_later_checkpoints_are_set_aside_also_where_the_newest_cannot_be_saved(tmp_path):
    def wait_until_finished():
        raise SaveFailed("the disk is full")

    for step in ("5", "9"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    saves = Saves(tmp_path, SimpleNamespace(wait_until_finished=wait_until_finished), {}, None, ())
    with pytest.raises(SaveFailed):
        saves.keep_diverged(at(10), 10, 6)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", "9.diverged"]


def test_a_first_evaluation_that_has_diverged_keeps_its_state(saved, tmp_path, monkeypatch):
    logger = Logger()
    logger.lacks_evaluation, logger.evaluated = lambda step: True, diverge
    monkeypatch.setattr(Saves, "keep_diverged", lambda *_: Path("kept"))
    monkeypatch.setattr(train, "local_batches", lambda *_, **__: None)
    loop = make_loop(tmp_path, logger, evaluate_every=3)
    with pytest.raises(Diverged, match=r"Its state: kept$"):
        train._train_phases(loop, 0, [0], "rows", None, lambda step, params: {}, Progress(), at(3))


def test_a_state_that_was_kept_without_a_batch_is_named_as_such(tmp_path):
    keep_bad_batch(tmp_path, 3, {}, jax.random.key(0), lambda folder: None)
    with pytest.raises(InputError, match="a state without a batch"):
        read_bad_batch(tmp_path / "diverged")


def test_a_run_that_goes_on_from_a_checkpoint_of_step_0_does_not_save_it_again(saved, tmp_path):
    saves = Saves(tmp_path, None, {}, None, ())
    saves.resumed(at(0))
    saves.save(at(0))
    assert saved == [0]
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    saves = Saves(tmp_path, None, {}, None, ())
    saves.resumed(at(0))
    saves.save(at(0))
    assert saved == [0]


@pytest.fixture
def logger(tmp_path):
    run = SimpleNamespace(log_every=1, tensorboard=False, wandb="")
    return MetricLogger(SimpleNamespace(run=run, steps=9), tmp_path, 8, Progress(), 3)


def test_steps_that_were_skipped_before_a_stop_still_count(logger):
    assert logger.good_step == 4 and logger.in_a_row == 3
    with pytest.raises(FloatingPointError, match="3 skipped in a row"):
        logger.check_end(8)


def test_times_of_steps_do_not_grow_without_bound(logger):
    logger.withdrawn = True  # nothing is logged
    for step in range(1100):
        logger.step(step, {}, 0.0, 1)
    assert len(logger._steps) == 1000

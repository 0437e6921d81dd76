import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import threading
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import V, make_batch, small_bert
from texts import make_documents, wordpiece_files

from bertjax import exits, train
from bertjax.amendments import Amendment
from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.trained import load
from bertjax.config import Experiment, Phase, Run
from bertjax.counters import Continued, Restarted
from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.rows import DocumentSentences, FullSentences, PackedDocuments
from bertjax.data.templates import BERT
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.errors import Diverged, InputError, exit_code_of
from bertjax.inspect_batch import inspect_batch
from bertjax.masking import Masking
from bertjax.objectives.mlm import MaskedLM
from bertjax.optim.optimizer import bert_adam
from bertjax.optim.schedules import BertLinear
from bertjax.random import stream
from bertjax.run.bad_batch import read_bad_batch
from bertjax.run.metrics import MetricLogger
from bertjax.run.state import State, load_start
from bertjax.run.stop import Interrupted
from bertjax.run.workdir import lock_workdir
from bertjax.serialization.description import to_json
from bertjax.sharding.mesh import by_row, replicated
from bertjax.tasks.rows import TaskRows
from bertjax.tasks.table import find_task
from bertjax.train import fit, sharded_step
from bertjax.types import Mean

STEPS = 6
pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def experiment(corpus, tokenizer):
    """Two phases of three steps, the second on longer rows and in two micro-batches; dropout on."""
    v = tokenizer.vocabulary
    encoder = small_bert(V=v.size, D=16, F=16, N=1)
    objective = MaskedLM(encoder, Masking(v.mask, (0, v.size), (v.cls, v.sep)), pair=True)
    phases = (
        Phase(3, 16, NextSentencePairs(corpus, 16, duplicates=1)),
        Phase(3, 16, NextSentencePairs(corpus, 32, duplicates=1), accumulate=2),
    )
    run = Run(log_every=1, evaluate_every=2, evaluate_batches=1, checkpoint_every=2)
    return Experiment(objective, bert_adam(BertLinear(1e-2, 2, STEPS)), phases, run=run)


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    """Run the experiment from beginning to end, in one go: its folder and its final state. Tests change neither."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, fit(experiment, folder)


@pytest.fixture
def short(experiment):
    """The first phase alone."""
    return dataclasses.replace(experiment, phases=experiment.phases[:1])


def same(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def die_after(monkeypatch, step):
    """Die just before the update that follows `step`."""
    place, calls = train.place_batch, iter(range(10**6))

    def dying(*arguments):
        if next(calls) == step:
            raise Killed
        return place(*arguments)

    monkeypatch.setattr(train, "place_batch", dying)


@pytest.mark.slow
def test_a_run_killed_after_every_step_ends_bit_equal_to_an_undisturbed_one(
    experiment, undisturbed, tmp_path, monkeypatch
):
    """One run that is killed after each of its steps in turn, once with and once without a checkpoint of that step."""
    straight, state = undisturbed
    log = (straight / "log.jsonl").read_bytes()
    assert len(log.splitlines()) == STEPS + 3
    for step in range(1, STEPS):
        begun = int(checkpoint.latest_step(tmp_path).name) if checkpoint.has_checkpoint(tmp_path) else 0
        assert begun == (step - 1) // 2 * 2
        with monkeypatch.context() as patch:
            die_after(patch, step - begun)
            with pytest.raises(Killed):
                fit(experiment, tmp_path)
        assert log.startswith((tmp_path / "log.jsonl").read_bytes())
    assert same(fit(experiment, tmp_path), state)
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.fixture
def served(monkeypatch):
    """Record the examples of every batch that is trained on."""
    place, examples = train.place_batch, []

    def recording(batch, mesh, rows):
        examples.append(batch["example"].tolist())
        return place(batch, mesh, rows)

    monkeypatch.setattr(train, "place_batch", recording)
    return examples


def test_a_phase_on_equal_rows_goes_on_where_the_last_one_stopped_also_where_it_is_killed(
    short, tmp_path, monkeypatch, served
):
    """The rows are at another path, as where a resumed run has moved."""
    (phase,) = short.phases
    Path(tmp_path / "moved").symlink_to(phase.rows.corpus)
    moved = dataclasses.replace(phase, rows=dataclasses.replace(phase.rows, corpus=str(tmp_path / "moved")))
    two = dataclasses.replace(short, phases=(phase, moved))
    state = fit(two, tmp_path / "whole")
    whole = list(served)
    assert len(whole) == 6 and len(set(chain(*whole))) == 6 * 16
    served.clear()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 5)
        fit(two, tmp_path / "killed")
    assert served == whole[:5]
    assert same(fit(two, tmp_path / "killed"), state) and served[5:] == whole[4:]
    served.clear()
    fit(dataclasses.replace(two, counters=Restarted()), tmp_path / "former")
    assert served == 2 * whole[:3]


def test_a_run_from_a_model_has_streams_of_its_own_and_one_of_a_former_version_keeps_its_rule(
    short, undisturbed, tmp_path, monkeypatch, served, capsys
):
    """`init` is a folder that is gone when the run is resumed."""
    parent = tmp_path / "parent"
    shutil.copytree(undisturbed[0], parent)
    staged = dataclasses.replace(short, init=str(parent))
    fit(short, tmp_path / "first")
    first, states = list(served), {}
    for name, counters in (("staged", Continued()), ("former", Restarted())):
        served.clear()
        states[name] = fit(dataclasses.replace(staged, counters=counters), tmp_path / name)
        assert (served == first) == (name == "former")
        assert ("drawn anew for this model" in capsys.readouterr().err) == (name == "staged")
    for name, counters in (("staged", Continued()), ("former", Restarted())):
        folder = tmp_path / f"killed {name}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_after(patch, 2)
            fit(dataclasses.replace(staged, counters=counters), folder)
    shutil.rmtree(parent)
    for name in states:
        assert same(fit(staged, tmp_path / f"killed {name}"), states[name])


def test_seeds_share_a_compiled_step_and_draw_different_dropout(experiment):
    """So that the programs of one seed serve all, also from the cache of compiled programs."""
    masking = dataclasses.replace(experiment.objective.masking, seed=0)  # masks that stay: what is left is dropout
    objective = dataclasses.replace(experiment.objective, encoder=small_bert(V=V, N=1), masking=masking)
    mesh, phase, batch = experiment.mesh.mesh(16), experiment.phases[0], make_batch(rows=16)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    state = State(jnp.int32(0), params, experiment.optimizer.transform().init(params))
    keys = jax.device_put([stream(seed, "train") for seed in (0, 1)], replicated(mesh))
    steps = [dataclasses.replace(experiment, objective=objective, seed=seed) for seed in (0, 1)]
    with jax.set_mesh(mesh):
        state, batch = jax.device_put((state, batch), (replicated(mesh), by_row(mesh)))
        steps = [sharded_step(each, phase, mesh).lower(state, batch, keys[0]) for each in steps]
        assert steps[0].as_text() == steps[1].as_text()
        step = steps[0].compile()
        losses = [step(jax.tree.map(jnp.copy, state), batch, key)[1]["loss/mlm"].sum for key in (*keys, keys[0])]
    assert losses[0] == losses[2] != losses[1]


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(experiment, undisturbed, tmp_path, monkeypatch):
    place, calls = train.place_batch, iter(range(10**6))

    def interrupting(*arguments):
        if next(calls) == 2:  # during step 3, which no checkpoint was due after
            os.kill(os.getpid(), signal.SIGINT)
        return place(*arguments)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train, "place_batch", interrupting)
        with pytest.raises(Interrupted, match=r"after step 3.*run the same command again"):
            fit(experiment, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.latest_step(tmp_path).name == "3"
    assert same(fit(experiment, tmp_path), undisturbed[1])
    assert (tmp_path / "log.jsonl").read_bytes() == (undisturbed[0] / "log.jsonl").read_bytes()


def test_a_stop_in_an_evaluation_saves_and_the_next_run_evaluates_first(experiment, undisturbed, tmp_path, monkeypatch):
    def evaluator(objective, mesh, rows):
        def evaluate(params, batches):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)

        return evaluate

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluator", evaluator)
        with pytest.raises(Interrupted, match="after step 2"):
            fit(experiment, tmp_path)
    assert "validation" not in (tmp_path / "log.jsonl").read_text()
    assert same(fit(experiment, tmp_path), undisturbed[1])
    assert (tmp_path / "log.jsonl").read_bytes() == (undisturbed[0] / "log.jsonl").read_bytes()


def test_an_error_in_the_data_ends_a_run_after_a_checkpoint(experiment, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTJAX_FAULT", "batch:eio@4")
    with pytest.raises(OSError, match="BERTJAX_FAULT") as found:
        fit(experiment, tmp_path)
    assert exit_code_of(found.value) == exits.FAILED and "the checkpoint of step 3 is saved" in found.value.__notes__[0]
    monkeypatch.delenv("BERTJAX_FAULT")
    assert checkpoint.latest_step(tmp_path).name == "3"
    assert same(fit(experiment, tmp_path), undisturbed[1])


def test_gradients_are_computed_again_by_choice_without_a_difference(short, undisturbed, tmp_path, monkeypatch):
    found, check = [], train.check_repeatable

    def checking(compute, step):
        found.append(step)
        check(compute, step)

    monkeypatch.setattr(train, "check_repeatable", checking)
    run = dataclasses.replace(short.run, recompute_every=2)
    fit(dataclasses.replace(short, run=run), tmp_path)
    assert found == [2]
    log = (tmp_path / "log.jsonl").read_text().splitlines()[:4]
    assert log == (undisturbed[0] / "log.jsonl").read_text().splitlines()[:4]


def test_a_finished_run_is_unchanged_when_run_again(experiment, undisturbed):
    folder, state = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").rglob("*")}
    assert same(fit(experiment, folder), state)
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").rglob("*")}


def test_a_damaged_newest_checkpoint_and_a_renamed_one_are_passed_over_by_name(
    experiment, undisturbed, tmp_path, capsys
):
    straight, state = undisturbed
    shutil.copytree(straight, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for path in (folder / "6" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(cut(path.read_bytes()))
    shutil.copytree(folder / "2", folder / "37")
    with pytest.warns(UserWarning, match="passed over: .*37 is that of step 2"):
        assert load(tmp_path / "run").params
    assert same(fit(experiment, tmp_path / "run"), state)
    said = capsys.readouterr().err
    assert "37 is that of step 2, under another name" in said and "6 is damaged" in said and "4 instead" in said
    names = sorted(path.name for path in folder.iterdir())
    assert {"37.damaged", "6.damaged", "6"} <= set(names) and "37" not in names
    shutil.rmtree(folder)
    refused(experiment, tmp_path / "run", "is empty, but the run had saved step 6")


def test_an_amendment_takes_effect_from_its_step_is_recorded_and_resumes_exactly(
    experiment, undisturbed, tmp_path, monkeypatch
):
    straight = log_of(undisturbed[0])
    amended = dataclasses.replace(experiment, amend=(Amendment("optimizer.learning_rate.peak", "2e-2", 4),))
    whole = fit(amended, tmp_path / "whole")
    lines = log_of(tmp_path / "whole")
    (place,) = (number for number, line in enumerate(lines) if "amend" in line)
    assert lines[place] == {"step": 4, "amend": "optimizer.learning_rate.peak:2e-2@4"}
    assert lines[:place] == straight[:place] and lines[place - 1]["step"] == 3
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    np.testing.assert_allclose(rates, [0, 5e-3, *(1e-2 * np.array([2 / 3, 1, 2 / 3, 1 / 3]))], rtol=1e-6)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 3)
        fit(experiment, tmp_path / "killed")
    late = dataclasses.replace(amended, amend=(Amendment("optimizer.learning_rate.peak", "2e-2", 2),))
    refused(late, tmp_path / "killed", "step 2 is done, the newest checkpoint is that of step 2: amend from step 3 on")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 3)  # after step 5
        fit(amended, tmp_path / "killed")
    other = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, clip=0.5))
    refused(other, tmp_path / "killed", "clip is 1.0 there, 0.5 here.*amend=optimizer")
    # What is recorded stays in force without being asked for again.
    assert same(fit(experiment, tmp_path / "killed"), whole)
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_finished_run_is_made_longer_and_resumes_exactly(experiment, undisturbed, tmp_path, monkeypatch, capsys):
    """From step 7 on the schedule is that of 9 steps; later commands need not repeat it."""
    for name in ("whole", "killed"):
        shutil.copytree(undisturbed[0], tmp_path / name)
    longer = dataclasses.replace(experiment, extend=9)
    whole = fit(longer, tmp_path / "whole")
    assert int(whole.step) == 9
    rates = [line["learning_rate"] for line in log_of(tmp_path / "whole") if "learning_rate" in line]
    np.testing.assert_allclose(rates[5:], [1e-2 / 6, *(1e-2 * (1 - step / 9) for step in (6, 7, 8))], rtol=1e-5)
    assert (
        "from step 7 on its learning-rate schedule ends at step 9, no longer at 6, so the rate of this step is 3.3"
        in (capsys.readouterr().err)
    )
    log, former = (tmp_path / "whole" / "log.jsonl").read_bytes(), (undisturbed[0] / "log.jsonl").read_bytes()
    assert log.startswith(former) and json.loads(log[len(former) :].splitlines()[0]) == {
        "step": 7,
        "amend": "steps:9@7",
    }
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 2)
        fit(longer, tmp_path / "killed")
    assert same(fit(experiment, tmp_path / "killed"), whole)
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == log
    assert same(fit(longer, tmp_path / "killed"), whole)  # it has so many steps already
    refused(dataclasses.replace(experiment, extend=8), tmp_path / "whole", "all steps, and the run has 9 already.*=17")
    refused(longer, tmp_path / "new", "makes a run longer that has begun, and .*new has none")


def momentum(b1, b2, eps):
    return optax.trace(b1)


def test_the_state_of_the_optimiser_is_taken_over_on_request(short, undisturbed, tokenizer, tmp_path, capsys):
    """Moments with their count, but not the count of the schedule; parameters that are new have none."""
    parent, state = undisturbed
    asked = dataclasses.replace(short, init=f"{parent},optimizer")
    fit(asked, tmp_path / "run")
    begun = tmp_path / "run" / "checkpoints" / "0"
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.opt)
    opt = checkpoint.restore(begun, "optimizer", like, checkpoint.read_info(begun))
    assert same(opt[2], state.opt[2]) and int(opt[2].count) == 6 and not int(opt[-1].count)
    said = capsys.readouterr().err
    assert (
        "parameters after 6 updates, with their count; of the others fresh: none; the learning-rate schedule is" in said
    )

    def start(init=f"{parent},optimizer", **changed):
        return load_start(dataclasses.replace(short, init=init, **changed), tmp_path / "new", tokenizer)

    assert not start(f"{parent}").optimizer.arrays
    alone = start(objective=dataclasses.replace(short.objective, pair=False)).optimizer.arrays
    assert alone and not any("pair" in name for name in alone)
    with pytest.raises(InputError, match="that of the whole run: give"):
        start(f"{parent}:encoder,optimizer")
    with pytest.raises(InputError, match="keeps no 2/trace/"):
        start(optimizer=dataclasses.replace(short.optimizer, moments=momentum))
    checkpoint.export(tmp_path / "alone", state.params, experiment=to_json(short), tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"alone has no state of an optimiser"):
        start(f"{tmp_path / 'alone'},optimizer")


def cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [cut, lambda content: b"[]", lambda content: content.replace(b"seed", b"se\xffd")])
def test_a_damaged_description_of_the_experiment_is_taken_from_a_checkpoint_or_refused_by_name(
    experiment, undisturbed, tmp_path, damage
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    path = tmp_path / "run" / "experiment.json"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    refused(dataclasses.replace(experiment, seed=1), tmp_path / "run", "belongs to another experiment: seed is 0")
    fit(experiment, tmp_path / "run")
    assert path.read_bytes() == whole
    path.write_bytes(damage(whole))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    refused(experiment, tmp_path / "run", r"experiment.json is .*and no checkpoint has a copy of it: delete")


def test_a_damaged_log_is_mended_and_states_what_is_lost(experiment, undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    path = tmp_path / "run" / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"step": \xff\n', *lines[2:]]))
    fit(experiment, tmp_path / "run")
    mended = path.read_bytes().splitlines(keepends=True)
    assert json.loads(mended.pop(1)) == {"step": 1, "lost": "1 line after step 1 could not be read"}
    assert mended == [lines[0], *lines[2:]]
    assert "1 line after step 1" in capsys.readouterr().err and path.with_name("log.jsonl.damaged").exists()


def test_every_checkpoint_holds_the_state_of_its_step_while_training_goes_on(short, tmp_path):
    """Saving runs in the background while the update reuses the memory of what is saved."""
    run = Run(log_every=1, checkpoint_every=1, keep=STEPS, evaluate_every=0, evaluate_batches=1)
    fit(dataclasses.replace(short, run=run), tmp_path)
    for step in range(1, short.steps + 1):
        assert load(tmp_path / "checkpoints" / str(step)).params  # verifies every checksum


def test_old_checkpoints_go_and_the_asked_ones_stay(experiment, tmp_path):
    phases = (dataclasses.replace(experiment.phases[0], steps=5),)
    run = Run(checkpoint_every=1, keep=1, keep_every=3, evaluate_every=0, evaluate_batches=1)
    fit(dataclasses.replace(experiment, phases=phases, run=run), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["3", "5"]


def test_the_log_has_the_metrics_of_every_step(undisturbed):
    folder, _ = undisturbed
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation/loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in validation] == [2, 4, 6]
    rates = [0, 5e-3, *(1e-2 * (1 - np.arange(2, 6) / 6))]
    np.testing.assert_allclose([line["learning_rate"] for line in training], rates, rtol=1e-6)
    for line in training:
        np.testing.assert_allclose(line["loss"], line["loss/mlm"] + line["loss/pair"], rtol=1e-6)
    assert 0 < validation[0]["validation/unigram_entropy/mlm"] < np.log(106)
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert timing and {"tokens_per_second", "real_tokens", "step_ms", "data_wait_ms"} <= timing[-1].keys()


def test_utilisation_is_reported_against_a_named_peak(short, tmp_path):
    run = dataclasses.replace(short.run, peak_tflops=0.01)
    fit(dataclasses.replace(short, run=run), tmp_path)
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert 0 < timing[-1]["utilisation"] < 1


def test_nothing_is_read_back_from_the_device_inside_a_step(experiment, tmp_path, monkeypatch):
    """Metrics of a step are read only after the next one was dispatched; those of a phase before the next phase."""
    events = []
    flush, place = MetricLogger.flush, train.place_batch

    def flushing(self):
        events.append(("read", self._pending and self._pending[0]))
        flush(self)

    def placing(*arguments):
        events.append(("place", None))
        return place(*arguments)

    monkeypatch.setattr(MetricLogger, "flush", flushing)
    monkeypatch.setattr(train, "place_batch", placing)
    run = Run(evaluate_every=0, checkpoint_every=0, evaluate_batches=1)
    fit(dataclasses.replace(experiment, run=run), tmp_path)
    reads = [(number, step) for number, (kind, step) in enumerate(events) if kind == "read" and step]
    ends = set(accumulate(phase.steps for phase in experiment.phases))
    for number, step in reads:
        assert sum(kind == "place" for kind, _ in events[:number]) == step + (step not in ends)


def poisoned_run(monkeypatch, experiment, folder, fault, **run):
    """Run an experiment with a fault of its values; return the state, or the error that ended it."""
    run = dataclasses.replace(experiment.run, evaluate_every=0, **run)
    with monkeypatch.context() as patch:
        patch.setenv("BERTJAX_FAULT", fault)
        try:
            return fit(dataclasses.replace(experiment, run=run), folder)
        except Diverged as error:
            return error


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_one_bad_batch_is_skipped_logged_and_not_in_the_way_of_exact_resume(short, tmp_path, monkeypatch, capsys):
    four = dataclasses.replace(short, phases=(dataclasses.replace(short.phases[0], steps=4),))
    bad = "gradient:inf@2"
    whole = poisoned_run(monkeypatch, four, tmp_path / "whole", bad, checkpoint_every=2)
    assert (int(whole.step), int(whole.skips.total), int(whole.skips.in_a_row)) == (4, 1, 0)
    assert "step 2: loss 5." in (said := capsys.readouterr().err) and "skipped, 1 in a row, 1 in all" in said
    skipped = [line for line in log_of(tmp_path / "whole") if "skipped" in line]
    assert [(line["step"], line["skipped"], line["norm/gradient"]) for line in skipped] == [(2, 1, None)]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 3)
        poisoned_run(patch, four, tmp_path / "killed", bad, checkpoint_every=2)
    # The save that was due after the bad step waited for the next update.
    assert checkpoint.latest_step(tmp_path / "killed").name == "3"
    again = poisoned_run(monkeypatch, four, tmp_path / "killed", bad, checkpoint_every=2)
    assert same(again, whole)
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


@pytest.mark.parametrize("fault", ["loss:nan@2-", "loss:scale=1e25@2-"])
def test_several_in_a_row_end_the_run_and_no_state_without_a_loss_of_use_is_the_newest(
    short, tmp_path, monkeypatch, fault
):
    four = dataclasses.replace(short, phases=(dataclasses.replace(short.phases[0], steps=4),))
    error = poisoned_run(monkeypatch, four, tmp_path, fault, checkpoint_every=1, tolerance=2)
    assert isinstance(error, FloatingPointError)
    assert re.search(r"diverged at step 3: .*2 in a row.*lower learning rate.*bertjax inspect-batch", str(error))
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1.diverged"]
    why, batch = read_bad_batch(tmp_path / "diverged")
    assert why["step"] == 3 and len(batch["tokens"]) == 16
    info = checkpoint.read_info(tmp_path / "diverged" / "state")
    assert info["step"] >= 3 and info["skips"]["in_a_row"] >= 2
    if "nan" in fault:
        found = inspect_batch(tmp_path)
        assert found["step"] == 3 and abs(found["loss"] - np.log(106)) < 2 and np.isfinite(found["norm_gradient"])
        rows = found["worst_rows"]
        assert len(rows) == 5 and rows[0]["loss"] >= rows[1]["loss"] and "[CLS]" in rows[0]["text"]
        assert not found["gradients_not_finite"] and not found["rows_not_finite"]


def test_a_diverged_run_stops_and_keeps_its_checkpoints(short, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Diverging:
        objective: MaskedLM

        def init(self, rng, batch):
            return self.objective.init(rng, batch) | {"clock": jnp.zeros(())}

        def loss(self, params, batch, rng, *, train):
            loss, metrics = self.objective.loss(params, batch, rng, train=train)
            bad = jnp.where(params["clock"] < -0.004, jnp.nan, 1.0)
            metrics["loss/clock"] = Mean(params["clock"] * bad, jnp.float32(1))
            return loss + params["clock"] * bad, metrics

    run = Run(log_every=1, evaluate_every=0, checkpoint_every=1)
    broken = dataclasses.replace(short, objective=Diverging(short.objective), run=run)
    with pytest.raises(FloatingPointError, match=r"at step \d.*lower learning rate"):
        fit(broken, tmp_path)
    assert int(checkpoint.latest_step(tmp_path).name) == 1
    assert [(line["step"], line["loss"] is None) for line in log_of(tmp_path)] == [(1, False), (2, False), (3, True)]


@pytest.mark.parametrize("rows", [FullSentences, DocumentSentences, PackedDocuments])
def test_rows_of_every_kind_train(experiment, corpus, tmp_path, rows):
    objective = dataclasses.replace(experiment.objective, pair=False)
    phases = (Phase(2, 8, rows(corpus, 32)),)
    fit(dataclasses.replace(experiment, objective=objective, phases=phases), tmp_path)


def test_a_corpus_without_a_validation_split_trains_without_evaluation(experiment, tokenizer, tmp_path, capsys):
    folder = tmp_path / "corpus"
    build(make_documents(40), tokenizer, folder, BuildSettings(split_sentences, holdout=0.0))
    phases = (Phase(2, 8, NextSentencePairs(str(folder), 16)),)
    fit(dataclasses.replace(experiment, phases=phases), tmp_path / "run")
    assert "has no validation split (of a corpus: --holdout 0): skipping evaluation" in capsys.readouterr().err


def test_a_single_document_held_out_gives_no_pairs_and_no_evaluation(experiment, tokenizer, tmp_path, capsys):
    for seed in range(50):
        folder = tmp_path / f"corpus{seed}"
        manifest = build(make_documents(20), tokenizer, folder, BuildSettings(split_sentences, holdout=0.05, seed=seed))
        if sum(shard.documents for shard in manifest.splits.get("validation", ())) == 1:
            break
    phases = (Phase(2, 8, NextSentencePairs(str(folder), 16)),)
    fit(dataclasses.replace(experiment, phases=phases), tmp_path / "run")
    assert "skipping evaluation: next-sentence pairs need at least two documents" in capsys.readouterr().err


def refused(experiment, folder, message):
    with pytest.raises(InputError, match=message):
        fit(experiment, folder)


def test_a_work_folder_of_another_experiment_is_refused_and_left_alone(experiment, undisturbed):
    folder, _ = undisturbed
    before = (folder / "experiment.json").read_bytes()
    other = dataclasses.replace(experiment, seed=1)
    refused(other, folder, r"another experiment: seed is 0 there, 1 here\. Choose another --workdir")
    assert (folder / "experiment.json").read_bytes() == before
    logged = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, log_every=7))
    fit(logged, folder)


def test_a_second_run_in_the_same_folder_is_refused(short, tmp_path):
    with lock_workdir(tmp_path):
        refused(short, tmp_path, rf"another run is going on in .* \(process {os.getpid()} on")
    with lock_workdir(tmp_path):  # let go of
        pass


def test_a_folder_that_cannot_be_written_is_refused(experiment, tmp_path):
    (tmp_path / "file").write_text("")
    refused(experiment, tmp_path / "file" / "run", "cannot write to the work folder")


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(experiment, tmp_path):
    phases = (dataclasses.replace(experiment.phases[0], batch_size=12),)
    refused(dataclasses.replace(experiment, phases=phases), tmp_path, "12 rows does not divide over 8 devices")


def test_rows_longer_than_the_position_table_are_refused(experiment, corpus, tmp_path):
    phases = (Phase(2, 8, NextSentencePairs(corpus, 128)),)
    refused(dataclasses.replace(experiment, phases=phases), tmp_path, "length 128 exceed the 64 positions")


def test_a_pair_term_without_pairs_is_refused(experiment, corpus, tmp_path):
    phases = (Phase(2, 8, FullSentences(corpus, 32)),)
    refused(dataclasses.replace(experiment, phases=phases), tmp_path, "use rows of pairs, or pair=false")


def test_a_model_with_a_smaller_vocabulary_than_the_corpus_is_refused(experiment, tmp_path):
    encoder = dataclasses.replace(experiment.objective.encoder, V=50)
    masking = dataclasses.replace(experiment.objective.masking, random_ids=(0, 50))
    objective = dataclasses.replace(experiment.objective, encoder=encoder, masking=masking)
    refused(dataclasses.replace(experiment, objective=objective), tmp_path, "only V=50")


def test_corpora_of_different_tokenizers_are_refused(experiment, tmp_path):
    files = wordpiece_files()
    other = tokenizer_from_files({"vocab.txt": files["vocab.txt"] + b"\nmore"}, origin="another")
    build(make_documents(40), other, tmp_path / "corpus", BuildSettings(split_sentences))
    phases = (experiment.phases[0], Phase(2, 8, NextSentencePairs(str(tmp_path / "corpus"), 16)))
    refused(dataclasses.replace(experiment, phases=phases), tmp_path / "run", "built with another tokenizer")


def test_labelled_rows_and_rows_of_a_corpus_do_not_mix(experiment, tmp_path):
    labelled = TaskRows(find_task("sst2"), "data", "tokenizer", BERT, 16)
    phases = (experiment.phases[0], Phase(2, 8, labelled))
    refused(dataclasses.replace(experiment, phases=phases), tmp_path, "one run has labelled and unlabelled rows")


def test_resuming_with_another_corpus_is_refused(experiment, tokenizer, tmp_path, monkeypatch):
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders):
        build(make_documents(60, seed=number), tokenizer, folder, BuildSettings(split_sentences, holdout=0.1))
    runs = [
        dataclasses.replace(experiment, phases=(Phase(4, 8, NextSentencePairs(str(folder), 16)),)) for folder in folders
    ]
    with monkeypatch.context() as patch:
        die_after(patch, 3)
        with pytest.raises(Killed):
            fit(runs[0], tmp_path / "run")
    refused(runs[1], tmp_path / "run", "trained on another corpus")
    folders[0].rename(tmp_path / "moved")
    moved = dataclasses.replace(runs[0], phases=(Phase(4, 8, NextSentencePairs(str(tmp_path / "moved"), 16)),))
    assert int(fit(moved, tmp_path / "run").step) == 4


def test_a_writer_that_the_coordinator_lacks_is_an_error_on_all_processes(short, tmp_path, monkeypatch):
    raised = []

    @contextmanager
    def raising(raising_on_all=train.raising_on_all):
        try:
            with raising_on_all():
                yield
        except InputError as error:
            raised.append(str(error))
            raise

    monkeypatch.setattr(train, "raising_on_all", raising)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(InputError, match="needs the extra"):
        fit(dataclasses.replace(short, run=Run(tensorboard=True)), tmp_path / "run")
    assert len(raised) == 1


def test_training_works_outside_the_main_thread(short, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(fit(short, tmp_path)))
    thread.start()
    thread.join()
    assert int(found[0].step) == short.steps


def test_the_trainer_imports_no_model_and_no_objective():
    source = Path(train.__file__).read_text()
    assert "bertjax.models" not in source and "bertjax.objectives" not in source

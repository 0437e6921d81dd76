"""A trace of this CPU, and traces made by hand: what is added up, and what is not counted twice."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from bertjax.run.profiler import Operation, Profile, _lines, _own_times, read_trace, summarise
from bertjax.run.writers import Progress


def event(name, start, duration, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=list(stats.items()))


def plane(name, **lines):
    each = [SimpleNamespace(name=line.replace("_", " "), events=events) for line, events in lines.items()]
    return SimpleNamespace(name=name, lines=each)


def test_steps_are_traced_and_summarised(tmp_path, capsys):
    product = jax.jit(lambda x: jnp.tanh(x @ x).sum())
    x = jnp.ones((128, 128))
    jax.block_until_ready(product(x))
    profile = Profile(tmp_path, (2, 3), Progress())
    done, result = [], None
    for step in (1, 2, 3, 4):
        profile.before(step, result)
        result = product(x)
        done.append(profile.after(step, result))
    profile.close()
    assert done == [False, False, True, False]
    operations = read_trace(tmp_path / "profile")
    assert operations and all(operation.runs % 2 == 0 and operation.seconds > 0 for operation in operations)
    text = (tmp_path / "profile" / "summary.txt").read_text()
    assert operations[0].name in text
    assert "profile of steps 2 to 3" in capsys.readouterr().err


def test_nothing_is_traced_unless_asked_for(tmp_path):
    profile = Profile(tmp_path, (), Progress())
    profile.before(1, None)
    assert not profile.after(1, None)
    profile.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path)


def test_a_run_that_ends_early_leaves_no_trace_running(tmp_path):
    profile = Profile(tmp_path, (1, 5), Progress())
    profile.before(1, None)
    profile.close()
    jax.profiler.start_trace(str(tmp_path / "other"))  # raises where one is running
    jax.profiler.stop_trace()


@pytest.mark.parametrize("function", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys, function):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    monkeypatch.setattr(jax.profiler, function, full)
    profile = Profile(tmp_path, (2, 3), Progress())
    for step in (1, 2, 3, 4):
        profile.before(step, ())
        profile.after(step, ())
    profile.close()
    assert capsys.readouterr().err.count("no profile, training goes on: OSError") == 1


def test_nested_operations_are_not_counted_twice():
    line = SimpleNamespace(
        name="XLA Ops",
        events=[
            event("%while.1 = (f32[]) while(...)", 0, 100),
            event("%fusion.2 = f32[8] fusion(...)", 10, 30, tf_op="jit(step)/dot_general"),
            event("%fusion.2 = f32[8] fusion(...)", 50, 30, tf_op="jit(step)/dot_general"),
            event("%copy.3 = f32[8] copy(...)", 100, 5),
        ],
    )
    own = sorted(_own_times(line))
    assert own == [
        ("copy.3", "", 5),
        ("fusion.2", "jit(step)/dot_general", 30),
        ("fusion.2", "jit(step)/dot_general", 30),
        ("while.1", "", 40),
    ]


def test_of_a_tpu_the_line_of_operations_counts_and_the_host_does_not():
    chip = plane("/device:TPU:0", Steps=[event("1", 0, 9)], XLA_Modules=[event("m", 0, 9)], XLA_Ops=[event("a", 0, 9)])
    host = plane("/host:CPU", threads=[event("h", 0, 9, hlo_op="h")])
    assert [line.name for line in _lines(SimpleNamespace(planes=[host, chip]))] == ["XLA Ops"]
    assert [line.name for line in _lines(SimpleNamespace(planes=[host]))] == ["threads"]
    ignored = SimpleNamespace(name="threads", events=[event("wait", 0, 9), event("dot.1", 0, 9, hlo_op="dot.1")])
    assert [name for name, *_ in _own_times(ignored)] == ["dot.1"]


def test_the_summary_adds_up_kinds_and_divides_by_steps():
    operations = [Operation("dot.1", "", 0.3, 4), Operation("dot.2", "here", 0.1, 4), Operation("add", "", 0.1, 2)]
    text = summarise(operations, steps=2)
    assert "250.000 ms of device time a step" in text
    assert " 200.000   80.0%         4  dot\n" in text and "  50.000   20.0%         2  dot.2  here\n" in text
    assert summarise([], steps=2) == "the trace holds no operation of a device\n"

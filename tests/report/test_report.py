"""Runs beside each other: their logs as arrays, and a page that nothing of them can act in."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import bertjax
from bertjax.commands.main import main
from bertjax.config import load_experiment
from bertjax.errors import InputError
from bertjax.flops import model_flops, row_shapes
from bertjax.report import read
from bertjax.report.arrays import differences
from bertjax.report.chart import MOST_POINTS, Curve, chart
from bertjax.report.page import page, summary
from bertjax.serialization.description import dump

OVERRIDES = ["size=tiny", "steps=20", "long=0.5", "warmup=2", "batch_size=8"]


def written(folder, log, *overrides, timing=()):
    """Write a work directory as a run leaves it."""
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(dump(load_experiment("bert", [*OVERRIDES, *overrides])))
    for name, lines in (("log.jsonl", log), ("timing.jsonl", timing)):
        (folder / name).write_text(
            "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        )
    return folder


LOG = [
    {"step": 5, "loss": 9.5, "accuracy/mlm": 0.25},
    {"step": 10, "loss": 8.0},
    {"step": 10, "validation/loss": 8.5},
    {"step": 12, "loss": None, "norm/gradient": 1.0, "skipped": 1, "skipped_in_a_row": 1},
    {"step": 15, "amend": "steps:30@15"},
    {"step": 15, "loss": 7.0, "text": "no number", "huge": float("inf")},
    {"step": 25, "validation/loss": 7.5},
]
TIMING = [{"step": step, "step_ms": 20.0, "tokens_per_second": 100.0} for step in (5, 10, 10, 15)]


@pytest.fixture
def runs(tmp_path):
    return [written(tmp_path / "a", LOG, timing=TIMING), written(tmp_path / "b", LOG[:2], "optimizer.b2=0.98")]


def test_logs_are_arrays_by_steps_tokens_and_flops(runs):
    run, other = bertjax.report.read(runs)
    assert (run.name, other.name, run.steps) == ("a", "b", 25)
    np.testing.assert_array_equal(run.train["step"], [5, 10, 15])
    np.testing.assert_array_equal(run.train["loss"], [9.5, 8.0, 7.0])
    np.testing.assert_array_equal(run.train["accuracy/mlm"], [0.25, np.nan, np.nan])
    np.testing.assert_array_equal(run.validation["loss"], [8.5, 7.5])
    # Ten steps of 8 rows of 128, then rows of 512, also beyond the twenty that the run had at first.
    np.testing.assert_array_equal(run.train["tokens"], [5 * 1024, 10 * 1024, 10 * 1024 + 5 * 4096])
    assert run.validation["tokens"][-1] == 10 * 1024 + 15 * 4096
    experiment = load_experiment("bert", OVERRIDES)
    one = model_flops(experiment.objective, row_shapes(experiment.phases[0].rows, 8))
    np.testing.assert_allclose(run.train["flops"][:2], [5 * one, 10 * one])
    assert run.events == ((12, "skipped, its loss was None"), (15, "amended: steps:30@15"))
    assert list(run.timing["step"]) == [5, 10, 15] and not run.notes and "huge" not in run.train
    assert differences([run, other]) == {"optimizer.b2": ["0.999", "0.98"]}
    told = summary(run)
    assert (told["held-out loss"], told["lowest held-out loss"], told["at step"], told["tokens/s"]) == (
        "7.5000", "7.5000", "25", "100"
    )  # fmt: skip


def test_a_run_that_goes_on_or_was_damaged_is_read_as_far_as_it_can_be(tmp_path):
    folder = written(tmp_path / "a", [LOG[0], "{broken}\n", "[1]\n", '{"step": -1}\n', LOG[1], '{"step": 11, "lo'])
    (run,) = read([folder])
    assert list(run.train["step"]) == [5, 10] and run.notes == ("log.jsonl: 3 lines could not be read",)
    described = json.loads((folder / "experiment.json").read_text())
    for wrong in (
        {"batch_size": -3},
        {"batch_size": 2**60},
        {"rows": {"type": "bertjax.data.rows.None"}},
        {"steps": -5},
    ):
        changed = described | {"phases": [described["phases"][0] | wrong]}
        (folder / "experiment.json").write_text(json.dumps(changed))
        assert page(read([folder]))
    changed = described | {"objective": described["objective"] | {"type": "experiment_mine.Mine"}}
    (folder / "experiment.json").write_text(json.dumps(changed))
    assert "'experiment_mine.Mine' (objective) is not of bertjax" in read([folder])[0].notes[-1]
    (folder / "experiment.json").write_text("{")
    (run,) = read([folder])
    assert np.isnan(run.train["tokens"]).all() and any("is damaged" in note for note in run.notes)
    (folder / "experiment.json").unlink()
    assert "no experiment.json" in str(read([folder])[0].notes)
    with pytest.raises(InputError, match=r"nowhere is no work directory of a run: there is no such folder"):
        read([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"it has no log.jsonl"):
        read([tmp_path])
    assert [each.folder for run in (folder, str(folder)) for each in read(run)] == [str(folder)] * 2  # one run
    with pytest.raises(InputError, match="there are no runs to read"):
        read([])


def test_the_seeds_of_a_fine_tuning_are_runs_and_names_tell_runs_apart(tmp_path):
    for run in ("one", "two"):
        for seed in (10, 2):
            written(tmp_path / run / f"seed-{seed}", [{"step": 3, "validation/accuracy": 0.5}])
    names = [run.name for run in read([tmp_path / "one", tmp_path / "two" / "seed-2"])]
    assert names == ["one/seed-2", "one/seed-10", "two/seed-2"]
    assert "held-out: accuracy" in page(read([tmp_path / "one"]))


class Page(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_in_which_nothing_of_a_run_acts(tmp_path, capsys):
    evil = '"><script>alert(1)</script><img src=http://x onerror=alert(2)>\x1b[31m'
    log = [{"step": step, "loss": 3.0 / step, evil: 1.0, f"validation/{evil}": 2.0} for step in (1, 2, 3)]
    folder = written(tmp_path / "<b onclick=x>'\"", [*log, {"step": 3, "lost": evil}])
    described = json.loads((folder / "experiment.json").read_text())
    described["init"] = evil
    (folder / "experiment.json").write_text(json.dumps(described))
    out = tmp_path / "report.html"
    assert main(["report", str(folder), str(written(tmp_path / "b", LOG)), "--out", str(out)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    found = Page(out.read_text())
    assert not {"script", "img", "b onclick", "iframe", "link", "a"} & set(found.tags) and not found.open
    assert not [name for name, value in found.attributes if name.startswith("on") or name in ("src", "href", "id=by")]
    assert "http" not in re.sub(r'http-equiv="|http://x', "", out.read_text()) and found.tags.count("polyline") > 3


def test_the_command_tells_the_same_as_text_and_json(runs, tmp_path, capsys):
    assert main(["report", *map(str, runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["a"]["steps"] == 25 and told["a"]["held-out loss"] == 7.5 and told["b"]["held-out loss"] is None
    assert main(["report", str(runs[0])]) == 0
    assert "lowest held-out loss" in capsys.readouterr().out
    assert main(["report", str(runs[0]), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_curve_keeps_its_shape_with_few_points_and_round_ticks():
    x = np.arange(100_000.0)
    drawn = chart([Curve(0, "a & b", x, 1 + x / 1e5)], "steps", "y<")
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert len(points.split()) == MOST_POINTS and "a &amp; b" in drawn and "y&lt;" in drawn
    assert re.findall(r'text-anchor="end">([^<]*)<', drawn) == ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0"]
    assert "20k" in drawn and "100k" in drawn
    assert "circle" in chart([Curve(0, "one", np.array([3.0]), np.array([5.0]))], "steps", "y")
    assert chart([Curve(0, "none", x[:2], np.array([np.nan, np.inf]))], "steps", "y") == ""
    rates = chart([Curve(0, "a", x[:3], np.array([1e-5, 5e-5, 9e-5]))], "steps", "y")
    assert ">2e-05<" in rates and ">8e-05<" in rates

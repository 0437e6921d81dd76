from types import SimpleNamespace
from xml.etree import ElementTree

import jax
import pytest

from bertjax.commands.main import main
from bertjax.config import load_experiment
from bertjax.machine.topology import parse_slice
from bertjax.plan import step
from bertjax.plan.explained import pictured
from bertjax.plan.picture import memory_picture
from bertjax.plan.step import _largest, _refusal, plan, plan_on, search, with_remat

# google-research/bert README.md and checkpoints; fairseq and albert likewise: parameters with pre-training heads
PUBLISHED = [
    ("bert", "size=tiny", 4_433_468),
    ("bert", "size=mini", 11_267_900),
    ("bert", "size=small", 29_058_876),
    ("bert", "size=medium", 41_668_412),
    ("bert", "size=base", 110_106_428),
    ("bert", "size=large", 336_226_108),
    ("bert", "cased=true", 108_932_934),
    ("roberta", "size=base", 124_696_665),
    ("roberta", "size=large", 355_411_033),
    ("albert", "size=base", 11_813_810),
    ("albert", "size=large", 17_847_474),
    ("albert", "size=xlarge", 59_021_490),
    ("albert", "size=xxlarge", 223_158_450),
]


@pytest.mark.parametrize(("family", "override", "count"), PUBLISHED)
def test_parameters_are_as_many_as_published(family, override, count):
    planned = plan(load_experiment(f"experiments/{family}.py", [override]))
    assert planned["params"] == sum(planned["params_by_group"].values()) == count


def test_a_head_with_a_table_of_its_own_has_that_many_parameters_more_and_does_the_same_work():
    tied = plan(load_experiment("experiments/bert.py", ["size=tiny"]))
    untied = plan(load_experiment("experiments/bert.py", ["size=tiny", "objective.encoder.tied_head=false"]))
    assert untied["params_by_group"]["head/mlm"] - tied["params_by_group"]["head/mlm"] == 30522 * 128
    assert untied["flops_per_token"] == tied["flops_per_token"]


def test_the_tokens_and_steps_are_those_of_the_published_run():
    short, long = plan(load_experiment("experiments/bert.py"))["phases"]
    assert (short["steps"], short["batch_size"], short["length"]) == (900_000, 256, 128)
    assert (long["steps"], long["batch_size"], long["length"]) == (100_000, 256, 512)
    assert long["tokens"] == 100_000 * 256 * 512
    assert long["flops_per_token"] > short["flops_per_token"]


# What XLA:TPU says (libtpu 0.0.42) of a step that does not fit: before it schedules, and after.
REFUSALS = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds "
    "available HBM (15.75G).": (20.5, 15.75),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 28.25G of 15.75G "
    "hbm. Exceeded hbm capacity by 12.50G.": (28.25 - 4, 15.75),
    "RESOURCE_EXHAUSTED: out of HBM, in other words": (None, None),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_sizes_are_parsed_from_the_compilers_refusal(message):
    GiB = 2.0**30
    expected = tuple(None if size is None else size * GiB for size in REFUSALS[message])
    assert _refusal(message, held=4 * GiB) == expected


LINES = [(5, 0.3, 1, 35), (5, 1.4, 1, 7), (2, 3, 4, 4), (0, 0.01, 2, 1574)]


@pytest.mark.parametrize(("fixed", "per_row", "unit", "most"), LINES)
def test_the_largest_batch_is_found_in_few_compilations(fixed, per_row, unit, most):
    tried = []

    def attempt(rows):
        tried.append(rows)
        peak = (fixed + per_row * rows) * 2**30
        fits = peak <= 15.75 * 2**30
        # A program that fits is known exactly; the table's capacity is a little more than there is.
        memory = {"peak": peak if fits else 1.2 * peak, "capacity": 2**30 * (16 if fits else 15.75)}
        return {"rows": rows, "fits": fits, "bytes_per_device": memory}

    assert most * 0.98 <= _largest(attempt, unit)["rows"] <= most
    assert len(tried) <= 6 and all(rows % unit == 0 for rows in tried)


def test_search_finds_no_batch_where_none_fits():
    refused = {"fits": False, "bytes_per_device": {"peak": None, "capacity": 1}}
    assert _largest(lambda rows: refused, 2) is None


def test_the_remat_policy_is_set_in_all_encoders_of_an_objective():
    objective = load_experiment("experiments/electra.py").objective
    changed = with_remat(objective, "dots")
    assert (changed.generator.remat, changed.discriminator.remat) == ("dots", "dots")
    assert with_remat(changed, "none") == objective != changed


def test_the_picture_shows_each_part_of_memory_to_scale():
    memory = {"params": 2**30, "optimizer": 2**31, "batch": 0, "activations": 2**30, "peak": 2**32, "capacity": 2**33}
    unknown = memory | {"activations": None, "peak": None}
    root = ElementTree.fromstring(memory_picture([("a < b", memory), ("c", unknown)], "memory"))
    bars = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("height") == "22"]
    widths = [float(rect.get("width")) for rect in bars]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2) and widths[3] == widths[0] and widths[7] == 0
    (line,) = root.iter("{http://www.w3.org/2000/svg}line")
    assert float(line.get("x1")) - float(bars[0].get("x")) == pytest.approx(8 * widths[0], abs=0.5)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "4.00 GiB", "8.00 GiB", "unknown", "optimizer"} <= set(texts)
    (size,) = (text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.text == "4.00 GiB")
    assert float(size.get("x")) == pytest.approx(float(bars[3].get("x")) + widths[3] + 6, abs=0.2)  # beside its bar


def test_a_picture_and_the_progress_of_a_search_name_the_rows_of_a_device(monkeypatch):
    """Each compilation is announced, and its outcome told; before the first, how long the last ones took."""
    experiment, on = load_experiment("experiments/bert.py", ["size=tiny", "long=0"]), parse_slice("v5e:2x2")

    def compiled(changed, phase, on, flops_per_token):
        rows = phase.batch_size // 4
        memory = {"params": 1, "optimizer": 1, "batch": 1, "activations": rows * 2**26}
        memory |= {"peak": rows * 2**26, "capacity": 2**30}
        return {"rows_per_device": rows, "fits": rows <= 16, "refused": "", "bytes_per_device": memory,
                "compile_seconds": 1.0, "estimated_tokens_per_second": rows}  # fmt: skip

    monkeypatch.setattr(step, "compiled_phase", compiled)
    monkeypatch.setattr(step, "usual", lambda kind, what: f"usually 9 s ({kind})")
    said = []
    found = search(experiment, on, said.append)
    assert said[0] == "searching 3 remat policies with about 4 programs each for v5e:2x2: usually 9 s (plan for v5e)"
    assert said[1:3] == ["remat=none: compiling 8 rows of 128 a device", "remat=none: fits, 0.50 GiB, compiled in 1 s"]
    assert sum("at most 16 rows a device" in text for text in said) == 3 and "2 policies left, about 0 s" in str(said)
    assert "remat=none, 16 rows a device" in pictured(found, on)


def test_a_picture_or_a_search_needs_a_slice_and_a_folder(capsys, tmp_path):
    assert main(["plan", "experiments/bert.py", "--search"]) == 2
    assert "--topology" in capsys.readouterr().err
    missing = tmp_path / "missing" / "memory.svg"
    assert main(["plan", "experiments/bert.py", "--topology", "v3-8", "--picture", str(missing)]) == 2
    assert "create it first" in capsys.readouterr().err


def test_a_compiled_step_whose_state_exceeds_memory_does_not_fit(monkeypatch):
    """It looks at what lives within a step; what is held between steps comes on top."""

    class Executable:
        def memory_analysis(self):
            GiB = 2**30
            return SimpleNamespace(
                peak_memory_in_bytes=16 * GiB, generated_code_size_in_bytes=0, argument_size_in_bytes=4 * GiB
            )

        def as_text(self):
            product = "dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
            lines = ("%p = f32[8,8]{1,0} parameter(0)", f"ROOT %d = f32[8,8]{{1,0}} {product}")
            return "HloModule m\n\nENTRY %main (p: f32[8,8]) -> f32[8,8] {\n  " + "\n  ".join(lines) + "\n}\n"

    lowered = SimpleNamespace(compile=lambda compiler_options: Executable())
    step = SimpleNamespace(lower=lambda state, batch, key: lowered)
    monkeypatch.setattr("bertjax.plan.step.slice_devices", lambda on, slices: jax.devices()[:4])
    monkeypatch.setattr("bertjax.plan.step.sharded_step", lambda experiment, phase, mesh: step)
    experiment = load_experiment("experiments/bert.py", ["size=tiny", "long=0"])
    planned = plan_on(experiment, parse_slice("v5e:2x2"))
    assert not planned["fits"] and "16.00 GiB are needed, 15.75 are there" in planned["phases"][0]["refused"]
    assert plan_on(experiment, parse_slice("v4-8"))["fits"]

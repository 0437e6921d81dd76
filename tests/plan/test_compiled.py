"""The real compiler for TPUs, on a CPU: programs of known counts, and the gates of the training step.

It is the package libtpu, extra `plan`; without it these are skipped. Sizes are as small as the gates allow: a step of
two layers, 16 rows and 4,098 words compiles in half the time of one of 64 rows and 30,522 words. 4,098 does not divide
over four devices, as 30,522 does not.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("libtpu", reason="needs the compiler for TPUs: pip install '.[plan]'")

from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bertjax.commands.main import main
from bertjax.config import load_experiment
from bertjax.flops import batch_shapes, model_flops
from bertjax.machine.topology import parse_slice, slice_devices
from bertjax.plan.costs import collectives, lookups, products
from bertjax.plan.hlo import Program, cycles
from bertjax.plan.roofline import moved_by_kind
from bertjax.plan.step import compile_step
from bertjax.run.state import State
from bertjax.sharding.mesh import MeshShape

pytestmark = pytest.mark.slow

WORDS, ROWS, WIDTH = 4098, 16, 256


@pytest.fixture(autouse=True, scope="module")
def nothing_is_cached():
    """Write no compiled program to the persistent cache: a compiler without devices cannot read it."""
    shortest = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)


def small(words):
    vocabulary = [f"objective.encoder.V={words}", f"objective.masking.random_ids=0,{words}"]
    return ["size=mini", "objective.encoder.N=2", "long=0", f"batch_size={ROWS}", "dtype=bfloat16", *vocabulary]


SMALL = small(WORDS)


@pytest.mark.parametrize("name", ["v6e:4x4", "v4:4x4x4", "v3:4x4", "v5e:4x4"])
def test_every_split_of_a_slice_is_a_mesh(name):
    """Also where no axis of the mesh is whole axes of the chips."""
    devices = slice_devices(parse_slice(name))
    for fsdp, tensor in ((8, 2), (2, 2), (2, 8), (len(devices), 1), (1, 4)):
        mesh = MeshShape(fsdp=fsdp, tensor=tensor).mesh(len(devices), devices)
        assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
    two = MeshShape(slices=2, fsdp=8, tensor=2).mesh(32, slice_devices(parse_slice("v5e:4x4"), 2))
    assert two.shape["data"] == 1 and len({device.slice_index for device in two.devices[0].flat}) == 1


def test_a_program_of_known_counts():
    """Five rounds of x @ w, rows over four devices, then the sum of all of them."""
    mesh = jax.make_mesh((4,), ("data",), devices=slice_devices(parse_slice("v5e:2x2")), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))

    def run(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)
        return x.T @ x

    x = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=everywhere)
    text = jax.jit(run, out_shardings=everywhere).lower(x, w).compile().as_text()
    program = Program(text)
    assert sum(one.flops * one.times for one in products(program)) == 6 * 2 * 128 * 256 * 256
    (one,) = collectives(program)
    assert (one.kind, one.bytes, one.group, one.times) == ("all-reduce", 2 * 256 * 256, (0, 1, 2, 3), 1)
    (loop,) = (step for step in program.schedule if step.op.opcode == "while")
    assert program.rounds(loop.op) == 5 and not program.unknown_loops
    inside = sum(cycles(step.op) for step in program.schedule if step.times == 5)
    outside = sum(cycles(step.op) for step in program.schedule if step.times == 1)
    assert inside > 0 and sum(cycles(step.op) * step.times for step in program.schedule) == outside + 5 * inside


@pytest.fixture(scope="module", params=["v5e:2x2", "v3:2x2"])
def step(request):
    """Compile a small BERT's step, over all devices by rows: (experiment, slice, compiled, program)."""
    on, experiment = parse_slice(request.param), load_experiment("experiments/bert.py", SMALL)
    compiled = compile_step(experiment, experiment.phases[0], on)
    return experiment, on, compiled, Program(compiled.text)


def test_the_step_fits_and_its_memory_adds_up(step):
    experiment, _, compiled, _ = step
    memory = compiled.memory
    shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0), batch_shapes(ROWS, 128, ("types", "pair")))
    params = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert memory["params"] == params and params < memory["activations"] + memory["peak"] / 2
    assert memory["optimizer"] == 2 * params + 8  # two moments, two counters
    parts = sum(memory[name] for name in ("params", "optimizer", "batch", "activations"))
    assert memory["peak"] == pytest.approx(parts, rel=0.01) and memory["peak"] < memory["capacity"]


def test_without_recomputation_the_step_does_no_more_than_the_model_asks_for(step):
    experiment, on, _, program = step
    phase = experiment.phases[0]
    model = model_flops(experiment.objective, batch_shapes(phase.batch_size, phase.rows.length, phase.rows.features))
    assert 1 <= sum(one.flops * one.times for one in products(program)) * on.devices / model <= 1.10


def test_over_rows_alone_only_gradients_are_summed(step):
    """And the numbers of the metrics, and of whether every row has its masks: less than a kilobyte."""
    _, on, compiled, program = step
    found = collectives(program)
    assert {one.kind for one in found} == {"all-reduce"}
    assert all(len(one.group) == on.devices for one in found)
    moved, table = sum(one.bytes * one.times for one in found), 4 * WORDS * WIDTH
    # Every gradient once, in bfloat16 or float32; the word table's as it is looked up and as it is a decoder.
    assert compiled.memory["params"] / 2 <= moved <= compiled.memory["params"] + table + 1024


def test_nothing_is_looked_up_for_each_pair_of_positions(step):
    experiment, on, _, program = step
    phase = experiment.phases[0]
    tokens = phase.batch_size * phase.rows.length // on.devices
    assert 0 < max(one.slices * one.times for one in lookups(program)) <= tokens


def test_no_product_of_two_float32_matrices_where_bfloat16_was_asked_for(step):
    *_, program = step
    kinds = {one.dtypes for one in products(program)}
    assert ("bf16", "bf16") in kinds and ("f32", "f32") not in kinds


def test_the_new_state_takes_the_place_of_the_old_one(step):
    experiment, _, _, program = step
    phase = experiment.phases[0]
    shapes = batch_shapes(phase.batch_size, phase.rows.length, phase.rows.features)
    params = jax.eval_shape(experiment.objective.init, jax.random.key(0), shapes)
    state = State(np.int32(0), params, jax.eval_shape(experiment.optimizer.transform().init, params))
    assert program.aliased == len(jax.tree.leaves(state))


def test_split_storage_moves_parameters_and_no_activations():
    """Gathers and scatters; a scatter may be written as turns around a ring beside the product that it follows."""
    experiment = load_experiment("experiments/bert.py", [*SMALL, "mesh=fsdp:4"])
    compiled = compile_step(experiment, experiment.phases[0], parse_slice("v5e:2x2"))
    moved = {kind: one["bytes"] for kind, one in moved_by_kind(Program(compiled.text)).items()}
    scatters = {"reduce-scatter", "collective-permute", "all-to-all"}
    assert {"all-gather", "all-to-all"} <= set(moved) <= {"all-gather", "all-reduce", *scatters}
    params = 9_688_380 - (30522 - WORDS) * (WIDTH + 1)  # BERT-mini of two layers, a row and a bias for each word
    table, positions, tiny = WORDS * WIDTH, 512 * WIDTH, 2**16
    assert compiled.memory["params"] < 4 * params / 3.9
    # Once in bfloat16, the word table for each of its two uses; with remat what is in layers twice.
    assert 0.95 * 2 * (params + table) < moved["all-gather"] <= 2 * (params + table)
    # Each gradient once, in bfloat16, the word table's for each use: tables that rows are looked up in ...
    assert moved["all-to-all"] == 2 * (table + positions)
    # ... all others, and the word table as a decoder, which alone is summed where four devices would have 64 columns.
    assert moved["all-reduce"] <= 2 * table + 4 * tiny
    assert sum(moved.get(kind, 0) for kind in ("all-reduce", *scatters)) <= 2 * (params + table) + 4 * tiny


V1 = ["size=v1-base", "length=128", f"batch_size={ROWS}", "dtype=bfloat16", "objective.encoder.distances=16"]
V1 += [f"objective.encoder.{each}" for each in ("N=2", "D=256", "H=4", "F=1024", f"V={WORDS}")]
V1 += [f"objective.masking.{each}" for each in (f"random_ids=0,{WORDS}", "mask_id=4", "specials=1,2")]


@pytest.mark.parametrize(
    ("name", "overrides", "words", "besides"),
    [
        ("bert", small(WORDS + 1), WORDS + 1, 1.5),
        ("deberta", V1, WORDS, 4),
    ],
    ids=["bert with an odd vocabulary", "deberta with an even one"],
)
def test_split_products_sum_states_twice_forward_and_twice_backward_in_a_layer(name, overrides, words, besides):
    """What queries, keys and values give to the gradient of their input is added up before it moves.

    An odd vocabulary is split by columns where it is stored and by words where it is multiplied by: the table moves
    from one to the other, and its gradient back, and nothing of the size of states or logits.
    """
    experiment = load_experiment(f"experiments/{name}.py", [*overrides, "mesh=tensor:2"])
    compiled = compile_step(experiment, experiment.phases[0], parse_slice("v5e:2x2"))
    pairs = [one for one in collectives(Program(compiled.text)) if one.group == (0, 1)]
    states, layers, table = ROWS * 128 * WIDTH, 2, words % 2 * 2 * words * WIDTH  # half of it moves, there and back
    # Besides those, the rows of the word table that each has a part of, and of the decoder what is masked; in DeBERTa
    # also the table of distances, and what the second decoder layer guesses from.
    moved = sum(one.bytes * one.times for one in pairs) - table
    assert 4 * layers + 1 <= moved / states <= 4 * layers + besides
    assert {one.kind for one in pairs if one.bytes > 2 * states} <= {"all-to-all"}


def test_a_plan_that_does_not_fit_has_numbers_and_exit_code_3(capsys):
    large = ["size=large", "long=1", "dtype=bfloat16"]  # refused before it is scheduled, within seconds
    code = main(["plan", "experiments/bert.py", *large, "--topology", "v5e-4", "--json"])
    planned = json.loads(capsys.readouterr().out)
    assert code == 3 and not planned["fits"] and planned["estimated_step_seconds"] is None
    memory = planned["bytes_per_device"]
    assert memory["peak"] > memory["capacity"] > 15 * 2**30
    assert "exceeds" in planned["phases"][0]["refused"]
    assert {
        "params",
        "params_by_group",
        "flops_per_token",
        "collectives",
        "flops_ratio",
        "estimated_utilisation",
    } <= set(planned)

"""What a program does, counted by hand, by XLA's own cost analysis, and by a slow loop."""

import jax
import jax.numpy as jnp
import pytest
from programs import program

from bertjax.plan.costs import collectives, lookups, products, traffic
from bertjax.plan.hlo import Program


def grouped(groups, kind="all-reduce"):
    return program(
        f"""  %a = bf16[4,8]{{1,0}} parameter(0)
  ROOT %r = bf16[4,8]{{1,0}} {kind}(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}, to_apply=%add"""
    )


GROUPS = {
    "{{0,2},{1,3}}": (0, 2),
    "[2,4]<=[8]": (0, 1, 2, 3),
    "[4,2]<=[2,4]T(1,0)": (0, 4),
    "mesh['axis_0'=16,'axis_1'=1] {'axis_0','axis_1'}": tuple(range(16)),
    "mesh['axis_0'=2,'axis_1'=4] {'axis_0'}": (0, 4),
    "mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}": (0, 1, 2, 3),
    "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_2'}": (0, 4),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_of_devices_are_read_however_they_are_written(groups):
    (found,) = collectives(grouped(groups))
    assert found.group == GROUPS[groups] and found.bytes == 64 and not found.hidden
    (found,) = collectives(grouped(groups, "all-gather"))
    assert found.bytes == 64 * len(GROUPS[groups])


def test_a_collective_overlapped_with_a_fusion_counts_once_and_a_reduce_scatter_is_recognised():
    chained = 'all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}'
    other = "".join(
        f"""%{name} (p: bf16[4,8]) -> bf16[16,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %g = bf16[16,8]{{1,0}} {chained}
  ROOT %c = bf16[16,8]{{1,0}} custom-call(%g), custom_call_target="{target}"
}}

"""
        for name, target in (("begin", "AsyncCollectiveStart"), ("beside", "Other"), ("end", "AsyncCollectiveDone"))
    )
    other += """%all-reduce-scatter.1 (q: bf16[16,8]) -> bf16[4,8] {
  %q = bf16[16,8]{1,0} parameter(0)
  %none = bf16[] constant(0)
  %padded = bf16[20,8]{1,0} pad(%q, %none), padding=0_4x0_0
  %all = bf16[20,8]{1,0} all-reduce(%padded), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %part = bf16[4,8]{1,0} dynamic-slice(%all), dynamic_slice_sizes={4,8}
}
"""
    found = collectives(
        program(
            """  %a = bf16[4,8]{1,0} parameter(0)
  %start = bf16[16,8]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %during = bf16[16,8]{1,0} fusion(%start), kind=kOutput, calls=%beside
  %done = bf16[16,8]{1,0} fusion(%during), kind=kCustom, calls=%end
  %moved = (bf16[4,8]{1,0}, bf16[4,8]{1,0}) collective-permute-start(%a), source_target_pairs={{0,1},{1,2}}
  %there = bf16[4,8]{1,0} collective-permute-done(%moved)
  ROOT %scattered = bf16[4,8]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1""",
            other,
        )
    )
    assert [(one.kind, one.bytes, one.hidden, one.group) for one in found] == [
        ("all-gather", 256, True, (0, 1, 2, 3)),
        ("collective-permute", 64, True, (0, 1)),
        ("reduce-scatter", 256, False, (0, 1, 2, 3)),
    ]


# Windows that XLA:TPU makes of batches: (input, kernel, stride, padding, holes in the input, apart in the kernel).
WINDOWS = [
    ((6, 5, 7), (1, 7, 3), (1,), [(0, 0)], (1,), (1,)),
    ((6, 5, 7), (5, 7, 3), (4,), [(0, 0)], (5,), (1,)),
    ((6, 8, 7), (8, 7, 3), (1,), [(7, 7)], (1,), (1,)),
    ((6, 8, 7), (3, 7, 3), (2,), [(1, 3)], (3,), (2,)),
    ((6, 8, 7), (2, 7, 3), (6,), [(1, 2)], (4,), (1,)),
]


@pytest.mark.parametrize(("left", "right", "stride", "padding", "hole", "apart"), WINDOWS)
def test_flops_of_a_convolution_exclude_padding_and_holes_as_in_xla(left, right, stride, padding, hole, apart):
    def run(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, stride, padding, hole, apart, ("NWC", "WIO", "NWC"))

    lowered = jax.jit(run).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (left, right)))
    (found,) = products(Program(lowered.as_text(dialect="hlo")))
    assert found.flops == lowered.cost_analysis()["flops"] and found.dtypes == ("f32", "f32")


def test_a_product_counts_two_flops_for_each_pair():
    lowered = jax.jit(lambda x, y: jnp.einsum("bij,bjk->bik", x, y)).lower(
        jax.ShapeDtypeStruct((2, 3, 5), jnp.bfloat16), jax.ShapeDtypeStruct((2, 5, 7), jnp.bfloat16)
    )
    (found,) = products(Program(lowered.as_text(dialect="hlo")))
    assert found.flops == 2 * 2 * 3 * 5 * 7 and found.dtypes == ("bf16", "bf16")


def test_lookups_count_their_slices():
    def run(table, ids, x):
        return table[ids], table.at[ids].add(x)

    shapes = [jax.ShapeDtypeStruct(*shape) for shape in (((9, 4), "float32"), ((6,), "int32"), ((6, 4), "float32"))]
    found = lookups(Program(jax.jit(run).lower(*shapes).as_text(dialect="hlo")))
    assert sorted((one.kind, one.slices, one.elements) for one in found) == [("gather", 6, 4), ("scatter", 6, 4)]


def test_traffic_is_what_is_read_and_written_in_hbm():
    other = """%sliced (p.0: f32[24,100], p.1: s32[], p.2: f32[24,100], p.3: f32[100]) -> (f32[24,100], f32[1,100]) {
  %p.0 = f32[24,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[24,100]{1,0} parameter(2)
  %p.3 = f32[100]{0} parameter(3)
  %one = f32[1,100]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,100}
  %row = f32[1,100]{1,0} bitcast(%p.3)
  %sum = f32[1,100]{1,0} add(%one, %row)
  %kept = f32[24,100]{1,0} dynamic-update-slice(%p.2, %sum, %p.1, %p.1)
  ROOT %both = (f32[24,100]{1,0}, f32[1,100]{1,0}) tuple(%kept, %sum)
}
"""
    entry = """  %a = f32[24,100]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %b = f32[24,100]{1,0} parameter(2)
  %near = f32[100]{0:T(128)S(1)} parameter(3)
  %f = (f32[24,100]{1,0}, f32[1,100]{1,0:S(1)}) fusion(%a, %i, %b, %near), kind=kLoop, calls=%sliced
  %g = f32[24,100]{1,0} get-tuple-element(%f), index=0
  %plain = f32[24,100]{1,0} add(%g, %a)
  %piece = ((f32[24,100]{1,0}), f32[2,100]{1,0:S(1)}, s32[]) slice-start(%plain), slice={[0:2], [0:100]}
  ROOT %free = f32[5]{0} custom-call(), custom_call_target="AllocateBuffer\""""
    found = program(entry, other)
    moved = {step.op.name: traffic(found, step) for step in found.schedule}
    assert {name: size for name, size in moved.items() if size} == {
        "f": 400 + 400,  # a row of a, a row of b; the fourth input and the second output are near
        "plain": 3 * 9600,
        "piece": 800,
    }

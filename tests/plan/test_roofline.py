import json

import pytest
from programs import program

from bertjax.machine.topology import parse_slice
from bertjax.plan.roofline import estimate, moved_by_kind

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"3005981"}}'  # 2 ms of v5e's clock
KERNEL = 'backend_config={"cost_estimate":{"flops":"197000000000","transcendentals":"0","bytes_accessed":"9"}}'
OTHER = """%sharded_embedding_lookup (t: f32[50000,1000], i: s32[30000]) -> f32[30000,1000] {
  %t = f32[50000,1000]{1,0} parameter(0)
  %i = s32[30000]{0} parameter(1)
  ROOT %g = f32[30000,1000]{1,0} gather(%t, %i), offset_dims={1}, slice_sizes={1,1000}
}
"""
ENTRY = """  %t = f32[50000,1000]{1,0} parameter(0)
  %i = s32[30000]{0:S(1)} parameter(1)
  %a = f32[30000,1000]{1,0} fusion(%t, %i), kind=kCustom, calls=%sharded_embedding_lookup
  %b = f32[30000,1000]{1,0} fusion(%a), kind=kLoop, calls=%same, CYCLES
  %c = bf16[1000,1000]{1,0:S(1)} custom-call(%i), custom_call_target="tpu_custom_call", KERNEL
  %d = f32[25000000]{0:S(1)} all-reduce(%e), replica_groups=[1,4]<=[4], to_apply=%add
  %e = f32[25000000]{0:S(1)} get-tuple-element(%c), index=0
  ROOT %f = (f32[25000000]{0:S(1)}, f32[25000000]{0:S(1)}) all-gather-start(%e), replica_groups=[1,4]<=[4]"""
ENTRY = ENTRY.replace("CYCLES", CYCLES).replace("KERNEL", KERNEL)
SAME = (
    OTHER
    + """
%same (p: f32[30000,1000]) -> f32[30000,1000] {
  %p = f32[30000,1000]{1,0} parameter(0)
  ROOT %n = f32[30000,1000]{1,0} negate(%p)
}
"""
)


def test_every_part_of_an_estimate_is_a_number_over_a_rate():
    found = estimate(program(ENTRY, SAME), parse_slice("v5e:2x2"))
    parts = found["of_which"]
    assert parts["cycles"] == pytest.approx(2e-3, rel=1e-6)
    moved = 30000 * 1000 * 4  # once read and once written by each of the two fusions
    assert parts["traffic"] == pytest.approx(4 * moved / 819e9)
    lookup = max(15 * 30000 / 1.503e9, 2 * moved / 819e9)
    assert found["modelled"]["gather"] == {"count": 1, "seconds": pytest.approx(lookup, rel=1e-3)}
    assert found["modelled"]["kernel"] == {"count": 1, "seconds": pytest.approx(1e-3)}
    assert parts["modelled"] == pytest.approx(lookup + 1e-3, rel=1e-3)
    # Of 100 MB every chip sends 3/4, twice for a sum, over two links of 50 GB/s.
    assert parts["waited"] == pytest.approx(2 * 0.75 * 1e8 / 100e9)
    assert parts["hidden"] == pytest.approx(0.75 * 4e8 / 100e9)
    assert found["seconds"] == pytest.approx(max(2e-3 + parts["modelled"], parts["hidden"]) + parts["waited"])
    assert moved_by_kind(program(ENTRY, SAME)) == {
        "all-reduce": {"count": 1, "bytes": 1e8},
        "all-gather": {"count": 1, "bytes": 4e8},
    }


def test_between_slices_the_network_is_the_limit():
    named = 'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    entry = f"""  %a = f32[25000000]{{0:S(1)}} parameter(0)
  %t = token[] after-all()
  %s = (f32[25000000]{{0}}, u32[], token[]) send(%a, %t), channel_id=2, {named}
  %r = (f32[25000000]{{0}}, u32[], token[]) recv(%t), channel_id=1, {named}
  %sd = token[] send-done(%s), channel_id=2
  ROOT %rd = (f32[25000000]{{0}}, token[]) recv-done(%r), channel_id=1"""
    found = program(entry)
    assert moved_by_kind(found) == {"all-reduce between slices": {"count": 1, "bytes": 1e8}}
    for slices in (2, 4):
        seconds = estimate(found, parse_slice("v5e:2x2"), slices)["of_which"]["waited"]
        assert seconds == pytest.approx(2 * 1e8 * (slices - 1) / slices / 3.125e9)


@pytest.mark.parametrize(("rows", "length", "thousands"), [(16, 512, 1592), (64, 128, 674)])
def test_attention_by_a_kernel_takes_what_its_schedule_has(rows, length, thousands):
    pairs, states = 16 * rows * length**2, 2 * rows * length * 1024
    calls = ""
    for name, products, arrays in (("forward", 2, 4), ("backward", 5, 7)):
        said = {"flops": 2 * products * pairs * 64, "transcendentals": pairs, "bytes_accessed": arrays * states}
        config = json.dumps(
            {"cost_estimate": {what: str(number) for what, number in said.items()}}, separators=(",", ":")
        )
        call = f'custom-call(%a), custom_call_target="tpu_custom_call", backend_config={config}'
        calls += f"  %{name} = f32[9]{{0:S(1)}} {call}\n"
    found = estimate(program(f"  %a = f32[9]{{0:S(1)}} parameter(0)\n{calls}"), parse_slice("v5e:1x1"))
    assert found["modelled"]["kernel"] == {"count": 2, "seconds": pytest.approx(1e3 * thousands / 1.503e9, rel=5e-3)}
    assert found["flops"] == 2 * 7 * pairs * 64


def test_a_kernel_without_a_cost_estimate_is_reported():
    entry = '  %a = f32[9]{0} parameter(0)\n  ROOT %k = f32[9]{0} custom-call(%a), custom_call_target="tpu_custom_call"'
    assert list(estimate(program(entry), parse_slice("v3-8"))["modelled"]) == ["kernel without an estimate"]

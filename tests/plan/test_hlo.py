"""Texts in the form that XLA:TPU writes, with counts that are known by hand."""

import pytest

from bertjax.plan.hlo import Program, cycles, root, shapes

COST = 'backend_config={{"flag_configs":[],"window_config":{{"estimated_cycles":"{}"}},"lists":[]}}'.format


def loop(condition, body="%next = s32[]{:T(128)} add(%i, %step)", start=0, step=1, config=""):
    """Write a program with a loop whose body costs 7 cycles a round; around it the program costs 100."""
    return f"""HloModule jit_step, is_scheduled=true, entry_computation_layout={{(f32[8]{{0}})->f32[8]{{0}}}}

%fused_condition (p.0: s32[], p.1: s32[]) -> pred[] {{
  %p.0 = s32[]{{:T(128)}} parameter(0)
  %p.1 = s32[]{{:T(128)}} parameter(1)
  ROOT %less = pred[]{{:T(512)}} compare(%p.0, %p.1), direction=LT
}}

%fused_next (p.2: s32[]) -> (s32[], s32[]) {{
  %p.2 = s32[]{{:T(128)}} parameter(0)
  %two = s32[] constant(2)
  %sum = s32[]{{:T(128)}} add(%p.2, %two)
  ROOT %both = (s32[]{{:T(128)}}, s32[]{{:T(128)}}) tuple(%sum, %p.2)
}}

%body.1 (state.1: (f32[8], s32[])) -> (f32[8], s32[]) {{
  %state.1 = (f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %x = f32[8]{{0:T(128)}} get-tuple-element(%state.1), index=0
  %i = s32[]{{:T(128)}} get-tuple-element(%state.1), index=1
  %step = s32[] constant({step})
  {body}
  ROOT %state.2 = (f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) tuple(%y, %next)
  %y = f32[8]{{0:T(128)}} negate(%x), {COST(7)}
}}

%condition.1 (state.3: (f32[8], s32[])) -> pred[] {{
  %state.3 = (f32[8]{{0:T(128)}}, /*index=1*/s32[]{{:T(128)}}) parameter(0)
  %n = s32[]{{:T(128)}} constant(24)
  %j = s32[]{{:T(128)}} get-tuple-element(%state.3), index=1
  ROOT %go = pred[]{{:T(512)}} {condition}
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0:T(128)}} parameter(0)
  %zero = s32[]{{:T(128)}} constant({start})
  %copied = s32[]{{:T(128)}} copy(%zero)
  %begin = (f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) tuple(%a, %copied)
  %loop = (f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) while(%begin), condition=%condition.1, body=%body.1{config}, metadata={{op_name="jit(step)/while" stack_frame_id=3}}
  %out = f32[8]{{0:T(128)}} get-tuple-element(%loop), index=0
  ROOT %end = f32[8]{{0:T(128)}} exponential(%out), {COST(100)}
}}
"""  # noqa: E501


LESS = "compare(%j, %n), direction=LT"
LOOPS = {
    "a constant in the condition": (loop(LESS), 24),
    "the other way round": (loop("compare(%n, %j), direction=GE"), 25),
    "in a fused condition": (loop("fusion(%j, %n), kind=kLoop, calls=%fused_condition"), 24),
    "from another start, in other steps": (loop(LESS, start=4, step=3), 7),
    "backwards": (loop("compare(%j, %n), direction=GT", start=30, step=-2), 3),
    "backwards, to the bound itself": (loop("compare(%j, %n), direction=GE", start=30, step=-2), 4),
    "backwards, the other way round": (loop("compare(%n, %j), direction=LT", start=30, step=-2), 3),
    "a fused step": (
        loop(LESS, "%f = (s32[], s32[]) fusion(%i), kind=kLoop, calls=%fused_next\n"
             "  %next = s32[]{:T(128)} get-tuple-element(%f), index=0"), 12),
    "noted by the compiler": (loop("custom-call(%j)", config=', backend_config={"known_trip_count":{"n":"5"}}'), 5),
    "that ends by its data": (loop("custom-call(%j)"), None),
    "whose step is data": (loop(LESS, "%next = s32[]{:T(128)} multiply(%i, %i)"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_loops_count_as_often_as_they_run(name):
    text, rounds = LOOPS[name]
    program = Program(text)
    (found,) = (step.op for step in program.schedule if step.op.opcode == "while")
    assert program.rounds(found) == rounds
    assert sum(cycles(step.op) * step.times for step in program.schedule) == 100 + 7 * (rounds or 1)
    assert program.unknown_loops == (() if rounds else ("jit(step)/while",))


def test_loops_within_loops_multiply():
    inner = loop(LESS).replace("%y = f32[8]{0:T(128)} negate(%x)", "%y = f32[8]{0:T(128)} call(%x), to_apply=%main.2")
    called = loop(LESS, step=2).partition("\n\n")[2].replace("ENTRY %main ", "%main.2 ")
    for name in ("body.1", "condition.1", "fused_condition", "fused_next"):
        called = called.replace(f"%{name}", f"%{name}.2")
    program = Program(inner.replace("ENTRY", called + "ENTRY"))
    expected = 100 + 24 * (7 + 100 + 12 * 7)
    assert sum(cycles(step.op) * step.times for step in program.schedule) == expected


def test_the_most_expensive_branch_of_a_conditional_counts():
    text = """HloModule jit_step

%cheap (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %one = f32[8]{0} negate(%x), COST(1)
}

%dear (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  ROOT %two = f32[8]{0} negate(%x.1), COST(50)
}

ENTRY %main (p: s32[], a: f32[8]) -> f32[8] {
  %p = s32[] parameter(0)
  %a = f32[8]{0} parameter(1)
  ROOT %either = f32[8]{0} conditional(%p, %a, %a), branch_computations={%cheap, %dear}
}
""".replace("COST(1)", COST(1)).replace("COST(50)", COST(50))
    assert sum(cycles(step.op) * step.times for step in Program(text).schedule) == 50


def test_the_text_of_a_kernel_ends_no_computation():
    text = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }

ENTRY %main (a: f32[8]) -> (f32[8], s32[]) {
  %a = f32[8]{0:T(128)} parameter(0)
  %kernel = (f32[8]{0:T(128)S(1)}, s32[]) custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
  "name": "splash"
}}, backend_config={"body":"
  %0 = "vector.load"(%1) : (i32) -> vector<8xf32>
}
"}
  %b = f32[8]{0:T(128)S(1)} get-tuple-element(%kernel), index=0
  ROOT %t = (f32[8]{0:T(128)}, s32[]) tuple(%b, %a)
}
"""  # noqa: E501
    program = Program(text)
    assert list(program.computations) == ["main"]
    assert list(program.computations["main"]) == ["a", "kernel", "b", "t"]
    assert program.computations["main"]["kernel"].operands == ("a",)
    assert root(program.computations["main"]).name == "t"
    assert program.aliased == 2


def test_shapes_have_their_bytes_and_memory_space():
    found = shapes("(bf16[2,1024]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[]{:T(512)}, s4[6]{0}, u32[3]{0:T(128)})")
    assert [(shape.dtype, shape.sizes, shape.bytes, shape.in_hbm) for shape in found] == [
        ("bf16", (2, 1024), 4096, False), ("pred", (), 1, True), ("s4", (6,), 3, True), ("u32", (3,), 12, True),
    ]  # fmt: skip


def test_text_that_is_not_a_compiled_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        Program("HloModule jit_step\n")

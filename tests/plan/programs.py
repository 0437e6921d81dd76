"""Compiled programs, written by hand."""

from bertjax.plan.hlo import Program


def program(entry, other=""):
    return Program(f"HloModule jit_step\n\n{other}\nENTRY %main () -> f32[] {{\n{entry}\n}}\n")

"""The drills of `make reliability` name what there is: protections to switch off, short forms in the suite."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
from without import PROTECTIONS, without

HERE = Path(__file__).parent
CODE = (HERE / "reliability.py").read_text()


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_protection_can_be_switched_off_and_is_on_again_after_it(name):
    before = [getattr(place, attribute) for place, attribute, _ in PROTECTIONS[name]]
    with without(name):
        off = [getattr(place, attribute) for place, attribute, _ in PROTECTIONS[name]]
        assert all(a is not b for a, b in zip(before, off, strict=True))
    assert before == [getattr(place, attribute) for place, attribute, _ in PROTECTIONS[name]]


@pytest.mark.parametrize("name", PROTECTIONS)
def test_what_takes_the_place_of_a_protection_takes_its_arguments(name):
    """Else a drill fails without it by a TypeError, which proves nothing."""
    for place, attribute, other in PROTECTIONS[name]:
        if not callable(other):
            continue
        positional, named = [], {}
        for parameter in inspect.signature(getattr(place, attribute)).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = parameter
            elif parameter.kind is not parameter.VAR_KEYWORD:
                positional.append(parameter)
        inspect.signature(other).bind(*positional, **named)


def test_every_protection_is_switched_off_by_a_drill():
    files = HERE.glob("*.py")
    drills = "".join(path.read_text() for path in files if path.name not in ("without.py", "test_harness.py"))
    assert not [name for name in PROTECTIONS if not re.search(rf'[",]{name}[",]', drills)]


def test_the_short_form_of_each_case_is_there():
    texts = [node.value for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.Constant)]
    short = [text for text in texts if isinstance(text, str) and re.match(r"[\w/]*test_\w+\.py", text)]
    assert len(short) > 10
    for text in short:
        file, _, name = text.partition(" ")[0].partition("::")
        assert not name or f"def {name}(" in (HERE.parent / file).read_text(), text
        assert (HERE.parent / file).is_file(), text


def test_the_page_has_a_row_for_each_result_and_no_drill_without_a_protection_passes_them_all():
    results = json.loads((HERE / "reliability.json").read_text())
    page = (HERE.parents[1] / "docs" / "reliability.md").read_text()
    for name, found in results.items():
        if "trials" in found:
            off = f"{found['off_passes']} of {found['off_trials']}" if "off_trials" in found else "none"
            assert f"| {found['trials']} | {found['passes']} |" in page and f"| {off} |" in page, name
            assert "off_trials" not in found or found["off_passes"] < found["off_trials"], name

import json

import pytest

from bertjax.run.mended import mended


def line(step, name="loss", value=1.5):
    return json.dumps({"step": step, name: value}).encode() + b"\n"


def mend(lines, step, every=1):
    found = list(mended(lines, step, every))
    return [json.loads(text)["step"] for text, lost in found if not lost], [lost for _, lost in found if lost]


SKIPPED = json.dumps({"step": 3, "loss": None, "skipped": 1}).encode() + b"\n"
LINES = [line(1), line(2), line(2, "validation/loss"), line(3), line(4)]


def test_lines_up_to_the_step_are_kept_byte_for_byte():
    assert b"".join(text + b"\n" for text, _ in mended(LINES, 3, 1)) == b"".join(LINES[:4])


@pytest.mark.parametrize(
    ("lines", "step", "lost"),
    [
        ([*LINES[:3], line(3)[:9]], 2, []),  # what a kill leaves
        ([*LINES[:3], line(3), line(4)[:9]], 4, ["the lines after step 3, up to step 4, are missing and could not be"]),
        (LINES[:3], 4, ["the lines after step 2, up to step 4, are missing"]),
        ([], 4, ["the lines after step 0"]),
        ([LINES[0], b"\xff\xfe\n", *LINES[2:]], 4, ["1 line after step 1 could not be read"]),
        ([LINES[0], b"null\n", b'{"loss": 1}\n', *LINES[2:]], 4, ["2 lines after step 1 could not be read"]),
        ([LINES[0], b'{"step": "x"}\n', LINES[1]], 2, ["1 line after step 1"]),
        ([line(10), line(20), line(23, "skipped")], 25, []),
        ([*LINES, *LINES], 4, ["5 lines out of order, up to step 4, dropped"]),
        ([LINES[0], LINES[1], LINES[1], *LINES[2:]], 4, ["1 line out of order"]),
        ([*LINES[:2], line(7), line(8)], 8, ["the lines between steps 2 and 7 are missing"]),
        ([line(1), line(2), SKIPPED, line(4), line(5)], 5, []),
        ([line(10), line(20), line(30), line(100), line(200), line(300)], 300, []),  # log_every was raised at step 30
        ([line(100), line(200)], 250, []),  # log_every was 100, and is 1 from now on
        ([line(100), line(200)], 350, ["the lines after step 200"]),
    ],
)
def test_what_is_lost_is_said_and_nothing_else_is(lines, step, lost):
    _, found = mend(lines, step)
    assert len(found) == len(lost) and all(text.startswith(begin) for text, begin in zip(found, lost, strict=True))


TENS = [line(step) for step in range(10, 101, 10)]


@pytest.mark.parametrize(
    ("every", "lost"),
    [
        (1000, []),  # log_every was 10, and was raised at step 100
        (0, []),
        (10, ["the lines after step 100, up to step 900, are missing"]),
        (800, ["the lines after step 100, up to step 900, are missing"]),
    ],
)
def test_lines_that_are_written_less_often_now_are_not_lost(every, lost):
    assert mend(TENS, 900, every)[1] == lost


def test_lines_after_a_damaged_one_are_kept_and_a_mended_log_is_mended_once():
    once = [text + b"\n" for text, _ in mended([LINES[0], b"\xff\n", *LINES[2:]], 4, 1)]
    assert [json.loads(text)["step"] for text in once] == [1, 1, 2, 3, 4]
    assert mend(once, 4) == ([1, 1, 2, 3, 4], [])
    holed = [text + b"\n" for text, _ in mended([*LINES[:2], line(7), line(8)], 8, 1)]
    assert mend(holed, 8) == ([1, 2, 7, 8, 8], [])

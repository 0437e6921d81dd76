"""JSON of others is parsed strictly, and refused before memory is taken for it."""

import json
import random
import time
import tracemalloc

import pytest

from bertjax.errors import InputError
from bertjax.serialization.bounded_json import LARGE, SMALL, Limits, parse, parse_object

SIZE = 2**22 - 100
BOMBS = {
    "lists in lists": b"[" * SIZE,
    "objects in objects": b'{"a":' * (SIZE // 5),
    "many lists": b"[" + b"[]," * (SIZE // 3) + b"0]",
    "many texts": b"[" + b'"",' * (SIZE // 3) + b"0]",
    "quotes that never end": b"[[" * 40 + b'\\"' * (SIZE // 2),
    "brackets in a text that never ends": b'["' + b'\\"[' * (SIZE // 3),
    "one number": b"1" * SIZE,
    "too many bytes": b" " * 2**23,
}
REFUSED = {
    "NaN": (b"[NaN]", "NaN is no number"),
    "minus infinity": (b"[-Infinity]", "Infinity is no number"),
    "a float beyond the largest": (b'{"a": 1e999}', "1e999 is not finite"),
    "10**400": (str(10**400), "401 digits"),
    "two equal keys": (b'{"a": 1, "b": 2, "a": 3}', "names 'a' twice"),
    "two equal keys, one escaped": (rb'{"type": 1, "t\u0079pe": 2}', "names 'type' twice"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "f.json is not UTF-8"),
    "a second value": (b"{}\n{}", "f.json:2: not JSON: Extra data"),
    "one level too many": (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
    "no object": (b"[]", "not a JSON object"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_its_own_size_of_memory_and_a_second(name):
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InputError):
        parse(BOMBS[name], "f.json")
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_strict_json_is_refused(name):
    content, problem = REFUSED[name]
    with pytest.raises(InputError, match=problem):
        parse_object(content, "f.json")


def test_json_as_python_and_as_others_write_it_is_read():
    written = {"a": [1, 2.5, -3e-5, True, None, '[{,é"\\'], "big": 1000000000000000019884624838656, "": {}}
    assert parse(json.dumps(written), "f") == parse(json.dumps(written, ensure_ascii=False).encode(), "f") == written
    assert parse(b"\xef\xbb\xbf{}", "f") == {}
    assert parse(b"[" * 64 + b"]" * 64, "f") and parse(b'["' + b"[" * 10**6 + b'"]', "f")
    assert parse(json.dumps([list(range(2**17)), [[]] * 100]), "f", LARGE)
    assert parse("[NaN, -Infinity]", "f", constants=True)[1] == -float("inf")


def measured(value):
    """Return the depth of a value, and how many values it holds, itself among them."""
    if not isinstance(value, list | dict):
        return 0, 1
    inside = [measured(each) for each in (value.values() if isinstance(value, dict) else value)]
    return 1 + max((depth for depth, _ in inside), default=0), 1 + sum(count for _, count in inside)


def some_value(rng, depth=4):
    texts = ["", "[{", "]}", '\\"[', '"', ",,"]
    if not depth or rng.random() < 0.2:
        return rng.choice([*texts, 1, None])
    size = rng.randrange(3)
    if rng.random() < 0.5:
        return [some_value(rng, depth - 1) for _ in range(size)]
    return {rng.choice(texts): some_value(rng, depth - 1) for _ in range(size)}


def test_limits_hold_whatever_stands_in_texts():
    rng, accepted = random.Random(0), 0
    for _ in range(2000):
        value = some_value(rng)
        depth, values = measured(value)
        try:
            assert parse(json.dumps(value), "f", Limits(1000, 3, 8)) == value
            assert depth <= 3 and values <= 8
            accepted += depth > 1
        except InputError:
            assert depth > 3 or values > 4
    assert accepted > 100 and SMALL.depth == 64

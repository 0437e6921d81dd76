import importlib.util

import pytest

from bertjax.errors import InputError
from bertjax.flops import PEAK_TFLOPS
from bertjax.machine.topology import CHIPS, parse_slice, slice_devices

# Types and shapes as cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x} lists them.
TYPES = {
    "v2-8": "v2:2x2", "v2-512": "v2:16x16", "v3-8": "v3:2x2", "v3-32": "v3:4x4", "v3-128": "v3:8x8",
    "v3-256": "v3:8x16", "v3-2048": "v3:32x32", "v4-8": "v4:2x2x1", "v4-16": "v4:2x2x2", "v4-32": "v4:2x2x4",
    "v4-64": "v4:2x4x4", "v4-128": "v4:4x4x4", "v4-512": "v4:4x8x8", "v5litepod-16": "v5e:4x4", "v5e-1": "v5e:1x1",
    "v5e-8": "v5e:2x4", "v5e-256": "v5e:16x16", "v5p-64": "v5p:2x4x4", "v6e-64": "v6e:8x8", "tpu7x:2x2x1": "7x:2x2x1",
    "v4:4x4x12": "v4:4x4x12", "v3:16x16": "v3:16x16",
}  # fmt: skip
DEVICES = {"v3-8": 8, "v3:16x16": 512, "v4-64": 32, "v5e-256": 256, "v5p-64": 32, "tpu7x:2x2x1": 8}


@pytest.mark.parametrize("text", TYPES)
def test_slices_are_known_by_shape_and_by_type(text):
    found = parse_slice(text)
    assert str(found) == TYPES[text] and parse_slice(str(found)) == found
    assert found.devices == DEVICES.get(text, found.devices)


BAD = {
    "v9-8": "'v9' is not one of v2",
    "v3-7": "TensorCores, two a chip, in powers of two",
    "v5e-24": "chips in powers of two",
    "v5e:2x2x2": "2 axes, as v5e:4x4",
    "v4:2x2": "3 axes",
    "v5e:0x4": "2 axes",
    "v5e": "write a generation and shape",
}


@pytest.mark.parametrize("text", BAD)
def test_other_slices_are_refused_with_an_example(text):
    with pytest.raises(InputError, match=BAD[text]):
        parse_slice(text)


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu: pip install '\.\[plan\]'"):
        slice_devices(parse_slice("v5e:2x2"))


def test_peaks_and_clocks_are_those_that_are_published():
    assert PEAK_TFLOPS["TPU v3"] == 61.5 and PEAK_TFLOPS["TPU v5 lite"] == 197 and PEAK_TFLOPS["TPU7x"] == 1153.5
    published = {"v2": 0.7, "v3": 0.94, "v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}
    for generation, clock in published.items():
        assert CHIPS[generation].clock == pytest.approx(clock * 1e9, rel=0.01), generation


def test_a_ring_has_twice_the_bandwidth_of_a_line():
    assert parse_slice("v5e:16x16").link_rate(256) == 4 * 50e9
    assert parse_slice("v5e:4x4").link_rate(16) == 2 * 50e9
    assert parse_slice("v5e:16x4").link_rate(4) == 50e9
    assert parse_slice("v4:4x4x4").link_rate(64) == 6 * 50e9

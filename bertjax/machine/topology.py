"""TPU chips and slices by name: the peaks of a chip, the shape of a slice, and devices to compile for.

The compiler for TPUs runs on any CPU (the package libtpu, extra `plan`), so no slice is needed.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertjax.errors import InputError


@dataclass(frozen=True)
class Chip:
    """The limits of one chip. JAX may show a chip as two devices; a device has its share of everything.

    tflops: dense bfloat16; products of float32 are rounded to it by default. hbm: GiB. available: GiB of one device
    that programs can use, since the system reserves some. hbm_rate: GB/s.
    links: to neighbours, two for each axis of the slice. link_rate: GB/s of one link, one way. ring: an axis closes to
    a ring if its length is a multiple of this. dcn_rate: GB/s to other slices; 0 where slices cannot be joined.
    cycle: bfloat16 FLOPs of one device per cycle, which gives the clock. cores: per chip, as accelerator types count.
    """

    kind: str  # JAX's device_kind
    devices: int
    tflops: float
    hbm: float
    available: float
    hbm_rate: float
    links: int
    link_rate: float
    ring: int
    dcn_rate: float
    cycle: int
    cores: int

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.tflops * 1e12 / self.devices / self.cycle


# cloud.google.com/tpu/docs/v2 … v6e and tpu7x: FLOPs, HBM, interconnect (both ways and all links there, one way of one
# here) and network. v2, v3: 496 Gbit/s (Jouppi et al. 2020, "A domain-specific supercomputer", table 3) and 70 GB/s,
# v4: 50 GB/s (Jouppi et al. 2023, "TPU v4", table 4) of one link. Networks: v4 as v5p, of v6e and 7x per chip; rings:
# jax-ml.github.io/scaling-book/tpus. Available memory: as libtpu 0.0.42 reports it when it refuses a program that is
# too large; for v5p hbm is net of the reserve. FLOPs per cycle: matrix units times 2 · side², as the
# compiler counts them: its estimates of large products are 86 to 98% of these, 70% on v6e.
CHIPS = {
    "v2": Chip("TPU v2", 2, 46, 16, 7.48, 700, 4, 62, 16, 0, 2**15, 2),
    "v3": Chip("TPU v3", 2, 123, 32, 15.48, 900, 4, 70, 32, 0, 2**16, 2),
    "v4": Chip("TPU v4", 1, 275, 32, 30.75, 1200, 6, 50, 4, 6.25, 2**18, 2),
    "v5e": Chip("TPU v5 lite", 1, 197, 16, 15.75, 819, 4, 50, 16, 3.125, 2**17, 1),
    "v5p": Chip("TPU v5", 1, 459, 95, 95.74, 2765, 6, 100, 4, 6.25, 2**18, 2),
    "v6e": Chip("TPU v6 lite", 1, 918, 32, 31.25, 1638, 4, 100, 16, 12.5, 2**19, 1),
    "7x": Chip("TPU7x", 2, 2307, 192, 94.75, 7380, 6, 100, 4, 12.5, 2**19, 2),
}

_ALSO = {"v5litepod": "v5e", "tpu7x": "7x"}


@dataclass(frozen=True)
class Slice:
    """A slice: its generation, and its shape in chips."""

    generation: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        """The chip of its generation."""
        return CHIPS[self.generation]

    @property
    def devices(self) -> int:
        """The number of JAX devices."""
        return math.prod(self.shape) * self.chip.devices

    def link_rate(self, group: int) -> float:
        """Return the bytes per second that a chip can send in a collective over `group` devices.

        If the group is the slice, along every axis, and both ways where it is a ring; else along the weakest axis.
        """
        ways = [2 if size % self.chip.ring == 0 else 1 for size in self.shape if size > 1]
        used = (sum(ways) if group >= self.devices else min(ways)) if ways else 1
        return used * self.chip.link_rate * 1e9


def parse_slice(text: str) -> Slice:
    """Parse `v5e:4x4`, a generation and a shape in chips, or an accelerator type of Google Cloud (`v3-8`).

    Raises InputError for an unknown generation, and for a shape or a size that the generation does not offer.
    """
    found = re.fullmatch(r"([a-z0-9]+?)(?::(\d+(?:x\d+)*)|-(\d+))", text)
    if not found:
        raise InputError(f"topology {text!r}: write a generation and shape, as v5e:4x4, or a type, as v3-8")
    generation = _ALSO.get(found[1], found[1])
    if generation not in CHIPS:
        raise InputError(f"topology {text!r}: {found[1]!r} is not one of {', '.join([*CHIPS, *_ALSO])}")
    axes = CHIPS[generation].links // 2
    if found[3]:
        return Slice(generation, _shape_of(text, int(found[3]), CHIPS[generation].cores, axes))
    shape = tuple(int(size) for size in found[2].split("x"))
    if len(shape) != axes or min(shape) < 1:
        example = {2: "4x4", 3: "2x2x4"}[axes]
        raise InputError(f"topology {text!r}: a slice of {generation} has {axes} axes, as {generation}:{example}")
    return Slice(generation, shape)


def _shape_of(text: str, size: int, cores: int, axes: int) -> tuple[int, ...]:
    """Return the shape of an accelerator type: powers of two as equal as possible, the longest axis last."""
    chips, left = divmod(size, cores)
    power = chips.bit_length() - 1
    if left or chips < 1 or chips != 2**power:
        of = "TensorCores, two a chip," if cores == 2 else "chips"
        raise InputError(f"topology {text!r}: a type counts {of} in powers of two; for other slices write the shape")
    exponents = sorted((power + axis) // axes for axis in range(axes))
    if axes == 3 and power == 2:
        return (2, 2, 1)  # the four chips of a host
    return tuple(2**exponent for exponent in exponents)


# Query no metadata server, look for no workers, let several processes load the compiler at once.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def slice_devices(of: Slice, slices: int = 1) -> Sequence[Any]:
    """Return the devices of a slice, or of several joined slices, to compile for; no program can run on them.

    Raises InputError without the compiler, for slices that cannot be joined, and for shapes that the compiler refuses.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("planning for a TPU needs its compiler, the package libtpu: pip install '.[plan]'")
    if slices > 1 and not of.chip.dcn_rate:
        raise InputError(f"slices of {of.generation} cannot be joined: plan for one slice")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental.topologies import get_topology_desc

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if of.generation == "v4":
        options["chip_config_name"] = "megacore"  # both cores as one device, as Cloud TPU has them
    if math.prod(of.shape) < 4:
        options["chips_per_host_bounds"] = [*of.shape, *(1,) * (3 - len(of.shape))]
    name = f"{'tpu' if of.generation == '7x' else ''}{of}"
    try:
        devices = get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"topology {of}: {str(error).splitlines()[0]}") from error
    assert len(devices) == of.devices * slices
    return devices

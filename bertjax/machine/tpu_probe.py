"""Let JAX not look for a TPU on a machine that has none, where libtpu is installed for `plan`.

libtpu would write six lines of errors to standard error, and ask the network what machine this is.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "JAX_PLATFORMS"

_GOOGLE = "0x1ae0"  # its number among the vendors of PCI devices


def without_tpu_probe(root: Path = Path("/")) -> bool:
    """Set JAX_PLATFORMS=cpu, before JAX is imported, where libtpu is there for `plan` alone; return whether it is.

    Not where anything tells of a TPU or another accelerator: a device, a variable of TPUs, another plugin of JAX.
    """
    if os.environ.get(VARIABLE) or find_spec("libtpu") is None or any(_signs(root)):
        return False
    os.environ[VARIABLE] = "cpu"
    return True


def _signs(root: Path) -> Iterator[bool]:
    """Yield, the quick ones first, whether something tells of an accelerator."""
    told = ("TPU_", "PJRT_", "JAX_FORCE_TPU", "LIBTPU_", "MEGASCALE_", "CLOUD_TPU", "CUDA_VISIBLE", "ROCR_VISIBLE")
    ours = ("TPU_SKIP_MDS_QUERY",)
    yield any(name.startswith(told) and name not in ours for name in os.environ)
    yield any(any((root / "dev").glob(pattern)) for pattern in ("accel*", "vfio/[0-9]*", "nvidiactl", "kfd"))
    yield find_spec("jax_plugins") is not None
    yield any(_read(vendor) == _GOOGLE for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

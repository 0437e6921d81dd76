"""Settings of the compiler: the flags of each TPU generation, and the compilation cache.

Nothing here initialises a device. `python -P -m bertjax.machine.xla_flags v5e` prints the flags, and so does
`bertjax doctor`; `tpu/worker.py` sets them unless the user sets LIBTPU_INIT_ARGS. libtpu reads that variable once, when
it is loaded.
"""

import argparse
import os
import resource
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import NamedTuple

import jax

from bertjax.machine.program_cache import cache_problem
from bertjax.storage.files import user_cache

_GUIDE = "https://github.com/openxla/xla/blob/main/docs/flags_guidance.md"
_MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/blob/main"


class Flag(NamedTuple):
    """A flag of libtpu, its purpose and the source. libtpu 0.0.42 knows each of them: an unknown flag is an error."""

    name: str
    value: str
    purpose: str
    source: str


# Only flags whose purpose Google publishes, with an advised value that is not the default.
TPU_FLAGS: dict[str, tuple[Flag, ...]] = {
    "v2": (),
    "v3": (),
    "v4": (
        Flag("xla_enable_async_all_gather", "true", "all-gathers overlap with computation; the default from v5 on",
             f"{_GUIDE}; for v4: {_MAXTEXT}/MaxText/configs/2xv4-128.sh"),
    ),
    "v5e": (
        Flag("xla_tpu_enable_async_collective_fusion", "true", "collectives overlap with computation", _GUIDE),
        Flag("xla_tpu_enable_async_collective_fusion_fuse_all_reduce", "true", "all-reduces too", _GUIDE),
    ),
    "v5p": (),
    "v6e": (
        Flag("xla_tpu_scoped_vmem_limit_kib", "98304", "VMEM of one operation, for compute-bound dense models",
             f"{_MAXTEXT}/benchmarks/xla_flags_library.py; explained in {_GUIDE}"),
    ),
    "7x": (),
}  # fmt: skip

SLICES_FLAGS = (
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "true",
        "all-reduces between slices overlap with computation",
        _GUIDE,
    ),
    Flag("xla_tpu_data_parallel_opt_different_sized_ops", "true", "… of any size, over iterations", _GUIDE),
)
"""Additional flags for several slices, of any generation."""

_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"


def sum_in_float32() -> None:
    """Let XLA for CPUs sum products of bfloat16 in float32, as every other compiler does: before a device is asked for.

    jaxlib 0.12 leaves products in bfloat16 to YNNPACK, which takes some of them alone. The others, such as the gradient
    of a kernel of which the compiler has transposed a factor, are summed in bfloat16: over 1,024 tokens up to 40%
    are lost (jaxlib 0.12.0.1). Without YNNPACK all are computed as in jaxlib 0.10.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith("0.12.") and _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=".strip()


def deep_stacks() -> None:
    """Restart this process with an unlimited stack, if its limit may be raised.

    libtpu 0.0.42.1 overflows the stack of one of its threads, and crashes, on some programs with rematerialisation; not
    if the stack was unlimited when the process started. (glibc then gives other threads 2 MiB instead of 8.)
    """
    soft, most = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != most == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_STACK, (most, most))
        # A module of the folder that it stands in, such as json.py, is no module of Python's: see __main__.py.
        safe = [] if "" in sys.path or os.getcwd() in sys.path else ["-P"]
        os.execv(sys.executable, [sys.executable, *safe, *sys.orig_argv[1:]])


def libtpu_init_args(generation: str, slices: int = 1) -> str:
    """Format the flags of a generation (v2 … v6e, 7x) for LIBTPU_INIT_ARGS. Raises ValueError for an unknown one."""
    if generation not in TPU_FLAGS:
        raise ValueError(f"no TPU generation {generation!r}: one of {', '.join(TPU_FLAGS)}")
    flags = TPU_FLAGS[generation] + (SLICES_FLAGS if slices > 1 else ())
    return " ".join(f"--{flag.name}={flag.value}" for flag in flags)


def cache_folder() -> Path | None:
    """Return the compilation cache: JAX_COMPILATION_CACHE_DIR, else a folder of this user and this version of jaxlib.

    None where the variable is not set, and the user has no home folder.

    JAX runs the programs in it, so nobody else may be able to write there.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    cache = user_cache()
    return Path(chosen) if chosen else cache and cache / f"jaxlib-{version('jaxlib')}"


def keep_compiled_programs(say: Callable[[str], None]) -> None:
    """Turn on JAX's persistent compilation cache on TPUs and GPUs, unless JAX_ENABLE_COMPILATION_CACHE=false.

    A cache to which others can write is turned off, wherever it was chosen; `say` is called with the reason.

    Not on CPUs, unless JAX_COMPILATION_CACHE_DIR is set: there XLA loads machine code, for which another CPU may lack
    instructions, and refuses its own on many CPUs (jax-ml/jax#38445, openxla/xla#44565, jaxlib 0.9 to 0.10).
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None:
        if "://" not in chosen and (problem := cache_problem(Path(chosen))):
            jax.config.update("jax_compilation_cache_dir", None)
            say(f"the cache of compiled programs is not used: {problem}")
        return
    if not accelerator_expected():
        return
    folder = cache_folder()
    if folder is None:
        say("compiled programs are not kept, since this user has no home folder: set JAX_COMPILATION_CACHE_DIR")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # the home folder is read-only: compile each time
        return
    if problem := cache_problem(folder):
        say(f"the cache of compiled programs is not used: {problem}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def accelerator_expected() -> bool:
    """Return whether JAX will use an accelerator, without initialising it: `jax.distributed` must come first."""
    # Set by the user, or by JAX when it finds TPU chips.
    platforms = jax.config.values["jax_platforms"]
    if platforms:
        return not platforms.startswith("cpu")
    return Path("/dev/nvidiactl").exists() and bool(entry_points(group="jax_plugins"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -P -m bertjax.machine.xla_flags", description="Print LIBTPU_INIT_ARGS."
    )
    parser.add_argument("generation", choices=TPU_FLAGS)
    parser.add_argument("--slices", type=int, default=1)
    arguments = parser.parse_args()
    print(libtpu_init_args(arguments.generation, arguments.slices))

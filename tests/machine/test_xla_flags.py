import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bertjax.commands.main import main
from bertjax.machine import xla_flags as compiler


def test_flags_are_written_as_libtpu_reads_them():
    assert compiler.libtpu_init_args("v3") == ""
    assert compiler.libtpu_init_args("v6e") == "--xla_tpu_scoped_vmem_limit_kib=98304"
    two = compiler.libtpu_init_args("v5p", slices=2).split()
    assert two == [f"--{flag.name}={flag.value}" for flag in compiler.SLICES_FLAGS]
    with pytest.raises(ValueError, match="no TPU generation 'v9': one of v2, v3"):
        compiler.libtpu_init_args("v9")


def test_every_flag_has_a_purpose_and_a_source():
    for flag in [*compiler.SLICES_FLAGS, *(flag for flags in compiler.TPU_FLAGS.values() for flag in flags)]:
        assert flag.name.startswith("xla_") and flag.purpose and flag.source.startswith("https://")


@pytest.mark.parametrize(
    ("jaxlib", "given", "set_to"),
    [
        ("0.10.2", "--a", "--a"),
        ("0.12.0.1", "", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.1", "--a", "--a --xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.0", "--xla_cpu_experimental_ynn_fusion_type=1", "--xla_cpu_experimental_ynn_fusion_type=1"),
    ],
)
def test_ynnpack_is_turned_off_in_the_jaxlib_that_sums_in_bfloat16_with_it(jaxlib, given, set_to, monkeypatch):
    """That gradients in bfloat16 are right, whatever the jaxlib, is in test_contract.py."""
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(compiler, "version", lambda name: jaxlib)
    compiler.sum_in_float32()
    assert os.environ["XLA_FLAGS"] == set_to


@pytest.mark.parametrize(
    ("chosen", "platforms", "kept"),
    [(None, "cpu", False), (None, "tpu,cpu", True), (None, "cuda", True), ("/elsewhere", "tpu,cpu", False)],
)
def test_programs_are_kept_on_accelerators_where_the_user_has_not_chosen(
    chosen, platforms, kept, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_platforms
    try:
        jax.config.update("jax_compilation_cache_dir", chosen)
        jax.config.update("jax_platforms", platforms)
        compiler.keep_compiled_programs(print)
        folder = tmp_path / "home" / "bertjax" / f"jaxlib-{compiler.version('jaxlib')}"
        assert jax.config.jax_compilation_cache_dir == (str(folder) if kept else chosen)
        assert folder.exists() == kept
        assert not kept or folder.stat().st_mode & 0o777 == 0o700
    finally:
        jax.config.update("jax_platforms", before[1])
        jax.config.update("jax_compilation_cache_dir", before[0])


def test_a_home_that_cannot_be_written_to_keeps_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(compiler, "accelerator_expected", lambda: True)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compiler.keep_compiled_programs(print)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_user_without_a_home_keeps_nothing_and_is_told(monkeypatch):
    """As in many containers: HOME is not set, and the user has no entry in the list of users."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(compiler, "accelerator_expected", lambda: True)
    before, said = jax.config.jax_compilation_cache_dir, []
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compiler.keep_compiled_programs(said.append)
        assert compiler.cache_folder() is jax.config.jax_compilation_cache_dir is None and "no home folder" in said[0]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_flags_can_be_had_by_a_script():
    command = [sys.executable, "-m", "bertjax.machine.xla_flags", "v4", "--slices", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout == "--xla_enable_async_all_gather=true\n"


def test_plan_restarts_once_with_an_unlimited_stack():
    """What a process finds as it begins is what the compiler finds that it loads."""
    if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
        pytest.skip("stacks have a limit here that cannot be lifted")
    script = (
        "import resource; from bertjax.machine.xla_flags import deep_stacks\n"
        "print('begun', flush=True); deep_stacks(); "
        "soft, most = resource.getrlimit(resource.RLIMIT_STACK); print(soft == resource.RLIM_INFINITY)"
    )
    limited = ["sh", "-c", 'ulimit -S -s 8192 && exec "$0" "$@"', sys.executable, "-c", script]
    found = subprocess.run(limited, check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["begun", "begun", "True"]


def test_only_a_plan_in_its_own_process_restarts(monkeypatch, capsys):
    begun, words = [], ["plan", "experiments/bert.py", "--topology", "v9:1x1"]
    monkeypatch.setattr(compiler, "deep_stacks", lambda: begun.append(True))
    assert main(words) == 2 and not begun
    monkeypatch.setattr(sys, "argv", ["bertjax", *words])
    assert main() == 2 and begun
    assert "v9" in capsys.readouterr().err

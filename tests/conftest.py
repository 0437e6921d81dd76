"""Set up every test alike: 8 fake devices, rank promotion is an error, small corpora made once."""

import os
import tempfile
from importlib.metadata import version

from texts import make_documents, wordpiece_files

# Most of the time of these tests is compilation, so it is done with little optimisation, as one piece of machine code,
# and by the quicker emitters where there is a choice: later versions have none, and stop at a flag unknown to them.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
)
# Eight devices share the threads of one pool, and each collective that waits for the others holds one of them. A
# program with independent collectives (two models) runs out of threads and waits for ever; this is their number.
os.environ.setdefault("NPROC", "64")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The compiler for TPUs asks no server what machine this is, and several workers may load it.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import pytest
from contract import OBJECTIVES
from runs import shared_programs
from suite import groups, skips, termination

from bertjax.data.build import BuildSettings, build
from bertjax.data.corpus import split_sentences
from bertjax.data.tokenizer import load_tokenizer, tokenizer_from_files
from bertjax.machine.xla_flags import sum_in_float32

sum_in_float32()  # as the commands do
jax.config.update("jax_numpy_rank_promotion", "raise")
_cache = tempfile.TemporaryDirectory(prefix="bertjax-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name  # which remembers the corpora that were verified
jax.config.update("jax_traceback_in_locations_limit", 0)  # no place in a file for each operation: nothing shows it
# The same small programs are compiled again and again: keep all of them for the session, for all workers, which inherit
# this; with the variable set, from one session to the next. A program that is half written when another worker reads it
# is compiled again, with a warning.
if "BERTJAX_TEST_PROGRAMS" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="bertjax-tests-")
    os.environ["BERTJAX_TEST_PROGRAMS"] = _programs.name
jax.config.update("jax_compilation_cache_dir", os.environ["BERTJAX_TEST_PROGRAMS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


pytest_addoption = skips.add_option


def pytest_configure(config):
    termination.install()
    for plugin in (groups, skips):
        config.pluginmanager.register(plugin)


@pytest.hookimpl(tryfirst=True)  # before the marks are read
def pytest_collection_modifyitems(items):
    """Leave one row of each kind of objective to `make test`, and what is dear for BERT alone: the others are slow."""
    first = {type(objective): name for name, objective in reversed(OBJECTIVES.items())}.values()
    for item in items:
        if item.path.name != "test_contract.py" or not hasattr(item, "callspec"):
            continue
        if "encoder" in item.fixturenames:
            item.add_marker("broad")
        elif not set(item.callspec.params.values()) <= ({"bert"} if item.get_closest_marker("broad") else set(first)):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_from_files(wordpiece_files(), origin="the test vocabulary")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, tokenizer):
    """Build a corpus of 300 documents in two shards, a tenth of them held out."""
    folder = tmp_path_factory.mktemp("made") / "corpus"
    settings = BuildSettings(split_sentences, holdout=0.1, shard_tokens=8000)
    build(make_documents(300), tokenizer, folder, settings)
    return str(folder)


@pytest.fixture(scope="module")
def programs():
    """Let the runs of a module share what they compile."""
    with shared_programs():
        yield


@pytest.fixture
def tokenizer_folder(tmp_path):
    for name, content in wordpiece_files().items():
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        (tmp_path / "tokenizer" / name).write_bytes(content)
    load_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"

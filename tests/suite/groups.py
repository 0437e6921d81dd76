"""Group the tests: those that share fixtures and compiled programs run one after another, in one worker.

A group is what the mark `xdist_group` names, else a file. Files whose tests take longest begin first, so that no worker
is left alone with one of them at the end; a file that is missing from the list only begins later.
"""

import gc

import jax
import pytest

LONGEST = (
    "tests/models/test_relative.py",
    "tests/gs/test_gs.py",
    "tests/run/test_ways_out.py",
    "tests/run/test_processes.py",
    "tests/plan/test_compiled.py",
    "tests/objectives/test_use.py",
    "tests/security/test_hostile.py",
    "tests/docs/test_extending.py",
    "tests/test_train.py",
    "tests/test_tpu.py",
    "tests/finetuning/test_finetune_run.py",
    "tests/commands/test_main.py",
    "tests/sharding/test_sharding.py",
    "tests/data/test_real_text.py",
    "tests/objectives/test_rtd.py",
    "tests/objectives/test_distil.py",
    "tests/objectives/test_sift.py",
    "tests/models/test_encoder.py",
    "tests/models/test_xlnet.py",
    "tests/checkpoints/test_warm_start.py",
    "tests/test_contract.py",
)


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def group_of(item: pytest.Item) -> str:
    """Return the group of a test: its `xdist_group` mark, or its file without one."""
    mark = item.get_closest_marker("xdist_group")
    return file_of(item) if mark is None else str(mark.args[0] if mark.args else mark.kwargs["name"])


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the ids of the tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring the tests of a group together; in a worker of xdist, mark each test with its group."""
    first: dict[tuple[str, str], int] = {}
    for number, item in enumerate(items):
        if hasattr(config, "workerinput") and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(file_of(item)))
        first.setdefault((file_of(item), group_of(item)), number)
    files = dict.fromkeys([*LONGEST, *map(file_of, items)])
    rank = {file: number for number, file in enumerate(files)}
    items.sort(key=lambda item: (rank[file_of(item)], first[file_of(item), group_of(item)]))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage seldom, and only what the tests make: tracing makes many objects, and few of them are garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(trylast=True)  # after the fixtures of a module, which may use its programs
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forget the compiled programs of a group: each maps memory, and a process may have 65,530 maps."""
    if nextitem is None or group_of(nextitem) != group_of(item):
        jax.clear_caches()
        gc.collect()

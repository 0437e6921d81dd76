"""States saved in a thread, with writers that fail: files of a few bytes instead of Orbax."""

import json
import threading
import time

import numpy as np
import pytest

from bertjax.checkpoints import saving
from bertjax.checkpoints.saving import BackgroundSaves
from bertjax.errors import SaveFailed


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(saving, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(saving, "LONGEST_PAUSE", 0.004)


def write(folder, arrays, info):
    folder.mkdir()
    (folder / "w").write_bytes(arrays["w"].tobytes())


def verify(folder, arrays, info):
    if (folder / "w").read_bytes() != arrays["w"].tobytes():
        raise ValueError("not what was written")


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the saves of a run, the folder, and what was reported."""
    folder, said = tmp_path / "checkpoints", []
    folder.mkdir()

    def open_saves(write=write, verify=verify, keep=2, keep_every=0):
        options = {"keep": keep, "keep_every": keep_every, "write": write, "verify": verify, "report": said.append}
        return BackgroundSaves(folder, **options)

    return open_saves, folder, said


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(folder):
    return json.loads((folder.parent / "saved.json").read_text())["step"]


def test_the_newest_are_kept_and_the_asked_ones_and_the_finished_one_is_noted(opened):
    open_saves, folder, said = opened
    with open_saves(keep_every=4) as saves:
        assert saved(folder) is None
        for step in range(3, 9):
            saves.save(step, {"w": np.full(2, step)}, {})
            saves.wait_until_finished()
    assert names(folder) == ["4", "7", "8"] and saved(folder) == 8 and not said


def test_what_a_killed_process_left_is_removed(opened):
    open_saves, folder, _ = opened
    for name in ("5", "6.saving", "6.saving.orbax-checkpoint-tmp", "4.deleting", "7.orbax-checkpoint-tmp-1"):
        (folder / name).mkdir()
    open_saves().close()
    assert names(folder) == ["5"] and saved(folder) == 5


def test_attempts_are_repeated_reported_and_cost_no_checkpoint(opened, monkeypatch):
    open_saves, folder, said = opened
    with open_saves(keep=1) as saves:
        saves.save(1, {"w": np.ones(2)}, {})
        saves.wait_until_finished()
        monkeypatch.setenv(
            "BERTJAX_FAULT", "checkpoint.write:enospc@1-2,checkpoint.written:flip@1,checkpoint.commit:eacces@1"
        )
        saving.fault.__globals__["_passes"].clear()
        seen = []
        monkeypatch.setattr(saves, "_report", lambda text: (said.append(text), seen.append(names(folder))))
        saves.save(2, {"w": np.ones(2)}, {})
        saves.wait_until_finished()
    assert len(said) == 5 and "is saved, after 4 failed attempts" in said[-1]
    assert "No space left" in said[0] and "training goes on" in said[0]
    assert "not what was written" in said[2] and "Permission denied" in said[3]
    assert seen[:4] == 4 * [["1"]] and names(folder) == ["2"]


def test_a_disk_that_stays_full_ends_the_run_after_some_attempts_with_what_was_there(opened):
    open_saves, folder, said = opened
    (folder / "1").mkdir()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    saves = open_saves(write=fail)
    saves.save(2, {"w": np.ones(2)}, {})
    with pytest.raises(SaveFailed, match=r"step 2 was not saved \(.*No space left.*8 attempts.*run the same command"):
        saves.close()
    assert names(folder) == ["1"] and len(said) == saving.ATTEMPTS - 1 and not saves._thread.is_alive()


def test_a_newer_state_replaces_one_whose_attempts_fail_and_pauses_stay(opened, monkeypatch):
    open_saves, folder, _ = opened
    monkeypatch.setattr(saving, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(saving, "LONGEST_PAUSE", 0.2)
    tried = []

    def fail_twice(folder, arrays, info):
        tried.append((int(arrays["w"][0]), time.monotonic()))
        if len(tried) < 3:
            raise OSError(122, "Disk quota exceeded")
        write(folder, arrays, info)

    with open_saves(write=fail_twice) as saves:
        for step in range(1, 40):
            saves.save(step, {"w": np.full(2, step)}, {})
    assert [step for step, _ in tried] == [1, 39, 39] and names(folder) == ["39"]
    assert min(np.diff([at for _, at in tried])) > 0.15


def test_a_state_is_copied_before_training_goes_on_and_no_state_is_left_out(opened):
    open_saves, folder, _ = opened
    going, found = threading.Event(), []

    def slow(folder, arrays, info):
        going.wait(5)
        found.append(arrays["w"].tolist())
        write(folder, arrays, info)

    with open_saves(write=slow) as saves:
        for step in (1, 2):
            state = np.full(2, step)
            saves.save(step, {"w": state}, {})
            state[:] = -1
            going.set()
    assert found == [[1, 1], [2, 2]] and names(folder) == ["1", "2"]


def test_an_old_checkpoint_goes_only_after_the_new_one_was_read_back(opened):
    open_saves, folder, _ = opened
    (folder / "1").mkdir()
    seen = []

    def look(folder_, arrays, info):
        seen.append(names(folder))
        verify(folder_, arrays, info)

    with open_saves(verify=look, keep=1) as saves:
        saves.save(2, {"w": np.ones(2)}, {})
    assert seen == [["1", "2.saving"]] and names(folder) == ["2"]


def test_a_state_that_comes_while_an_older_one_is_tried_again_is_saved_after_it(opened, monkeypatch):
    open_saves, folder, said = opened
    monkeypatch.setattr(saving, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(saving, "LONGEST_PAUSE", 0.2)
    again, handed_over, attempts = threading.Event(), threading.Event(), []

    class Large:
        """An array whose copy takes until the older state is tried again."""

        def __array__(self, dtype=None, copy=None):
            assert again.wait(5)
            return np.full(2, 2)

    def fail_once(folder, arrays, info):
        attempts.append(int(arrays["w"][0]))
        if len(attempts) == 1:
            raise OSError(28, "No space left on device")
        again.set()
        assert handed_over.wait(5)
        write(folder, arrays, info)

    with open_saves(write=fail_once) as saves:
        saves.save(1, {"w": np.full(2, 1)}, {})
        while not said:
            time.sleep(0.002)
        saves.save(2, {"w": Large()}, {})
        handed_over.set()
    assert attempts == [1, 1, 2] and names(folder) == ["1", "2"] and saved(folder) == 2


@pytest.mark.parametrize("kind", ["listing", "removing", "report", "exit"])
def test_no_error_ends_the_thread_and_hangs_the_run(opened, monkeypatch, kind):
    open_saves, folder, said = opened
    for name in ("1", "2", "²"):
        (folder / name).mkdir()

    def fail(*arguments):
        raise SystemExit("a library") if kind == "exit" else OSError(116, "Stale file handle")

    saves = open_saves(write=fail if kind != "listing" else write, keep=1)
    if kind in ("listing", "removing"):
        monkeypatch.setattr(saves, "_finished" if kind == "listing" else "_remove_unfinished", fail)
    if kind == "report":
        monkeypatch.setattr(saves, "_report", fail)
    saves.save(3, {"w": np.ones(2)}, {})
    saves._thread.join(0.2)
    assert saves._thread.is_alive()
    if kind == "listing":
        saves.close()
        assert names(folder) == ["1", "2", "3", "²"] and "old checkpoints in" in said[0] and "Stale" in said[0]
    else:
        with pytest.raises(SaveFailed, match="step 3 was not saved"):
            saves.close()


def test_a_folder_of_another_name_is_no_checkpoint(opened):
    open_saves, folder, said = opened
    for name in ("1", "2", "²"):
        (folder / name).mkdir()
    with open_saves(keep=1) as saves:
        assert saved(folder) == 2
        saves.save(3, {"w": np.ones(2)}, {})
    assert names(folder) == ["3", "²"] and not said

"""The note of what Orbax has saved, with a manager that finishes checkpoints when it is told to."""

import json
import threading
import time

import pytest

from bertjax.checkpoints import checkpoint, shared
from bertjax.checkpoints.newest import check_not_emptied
from bertjax.checkpoints.shared import SharedSaves


class Manager:
    def __init__(self, folder):
        self.folder, self.writing, self.going, self.error = folder, [], threading.Event(), None

    def save(self, step, args):
        self.writing.append(step)
        return True

    def finish(self):
        for step in self.writing:
            (self.folder / str(step)).mkdir()
        self.writing = []

    def wait_until_finished(self):
        if self.error:
            raise self.error
        self.finish()

    def close(self):
        pass


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "LOOK", 0.01)
    folder, said = tmp_path / "checkpoints", []
    folder.mkdir()
    manager = Manager(folder)
    return lambda: SharedSaves(manager, folder, lambda: [int(path.name) for path in folder.iterdir()], said.append), (
        manager,
        tmp_path,
        said,
    )


def saved(run):
    return json.loads((run / "saved.json").read_text())["step"]


def test_a_checkpoint_is_noted_once_it_is_finished_and_not_before(opened):
    open_saves, (manager, run, said) = opened
    with open_saves() as saves:
        assert saved(run) is None
        saves.save(5, None)
        time.sleep(0.05)
        assert saved(run) is None
        manager.finish()
        deadline = time.monotonic() + 5
        while saved(run) != 5:
            assert time.monotonic() < deadline
        saves.save(9, None)
    assert saved(run) == 9 and not said
    (run / "saved.json").write_text('{"step": null}')  # killed between the checkpoint and its note
    open_saves().close()
    assert saved(run) == 9


def test_a_checkpoint_that_failed_is_not_noted_and_nothing_waits_for_it(opened):
    open_saves, (manager, run, _) = opened
    saves = open_saves()
    saves.save(5, None)
    manager.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        saves.close()
    assert saved(run) is None and saves._looking is None


def test_several_processes_killed_in_their_first_checkpoint_begin_again(tmp_path, monkeypatch):
    monkeypatch.setattr("bertjax.checkpoints.checkpoint.in_cloud", lambda path: True)  # as of several: Orbax writes
    (tmp_path / "log.jsonl").write_text('{"step": 12}\n')
    checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=1, keep_every=0).close()
    check_not_emptied(tmp_path, 10)

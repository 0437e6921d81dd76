import json
import shutil

import pytest

from bertjax.checkpoints.checkpoint import Damaged
from bertjax.checkpoints.newest import check_not_emptied, read_newest
from bertjax.errors import InputError


@pytest.fixture
def run(tmp_path):
    for step in (5, 9, 10, 20):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    return tmp_path


def damaged(*names, gone=()):
    """Return a reader that finds checkpoints of some names damaged, and others deleted as it reads them."""

    def read(path):
        if path.name in gone:
            shutil.rmtree(path)
            raise InputError(f"checkpoint {path} is gone")
        if path.name in names:
            raise Damaged(f"checkpoint {path} is damaged (a bit): move that folder away to go on from step 5")
        return path.name

    return read


def test_the_newest_that_can_be_read_is_found_and_the_others_are_named(run):
    said = []
    found, path, bad = read_newest(run, damaged("20", "10"), said.append)
    assert (found, path.name, [each.name for each in bad]) == ("9", "9", ["20", "10"])
    assert said[0].endswith("20 is damaged (a bit)") and "10 is damaged" in said[1] and "using" in said[2]
    assert read_newest(run, damaged(), said.append)[0] == "20" and len(said) == 3


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_called_damaged(run):
    said = []
    assert read_newest(run, damaged(gone=("20", "10")), said.append)[0] == "9" and not said


def test_all_damaged_is_an_error_with_each_of_them(run):
    with pytest.raises(InputError, match=r"20 is damaged.*10 is damaged.*5 is damaged"):
        read_newest(run, damaged("5", "9", "10", "20"), print)


def test_one_that_is_given_itself_is_refused(run):
    step = run / "checkpoints" / "20"
    (step / "info").mkdir()
    with pytest.raises(Damaged, match="20 is damaged"):
        read_newest(step, damaged("20"), print)


def test_other_mistakes_are_no_reason_to_go_on(run):
    def read(path):
        raise InputError("another tokenizer")

    with pytest.raises(InputError, match="another tokenizer"):
        read_newest(run, read, print)


@pytest.mark.parametrize(
    ("saved", "log", "names", "message"),
    [
        (None, [], [], ""),
        ({"step": None}, [1, 2, 30], [], ""),  # killed before its first checkpoint was finished
        ({"step": 20}, [1, 2, 30], [], "had saved step 20: is its disk mounted"),
        (None, [1, 2, 30], [], "had saved step 30"),
        (None, [1, 2, 9], [], ""),  # a run of an earlier version, killed before its first checkpoint
        ({"step": 20}, [1], ["20.diverged", "10.damaged"], "only 10.damaged, 20.diverged"),
    ],
)
@pytest.mark.parametrize("mounted", [True, False])
def test_a_run_without_its_checkpoints_does_not_begin_again(tmp_path, saved, log, names, message, mounted):
    if not mounted and names:
        return
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    if mounted:
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
    if saved:
        (tmp_path / "saved.json").write_text(json.dumps(saved))
    if log:
        (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in log) + '{"st')
    if message:
        with pytest.raises(InputError, match=message):
            check_not_emptied(tmp_path, 10)
    else:
        check_not_emptied(tmp_path, 10)


@pytest.mark.parametrize("last", ['{"step": Infinity}', '{"step": NaN}', '{"step": true}', '{"step": 25.5}', "[]"])
def test_a_log_that_names_no_step_is_read_before_it(tmp_path, last):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 31}}\n{last}\n')
    with pytest.raises(InputError, match="had saved step 30"):
        check_not_emptied(tmp_path, 10)


def test_a_checkpoint_may_have_any_name_elsewhere(tmp_path):
    (tmp_path / "²" / "info").mkdir(parents=True)
    assert read_newest(tmp_path / "²", damaged(), print)[0] == "²"

"""A link, a FIFO or a second name in a folder of others: nothing outside of the folder is read or written."""

import hashlib
import json
import os
import shutil
import stat
from contextlib import suppress

import numpy as np
import pytest

from bertjax.checkpoints.checkpoint import open_checkpoints
from bertjax.checkpoints.trained import load
from bertjax.data.records import corpus_tokenizer
from bertjax.data.source import Corpus
from bertjax.data.tokenizer import load_tokenizer, saved_tokenizer
from bertjax.errors import InputError
from bertjax.finetuning.results import read_json, write_json
from bertjax.huggingface.folder import write_folder
from bertjax.run.workdir import lock_workdir
from bertjax.run.writers import Log, Timing
from bertjax.storage import files
from bertjax.tasks.loading import load_examples
from bertjax.tasks.own import own_task
from bertjax.tasks.table import find_task


@pytest.fixture
def secret(tmp_path):
    """Return a file outside of every folder, whose content must neither be read nor change."""
    (tmp_path / "secret").write_text("token")
    yield tmp_path / "secret"
    assert (tmp_path / "secret").read_text() == "token"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home" / "below").mkdir(parents=True)
    (tmp_path / "home" / "file").write_text("content")
    return tmp_path / "home"


def test_a_file_of_a_folder_is_read(home, tmp_path):
    assert files.read_inside(home, "file") == b"content"
    (home / "below" / "near").symlink_to("../file")
    assert files.read_inside(home, "below/near") == b"content"
    (tmp_path / "named").symlink_to(home)  # by the user
    assert files.read_inside(tmp_path / "named", "file") == b"content"
    (tmp_path / "named-file").symlink_to(home / "file")
    with files.open_given(tmp_path / "named-file") as file:
        assert file.read() == b"content"


def links_to(secret, home):
    (home / "link").symlink_to(secret)
    (home / "relative").symlink_to("../secret")
    (home / "twice").symlink_to("link")
    (home / "folder").symlink_to(secret.parent)
    (home / "circle").symlink_to("circle")
    return ["link", "relative", "twice", "folder/secret", "../secret", str(secret), "circle", "nul\0", "nothing", ""]


@pytest.mark.parametrize("case", range(10))
def test_no_file_outside_is_read(case, secret, home):
    with pytest.raises(InputError, match=r"outside the folder|is missing|cannot be opened|is a folder|not a plain"):
        files.read_inside(home, links_to(secret, home)[case])


def test_links_lead_to_the_blobs_of_a_cache(tmp_path, secret):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "1234"
    (snapshot / "below").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("content")
    (snapshot / "below" / "file").symlink_to("../../../blobs/abc")
    assert files.read_inside(snapshot, "below/file") == files.read_inside(snapshot / "below", "file") == b"content"
    files.check_tree(snapshot)
    (blobs / "out").symlink_to(secret)
    (snapshot / "out").symlink_to("../../blobs/out")
    with pytest.raises(InputError, match="outside the folder"):
        files.read_inside(snapshot, "out")
    with pytest.raises(InputError, match="outside the folder"):
        files.check_tree(snapshot)


def test_only_regular_files_of_a_bounded_size_are_opened(home):
    os.mkfifo(home / "fifo")
    for name in ("fifo", "below"):
        with pytest.raises(InputError, match="not a plain file"):
            files.read_inside(home, name)
    with pytest.raises(InputError, match="not a plain file"):
        files.open_given(home / "fifo")
    with pytest.raises(InputError, match="not a plain file"):
        files.open_append(home / "fifo")
    with pytest.raises(InputError, match="not a plain file"):
        files.check_tree(home)
    with pytest.raises(InputError, match="7 bytes: no real one is over 6"):
        files.read_inside(home, "file", 6)
    with (home / "long").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="no real one"):
        files.read_inside(home, "long")


def test_a_tree_is_checked_before_a_library_opens_it(home, secret):
    files.check_tree(home)
    (home / "below" / "link").symlink_to(secret)
    with pytest.raises(InputError, match="outside the folder"):
        files.check_tree(home)
    with pytest.raises(InputError, match="outside the folder"):
        files.check_tree(home, "below")
    with pytest.raises(InputError, match="outside the folder"):
        files.files_below(home)


@pytest.mark.parametrize("name", ["file", "file.partial"])
def test_writing_follows_no_link(name, home, secret):
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to(secret)
    files.write(home / "file", "new")
    assert (home / "file").read_text() == "new" and not (home / "file").is_symlink()
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to(secret)
    with files.written_by_name(home / "file") as partial:
        partial.write_text("by name")
    assert (home / "file").read_text() == "by name" and sorted(os.listdir(home)) == ["below", "file"]


def test_a_failed_write_leaves_what_was_there(home):
    for context in (files.writing, files.written_by_name):
        with pytest.raises(ZeroDivisionError), context(home / "file"):
            1 / 0  # noqa: B018
    assert sorted(os.listdir(home)) == ["below", "file"] and (home / "file").read_text() == "content"


def test_appending_follows_no_link(home, secret):
    with files.open_append(home / "log") as log:
        log.write("a\n")
    with files.open_append(home / "log") as log:
        log.write("b\n")
    assert (home / "log").read_text() == "a\nb\n"
    (home / "link").symlink_to(secret)
    os.link(secret, home / "second")
    for name in ("link", "second"):
        with pytest.raises(InputError, match="delete it"):
            files.open_append(home / name)


def test_a_folder_is_made_where_no_link_leads_out(home, secret):
    assert files.make_folder(home, "a/b").is_dir() and files.make_folder(home, "a/b") == home / "a" / "b"
    (home / "a" / "link").symlink_to(secret.parent)
    with pytest.raises(InputError, match="is a link to"):
        files.make_folder(home, "a/link/c")


def test_circles_of_links_are_named(home):
    (home / "circle").symlink_to("circle")
    with pytest.raises(InputError, match=r"circle' cannot be opened|circle is missing|circle is not"):
        files.open_given(home / "circle")
    with pytest.raises(InputError, match=r"circle' cannot be opened|circle/x is missing"):
        files.read_inside(home / "circle", "x")
    with pytest.raises(InputError, match="circle"), files.new_folder(home / "circle"):
        pytest.fail("it is written")


def test_a_new_folder_may_be_a_link_of_the_user(home):
    (home / "link").symlink_to("below")
    with files.new_folder(home / "link") as folder:
        folder.mkdir()
        (folder / "written").touch()
    assert (home / "link").is_symlink() and os.listdir(home / "below") == ["written"]
    with pytest.raises(InputError, match="is not empty"), files.new_folder(home / "link"):
        pytest.fail("it is written")


@pytest.mark.parametrize("fails", [False, True])
def test_a_new_folder_may_be_a_mount_point(home, monkeypatch, fails):
    (home / "mounted").mkdir()
    remove = type(home).rmdir

    def busy(folder):
        if folder.name == "mounted":
            raise OSError(16, "Device or resource busy", str(folder))
        remove(folder)

    monkeypatch.setattr(type(home), "rmdir", busy)
    with suppress(KeyError), files.new_folder(home / "mounted") as folder:
        (folder / "below").mkdir(parents=True)
        (folder / "below/written").touch()
        if fails:
            raise KeyError
    written = [path for path in (home / "mounted").rglob("*") if path.is_file()]
    assert written == ([] if fails else [home / "mounted/below/written"]) and len(os.listdir(home / "mounted")) < 2
    assert fails or os.listdir(home / "mounted") == ["below"]


@pytest.mark.parametrize("text", ["\ud800", "a\udc80\u00e9"])
def test_halves_of_surrogate_pairs_are_written_as_json_spells_them(home, text):
    files.write(home / "written", json.dumps({text: text}, ensure_ascii=False))
    assert json.loads((home / "written").read_bytes()) == {text: text}


def test_files_have_the_modes_that_the_umask_gives(home):
    def by_name():
        with files.written_by_name(home / "named") as partial:
            partial.unlink()
            partial.touch(0o600)

    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        files.write(home / "written", b"")
        by_name()
        files.open_append(home / f"appended-{umask}").close()
        os.umask(before)
        found = {stat.S_IMODE((home / name).stat().st_mode) for name in ("written", "named", f"appended-{umask}")}
        assert found == {mode}


def command(*words):
    from bertjax.commands.main import main

    return main([str(word) for word in words])


@pytest.fixture
def vocabulary(tmp_path):
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    return folder


SETTINGS = {"read_as": "BertTokenizer", "cls_token": "[CLS]", "aws_secret_access_key": "hidden", "unk_token": ["x", {}]}


def test_settings_of_a_tokenizer_are_carried_on_by_their_keys(vocabulary, tmp_path):
    first = load_tokenizer(vocabulary)
    described = json.dumps(json.loads(first.library.to_str()) | {"added_tokens": []})
    (vocabulary / "tokenizer.json").write_text(described)
    (vocabulary / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"parse_special_tokens": False}))
    try:
        kept = load_tokenizer(vocabulary).files["tokenizer_config.json"]
    except InputError:  # it lacks model_input_names, which bertjax writes
        (vocabulary / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"model_input_names": ["input_ids"]}))
        kept = load_tokenizer(vocabulary).files["tokenizer_config.json"]
    assert (
        b"hidden" not in kept
        and b"cls_token" in kept
        and json.loads(kept).keys() <= SETTINGS.keys() | {"model_input_names"}
    )


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_tokenizer_folder_has_no_link_that_leads_out(name, vocabulary, secret):
    (vocabulary / name).unlink(missing_ok=True)
    (vocabulary / name).symlink_to(secret)
    for read in (load_tokenizer, saved_tokenizer):
        with pytest.raises(InputError, match="outside the folder"):
            read(vocabulary)


def test_texts_have_no_link_that_leads_out(vocabulary, secret, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "link.txt").symlink_to(secret)
    build = ["data", "build", tmp_path / "texts", "--format", "plain", "--tokenizer", vocabulary]
    assert command(*build, "--out", tmp_path / "corpus", "--workers", 0) == 2
    assert "outside the folder" in capsys.readouterr().err and not (tmp_path / "corpus").exists()


def test_labelled_data_have_no_link_that_leads_out(secret, tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "train.tsv").symlink_to(secret)
    with pytest.raises(InputError, match="outside the folder"):
        own_task("classify", str(folder), ("text",), "label")
    with pytest.raises(InputError, match="outside the folder"):
        load_examples(find_task("sst2"), str(folder), "train")


@pytest.mark.parametrize("name", ["manifest.json", "corpus-train-*.sentences.npy", "corpus-train.array_record-*",
                                  "tokenizer/vocab.txt", "tokenizer"])  # fmt: skip
def test_a_corpus_has_no_link_that_leads_out(name, corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    path = sorted(copy.glob(name))[-1]
    shutil.move(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=r"outside the folder|is a link to"):
        Corpus(str(copy), "train")
        corpus_tokenizer(copy)


def test_the_index_of_a_corpus_holds_what_its_manifest_says(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    path = min(copy.glob("corpus-train-00000-*.sentences.npy"))
    claims = b"{'descr': '<i4', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(117) + b"\n"
    for content in (b"PK\x03\x04" + bytes(100), b"\x93NUMPY\x01\x00\x76\x00" + claims, b""):
        path.write_bytes(content)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["splits"]["train"][0]["sha256"][1] = hashlib.sha256(content).hexdigest()
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="build the corpus again"):
            Corpus(str(copy), "train")


@pytest.mark.parametrize("name", ["lock", "log.jsonl", "log.jsonl.partial", "timing.jsonl", "experiment.json",
                                  "experiment.json.partial", "results.json", "checkpoints", "predictions",
                                  "seed-0"])  # fmt: skip
def test_a_run_writes_through_no_link(name, tmp_path, secret):
    """It is refused before anything is written, wherever in the folder the link is."""
    folder = tmp_path / "run"
    (folder / "seed-1" / "best").mkdir(parents=True)
    for place in (folder / name, folder / "seed-1" / name, folder / "seed-1" / "best" / name):
        place.symlink_to(secret.parent if name in ("checkpoints", "predictions", "seed-0") else secret)
        with pytest.raises(InputError, match=r"is a link to"), lock_workdir(folder):
            pytest.fail("the run begins")
        place.unlink()
    (folder / name).unlink(missing_ok=True)  # the lock
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=r"not a plain file"), lock_workdir(folder):
        pytest.fail("the run begins")
    (folder / name).unlink()
    with lock_workdir(folder):
        assert sorted(os.listdir(secret.parent)) == ["run", "secret"]


def test_what_a_run_appends_to_is_no_link(tmp_path, secret):
    """If the link comes later than the check of the folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, write in {
        "timing.jsonl": lambda: Timing(folder, print),
        "log.jsonl": lambda: Log(folder, 0),
        "checkpoints": lambda: open_checkpoints(folder / "checkpoints", keep=1, keep_every=0),
        "predictions": lambda: files.make_folder(folder, "predictions/validation"),
    }.items():
        (folder / name).symlink_to(secret if "." in name else secret.parent)
        with pytest.raises(InputError, match="is a link to"):
            write()
    (folder / "results.json").symlink_to(secret)
    write_json(folder / "results.json", {})
    assert not (folder / "results.json").is_symlink()


def test_a_run_is_read_through_no_link(tmp_path, secret):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "info").mkdir(parents=True)
    (tmp_path / "other" / "info" / "metadata").write_text("{}")
    (folder / "checkpoints" / "7").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="outside the folder"):
        load(folder)
    (folder / "checkpoints" / "7").unlink()
    (folder / "checkpoints" / "7").mkdir()
    (folder / "checkpoints" / "7" / "info").symlink_to(tmp_path / "other" / "info")
    with pytest.raises(InputError, match="is a link to"):
        load(folder)
    (folder / "result.json").symlink_to(secret)
    with pytest.raises(InputError, match="outside the folder"):
        read_json(folder / "result.json", "delete it")


def test_exported_files_have_equal_modes(tmp_path):
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "new", {"model_type": "bert"}, {"x": np.zeros(3, np.float32)})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}

"""A link, a FIFO or a second name in a folder of others: nothing outside of the folder is read or written."""

import os
import stat

import pytest

from bertjax import files
from bertjax.errors import InputError


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

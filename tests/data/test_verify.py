import os
import shutil

import pytest

from bertjax.commands.main import main
from bertjax.data import verify
from bertjax.data.copy import copy_corpus
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.verify import verify_corpus
from bertjax.errors import InputError


@pytest.fixture
def copied(corpus, tmp_path, monkeypatch):
    """A corpus of its own, and the names of its files that were hashed."""
    shutil.copytree(corpus, tmp_path / "corpus")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashed = []
    digest = verify.file_digest
    monkeypatch.setattr(verify, "file_digest", lambda path: (hashed.append(path.name), digest(path))[1])
    return tmp_path / "corpus", hashed


def shards(folder):
    return sorted(folder.glob("*.array_record-*"))


def swap(a, b):
    a.rename(a.with_name("other"))
    b.rename(a)
    a.with_name("other").rename(b)


def test_shards_are_hashed_once_and_again_where_they_have_changed(copied):
    folder, hashed = copied
    rows = NextSentencePairs(str(folder), 16)
    digest = rows.digest()
    names = [path.name for path in shards(folder)]
    assert sorted(hashed) == names
    assert rows.digest() == digest and len(hashed) == len(names)
    os.utime(shards(folder)[0])
    assert rows.digest() == digest and len(hashed) == len(names) + 1


@pytest.mark.parametrize("remembered", [True, False])
def test_swapped_shards_are_refused_also_where_their_hashes_are_remembered(copied, remembered, monkeypatch):
    """Without the protection, tried too, only their sizes tell: of shards of one size nothing would."""
    folder, _ = copied
    rows = NextSentencePairs(str(folder), 16)
    if remembered:
        rows.digest()
    first, second = shards(folder)[:2]
    swap(first, second)
    for _ in range(2):  # what is wrong is not remembered as right
        with pytest.raises(InputError, match=f"{first.name} and 1 more: .*exchanged"):
            rows.digest()
    monkeypatch.setattr("bertjax.data.corpus_rows.verify_shards", lambda folder: None)
    with pytest.raises(InputError, match=f"{first.name} has 2 records of at most 1,024 tokens"):
        rows.digest()


def test_no_home_and_a_damaged_memory_only_cost_time(copied, monkeypatch, tmp_path):
    folder, hashed = copied
    rows = NextSentencePairs(str(folder), 16)
    rows.digest()
    (memory,) = (tmp_path / "cache" / "bertjax" / "corpora").iterdir()
    memory.write_bytes(b'{"a": \xff')
    rows.digest()
    monkeypatch.setattr(verify, "_memory_of", lambda home: None)
    rows.digest()
    assert len(hashed) == 3 * len(shards(folder))


def test_data_verify_reads_everything(copied, capsys):
    folder, _ = copied
    assert main(["data", "verify", str(folder), "--json"]) == 0
    assert f'"files": {3 * len(shards(folder))}' in capsys.readouterr().out
    index = next(folder.glob("*.sentences.npy"))
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)
    with pytest.raises(InputError, match=f"{index.name}: not the file"):
        verify_corpus(folder)
    index.unlink()
    with pytest.raises(InputError, match=f"lacks {index.name}"):
        verify_corpus(folder)


def test_a_copy_has_the_files_of_a_corpus_alone_and_another_tokenizer_is_refused(copied, tmp_path):
    folder, _ = copied
    for name in ("secret", "tokenizer/secret", "features.json.orig"):
        (folder / name).write_text("of somebody else")
    copy_corpus(folder, tmp_path / "copy")
    verify_corpus(tmp_path / "copy")
    assert not [path for path in (tmp_path / "copy").rglob("*") if {"secret", "features.json.orig"} & {path.name}]
    (path,) = folder.glob("tokenizer/vocab.txt")
    path.write_bytes(path.read_bytes() + b"another\n")
    with pytest.raises(InputError, match="is not the tokenizer that the corpus was built with"):
        copy_corpus(folder, tmp_path / "other")
    assert not (tmp_path / "other" / "manifest.json").exists()

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from corpora import files_of, read_documents, read_shards
from texts import make_documents, wordpiece_files

from bertjax.data import build as module
from bertjax.data.build import BuildSettings, build, one_sentence
from bertjax.data.corpus import Bad, Document, split_sentences
from bertjax.data.held_out import Repeats, by_number, text_hash
from bertjax.data.inspect import inspect_corpus
from bertjax.data.records import DOCUMENT, SENTENCE, WORD, read_manifest
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.errors import InputError

SETTINGS = BuildSettings(split_sentences, holdout=0.2, shard_tokens=500)
INVISIBLE = "\u200d \u0301"  # the tokenizer leaves nothing of this


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Pass few characters to a worker at a time, so that there are many batches and shards."""
    monkeypatch.setattr(module, "_BATCH", 1500)


def plain_settings(**changes):
    return BuildSettings(split_sentences, **({"holdout": 0} | changes))


def mixed_documents():
    documents = make_documents(60, seed=3)
    documents[5] = Document("made:5", ["", INVISIBLE, "Good people. \u200d Zzz 中 go!", " ", INVISIBLE])
    documents[7] = Document("made:7", [INVISIBLE])
    return documents


@pytest.mark.parametrize("cut", [split_sentences, one_sentence])
def test_a_corpus_equals_the_result_of_a_simple_loop_over_documents(tmp_path, tokenizer, cut):
    documents = mixed_documents()
    tokens, flags, sentences, counts, words, unknown, dropped = [], [], [], [], 0, 0, 0
    for document in documents:
        found = []
        for line in document.lines:
            for sentence in cut(line):
                words += len(sentence.split())
                ids = tokenizer.encode(sentence).ids.tolist()
                unknown += ids.count(tokenizer.vocabulary.unk)
                if ids:
                    found.append(ids)
        for number, ids in enumerate(found):
            for place, index in enumerate(ids):
                starts = place == 0 or not tokenizer.piece(index).startswith("##")
                flags.append(WORD * starts | SENTENCE * (place == 0) | DOCUMENT * (place == 0 == number))
            tokens += ids
            sentences.append(len(ids))
        if found:
            counts.append(len(found))
        else:
            dropped += 1
    manifest = build(documents, tokenizer, tmp_path / "corpus", BuildSettings(cut, holdout=0, shard_tokens=500))
    shards = read_shards(tmp_path / "corpus", "train")
    stream = [tokens, flags, sentences, counts]
    assert len(shards) > 2 and [list(chain(*column)) for column in zip(*shards, strict=True)] == stream
    assert manifest == read_manifest(tmp_path / "corpus")
    assert [manifest.total(x) for x in ("tokens", "sentences", "documents")] == [len(stream[i]) for i in (0, 2, 3)]
    assert (manifest.words, manifest.unknown) == (words, unknown) and unknown
    assert manifest.dropped == {"a document without tokens": dropped} and dropped == 1


def test_the_corpus_is_the_same_to_the_byte_for_any_number_of_workers(tmp_path, tokenizer):
    for workers in (0, 1, 2):
        settings = BuildSettings(split_sentences, holdout=0.2, shard_tokens=500, workers=workers)
        build(mixed_documents(), tokenizer, tmp_path / str(workers), settings)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1") == files_of(tmp_path / "2")


class Killed(BaseException):
    pass


def killed_after(documents, count):
    yield from documents[:count]
    raise Killed


def counting(monkeypatch):
    """Make a tokenizer that counts the texts that it was given."""
    tokenizer = tokenizer_from_files(wordpiece_files(), origin="the test vocabulary")
    given, ids = [], tokenizer.ids
    monkeypatch.setattr(tokenizer, "ids", lambda texts: given.extend(texts) or ids(texts))
    return tokenizer, given


@pytest.mark.parametrize("count", [1, 30, 59])
def test_a_killed_build_resumes_after_its_last_finished_shard(tmp_path, monkeypatch, count):
    documents = mixed_documents()
    tokenizer, given = counting(monkeypatch)
    build(documents, tokenizer, tmp_path / "whole", SETTINGS)
    total = len(given)
    with pytest.raises(Killed):
        build(killed_after(documents, count), tokenizer, tmp_path / "corpus", SETTINGS)
    finished = sum(path.name.endswith(".records.partial") for path in (tmp_path / "corpus").iterdir())
    given.clear()
    build(documents, tokenizer, tmp_path / "corpus", SETTINGS)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "whole")
    assert len(given) == total if count == 1 else finished > 2 and len(given) < total * (1.3 - count / 60)


@pytest.mark.parametrize(("name", "calls"), [("files.move_file", 4), ("write_manifest", 0)])
def test_a_build_killed_at_its_end_resumes_without_tokenising_again(tmp_path, monkeypatch, name, calls):
    documents = mixed_documents()
    tokenizer, given = counting(monkeypatch)
    build(documents, tokenizer, tmp_path / "whole", SETTINGS)
    owner = module.files if "." in name else module
    real, left = getattr(owner, name.rpartition(".")[2]), [calls]

    def killed(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name.rpartition(".")[2], killed)
        build(documents, tokenizer, tmp_path / "corpus", SETTINGS)
    given.clear()
    build(documents, tokenizer, tmp_path / "corpus", SETTINGS)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "whole")
    assert not given


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"holdout": 0.3}, "holdout"),
        ({"seed": 1}, "seed"),
        ({"shard_tokens": 501}, "shard_tokens"),
        ({"split_sentences": one_sentence}, "split_sentences"),
    ],
)
def test_the_beginning_of_another_build_is_left_alone(tmp_path, tokenizer, changes, named):
    documents = mixed_documents()
    with pytest.raises(Killed):
        build(killed_after(documents, 30), tokenizer, tmp_path, SETTINGS)
    before = files_of(tmp_path)
    given = {"split_sentences": split_sentences, "holdout": 0.2, "shard_tokens": 500} | changes
    with pytest.raises(InputError, match=f"{tmp_path} .* another {named}: .* delete the folder"):
        build(documents, tokenizer, tmp_path, BuildSettings(**given))
    with pytest.raises(InputError, match="another input:"):
        build(documents, tokenizer, tmp_path, SETTINGS, identity=[["other", 3]])
    other = tokenizer_from_files({"vocab.txt": wordpiece_files()["vocab.txt"] + b"\nzzz"}, origin="other")
    with pytest.raises(InputError, match="another tokenizer:"):
        build(documents, other, tmp_path, SETTINGS)
    assert files_of(tmp_path) == before


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, tokenizer):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=f"{tmp_path}/mine is not empty"):
        build(mixed_documents(), tokenizer, tmp_path / "mine", SETTINGS)
    build(mixed_documents(), tokenizer, tmp_path / "corpus", SETTINGS)
    before = files_of(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}/corpus already contains a corpus"):
        build(mixed_documents(), tokenizer, tmp_path / "corpus", SETTINGS)
    assert files_of(tmp_path) == before
    with pytest.raises(InputError, match="notes"):
        build(mixed_documents(), tokenizer, tmp_path / "mine" / "notes.txt", SETTINGS)


@pytest.mark.parametrize("documents", [[], [Document("a:1", [INVISIBLE, ""])], [Bad("a:1", "not UTF-8: x")]])
def test_nothing_to_build_from_is_an_error_and_leaves_no_corpus(tmp_path, tokenizer, documents):
    with pytest.raises(InputError, match=f"no documents.* {len(documents)} were skipped"):
        build(documents, tokenizer, tmp_path, BuildSettings(split_sentences, skip_bad=True))
    with pytest.raises(InputError, match="not a corpus"):
        read_manifest(tmp_path)


def bad_documents():
    documents = mixed_documents()
    documents[20:20] = [
        Bad("made.txt:31", "not UTF-8 (byte 0xff): convert it"),
        Bad("made.txt:33", "a NUL byte: is it?"),
    ]
    return [*documents, Bad("made.txt:99", "a NUL byte: is it?")]


def test_bad_input_stops_the_build_with_its_file_line_and_reason(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"made\.txt:31: not UTF-8 .byte 0xff.: convert it .*--skip-bad"):
        build(bad_documents(), tokenizer, tmp_path, SETTINGS)


def test_a_build_that_has_built_nothing_does_not_block_the_corrected_one(tmp_path, tokenizer):
    """Whatever is corrected: input, settings, tokenizer. Files of others stay, and block it."""
    bad = [Document("a.txt:1", ["the man"]), Bad("a.txt:2", "not UTF-8")]
    for given, identity in ((SETTINGS, "first"), (replace(SETTINGS, holdout=0.5), "second")):
        with pytest.raises(InputError, match="not UTF-8"):
            build(bad, tokenizer, tmp_path / "corpus", given, identity=identity)
    (tmp_path / "corpus" / "train-00000.records.partial").write_bytes(b"of a killed build")
    (tmp_path / "corpus" / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        build(mixed_documents(), tokenizer, tmp_path / "corpus", SETTINGS)
    (tmp_path / "corpus" / "mine.txt").unlink()
    build(mixed_documents(), tokenizer, tmp_path / "corpus", SETTINGS)
    build(mixed_documents(), tokenizer, tmp_path / "at once", SETTINGS)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "at once")
    (tmp_path / "own" / "tokenizer").mkdir(parents=True)  # of the user: nothing tells that a build has begun
    with pytest.raises(InputError, match="is not empty"):
        build(mixed_documents(), tokenizer, tmp_path / "own", SETTINGS)


def test_a_build_whose_disk_is_full_at_its_beginning_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    def full(progress, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        patch.setattr(module._Progress, "save", full)
        build(mixed_documents(), tokenizer, tmp_path, SETTINGS)
    build(mixed_documents(), tokenizer, tmp_path, replace(SETTINGS, holdout=0.5))


def test_bad_input_is_left_out_and_counted_where_asked(tmp_path, tokenizer):
    settings = BuildSettings(split_sentences, holdout=0, skip_bad=True)
    manifest = build(bad_documents(), tokenizer, tmp_path / "bad", settings)
    build(mixed_documents(), tokenizer, tmp_path / "good", plain_settings())
    assert read_documents(tmp_path / "bad", "train") == read_documents(tmp_path / "good", "train")
    assert manifest.dropped == {"not UTF-8 (byte 0xff)": 1, "a NUL byte": 2, "a document without tokens": 1}


def test_a_build_stopped_by_bad_input_resumes_with_skip_bad(tmp_path, tokenizer):
    with pytest.raises(InputError, match="--skip-bad"):
        build(bad_documents(), tokenizer, tmp_path / "corpus", plain_settings())
    build(bad_documents(), tokenizer, tmp_path / "corpus", plain_settings(skip_bad=True))


def test_held_out_documents_are_about_the_asked_share_whole_and_in_no_other_split(tmp_path, tokenizer):
    names = ["".join("abcdefghij"[int(digit)] for digit in f"{n:03}") for n in range(1000)]
    documents = [Document(name, [f"{name} is it. 1 {name}."]) for name in names]
    expected = [tokenizer.ids([f"{name} is it.", f" 1 {name}."]) for name in names]
    held_out = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(held_out))
        build(documents, tokenizer, folder, BuildSettings(split_sentences, holdout=0.1, seed=seed))
        splits = {split: read_documents(folder, split) for split in ("train", "validation")}
        found = Counter(map(str, splits["train"] + splits["validation"]))
        assert found == Counter(map(str, expected))
        assert [x for x in expected if x in splits["validation"]] == splits["validation"]
        assert abs(len(splits["validation"]) - 100) < 4 * 90**0.5
        held_out.append(splits["validation"])
    assert held_out[0] == held_out[1] != held_out[2]


def repeated_documents():
    """Make 90 documents of 30 texts, each three times."""
    return [Document(f"made:{n}", document.lines) for n, document in enumerate(3 * make_documents(30, seed=5))]


@pytest.mark.parametrize("killed", [0, 60])
def test_repeats_of_a_text_are_in_one_split_and_counted_also_where_the_build_was_killed(tmp_path, tokenizer, killed):
    settings = replace(SETTINGS, holdout=0.4)
    if killed:
        with pytest.raises(Killed):
            build(killed_after(repeated_documents(), killed), tokenizer, tmp_path, settings)
        assert sum(path.name.endswith(".records.partial") for path in tmp_path.iterdir()) > 2
    manifest = build(repeated_documents(), tokenizer, tmp_path, settings)
    train, validation = ({str(text) for text in read_documents(tmp_path, x)} for x in ("train", "validation"))
    assert not train & validation and len(train) > 9 and len(validation) > 4
    assert manifest.repeats == 60 and manifest == read_manifest(tmp_path)
    inspected = inspect_corpus(tmp_path)
    assert (inspected["repeats"], inspected["held_out"]) == (60, "by_text")


def test_a_build_that_a_former_version_began_is_finished_by_its_rule(tmp_path, tokenizer):
    """By number, in a manifest that does not name the rule."""
    documents, former = repeated_documents(), replace(SETTINGS, holdout=0.4, key=by_number)
    build(documents, tokenizer, tmp_path / "whole", former)
    with pytest.raises(Killed):
        build(killed_after(documents, 60), tokenizer, tmp_path / "corpus", former)
    assert "key" not in json.loads((tmp_path / "corpus" / "progress.json").read_text())["settings"]
    build(documents, tokenizer, tmp_path / "corpus", replace(SETTINGS, holdout=0.4))
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "whole")
    assert {"split_key", "repeats"}.isdisjoint(json.loads((tmp_path / "corpus" / "manifest.json").read_text()))
    train, validation = (read_documents(tmp_path / "corpus", split) for split in ("train", "validation"))
    assert {str(text) for text in train} & {str(text) for text in validation}
    drawn = [np.random.Generator(np.random.Philox(key=[0, number])).random() < 0.4 for number in range(1, 91)]
    assert len(validation) == sum(drawn)


def test_texts_differ_by_anything_but_blanks_alone():
    texts = [["a b"], ["a", "b"], ["a b "], ["a"], ["\udc80"]]
    assert len({text_hash(lines) for lines in texts} - {0}) == len(texts)
    assert {text_hash(lines) for lines in ([], [""], [" ", "\n"])} == {0}
    repeats = Repeats()
    assert repeats.count() == 0
    for text in (7, 0, 7, 2**64 - 1, 0, 7):
        repeats.add(text)
    assert repeats.count() == 2


def test_a_finished_corpus_leaves_nothing_unfinished_in_its_folder(tmp_path, tokenizer):
    texts = ["Good people.", INVISIBLE]
    for seed in range(8):
        documents = [Document("a", [text]) for text in texts]
        build(documents, tokenizer, tmp_path / str(seed), BuildSettings(split_sentences, holdout=0.5, seed=seed))
        assert not [name for name in files_of(tmp_path / str(seed)) if "partial" in name or "progress" in name]


def test_progress_is_reported_up_to_all_that_was_read_and_written(tmp_path, tokenizer):
    reports = []
    documents = mixed_documents()
    manifest = build(documents, tokenizer, tmp_path, SETTINGS, report=lambda *counts: reports.append(counts))
    assert reports == sorted(reports) and len(reports) > 3
    assert reports[-1] == (len(documents), manifest.total("tokens"))


@pytest.mark.parametrize("changes", [{"holdout": 1}, {"holdout": -0.1}, {"workers": -1}, {"shard_tokens": 0}])
def test_settings_that_make_no_sense_are_an_error_that_names_them(changes):
    with pytest.raises(InputError, match=f"{next(iter(changes))}={next(iter(changes.values()))}"):
        plain_settings(**changes)


def test_a_second_build_in_the_same_folder_is_refused(tmp_path, tokenizer):
    def documents():
        with pytest.raises(InputError, match=f"another build is running in {tmp_path}"):
            build(mixed_documents(), tokenizer, tmp_path, SETTINGS)
        yield from mixed_documents()

    build(documents(), tokenizer, tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"cannot write to {tmp_path}/file/corpus"):
        build(mixed_documents(), tokenizer, Path(tmp_path / "file" / "corpus"), SETTINGS)


WORKER = """
import multiprocessing, os, threading, time
from bertjax.data.build import _end_with_parent
def work():
    threading.Thread(target=_end_with_parent, daemon=True).start()
    time.sleep(1000)
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
print(worker.pid, flush=True)
time.sleep(1000)
"""


def test_workers_end_where_their_build_was_killed():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as build_process:
        worker = int(build_process.stdout.readline())
        os.kill(worker, 0)
        build_process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}/stat").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)

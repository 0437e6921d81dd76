import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import zstandard
from corpora import write_tfds
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets import features as features_of_tfds

from bertjax.data import corpus
from bertjax.data.corpus import (
    Bad,
    Document,
    find_files,
    json_lines,
    markdown,
    plain,
    sentences,
    split_sentences,
    tfds,
    wikiextractor,
)
from bertjax.errors import InputError

PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
JSON = json_lines("text")

# format -> reader, a file, its documents: (line where it begins, its lines that are not blank)
FORMATS = {
    "plain": (plain, "One.\n\n  Two — ünï.\nThree", [(1, ["One.", "  Two — ünï.", "Three"])]),
    "sentences": (sentences, "\nA a.\nB b.\n\n \n\nC c.\n", [(2, ["A a.", "B b."]), (7, ["C c."])]),
    "wikiextractor": (
        wikiextractor,
        '<doc id="1" title="T">\nT\n\nText.\n</doc>\n\n<doc id="2">\nU\n</doc>\n',
        [(1, ["T", "Text."]), (7, ["U"])],
    ),
    "json_lines": (
        JSON,
        '{"text": "a\\nb\\u00fc", "n": 1}\n\n{"n": {}, "text": "c \\ud83d\\ude00"}\n',
        [(1, ["a", "bü"]), (3, ["c 😀"])],
    ),
    "markdown": (
        markdown,
        "# Title\n\n## CHAPTER I\nText *x*\n# y.\nA line\nwrapped once.\n***\n - - -\n#no\n",
        [(1, ["Title", "CHAPTER I", "Text *x*", "y.", "A line wrapped once.", "#no"])],
    ),
}


def read(reader, path, *longest):
    """Read a file: documents as (line, lines that are not blank), what is bad as (line, reason)."""
    found = []
    for item in reader(path, *longest):
        place, _, line = item.origin.rpartition(":")
        assert place == str(path)
        if isinstance(item, Document):
            found.append((int(line), [text for text in item.lines if text.strip()]))
        else:
            found.append((int(line), item.reason))
    return found


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_packed_or_not_with_any_line_ends_and_byte_order_mark(tmp_path, form, packed):
    reader, text, documents = FORMATS[form]
    for number, content in enumerate((text, text.replace("\n", "\r\n"), "\ufeff" + text, text.rstrip("\n"))):
        path = tmp_path / f"{number}.txt{packed}"
        path.write_bytes(PACKED[packed](content.encode()))
        assert read(reader, path) == documents


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_files_packed_in_several_members_are_read_to_the_end(tmp_path, packed):
    path = tmp_path / f"text{packed}"
    path.write_bytes(PACKED[packed](b"one\n") + PACKED[packed](b"two\n"))
    assert read(plain, path) == [(1, ["one", "two"])]


def test_the_lines_of_a_document_are_kept_as_they_are(tmp_path):
    path = tmp_path / "text"
    path.write_text("  a\tb \n\n\u2028c \x0b d\n")
    assert list(plain(path)) == [Document(f"{path}:1", ["", "  a\tb ", "", "\u2028c \x0b d"])]
    path.write_text(json.dumps({"body": " a \n\nb"}))
    assert list(json_lines("body")(path)) == [Document(f"{path}:1", ["", " a ", "", "b"])]


# format, file, what is found: (line, documents' lines or a pattern of the reason)
BAD = {
    "not UTF-8": (sentences, b"a\nb\n\nc\nd\xe9\n\ne\n", [(1, ["a", "b"]), (5, "not UTF-8.*0xe9"), (7, ["e"])]),
    "UTF-16": (plain, "text".encode("utf-16"), [(1, "not UTF-8")]),
    "NUL": (sentences, b"a\n\nb\0c\n\nd", [(1, ["a"]), (3, "NUL"), (5, ["d"])]),
    "blank": (plain, b"\n \n\t\n", [(1, "without text")]),
    "a document not closed": (wikiextractor, b"<doc 1>\na\n</doc>\n<doc 2>\nb\n", [(1, ["a"]), (5, "never closed")]),
    "a document inside another": (wikiextractor, b"<doc 1>\na\n<doc 2>\nb\n</doc>", [(3, "inside"), (3, ["b"])]),
    "an empty document": (wikiextractor, b"<doc 1>\n</doc>\n<doc 2>\nb\n</doc>", [(1, "without text"), (3, ["b"])]),
    "text outside": (
        wikiextractor,
        b"<doc 1>\na\n</doc>\nstray\n<doc 2>\nb\n</doc>",
        [(1, ["a"]), (4, "outside"), (5, ["b"])],
    ),
    "not JSON": (JSON, b'{"text": "a"}\n{"text": "b"\n{"text": "c"}', [(1, ["a"]), (2, "not JSON"), (3, ["c"])]),
    "no field": (JSON, b'{"txt": "a"}\n{"text": "b"}', [(1, "field 'text'.*--text-field"), (2, ["b"])]),
    "no text": (JSON, b'{"text": 3}\n["text"]\n"text"\n{"text": "b"}', [*((n, "field 'text'") for n in (1, 2, 3)), (4, ["b"])]),  # noqa: E501
    "blank text": (JSON, b'{"text": " \\n"}\n{"text": "b"}', [(1, "without text"), (2, ["b"])]),
    "NUL in JSON": (JSON, b'{"text": "a\\u0000"}\n{"text": "b"}', [(1, "NUL"), (2, ["b"])]),
    "JSON that is not UTF-8": (JSON, b'{"text": "\xff"}\n{"text": "b"}', [(1, "not UTF-8"), (2, ["b"])]),
    "half a surrogate pair": (JSON, b'{"text": "a \\ud800"}\n{"text": "b"}', [(1, ".+"), (2, ["b"])]),
    "a huge number": (JSON, b'{"text": "a", "n": ' + b"1" * 5000 + b'}\n{"text": "b"}', [(1, ".+"), (2, ["b"])]),
    "deep JSON": (JSON, b"[" * 100_000 + b'\n{"text": "b"}', [(1, ".+"), (2, ["b"])]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_with_its_line_and_reason_and_costs_no_other_document(tmp_path, case):
    reader, content, expected = BAD[case]
    path = tmp_path / "text"
    path.write_bytes(content)
    found = read(reader, path)
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, what), (_, wanted) in zip(found, expected, strict=True):
        assert re.search(wanted, what) if isinstance(wanted, str) else what == wanted


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_file_is_reported(tmp_path, form):
    path = tmp_path / "text"
    path.write_bytes(b"")
    (bad,) = FORMATS[form][0](path, 100)
    assert isinstance(bad, Bad) and bad.origin.startswith(str(path)) and "document" in bad.reason


def test_a_line_that_is_too_long_is_reported_and_reading_goes_on_after_it(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a" * 100 + b"\n\n" + b"b" * 101 + b"\n\nc\n\n" + b"d" * 1000 + b"\n\ne\n\n" + b"f" * 500)
    found = read(sentences, path, 100)
    assert [line for line, _ in found] == [1, 3, 5, 7, 9, 11]
    assert [found[i][1] for i in (0, 2, 4)] == [["a" * 100], ["c"], ["e"]]
    for i in (1, 3, 5):
        assert "over 100 bytes" in found[i][1] and "--longest-line" in found[i][1]
    path.write_bytes(json.dumps({"text": "a" * 100 + "\n" + "b"}).encode() + b"\n" + b'{"text": "%s"}' % (b"c" * 101))
    assert [what if line == 1 else "over 100" in what for line, what in read(JSON, path, 100)] == [
        ["a" * 100, "b"],
        True,
    ]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_short_is_reported(tmp_path, packed):
    text = "\n\n".join(np.random.default_rng(0).bytes(40).hex() for _ in range(20_000)).encode()
    content = PACKED[packed](text)
    path = tmp_path / f"text{packed}"
    for kept in (len(content) // 2, len(content) - 3):
        path.write_bytes(content[:kept])
        *before, last = sentences(path)
        assert len(before) > 4000 and all(isinstance(document, Document) for document in before)
        assert isinstance(last, Bad) and last.origin.startswith(f"{path}:") and "the rest cannot be read" in last.reason


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_packed_file_that_is_damaged_is_reported(tmp_path, packed):
    content = PACKED[packed](np.random.default_rng(0).bytes(2000).hex().encode())
    path = tmp_path / f"text{packed}"
    path.write_bytes(content)
    (undamaged,) = plain(path)
    reported = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        found = list(plain(path))
        assert found == [undamaged] or isinstance(found[-1], Bad)
        reported += isinstance(found[-1], Bad)
    assert reported > 0.95 * len(content)
    path.write_bytes(b"no such format")
    (bad,) = plain(path)
    assert isinstance(bad, Bad) and "the rest cannot be read" in bad.reason


@pytest.mark.parametrize("form", FORMATS)
def test_a_long_document_becomes_several_at_line_ends(tmp_path, monkeypatch, form):
    monkeypatch.setattr(corpus, "_LONGEST_DOCUMENT", 25)
    lines = [f"number {n} of them" for n in range(10)]
    text = {
        "wikiextractor": "<doc 1>\n" + "\n".join(lines) + "\n</doc>\n<doc 2>\nnext\n</doc>",
        "json_lines": json.dumps({"text": "\n".join(lines)}) + '\n{"text": "next"}',
        "sentences": "\n".join(lines) + "\n\nnext",
        "markdown": "\n\n".join(lines),
    }.get(form, "\n".join(lines))
    path = tmp_path / "text"
    path.write_text(text)
    parts = list(FORMATS[form][0](path, 1000))
    if "next" in text:
        last = parts.pop()
        assert last.lines[-1] == "next" and last.origin != parts[-1].origin
    assert len(parts) == 5 and (form == "json_lines" or len({part.origin for part in parts}) == 5)
    assert [line for part in parts for line in part.lines if line] == lines


def test_a_bad_line_of_a_long_document_costs_the_part_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_LONGEST_DOCUMENT", 25)
    path = tmp_path / "text"
    path.write_bytes(b"number one of them\n" * 4 + b"\xff\n" + b"more of it and more\n" * 4 + b"\nnext\n")
    assert [type(part) for part in sentences(path)] == [Document, Document, Bad, Document, Document]


def test_folders_are_searched_to_the_bottom_in_a_fixed_order_without_hidden_files(tmp_path):
    for name in ("b/2", "b/1", "a", "b/.hidden", ".git/x", "c/d/e.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files([tmp_path / "b" / "2", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/2", "a", "b/1", "b/2", "c/d/e.gz"]
    hidden = tmp_path / "b" / ".hidden"
    assert find_files([str(hidden)]) == [hidden]


def test_a_missing_path_and_a_folder_without_files_are_errors_that_name_them(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere"):
        find_files([tmp_path / "nowhere"])
    (tmp_path / "empty" / ".cache").mkdir(parents=True)
    (tmp_path / "empty" / ".cache" / "file").write_text("x")
    with pytest.raises(InputError, match=f"{tmp_path}/empty is empty"):
        find_files([tmp_path / "empty"])


@pytest.fixture
def made(tmp_path):
    """Write a TFDS data set of one split as ArrayRecord."""
    texts = [b"one\n\ntwo", b" ", b"\xff", "ünï".encode(), b"a\0b"]
    features = {"text": features_of_tfds.Text(), "label": np.int64}
    write_tfds(tmp_path, "made", "train", features, [{"text": text, "label": 3} for text in texts])
    return str(tmp_path)


def test_a_tfds_data_set_is_read_by_name_and_its_bad_examples_are_reported(made):
    first, blank, encoded, second, nul = tfds("made", "text", made)
    assert (first, second) == (
        Document("made[0]", ["", "one", "", "two"]),
        Document("made[3]", ["", "ünï"]),
    )
    for number, bad, reason in ((1, blank, "without text"), (2, encoded, "not UTF-8"), (4, nul, "NUL")):
        assert bad.origin == f"made[{number}]" and reason in bad.reason


def test_a_tfds_field_without_text_is_reported_and_a_data_set_that_is_not_there_an_error(made):
    for field in ("label", "body"):
        reasons = [bad.reason for bad in tfds("made", field, made) if isinstance(bad, Bad)]
        assert len(reasons) == 5 and all(f"field '{field}'" in reason for reason in reasons)
    command = rf"tfds.builder\('nowhere', data_dir='{made}', file_format='array_record'\).download_and_prepare\(\)"
    with pytest.raises(InputError, match=f"no TFDS data set 'nowhere' under {made}: .*{command}"):
        list(tfds("nowhere", "text", made))
    # One that TFDS knows, but nobody has prepared here: nothing is downloaded.
    with pytest.raises(InputError, match=f"'imdb_reviews' is not prepared in {made}/imdb_reviews/plain_text.*prepare"):
        list(tfds("imdb_reviews", "text", made))


@pytest.mark.parametrize(
    "pieces",
    [
        ["Mr. Smith met Dr. Jones at St. Mary's.", " They spoke."],
        ["J. R. R. Tolkien wrote it.", " Then E. B. White did."],
        ["It cost approx. 5 dollars, cf. Fig. 3 and pp. 4.", " That is all."],
        ["The U.S. Army came in Jan. 1990.", " It left."],
        ["He said “Go!”", " She went.", " “Why?”", " He asked."],
        ['"Stop."', ' "No!"', " (Well.)", " [3] Yes."],
        ["Is it?", " 3 are!", " Yes…", " Ünï is."],
        ["it ends. but not here.", "\tNow it does."],
        ["Version 3.11 of example.com is e.g. fine."],
        ["Wait... what?!", " Oh."],
        ["我们走。", "你来吗？", "“好！”", "他说。"],
        ["「行こう。」", "彼は言った。"],
        ["Это конец.", " Начало."],
        ["No stop at all"],
    ],
)
def test_paragraphs_are_cut_where_sentences_end(pieces):
    assert split_sentences("".join(pieces)) == pieces


@given(st.text(alphabet=st.sampled_from("aA1 .!?…\n\t\"'”’»)]([“。！？」\u3000é中") | st.characters(codec="utf-8")))
def test_joining_the_sentences_of_a_paragraph_gives_it_back_up_to_trailing_white_space(paragraph):
    pieces = split_sentences(paragraph)
    assert "".join(pieces).rstrip() == paragraph.rstrip()
    assert all(piece.strip() for piece in pieces)
    assert split_sentences("") == []


def test_what_cannot_be_searched_or_opened_in_a_folder_is_bad_and_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text").write_text("text")
    (tmp_path / "closed").mkdir()
    (tmp_path / "disk").symlink_to("/nowhere/text")
    (tmp_path / "inside").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):  # the superuser may search any folder
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    text, *bad = find_files([tmp_path])
    assert text == tmp_path / "a" / "text"
    reasons = {Path(each.origin).name: each.reason for each in bad}
    assert reasons.keys() == {"closed", "disk", "pipe"}
    assert "cannot be searched: Permission denied" in reasons["closed"] and "mounted" in reasons["disk"]

"""Tables as spreadsheets, pandas and Hugging Face write them are read, or refused with the remedy."""

import gzip
import json

import pytest
from task_files import write

from bertjax.errors import InputError
from bertjax.tasks.cells import label_of
from bertjax.tasks.labels import match_labels
from bertjax.tasks.loading import load_examples
from bertjax.tasks.own import own_task, task_of_file
from bertjax.wording import counted


def read(folder, kind="classify", columns=("text",), label="label"):
    task = own_task(kind, folder, columns, label)
    return task, load_examples(task, folder, "train")


@pytest.mark.parametrize(
    "content",
    [
        "text;label\r\na, b;x\r\nc;y\r\n",
        "\ufefftext;label\r\na, b;x\r\nc;y\r\n",
        'sep=;\r\n"text";label\r\na, b;x\r\nc;y\r\n',
        "text\tlabel\na, b\tx\nc\ty\n",
        'text,label\r\n"a, b",x\r\nc,y\r\n',
        "text|label\na, b|x\nc|y\n",
    ],
)
def test_the_header_says_what_separates_columns(tmp_path, content):
    task, loaded = read(write(tmp_path, {"train.csv": content}))
    assert task.labels == ("x", "y") and [each.texts for each in loaded.examples] == [("a, b",), ("c",)]
    assert not loaded.notes  # neither a byte order mark nor CRLF is news
    assert loaded.examples[0].origin.endswith("3" if content.startswith("sep") else "2")


@pytest.mark.parametrize(
    ("kind", "files", "says"),
    [
        ("classify", {"train.csv": "satz,label\na,x\n"}, r"train\.csv:1: no column 'text' among satz, label"),
        ("classify", {"train.csv": "satz;label\na;x\n"}, r"train\.csv:1: no column 'text' among satz, label"),
        ("classify", {"train.tsv": "text,label\na,x\n"}, r"train\.tsv:1: .* separated by ',', .*: name it \.csv"),
        ("classify", {"train.csv": "text;label\n".encode("utf-16")}, r"iconv -f UTF-16 -t UTF-8"),
        ("classify", {"train.json": '{"text": "a"}', "x.txt": ""}, r"it has train\.json, x\.txt: JSON lines are named"),
        ("regress", {"train.csv": "text;label\na;3,5\n"}, r"'3,5' is not a number.*: write 3\.5, with a point"),
        ("span", {"train.json": '{"question": "q", "context": "c"}\n' * 2}, r"JSON lines.*: name the file \.jsonl"),
        ("span", {"train.json": '{"question": "q", "context": "c"}\n'}, r"JSON lines.*: name the file \.jsonl"),
        ("tag", {"train.jsonl": '{"text": ["a"], "label": [3]}'}, r"'label' holds numbers: write the names"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path, kind, files, says):
    with pytest.raises(InputError, match=says):
        task, loaded = read(write(tmp_path, files), kind)
        [task.value(each.origin, each.label) for each in loaded.examples]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,label\na,1.0\nb,\nc,0.0\nd,nan\ne,NaN\n"),
        ("train.jsonl", '{"text": "a", "label": 1.0}\n{"text": "b", "label": null}\n{"text": "c", "label": 0}\n'
         '{"text": "d", "label": NaN}\n{"text": "e", "label": "<NA>"}\n'),
    ],
)  # fmt: skip
def test_missing_labels_are_no_class_and_whole_numbers_have_no_point(tmp_path, name, content):
    task, loaded = read(write(tmp_path, {name: content}))
    assert task.labels == ("0", "1") and [each.label for each in loaded.examples] == ["1", "", "0", "", ""]
    assert [label_of(each) for each in ("2.5", "1.10.0", " -3.00", "v1.0", True)] == [
        "2.5",
        "1.10.0",
        "-3",
        "v1.0",
        "true",
    ]
    assert match_labels(("0", "1"), ("0.0", "1.0"), {}) == {"0": "0.0", "1": "1.0"}


def test_a_class_that_may_be_a_missing_label_is_told(tmp_path):
    task, loaded = read(write(tmp_path, {"train.csv": "text,label\na,None\nb,hate\n"}))
    assert task.labels == ("None", "hate")
    assert loaded.notes == {"labels 'None', taken as a class: leave the cell empty where a label is missing": 1}


def test_files_of_fixed_fields_are_found_whatever_columns_are_named(tmp_path):
    folder = write(tmp_path, {"train.conll": "A B-X\n"})
    assert read(folder, "tag", ("words",), "tags")[0].labels == ("O", "B-X", "I-X")
    answers = {"text": ["owl"], "answer_start": [3]}
    record = {"id": "7", "title": "t", "context": "An owl.", "question": "Who?", "answers": answers}
    folder = write(tmp_path / "hub", {"train.jsonl": json.dumps(record)})
    (question,) = read(folder, "span")[1].examples
    assert (question.id, question.answers[0].text) == ("7", "owl")
    assert read(folder, "span", ("question", "context"), "answers")[1].examples == [question]
    folder = write(tmp_path / "options", {"train.jsonl": '{"c": "x", "e": ["1", "2"], "label": 1.0}'})
    assert read(folder, "choice", ("c", "e"))[1].examples[0].label == 1


def test_one_file_is_a_task_compressed_or_not(tmp_path):
    content = "text,label\na,x\nb,x\n"
    folder = write(tmp_path, {"mine.csv": content, "train.csv.gz": gzip.compress(b"text,label\na,x\nb,y\n")})
    task = task_of_file("classify", f"{folder}/mine.csv", ("text",), "label", known=("X", "y"))
    assert task.labels == ("x", "y") and len(load_examples(task, folder, "file").examples) == 2
    assert read(folder)[0].labels == ("x", "y")
    with pytest.raises(InputError, match=r"mine\.xlsx: .* is read from \.tsv, \.csv, \.jsonl: convert the file"):
        task_of_file("classify", f"{folder}/mine.xlsx", ("text",), "label")


def test_one_is_singular():
    assert [counted(n, "texts truncated to 9 tokens") for n in (0, 1, 1200)] == [
        "0 texts truncated to 9 tokens", "1 text truncated to 9 tokens", "1,200 texts truncated to 9 tokens",
    ]  # fmt: skip
    for plural, singular in {"unlabelled examples dropped": "unlabelled example dropped", "classes": "class",
                             "answers not at their place": "answer not at its place", "entries": "entry",
                             "byte order marks": "byte order mark", "processes": "process"}.items():  # fmt: skip
        assert counted(1, plural) == f"1 {singular}"

"""Rows of pairs: what is read, refused and counted, and the sizes of batches."""

import dataclasses
import json

import numpy as np
import pytest

from bertjax.data.source import evaluation_batches, training_batches
from bertjax.data.templates import BERT
from bertjax.errors import EmptySplit, InputError
from bertjax.serialization.description import from_json, to_json
from bertjax.tasks.reading import Notes
from bertjax.tasks.text_pairs import TextPairs, read_groups

CSV = "question,answer,wrong\nthe man,the new time,the year\nthe group,the company,\nthe day,the new time,a week\n"


@pytest.fixture
def pairs(tmp_path, tokenizer_folder):
    """Return a function that writes a file and describes its rows."""

    def described(content=CSV, name="pairs.csv", **fields):
        (tmp_path / name).write_text(content)
        usual = {"columns": ("question", "answer", "wrong"), "negatives": 1, "length": 16, "anchor_length": 8}
        return TextPairs(str(tmp_path / name), str(tokenizer_folder), BERT, **(usual | fields))

    return described


def groups(path, columns, notes=None):
    return [group.texts for group in read_groups(path, columns, Notes() if notes is None else notes)]


def test_a_batch_holds_each_text_with_its_number(pairs):
    rows = pairs()
    source, words = rows.open("train"), rows.load_tokenizer()
    batch = source.rows(np.array([0, 1, 2, -1]))
    assert batch["tokens"].shape == (4, 8) and batch["passage_tokens"].shape == (4, 2, 8)
    numbers = {
        "the man": 0,
        "the new time": 1,
        "the year": 2,
        "the group": 3,
        "the company": 4,
        "the day": 5,
        "a week": 6,
    }
    assert batch["texts"].tolist() == [[0, 1, 2], [3, 4, -1], [5, 1, 6], [-1, -1, -1]]

    def text(tokens, mask):
        return words.decode(tokens[mask > 0][1:-1])

    names = list(numbers)
    for row, (anchor, *passages) in enumerate(batch["texts"][:3]):
        assert text(batch["tokens"][row], batch["mask"][row]) == names[anchor]
        for k, passage in enumerate(passages):
            found = text(batch["passage_tokens"][row, k], batch["passage_mask"][row, k])
            assert found == (names[passage] if passage >= 0 else "")
    assert not batch["mask"][3].any() and not batch["passage_mask"][3].any()
    assert batch.keys() == rows.padding(1).keys() == source.padding(1).keys()
    assert {n.split(",")[0] for n in source.notes} == {"passages of several anchors", "empty negatives left out"}


def test_rows_of_similar_lengths_share_a_batch_of_one_of_a_few_sizes(pairs):
    lines = "\n".join(f"the man,{'time ' * (1 + 3 * (n % 9))}{n}" for n in range(64))
    rows = pairs(
        f"anchor,positive\n{lines}\n", columns=("anchor", "positive"), negatives=0, length=32, anchor_length=16
    )
    source = rows.open("train")
    shapes = {(*b["tokens"].shape, *b["passage_tokens"].shape[1:]) for b in training_batches(source, 8, 8, 0)}
    assert shapes <= {(8, 8, 1, 8), (8, 8, 1, 16), (8, 16, 1, 24), (8, 16, 1, 32)} and len(shapes) > 1
    seen = np.concatenate([b["example"][b["mask"].any(1)] for b in evaluation_batches(source, 8)])
    assert sorted(seen.tolist()) == list(range(64))


def test_formats_lists_of_negatives_and_a_text_with_itself(pairs, tmp_path):
    path = tmp_path / "x.jsonl"
    records = [
        {"q": "a", "p": "b", "n": ["c", "", "d"]},
        {"q": "e", "p": "f", "n": None},
        {"q": "g", "p": " ", "n": "h"},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    notes = Notes()
    assert groups(path, ("q", "p", "n"), notes) == [("a", "b", "c", "d"), ("e", "f")]
    assert notes == {"empty negatives left out": 2, "rows dropped for an empty text": 1}
    assert groups(path, ("q",)) == [("a", "a"), ("e", "e"), ("g", "g")]
    source = pairs(path.read_text(), "y.jsonl", columns=("q", "p", "n"), negatives=1).open("train")
    assert source.notes["hard negatives left out, beyond negatives=1 of a row"] == 1
    assert len({*source.rows_RT.ravel().tolist()}) == 6  # a to f but d, and none
    squad = {"data": [{"paragraphs": [{"context": "old", "qas": [
        {"id": "1", "question": "how", "answers": [{"text": "old", "answer_start": 0}]},
        {"id": "2", "question": "why", "is_impossible": True, "answers": []},
    ]}]}]}  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    notes = Notes()
    assert groups(tmp_path / "squad.json", ("anchor", "positive"), notes) == [("how", "old")]
    assert +notes == {"questions dropped whose paragraph does not answer them": 1}


def test_texts_are_truncated_and_prompted_in_their_roles(pairs):
    text = "a,b\ntime year way day,last day world life hand part child\nman,time\n"
    rows = pairs(text, columns=("a", "b"), negatives=0,
                 length=8, anchor_length=5, prompts=("", "new "))  # fmt: skip
    batch = rows.open("train").rows(np.array([0]))
    words = rows.load_tokenizer()
    assert words.decode(batch["tokens"][0]) == "[CLS] time year way [SEP]"
    assert words.decode(batch["passage_tokens"][0, 0]) == "[CLS] new last day world life hand [SEP]"
    assert rows.open("train").notes["texts truncated to 5 tokens"] == 1


def test_a_folder_has_splits_and_their_digest(pairs, tmp_path):
    rows = pairs(name="train.csv")
    folder = dataclasses.replace(rows, data=str(tmp_path))
    assert rows.splits() == ("train",) and folder.splits() == ("train",)
    before = folder.digest()
    pairs(CSV.replace("man", "woman"), name="dev.csv")
    assert folder.splits() == ("train", "validation") and folder.digest() != before
    beside = dataclasses.replace(rows, validation=str(tmp_path / "dev.csv"))
    assert beside.splits() == folder.splits() and beside.digest() == folder.digest()
    assert len(beside.open("validation")) == len(folder.open("validation")) == 3 == rows.count()
    assert from_json(json.loads(json.dumps(to_json(beside)))) == beside


@pytest.mark.parametrize(
    ("content", "name", "fields", "message"),
    [
        (CSV, "pairs.csv", {"columns": ("question", "reply"), "negatives": 0}, "no column 'reply'"),
        (CSV + "one,two\n", "pairs.csv", {}, "not as many cells"),
        (CSV, "pairs.txt", {}, "pairs are read from .csv, .tsv, .jsonl, .json"),
        ("{}", "pairs.json", {}, "is read as SQuAD's"),
        ('{"question": ["a"], "answer": "b", "wrong": "c"}', "x.jsonl", {}, "it must be a text"),
        ('{"question": "a", "answer": "b", "wrong": [1]}', "x.jsonl", {}, "a text or a list of texts"),
        ("question,answer,wrong\na,b,\nc,b,\n", "pairs.csv", {}, "all rows have the same passage"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(pairs, content, name, fields, message):
    with pytest.raises(InputError, match=message):
        pairs(content, name, **fields).open("train")


def test_a_file_without_pairs_and_one_that_is_missing(pairs):
    rows = pairs("question,answer,wrong\n,b,\n")
    with pytest.raises(EmptySplit, match="no pair"):
        rows.open("train")
    with pytest.raises(InputError, match=r"no file .*nothing.csv: check data="):
        dataclasses.replace(rows, data="nothing.csv").open("train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": ()}, "name the columns"),
        ({"columns": ("a", "a")}, "each once"),
        ({"length": 2}, "3 tokens or more"),
        ({"negatives": -1}, "0 or more"),
        ({"columns": ("a", "b")}, "name none"),
    ],
)
def test_descriptions_that_fit_no_data_are_refused(pairs, fields, message):
    with pytest.raises(ValueError, match=message):
        pairs(**fields)

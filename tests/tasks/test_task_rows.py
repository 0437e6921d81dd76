import json
from dataclasses import replace

import numpy as np
import pytest
from task_files import write
from texts import with_spaces_in_pieces

from bertjax.data.source import Bucketed, ReportsDataIssues, evaluation_batches, training_batches
from bertjax.data.templates import BERT, ROBERTA, XLNET
from bertjax.data.tokenizer import save_tokenizer
from bertjax.errors import InputError
from bertjax.flops import row_shapes
from bertjax.serialization.description import from_json, to_json
from bertjax.tasks.encode.questions import sliding_windows
from bertjax.tasks.examples import Answer, Choice, Question, Texts, Words
from bertjax.tasks.rows import TaskRows, bucket_lengths, encode_examples
from bertjax.tasks.table import find_task
from bertjax.tasks.tags import SCHEMES, entities, scheme_of, strict_entities, to_iob2
from bertjax.tasks.task import Task


def rows_of(name, length=32, templates=BERT, **options):
    return TaskRows(find_task(name), "", "", templates, length, **options)


def pieces(tokenizer, tokens):
    return [tokenizer.piece(index) for index in tokens]


def test_two_texts_are_one_row_the_longer_one_cut(tokenizer):
    texts = ("time person year way day", "thing man"), ("good", "bad")
    examples = [Texts("f:1", texts[0], "entailment"), Texts("f:2", texts[1], "not_entailment")]
    encoded = encode_examples(rows_of("rte", 8), examples, tokenizer)
    batch = encoded.rows(np.array([1, 0, -1]))
    assert pieces(tokenizer, batch["tokens"][1]) == [
        "[CLS]",
        "time",
        "person",
        "year",
        "[SEP]",
        "thing",
        "man",
        "[SEP]",
    ]
    assert batch["types"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1], [0] * 8]
    assert batch["mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 8, [0] * 8]
    assert batch["labels"].tolist() == [1, 0, 0] and batch["labels"].dtype == np.int32
    assert batch["example"].tolist() == [1, 0, 0]
    assert encoded.notes == {"texts truncated to 8 tokens": 1}
    bare = [example._replace(label="") for example in examples]
    assert "labels" not in encode_examples(rows_of("rte", 8), bare, tokenizer).rows(np.array([0]))
    with pytest.raises(InputError, match="f:2: unknown label 'maybe'"):
        encode_examples(rows_of("rte"), [examples[0], examples[1]._replace(label="maybe")], tokenizer)
    with pytest.raises(InputError, match="f:1: a Texts, but a task of kind tag takes Words"):
        encode_examples(rows_of("wnut17"), examples, tokenizer)


def test_numbers_are_float_and_xlnet_is_padded_on_the_left(tokenizer):
    encoded = encode_examples(rows_of("stsb", 16, XLNET), [Texts("", ("good", "bad"), "2.5")], tokenizer)
    batch = encoded.rows(np.array([0]))
    assert pieces(tokenizer, batch["tokens"][0]) == [*["[PAD]"] * 3, "good", "[SEP]", "bad", "[SEP]", "[CLS]"]
    assert batch["mask"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert batch["types"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 2]]
    assert batch["labels"].tolist() == [2.5] and batch["labels"].dtype == np.float32


def test_regression_targets_are_scaled_to_the_unit_interval_in_training_only(tokenizer, tmp_path):
    rows = "sentence1\tsentence2\tscore\ngood\tbad\t2.500\nman\tday\t5.000\n"
    folder = write(tmp_path, {"train.tsv": rows, "dev.tsv": rows})
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    stsb = TaskRows(find_task("stsb"), folder, str(tmp_path / "tokenizer"), BERT, 16, unit_range=True)
    assert stsb.open("train").labels.tolist() == [0.5, 1.0]
    assert stsb.open("validation").labels.tolist() == [2.5, 5.0]
    with pytest.raises(ValueError, match="unit_range: task sst2 has no range of targets"):
        rows_of("sst2", unit_range=True)


def test_a_tag_is_at_the_first_piece_of_its_word(tokenizer):
    # "world's" is three pieces, "\u200b" none: it is read as unknown, so that every word is scored.
    example = Words("f:1", ("good", "world's", "\u200b", "abc"), ("O", "I-person", "I-person", "S-group"))
    encoded = encode_examples(rows_of("wnut17"), [example], tokenizer)
    batch = encoded.rows(np.array([0]))
    expected = ["[CLS]", "good", "world", "'", "s", "[UNK]", "a", "##b", "##c", "[SEP]"]
    assert pieces(tokenizer, batch["tokens"][0])[:10] == expected
    names = find_task("wnut17").labels
    scored = {place: names[tag] for place, tag in enumerate(batch["labels"][0]) if tag >= 0}
    assert scored == {1: "O", 2: "B-person", 5: "I-person", 6: "B-group"}
    places, words = encoded.first_pieces(0, batch["tokens"].shape[1])
    assert (places.tolist(), words.tolist()) == ([1, 2, 5, 6], [0, 1, 2, 3])
    assert encoded.notes["words without any token in the vocabulary, encoded as unknown"] == 1
    assert encoded.notes["tags in another scheme than IOB2, converted"] == 2
    with pytest.raises(InputError, match="f:1, word 2: 'person' is not a tag"):
        encode_examples(rows_of("wnut17"), [example._replace(tags=("O", "person", "O", "O"))], tokenizer)


@pytest.mark.parametrize("templates", [BERT, XLNET])
def test_every_word_is_scored_once_whatever_the_length_of_sentence_and_document(tokenizer, templates):
    rng = np.random.default_rng(0)
    lengths = [3, 1, 30, 2, 9, 9]
    task = find_task("conll2003")
    examples = [
        Words(f"f:{n}", ("good", "xyz") * size, tuple(rng.choice(task.labels[1::2], 2 * size)), document=n // 4)
        for n, size in enumerate(lengths)
    ]
    encoded = encode_examples(rows_of("conll2003", 24, templates), examples, tokenizer)
    batch = encoded.rows(np.arange(len(encoded)))
    seen = {n: [] for n in range(len(examples))}
    for row, number in enumerate(encoded.example_of_row):
        places, words = encoded.first_pieces(row, 24)
        tags = [task.labels[tag] for tag in batch["labels"][row, places]]
        assert tags == [examples[number].tags[word] for word in words]
        assert pieces(tokenizer, batch["tokens"][row, places]) == [["good", "x"][word % 2] for word in words]
        assert (batch["labels"][row] >= 0).sum() == len(places)
        seen[number] += words.tolist()
    assert all(seen[n] == list(range(2 * size)) for n, size in enumerate(lengths))
    # The first sentence, six words of twelve pieces, stands with what follows it in its document, and fills the row.
    assert (batch["mask"][0] == 1).sum() == 24
    # The second one, of four pieces, has nine of its neighbours' on either side.
    places, _ = encoded.first_pieces(encoded.example_of_row.tolist().index(1), 24)
    assert places[0] == 9 + (templates is BERT)
    assert encoded.notes["sentences longer than 24 tokens, split over several rows"] == 3


def test_options_of_a_question_are_rows_of_its_own(tokenizer):
    examples = [
        Choice("f:1", "time person year way", ("good bad", "new"), 1),
        Choice("f:2", "time", ("old", "day", "big"), 2),
    ]
    rows = rows_of("arc_easy", 13, ending=2)
    encoded = encode_examples(rows, [examples[0]._replace(endings=("life good bad", "new")), examples[1]], tokenizer)
    batch = encoded.rows(np.array([0, 1]))
    assert batch["tokens"].shape == (2, 5, 13) and batch["labels"].tolist() == [1, 2]
    assert pieces(tokenizer, batch["tokens"][0, 0])[5:9] == ["[SEP]", "good", "bad", "[SEP]"]
    assert (batch["mask"].sum(-1) > 0).tolist() == [[True] * 2 + [False] * 3, [True] * 3 + [False] * 2]
    assert encoded.notes == {"options truncated to their last 2 tokens": 1}
    roberta = encode_examples(replace(rows, templates=ROBERTA), examples[:1], tokenizer).rows(np.array([0]))
    assert pieces(tokenizer, roberta["tokens"][0, 1])[:4] == ["[CLS]", "new", "[SEP]", "time"]
    with pytest.raises(InputError, match="f:2: 3 options, but task copa has 2"):
        encode_examples(replace(rows, task=find_task("copa")), examples, tokenizer)


@pytest.mark.parametrize("templates", [BERT, XLNET])
def test_a_window_with_the_answer_is_labelled_with_its_pieces(tokenizer, templates):
    context = "time person year way day thing man world life hand part child"
    question = Question("", "1", "good bad new", context, (Answer("man world", context.index("man")),))
    rows = rows_of("squad2", 12, templates, stride=3, question=2)
    encoded = encode_examples(rows, [question, question._replace(id="2", answers=())], tokenizer)
    assert encoded.notes == {"questions truncated to 2 tokens": 2}
    batch = encoded.rows(np.arange(len(encoded)))
    found = []
    for row, number in enumerate(encoded.example_of_row):
        window, inside = encoded.windows[row], np.flatnonzero(batch["context"][row])
        words = context.split()[window.start : window.start + window.size]
        assert pieces(tokenizer, batch["tokens"][row, inside]) == words
        first, last = batch["labels"][row]
        if batch["answerable"][row]:
            found.append((number, pieces(tokenizer, batch["tokens"][row, first : last + 1])))
        else:
            assert pieces(tokenizer, batch["tokens"][row, [first, last]]) == ["[CLS]", "[CLS]"]
    assert found and all(each == (0, ["man", "world"]) for each in found)
    assert [(window.start, window.size) for window in encoded.windows] == [(0, 7), (3, 7), (6, 6)] * 2


def test_windows_cover_a_context_and_never_skip_a_piece():
    assert list(sliding_windows(10, 4, 3)) == [(0, 4), (3, 4), (6, 4)]
    assert list(sliding_windows(10, 4, 100)) == [(0, 4), (4, 4), (8, 2)]
    assert list(sliding_windows(4, 4, 1)) == [(0, 4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    words = [tokenizer.piece(index) for index in range(80, 120)]
    texts = [" ".join(rng.choice(words, int(size))) for size in rng.integers(1, 60, 500)]
    rows = [f"{text}\t{number % 2}" for number, text in enumerate(texts)]
    write(
        folder,
        {"train.tsv": "sentence\tlabel\n" + "\n".join(rows), "dev.tsv": "sentence\tlabel\n" + "\n".join(rows[:75])},
    )
    save_tokenizer(tokenizer, folder / "tokenizer")
    return TaskRows(find_task("sst2"), str(folder), str(folder / "tokenizer"), BERT, 48)


def test_rows_of_a_task_are_a_description_of_their_own_data(made):
    assert from_json(json.loads(json.dumps(to_json(made)))) == made
    assert made.splits() == ("train", "validation") and made.digest() == made.digest()
    assert replace(made, tokenizer=made.tokenizer).digest() != replace(made, task=find_task("qnli")).digest()
    source = made.open("train")
    assert isinstance(source, Bucketed) and isinstance(source, ReportsDataIssues)
    batch = source.rows(np.array([0]))
    for name in ("sst2", "stsb", "wnut17", "squad", "copa"):
        rows = replace(made, task=find_task(name), length=192)
        shapes = row_shapes(rows, 3)
        assert set(shapes) == set(rows.padding(1)) == {"tokens", "mask", "example", *rows.features}
        assert shapes["tokens"].shape == ((3, 2, 192) if name == "copa" else (3, 192))
    assert {name: array.dtype for name, array in batch.items()} == {
        name: array.dtype for name, array in made.padding(1).items()
    }


def test_batches_are_a_function_of_the_step_and_as_short_as_their_rows_allow(made):
    source = made.open("train")
    batches = list(training_batches(source, 8, 150, seed=3))
    again = list(training_batches(source, 8, 150, seed=3, start=77))
    for expected, batch in zip(batches[77:], again, strict=True):
        assert all((expected[name] == batch[name]).all() for name in expected)
    other = next(training_batches(source, 8, 150, seed=4))
    assert other["tokens"].shape != batches[0]["tokens"].shape or (other["tokens"] != batches[0]["tokens"]).any()
    # Two epochs and 400 rows more: every row is seen so often, none more than once more than another.
    times = np.bincount(np.concatenate([batch["example"] for batch in batches]), minlength=500)
    assert times.sum() == 1200 and set(times) == {2, 3}
    lengths = [batch["tokens"].shape[1] for batch in batches]
    assert set(lengths) <= set(bucket_lengths(48)) and len(set(lengths[:20])) > 2
    for batch, length in zip(batches, lengths, strict=True):
        needed = source.buckets[batch["example"]]
        assert needed.max() == length
    mixed = sum(len(set(source.buckets[batch["example"]])) > 1 for batch in batches)
    assert mixed <= 3 * (len(bucket_lengths(48)) - 1)


def test_evaluation_batches_have_every_row_once_and_padding_at_the_end(made):
    source = made.open("validation")
    batches = list(evaluation_batches(source, 8))
    real = np.concatenate([batch["example"][batch["mask"].any(1)] for batch in batches])
    assert sorted(real) == list(range(75)) and len(batches) == 10
    padding = [(~batch["mask"].any(1)).sum() for batch in batches]
    assert sum(padding) == 5 and sum(count > 0 for count in padding) == 1


def test_training_rows_have_both_orders_and_no_unlabelled_examples(made, tmp_path):
    table = "index\tsentence1\tsentence2\tlabel\n0\ttime\tlife\tentailment\n1\tgood\tbad\t\n"
    folder = write(tmp_path, {"train.tsv": table, "dev.tsv": table})
    rows = replace(made, task=find_task("rte"), data=folder, both_orders=True)
    source = rows.open("train")
    assert [example.texts for example in source.examples] == [("time", "life"), ("life", "time")]
    assert source.notes == {"unlabelled examples dropped from training": 1}
    assert len(rows.open("validation")) == 2


def test_rows_refuse_settings_without_room(made):
    for change, says in (
        ({"length": 6}, "rows of length 6 have no room"),
        ({"task": find_task("squad"), "length": 64, "question": 60}, "no room beside a question of 60"),
        ({"stride": 0}, "stride=0"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(made, **change)
    with pytest.raises(ValueError, match="at least two different ones"):
        Task("x", "classify", ("one",), (), ())


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-A I-A B-A O I-B", "B-A I-A B-A O B-B"),  # IOB1
        ("S-A B-B I-B E-B E-A", "B-A B-B I-B I-B B-A"),  # BIOES, the last one damaged
        ("O I-A I-B B-B I-A", "O B-A B-B B-B B-A"),
        ("B-A L-A U-A", "B-A I-A B-A"),
    ],
)
def test_schemes_are_read_alike_and_written_as_iob2(tags, expected):
    assert to_iob2(tags.split()) == tuple(expected.split())
    assert to_iob2(expected.split()) == tuple(expected.split())


@pytest.mark.parametrize(
    ("labels", "name", "types"),
    [
        ("O B-PER I-PER B-LOC I-LOC", "B-TYPE", "LOC PER"),
        ("B-PER I-PER", "B-TYPE", "PER"),
        ("O B-PER I-PER MISC", "B-TYPE", "MISC PER"),  # as in transformers
        ("O B-LOC I-LOC E-LOC S-LOC", "B-TYPE", "LOC"),
        ("O S-LOC", "B-TYPE", "LOC"),
        ("O B-LOC I-LOC S-Bahn E-mail", "B-TYPE", "Bahn LOC mail"),  # each has a mark
        ("O B-LOC I-LOC S-Bahn E-mail MISC", "B-TYPE", "E-mail LOC MISC S-Bahn"),  # marks of LOC alone
        ("O B_PER I_PER", "B_TYPE", "PER"),
        ("O PER-B PER-I LOC-B LOC-I", "TYPE-B", "LOC PER"),
        ("O per_org_B per_org_I", "TYPE_B", "per_org"),
        ("O PER_B PER_I PER", "TYPE", "PER PER_B PER_I"),
        ("O PER LOC", "TYPE", "LOC PER"),
        ("O S_N S_V", "TYPE", "S_N S_V"),  # no type has B or I
        ("NN VB DT", "words", "DT NN VB"),
        ("LABEL_0 LABEL_1", "words", "LABEL_0 LABEL_1"),
    ],
)
def test_labels_show_their_scheme(labels, name, types):
    scheme = scheme_of(labels.split())
    assert scheme.name == name and scheme.types_of(labels.split()) == tuple(types.split())
    assert scheme_of(labels.split()[::-1]) == scheme


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("TYPE", "PER PER LOC O LOC LOC", "B-PER I-PER B-LOC O B-LOC I-LOC"),
        ("B_TYPE", "B_PER I_PER B_PER O I_LOC S_LOC", "B-PER I-PER B-PER O B-LOC B-LOC"),
        ("TYPE-B", "PER-B PER-I PER-B O LOC-I LOC-E LOC-I", "B-PER I-PER B-PER O B-LOC I-LOC B-LOC"),
        ("B-TYPE", "B-A M-A E-A W-A", "B-A I-A I-A B-A"),  # BMES
    ],
)
def test_entities_are_read_in_the_scheme_of_the_data(scheme, tags, expected):
    assert to_iob2(tags.split(), SCHEMES[scheme]) == tuple(expected.split())


def test_any_number_of_labels_is_a_row_of_ones_and_zeros(tokenizer):
    task = Task("x", "multilabel", ("a", "b", "c"), ("micro_f1",), ())
    rows = TaskRows(task, "", "", BERT, 16)
    examples = [Texts(f"f:{n}", ("time",), labels=labels) for n, labels in enumerate([("c", "a"), (), ("b", "b")])]
    encoded = encode_examples(rows, examples, tokenizer)
    batch = encoded.rows(np.array([2, 0, -1, 1]))
    np.testing.assert_array_equal(batch["labels"], [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert batch["labels"].dtype == np.float32 and from_json(to_json(rows)) == rows
    assert "labels" not in encode_examples(rows, [*examples, Texts("f:4", ("time",))], tokenizer).rows(np.array([0]))
    with pytest.raises(InputError, match="f:5: unknown label 'd', task x has a, b, c"):
        encode_examples(rows, [Texts("f:5", ("time",), labels=("d",))], tokenizer)
    with pytest.raises(ValueError, match="at least one, each once"):
        Task("x", "multilabel", (), ("micro_f1",), ())


def test_strict_reading_counts_only_what_is_written_right():
    tags = ["I-A", "B-A", "O", "B-B", "I-C", "B-D", "I-D"]
    kept = {scheme: [e.kind for e in strict_entities(tags, scheme)] for scheme in ("iob1", "iob2", "bioes")}
    assert kept == {"iob1": ["A", "A", "C"], "iob2": ["A", "B", "D"], "bioes": []}
    assert [e.kind for e in strict_entities(["S-A", "B-B", "I-B", "E-B", "B-C", "I-C"], "bioes")] == ["A", "B"]
    assert [(e.kind, e.first, e.last) for e in entities(["I-A", "E-A", "I-A"])] == [("A", 0, 1), ("A", 2, 2)]


def test_white_space_around_a_question_costs_it_no_word():
    tokenizer = with_spaces_in_pieces("bpe")
    bare, padded = (
        encode_examples(rows_of("squad", 128), [Question("f", "q", question, "the woman is new", ())], tokenizer)
        for question in ("who is new", " " * 80 + "who is new \t\n")
    )
    index = np.array([0])
    assert bare.rows(index)["tokens"].tolist() == padded.rows(index)["tokens"].tolist()
    assert not padded.notes


def test_questions_contexts_and_options_without_a_token_are_counted(tokenizer):
    blank = "\u200b \x07"
    examples = [Question("f", "q", blank, blank, ()), Question("f", "r", "who", "the woman", ())]
    assert encode_examples(rows_of("squad", 96), examples, tokenizer).notes == {
        "questions without any token in the vocabulary": 1,
        "contexts without any token in the vocabulary": 1,
    }
    choices = [Choice("f", "the woman", ("is", blank), -1)]
    assert encode_examples(rows_of("copa", 16), choices, tokenizer).notes == {
        "options without any token in the vocabulary": 1
    }

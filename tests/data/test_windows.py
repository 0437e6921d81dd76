from itertools import pairwise

import numpy as np
import pytest
from corpora import VOCABULARY, flags_of, numbered, write_corpus
from hypothesis import given
from hypothesis import strategies as st

from bertjax.data.records import WORD
from bertjax.data.source import evaluation_batches, training_batches
from bertjax.data.windows import Windows, split_windows
from bertjax.errors import InputError

CLS, SEP = VOCABULARY.cls, VOCABULARY.sep
EOD = 4  # <mask>, which made text does not hold either
REUSE, WINDOW, LENGTH = 12, 32, 96
TOTAL, STEP = WINDOW - REUSE - 3, LENGTH // WINDOW * REUSE


@pytest.fixture(scope="module")
def shards():
    """Make two shards of documents of ids that count up; one sentence is longer than a window, one is of one token."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 15, rng.integers(1, 9)).tolist() for _ in range(58)]
    documents = numbered([*lengths, [120, 1, 30], [1]])
    return [documents[:25], documents[25:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shards):
    return write_corpus(tmp_path_factory.mktemp("windows") / "corpus", {"train": shards})


def rows_for(folder, **fields):
    return Windows(folder, **({"reuse": REUSE, "length": LENGTH, "window": WINDOW} | fields))


def stream_of(documents, boundary, *, backward):
    """Lay documents one after another: ids, word starts, and of each token which sentence it is in."""
    ids, starts, sentences = [], [], []
    for document in documents:
        for sentence in document:
            number = sentences[-1] + 1 if sentences else 0
            ids += sentence
            sentences += [number] * len(sentence)
        starts += [int(flag & WORD > 0) for flag in flags_of(document)]
        if boundary is not None:
            ids, starts, sentences = [*ids, boundary], [*starts, 1], [*sentences, sentences[-1]]
    order = slice(None, None, -1 if backward else 1)
    return ids[order], starts[order], sentences[order]


def split_by_loop(sentences, begin, total, draws):
    """Transcribe _split_a_and_b, token by token: where A ends, where B begins and ends."""
    size, end, cuts = len(sentences), begin + 1, []
    while end < size:
        if sentences[end] != sentences[end - 1]:
            if end - begin >= total:
                break
            cuts.append(end)
        end += 1
    middle = cuts[int(draws[1] * len(cuts))] if cuts else end
    if not cuts or draws[0] < 0.5:
        least = max(1, total - (middle - begin))
        b_begin = int(draws[2] * (size - least))
        b_end = b_begin + least
        while b_begin > 0 and sentences[b_begin - 1] == sentences[b_begin]:
            b_begin -= 1
        while b_end < size and sentences[b_end - 1] == sentences[b_end]:
            b_end += 1
    else:
        b_begin, b_end = middle, end
    while middle - begin + b_end - b_begin > total:
        if middle - begin > b_end - b_begin:
            middle -= 1
        else:
            b_end -= 1
    return middle, b_begin, b_end


def starts_of(sentences):
    inner = [place for place in range(1, len(sentences)) if sentences[place] != sentences[place - 1]]
    return np.array([0, *inner, len(sentences)])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(2, 40), st.integers(0, 2**32))
def test_a_and_b_are_those_of_a_loop_over_tokens_and_fill_the_window(lengths, total, seed):
    sentences = [number for number, length in enumerate(lengths) for _ in range(length)]
    begin = np.arange(1, len(sentences) - total)
    draws = np.random.default_rng(seed).random((3, len(begin)))
    draws[2, ::5] = np.nextafter(1, 0)  # the last place where B may begin
    a, b_begin, b = (column.tolist() for column in split_windows(starts_of(sentences), begin, total, draws))
    for i, at in enumerate(begin.tolist()):
        middle, first, last = split_by_loop(sentences, at, total, draws[:, i])
        assert (at + a[i], b_begin[i], b_begin[i] + b[i]) == (middle, first, last)
        assert a[i] >= 1 and b[i] >= 1 and a[i] + b[i] == total


def test_a_random_b_may_be_anywhere_and_is_half_of_all():
    sentences = np.repeat(np.arange(200), 3)
    draws = np.random.default_rng(0).random((3, 4000))
    a, b_begin, _ = split_windows(starts_of(sentences), np.full(4000, 300), 12, draws)
    goes_on = b_begin == 300 + a
    assert abs(goes_on.mean() - 0.5 - 0.5 / 200) < 4 * 0.5 / 4000**0.5
    assert set(a.tolist()) == {3, 6, 9}
    counts = np.bincount(b_begin[~goes_on] // 3, minlength=200)
    assert counts[:196].min() > 0 and counts.sum() == (~goes_on).sum()


@pytest.mark.parametrize("boundary", [None, EOD])
@pytest.mark.parametrize("both", [True, False])
def test_rows_equal_a_transcription_of_the_published_code(folder, shards, boundary, both):
    source = rows_for(folder, boundary=boundary, both_directions=both, seed=7).open("train")
    assert source.group_size == 1 + both
    expected = []
    for documents in shards:
        streams = [stream_of(documents, boundary, backward=backward) for backward in (False, True)[: 1 + both]]
        start = 0
        while start + STEP + TOTAL < len(streams[0][0]):
            for backward, (ids, starts, sentences) in enumerate(streams):
                draws = np.random.Generator(np.random.Philox(key=[7, len(expected)])).random((3, LENGTH // WINDOW))
                row = {"tokens": [], "word_starts": [], "types": [], "backward": backward}
                for c in range(LENGTH // WINDOW):
                    at = start + c * REUSE
                    middle, b_begin, b_end = split_by_loop(sentences, at + REUSE, TOTAL, draws[:, c])
                    row["tokens"] += [*ids[at:middle], SEP, *ids[b_begin:b_end], SEP, CLS]
                    row["word_starts"] += [*starts[at:middle], 1, *starts[b_begin:b_end], 1, 1]
                    row["types"] += [0] * (middle - at + 1) + [1] * (b_end - b_begin + 1) + [2]
                expected.append(row)
            start += STEP
    batch = source.rows(np.arange(len(source)))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        **{name: ((len(expected), LENGTH), "int32") for name in ("tokens", "mask", "word_starts", "types")},
        "example": ((len(expected),), "uint32"),
        "backward": ((len(expected),), "int32"),
    }
    for name in ("tokens", "word_starts", "types", "backward"):
        assert batch[name].tolist() == [row[name] for row in expected]
    assert (batch["mask"] == 1).all() and batch["example"].tolist() == list(range(len(expected)))
    assert set(batch["word_starts"].ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("boundary", [None, EOD])
def test_first_parts_go_on_from_window_to_window_and_hold_every_token_once_in_each_direction(folder, shards, boundary):
    source = rows_for(folder, boundary=boundary).open("train")
    batch = source.rows(np.arange(len(source)))
    first = batch["tokens"].reshape(len(source), -1, WINDOW)[:, :, :REUSE].reshape(len(source), -1)
    for backward in (0, 1):
        texts, at = first[batch["backward"] == backward], 0
        for documents in shards:
            ids, _, _ = stream_of(documents, boundary, backward=bool(backward))
            count = (len(ids) - TOTAL - 1) // STEP
            assert count > 1 and texts[at : at + count].ravel().tolist() == ids[: count * STEP]
            at += count
        assert at == len(texts)


def test_a_segment_goes_on_where_the_first_part_ends(folder):
    source = rows_for(folder).open("train")
    batch = source.rows(np.arange(len(source)))
    steps = np.where(batch["backward"], -1, 1)
    for row, step in zip(batch["tokens"].reshape(len(source), -1, WINDOW).tolist(), steps.tolist(), strict=True):
        for window, following in pairwise(row):
            sep = window.index(SEP)
            assert all(after == before + step for before, after in pairwise(window[:sep]))
            shared = min(sep, WINDOW - 3) - REUSE
            assert following[: min(shared, REUSE)] == window[REUSE:sep][:REUSE]
            assert window[-2:] == [SEP, CLS] and window.count(SEP) == 2 and window.count(CLS) == 1


def test_rows_that_the_stream_does_not_fill_are_not_made(tmp_path):
    for name, size, rows in (
        ("short", STEP + TOTAL, 0),
        ("enough", STEP + TOTAL + 1, 1),
        ("two", 2 * STEP + TOTAL + 1, 2),
    ):
        folder = write_corpus(tmp_path / name, {"train": [numbered([[size - 40] + [5] * 8])]})
        if rows:
            assert len(rows_for(folder, both_directions=False).open("train")) == rows
        else:
            with pytest.raises(
                InputError, match=f"no shard of the train split .* the {size + 1} tokens of a row: use a"
            ):
                rows_for(folder).open("train")
    assert len(rows_for(tmp_path / "short", boundary=EOD).open("train")) == 2  # the boundary is a token


def test_rows_depend_on_seed_and_number_alone(folder):
    sources = [rows_for(folder, seed=seed).open("train") for seed in (0, 0, 1)]
    whole = [source.rows(np.arange(len(source)))["tokens"] for source in sources]
    np.testing.assert_array_equal(whole[0], whole[1])
    index = np.array([5, 2, 5])
    np.testing.assert_array_equal(sources[0].rows(index)["tokens"], whole[0][index])
    assert (whole[0] != whole[2]).any(1).mean() > 0.9


def test_every_batch_is_half_forward_and_half_backward_of_the_same_text(folder):
    source = rows_for(folder).open("train")
    steps = len(source) // 4
    seen = []
    for batch in training_batches(source, 4, steps, seed=2):
        assert batch["backward"].tolist() == [0, 1, 0, 1]
        forward, backward = batch["example"].reshape(2, 2).T.tolist()
        assert [number + 1 for number in forward] == backward and all(number % 2 == 0 for number in forward)
        seen += forward
    assert len(set(seen)) == len(seen) and seen != sorted(seen)
    held = list(evaluation_batches(source, 4))
    numbers = np.concatenate([batch["example"][batch["mask"][:, 0] > 0] for batch in held])
    assert sorted(numbers.tolist()) == list(range(len(source)))


def test_a_boundary_that_is_no_id_of_the_corpus_is_an_error(folder):
    with pytest.raises(InputError, match="boundary=60000 is not an id of the 60000 of"):
        rows_for(folder, boundary=60_000).open("train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reuse": 0}, "reuse=0: .* use at least 1"),
        ({"reuse": 28}, "window=32 has no room .* after reuse=28: use a window of 33 or more"),
        ({"length": 100}, "length=100 does not divide into windows of 32"),
        ({"length": 0}, "length=0 does not divide"),
        ({"boundary": -1}, "boundary=-1 is not an id"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        rows_for("corpus", **fields)
    rows_for("corpus", reuse=27)

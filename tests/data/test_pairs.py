from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from corpora import VOCABULARY, numbered, write_corpus
from hypothesis import given
from hypothesis import strategies as st

from bertjax.data.pairs import NextSentencePairs, SentenceOrderPairs, plan_chunks
from bertjax.data.source import Corpus
from bertjax.data.two_segments import truncate
from bertjax.errors import InputError

CLS, SEP, PAD = VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.pad
PAIRS = [NextSentencePairs, SentenceOrderPairs]


@pytest.fixture(scope="module")
def documents():
    """Make 120 documents of ids that count up: an id tells its document and sentence."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 25, rng.integers(1, 15)).tolist() for _ in range(118)]
    return numbered([*lengths, [3], [70, 2]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents):
    return write_corpus(tmp_path_factory.mktemp("pairs") / "corpus", {"train": [documents[:70], documents[70:]]})


def segments_of(source, length):
    """Serve every example: (A, B, label) and check all that every example must be."""
    batch = source.rows(np.arange(len(source)))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        **{name: ((len(source), length), "int32") for name in ("tokens", "mask", "word_starts", "types")},
        "example": ((len(source),), "uint32"),
        "pair": ((len(source),), "int32"),
    }
    found = []
    for tokens, mask, types, label in zip(
        *(batch[name].tolist() for name in ("tokens", "mask", "types", "pair")), strict=True
    ):
        end = sum(mask)
        assert mask == [1] * end + [0] * (length - end) and set(tokens[end:]) <= {PAD}
        first, last = [place for place, token in enumerate(tokens) if token == SEP]
        assert tokens[0] == CLS and last == end - 1
        assert types == [0] * (first + 1) + [1] * (last - first) + [0] * (length - end)
        found.append((tokens[1:first], tokens[first + 1 : last], label))
    return found


def consecutive(tokens):
    return all(after == before + 1 for before, after in pairwise(tokens))


@pytest.mark.parametrize("rows", PAIRS)
@pytest.mark.parametrize("length", [16, 64])
def test_every_example_is_two_runs_of_text_within_the_row(folder, documents, rows, length):
    owner = {token: number for number, document in enumerate(documents) for token in chain(*document)}
    labels = Counter()
    for a, b, label in segments_of(rows(folder, length, duplicates=3).open("train"), length):
        assert len(a) >= 1 and len(b) >= 1 and len(a) + len(b) <= length - 3
        assert consecutive(a) and consecutive(b)
        owners = [{owner[token] for token in segment} for segment in (a, b)]
        assert len(owners[0]) == len(owners[1]) == 1
        if rows is NextSentencePairs:
            assert (owners[0] == owners[1]) == (label == 0)
            assert label or a[-1] < b[0]
        else:
            assert owners[0] == owners[1] and (a[0] < b[0]) == (label == 0)
        labels[label] += 1
    if rows is SentenceOrderPairs:
        assert abs(labels[1] / labels.total() - 0.5) < 4 * 0.5 / labels.total() ** 0.5


def test_half_of_the_chunks_with_two_sentences_or_more_get_a_random_b(folder):
    (shard, *_) = Corpus(folder, "train").shards
    rng = np.random.default_rng(1)
    random = np.concatenate(
        [
            chunks.random[chunks.last - chunks.first > 1]
            for chunks in (plan_chunks(shard, 60, 0.1, rng, next_sentence=True) for _ in range(30))
        ]
    )
    assert abs(random.mean() - 0.5) < 4 * 0.5 / len(random) ** 0.5


class Recorded:
    """Draw from a generator, and keep what was drawn for each document, for a loop to draw it again."""

    def __init__(self, seed):
        self._rng, self.calls = np.random.default_rng(seed), []

    def random(self, n):
        self.calls.append(self._rng.random(n))
        return self.calls[-1]

    def integers(self, low, high, size=None):
        self.calls.append(self._rng.integers(low, high, size))
        return self.calls[-1]


def chunks_by_loop(lengths, number, room, short, calls, *, next_sentence):
    """Walk one document as create_instances_from_document does: sentence by sentence, the unused ones put back.

    lengths: tokens per sentence. Yields (first, last, a, target, random), with the same draws as `calls`.
    """
    target = int(calls[1][number]) if calls[0][number] < short else room
    chunk, size, i, turn = [], 0, 0, 0
    while i < len(lengths):
        chunk.append(i)
        size += lengths[i]
        if i == len(lengths) - 1 or size >= target:
            drawn_a = int(calls[2 + turn][0][number])
            a = drawn_a if len(chunk) >= 2 else 1
            random = False
            if next_sentence:
                random = len(chunk) == 1 or calls[2 + turn][1][number] < 0.5
            yield chunk[0], chunk[-1] + 1, a, target, random
            if random:
                i -= len(chunk) - a
            chunk, size, turn = [], 0, turn + 1
        i += 1


@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("short", [0.0, 0.5, 1.0])
def test_chunks_are_those_of_a_loop_over_sentences(folder, next_sentence, short):
    (_, shard) = Corpus(folder, "train").shards
    rng = Recorded(5)
    planned = plan_chunks(shard, 61, short, rng, next_sentence=next_sentence)
    # The plan draws for the documents that are left; put each draw where its document is.
    calls, drawn, each, start = rng.calls[:2], rng.calls[2:], 1 + next_sentence, 0
    for turn in zip(*(drawn[kind::each] for kind in range(each)), strict=True):
        active = planned.document[start : start + len(turn[0])].tolist()
        calls.append([dict(zip(active, values.tolist(), strict=True)) for values in turn])
        start += len(active)
    assert start == len(planned.document)
    expected = []
    for number, (begin, end) in enumerate(zip(shard.documents, shard.documents[1:], strict=False)):
        lengths = np.diff(shard.tokens[begin : end + 1]).tolist()
        for first, last, a, target, random in chunks_by_loop(
            lengths, number, 61, short, calls, next_sentence=next_sentence
        ):
            expected.append((begin + first, begin + last, a, target, random, number))
    assert sorted(zip(*(column.tolist() for column in planned), strict=True)) == sorted(expected)


def test_short_targets_are_uniform_and_drawn_once_a_document(folder):
    shard = Corpus(folder, "train").shards[0]
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(40):
        chunks = plan_chunks(shard, 60, 0.3, rng, next_sentence=True)
        by_document = dict(zip(chunks.document.tolist(), chunks.target.tolist(), strict=True))
        assert [by_document[number] for number in chunks.document] == chunks.target.tolist()
        seen += by_document.values()
    short = np.array([target for target in seen if target < 60])
    assert abs(len(short) / len(seen) - 0.3 * 58 / 59) < 4 * (0.3 * 0.7 / len(seen)) ** 0.5
    assert short.min() == 2 and abs(short.mean() - 30.5) < 4 * 17 / len(short) ** 0.5


@given(st.integers(0, 200), st.integers(0, 200), st.integers(2, 100))
def test_truncation_drops_from_the_longer_token_by_token(a, b, room):
    kept = [a, b]
    while sum(kept) > room:
        kept[0 if kept[0] > kept[1] else 1] -= 1
    assert truncate(a, b, room) == tuple(kept)


def test_truncated_tokens_come_from_front_and_back_equally_often(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[30, 30]] * 300)]})
    source = SentenceOrderPairs(folder, 43, duplicates=1, short=0).open("train")
    front = []
    for a, b, _ in segments_of(source, 43):
        assert len(a) == len(b) == 20
        front += [(a[0] - 5) % 30, (b[0] - 5) % 30]
    # 10 of 30 tokens, each from the front by a fair coin: mean 5, variance 2.5
    assert len(front) == 600 and min(front) >= 0 and max(front) <= 10
    assert abs(np.mean(front) - 5) < 4 * (2.5 / 600) ** 0.5 and abs(np.var(front) - 2.5) < 0.6


def test_a_sentence_alone_is_split_in_the_middle_for_sentence_order(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[9]] * 20)]})
    for a, b, label in segments_of(SentenceOrderPairs(folder, 32, duplicates=1).open("train"), 32):
        assert sorted([len(a), len(b)]) == [4, 5] and (a[0] < b[0]) == (label == 0)
        assert consecutive(a + b if label == 0 else b + a)


@pytest.mark.parametrize("rows", PAIRS)
def test_examples_depend_on_seed_and_number_alone_and_every_pass_is_another(folder, rows):
    sources = [rows(folder, 64, duplicates=2, seed=seed).open("train") for seed in (0, 0, 1)]
    whole = [source.rows(np.arange(len(source))) for source in sources]
    np.testing.assert_array_equal(whole[0]["tokens"], whole[1]["tokens"])
    index = np.array([7, 3, 7])
    np.testing.assert_array_equal(sources[0].rows(index)["tokens"], whole[0]["tokens"][index])
    assert whole[0]["tokens"].shape != whole[2]["tokens"].shape or (whole[0]["tokens"] != whole[2]["tokens"]).any()
    once = rows(folder, 64, duplicates=1).open("train")
    first, second = whole[0]["tokens"][: len(once)], whole[0]["tokens"][len(once) :]
    np.testing.assert_array_equal(once.rows(np.arange(len(once)))["tokens"], first)
    assert not (set(map(tuple, second.tolist())) <= set(map(tuple, first.tolist())))


def test_documents_of_a_single_token_give_no_sentence_order_pair(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[1], [2], [4, 4]])]})
    found = [sorted(a + b) for a, b, _ in segments_of(SentenceOrderPairs(folder, 32, duplicates=1).open("train"), 32)]
    assert found == [[6, 7], list(range(8, 16))]


def test_the_held_out_split_is_passed_over_once(tmp_path):
    documents = numbered([[5, 6, 7]] * 12)
    folder = write_corpus(tmp_path / "corpus", {"train": [documents], "validation": [documents]})
    rows = SentenceOrderPairs(folder, 16, duplicates=6)
    assert len(rows.open("train")) > 3 * len(rows.open("validation"))


def test_next_sentences_of_a_single_document_are_an_error(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[5, 6, 7]])]})
    with pytest.raises(InputError, match=r"at least two documents, the train split of .* has 1: .*--holdout"):
        NextSentencePairs(folder, 16).open("train")


@pytest.mark.parametrize("rows", PAIRS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 7}, "length 7"),
        ({"length": 16, "duplicates": 0}, "duplicates=0"),
        ({"length": 16, "short": 1.5}, "short=1.5"),
    ],
)
def test_fields_that_make_no_sense_are_refused(rows, fields, message):
    with pytest.raises(ValueError, match=message):
        rows("corpus", **fields)

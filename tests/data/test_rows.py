from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from corpora import VOCABULARY, numbered, read_documents, starts_word, write_corpus
from hypothesis import example, given
from hypothesis import strategies as st

from bertjax.data.rows import DocumentSentences, FullSentences, PackedDocuments, pack
from bertjax.errors import InputError

CLS, SEP = VOCABULARY.cls, VOCABULARY.sep


def random_lengths(seed, documents=30, longest=40):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, rng.integers(2, longest), rng.integers(1, 9)).tolist() for _ in range(documents)]


@pytest.fixture(scope="module", params=[8, 17, 64])
def length(request):
    return request.param


@pytest.fixture(scope="module")
def shards():
    """Make two shards of documents of ids that count up; sentences have 1 to 39 tokens."""
    documents = numbered([*random_lengths(0), [1], [1], [1, 1], [62], [63, 1]])
    return [documents[:19], documents[19:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shards):
    return write_corpus(tmp_path_factory.mktemp("rows") / "corpus", {"train": shards})


def cut(sentence, room):
    return [sentence[start : start + room] for start in range(0, len(sentence), room)]


def full_sentences(documents, room):
    """Transcribe FULL-SENTENCES: append whole sentences until the next would not fit, a separator between documents."""
    rows, row = [], []
    for document in documents:
        first = True
        for sentence in chain.from_iterable(cut(sentence, room) for sentence in document):
            separator = [SEP] if first and row else []
            if len(row) + len(separator) + len(sentence) > room:
                rows.append(row)
                row, separator = [], []
            row = row + separator + sentence
            first = False
    return [*rows, row]


def rows_of(source, index=None):
    """Return the rows as lists without padding, their specials included."""
    batch = source.rows(np.arange(len(source)) if index is None else index)
    return [tokens[mask > 0].tolist() for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True)]


@pytest.mark.parametrize("rows", [FullSentences, DocumentSentences])
def test_rows_are_what_a_slow_transcription_gives_with_every_token_once(folder, shards, length, rows):
    source = rows(folder, length).open("train")
    parts = shards if rows is FullSentences else [[document] for shard in shards for document in shard]
    expected = [[CLS, *row, SEP] for part in parts for row in full_sentences(part, length - 2)]
    assert rows_of(source) == expected
    assert max(map(len, expected)) <= length
    text = [token for row in rows_of(source) for token in row if token > VOCABULARY.mask]
    assert text == list(chain(*chain(*chain(*shards))))


@pytest.mark.parametrize("rows", [FullSentences, DocumentSentences])
def test_every_array_of_a_batch_agrees_with_its_tokens(folder, length, rows):
    source = rows(folder, length).open("train")
    index = np.array([3, 0, len(source) - 1, 3])
    batch = source.rows(index)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        **{name: ((4, length), np.int32) for name in ("tokens", "mask", "word_starts")},
        "example": ((4,), np.uint32),
    }
    assert batch["example"].tolist() == index.tolist()
    real = np.arange(length) < batch["mask"].sum(1)[:, None]
    np.testing.assert_array_equal(batch["mask"], real)
    np.testing.assert_array_equal(batch["tokens"] == VOCABULARY.pad, ~real)
    for tokens, starts in zip(batch["tokens"].tolist(), batch["word_starts"].tolist(), strict=True):
        for before, token, found in zip([0, *tokens], tokens, starts, strict=False):
            if before > VOCABULARY.mask < token:
                assert found in (starts_word(token), 1)
            elif token <= VOCABULARY.mask:
                assert found == 1


def test_word_starts_are_those_of_the_text_and_begin_every_sentence(tmp_path):
    documents = numbered([[4, 3], [5]])
    source = FullSentences(write_corpus(tmp_path / "corpus", {"train": [documents]}), 20).open("train")
    batch = source.rows(np.arange(1))
    expected = [1] + [int(starts_word(token) or token in (5, 9)) for token in range(5, 12)] + [1]
    expected += [int(starts_word(token) or token == 12) for token in range(12, 17)] + [1] * 6
    assert batch["word_starts"].tolist() == [expected] and 0 in expected


def test_packed_rows_hold_every_part_of_a_document_once_under_numbers_from_1(folder, length):
    source = PackedDocuments(folder, length, seed=3).open("train")
    batch = source.rows(np.arange(len(source)))
    parts = []
    for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
        numbers = mask[mask > 0].tolist()
        assert numbers == sorted(numbers) and set(numbers) == set(range(1, max(numbers) + 1))
        assert not mask[len(numbers) :].any() and not tokens[len(numbers) :].any()
        parts += [tuple(tokens[mask == number].tolist()) for number in range(1, max(numbers) + 1)]
    alone = DocumentSentences(folder, length).open("train")
    assert Counter(parts) == Counter(map(tuple, rows_of(alone)))
    assert (batch["word_starts"][batch["tokens"] <= VOCABULARY.mask] == 1).all()
    assert 0 < (batch["word_starts"] == 0).sum() == (alone.rows(np.arange(len(alone)))["word_starts"] == 0).sum()


def test_which_documents_share_a_row_depends_on_the_seed_alone(folder):
    found = [rows_of(PackedDocuments(folder, 64, seed=seed).open("train")) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_packed_rows_of_text_are_nearly_full(corpus):
    source = PackedDocuments(corpus, 128).open("train")
    assert (source.rows(np.arange(len(source)))["mask"] > 0).mean() > 0.97


def best_fit(lengths, room):
    """Count the rows that best fit needs, longest item first."""
    left = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in left if space >= length]
        if fitting:
            left.remove(min(fitting))
        left.append((min(fitting) if fitting else room) - length)
    return len(left)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 2**32))
@example([10] * 50, 0)
@example([5, 6] * 20, 0)
def test_packing_places_every_item_once_within_the_room_in_about_as_few_rows_as_best_fit(lengths, seed):
    bounds, members = pack(np.array(lengths), 20, np.random.default_rng(seed))
    assert sorted(members.tolist()) == list(range(len(lengths)))
    rows = [members[begin:end] for begin, end in pairwise(bounds)]
    assert bounds[0] == 0 and all(0 < sum(lengths[i] for i in row) <= 20 for row in rows)
    assert len(rows) <= best_fit(lengths, 20)


@pytest.mark.parametrize("rows", [FullSentences, DocumentSentences, PackedDocuments])
def test_rows_too_short_for_a_token_are_an_error(folder, rows):
    with pytest.raises(InputError, match="length 2"):
        rows(folder, 2).open("train")
    assert all(len(row) <= 3 for row in rows_of(rows(folder, 3).open("train")))


def test_rows_of_built_text_are_its_sentences(corpus):
    documents = read_documents(corpus, "validation")
    for index, row in enumerate(full_sentences(documents, 62)):
        assert rows_of(FullSentences(corpus, 64).open("validation"), np.array([index])) == [[2, *row, 3]]

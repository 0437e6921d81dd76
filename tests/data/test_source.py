from itertools import chain, islice

import numpy as np
import pytest
from corpora import VOCABULARY, numbered, restate, write_corpus

from bertjax.data.rows import FullSentences, PackedDocuments
from bertjax.data.source import (
    Corpus,
    ShardIndex,
    cut_sentences,
    empty_batch,
    epoch_order,
    evaluation_batches,
    training_batches,
)
from bertjax.errors import InputError


class Numbers:
    """A source of `size` rows; row n holds n."""

    def __init__(self, size, group_size=1):
        self.size, self.group_size = size, group_size

    def __len__(self):
        return self.size

    def padding(self, n):
        return empty_batch(n, 4, VOCABULARY.pad, ("pair",))

    def rows(self, index):
        batch = self.padding(len(index))
        batch["tokens"][:] = index[:, None]
        batch["mask"][:] = 1
        batch["example"][:] = index
        return batch


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1025])
def test_every_epoch_is_a_permutation_of_its_own(size):
    epochs = [epoch_order(np.arange(e * size, (e + 1) * size), size, seed=3).tolist() for e in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size >= 100:
        assert all(a != b for i, a in enumerate(epochs) for b in [*epochs[i + 1 :], list(range(size))])
        assert epochs[0] != epoch_order(np.arange(size), size, seed=4).tolist()
    np.testing.assert_array_equal(epoch_order(np.array([3 * size]), size, seed=3), epochs[3][:1])


def test_an_epoch_is_shuffled_well():
    """Where a row lands says nothing about where it was: rank correlation within 4 standard deviations of 0."""
    size = 2000
    for epoch in range(5):
        order = epoch_order(np.arange(epoch * size, (epoch + 1) * size), size, seed=0)
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / size**0.5
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / size**0.5


@pytest.mark.parametrize(("size", "group_size"), [(2, 2), (14, 2), (100, 2), (99, 3)])
def test_an_epoch_of_groups_is_a_permutation_that_keeps_each_group_side_by_side(size, group_size):
    epochs = [epoch_order(np.arange(e * size, (e + 1) * size), size, 3, group_size) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(size))
        groups = epoch.reshape(-1, group_size)
        assert (groups == groups[:, :1] + np.arange(group_size)).all() and not (groups[:, 0] % group_size).any()
        order = epoch_order(np.arange(size // group_size), size // group_size, 3)
        assert epoch is not epochs[0] or (groups[:, 0] // group_size).tolist() == order.tolist()
    assert size < 99 or len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_groups_share_their_batches_and_batches_that_part_them_are_an_error():
    source = Numbers(20, group_size=2)
    for batches in (training_batches(source, 6, 10, seed=1), evaluation_batches(source, 6)):
        for batch in batches:
            numbers = batch["example"][batch["mask"][:, 0] > 0].reshape(-1, 2)
            assert (numbers[:, 1] == numbers[:, 0] + 1).all() and not (numbers[:, 0] % 2).any()
    message = "batches of 3 rows, but these rows come in groups of 2 .*: use a multiple of 2"
    with pytest.raises(InputError, match=message):
        training_batches(source, 3, 5, seed=0)
    with pytest.raises(InputError, match=message):
        list(evaluation_batches(source, 3))


def test_batches_do_not_depend_on_the_step_from_which_they_are_resumed():
    source = Numbers(23)
    whole = [batch["example"].tolist() for batch in training_batches(source, 5, 40, seed=1)]
    assert len(whole) == 40 and sorted([*chain(*whole)][:23]) == list(range(23))
    for start in (1, 17, 39, 40):
        rest = [batch["example"].tolist() for batch in training_batches(source, 5, 40, seed=1, start=start)]
        assert rest == whole[start:]
    assert whole != [batch["example"].tolist() for batch in training_batches(source, 5, 40, seed=2)]


def test_an_error_in_a_source_is_raised_in_the_training_loop():
    class Broken(Numbers):
        def rows(self, index):
            raise InputError("shard 3 is damaged")

    with pytest.raises(InputError, match="shard 3"):
        next(iter(training_batches(Broken(10), 2, 5, seed=0)))


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 4), (3, 8)])
def test_evaluation_of_bucketed_rows_has_every_row_once_and_padding_at_the_end(size, batch_size):
    batches = list(evaluation_batches(Numbers(size), batch_size))
    assert all(batch["tokens"].shape == (batch_size, 4) for batch in batches)
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = whole["example"][:size].tolist()
    assert sorted(order) == list(range(size))
    again = evaluation_batches(Numbers(size), size)
    assert next(again)["example"].tolist() == order != sorted(order)
    assert not whole["mask"][size:].any() and whole["mask"][:size].all() and not whole["pair"][size:].any()


def test_a_source_without_rows_is_an_error():
    with pytest.raises(InputError, match="no row of this kind"):
        training_batches(Numbers(0), 2, 5, seed=0)
    with pytest.raises(InputError, match="no row of this kind"):
        list(evaluation_batches(Numbers(0), 2))


def test_long_sentences_are_cut_and_documents_keep_theirs():
    shard = ShardIndex(np.array([0, 3, 13, 14, 34]), np.array([0, 2, 4]), None)
    cut = cut_sentences(shard, 5)
    assert cut.tokens.tolist() == [0, 3, 8, 13, 14, 19, 24, 29, 34]
    assert cut.documents.tolist() == [0, 3, 8]
    assert cut_sentences(shard, 20) is shard


@pytest.fixture
def folder(tmp_path):
    documents = numbered([[4, 3], [5], [9, 2, 2]])
    return write_corpus(tmp_path / "corpus", {"train": [documents[:2], documents[2:]]})


def test_a_corpus_without_the_split_is_an_error_that_says_how_to_get_one(folder):
    with pytest.raises(InputError, match="no validation split: build it with another --holdout"):
        Corpus(folder, "validation")


@pytest.mark.parametrize("what", ["sentences.npy", "documents.npy", "array_record"])
def test_a_file_that_is_missing_or_changed_is_named(folder, tmp_path, what):
    (path,) = [x for x in (tmp_path / "corpus").iterdir() if what in x.name and "00001-of" in x.name]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content[: len(content) // 2] if what == "array_record" else content)
    if what == "array_record":  # its records are checked as they are read
        with pytest.raises(InputError, match=path.name):
            FullSentences(folder, 8).open("train").rows(np.arange(4))
    else:
        with pytest.raises(InputError, match=f"{path.name} is missing or damaged: build the corpus again"):
            Corpus(folder, "train")
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} is missing"):
        Corpus(folder, "train")


MANY = [2**31 - 1] * 100


@pytest.mark.parametrize(
    ("what", "index", "stated", "message"),
    [
        ("sentences", MANY, {"sentences": 100}, "1 record .* 12 tokens, 100 sentences"),
        ("sentences", MANY, {"sentences": 100, "tokens": sum(MANY)}, "1 record .* 214,748,364,700 tokens"),
        ("sentences", [2**31 - 1] * 3, {}, "sentences.npy are not positive or do not add up to 12"),
        ("sentences", [-5, 10, 7], {}, "sentences.npy are not positive"),
        ("sentences", [0, 5, 7], {}, "sentences.npy are not positive"),
        ("documents", [2, 200], {}, "documents.npy are not positive or do not add up to 3"),
        ("documents", [], {"documents": 0}, "documents.npy are not positive or do not add up to 3"),
        ("sentences", [4, 3, 2000], {"tokens": 2007}, "1 record .* 2,007 tokens"),
    ],
)
def test_an_index_that_does_not_fit_the_manifest_or_the_records_is_refused(folder, what, index, stated, message):
    name = f"corpus-train-00000-of-00002.{what}.npy"
    np.save(f"{folder}/{name}", np.array(index, np.int32))
    restate(folder, **stated)
    with pytest.raises(InputError, match=f"{message}.*build the corpus again"):
        Corpus(folder, "train")


def test_threaded_batches_equal_those_of_a_loop(corpus):
    source = PackedDocuments(corpus, 64).open("train")
    batches = list(islice(training_batches(source, 4, 30, seed=0), 30))
    for step, batch in enumerate(batches):
        rows = epoch_order(np.arange(4 * step, 4 * step + 4), len(source), 0)
        for name, array in source.rows(rows).items():
            np.testing.assert_array_equal(batch[name], array)

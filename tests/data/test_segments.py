from itertools import pairwise

import numpy as np
import pytest
from corpora import VOCABULARY, numbered, starts_word, write_corpus

from bertjax.data.segments import Segments, plan_examples
from bertjax.data.source import Corpus, cut_sentences

CLS, SEP, PAD = VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.pad


@pytest.fixture(scope="module")
def documents():
    """Make 120 documents of ids that count up: an id tells its document and sentence."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 25, rng.integers(1, 25)).tolist() for _ in range(118)]
    return numbered([*lengths, [3], [70, 2]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents):
    return write_corpus(tmp_path_factory.mktemp("segments") / "corpus", {"train": [documents[:70], documents[70:]]})


class Recorded:
    """Draw from a generator, and keep what was drawn."""

    def __init__(self, seed):
        self._rng, self.calls = np.random.default_rng(seed), []

    def random(self, n):
        self.calls.append(self._rng.random(n).tolist())
        return np.array(self.calls[-1])

    def integers(self, low, high, size):
        self.calls.append(self._rng.integers(low, high, size).tolist())
        return np.array(self.calls[-1])


def examples_by_loop(sentences, length, short, single, draws):
    """Walk one document as ELECTRA's ExampleBuilder does, sentence by sentence; yield (first, second), not trimmed.

    draws: of each example, what is compared with `short`, the short target, the coin, what is compared with `single`.
    """
    current, size, draws = [], 0, iter(draws)
    drawn = next(draws)
    for place, sentence in enumerate(sentences):
        current.append(sentence)
        size += len(sentence)
        target = drawn[1] if drawn[0] < short else length
        if size < target and place < len(sentences) - 1:
            continue
        goal = 100_000 if drawn[3] < single else (target - 3) // 2
        first, second = [], []
        for one in current:
            fits = not first or len(first) + len(one) < goal
            if not second and (fits or (len(first) < goal and drawn[2] < 0.5)):
                first += one
            else:
                second += one
        yield first, second
        current, size, drawn = [], 0, next(draws, None)


def trimmed(first, second, length):
    first = first[: length - 2]
    return first, second[: max(0, length - len(first) - 3)]


def by_document(calls, counts):
    """Put the draws of a plan, made turn by turn for the documents that are left, where their documents are."""
    draws, left, turn = [[] for _ in counts], list(range(len(counts))), 0
    while left:
        for number, drawn in zip(left, zip(*calls[4 * turn : 4 * turn + 4], strict=True), strict=True):
            draws[number].append(drawn)
        turn += 1
        left = [number for number in left if counts[number] > turn]
    assert turn == len(calls) // 4
    return draws


@pytest.mark.parametrize("length", [8, 33, 64])
@pytest.mark.parametrize(("short", "single"), [(0.0, 0.0), (0.5, 0.3), (1.0, 0.0)])
def test_segments_are_those_of_a_loop_over_sentences(folder, length, short, single):
    shard = cut_sentences(Corpus(folder, "train").shards[1], length)
    rng = Recorded(5)
    plan = plan_examples(shard, length, short, single, rng)
    found = [[] for _ in shard.documents[1:]]
    for first, middle, last in sorted(zip(*(column.tolist() for column in plan), strict=True)):
        document = int(np.searchsorted(shard.documents, first, side="right")) - 1
        bounds = [int(shard.tokens[sentence]) for sentence in (first, middle, last)]
        found[document].append(tuple(list(range(*pair)) for pair in pairwise(bounds)))
    for number, (draws, (begin, end)) in enumerate(
        zip(by_document(rng.calls, list(map(len, found))), pairwise(shard.documents.tolist()), strict=True)
    ):
        bounds = shard.tokens[begin : end + 1].tolist()
        sentences = [list(range(*pair)) for pair in pairwise(bounds)]
        assert found[number] == list(examples_by_loop(sentences, length, short, single, draws))


def segments_of(batch, length):
    """Decode rows into (first, second), and check all that every row must be."""
    found = []
    for tokens, mask, types in zip(*(batch[name].tolist() for name in ("tokens", "mask", "types")), strict=True):
        end = sum(mask)
        assert mask == [1] * end + [0] * (length - end) and set(tokens[end:]) <= {PAD}
        seps = [place for place, token in enumerate(tokens) if token == SEP]
        assert tokens[0] == CLS and seps[-1] == end - 1 and len(seps) in (1, 2)
        assert types == [0] * (seps[0] + 1) + [1] * (end - seps[0] - 1) + [0] * (length - end)
        found.append((tokens[1 : seps[0]], tokens[seps[0] + 1 : end - 1]))
    return found


@pytest.mark.parametrize("length", [8, 33, 64])
def test_rows_hold_what_is_planned_trimmed_to_the_row(folder, length):
    rows = Segments(folder, length, short=0.2, duplicates=2, seed=3)
    source = rows.open("train")
    batch = source.rows(np.arange(len(source)))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        **{name: ((len(source), length), "int32") for name in ("tokens", "mask", "word_starts", "types")},
        "example": ((len(source),), "uint32"),
    }
    assert batch["example"].tolist() == list(range(len(source)))
    expected, shards = [], [cut_sentences(shard, length) for shard in Corpus(folder, "train").shards]
    for number in range(2):
        for place, shard in enumerate(shards):
            rng = np.random.default_rng([3, number, place])
            for example in zip(*plan_examples(shard, length, 0.2, 0.1, rng), strict=True):
                pairs = pairwise([int(shard.tokens[sentence]) for sentence in example])
                texts = (
                    shard.reader.read(begin, end - begin)[0].tolist() if end > begin else [] for begin, end in pairs
                )
                expected.append(trimmed(*texts, length))
    found = segments_of(batch, length)
    assert found == expected
    assert any(len(first) == length - 2 for first, _ in found) and any(second for _, second in found)


def test_a_row_is_consecutive_text_of_one_document(folder, documents):
    owner = {token: number for number, document in enumerate(documents) for sentence in document for token in sentence}
    source = Segments(folder, 48).open("train")
    for first, second in segments_of(source.rows(np.arange(len(source))), 48):
        text = first + second
        assert all(after == before + 1 for before, after in pairwise(text)) and first
        assert len({owner[token] for token in text}) == 1


def test_every_token_that_fits_is_served_once(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[2, 3, 1], [6], [1, 4]])]})
    source = Segments(folder, 64).open("train")
    found = [token for pair in segments_of(source.rows(np.arange(len(source))), 64) for part in pair for token in part]
    assert len(source) == 3 and sorted(found) == list(range(5, 22))


def test_word_starts_are_those_of_the_text(folder, documents):
    begins = {token for document in documents for sentence in document for token in sentence if starts_word(token)}
    begins |= {sentence[0] for document in documents for sentence in document} | {CLS, SEP, PAD}
    source = Segments(folder, 33).open("train")
    batch = source.rows(np.arange(len(source)))
    np.testing.assert_array_equal(batch["word_starts"], np.isin(batch["tokens"], list(begins)))


@pytest.mark.parametrize("short", [0.4, 1.0])
def test_shares_and_targets_are_those_asked_for(tmp_path, short):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[1] * 50_000])]})
    (shard,) = Corpus(folder, "train").shards
    plan = plan_examples(shard, 12, short, 0.2, np.random.default_rng(0))
    sizes = (plan.last - plan.first)[:-1]  # a sentence is a token, so all but the last are as long as their targets
    expected = len(sizes) * np.array([short / 8] * 7 + [1 - short * 7 / 8])
    assert (abs(np.bincount(sizes, minlength=13)[5:] - expected) < 4 * expected**0.5).all() and sizes.min() == 5
    single = (plan.middle == plan.last)[:-1].sum()
    assert abs(single - 0.2 * len(sizes)) < 4 * (0.16 * len(sizes)) ** 0.5


def test_half_of_the_first_segments_go_beyond_half_a_row(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[10] * 3000])]})
    (shard,) = Corpus(folder, "train").shards
    plan = plan_examples(shard, 40, 0.0, 0.0, np.random.default_rng(0))
    sentences = (plan.middle - plan.first).tolist()  # 18 tokens are aimed at: one sentence, or by a coin two
    assert set(sentences) == {1, 2} and abs(sentences.count(2) / len(sentences) - 0.5) < 2 / len(sentences) ** 0.5


def test_examples_depend_on_seed_and_number_alone_and_every_pass_is_another(folder):
    sources = [Segments(folder, 40, short=0.3, duplicates=2, seed=seed).open("train") for seed in (0, 0, 1)]
    whole = [source.rows(np.arange(len(source)))["tokens"] for source in sources]
    np.testing.assert_array_equal(whole[0], whole[1])
    index = np.array([7, 3, 7])
    np.testing.assert_array_equal(sources[0].rows(index)["tokens"], whole[0][index])
    assert whole[0].shape != whole[2].shape or (whole[0] != whole[2]).any()
    once = Segments(folder, 40, short=0.3).open("train")
    first, second = whole[0][: len(once)], whole[0][len(once) :]
    np.testing.assert_array_equal(once.rows(np.arange(len(once)))["tokens"], first)
    assert not set(map(tuple, second.tolist())) <= set(map(tuple, first.tolist()))


def test_the_held_out_split_is_passed_over_once(tmp_path):
    documents = numbered([[5, 6, 7]] * 12)
    folder = write_corpus(tmp_path / "corpus", {"train": [documents], "validation": [documents]})
    rows = Segments(folder, 64, short=0.0, duplicates=6)
    assert len(rows.open("train")) == 6 * len(rows.open("validation")) == 72


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 7}, "length 7 .*use at least 8"),
        ({"duplicates": 0}, "duplicates=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 at least 0"),
        ({"short": 1.5}, "short=1.5 and"),
        ({"short": float("nan")}, "short=nan"),
        ({"single": -0.1}, "single=-0.1 must be fractions"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Segments(**({"corpus": "corpus", "length": 16} | fields))

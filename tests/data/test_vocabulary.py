import json
import unicodedata

import numpy as np
import pytest
from texts import WORDS

from bertjax.data.corpus import Bad, Document
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import Sample, train_byte_level_bpe, train_unigram, train_vocabulary, train_wordpiece
from bertjax.errors import InputError

KINDS = {"wordpiece": train_wordpiece, "bpe": train_byte_level_bpe, "unigram": train_unigram}
SIZES = {"wordpiece": 160, "bpe": 330, "unigram": 100}


def documents(count=200):
    rng = np.random.default_rng(0)
    return [
        Document(f"made:{number}", [" ".join(rng.choice(WORDS, 12)).capitalize() + " – café!" for _ in range(4)])
        for number in range(count)
    ]


def trained(kind, out, given=None, **changes):
    options = {"size": SIZES[kind], "lowercase": False, "input_bytes": 0, "sample_bytes": 2**20, "skip_bad": False}
    counts = train_vocabulary(documents() if given is None else given, KINDS[kind], out=out, **options | changes)
    return counts, load_tokenizer(out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_vocabulary_has_the_asked_size_and_spells_its_text(tmp_path, kind):
    counts, tokenizer = trained(kind, tmp_path / "a")
    assert tokenizer.vocabulary.size == SIZES[kind] and counts["documents"] == 200 and counts["share"] == 1
    text = documents()[7].lines[0]
    encoding = tokenizer.encode(text)
    assert tokenizer.vocabulary.unk not in encoding.ids and len(encoding.ids) < 4 * len(text.split())
    plain = "".join(tokenizer.decode(encoding.ids.tolist()).split())
    assert plain == "".join(text.split())
    if kind == "bpe":  # RoBERTa's places
        assert tokenizer.vocabulary[1:] == (1, 3, 0, 2, SIZES[kind] - 1)
    else:
        assert tokenizer.vocabulary.pad == 0 and tokenizer.vocabulary.unk == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_files(tmp_path, kind):
    counts = [trained(kind, tmp_path / name)[0] for name in "ab"]
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert counts[0] == counts[1]
    if kind == "wordpiece":  # but for ties, which the library breaks at random
        assert json.loads(files[0]["tokenizer_config.json"])["do_lower_case"] is False
        pieces = [set(each["vocab.txt"].split()) for each in files]
        assert len(pieces[0] & pieces[1]) > 0.9 * SIZES[kind]
    else:
        assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_lower_case_is_part_of_what_was_trained(tmp_path, kind):
    _, tokenizer = trained(kind, tmp_path, size=90, lowercase=True)
    assert all(tokenizer.piece(i) == tokenizer.piece(i).lower() for i in range(5, tokenizer.vocabulary.size))
    assert tokenizer.encode("Time").ids.tolist() == tokenizer.encode("time").ids.tolist()
    same = [tokenizer.encode(unicodedata.normalize(form, "café")).ids.tolist() for form in ("NFC", "NFD")]
    assert same[0] == same[1]


def test_byte_level_bpe_refuses_lower_case(tmp_path):
    with pytest.raises(InputError, match="byte-level BPE keeps case"):
        trained("bpe", tmp_path, lowercase=True)


def test_a_sample_takes_every_document_with_the_same_probability_and_is_the_same_twice():
    taken = []
    for _ in range(2):
        sample = Sample(documents(2000), 0.3, 2**30, skip_bad=False)
        lines = list(sample)
        assert sample.bytes == sum(len(line.encode()) for line in lines) and len(lines) == 4 * sample.documents
        taken.append((lines, sample.digest.hexdigest()))
    assert taken[0] == taken[1]
    assert abs(sample.documents - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    all_lines = [line for document in documents(2000) for line in document.lines]
    places = [place for place, line in enumerate(all_lines) if line in set(taken[0][0])]
    assert abs(np.mean(places) / len(all_lines) - 0.5) < 0.05  # from all over the input


def test_a_sample_stops_at_its_most_bytes():
    def endless():
        number = 0
        while True:
            number += 1
            yield Document(f"made:{number}", ["a line of text"])

    sample = Sample(endless(), 0.5, 1000, skip_bad=False)
    assert 1000 <= sum(len(line) for line in sample) < 1020


def test_bad_documents_stop_the_training_or_are_counted(tmp_path):
    given = [*documents(), Bad("made:7", "not UTF-8")]
    with pytest.raises(InputError, match=r"made:7: not UTF-8 \(or skip such input with --skip-bad\)"):
        trained("wordpiece", tmp_path / "a", given)
    assert not any((tmp_path / "a").iterdir())
    counts, _ = trained("wordpiece", tmp_path / "b", given, skip_bad=True)
    assert counts["skipped"] == 1 and counts["documents"] == 200


def test_nothing_to_train_on_is_an_error(tmp_path):
    for given in ([], [Bad("made:1", "x")]):
        with pytest.raises(InputError, match="no text to train a vocabulary on"):
            trained("wordpiece", tmp_path / "a", given, skip_bad=True)


def test_invalid_vocabulary_requests_are_an_error_before_training(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(InputError, match="full is not empty"):
        trained("wordpiece", tmp_path / "full")
    with pytest.raises(InputError, match=r"cannot write to .*full/x: "):
        trained("wordpiece", tmp_path / "full" / "x")
    for size in (0, 2**33):
        with pytest.raises(InputError, match=f"a sample of {size} bytes"):
            trained("wordpiece", tmp_path / "a", sample_bytes=size)
    with pytest.raises(InputError, match="SentencePiece cannot train 5000 pieces on this text"):
        trained("unigram", tmp_path / "b", size=5000)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_vocabulary_smaller_than_asked_or_without_room_is_an_error(tmp_path, kind):
    with pytest.raises(InputError, match="50000"):
        trained(kind, tmp_path / "a", size=50_000)
    with pytest.raises(InputError, match=r"gives \d+ pieces, not 9"):
        trained(kind, tmp_path / "b", size=9)
    assert not any((tmp_path / "a").iterdir()) and not any((tmp_path / "b").iterdir())
    with pytest.raises(InputError, match="3 pieces has no room beside its 5 special ones"):
        trained(kind, tmp_path / "c", size=3)

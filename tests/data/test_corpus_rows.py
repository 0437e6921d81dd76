"""What all rows that are cut from a corpus offer: the protocol `Rows`, with nothing but a corpus behind it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertjax.data.pairs import NextSentencePairs, SentenceOrderPairs
from bertjax.data.records import manifest_digest
from bertjax.data.rows import DocumentSentences, FullSentences, PackedDocuments
from bertjax.data.segments import Segments
from bertjax.data.tokenizer import fingerprint
from bertjax.data.windows import Windows
from bertjax.errors import EmptySplit, InputError
from bertjax.flops import batch_shapes, row_shapes

KINDS = [DocumentSentences, FullSentences, NextSentencePairs, PackedDocuments, Segments, SentenceOrderPairs, Windows]
SIZES = {Windows: {"window": 16, "reuse": 8}}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_rows_know_tokenizer_splits_and_digest_of_their_corpus(kind, corpus, tokenizer):
    rows = kind(corpus, length=32, **SIZES.get(kind, {}))
    assert fingerprint(rows.load_tokenizer()) == fingerprint(tokenizer)
    assert set(rows.splits()) == {"train", "validation"}
    assert rows.digest() == manifest_digest(corpus)  # what checkpoints have held since the first version


def test_padding_has_the_arrays_of_a_batch_and_needs_no_corpus(kind, corpus):
    rows = kind(corpus, length=32, **SIZES.get(kind, {}))
    source = rows.open("validation")
    batch, filling = source.rows(np.arange(2)), source.padding(3)
    elsewhere = kind("", length=32, **SIZES.get(kind, {}))
    for padding in (filling, elsewhere.padding(3)):
        assert {name: (array.shape[1:], array.dtype) for name, array in padding.items()} == {
            name: (array.shape[1:], array.dtype) for name, array in batch.items()
        }
        assert not padding["mask"].any() and all(len(array) == 3 for array in padding.values())
    assert (filling["tokens"] == rows.load_tokenizer().vocabulary.pad).all()
    assert row_shapes(elsewhere, 5) == batch_shapes(5, 32, rows.features)


@pytest.fixture
def copy(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


def test_the_digest_of_a_damaged_corpus_is_an_error(copy):
    damaged = next(copy.glob("*validation*documents.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=f"{damaged.name} is missing or damaged"):
        FullSentences(str(copy), 32).digest()


def test_a_tokenizer_that_was_changed_is_an_error(copy):
    vocabulary = copy / "tokenizer" / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "more\n")
    with pytest.raises(InputError, match=r"was built with another tokenizer than .*tokenizer: build it again"):
        FullSentences(str(copy), 32).load_tokenizer()


def test_a_split_without_documents_is_none(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["validation"] = []
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert FullSentences(str(copy), 32).splits() == ("train",)


def test_a_split_that_gives_no_row_has_an_error_of_its_own(corpus):
    with pytest.raises(EmptySplit, match="no shard of the validation split"):
        Windows(corpus, length=2**20, window=2**20).open("validation")
    assert Path(corpus).is_dir()

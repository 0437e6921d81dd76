"""The methods of `Rows` that rows cut from a corpus share: those that depend on the corpus, not on how it is cut.

A class of such rows takes each as a method of its own: `digest = corpus_rows.digest`.
"""

from typing import Protocol

from bertjax.data.records import corpus_tokenizer, manifest_digest, read_manifest
from bertjax.data.source import Batch, Corpus, empty_batch
from bertjax.data.tokenizer import Tokenizer, fingerprint
from bertjax.data.verify import verify_shards
from bertjax.errors import InputError
from bertjax.storage.paths import in_cloud


class CutFromCorpus(Protocol):
    """Protocol for rows cut from a corpus: the fields that these methods read."""

    @property
    def corpus(self) -> str:
        """See Rows.corpus."""
        ...

    @property
    def length(self) -> int:
        """See Rows.length."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """See Rows.features."""
        ...


def load_tokenizer(rows: CutFromCorpus) -> Tokenizer:
    """Load the tokenizer of the corpus. Raises InputError where it is not the one that the corpus was built with."""
    built_with = read_manifest(rows.corpus).tokenizer
    tokenizer = corpus_tokenizer(rows.corpus)
    if fingerprint(tokenizer) != built_with:
        raise InputError(
            f"corpus {rows.corpus} was built with another tokenizer than {rows.corpus}/tokenizer: build it again"
        )
    return tokenizer


def splits(rows: CutFromCorpus) -> tuple[str, ...]:
    """Return the names of the splits that hold documents."""
    return tuple(name for name, shards in read_manifest(rows.corpus).splits.items() if shards)


def digest(rows: CutFromCorpus) -> str:
    """Return the digest of the corpus's manifest. Raises InputError where a file of a split is not what was built."""
    if not in_cloud(rows.corpus):  # from there it would be copied
        verify_shards(rows.corpus)
    for split in splits(rows):
        Corpus(rows.corpus, split)
    return manifest_digest(rows.corpus)


def padding(rows: CutFromCorpus, n: int) -> Batch:
    """Return n rows of padding, without reading the corpus, so with token id 0."""
    return empty_batch(n, rows.length, 0, rows.features)

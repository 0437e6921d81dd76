"""Train a vocabulary from a bounded sample of documents: WordPiece, byte-level BPE, SentencePiece unigram."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sentencepiece
import tokenizers

from bertjax.data.corpus import Bad, Document
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.errors import InputError
from bertjax.storage import files
from bertjax.storage.paths import in_cloud

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_MOST_BYTES = 2**32  # counts in the libraries are 32 bits: beyond this they can overflow and spoil the result silently

Train = Callable[[Iterator[str], int, bool], dict[str, bytes]]
"""(lines, size, lowercase) -> the files of a tokenizer."""


class Sample:
    """Iterate over the lines of a random sample of documents, and count documents and bytes.

    Every document is taken with the same probability, decided by a hash of its place: none is held in memory, and the
    same input gives the same sample. Raises InputError for bad documents unless `skip_bad`.
    """

    def __init__(self, documents: Iterable[Document | Bad], share: float, most_bytes: int, *, skip_bad: bool) -> None:
        self._documents, self._share, self._most_bytes, self._skip_bad = documents, share, most_bytes, skip_bad
        self.documents = self.bytes = self.skipped = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        for document in self._taken():
            self.documents += 1
            for line in filter(str.strip, document.lines):
                encoded = line.encode()
                self.bytes += len(encoded)
                self.digest.update(encoded)
                yield line
            if self.bytes >= self._most_bytes:
                return

    def _taken(self) -> Iterator[Document]:
        for number, document in enumerate(self._documents):
            if isinstance(document, Document):
                place = hashlib.blake2b(str(number).encode(), digest_size=8).digest()
                if int.from_bytes(place, "big") < self._share * 2**64:
                    yield document
            elif self._skip_bad:
                self.skipped += 1
            else:
                raise InputError(f"{document.origin}: {document.reason} (or skip such input with --skip-bad)")


def train_vocabulary(
    documents: Iterable[Document | Bad],
    train: Train,
    *,
    size: int,
    lowercase: bool,
    input_bytes: int,
    sample_bytes: int,
    skip_bad: bool,
    out: Path,
) -> dict[str, object]:
    """Train on about `sample_bytes` of text and write the tokenizer into `out`; return the statistics of the sample.

    input_bytes: the size of all input, uncompressed, 0 where it is not known: then the sample is the beginning.
    Raises InputError for bad documents unless `skip_bad`, for no text at all, for a sample that could overflow, and
    where the text does not give exactly `size` pieces.
    """
    if size <= len(SPECIALS):
        raise InputError(f"a vocabulary of {size} pieces has no room beside its {len(SPECIALS)} special ones")
    if not 0 < sample_bytes <= _MOST_BYTES:
        raise InputError(f"a sample of {sample_bytes} bytes may overflow the counts of the trainers: use at most 4 GiB")
    _make_folder(out)
    share = min(1.0, sample_bytes / max(1, input_bytes))
    most = min(sample_bytes + sample_bytes // 5, _MOST_BYTES)
    sample = Sample(documents, share, most, skip_bad=skip_bad)
    trained = train(iter(sample), size, lowercase)
    if not sample.bytes:
        raise InputError("no text to train a vocabulary on: every document was left out")
    found = tokenizer_from_files(trained, origin="the trained vocabulary").vocabulary.size
    if found != size:
        raise InputError(f"this text gives {found} pieces, not {size}: ask for {found} pieces, or train on more text")
    for name, content in trained.items():
        files.write(out / name, content)
    counts = {"documents": sample.documents, "bytes": sample.bytes, "skipped": sample.skipped}
    return counts | {"share": share, "sample_sha256": sample.digest.hexdigest()}


def _make_folder(out: Path) -> None:
    """Create the folder of the tokenizer. Raises InputError where it cannot be written, before any work is done."""
    if in_cloud(out):
        if out.exists():
            raise InputError(f"{out} is not empty: choose another folder for the tokenizer")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty: choose another folder for the tokenizer")
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write to {out}: it is read-only; choose another folder")


def train_wordpiece(lines: Iterator[str], size: int, lowercase: bool) -> dict[str, bytes]:
    """Train WordPiece, split and normalised as BERT does: `vocab.txt`.

    The library breaks ties between equally frequent pieces at random, so two trainings can differ in rare pieces.
    """
    rust = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(SPECIALS), show_progress=False, limit_alphabet=1000
    )
    rust.train_from_iterator(lines, trainer)
    pieces = sorted(rust.get_vocab().items(), key=lambda item: item[1])
    config = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
    return {
        "vocab.txt": "".join(piece + "\n" for piece, _ in pieces).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def train_byte_level_bpe(lines: Iterator[str], size: int, lowercase: bool) -> dict[str, bytes]:
    """Train byte-level BPE with RoBERTa's special pieces in RoBERTa's places: `vocab.json` and `merges.txt`."""
    if lowercase:
        raise InputError("byte-level BPE keeps case: leave --lowercase off")
    rust = tokenizers.Tokenizer(tokenizers.models.BPE())
    rust.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=list(ROBERTA_SPECIALS[:-1]),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(lines, trainer)
    vocabulary = dict(sorted(rust.get_vocab().items(), key=lambda item: item[1]))
    vocabulary[ROBERTA_SPECIALS[-1]] = len(vocabulary)
    merges = json.loads(rust.to_str())["model"]["merges"]
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "merges.txt": "".join(" ".join(pair) + "\n" for pair in merges).encode(),
    }


def train_unigram(lines: Iterator[str], size: int, lowercase: bool) -> dict[str, bytes]:
    """Train a SentencePiece unigram model with ALBERT's special pieces and coverage: `spiece.model`."""
    import io

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            character_coverage=0.99995,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece="<pad>",
            unk_piece="<unk>",
            control_symbols="[CLS],[SEP],[MASK]",
            max_sentence_length=2**20,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"SentencePiece cannot train {size} pieces on this text: {reason}") from error
    return {"spiece.model": model.getvalue()}

"""Random documents of few words, and small tokenizers for them."""

import numpy as np

from bertjax.data.corpus import Document
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.data.vocabulary import train_byte_level_bpe, train_unigram

WORDS = """
time person year way day thing man world life hand part child eye woman place work week case point company
number group problem fact good new first last long great little own other old right big high small large next
early young important few public bad same able have do say get make go know take see come think look want give
""".split()  # noqa: SIM905


def make_documents(count: int, seed: int = 0) -> list[Document]:
    """Make documents of random sentences, each with a first word of its own, so that text is learnable."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(count):
        lines = []
        for _ in range(int(rng.integers(1, 12))):
            words = rng.choice(WORDS, int(rng.integers(3, 15)))
            lines.append(" ".join(words).capitalize() + ".")
        documents.append(Document(f"made:{number}", [" ".join(lines)]))
    return documents


def wordpiece_files() -> dict[str, bytes]:
    """Make a WordPiece vocabulary: specials, words, single letters and their continuations."""
    letters = "abcdefghijklmnopqrstuvwxyz.,'-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *WORDS]
    return {"vocab.txt": "\n".join(dict.fromkeys(pieces)).encode()}


def with_spaces_in_pieces(kind):
    """Train a tokenizer whose pieces carry the space before them."""
    rng = np.random.default_rng(0)
    lines = [f"The {' '.join(rng.choice(WORDS, 9))} is it (the man). time good" for _ in range(400)]
    train, size = {"bpe": (train_byte_level_bpe, 330), "unigram": (train_unigram, 90)}[kind]
    return tokenizer_from_files(train(iter(lines), size, False), origin="made")

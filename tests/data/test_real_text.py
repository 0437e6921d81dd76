"""Tokenise 100,000 lines of real text, and lines made to break tokenizers, as the original code of each family does.

The reference is written again here from the originals: google-research/bert tokenization.py, openai/gpt-2 encoder.py
(which RoBERTa takes), google-research/albert and zihangdai/xlnet (the `sentencepiece` library on prepared text).
"""

import os
import random
import re
import unicodedata
from functools import cache, partial
from itertools import chain, islice, pairwise
from pathlib import Path

import pytest
import sentencepiece
from original_tokenization import OLD, TRICKY, basic_tokens, pieces_of, wordpieces

from bertjax.data.tokenizer import load_tokenizer

DATA = Path(os.environ.get("BERTJAX_DATA", "."))
regex = pytest.importorskip("regex")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("BERTJAX_DATA" not in os.environ, reason="BERTJAX_DATA names no folder with real text"),
]

LINES, MADE = 20_000, 5_000


@cache
def real_lines():
    """Read the lines of all books, then of Wikipedia, that are not blank."""
    paths = chain(sorted(DATA.glob("books/*.md")), sorted(DATA.glob("wikipedia/wiki_*")))
    lines = (line for path in paths for line in path.read_text().split("\n") if line.strip())
    return list(islice(lines, LINES))


@cache
def made_lines():
    """Make lines of characters of every kind, of runs that are too long, of marks and joiners between real words."""
    draw = random.Random(0)
    words = ["the", "Émile", "naïve", "ΟΔΟΣ", "straße", "1,000,", "x²", "½", "don't", "``so''"]
    words += ["東京タワー", "สวัสดี", "नमस्ते", "مرحبا", "שלום"]
    several = [*TRICKY, *words, " ", " ", " "]
    lines = []
    for _ in range(MADE):
        kinds = (
            lambda: draw.choice(several),
            lambda: draw.choice(OLD),
            lambda: draw.choice(OLD) * draw.randint(1, 120),
        )
        lines.append("".join(draw.choices(kinds, (6, 3, 0.3))[0]() for _ in range(draw.randint(1, 40))))
    return lines


def bert(name, lowercase):
    vocabulary = set((DATA / "tokenizers" / name / "vocab.txt").read_text().split("\n"))
    # Words repeat; whatever else is white space to Python is not so to BERT.
    of_word = cache(lambda word: wordpieces(word, lowercase, vocabulary))
    return lambda text: [piece for word in re.split(r"[ \t\n\r]+", text) for piece in of_word(word)]


BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTER = {byte: chr(byte) for byte in BYTES} | {
    byte: chr(256 + number) for number, byte in enumerate(byte for byte in range(256) if byte not in BYTES)
}


def roberta(name):
    lines = (DATA / "tokenizers" / name / "merges.txt").read_text().split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    @cache
    def of_word(word):
        parts = [LETTER[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks) + 1))
            if best not in ranks:
                break
            merged, index = [], 0
            while index < len(parts):
                both = tuple(parts[index : index + 2]) == best
                merged.append("".join(parts[index : index + 1 + both]))
                index += 1 + both
            parts = merged
        return parts

    return lambda text: [piece for word in words.findall(text) for piece in of_word(word)]


def sentence_pieces(name, lowercase):
    model = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "tokenizers" / name / "spiece.model"))

    def pieces(text):
        text = " ".join(text.split()).replace("``", '"').replace("''", '"')
        text = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in text if not unicodedata.combining(character))
        found = []
        for piece in model.encode(text.lower() if lowercase else text, out_type=str):
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
                again = model.encode(piece[:-1].replace("▁", ""), out_type=str)
                if piece[0] != "▁" and again[0][0] == "▁":
                    again = [again[0][1:], *again[1:]]
                found += [*(x for x in again if x), ","]
            else:
                found.append(piece)
        known = (model.piece_to_id(piece) for piece in found)
        return [model.id_to_piece(index) for index in known]

    return pieces


REFERENCES = {
    "bert-base-uncased": partial(bert, lowercase=True),
    "bert-base-cased": partial(bert, lowercase=False),
    "bert-base-multilingual-cased": partial(bert, lowercase=False),
    "roberta-base": roberta,
    "albert-base": partial(sentence_pieces, lowercase=True),
    "xlnet-cased": partial(sentence_pieces, lowercase=False),
}


@pytest.fixture(scope="module", params=REFERENCES)
def published(request):
    return request.param, load_tokenizer(DATA / "tokenizers" / request.param)


@pytest.mark.parametrize("lines", [real_lines, made_lines])
def test_every_line_gives_the_pieces_of_the_original_code(published, lines):
    name, tokenizer = published
    pieces = REFERENCES[name](name)
    wrong = [
        (text, found, expected)
        for text, ids in zip(lines(), tokenizer.ids(lines()), strict=True)
        if (found := pieces_of(tokenizer, ids)) != (expected := pieces(text))
    ]
    assert len(lines()) == (LINES if lines is real_lines else MADE) and not wrong[:3]


@pytest.mark.parametrize("lines", [real_lines, made_lines])
def test_offsets_point_at_the_text_that_a_piece_spells(published, lines):
    name, tokenizer = published
    for text in lines()[::20]:
        encoding = tokenizer.encode(text)
        offsets = encoding.offsets.tolist()
        assert encoding.ids.tolist() == tokenizer.ids([text])[0]
        assert offsets == sorted(offsets) and all(0 <= begin <= end <= len(text) for begin, end in offsets)
        for index, (begin, end) in zip(encoding.ids.tolist(), offsets, strict=True):
            if index != tokenizer.vocabulary.unk:
                piece = tokenizer.piece(index)
                assert spells(name, piece, text[begin:end]), (text, begin, end, piece)


def spells(name, piece, text):
    """Tell whether a slice of text is what a piece stands for, as far as its family keeps the text."""
    if name.startswith("bert"):
        piece, plain = piece.removeprefix("##"), "".join(basic_tokens(text, name.endswith("uncased")))
        return piece == plain or (len(text) == 1 and piece in plain)  # a character that was taken apart
    if name.startswith("roberta"):
        return piece in "".join(LETTER[byte] for byte in text.encode())
    plain = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return piece.removeprefix("▁") in unicodedata.normalize("NFKC", plain.lower() if name == "albert-base" else plain)

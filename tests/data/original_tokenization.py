"""Characters that break tokenizers, and the tokenization of BERT, transcribed from its original code."""

import sys
import unicodedata

# Python knows a newer Unicode than the library, so characters are used whose category is what it was in version 3.2.
OLD = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if (category := unicodedata.category(character)) not in ("Cn", "Co", "Cs")
    and category == unicodedata.ucd_3_2_0.category(character)
]
TRICKY = [
    *"aAbBcCéÉçÅİßǅ中\U00020000\uf900!$^'[]#«。б\u0438\u0306\u0301\u0327",
    *" \t\r\n\0\ufffd\x01\x7f\x85\xa0\xad\u2028\u3000\ufeff\u200d",
]
TRICKY += ["abc", "cab", "👩\u200d👩\u200d👧", "🏳\ufe0f", "[MASK]", "mask", "a" * 99]


def pieces_of(tokenizer, ids):
    return [tokenizer.piece(index) for index in ids]


CJK = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)]
CJK += [(0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]


def is_cjk(character):
    return any(first <= ord(character) <= last for first, last in CJK)


def is_punctuation(character):
    ascii_ranges = ((33, 47), (58, 64), (91, 96), (123, 126))
    return (
        any(first <= ord(character) <= last for first, last in ascii_ranges)
        or unicodedata.category(character)[0] == "P"
    )


def basic_tokens(text, lowercase):
    """Transcribe BERT's clean-up and splitting; lower-cases each character by itself, as the library does."""
    cleaned = ""
    for character in text:
        if character in "\t\n\r" or unicodedata.category(character) in ("Zs", "Zl", "Zp"):
            cleaned += " "
        elif character not in "\0\ufffd" and unicodedata.category(character) not in ("Cc", "Cf"):
            cleaned += f" {character} " if is_cjk(character) else character
    found = []
    for word in cleaned.split(" "):
        if lowercase:
            word = unicodedata.normalize("NFD", "".join(character.lower() for character in word))
            word = "".join(character for character in word if unicodedata.category(character) != "Mn")
        found.append("")
        for character in word:
            if is_punctuation(character):
                found += [character, ""]
            else:
                found[-1] += character
    return [word for word in found if word]


def wordpieces(text, lowercase, vocabulary):
    """Transcribe BERT's WordPiece: the longest piece that fits, from the left; else the word is [UNK]."""
    found = []
    for word in basic_tokens(text, lowercase):
        pieces, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1)
            candidates = (("##" if start else "") + word[start:end] for end in ends)
            end, piece = next(((end, x) for end, x in zip(ends, candidates, strict=True) if x in vocabulary), (0, ""))
            if not piece:
                break
            pieces.append(piece)
            start = end
        found += pieces if start == len(word) <= 200 else ["[UNK]"]
    return found

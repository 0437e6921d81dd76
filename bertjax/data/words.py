"""Split texts into words, by the categories and scripts of Unicode.

Combining marks belong to the word or symbol that they stand on. `re` has no class for them, so they are replaced by one
placeholder first, which keeps the length of the text.
"""

import re
import unicodedata
from collections.abc import Iterator

_MARK = "\ufffe"  # not a character
_IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA = "\u3041-\u309f"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_OTHER = rf"[^\W{_IDEOGRAPH}{_HIRAGANA}{_KATAKANA}]"
_SCRIPT_WORD = re.compile(
    rf"[{_IDEOGRAPH}]{_MARK}*"
    rf"|[{_HIRAGANA}][{_HIRAGANA}ー{_MARK}]*"
    rf"|[{_KATAKANA}][{_KATAKANA}{_MARK}]*"
    rf"|{_OTHER}(?:{_OTHER}|{_MARK}|[\u200c\u200d]+(?={_OTHER}|{_MARK}))*"  # joiners occur inside words
    rf"|[^\w\s]{_MARK}*"
)
_TAGGED_WORD = re.compile(rf"\w[\w{_MARK}]*(?:[-'’]\w[\w{_MARK}]*)*|[^\w\s]{_MARK}*")


def words_by_script(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield words as (script, begin, end): runs of letters of one script, single ideographs, symbols."""
    for match in _SCRIPT_WORD.finditer(_with_placeholders(text, ("Mn", "Mc", "Me"))):
        script = script_of(text[match.start() : match.end()])
        if script:
            yield script, match.start(), match.end()


def words_to_tag(text: str) -> list[tuple[int, int]]:
    """Return words as (begin, end): runs of letters and digits, and each other symbol by itself.

    Format characters, such as joiners and soft hyphens, belong to a word as combining marks do.
    """
    return [match.span() for match in _TAGGED_WORD.finditer(_with_placeholders(text, ("Mn", "Mc", "Me", "Cf")))]


def _with_placeholders(text: str, categories: tuple[str, ...]) -> str:
    if text.isascii():
        return text
    return "".join(_MARK if unicodedata.category(character) in categories else character for character in text)


def script_of(word: str) -> str:
    """Return the Unicode script of a word's first letter, NUMBER, SYMBOL, or nothing for punctuation."""
    for character in word:
        kind = unicodedata.category(character)[0]
        if kind == "L":
            name = unicodedata.name(character, "UNKNOWN")
            return name.removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ").split()[0]
        if kind == "S" and not character.isascii():
            return "SYMBOL"
    return "NUMBER" if any(unicodedata.category(character)[0] == "N" for character in word) else ""

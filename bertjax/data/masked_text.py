"""Encode texts in which masks are spelled as the tokenizer's mask piece, "[MASK]" or "<mask>"."""

from collections.abc import Callable
from functools import cache
from itertools import accumulate

from bertjax.data.tokenizer import Tokenizer, parsing_special_tokens


def reading_masks(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return a function that encodes a text, without special tokens but its masks, as it was in training.

    The tokenizers of folders parse a mask as their files say.
    """
    mask = tokenizer.piece(tokenizer.vocabulary.mask)

    @cache
    def parsing() -> Tokenizer:
        return parsing_special_tokens(tokenizer, mask_only=True)

    def read(text: str) -> list[int]:
        if tokenizer.templates:
            (ids,) = parsing().ids([text])
            return ids
        return _with_placeholders(tokenizer, text.split(mask))

    return read


_PLACEHOLDER = "中"  # replaces a mask in tokenisation: no vocabulary merges it with its neighbours


def _with_placeholders(tokenizer: Tokenizer, parts: list[str]) -> list[int]:
    """Encode the parts of a text between masks.

    Each mask is tokenised as a placeholder word, so that the text around it is tokenised as in training: the preceding
    space belongs to the masked word if the vocabulary's pieces include their spaces, and the text after it continues.
    """
    places = [end - 1 for end in accumulate(len(part) + 1 for part in parts[:-1])]
    encoding = tokenizer.encode(_PLACEHOLDER.join(parts))
    ids: list[int] = []
    seen = set()
    for index, (begin, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
        hidden = [place for place in places if begin <= place < end]
        if not hidden:
            ids.append(index)
        for place in hidden:
            if place in seen:  # further pieces of the placeholder
                continue
            seen.add(place)
            if begin == place and ids and tokenizer.piece(ids[-1]) in ("Ġ", "▁"):
                ids.pop()
            ids.append(tokenizer.vocabulary.mask)
    return ids

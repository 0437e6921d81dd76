"""Check, before any work is done, that a model, its tokenizer and the texts given to it fit together."""

import re
from collections.abc import Callable, Container, Iterable

from bertjax.checkpoints.trained import Model
from bertjax.data.coverage import coverage
from bertjax.errors import InputError

_HOLE = re.compile(r"\[MASK(:[0-9]+)?\]|<mask:[0-9]+>")  # of infill

UNUSED_ROWS = (128, 1 / 256)
"""A word table is padded by fewer rows than the first, or by a smaller fraction than the second: ModernBERT by 88,
DeBERTa by 100, mDeBERTa by 898 of 251,000. ALBERT's 30,000 pieces are 522 fewer than the rows of BERT."""


def check_tokenizer(model: Model, origin: str) -> None:
    """Raise InputError if ids or special tokens show that the model was trained with another tokenizer."""
    v, rows = model.text.vocabulary, model.encoder.V
    if v.size > rows:
        raise InputError(
            f"{origin}: its tokenizer has {v.size:,} ids, but the word table {rows:,} rows: they do not belong "
            "together, so put the model's own vocabulary into its folder"
        )
    if rows - v.size >= max(UNUSED_ROWS[0], UNUSED_ROWS[1] * rows):
        raise InputError(
            f"{origin}: its tokenizer has {v.size:,} ids for a word table of {rows:,} rows: they do not belong "
            "together, so put the model's own vocabulary into its folder"
        )
    config = model.config.get("huggingface", {}).get("config", {})
    for role, key in {"cls": "cls_token_id", "sep": "sep_token_id"}.items():
        given, ours = config.get(key), getattr(v, role)
        # The tokenizer decides the special tokens around a text; config.json may name another of its special tokens.
        possible = {ours} if model.text.templates is None else {*v[1:]}
        if isinstance(given, int) and given not in possible:
            raise InputError(
                f"{origin}: config.json says {key}={given}, its tokenizer has {model.text.piece(ours)!r} at {ours}: "
                "they do not belong together, so put the model's own vocabulary into its folder"
            )


def check_texts(
    model: Model,
    texts: Iterable[str],
    say: Callable[[str], None],
    reported: Container[str] = (),
    *,
    where: str = "",
    most_words: int = 20_000,
) -> frozenset[str]:
    """Warn about words that the tokenizer maps to the unknown token, or splits into characters.

    reported: kinds of warnings that were given for earlier texts, and are not repeated. where: prefix that names the
    texts. most_words: maximum number of words to check. Returns the kinds of warnings for these texts.
    """
    mask = model.text.piece(model.text.vocabulary.mask)  # a mask is not a word
    plain = (_HOLE.sub(" ", text.replace(mask, " ")) for text in texts)
    found = coverage(model.text, plain, most_words=most_words).warnings()
    for kind, warning in found.items():
        if kind not in reported:
            say(f"warning: {where}{warning}")
    return frozenset(found)

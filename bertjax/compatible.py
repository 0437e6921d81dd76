"""See that a model, its tokenizer and the texts given to it belong together, before any work is done."""

from collections.abc import Callable, Container, Iterable

from bertjax.data.coverage import coverage
from bertjax.errors import InputError
from bertjax.model import Model

UNUSED_ROWS = (128, 0.02)
"""A word table is padded by at most so many rows, or such a share of them: Ettin by 88, DeBERTa by 100."""


def check_tokenizer(model: Model, origin: str) -> None:
    """Raise InputError where the tokenizer is not the one that the model was trained with, as far as can be told."""
    v, rows = model.text.vocabulary, model.encoder.V
    if v.size > rows:
        raise InputError(
            f"{origin}: its tokenizer has {v.size:,} ids, the word table {rows:,} rows: they do not belong together"
        )
    if rows - v.size > max(UNUSED_ROWS[0], UNUSED_ROWS[1] * rows):
        raise InputError(
            f"{origin}: its tokenizer has {v.size:,} ids for a word table of {rows:,} rows: they do not belong "
            "together, so put the model's own vocabulary into its folder"
        )
    config = model.config.get("huggingface", {}).get("config", {})
    stated = {"pad": "pad_token_id", "cls": "cls_token_id", "sep": "sep_token_id"}
    for role, key in stated.items():
        given, ours = config.get(key), getattr(v, role)
        if isinstance(given, int) and given != ours:
            raise InputError(
                f"{origin}: config.json says {key}={given}, its tokenizer has {model.text.piece(ours)!r} at {ours}: "
                "they do not belong together, so put the model's own vocabulary into its folder"
            )


def check_texts(
    model: Model, texts: Iterable[str], say: Callable[[str], None], said: Container[str] = ()
) -> frozenset[str]:
    """Say which words of the texts the tokenizer does not know, or cuts into letters; nothing on what it knows.

    said: what was said of earlier texts, and is not again. Returns it with what is said now.
    """
    found = coverage(model.text, texts).warnings()
    for kind, warning in found.items():
        if kind not in said:
            say(f"warning: {warning}")
    return frozenset(found)

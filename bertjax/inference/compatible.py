"""See that a model, its tokenizer and the texts given to it belong together, before any work is done."""

from collections.abc import Callable, Container, Iterable

from bertjax.checkpoints.trained import Model
from bertjax.data.coverage import coverage
from bertjax.errors import InputError

UNUSED_ROWS = (128, 1 / 256)
"""A word table is padded by fewer rows than this, or by such a share: ModernBERT by 88, DeBERTa by 100, mDeBERTa by 898
of 251,000. ALBERT's 30,000 pieces are 522 fewer than the rows of BERT."""


def check_tokenizer(model: Model, origin: str) -> None:
    """Raise InputError where the tokenizer is not the one that the model was trained with, as far as can be told."""
    v, rows = model.text.vocabulary, model.encoder.V
    if v.size > rows:
        raise InputError(
            f"{origin}: its tokenizer has {v.size:,} ids, the word table {rows:,} rows: they do not belong together, "
            "so put the model's own vocabulary into its folder"
        )
    if rows - v.size >= max(UNUSED_ROWS[0], UNUSED_ROWS[1] * rows):
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
    model: Model,
    texts: Iterable[str],
    say: Callable[[str], None],
    said: Container[str] = (),
    *,
    where: str = "",
    most_words: int = 20_000,
) -> frozenset[str]:
    """Say which words of the texts the tokenizer does not know, or cuts into letters; nothing on what it knows.

    said: what was said of earlier texts, and is not again. where: what texts they are. most_words: looks at no more.
    Returns what there is to say of these texts.
    """
    mask = model.text.piece(model.text.vocabulary.mask)  # where a text is to be filled it is no word
    found = coverage(model.text, (text.replace(mask, " ") for text in texts), most_words=most_words).warnings()
    for kind, warning in found.items():
        if kind not in said:
            say(f"warning: {where}{warning}")
    return frozenset(found)

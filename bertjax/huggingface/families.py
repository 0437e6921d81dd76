"""The families that can be read and written, by the `model_type` of config.json."""

from collections.abc import Collection
from typing import Any

from bertjax.errors import InputError
from bertjax.huggingface.albert import ALBERT
from bertjax.huggingface.bert import BERT
from bertjax.huggingface.deberta import DEBERTA, DEBERTA_V2
from bertjax.huggingface.distilbert import DISTILBERT
from bertjax.huggingface.electra import ELECTRA
from bertjax.huggingface.modernbert import MODERNBERT
from bertjax.huggingface.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from bertjax.huggingface.table import Family
from bertjax.huggingface.xlnet import XLNET

# Where several fit a model, the last one is its default: from the general to the special.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
        DISTILBERT,
        ALBERT,
        ELECTRA,
        XLNET,
        MODERNBERT,
        DEBERTA,
        DEBERTA_V2,
    )
}


def find_family(encoder: Any, heads: Collection[str] = (), part_of: str = "") -> Family | None:
    """Return the last family of FAMILIES that fits a model, None if none has such an encoder: see Family.is_default."""
    fitting = [
        family
        for family in FAMILIES.values()
        if type(encoder) is family.encoder and family.is_default(encoder, heads, part_of)
    ]
    return fitting[-1] if fitting else None


def default_family(encoder: Any, heads: Collection[str] = (), part_of: str = "") -> Family:
    """As `find_family`. Raises InputError if there is none."""
    family = find_family(encoder, heads, part_of)
    if family is None:
        raise InputError(
            f"transformers has no class for the encoder {type(encoder).__name__}: bertjax writes {', '.join(FAMILIES)}"
        )
    return family

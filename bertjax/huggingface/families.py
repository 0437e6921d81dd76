"""List the families that can be read and written, by the `model_type` of config.json."""

from bertjax.huggingface.albert import ALBERT
from bertjax.huggingface.bert import BERT
from bertjax.huggingface.deberta import DEBERTA, DEBERTA_V2
from bertjax.huggingface.distilbert import DISTILBERT
from bertjax.huggingface.electra import ELECTRA
from bertjax.huggingface.modernbert import MODERNBERT
from bertjax.huggingface.roberta import ROBERTA, XLM_ROBERTA
from bertjax.huggingface.table import Family
from bertjax.huggingface.xlnet import XLNET

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, ALBERT, ELECTRA, XLNET, MODERNBERT, DEBERTA, DEBERTA_V2)
}

"""RoBERTa, XLM-RoBERTa and CamemBERT: transformers, models/roberta, models/xlm_roberta and models/camembert.

Their position table has rows for the padding id and those before it: 514 for 512 positions. Tokens of that id have its
row and are not counted; where the tokenizer pads with another id, this one is a token of texts.
"""

from typing import Any

from bertjax.errors import InputError
from bertjax.huggingface.bert import CLASSIFIER_DROPOUT, FIELDS, UNSUPPORTED, encoder_tensors, own_table, with_segments
from bertjax.huggingface.table import (
    NORMAL,
    Codec,
    Config,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    TensorMapping,
    dense,
    norm,
)
from bertjax.models import layers
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, Pooler, TokenHead
from bertjax.types import Params

BOTH = CLASSIFIER_DROPOUT._replace(fields=("dropout", "input_dropout"))


def _padding(value: Any, config: Config) -> int:
    if type(value) is not int or not -1 <= value < 2**31:
        raise InputError(f"{value!r} is not the id after which positions are numbered")
    return value


def _with_padding(encoder: Encoder, params: Params) -> tuple[Encoder, Params]:
    """Give an encoder one segment, and leave padding out of the positions, as the classes of the family do."""
    encoder, params = with_segments(encoder, params)
    with_padding: Encoder = encoder.clone(unnumbered=encoder.first_position - 1)
    return with_padding, params


FIRST_POSITION = Codec(lambda value, config: _padding(value, config) + 1, lambda value, encoder: value - 1)
UNNUMBERED = Codec(_padding, lambda value, encoder: encoder.first_position - 1)


def _roberta(model_type: str, class_prefix: str) -> Family:
    pooler = dense("roberta.pooler.dense", "pooler")
    mlm = (
        *dense("lm_head.dense", "transform"),
        *norm("lm_head.layer_norm", "norm"),
        TensorMapping("lm_head.bias", ("bias",)),
    )
    classify = dense("classifier.dense", "pooler") + dense("classifier.out_proj", "classifier")
    classifier = dense("classifier", "classifier")
    return Family(
        model_type=model_type,
        prefix="roberta",
        base_class=f"{class_prefix}Model",
        encoder=Encoder,
        config_keys=(
            *FIELDS[:-1],
            ConfigKey("initializer_range", "initializer", NORMAL),
            ConfigKey("pad_token_id", "first_position", FIRST_POSITION),
            ConfigKey("pad_token_id", "unnumbered", UNNUMBERED),
        ),
        fixed={},
        unsupported=UNSUPPORTED,
        tensors=encoder_tensors("roberta"),
        pooler=Head("pair", pooler, lambda e, config, C: Pooler(e.D, e.initializer, e.dtype)),
        heads=(
            # Their activation is this one whatever hidden_act says.
            Head("mlm", mlm,
                 lambda e, config, C: e.language_head().clone(activation=layers.gelu),
                 untied=own_table("lm_head.decoder")),
            Head("classify", classify, lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype), dropout=BOTH),
            Head("choice", pooler + classifier,
                 lambda e, config, C: PairHead(e.D, 1, e.initializer, e.dtype), True, dropout=HeadDropout()),
            Head("tags", classifier,
                 lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, dropout=CLASSIFIER_DROPOUT),
            Head("span", dense("qa_outputs", "classifier"),
                 lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype)),
        ),
        classes={
            f"{class_prefix}ForMaskedLM": ("mlm",),
            f"{class_prefix}ForSequenceClassification": ("classify",),
            f"{class_prefix}ForMultipleChoice": ("choice",),
            f"{class_prefix}ForTokenClassification": ("tags",),
            f"{class_prefix}ForQuestionAnswering": ("span",),
        },
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        specials={"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"},
        is_default=lambda encoder, heads, part_of: model_type == "roberta" and encoder.first_position > 0,
        canonical=_with_padding,
    )  # fmt: skip


ROBERTA = _roberta("roberta", "Roberta")
XLM_ROBERTA = _roberta("xlm-roberta", "XLMRoberta")
CAMEMBERT = _roberta("camembert", "Camembert")

"""ELECTRA, generator and discriminator: transformers, models/electra."""

from collections.abc import Collection

from bertjax.errors import InputError
from bertjax.huggingface.bert import CLASSIFIER_DROPOUT, FIELDS, UNSUPPORTED, encoder_tensors, with_segments
from bertjax.huggingface.table import (
    SIZE,
    Codec,
    Config,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    TensorMapping,
    activation,
    dense,
    norm,
)
from bertjax.models import layers
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, ReplacedHead, TokenHead

# The embeddings are projected only if their width differs from the model's.
WIDTH = Codec(
    lambda value, config: None if value == config.get("hidden_size") else SIZE.decode(value, config),
    lambda value, encoder: encoder.embedding_width,
)


def _choice(e: Encoder, config: Config, C: int) -> PairHead:
    if config.get("summary_type", "first") != "first" or not config.get("summary_use_proj", True):
        raise InputError("the head of multiple choice needs summary_type=first, summary_use_proj=true")
    return PairHead(e.D, 1, e.initializer, e.dtype, activation(config.get("summary_activation", "gelu")))


def _is_default(e: Encoder, heads: Collection[str], part_of: str) -> bool:
    return part_of == "ReplacedTokenDetection" or (not e.shared and (e.E is not None or "rtd" in heads))


BOTH = CLASSIFIER_DROPOUT._replace(fields=("dropout", "input_dropout"))
CLASSIFIER = dense("classifier", "classifier")
ELECTRA = Family(
    model_type="electra",
    prefix="electra",
    base_class="ElectraModel",
    encoder=Encoder,
    config_keys=(*FIELDS, ConfigKey("embedding_size", "E", WIDTH)),
    fixed={},
    unsupported=UNSUPPORTED,
    tensors=(*encoder_tensors("electra"), *dense("electra.embeddings_project", "project")),
    heads=(
        # Its activation is this one whatever hidden_act says.
        Head("mlm",
             (*dense("generator_predictions.dense", "transform"), *norm("generator_predictions.LayerNorm", "norm"),
              TensorMapping("generator_lm_head.bias", ("bias",))),
             lambda e, config, C: e.language_head().clone(activation=layers.gelu),
             untied=(TensorMapping("generator_lm_head.weight", ("decoder",)),)),
        Head("rtd",
             dense("discriminator_predictions.dense", "transform")
             + dense("discriminator_predictions.dense_prediction", "classifier"),
             lambda e, config, C: ReplacedHead(e.D, e.activation, e.initializer, e.dtype)),
        Head("classify", dense("classifier.dense", "pooler") + dense("classifier.out_proj", "classifier"),
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype, layers.gelu), dropout=BOTH),
        Head("choice", dense("sequence_summary.summary", "pooler") + CLASSIFIER,
             _choice, True, dropout=HeadDropout("summary_last_dropout", 0.1)),
        Head("tags", CLASSIFIER,
             lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, dropout=CLASSIFIER_DROPOUT),
        Head("span", dense("qa_outputs", "classifier"), lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype)),
    ),
    classes={
        "ElectraForMaskedLM": ("mlm",),
        "ElectraForPreTraining": ("rtd",),
        "ElectraForSequenceClassification": ("classify",),
        "ElectraForMultipleChoice": ("choice",),
        "ElectraForTokenClassification": ("tags",),
        "ElectraForQuestionAnswering": ("span",),
    },
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    specials={"pad_token_id": "pad"},
    is_default=_is_default,
    canonical=with_segments,
    published=lambda e: "electra-large" if (e.D, e.N) == (1024, 24) else "",
)  # fmt: skip

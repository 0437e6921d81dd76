"""The names of ELECTRA, generator and discriminator: transformers, models/electra."""

from bertjax.errors import InputError
from bertjax.huggingface.bert import CLASSIFIER_DROPOUT, FIELDS, UNSUPPORTED, encoder_rows
from bertjax.huggingface.table import Config, Drop, Family, Field, Head, Row, Value, activation, dense, norm
from bertjax.models import layers
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, ReplacedHead, TokenHead

# A layer from tables to model is there only where their widths differ.
WIDTH = Value(
    lambda value, config: None if value == config.get("hidden_size") else value,
    lambda value, encoder: encoder.embedding_width,
)


def _choice(e: Encoder, config: Config, C: int) -> PairHead:
    if config.get("summary_type", "first") != "first" or not config.get("summary_use_proj", True):
        raise InputError("the head of multiple choice is only there with summary_type=first, summary_use_proj=true")
    return PairHead(e.D, 1, e.initializer, e.dtype, activation(config.get("summary_activation", "gelu")))


BOTH = CLASSIFIER_DROPOUT._replace(fields=("dropout", "input_dropout"))
CLASSIFIER = dense("classifier", "classifier")
ELECTRA = Family(
    model_type="electra",
    prefix="electra",
    base_class="ElectraModel",
    encoder=Encoder,
    fields=(*FIELDS, Field("embedding_size", "E", WIDTH)),
    fixed={},
    unsupported=UNSUPPORTED,
    rows=(*encoder_rows("electra"), *dense("electra.embeddings_project", "project")),
    heads=(
        # Its activation is this one whatever hidden_act says.
        Head("mlm",
             (*dense("generator_predictions.dense", "transform"), *norm("generator_predictions.LayerNorm", "norm"),
              Row("generator_lm_head.bias", ("bias",))),
             lambda e, config, C: e.language_head().clone(activation=layers.gelu),
             untied=(Row("generator_lm_head.weight", ("decoder",)),)),
        Head("rtd",
             dense("discriminator_predictions.dense", "transform")
             + dense("discriminator_predictions.dense_prediction", "classifier"),
             lambda e, config, C: ReplacedHead(e.D, e.activation, e.initializer, e.dtype)),
        Head("classify", dense("classifier.dense", "pooler") + dense("classifier.out_proj", "classifier"),
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype, layers.gelu), drop=BOTH),
        Head("choice", dense("sequence_summary.summary", "pooler") + CLASSIFIER,
             _choice, True, drop=Drop("summary_last_dropout", 0.1)),
        Head("tags", CLASSIFIER,
             lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, drop=CLASSIFIER_DROPOUT),
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
)  # fmt: skip

"""ALBERT: transformers, models/albert. All layers share one set of parameters, or those of a group do."""

from bertjax.huggingface.bert import FIELDS, UNSUPPORTED, own_table, with_segments
from bertjax.huggingface.table import (
    OUTPUT_KERNEL,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    TensorMapping,
    dense,
    norm,
    table,
)
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, Pooler, TokenHead

LAYER = "albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"


def _layer(ours: str, theirs: str) -> tuple[TensorMapping, ...]:
    return (
        *dense(f"{theirs}.attention.query", f"{ours}/attention/query"),
        *dense(f"{theirs}.attention.key", f"{ours}/attention/key"),
        *dense(f"{theirs}.attention.value", f"{ours}/attention/value"),
        *dense(f"{theirs}.attention.dense", f"{ours}/attention/output", OUTPUT_KERNEL),
        *norm(f"{theirs}.attention.LayerNorm", f"{ours}/attention_norm"),
        *dense(f"{theirs}.ffn", f"{ours}/feedforward/widen"),
        *dense(f"{theirs}.ffn_output", f"{ours}/feedforward/narrow"),
        *norm(f"{theirs}.full_layer_layer_norm", f"{ours}/feedforward_norm"),
    )


POOLER = dense("albert.pooler", "pooler")
DROP = HeadDropout("classifier_dropout_prob", 0.1)
CLASSIFIER = dense("classifier", "classifier")
ALBERT = Family(
    model_type="albert",
    prefix="albert",
    base_class="AlbertModel",
    encoder=Encoder,
    config_keys=(
        *FIELDS,
        ConfigKey("embedding_size", "E"),
        ConfigKey("num_hidden_groups", "groups", default=lambda config: 1),
        ConfigKey("inner_group_num", "inner", default=lambda config: 1),
    ),
    fixed={"shared": True},
    unsupported=UNSUPPORTED,
    tensors=(
        *table("albert.embeddings.word_embeddings", "embeddings/word"),
        *table("albert.embeddings.position_embeddings", "embeddings/position"),
        *table("albert.embeddings.token_type_embeddings", "embeddings/type"),
        *norm("albert.embeddings.LayerNorm", "embeddings/norm"),
        *dense("albert.encoder.embedding_hidden_mapping_in", "project"),
        *_layer("layer", LAYER.format(group=0, inner=0)),
        *_layer("layers", LAYER),  # where there are several sets of parameters
    ),
    pooler=Head("pair", POOLER, lambda e, config, C: Pooler(e.D, e.initializer, e.dtype)),
    heads=(
        Head("mlm",
             (*dense("predictions.dense", "transform"), *norm("predictions.LayerNorm", "norm"),
              TensorMapping("predictions.bias", ("bias",))),
             lambda e, config, C: e.language_head(), untied=own_table("predictions.decoder")),
        Head("pair", POOLER + dense("sop_classifier.classifier", "classifier"),
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype)),
        Head("classify", POOLER + CLASSIFIER,
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype), True, dropout=DROP),
        Head("choice", POOLER + CLASSIFIER,
             lambda e, config, C: PairHead(e.D, 1, e.initializer, e.dtype), True, dropout=DROP),
        Head("tags", CLASSIFIER, lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, dropout=DROP),
        Head("span", dense("qa_outputs", "classifier"), lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype)),
    ),
    classes={
        "AlbertForPreTraining": ("mlm", "pair"),
        "AlbertForMaskedLM": ("mlm",),
        "AlbertForSequenceClassification": ("classify",),
        "AlbertForMultipleChoice": ("choice",),
        "AlbertForTokenClassification": ("tags",),
        "AlbertForQuestionAnswering": ("span",),
    },
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    specials={"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"},
    is_default=lambda encoder, heads, part_of: encoder.shared,
    canonical=with_segments,
    indices=lambda encoder, n: {"group": n // encoder.inner, "inner": n % encoder.inner},
)  # fmt: skip

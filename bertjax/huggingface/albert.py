"""ALBERT: transformers, models/albert. All layers share one set of parameters."""

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

LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
POOLER = dense("albert.pooler", "pooler")
DROP = HeadDropout("classifier_dropout_prob", 0.1)
CLASSIFIER = dense("classifier", "classifier")
ALBERT = Family(
    model_type="albert",
    prefix="albert",
    base_class="AlbertModel",
    encoder=Encoder,
    config_keys=(*FIELDS, ConfigKey("embedding_size", "E")),
    fixed={"shared": True},
    unsupported=UNSUPPORTED | {"num_hidden_groups": 1, "inner_group_num": 1},
    tensors=(
        *table("albert.embeddings.word_embeddings", "embeddings/word"),
        *table("albert.embeddings.position_embeddings", "embeddings/position"),
        *table("albert.embeddings.token_type_embeddings", "embeddings/type"),
        *norm("albert.embeddings.LayerNorm", "embeddings/norm"),
        *dense("albert.encoder.embedding_hidden_mapping_in", "project"),
        *dense(f"{LAYER}.attention.query", "layer/attention/query"),
        *dense(f"{LAYER}.attention.key", "layer/attention/key"),
        *dense(f"{LAYER}.attention.value", "layer/attention/value"),
        *dense(f"{LAYER}.attention.dense", "layer/attention/output", OUTPUT_KERNEL),
        *norm(f"{LAYER}.attention.LayerNorm", "layer/attention_norm"),
        *dense(f"{LAYER}.ffn", "layer/feedforward/widen"),
        *dense(f"{LAYER}.ffn_output", "layer/feedforward/narrow"),
        *norm(f"{LAYER}.full_layer_layer_norm", "layer/feedforward_norm"),
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
)  # fmt: skip

"""BERT: transformers, models/bert/modeling_bert.py and configuration_bert.py."""

import jax.numpy as jnp

from bertjax.huggingface.table import (
    ACTIVATION,
    NUMBER,
    OUTPUT_KERNEL,
    TIED,
    TRUNCATED,
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
from bertjax.types import Params

FIELDS = (
    ConfigKey("vocab_size", "V"),
    ConfigKey("hidden_size", "D"),
    ConfigKey("num_hidden_layers", "N"),
    ConfigKey("num_attention_heads", "H"),
    ConfigKey("intermediate_size", "F"),
    ConfigKey("max_position_embeddings", "positions"),
    ConfigKey("type_vocab_size", "types"),
    ConfigKey("hidden_dropout_prob", "dropout", NUMBER),
    ConfigKey("attention_probs_dropout_prob", "attention_dropout", NUMBER),
    ConfigKey("hidden_act", "activation", ACTIVATION),
    ConfigKey("layer_norm_eps", "norm_eps", NUMBER),
    TIED,
    ConfigKey("initializer_range", "initializer", TRUNCATED),
)
UNSUPPORTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
}


def encoder_tensors(prefix: str) -> tuple[TensorMapping, ...]:
    """Map the tensors of BERT's encoder, which RoBERTa and ELECTRA have under another prefix."""
    layer = f"{prefix}.encoder.layer.{{n}}"
    return (
        *table(f"{prefix}.embeddings.word_embeddings", "embeddings/word"),
        *table(f"{prefix}.embeddings.position_embeddings", "embeddings/position"),
        *table(f"{prefix}.embeddings.token_type_embeddings", "embeddings/type"),
        *norm(f"{prefix}.embeddings.LayerNorm", "embeddings/norm"),
        *dense(f"{layer}.attention.self.query", "layers/attention/query"),
        *dense(f"{layer}.attention.self.key", "layers/attention/key"),
        *dense(f"{layer}.attention.self.value", "layers/attention/value"),
        *dense(f"{layer}.attention.output.dense", "layers/attention/output", OUTPUT_KERNEL),
        *norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *dense(f"{layer}.intermediate.dense", "layers/feedforward/widen"),
        *dense(f"{layer}.output.dense", "layers/feedforward/narrow"),
        *norm(f"{layer}.output.LayerNorm", "layers/feedforward_norm"),
    )


def own_table(theirs: str) -> tuple[TensorMapping, ...]:
    """Map the table and the bias of a language-model head that does not share the word embeddings."""
    return (TensorMapping(f"{theirs}.weight", ("decoder",)), TensorMapping(f"{theirs}.bias", ("bias",)))


def with_segments(encoder: Encoder, params: Params) -> tuple[Encoder, Params]:
    """Give an encoder without segments one segment of zeros, which the classes of the family always have."""
    if encoder.types:
        return encoder, params
    segments = {"type": {"table": jnp.zeros((1, encoder.embedding_width))}}
    with_one: Encoder = encoder.clone(types=1)
    return with_one, {**params, "embeddings": {**params["embeddings"], **segments}}


CLASSIFIER_DROPOUT = HeadDropout("classifier_dropout")
POOLER = dense("bert.pooler.dense", "pooler")
CLASSIFIER = dense("classifier", "classifier")
MLM = (
    *dense("cls.predictions.transform.dense", "transform"),
    *norm("cls.predictions.transform.LayerNorm", "norm"),
    TensorMapping("cls.predictions.bias", ("bias",)),
)
OWN = own_table("cls.predictions.decoder")
BERT = Family(
    model_type="bert",
    prefix="bert",
    base_class="BertModel",
    encoder=Encoder,
    config_keys=FIELDS,
    fixed={},
    unsupported=UNSUPPORTED,
    tensors=encoder_tensors("bert"),
    pooler=Head("pair", POOLER, lambda e, config, C: Pooler(e.D, e.initializer, e.dtype)),
    heads=(
        Head("mlm", MLM, lambda e, config, C: e.language_head(), untied=OWN),
        Head("pair", POOLER + dense("cls.seq_relationship", "classifier"),
             lambda e, config, C: PairHead(e.D, 2, e.initializer, e.dtype)),
        Head("classify", POOLER + CLASSIFIER,
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype), True, dropout=CLASSIFIER_DROPOUT),
        Head("choice", POOLER + CLASSIFIER,
             lambda e, config, C: PairHead(e.D, 1, e.initializer, e.dtype), True, dropout=CLASSIFIER_DROPOUT),
        Head("tags", CLASSIFIER,
             lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, dropout=CLASSIFIER_DROPOUT),
        Head("span", dense("qa_outputs", "classifier"), lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype)),
    ),
    classes={
        "BertForPreTraining": ("mlm", "pair"),
        "BertForMaskedLM": ("mlm",),
        "BertForNextSentencePrediction": ("pair",),
        "BertForSequenceClassification": ("classify",),
        "BertForMultipleChoice": ("choice",),
        "BertForTokenClassification": ("tags",),
        "BertForQuestionAnswering": ("span",),
    },
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    specials={"pad_token_id": "pad"},
    canonical=with_segments,
)  # fmt: skip

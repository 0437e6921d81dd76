"""The names of DistilBERT: transformers, models/distilbert. BERT without segments and pooler; its epsilon is fixed."""

from bertjax.huggingface.table import (
    ACTIVATION,
    JOIN,
    NORMAL,
    NUMBER,
    TIED,
    Drop,
    Family,
    Field,
    Head,
    Row,
    dense,
    norm,
    table,
)
from bertjax.models import layers
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, TokenHead

LAYER = "distilbert.transformer.layer.{n}"
CLASSIFIER = dense("classifier", "classifier")
POOLED_DROPOUT = Drop("seq_classif_dropout", 0.2)
CLASSIFY = dense("pre_classifier", "pooler") + CLASSIFIER
DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert",
    base_class="DistilBertModel",
    encoder=Encoder,
    fields=(
        Field("vocab_size", "V"),
        Field("dim", "D"),
        Field("n_layers", "N"),
        Field("n_heads", "H"),
        Field("hidden_dim", "F"),
        Field("max_position_embeddings", "positions"),
        Field("dropout", "dropout", NUMBER),
        Field("attention_dropout", "attention_dropout", NUMBER),
        Field("activation", "activation", ACTIVATION),
        TIED,
        Field("initializer_range", "initializer", NORMAL),
    ),
    fixed={"types": 0, "norm_eps": 1e-12},
    unsupported={"pruned_heads": {}, "chunk_size_feed_forward": 0},
    rows=(
        *table("distilbert.embeddings.word_embeddings", "embeddings/word"),
        *table("distilbert.embeddings.position_embeddings", "embeddings/position"),
        *norm("distilbert.embeddings.LayerNorm", "embeddings/norm"),
        *dense(f"{LAYER}.attention.q_lin", "layers/attention/query"),
        *dense(f"{LAYER}.attention.k_lin", "layers/attention/key"),
        *dense(f"{LAYER}.attention.v_lin", "layers/attention/value"),
        *dense(f"{LAYER}.attention.out_lin", "layers/attention/output", JOIN),
        *norm(f"{LAYER}.sa_layer_norm", "layers/attention_norm"),
        *dense(f"{LAYER}.ffn.lin1", "layers/feedforward/widen"),
        *dense(f"{LAYER}.ffn.lin2", "layers/feedforward/narrow"),
        *norm(f"{LAYER}.output_layer_norm", "layers/feedforward_norm"),
    ),
    heads=(
        Head("mlm",
             (*dense("vocab_transform", "transform"), *norm("vocab_layer_norm", "norm"),
              Row("vocab_projector.bias", ("bias",))),
             lambda e, config, C: e.language_head(), untied=(Row("vocab_projector.weight", ("decoder",)),)),
        Head("classify", CLASSIFY,
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype, layers.relu), True, drop=POOLED_DROPOUT),
        Head("choice", CLASSIFY,
             lambda e, config, C: PairHead(e.D, 1, e.initializer, e.dtype, layers.relu), True, drop=POOLED_DROPOUT),
        Head("tags", CLASSIFIER, lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, drop=Drop()),
        Head("span", dense("qa_outputs", "classifier"),
             lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype), drop=Drop("qa_dropout", 0.1)),
    ),
    classes={
        "DistilBertForMaskedLM": ("mlm",),
        "DistilBertForSequenceClassification": ("classify",),
        "DistilBertForMultipleChoice": ("choice",),
        "DistilBertForTokenClassification": ("tags",),
        "DistilBertForQuestionAnswering": ("span",),
    },
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    specials={"pad_token_id": "pad"},
)  # fmt: skip

"""DistilBERT: transformers, models/distilbert. BERT without segments and pooler; its epsilon is fixed."""

from bertjax.huggingface.table import (
    ACTIVATION,
    NORMAL,
    NUMBER,
    OUTPUT_KERNEL,
    TIED,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    TensorMapping,
    dense,
    norm,
    table,
)
from bertjax.models import layers
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, TokenHead

LAYER = "distilbert.transformer.layer.{n}"
CLASSIFIER = dense("classifier", "classifier")
POOLED_DROPOUT = HeadDropout("seq_classif_dropout", 0.2)
CLASSIFY = dense("pre_classifier", "pooler") + CLASSIFIER
DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert",
    base_class="DistilBertModel",
    encoder=Encoder,
    config_keys=(
        ConfigKey("vocab_size", "V"),
        ConfigKey("dim", "D"),
        ConfigKey("n_layers", "N"),
        ConfigKey("n_heads", "H"),
        ConfigKey("hidden_dim", "F"),
        ConfigKey("max_position_embeddings", "positions"),
        ConfigKey("dropout", "dropout", NUMBER),
        ConfigKey("attention_dropout", "attention_dropout", NUMBER),
        ConfigKey("activation", "activation", ACTIVATION),
        TIED,
        ConfigKey("initializer_range", "initializer", NORMAL),
    ),
    fixed={"types": 0, "norm_eps": 1e-12},
    unsupported={"pruned_heads": {}, "chunk_size_feed_forward": 0},
    tensors=(
        *table("distilbert.embeddings.word_embeddings", "embeddings/word"),
        *table("distilbert.embeddings.position_embeddings", "embeddings/position"),
        *norm("distilbert.embeddings.LayerNorm", "embeddings/norm"),
        *dense(f"{LAYER}.attention.q_lin", "layers/attention/query"),
        *dense(f"{LAYER}.attention.k_lin", "layers/attention/key"),
        *dense(f"{LAYER}.attention.v_lin", "layers/attention/value"),
        *dense(f"{LAYER}.attention.out_lin", "layers/attention/output", OUTPUT_KERNEL),
        *norm(f"{LAYER}.sa_layer_norm", "layers/attention_norm"),
        *dense(f"{LAYER}.ffn.lin1", "layers/feedforward/widen"),
        *dense(f"{LAYER}.ffn.lin2", "layers/feedforward/narrow"),
        *norm(f"{LAYER}.output_layer_norm", "layers/feedforward_norm"),
    ),
    heads=(
        Head("mlm",
             (*dense("vocab_transform", "transform"), *norm("vocab_layer_norm", "norm"),
              TensorMapping("vocab_projector.bias", ("bias",))),
             lambda e, config, C: e.language_head(), untied=(TensorMapping("vocab_projector.weight", ("decoder",)),)),
        Head("classify", CLASSIFY,
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype, layers.relu), True, dropout=POOLED_DROPOUT),
        Head("choice", CLASSIFY,
             lambda e, config, C: PairHead(e.D, 1, e.initializer, e.dtype, layers.relu), True, dropout=POOLED_DROPOUT),
        Head("tags", CLASSIFIER,
             lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, dropout=HeadDropout()),
        Head("span", dense("qa_outputs", "classifier"),
             lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype), dropout=HeadDropout("qa_dropout", 0.1)),
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
    is_default=lambda encoder, heads, part_of: part_of == "Distillation" and encoder.types == 0,
)  # fmt: skip

"""The names of BERT: transformers, models/bert/modeling_bert.py and configuration_bert.py."""

from bertjax.huggingface.table import (
    ACTIVATION,
    JOIN,
    NUMBER,
    TIED,
    TRUNCATED,
    Drop,
    Family,
    Field,
    Head,
    Row,
    dense,
    norm,
    table,
)
from bertjax.models.encoder import Encoder
from bertjax.models.heads import PairHead, Pooler, TokenHead

FIELDS = (
    Field("vocab_size", "V"),
    Field("hidden_size", "D"),
    Field("num_hidden_layers", "N"),
    Field("num_attention_heads", "H"),
    Field("intermediate_size", "F"),
    Field("max_position_embeddings", "positions"),
    Field("type_vocab_size", "types"),
    Field("hidden_dropout_prob", "dropout", NUMBER),
    Field("attention_probs_dropout_prob", "attention_dropout", NUMBER),
    Field("hidden_act", "activation", ACTIVATION),
    Field("layer_norm_eps", "norm_eps", NUMBER),
    TIED,
    Field("initializer_range", "initializer", TRUNCATED),
)
UNSUPPORTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
}


def encoder_rows(prefix: str) -> tuple[Row, ...]:
    """Name the tensors of BERT's encoder, which RoBERTa and ELECTRA have under another prefix."""
    layer = f"{prefix}.encoder.layer.{{n}}"
    return (
        *table(f"{prefix}.embeddings.word_embeddings", "embeddings/word"),
        *table(f"{prefix}.embeddings.position_embeddings", "embeddings/position"),
        *table(f"{prefix}.embeddings.token_type_embeddings", "embeddings/type"),
        *norm(f"{prefix}.embeddings.LayerNorm", "embeddings/norm"),
        *dense(f"{layer}.attention.self.query", "layers/attention/query"),
        *dense(f"{layer}.attention.self.key", "layers/attention/key"),
        *dense(f"{layer}.attention.self.value", "layers/attention/value"),
        *dense(f"{layer}.attention.output.dense", "layers/attention/output", JOIN),
        *norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *dense(f"{layer}.intermediate.dense", "layers/feedforward/widen"),
        *dense(f"{layer}.output.dense", "layers/feedforward/narrow"),
        *norm(f"{layer}.output.LayerNorm", "layers/feedforward_norm"),
    )


def own_table(theirs: str) -> tuple[Row, ...]:
    """Name the table and the bias of a language-model head that does not share the word table."""
    return (Row(f"{theirs}.weight", ("decoder",)), Row(f"{theirs}.bias", ("bias",)))


CLASSIFIER_DROPOUT = Drop("classifier_dropout")
POOLER = dense("bert.pooler.dense", "pooler")
CLASSIFIER = dense("classifier", "classifier")
MLM = (
    *dense("cls.predictions.transform.dense", "transform"),
    *norm("cls.predictions.transform.LayerNorm", "norm"),
    Row("cls.predictions.bias", ("bias",)),
)
OWN = own_table("cls.predictions.decoder")
BERT = Family(
    model_type="bert",
    prefix="bert",
    base_class="BertModel",
    encoder=Encoder,
    fields=FIELDS,
    fixed={},
    unsupported=UNSUPPORTED,
    rows=encoder_rows("bert"),
    pooler=Head("pair", POOLER, lambda e, config, C: Pooler(e.D, e.initializer, e.dtype)),
    heads=(
        Head("mlm", MLM, lambda e, config, C: e.language_head(), untied=OWN),
        Head("pair", POOLER + dense("cls.seq_relationship", "classifier"),
             lambda e, config, C: PairHead(e.D, 2, e.initializer, e.dtype)),
        Head("classify", POOLER + CLASSIFIER,
             lambda e, config, C: PairHead(e.D, C, e.initializer, e.dtype), True, drop=CLASSIFIER_DROPOUT),
        Head("choice", POOLER + CLASSIFIER,
             lambda e, config, C: PairHead(e.D, 1, e.initializer, e.dtype), True, drop=CLASSIFIER_DROPOUT),
        Head("tags", CLASSIFIER,
             lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, drop=CLASSIFIER_DROPOUT),
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
)  # fmt: skip

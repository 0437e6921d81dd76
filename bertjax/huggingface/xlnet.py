"""XLNet: transformers, models/xlnet. Attention has kernels [D, H, K] and no biases; layers are untied."""

from typing import Any

from bertjax.errors import InputError
from bertjax.huggingface.table import (
    ACTIVATION,
    BOOL,
    IDENTITY,
    NORMAL,
    NUMBER,
    TIED,
    Codec,
    Config,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    TensorLayout,
    TensorMapping,
    activation,
    dense,
    norm,
    table,
)
from bertjax.models.heads import PairHead, TokenHead
from bertjax.models.span_heads import BeamSpanHead, xlnet_span_head
from bertjax.models.xlnet import XLNet

LAYER = "transformer.layer.{n}"
OUTPUT = TensorLayout(lambda x: x.transpose(2, 0, 1), lambda x, shapes: (x.transpose(1, 2, 0),))
"""[outputs, H, K] in transformers, [H, K, outputs] here."""
MASK = TensorLayout(lambda x: x.reshape(1, 1, -1), lambda x, shapes: (x.reshape(shapes[0]),))


def _clamp(value: Any, config: Config) -> int | None:
    if type(value) is not int:
        raise InputError(f"{value!r} is not a distance")
    return value if value > 0 else None


def _same_length(value: Any, config: Config) -> bool:
    """Return False: published code reads the key in unidirectional attention alone, which is refused."""
    BOOL.decode(value, config)
    return False


def _untied(value: Any, config: Config) -> bool:
    """Return True: whatever the key says, transformers gives each layer biases of its own."""
    BOOL.decode(value, config)
    return True


_BI_DATA = (
    "bi_data=true is of pre-training data: every row is read forwards, as published code reads it in fine-tuning; "
    "transformers reads the second half of a batch backwards"
)


def _summary(e: XLNet, config: Config, C: int) -> PairHead:
    if config.get("summary_type", "last") != "last" or not config.get("summary_use_proj", True):
        raise InputError("heads of whole texts need summary_type=last, summary_use_proj=true")
    function = activation(config.get("summary_activation", "tanh"))
    return PairHead(e.D, C, e.initializer, e.dtype, function, position=-1)


LAST_DROPOUT = HeadDropout("summary_last_dropout", 0.1)


def _beams(e: XLNet, config: Config, C: int) -> BeamSpanHead:
    tops = [config.get(key, 5) for key in ("start_n_top", "end_n_top")]
    if not all(type(top) is int and 0 < top <= MOST_BEAMS for top in tops):
        raise InputError(f"start_n_top and end_n_top are {tops}: 1 to {MOST_BEAMS} beams are searched")
    return xlnet_span_head(e, -1).clone(norm_eps=e.norm_eps, starts=tops[0], ends=tops[1])


MOST_BEAMS = 100
BEAMS = (
    *dense("start_logits.dense", "start"),
    *dense("end_logits.dense_0", "end_hidden"),
    *norm("end_logits.LayerNorm", "end_norm"),
    *dense("end_logits.dense_1", "end"),
    *dense("answer_class.dense_0", "answer_hidden"),
    *dense("answer_class.dense_1", "answer", bias=False),
)
SUMMARY = dense("sequence_summary.summary", "pooler") + dense("logits_proj", "classifier")
XLNET = Family(
    model_type="xlnet",
    prefix="transformer",
    base_class="XLNetModel",
    encoder=XLNet,
    config_keys=(
        ConfigKey("vocab_size", "V"),
        ConfigKey("d_model", "D"),
        ConfigKey("n_layer", "N"),
        ConfigKey("n_head", "H"),
        ConfigKey("d_inner", "F"),
        ConfigKey("dropout", "dropout", NUMBER),
        ConfigKey("dropout", "attention_dropout", NUMBER),
        ConfigKey("ff_activation", "activation", ACTIVATION),
        ConfigKey("layer_norm_eps", "norm_eps", NUMBER),
        ConfigKey("initializer_range", "initializer", NORMAL),
        ConfigKey("clamp_len", "clamp", Codec(_clamp, lambda value, encoder: value or -1)),
        ConfigKey("same_length", "same_length", Codec(_same_length), default=lambda config: False),
        ConfigKey("untie_r", "untied", Codec(_untied), default=lambda config: True),
        TIED,
    ),
    fixed={},
    unsupported={
        "attn_type": "bi",
        "d_head": lambda encoder: encoder.D // encoder.H,
        "pruned_heads": {},
        "chunk_size_feed_forward": 0,
    },
    tensors=(
        *table("transformer.word_embedding", "embeddings/word"),
        TensorMapping("transformer.mask_emb", ("mask_embedding",), MASK),
        TensorMapping(f"{LAYER}.rel_attn.q", ("layers/attention/query/kernel",)),
        TensorMapping(f"{LAYER}.rel_attn.k", ("layers/attention/key/kernel",)),
        TensorMapping(f"{LAYER}.rel_attn.v", ("layers/attention/value/kernel",)),
        TensorMapping(f"{LAYER}.rel_attn.o", ("layers/attention/output/kernel",), OUTPUT),
        TensorMapping(f"{LAYER}.rel_attn.r", ("layers/attention/position_kernel",)),
        TensorMapping(f"{LAYER}.rel_attn.r_w_bias", ("layers/attention/content_bias",)),
        TensorMapping(f"{LAYER}.rel_attn.r_r_bias", ("layers/attention/position_bias",)),
        TensorMapping(f"{LAYER}.rel_attn.r_s_bias", ("layers/attention/segment_bias",)),
        TensorMapping(f"{LAYER}.rel_attn.seg_embed", ("layers/attention/segment_table",)),
        *norm(f"{LAYER}.rel_attn.layer_norm", "layers/attention_norm"),
        *dense(f"{LAYER}.ff.layer_1", "layers/feedforward/widen"),
        *dense(f"{LAYER}.ff.layer_2", "layers/feedforward/narrow"),
        *norm(f"{LAYER}.ff.layer_norm", "layers/feedforward_norm"),
    ),
    heads=(
        Head("plm", (TensorMapping("lm_loss.bias", ("bias",), IDENTITY),), lambda e, config, C: e.language_head(),
             untied=dense("lm_loss", "decoder")),
        Head("classify", SUMMARY, _summary, True, dropout=LAST_DROPOUT),
        Head("choice", SUMMARY, lambda e, config, C: _summary(e, config, 1), True, dropout=LAST_DROPOUT),
        Head("tags", dense("classifier", "classifier"), lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype)),
        Head("span", dense("qa_outputs", "classifier"), lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype)),
        Head("beams", BEAMS, _beams),
    ),
    classes={
        "XLNetLMHeadModel": ("plm",),
        "XLNetForSequenceClassification": ("classify",),
        "XLNetForMultipleChoice": ("choice",),
        "XLNetForTokenClassification": ("tags",),
        "XLNetForQuestionAnsweringSimple": ("span",),
        "XLNetForQuestionAnswering": ("beams",),
    },
    tied={"lm_loss.weight": "transformer.word_embedding.weight"},
    specials={"pad_token_id": "pad"},
    cls_last=True,
    notes=lambda config: (_BI_DATA,) if config.get("bi_data") else (),
)  # fmt: skip

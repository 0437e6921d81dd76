"""DeBERTa, version 1 and versions 2 and 3: transformers, models/deberta and models/deberta_v2.

Version 1 has queries, keys and values in one array, head by head. The released folders (microsoft/deberta-base and the
like; microsoft/DeBERTa apps/models) have tensors of no class of transformers: the positions of the mask decoder, its
head, and the head for replaced tokens. Our models have all of them, and are written with the same names: transformers
reads the encoder and lists the heads as unexpected. With `legacy` false the head of the new names is transformers' own,
which predicts from the last states: it is read so, and a table of positions beside it is ignored, as in transformers.
"""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from bertjax.errors import InputError
from bertjax.huggingface.bert import MLM, OWN
from bertjax.huggingface.table import (
    ACTIVATION,
    BOOL,
    FLATTENED,
    NORMAL,
    NUMBER,
    OUTPUT_KERNEL,
    TIE,
    Codec,
    Config,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    Shape,
    TensorLayout,
    TensorMapping,
    activation,
    dense,
    norm,
    table,
)
from bertjax.models.deberta import DeBERTa
from bertjax.models.heads import MaskedLMHead, PairHead, ReplacedInContextHead, TokenHead
from bertjax.models.layers import Activation
from bertjax.types import Params


def _by_head(*kernels: Any) -> Any:
    """Stack the kernels [D, H, K] of queries, keys and values as [H·3·K, D], where each head has its three in a row."""
    _, H, K = kernels[0].shape
    return jnp.stack(kernels).transpose(2, 0, 3, 1).reshape(H * 3 * K, -1)


def _of_heads(array: np.ndarray, shapes: list[Shape]) -> tuple[np.ndarray, ...]:
    D, H, K = shapes[0]
    return tuple(array.reshape(H, 3, K, D).transpose(1, 3, 0, 2))


BY_HEAD = TensorLayout(_by_head, _of_heads)
ABSENT = TensorLayout(lambda kernel: np.zeros(kernel.shape[1:], np.float32).reshape(-1), lambda x, shapes: ())
"""A bias that ours lacks: written as zeros, and ignored when read."""
WINDOWS = TensorLayout(lambda x: x.transpose(2, 1, 0), lambda x, shapes: (x.transpose(2, 1, 0),))
"""A convolution: theirs [outputs, inputs, width], ours the other way round."""


# Real ones are 512 and 3. Each distance is worked out before any tensor is read, each place of the width traced.
MOST_DISTANCES, MOST_WIDTH = 100_000, 99


def _whole(value: Any, most: int = 2**31) -> int:
    if type(value) is not int or not -most <= value <= most:
        raise InputError(f"{value!r} is not a whole number of at most {most:,}")
    return value


def _distances(value: Any, config: Config) -> int:
    value = _whole(value, MOST_DISTANCES)
    return value if value > 0 else _whole(config.get("max_position_embeddings"), MOST_DISTANCES)


def _buckets(value: Any, config: Config) -> int | None:
    return _whole(value) if _whole(value) > 0 else None  # fewer than the distances


def _convolution(value: Any, config: Config) -> int | None:
    return _whole(value, MOST_WIDTH) if _whole(value, MOST_WIDTH) > 0 else None


def _width(value: Any, config: Config) -> int | None:
    return None if value == config.get("hidden_size") else _whole(value)


def _terms(value: Any, config: Config) -> tuple[str, ...]:
    terms = [term.strip() for term in value.lower().split("|")] if isinstance(value, str) else value or []
    if not isinstance(terms, list) or not all(isinstance(term, str) for term in terms):
        raise InputError(f"{value!r} is neither a list nor names with | between")
    return tuple(terms)


def _relative(value: Any, config: Config) -> tuple[str, ...]:
    if value is not True:
        raise InputError(f"{value!r} is not supported, only true is: bertjax's DeBERTa always attends by distance")
    return _terms(config.get("pos_att_type"), config)


def _no_positions(value: Any, config: Config) -> int:
    if value is not False:
        raise InputError(f"{value!r} is not supported, only false is: bertjax's DeBERTa adds no positions to its words")
    return 0


def _normed(value: Any, config: Config) -> bool:
    names = {name.strip() for name in value.lower().split("|")} if isinstance(value, str) else {""}
    if not names <= {"none", "layer_norm"}:
        raise InputError(f"{value!r} is neither none nor layer_norm")
    return "layer_norm" in names


def _convolution_activation(value: Any, config: Config) -> Activation | None:
    """Return the activation of the convolution, None without one or if it is that of the layers."""
    if _whole(config.get("conv_kernel_size", 0)) <= 0 or activation(value) == activation(config.get("hidden_act")):
        return None
    return activation(value)


def _legacy(config: Config) -> bool:
    return bool(BOOL.decode(config.get("legacy", True), config))


def _tied(value: Any, config: Config) -> bool:
    """Read whether the language head is tied to the word table: that of the new names always is."""
    return bool(BOOL.decode(value, config)) or not _legacy(config)


def _ignored(config: Config, names: Collection[str]) -> dict[str, str]:
    """Return patterns of the tensors that are ignored, with the reason: see Family.ignored."""
    ignored = {
        r"\.attention\.self\.pos_key_proj\.bias$": "the same for all keys of a query, which a softmax does not see",
        r"^deberta\.embeddings\.(word|position)_embeddings\._weight$": "the Δ that a discriminator adds to the tables "
        "of its generator; the sum is stored beside it",
    }
    has_head = any(name.startswith("lm_predictions.") for name in names)
    if not _legacy(config):
        ignored[POSITIONS] = "of the mask decoder, after which a head of legacy=false does not stand"
    elif not has_head:
        ignored[POSITIONS] = "of the mask decoder, whose head the folder lacks"
    elif any(name.startswith("cls.predictions.") for name in names):
        ignored[POSITIONS] = ignored[r"^lm_predictions\."] = "of the mask decoder; words are guessed by cls.predictions"
    elif "deberta.embeddings.position_embeddings.weight" not in names:
        ignored[r"^lm_predictions\."] = "a head after the mask decoder, whose positions the folder lacks"
    return ignored


def _without_decoder(encoder: DeBERTa, params: Params) -> tuple[DeBERTa, Params]:
    """Remove the mask decoder, whose states only a language-model head reads."""
    if not encoder.decoder:
        return encoder, params
    alone: DeBERTa = encoder.clone(decoder=0)
    return alone, {name: part for name, part in params.items() if name != "decoder_positions"}


def _mlm(e: DeBERTa, config: Config, C: int) -> MaskedLMHead:
    if e.E is not None and not _legacy(config):
        raise InputError("legacy=false asks for an embedding_size that is hidden_size")
    return e.language_head()


def _classify(e: DeBERTa, config: Config, C: int) -> PairHead:
    return PairHead(e.D, C, e.initializer, e.dtype, activation(config.get("pooler_hidden_act", "gelu")))


FIELDS = (
    ConfigKey("vocab_size", "V"),
    ConfigKey("hidden_size", "D"),
    ConfigKey("num_hidden_layers", "N"),
    ConfigKey("num_attention_heads", "H"),
    ConfigKey("intermediate_size", "F"),
    ConfigKey("max_position_embeddings", "positions"),
    ConfigKey("embedding_size", "E", Codec(_width, lambda value, encoder: encoder.embedding_width),
              default=lambda config: config.get("hidden_size")),
    ConfigKey("pos_att_type", "terms", Codec(_terms, lambda value, encoder: list(value)), default=lambda config: None),
    ConfigKey("relative_attention", "terms", Codec(_relative, lambda value, encoder: True)),
    # A table of positions belongs to the mask decoder, for which there is no key: it is recognised by its head.
    ConfigKey("position_biased_input", "decoder", Codec(_no_positions, lambda value, encoder: False)),
    ConfigKey("max_relative_positions", "distances", Codec(_distances), default=lambda config: -1),
    ConfigKey("hidden_dropout_prob", "dropout", NUMBER),
    ConfigKey("attention_probs_dropout_prob", "attention_dropout", NUMBER),
    ConfigKey("hidden_act", "activation", ACTIVATION),
    ConfigKey("layer_norm_eps", "norm_eps", NUMBER),
    ConfigKey(TIE, "tied_head", Codec(_tied), default=lambda config: True),
    ConfigKey("initializer_range", "initializer", NORMAL),
)  # fmt: skip
UNSUPPORTED = {
    "type_vocab_size": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "pooler_hidden_size": lambda encoder: encoder.D,
    "attention_head_size": lambda encoder: encoder.D // encoder.H,
}
POSITIONS = r"^deberta\.embeddings\.position_embeddings\.weight$"
LAYER = "deberta.encoder.layer.{n}"
SELF = f"{LAYER}.attention.self"
TENSORS = (
    *table("deberta.embeddings.word_embeddings", "embeddings/word"),
    *table("deberta.embeddings.position_embeddings", "decoder_positions"),
    *dense("deberta.embeddings.embed_proj", "embeddings/project", bias=False),
    *norm("deberta.embeddings.LayerNorm", "embeddings/norm"),
    *table("deberta.encoder.rel_embeddings", "relative"),
    *dense(f"{LAYER}.attention.output.dense", "layers/attention/output", OUTPUT_KERNEL),
    *norm(f"{LAYER}.attention.output.LayerNorm", "layers/attention_norm"),
    *dense(f"{LAYER}.intermediate.dense", "layers/feedforward/widen"),
    *dense(f"{LAYER}.output.dense", "layers/feedforward/narrow"),
    *norm(f"{LAYER}.output.LayerNorm", "layers/feedforward_norm"),
)
QUERY, KEY, VALUE = (f"layers/attention/{name}" for name in ("query", "key", "value"))
POSITION_QUERY, POSITION_KEY = "layers/attention/position_query", "layers/attention/position_key"
CLASSIFIER = dense("classifier", "classifier")
POOLED_DROPOUT = HeadDropout("cls_dropout")
POOLED = dense("pooler.dense", "pooler") + CLASSIFIER
NEW_MLM = (
    *dense("lm_predictions.lm_head.dense", "transform"),
    *norm("lm_predictions.lm_head.LayerNorm", "norm"),
    TensorMapping("lm_predictions.lm_head.bias", ("bias",)),
)
RTD = (
    *norm("mask_predictions.LayerNorm", "norm"),
    *dense("mask_predictions.dense", "transform"),
    *dense("mask_predictions.classifier", "classifier"),
)
HEADS = (
    # The first two compute the same by other names. The third has the second's, and stands after the mask decoder.
    Head("mlm", MLM, _mlm, when=_legacy, untied=OWN, fits=lambda e: not e.decoder),
    Head("mlm", NEW_MLM, _mlm, when=lambda config: not _legacy(config), fits=lambda e: not e.decoder),
    Head("mlm", NEW_MLM, _mlm, when=_legacy, classless=True, fits=lambda e: bool(e.decoder),
         encoder_fields={"decoder": 2, "tied_head": True}),
    Head("rtd", RTD,
         lambda e, config, C: ReplacedInContextHead(e.D, e.activation, e.norm_eps, e.initializer, e.dtype),
         classless=True),
    Head("classify", POOLED, _classify, True, dropout=POOLED_DROPOUT),
    Head("tags", CLASSIFIER,
         lambda e, config, C: TokenHead(e.D, C, e.initializer, e.dtype), True, dropout=HeadDropout()),
    Head("span", dense("qa_outputs", "classifier"), lambda e, config, C: TokenHead(e.D, 2, e.initializer, e.dtype)),
    # As DeBERTa/apps/models/multi_choice.py; transformers has a class for it from version 2 on.
    Head("choice", POOLED, lambda e, config, C: _classify(e, config, 1), True, dropout=POOLED_DROPOUT),
)  # fmt: skip
TIED = {
    "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
DEBERTA = Family(
    model_type="deberta",
    prefix="deberta",
    base_class="DebertaModel",
    encoder=DeBERTa,
    config_keys=FIELDS,
    fixed={"key_bias": False},
    unsupported=UNSUPPORTED | {"talking_head": False},
    tensors=(
        *TENSORS,
        TensorMapping(f"{SELF}.in_proj.weight", (f"{QUERY}/kernel", f"{KEY}/kernel", f"{VALUE}/kernel"), BY_HEAD),
        TensorMapping(f"{SELF}.q_bias", (f"{QUERY}/bias",), FLATTENED),
        TensorMapping(f"{SELF}.v_bias", (f"{VALUE}/bias",), FLATTENED),
        *dense(f"{SELF}.pos_proj", POSITION_KEY, bias=False),
        *dense(f"{SELF}.pos_q_proj", POSITION_QUERY),
    ),
    heads=HEADS,
    classes={
        "DebertaForMaskedLM": ("mlm",),
        "DebertaForSequenceClassification": ("classify",),
        "DebertaForTokenClassification": ("tags",),
        "DebertaForQuestionAnswering": ("span",),
    },
    tied=TIED,
    specials={"pad_token_id": "pad"},
    stated=lambda encoder: {"legacy": True},
    ignored=_ignored,
    is_default=lambda encoder, heads, part_of: not encoder.key_bias,
    headless=_without_decoder,
    published=lambda encoder: {(1024, 24): "deberta-large", (1024, 48): "deberta-xlarge"}.get(
        (encoder.D, encoder.N), ""
    ),
)
_SIZES = {
    (1536, 24): "deberta-v2-xlarge",
    (1536, 48): "deberta-v2-xxlarge",
    (384, 12): "deberta-v3-xsmall",
    (768, 6): "deberta-v3-small",
    (768, 12): "deberta-v3-base",
    (1024, 24): "deberta-v3-large",
}
DEBERTA_V2 = Family(
    model_type="deberta-v2",
    prefix="deberta",
    base_class="DebertaV2Model",
    encoder=DeBERTa,
    config_keys=(
        *FIELDS,
        ConfigKey("position_buckets", "buckets", Codec(_buckets, lambda value, encoder: value or -1),
                  default=lambda config: -1),
        ConfigKey("norm_rel_ebd", "table_norm",
                  Codec(_normed, lambda value, encoder: "layer_norm" if value else "none"),
                  default=lambda config: "none"),
        ConfigKey("share_att_key", "shared_projections", BOOL, default=lambda config: False),
        ConfigKey("conv_kernel_size", "convolution", Codec(_convolution, lambda value, encoder: value or 0),
                  default=lambda config: 0),
        ConfigKey("conv_act", "convolution_activation",
                  Codec(_convolution_activation, lambda value, e: ACTIVATION.encode(value or e.activation, e)),
                  default=lambda config: "tanh"),
    ),
    fixed={},
    unsupported=UNSUPPORTED | {"conv_groups": 1},
    tensors=(
        *TENSORS,
        *norm("deberta.encoder.LayerNorm", "relative/norm"),
        TensorMapping("deberta.encoder.conv.conv.weight", ("convolution/mix/kernel",), WINDOWS),
        TensorMapping("deberta.encoder.conv.conv.bias", ("convolution/mix/bias",)),
        *norm("deberta.encoder.conv.LayerNorm", "convolution/norm"),
        *dense(f"{SELF}.query_proj", QUERY),
        *dense(f"{SELF}.key_proj", KEY),
        *dense(f"{SELF}.value_proj", VALUE),
        *dense(f"{SELF}.pos_key_proj", POSITION_KEY, bias=False),
        TensorMapping(f"{SELF}.pos_key_proj.bias", (f"{POSITION_KEY}/kernel",), ABSENT),
        *dense(f"{SELF}.pos_query_proj", POSITION_QUERY),
    ),
    heads=HEADS,
    classes={
        "DebertaV2ForMaskedLM": ("mlm",),
        "DebertaV2ForSequenceClassification": ("classify",),
        "DebertaV2ForMultipleChoice": ("choice",),
        "DebertaV2ForTokenClassification": ("tags",),
        "DebertaV2ForQuestionAnswering": ("span",),
    },
    tied=TIED,
    specials={"pad_token_id": "pad"},
    stated=lambda encoder: {"legacy": True},
    ignored=_ignored,
    is_default=lambda encoder, heads, part_of: encoder.key_bias,
    headless=_without_decoder,
    published=lambda encoder: _SIZES.get((encoder.D, encoder.N), ""),
)  # fmt: skip

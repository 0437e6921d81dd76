"""ModernBERT and Ettin: transformers, models/modernbert.

There queries, keys and values are one tensor, and so are the two halves of a gated layer.
"""

from typing import Any, Literal

from bertjax.errors import InputError
from bertjax.huggingface.table import (
    ACTIVATION,
    BOOL,
    FLATTENED,
    IDENTITY,
    KERNEL,
    NUMBER,
    OUTPUT_KERNEL,
    TIE,
    TRUNCATED,
    Codec,
    Config,
    ConfigKey,
    Family,
    Head,
    HeadDropout,
    TensorMapping,
    activation,
    concatenated,
    dense,
    norm,
    table,
)
from bertjax.models.heads import TransformedHead
from bertjax.models.layers import rms_norm
from bertjax.models.modern import Biases, Modern, Norms, transformed_head, untied_transformed_head
from bertjax.models.positions import Alibi, Rotary, ScaledSinusoids
from bertjax.types import Params

_KINDS = {"theta": "full_attention", "local_theta": "sliding_attention"}
_THETAS = {
    "full_attention": ("global_rope_theta", 160_000.0),
    "sliding_attention": ("local_rope_theta", 10_000.0),
}
"""The keys of older configs, and the values of transformers without them."""


def _modernise(config: Config) -> Config:
    """Turn one theta for each kind of layer, and the period of global layers, into the keys of today's configs."""
    config = dict(config)
    rope = config.get("rope_parameters") or {}
    if isinstance(rope, dict) and all(isinstance(value, dict | None) for value in rope.values()):
        thetas = {kind: config.pop(key, default) for kind, (key, default) in _THETAS.items()}
        config["rope_parameters"] = rope | {
            kind: {"rope_type": given.get("type", "default"), "rope_theta": thetas[kind]} | given
            for kind in _THETAS
            for given in [rope.get(kind) or {}]
        }
    every, N = config.get("global_attn_every_n_layers"), config.get("num_hidden_layers")
    if "layer_types" not in config and type(every) is int and type(N) is int and every > 0 and 0 < N < 10_000:
        config["layer_types"] = _layer_types(every, N)
    return config


def _layer_types(every: int, N: int) -> list[str]:
    return ["sliding_attention" if n % every else "full_attention" for n in range(N)]


def _every(value: Any, config: Config) -> int:
    """Return g where layers 0, g, 2g, … are the global ones, else 1 (see `_local`)."""
    N = config.get("num_hidden_layers")
    known = isinstance(value, list) and all(kind in (*_THETAS,) for kind in value)
    if type(N) is not int or N >= 10_000 or not known or len(value) != N:
        raise InputError(f"{str(value)[:80]} is not one of {', '.join(_THETAS)} for each of the {N} layers")
    given = config.get("global_attn_every_n_layers")
    whole = [n for n, kind in enumerate(value) if kind == "full_attention"]
    every = given if type(given) is int and given > 0 else (whole[1] if len(whole) > 1 else max(1, len(value)))
    return every if value == _layer_types(every, N) else 1


def _local(value: Any, config: Config) -> tuple[bool, ...] | None:
    """Return the shortest period of layers, None where `_every` says all."""
    N = len(value)
    if value == _layer_types(_every(value, config), N):
        return None
    size = next(size for size in range(1, N + 1) if all(value[n] == value[n % size] for n in range(N)))
    return tuple(kind == "sliding_attention" for kind in value[:size])


def _types_of(value: Any, encoder: Modern) -> list[str]:
    period = encoder.period
    return ["sliding_attention" if period[n % len(period)] else "full_attention" for n in range(encoder.N)]


def _rotary(value: Any, config: Config) -> Rotary:
    thetas = {}
    for ours, kind in _KINDS.items():
        given = value.get(kind) if isinstance(value, dict) else None
        if not isinstance(given, dict) or given.get("rope_type", "default") != "default":
            raise InputError(f"{str(given)[:80]} for {kind}: only rope_type=default with a rope_theta is supported")
        thetas[ours] = NUMBER.decode(given.get("rope_theta"), config)
    return _shortest(Rotary(**thetas))


def _shortest(positions: Any) -> Any:
    """Drop the theta of the local layers if it equals the other one: both encoders are the same."""
    same = isinstance(positions, Rotary) and positions.local_theta == positions.theta
    return Rotary(positions.theta) if same else positions


def _canonical(encoder: Modern, params: Params) -> tuple[Modern, Params]:
    """Name windows and angles as they are read back."""
    every, local = encoder.global_every, encoder.local
    if local is not None and _types_of(None, encoder) == _layer_types(len(local), encoder.N):
        every, local = len(local), None
    named: Modern = encoder.clone(positions=_shortest(encoder.positions), global_every=every, local=local)
    return named, params


def _rope(value: Any, encoder: Modern) -> Any:
    if not isinstance(value, Rotary):
        raise InputError(f"modernbert of transformers has rotary positions, not {type(value).__name__}")
    thetas = {"theta": value.theta, "local_theta": value.local_theta or value.theta}
    return {kind: {"rope_type": "default", "rope_theta": thetas[ours]} for ours, kind in _KINDS.items()}


def _reach(value: Any, config: Config) -> int:
    if type(value) is not int or value < 2:
        raise InputError(f"{value!r} is not a window of 2 or more, half to each side")
    return value // 2


def _tied(value: Any, config: Config) -> Any:
    return transformed_head if BOOL.decode(value, config) else untied_transformed_head


def _flag(config: Config, key: str) -> bool:
    if not isinstance(config.get(key), bool):
        raise InputError(f"{key}={config.get(key)!r} is neither true nor false")
    return bool(config[key])


def _norms(value: Any, config: Config) -> Norms:
    return Norms(eps=NUMBER.decode(config.get("norm_eps"), config), bias=_flag(config, "norm_bias"), first=False)


def _biases(value: Any, config: Config) -> Biases:
    mlp = _flag(config, "mlp_bias")
    decoder = _flag(config, "decoder_bias") if "decoder_bias" in config else True
    return Biases(_flag(config, "attention_bias"), mlp, mlp, _flag(config, "classifier_bias"), decoder)


def _mlm(e: Modern, config: Config, C: int) -> Any:
    function = activation(config.get("classifier_activation"))
    return e.language_head().clone(activation=function)


def _task(e: Modern, config: Config, C: int, pooling: Literal["cls", "mean", "none"]) -> TransformedHead:
    function = activation(config.get("classifier_activation"))
    return TransformedHead(e.D, C, pooling, function, e.norms.eps, e.initializer, e.dtype, e.biases.head, e.norms.bias)


def _pooling(config: Config) -> Literal["cls", "mean"]:
    pooling = config.get("classifier_pooling")
    if pooling not in ("cls", "mean"):
        raise InputError(f"classifier_pooling={pooling!r} is neither cls nor mean")
    return "cls" if pooling == "cls" else "mean"


def _published(encoder: Modern) -> str:
    """Tell apart the encoders that are a Modern here, of which transformers has a class for ModernBERT alone."""
    if isinstance(encoder.positions, Alibi):
        return "mosaicbert"
    if isinstance(encoder.positions, ScaledSinusoids):
        return "crammed"
    return "neobert" if encoder.norms.normalise is rms_norm else ""


LAYER = "model.layers.{n}"
ATTENTION = ("layers/attention/query", "layers/attention/key", "layers/attention/value")
GATED = ("layers/feedforward/widen", "layers/feedforward/gate")


def _parts(ours: tuple[str, ...], what: str) -> tuple[str, ...]:
    return tuple(f"{name}/{what}" for name in ours)


DROP = HeadDropout("classifier_dropout", 0.0)
TRANSFORM = (*dense("head.dense", "transform"), *norm("head.norm", "norm"))
TASK = TRANSFORM + dense("classifier", "classifier")
MODERNBERT = Family(
    model_type="modernbert",
    prefix="model",
    base_class="ModernBertModel",
    encoder=Modern,
    config_keys=(
        ConfigKey("vocab_size", "V"),
        ConfigKey("hidden_size", "D"),
        ConfigKey("num_hidden_layers", "N"),
        ConfigKey("num_attention_heads", "H"),
        ConfigKey("intermediate_size", "F"),
        ConfigKey("rope_parameters", "positions", Codec(_rotary, _rope)),
        ConfigKey("layer_types", "global_every", Codec(_every, _types_of)),
        ConfigKey("layer_types", "local", Codec(_local, _types_of)),
        ConfigKey("local_attention", "reach", Codec(_reach, lambda value, encoder: 2 * value)),
        ConfigKey(TIE, "head", Codec(_tied, lambda value, encoder: value != untied_transformed_head),
                  default=lambda config: True),
        ConfigKey("norm_eps", "norms", Codec(_norms, lambda value, encoder: value.eps)),
        ConfigKey("norm_bias", "norms", Codec(_norms, lambda value, encoder: value.bias)),
        ConfigKey("attention_bias", "biases", Codec(_biases, lambda value, encoder: value.attention)),
        ConfigKey("mlp_bias", "biases", Codec(_biases, lambda value, encoder: value.widen)),
        ConfigKey("classifier_bias", "biases", Codec(_biases, lambda value, encoder: value.head)),
        ConfigKey("decoder_bias", "biases", Codec(_biases, lambda value, encoder: value.decoder),
                  default=lambda config: True),
        ConfigKey("embedding_dropout", "dropout", NUMBER),
        ConfigKey("mlp_dropout", "dropout", NUMBER),
        ConfigKey("attention_dropout", "attention_dropout", NUMBER),
        ConfigKey("hidden_activation", "activation", ACTIVATION),
        ConfigKey("initializer_range", "initializer", TRUNCATED),
    ),
    fixed={"types": 0},
    unsupported={
        "rope_scaling": None,
        "head_dim": lambda encoder: encoder.D // encoder.H,
        "embedding_dropout": lambda encoder: encoder.dropout,
        "chunk_size_feed_forward": 0,
    },
    tensors=(
        *table("model.embeddings.tok_embeddings", "embeddings/word"),
        *norm("model.embeddings.norm", "embeddings/norm"),
        # The first layer reads the embeddings, which are normed already.
        *(each._replace(first_layer=1) for each in norm(f"{LAYER}.attn_norm", "layers/attention_norm")),
        TensorMapping(f"{LAYER}.attn.Wqkv.weight", _parts(ATTENTION, "kernel"), concatenated(KERNEL, KERNEL, KERNEL)),
        TensorMapping(
            f"{LAYER}.attn.Wqkv.bias", _parts(ATTENTION, "bias"), concatenated(FLATTENED, FLATTENED, FLATTENED)
        ),
        *dense(f"{LAYER}.attn.Wo", "layers/attention/output", OUTPUT_KERNEL),
        *norm(f"{LAYER}.mlp_norm", "layers/feedforward_norm"),
        TensorMapping(f"{LAYER}.mlp.Wi.weight", _parts(GATED, "kernel"), concatenated(KERNEL, KERNEL)),
        TensorMapping(f"{LAYER}.mlp.Wi.bias", _parts(GATED, "bias"), concatenated(IDENTITY, IDENTITY)),
        *dense(f"{LAYER}.mlp.Wo", "layers/feedforward/narrow"),
        *norm("model.final_norm", "final_norm"),
    ),
    heads=(
        Head("mlm", (*TRANSFORM, TensorMapping("decoder.bias", ("bias",))), _mlm, True,
             untied=(TensorMapping("decoder.weight", ("decoder",)),)),
        Head("classify", TASK, lambda e, config, C: _task(e, config, C, _pooling(config)), True, dropout=DROP),
        Head("choice", TASK, lambda e, config, C: _task(e, config, 1, _pooling(config)), True, dropout=DROP),
        Head("tags", TASK, lambda e, config, C: _task(e, config, C, "none"), True, dropout=DROP),
        Head("span", TASK, lambda e, config, C: _task(e, config, 2, "none"), True, dropout=DROP),
    ),
    classes={
        "ModernBertForMaskedLM": ("mlm",),
        "ModernBertForSequenceClassification": ("classify",),
        "ModernBertForMultipleChoice": ("choice",),
        "ModernBertForTokenClassification": ("tags",),
        "ModernBertForQuestionAnswering": ("span",),
    },
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    specials={
        "pad_token_id": "pad", "cls_token_id": "cls", "sep_token_id": "sep", "bos_token_id": "cls",
        "eos_token_id": "sep",
    },
    modernise=_modernise,
    canonical=_canonical,
    published=_published,
    stated=lambda encoder: {
        "classifier_activation": ACTIVATION.encode(encoder.activation, encoder),
        "classifier_pooling": "mean",  # as the released models have it
        "global_attn_every_n_layers": encoder.global_every,
    },
)  # fmt: skip

"""What a table of names is made of, and how it is read in both directions.

A family of models is described by a `Family`: which key of config.json is which field of our encoder, which of their
tensors is which of our parameters, and which heads their classes have. Nothing else differs between families.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bertjax.errors import InputError
from bertjax.models import layers
from bertjax.models.layers import Activation, Normal, TruncatedNormal

Config = Mapping[str, Any]
Shape = tuple[int, ...]


class Form(NamedTuple):
    """Say how one of their tensors is laid out among ours; both ways only move numbers.

    write: our arrays -> theirs. read: their array, and the shapes of ours -> ours.
    """

    write: Callable[..., np.ndarray]
    read: Callable[[np.ndarray, list[Shape]], tuple[np.ndarray, ...]]


SAME = Form(lambda x: x, lambda x, shapes: (x,))
VECTOR = Form(lambda x: x.reshape(-1), lambda x, shapes: (x.reshape(shapes[0]),))
KERNEL = Form(lambda x: x.reshape(x.shape[0], -1).T, lambda x, shapes: (x.T.reshape(shapes[0]),))
"""A dense layer: theirs [outputs, inputs], ours [inputs, *outputs]; outputs may be heads."""
JOIN = Form(lambda x: x.reshape(-1, x.shape[-1]).T, lambda x, shapes: (x.T.reshape(shapes[0]),))
"""The dense layer after attention: ours [H, K, outputs]."""


def stacked(*forms: Form) -> Form:
    """Lay several of our arrays one after another along their first axis, each in its own form."""

    def write(*arrays: Any) -> Any:
        return jnp.concatenate([form.write(array) for form, array in zip(forms, arrays, strict=True)])

    def read(array: np.ndarray, shapes: list[Shape]) -> tuple[np.ndarray, ...]:
        parts = np.split(array, len(forms))  # all of one size
        return tuple(form.read(x, [shape])[0] for form, x, shape in zip(forms, parts, shapes, strict=True))

    return Form(write, read)


class Row(NamedTuple):
    """Say that a tensor of theirs is a parameter of ours, or several; {n} is the number of a layer.

    Ours is the name within the encoder or the head. Where the encoder has no such parameter the row does not count.
    """

    theirs: str
    ours: tuple[str, ...]
    form: Form = SAME
    first_layer: int = 0  # ours begin with this one


def dense(theirs: str, ours: str, form: Form = KERNEL, *, bias: bool = True) -> tuple[Row, ...]:
    """Name the kernel and the bias of a dense layer."""
    kernel = Row(f"{theirs}.weight", (f"{ours}/kernel",), form)
    return (kernel, Row(f"{theirs}.bias", (f"{ours}/bias",), VECTOR)) if bias else (kernel,)


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """Name the scale and the bias of a norm."""
    return (Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",)))


def table(theirs: str, ours: str) -> tuple[Row, ...]:
    """Name a table."""
    return (Row(f"{theirs}.weight", (f"{ours}/table",)),)


class Value(NamedTuple):
    """Say how a value of config.json becomes one of ours, and back. read raises InputError for what it cannot be.

    read: value, the whole config -> ours. write: our value, the encoder -> theirs.
    """

    read: Callable[[Any, Config], Any]
    write: Callable[[Any, Any], Any] = lambda value, encoder: value


def _size(value: Any, config: Config) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise InputError(f"{value!r} is not a size")
    return value


def _number(value: Any, config: Config) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InputError(f"{value!r} is not a number of 0 or more")
    return float(value)


_ACTIVATIONS: dict[str, Activation] = {
    "gelu": layers.gelu,
    "gelu_python": layers.gelu,
    "gelu_new": layers.gelu_tanh,
    "gelu_pytorch_tanh": layers.gelu_tanh,
    "gelu_fast": layers.gelu_tanh,
    "relu": layers.relu,
    "silu": layers.silu,
    "swish": layers.silu,
    "tanh": layers.tanh,
}


def activation(value: Any) -> Activation:
    """Find the function that a config names. Raises InputError where it is not one of ours."""
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise InputError(f"{value!r} is none of the activations {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _bool(value: Any, config: Config) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{value!r} is neither true nor false")
    return value


def _name_of_activation(value: Activation, encoder: Any) -> str:
    return next((name for name, function in _ACTIVATIONS.items() if function == value), "")


SIZE = Value(_size)
NUMBER = Value(_number)
BOOL = Value(_bool)
ACTIVATION = Value(lambda value, config: activation(value), _name_of_activation)
NORMAL = Value(lambda value, config: Normal(_number(value, config)), lambda value, encoder: _stddev(value))
TRUNCATED = Value(lambda value, config: TruncatedNormal(_number(value, config)), lambda value, encoder: _stddev(value))


def _stddev(initializer: Any) -> float:
    return initializer.stddev if isinstance(initializer, Normal | TruncatedNormal) else 0.02


class Field(NamedTuple):
    """Say that a key of config.json is a field of our encoder.

    absent: what a config without the key means by it, where transformers says so; else the key must be there.
    """

    theirs: str
    ours: str
    value: Value = SIZE
    absent: Callable[[Config], Any] | None = None


TIE = "tie_word_embeddings"
TIED = Field(TIE, "tied_head", BOOL, absent=lambda config: True)
"""Whether the language-model head shares the word table; transformers' default is that it does."""


class Drop(NamedTuple):
    """Say which dropout fine-tuning has in a head: the key of config.json, and its value where that says none.

    key: empty where no key says it. absent: None for the encoder's own rate. fields: of our module.
    """

    key: str = ""
    absent: float | None = None
    fields: tuple[str, ...] = ("dropout",)


class Head(NamedTuple):
    """Describe a head: its name among our parameters, its tensors, the module.

    make: the encoder, the config, the number of classes -> module. shared_names: another head of the family has tensors
    of the same names, so that only the class in `architectures` tells which it is. when: the configs that have it,
    where two heads of one name differ in their tensors. untied: the rows that it has besides where it does not share
    the word table. classless: no class of transformers has it: it is written by the names of the released weights.
    fits: the encoders that it is written for, and fields: what they have because of it, where no key of a config says
    so. drop: what it drops in training, if anything.
    """

    name: str
    rows: tuple[Row, ...]
    make: Callable[[Any, Config, int], nn.Module]
    shared_names: bool = False
    when: Callable[[Config], bool] = lambda config: True
    untied: tuple[Row, ...] = ()
    classless: bool = False
    fits: Callable[[Any], bool] = lambda encoder: True
    fields: Mapping[str, Any] = MappingProxyType({})
    drop: Drop | None = None


def head_of(head: Head, encoder: Any, config: Config, classes: int) -> nn.Module:
    """Build the module of a head, with the dropout that its config says. Raises InputError as `make`."""
    module = head.make(encoder, config, classes)
    if head.drop is None:
        return module
    rate = head_dropout(head.drop, encoder, config)
    dropping: nn.Module = module.clone(**cast(Any, dict.fromkeys(head.drop.fields, rate)))
    return dropping


def head_dropout(drop: Drop, encoder: Any, config: Config) -> float:
    """Find the rate of a head's dropout. Raises InputError for what is no share in [0, 1)."""
    given = config.get(drop.key) if drop.key else None
    if given is None:
        given = encoder.dropout if drop.absent is None else drop.absent
    rate = _number(given, config)
    if rate >= 1:
        raise InputError(f"{drop.key}={given!r} is not a share in [0, 1)")
    return rate


@dataclass(frozen=True)
class Family:
    """Describe the models of one `model_type`.

    fixed: fields of our encoder that no key says. unsupported: keys with the only value that we can compute, if they
    are there; a function makes it of the encoder. pooler: its tensors stand in several heads, or alone. tied: names of
    tensors that repeat another one. specials: keys of config.json for ids of the tokenizer. modernise: turns the keys
    of older configs into those of today. stated: keys that are no field of our encoder, but for which its own models
    need another value than the default. ignored: patterns of names that folders may have beside the rows, and why
    nothing is lost without them, by the config and all names; what is a row besides is written, but not read. normal:
    turns an encoder into the one of those that compute the same that reading gives.
    """

    model_type: str
    prefix: str
    base_class: str
    encoder: type[nn.Module]
    fields: tuple[Field, ...]
    rows: tuple[Row, ...]
    heads: tuple[Head, ...]
    classes: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, Any]
    unsupported: Mapping[str, Any]
    tied: Mapping[str, str]
    specials: Mapping[str, str]
    pooler: Head | None = None
    cls_last: bool = False
    modernise: Callable[[Config], Config] = lambda config: config
    stated: Callable[[Any], Config] = lambda encoder: {}
    ignored: Callable[[Config, Collection[str]], Mapping[str, str]] = lambda config, names: {}
    normal: Callable[[Any], Any] = lambda encoder: encoder

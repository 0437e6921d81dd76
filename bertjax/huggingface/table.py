"""The parts of a family's description, which is read in both directions.

A `Family` describes the models of one `model_type`: which key of config.json is which field of our encoder, which of
the tensors of transformers is which of our parameters, and which heads its classes have. Everything that depends on
the family is in there, so that a new one is one file and one line in families.py.
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
from bertjax.types import Params

Config = Mapping[str, Any]
Shape = tuple[int, ...]


class TensorLayout(NamedTuple):
    """Convert between the layout of a tensor of transformers and that of our parameters; both ways only move numbers.

    write: our arrays -> the tensor. read: the tensor, the shapes of our arrays -> our arrays.
    """

    write: Callable[..., np.ndarray]
    read: Callable[[np.ndarray, list[Shape]], tuple[np.ndarray, ...]]


IDENTITY = TensorLayout(lambda x: x, lambda x, shapes: (x,))
FLATTENED = TensorLayout(lambda x: x.reshape(-1), lambda x, shapes: (x.reshape(shapes[0]),))
KERNEL = TensorLayout(lambda x: x.reshape(x.shape[0], -1).T, lambda x, shapes: (x.T.reshape(shapes[0]),))
"""The kernel of a dense layer: [outputs, inputs] in transformers, [inputs, *outputs] here; outputs may be heads."""
OUTPUT_KERNEL = TensorLayout(lambda x: x.reshape(-1, x.shape[-1]).T, lambda x, shapes: (x.T.reshape(shapes[0]),))
"""The kernel of attention's output layer: [H, K, outputs] here."""


def concatenated(*layouts: TensorLayout) -> TensorLayout:
    """Concatenate several of our arrays along the first axis of the tensor, each in its own layout."""

    def write(*arrays: Any) -> Any:
        return jnp.concatenate([layout.write(array) for layout, array in zip(layouts, arrays, strict=True)])

    def read(array: np.ndarray, shapes: list[Shape]) -> tuple[np.ndarray, ...]:
        parts = np.split(array, len(layouts))  # all of one size
        return tuple(layout.read(x, [shape])[0] for layout, x, shape in zip(layouts, parts, shapes, strict=True))

    return TensorLayout(write, read)


class TensorMapping(NamedTuple):
    """Map a tensor of transformers to one or several of our parameters; {n} is the number of a layer (Family.indices).

    params: names within the encoder or the head. A mapping whose parameters the model lacks is skipped.
    """

    tensor: str
    params: tuple[str, ...]
    layout: TensorLayout = IDENTITY
    first_layer: int = 0  # the layer that our stack begins with


def dense(tensor: str, param: str, layout: TensorLayout = KERNEL, *, bias: bool = True) -> tuple[TensorMapping, ...]:
    """Map the kernel and the bias of a dense layer."""
    kernel = TensorMapping(f"{tensor}.weight", (f"{param}/kernel",), layout)
    return (kernel, TensorMapping(f"{tensor}.bias", (f"{param}/bias",), FLATTENED)) if bias else (kernel,)


def norm(tensor: str, param: str) -> tuple[TensorMapping, ...]:
    """Map the scale and the bias of a norm."""
    return (TensorMapping(f"{tensor}.weight", (f"{param}/scale",)), TensorMapping(f"{tensor}.bias", (f"{param}/bias",)))


def table(tensor: str, param: str) -> tuple[TensorMapping, ...]:
    """Map an embedding table."""
    return (TensorMapping(f"{tensor}.weight", (f"{param}/table",)),)


class Codec(NamedTuple):
    """Convert a value of config.json to a field of our encoder and back.

    decode: value, the whole config -> field; raises InputError for a value that is not valid. encode: field, the
    encoder -> value.
    """

    decode: Callable[[Any, Config], Any]
    encode: Callable[[Any, Any], Any] = lambda value, encoder: value


def _size(value: Any, config: Config) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise InputError(f"{value!r} is not a size")
    return value


def _number(value: Any, config: Config) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InputError(f"{value!r} is not a number of 0 or more")
    return float(value)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": layers.gelu,
    "gelu_python": layers.gelu,
    "gelu_new": layers.gelu_tanh,
    "gelu_pytorch_tanh": layers.gelu_tanh,
    "gelu_fast": layers.gelu_tanh,
    "relu": layers.relu,
    "silu": layers.silu,
    "swish": layers.silu,
    "tanh": layers.tanh,
    "gelu_10": layers.gelu_10,
    "quick_gelu": layers.quick_gelu,
    "mish": layers.mish,
}


def activation(value: Any) -> Activation:
    """Return the activation that a config names. Raises InputError for one that bertjax lacks."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise InputError(f"{value!r} is none of the activations {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def _bool(value: Any, config: Config) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{value!r} is neither true nor false")
    return value


def _name_of_activation(value: Activation, encoder: Any) -> str:
    return next((name for name, function in ACTIVATIONS.items() if function == value), "")


SIZE = Codec(_size)
NUMBER = Codec(_number)
BOOL = Codec(_bool)
ACTIVATION = Codec(lambda value, config: activation(value), _name_of_activation)
NORMAL = Codec(lambda value, config: Normal(_number(value, config)), lambda value, encoder: _stddev(value))
TRUNCATED = Codec(lambda value, config: TruncatedNormal(_number(value, config)), lambda value, encoder: _stddev(value))


def _stddev(initializer: Any) -> float:
    return initializer.stddev if isinstance(initializer, Normal | TruncatedNormal) else 0.02


class ConfigKey(NamedTuple):
    """Map a key of config.json to a field of our encoder.

    default: the value that transformers gives to a missing key, by the whole config; None where the key is required.
    """

    key: str
    field: str
    codec: Codec = SIZE
    default: Callable[[Config], Any] | None = None


TIE = "tie_word_embeddings"
TIED = ConfigKey(TIE, "tied_head", BOOL, default=lambda config: True)
"""Whether the language-model head shares the word embeddings; in transformers it does by default."""


class HeadDropout(NamedTuple):
    """The dropout of a head in fine-tuning.

    key: of config.json; empty where no key sets it. default: the rate without such a key; None for the encoder's own.
    fields: those of our module that take the rate.
    """

    key: str = ""
    default: float | None = None
    fields: tuple[str, ...] = ("dropout",)


class Head(NamedTuple):
    """A head of a family: its name among our parameters, its tensors, its module.

    make: the encoder, the config, the number of classes -> module. shared_names: another head of the family has tensors
    of the same names, so that only the class in `architectures` tells them apart. when: whether models of this config
    have it, for two heads of one name with different tensors. untied: tensors that it has besides if it does not share
    the word embeddings. classless: no class of transformers has it; it is written by the names of the released
    weights. fits: whether an encoder can have it. encoder_fields: fields of the encoder that follow from the head,
    where no key of config.json sets them. dropout: in fine-tuning, None for none.
    """

    name: str
    tensors: tuple[TensorMapping, ...]
    make: Callable[[Any, Config, int], nn.Module]
    shared_names: bool = False
    when: Callable[[Config], bool] = lambda config: True
    untied: tuple[TensorMapping, ...] = ()
    classless: bool = False
    fits: Callable[[Any], bool] = lambda encoder: True
    encoder_fields: Mapping[str, Any] = MappingProxyType({})
    dropout: HeadDropout | None = None

    @property
    def tensor_names(self) -> frozenset[str]:
        """The names of its tensors."""
        return frozenset(each.tensor for each in self.tensors)


def head_of(head: Head, encoder: Any, config: Config, classes: int) -> nn.Module:
    """Build the module of a head, with the dropout of its config. Raises InputError as `make`."""
    module = head.make(encoder, config, classes)
    if head.dropout is None:
        return module
    rate = head_dropout(head.dropout, encoder, config)
    with_dropout: nn.Module = module.clone(**cast(Any, dict.fromkeys(head.dropout.fields, rate)))
    return with_dropout


def head_dropout(dropout: HeadDropout, encoder: Any, config: Config) -> float:
    """Return the dropout rate of a head. Raises InputError for a rate outside [0, 1)."""
    given = config.get(dropout.key) if dropout.key else None
    if given is None:
        given = encoder.dropout if dropout.default is None else dropout.default
    rate = _number(given, config)
    if rate >= 1:
        raise InputError(f"{dropout.key}={given!r} is not in [0, 1)")
    return rate


@dataclass(frozen=True)
class Family:
    """Everything that bertjax knows of the models of one `model_type`.

    Config. config_keys: the keys that are fields of our encoder. fixed: fields that no key sets. unsupported: keys with
    the only value that we can compute, if they are present; a function returns it for the encoder. modernise: turns the
    keys of older configs into today's. notes: what is to be reported of values that are read otherwise than
    transformers reads them. stated: keys that are no field of our encoder, but for which our own models need another
    value than the default. specials: keys for ids of the tokenizer.

    Weights. prefix: of the encoder's tensors in classes with heads. tensors: those of the encoder. tied: tensors that
    repeat another one. ignored: patterns of names that folders may have besides, by the config and all names, and why
    nothing is lost without them; a tensor that `tensors` maps too is written, but not read. indices: encoder, row of a
    stack of layers -> the numbers in the names of its tensors.

    Heads. classes: the heads of each class of transformers. pooler: its tensors are part of several heads, or alone.
    cls_last: texts end with the classification token.

    Encoders. encoder: our class of them. is_default: whether a model is of this family if nothing else is stated, by
    its encoder, its heads and the name of the objective that it was a part of (or ""); see families.default_family.
    canonical: encoder, its parameters -> the encoder that is read back after writing, which computes the same.
    headless: encoder, its parameters -> both without what only a language-model head reads. published: the name of the
    published model of this shape if it is fine-tuned with hyper-parameters of its own, else "".
    """

    model_type: str
    prefix: str
    base_class: str
    encoder: type[nn.Module]
    config_keys: tuple[ConfigKey, ...]
    tensors: tuple[TensorMapping, ...]
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
    is_default: Callable[[Any, Collection[str], str], bool] = lambda encoder, heads, part_of: True
    canonical: Callable[[Any, Params], tuple[Any, Params]] = lambda encoder, params: (encoder, params)
    headless: Callable[[Any, Params], tuple[Any, Params]] = lambda encoder, params: (encoder, params)
    published: Callable[[Any], str] = lambda encoder: ""
    indices: Callable[[Any, int], Mapping[str, int]] = lambda encoder, n: {"n": n}
    notes: Callable[[Config], tuple[str, ...]] = lambda config: ()

    @property
    def pooler_names(self) -> frozenset[str]:
        """The names of the pooler's tensors."""
        return self.pooler.tensor_names if self.pooler is not None else frozenset()

"""Convert the tensors of a folder to our parameters and back: each is used once, or listed with a reason."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from bertjax.errors import InputError
from bertjax.huggingface.folder import FLOATS, Tensor, read_tensor
from bertjax.huggingface.table import TIE, Family, Head, TensorLayout, TensorMapping
from bertjax.rules import name_of
from bertjax.types import Params

Shapes = Mapping[str, tuple[int, ...]]

_IGNORED = {r"(^|\.)embeddings\.(position_ids|token_type_ids)$": "a buffer that counts, which nothing learns"}


class Slot(NamedTuple):
    """One tensor and where it goes: our parameters, and the layer where they are stacked."""

    tensor: str
    params: tuple[str, ...]
    layer: int | None
    layout: TensorLayout


def modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename gamma and beta, as TensorFlow and the oldest published weights have them, and a misspelling of DeBERTa."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        modern = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        modern = re.sub(r"^mask_predictions\.classifer\.", "mask_predictions.classifier.", modern)
        if modern in renamed:
            raise InputError(f"{tensor.file} has {modern} by two names")
        renamed[modern] = tensor
    return renamed


def set_aside(
    family: Family, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split off the tensors that are no parameters and those that no head of ours reads, each with its reason."""
    kept, ignored = dict(tensors), {}
    try:
        patterns = {**_IGNORED, **family.ignored(config, tensors.keys())}
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error
    for name in tensors:
        reason = next((reason for pattern, reason in patterns.items() if re.search(pattern, name)), None)
        if reason is not None:
            ignored[name] = reason
            del kept[name]
    return kept, ignored


def finds_untied(
    family: Family, config: Mapping[str, Any], heads: Iterable[Head], tensors: Mapping[str, Tensor], folder: Path
) -> tuple[bool, list[str]]:
    """Tell whether a language-model head has a table of its own, as transformers decides it, with notes to report.

    It does if config.json has tie_word_embeddings=false, and then the table must be present; or if the table is present
    and differs from the word embeddings.
    """
    own = {each.tensor for head in heads for each in head.untied}
    for copy, words in family.tied.items():
        if copy not in own or not copy.endswith(".weight"):
            continue
        if config.get(TIE, True) is False and copy not in tensors:
            raise InputError(
                f"{folder} lacks {copy}, which {TIE}=false in config.json requires: add it, or set that to true if the "
                "head is to share the word embeddings"
            )
        if config.get(TIE, True) is False:
            return True, []
        if copy in tensors and words in tensors and not _equal(tensors[copy], tensors[words]):
            return True, [f"{copy} differs from {words}, so it is read as untied, although {TIE} is not false"]
    return False, []


def encoder_tensors(family: Family, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split off all tensors outside of the modules of the encoder, each with its reason."""
    named = dict(tensors)
    for copy, words in family.tied.items():
        if copy in named:
            named.setdefault(words, named[copy])  # one of the two is enough
    modules = tuple({".".join(each.tensor.split(".")[:2]) + "." for each in family.tensors})
    kept = {name: tensor for name, tensor in named.items() if f"{name}.".startswith(modules)}
    return kept, {name: "not of the encoder" for name in tensors if name not in kept}


def without_copies(
    family: Family, untied: bool, tensors: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split off the tensors that repeat another one, and superseded biases, each with its reason."""
    kept = dict(tensors)
    ignored: dict[str, str] = {}
    for copy, name in family.tied.items():
        if not copy.endswith(".weight"):
            ignored |= _one_bias(kept, copy, name, untied=untied)
        elif copy in kept and not untied:
            tensor, both = kept.pop(copy), name in kept
            if not _equal(tensor, kept.setdefault(name, tensor)):  # one of the two is enough
                raise InputError(f"{folder}: {copy} differs from {name}, and there is no head that it belongs to")
            ignored |= {copy: f"the same as {name}"} if both else {}
    return kept, ignored


def _one_bias(kept: dict[str, Tensor], copy: str, name: str, *, untied: bool) -> dict[str, str]:
    """Keep one of the two biases of a language head, under both names if it is untied; return what is ignored, and why.

    The bias of the decoder, `copy`, is the one that is read; older versions of transformers leave it out.
    """
    found = [kept[bias] for bias in (copy, name) if bias in kept]
    if not found:
        return {}
    kept[copy] = kept[name] = found[0]
    if not untied:
        del kept[copy]
    if not _equal(found[0], found[-1]):
        return {name: f"{copy} is read instead"}
    return {copy: f"the same as {name}"} if len(found) == 2 and not untied else {}


def _equal(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.dtype in FLOATS and np.array_equal(read_tensor(a), read_tensor(b))


def slots_of(family: Family, encoder: Any, heads: Iterable[Head], shapes: Shapes) -> Iterable[Slot]:
    """Yield every tensor that our parameters, whose shapes these are, are read from and written to."""
    mappings = [_within("encoder", each) for each in family.tensors]
    for head in heads:
        scope = f"head/{head.name}"
        untied = any(name.startswith(f"{scope}/decoder") for name in shapes)
        mappings += [_within(scope, each) for each in (head.tensors + head.untied if untied else head.tensors)]
    for tensor, params, layout, first_layer in mappings:
        present = [name in shapes for name in params]
        if not any(present):
            continue
        assert all(present), tensor
        if "{" not in tensor:
            yield Slot(tensor, params, None, layout)
            continue
        for n in range(shapes[params[0]][0]):
            yield Slot(tensor.format(**family.indices(encoder, n + first_layer)), params, n, layout)


def _within(scope: str, mapping: TensorMapping) -> TensorMapping:
    return mapping._replace(params=tuple(f"{scope}/{name}" for name in mapping.params))


def check_tensors(slots: list[Slot], shapes: Shapes, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Compare the names, shapes and dtypes of a folder with those that its config.json implies."""
    covered = {ours for slot in slots for ours in slot.params}
    assert covered == shapes.keys(), f"the table lacks {shapes.keys() - covered}"
    names = {slot.tensor for slot in slots}
    missing, unexpected = sorted(names - tensors.keys()), sorted(tensors.keys() - names)
    if missing:
        raise InputError(f"{folder} lacks {some(missing)}, which its config.json asks for")
    if unexpected:
        raise InputError(
            f"{folder} has {some(unexpected)}, which its config.json does not explain: check model_type, "
            "architectures and num_hidden_layers"
        )
    expected: dict[tuple[str, ...], tuple[int, ...]] = {}
    for slot in slots:
        if slot.params not in expected:
            ours = [jax.ShapeDtypeStruct(_of_layer(shapes[name], slot.layer), jnp.float32) for name in slot.params]
            expected[slot.params] = jax.eval_shape(slot.layout.write, *ours).shape
        tensor = tensors[slot.tensor]
        if tensor.shape != expected[slot.params]:
            raise InputError(
                f"{folder}: {slot.tensor} has shape {tensor.shape}, config.json asks for {expected[slot.params]}"
            )
        if tensor.dtype not in FLOATS:
            raise InputError(f"{folder}: {slot.tensor} has dtype {tensor.dtype}: only {', '.join(FLOATS)} are weights")


def some(names: list[str]) -> str:
    """List the first three names, and count the rest."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_layer(shape: tuple[int, ...], layer: int | None) -> tuple[int, ...]:
    return shape if layer is None else shape[1:]


def read_params(slots: list[Slot], shapes: Shapes, tensors: Mapping[str, Tensor]) -> Params:
    """Read all tensors as float32 parameters, which represent each dtype of weights exactly."""
    flat = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for slot in slots:
        array = read_tensor(tensors[slot.tensor]).astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(
                f"{tensors[slot.tensor].file}: {slot.tensor} has {int((~np.isfinite(array)).sum()):,} of "
                f"{math.prod(array.shape):,} values that are not finite: it is damaged"
            )
        parts = slot.layout.read(array, [_of_layer(shapes[name], slot.layer) for name in slot.params])
        for name, part in zip(slot.params, parts, strict=True):
            flat[name][... if slot.layer is None else slot.layer] = part
    tree: Params = unflatten_dict({tuple(name.split("/")): jnp.asarray(array) for name, array in flat.items()})
    return tree


def write_tensors(
    family: Family, encoder: Any, heads: list[Head], params: Params, dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Convert all parameters to tensors by their full names, float32 or the dtypes of the source folder."""
    flat = {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    slots = list(slots_of(family, encoder, heads, {name: array.shape for name, array in flat.items()}))
    left = flat.keys() - {ours for slot in slots for ours in slot.params}
    if left:
        raise InputError(f"transformers has no place for {some(sorted(left))} in a {family.model_type}")
    tensors = {}
    for slot in slots:
        arrays = [flat[name] if slot.layer is None else flat[name][slot.layer] for name in slot.params]
        tensors[slot.tensor] = np.asarray(slot.layout.write(*arrays)).astype(FLOATS[dtypes.get(slot.tensor, "F32")])
    return tensors

"""Turn the tensors of a folder into parameters of ours and back: each is used once, or listed with a reason."""

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
from bertjax.huggingface.table import TIE, Family, Form, Head
from bertjax.rules import name_of
from bertjax.types import Params

Shapes = Mapping[str, tuple[int, ...]]

_IGNORED = {r"(^|\.)embeddings\.(position_ids|token_type_ids)$": "a buffer that counts, which nothing learns"}


class Slot(NamedTuple):
    """One tensor of theirs, and where it goes: names of ours, and the layer where they are stacked."""

    theirs: str
    ours: tuple[str, ...]
    layer: int | None
    form: Form


def modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what TensorFlow called gamma and beta: the oldest published weights still do. DeBERTa misspelt a name."""
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
    """Leave out what nothing learns and what no head of ours reads, each with its reason."""
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
    """Say whether a language-model head has a table of its own, and what is to be said of it, as transformers decides.

    Its config.json says so, and then the table must be there; or the table is there and differs from the words'.
    """
    own = {row.theirs for head in heads for row in head.untied}
    for copy, words in family.tied.items():
        if copy not in own or not copy.endswith(".weight"):
            continue
        if config.get(TIE, True) is False and copy not in tensors:
            raise InputError(
                f"{folder} lacks {copy}, which {TIE}=false in its config.json asks for: add it, or say true if the "
                "head is to share the word table"
            )
        if config.get(TIE, True) is False:
            return True, []
        if copy in tensors and words in tensors and not _equal(tensors[copy], tensors[words]):
            return True, [f"{copy} differs from {words}, so it is taken as untied, although {TIE} is not false"]
    return False, []


def without_copies(
    family: Family, untied: bool, tensors: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Leave out what repeats another tensor, or what a head does not read because of another, each with its reason."""
    kept, ignored = dict(tensors), {}
    for copy, name in family.tied.items():
        if copy.endswith(".weight"):
            if copy not in kept or untied:
                continue
            tensor = kept.pop(copy)
            if not _equal(tensor, kept.setdefault(name, tensor)):  # one of the two is enough
                raise InputError(f"{folder}: {copy} differs from {name}, and there is no head that it belongs to")
            if name in tensors:
                ignored[copy] = f"the same as {name}"
            continue
        # The bias of the decoder is the one that is read; older versions of transformers leave it out.
        found = [tensors[bias] for bias in (copy, name) if bias in tensors]
        if not found:
            continue
        if not _equal(found[0], found[-1]):
            ignored[name] = f"{copy} is read instead"
        elif len(found) == 2 and not untied:
            ignored[copy] = f"the same as {name}"
        kept[copy] = kept[name] = found[0]
        if not untied:
            del kept[copy]
    return kept, ignored


def _equal(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.dtype in FLOATS and np.array_equal(read_tensor(a), read_tensor(b))


def slots_of(family: Family, heads: Iterable[Head], shapes: Shapes) -> Iterable[Slot]:
    """Yield every tensor of theirs that the parameters of ours are made of."""
    rows = [(f"encoder/{ours}" for ours in row.ours) for row in family.rows]
    named = [row._replace(ours=tuple(ours)) for row, ours in zip(family.rows, rows, strict=True)]
    for head in heads:
        untied = any(name.startswith(f"head/{head.name}/decoder") for name in shapes)
        of_head = head.rows + head.untied if untied else head.rows
        named += [row._replace(ours=tuple(f"head/{head.name}/{ours}" for ours in row.ours)) for row in of_head]
    for row in named:
        present = [ours in shapes for ours in row.ours]
        if not any(present):
            continue
        assert all(present), row
        if "{n}" not in row.theirs:
            yield Slot(row.theirs, row.ours, None, row.form)
            continue
        for n in range(shapes[row.ours[0]][0]):
            yield Slot(row.theirs.format(n=n + row.first_layer), row.ours, n, row.form)


def check_tensors(slots: list[Slot], shapes: Shapes, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Compare the names, shapes and dtypes of a folder with what its config.json asks for."""
    covered = {ours for slot in slots for ours in slot.ours}
    assert covered == shapes.keys(), f"the table lacks {shapes.keys() - covered}"
    names = {slot.theirs for slot in slots}
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
        if slot.ours not in expected:
            ours = [jax.ShapeDtypeStruct(_of_layer(shapes[name], slot.layer), jnp.float32) for name in slot.ours]
            expected[slot.ours] = jax.eval_shape(slot.form.write, *ours).shape
        tensor = tensors[slot.theirs]
        if tensor.shape != expected[slot.ours]:
            raise InputError(
                f"{folder}: {slot.theirs} has shape {tensor.shape}, config.json asks for {expected[slot.ours]}"
            )
        if tensor.dtype not in FLOATS:
            raise InputError(f"{folder}: {slot.theirs} has dtype {tensor.dtype}: only {', '.join(FLOATS)} are weights")


def some(names: list[str]) -> str:
    """List the first three, and count the rest."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_layer(shape: tuple[int, ...], layer: int | None) -> tuple[int, ...]:
    return shape if layer is None else shape[1:]


def read_params(slots: list[Slot], shapes: Shapes, tensors: Mapping[str, Tensor]) -> Params:
    """Read all tensors into float32 arrays of ours; the dtypes that weights have all fit into it exactly."""
    flat = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for slot in slots:
        array = read_tensor(tensors[slot.theirs]).astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(
                f"{tensors[slot.theirs].file}: {slot.theirs} has {int((~np.isfinite(array)).sum()):,} of "
                f"{math.prod(array.shape):,} values that are not finite: it is damaged"
            )
        parts = slot.form.read(array, [_of_layer(shapes[name], slot.layer) for name in slot.ours])
        for name, part in zip(slot.ours, parts, strict=True):
            flat[name][... if slot.layer is None else slot.layer] = part
    tree: Params = unflatten_dict({tuple(name.split("/")): jnp.asarray(array) for name, array in flat.items()})
    return tree


def write_tensors(
    family: Family, heads: list[Head], params: Params, dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Lay all parameters out as their tensors, in the dtypes that these had, by their full names."""
    flat = {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    slots = list(slots_of(family, heads, {name: array.shape for name, array in flat.items()}))
    left = flat.keys() - {ours for slot in slots for ours in slot.ours}
    if left:
        raise InputError(f"transformers has no place for {some(sorted(left))} in a {family.model_type}")
    tensors = {}
    for slot in slots:
        arrays = [flat[name] if slot.layer is None else flat[name][slot.layer] for name in slot.ours]
        tensors[slot.theirs] = np.asarray(slot.form.write(*arrays)).astype(FLOATS[dtypes.get(slot.theirs, "F32")])
    return tensors

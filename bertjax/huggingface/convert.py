"""Turn a Hugging Face folder into a model of ours, and a model of ours into such a folder.

Strict both ways: every tensor is used once, or listed with the reason why it is not; shapes and dtypes are those that
config.json asks for; what is written is first read back from its own config.json and compared with the model.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from bertjax.config import field_names
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.heads import Pooler
from bertjax.huggingface.families import FAMILIES
from bertjax.huggingface.folder import FLOATS, Tensor, find_tensors, read_config, read_tensor, write_folder
from bertjax.huggingface.table import TIE, Family, Field, Form, Head, head_dropout, head_of
from bertjax.huggingface.tokens import read_tokenizer, write_tokenizer
from bertjax.models.deberta import DeBERTa
from bertjax.models.encoder import Encoder
from bertjax.published import LABELLED, Published
from bertjax.rules import name_of
from bertjax.types import Params

Shapes = Mapping[str, tuple[int, ...]]

_IGNORED = {r"(^|\.)embeddings\.(position_ids|token_type_ids)$": "a buffer that counts, which nothing learns"}
_HEAD_DROPOUT = ("dropout", "input_dropout")  # written where config.json has a key for it
_NOT_ARCHITECTURE = ("initializer", "project_initializer", "output_initializer", "remat", "dtype", "attend")


@runtime_checkable
class Headed(Protocol):
    """What a model offers that can be written: an encoder, and heads by name."""

    @property
    def encoder(self) -> Any:
        """The encoder."""
        ...

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Its heads by their names among the parameters."""
        ...


class Found(NamedTuple):
    """A folder as a model of ours. notes: what a round trip needs besides, and what is to be said, as JSON types."""

    model: Published
    params: Params
    tokenizer: Tokenizer | None
    notes: dict[str, Any]


class _Slot(NamedTuple):
    """One tensor of theirs, and where it goes: names of ours, and the layer where they are stacked."""

    theirs: str
    ours: tuple[str, ...]
    layer: int | None
    form: Form


def read_folder(folder: Path) -> Found:
    """Read a model. Raises InputError, naming the file or the tensor, for all that is broken, missing or unknown."""
    config = read_config(folder)
    family = _family(config, folder)
    config = dict(family.modernise(config))
    tensors = _modern_names(find_tensors(folder))
    prefixed = any(name.startswith(f"{family.prefix}.") for name in tensors)
    if not prefixed:
        tensors = {f"{family.prefix}.{name}": tensor for name, tensor in tensors.items()}
    tensors, ignored = _set_aside(family, config, tensors, folder)
    heads = _heads_of_folder(family, config, tensors)
    untied, said = _untied(family, config, heads, tensors, folder)
    if untied:
        config[TIE] = False
    tensors, copies = _without_copies(family, untied, tensors, folder)
    ignored |= copies
    encoder = make_encoder(family, config, folder, heads)
    if len(tensors) < encoder.N:
        raise InputError(f"{folder}: config.json says {encoder.N:,} layers, the weights have {len(tensors)} tensors")
    modules = tuple((head.name, make_head(head, encoder, config, folder)) for head in heads)
    labels = labels_of(config) if {head.name for head in heads} & LABELLED else ()
    model = Published(encoder, modules, family.cls_last, labels)
    shapes = parameter_shapes(model, folder)
    slots = [slot for slot in _slots(family, heads, shapes) if slot.theirs in tensors or slot.theirs not in ignored]
    _check(slots, shapes, tensors, folder)
    params = _read(slots, shapes, tensors)
    dtypes = {slot.theirs: tensors[slot.theirs].dtype for slot in slots if tensors[slot.theirs].dtype != "F32"}
    notes = {"config": config, "prefixed": prefixed, "dtypes": dtypes, "ignored": ignored, "said": said}
    return Found(model, params, read_tokenizer(folder, config, encoder.V), notes)


def write_model(
    model: Any, params: Params, tokenizer: Tokenizer | None, notes: Mapping[str, Any], folder: Path, architecture: str
) -> list[str]:
    """Write an encoder and its heads to a new folder. Return what transformers has no class for, as sentences.

    notes: of the folder that the model came from, or empty. architecture: a `model_type`, or empty to choose by the
    encoder. Raises InputError where no class there computes what this model computes.
    """
    if not isinstance(model, Headed):
        parts = [f"folder:{name}" for name in params] if hasattr(model, "part") else []
        hint = f": name one of its parts, {' or '.join(parts)}" if parts else ""
        raise InputError(f"a {type(model).__name__} has no one encoder and heads{hint}")
    original: dict[str, Any] = dict(notes.get("config", {}))
    family = FAMILIES[original["model_type"]] if original else family_for(model.encoder, model.heads, architecture)
    given = model.heads
    encoder, params, said = _without_idle_decoder(model.encoder, given, params)
    encoder, params = _with_segments(family, family.normal(encoder), params)
    heads = [
        head
        for head in (*_all_heads(family, original), *([family.pooler] if family.pooler else []))
        if head.name in given and isinstance(given[head.name], Pooler) == (head is family.pooler) and head.fits(encoder)
    ]
    class_name = _class_for(family, original, given, heads)
    labels = model.labels if isinstance(model, Published) else ()
    config = make_config(family, encoder, original, class_name, given, tokenizer, labels)
    _check_alike(family, config, encoder, given, heads, folder)
    tensors = _write(family, heads, params, dict(notes.get("dtypes", {})))
    classless = [head for head in heads if head.classless]
    said += [
        f"wrote head/{head.name} by the names of the released weights: transformers has no class with it, and lists "
        f"{head.rows[0].theirs.split('.')[0]}.* as unexpected; FOLDER:encoder is the encoder alone"
        for head in classless
    ]
    prefixed = notes.get("prefixed", class_name != family.base_class or bool(classless))
    if not prefixed:
        tensors = {name.removeprefix(f"{family.prefix}."): array for name, array in tensors.items()}
    write_folder(folder, config, tensors)
    if tokenizer is not None:
        write_tokenizer(tokenizer, family, folder)
    return said


def make_encoder(family: Family, config: Mapping[str, Any], folder: Path, heads: Iterable[Head] = ()) -> Any:
    """Build our encoder from config.json, and what its heads say of it.

    Raises InputError for a missing key, and for what we cannot compute.
    """
    fields: dict[str, Any] = dict(family.fixed)
    for field in family.fields:
        if field.theirs not in config and field.absent is None:
            raise InputError(f"{folder / 'config.json'} has no {field.theirs}: add it, nothing is guessed")
        try:
            fields[field.ours] = _value(field, config)
        except InputError as error:
            raise InputError(f"{folder / 'config.json'}: {field.theirs}: {error}") from error
    for head in heads:
        fields |= head.fields
    try:
        encoder = family.encoder(**fields)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error
    for key, value in family.unsupported.items():
        expected = value(encoder) if callable(value) else value
        if config.get(key) not in (None, expected):
            raise InputError(
                f"{folder / 'config.json'}: {key}={config[key]!r} is not supported, only {expected!r} is for "
                f"{family.model_type}"
            )
    return encoder


def _value(field: Field, config: Mapping[str, Any]) -> Any:
    given = config[field.theirs] if field.theirs in config or field.absent is None else field.absent(config)
    return field.value.read(given, config)


def make_config(
    family: Family,
    encoder: Any,
    original: Mapping[str, Any],
    class_name: str,
    heads: Mapping[str, nn.Module],
    tokenizer: Tokenizer | None,
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Describe our encoder and heads in the words of config.json, on top of what a source folder said."""
    config = {"dtype": "float32", TIE: True, **original}
    config = dict(family.stated(encoder)) | config if not original else config
    config |= {"model_type": family.model_type, "architectures": [class_name]}
    for field in family.fields:
        ours = getattr(encoder, field.ours)
        stated = field.theirs in original or (original and field.absent is not None)
        if not stated or _value(field, original) != ours:
            config[field.theirs] = field.value.write(ours, encoder)
    if tokenizer is not None and not original:
        for key, role in family.specials.items():
            index = getattr(tokenizer.vocabulary, role)
            if config.setdefault(key, index) != index:
                raise InputError(
                    f"{family.model_type} of transformers needs the {role} piece at id {config[key]}, by the encoder's "
                    f"first_position; the tokenizer has it at {index}"
                )
    _describe_classes(family, encoder, config, heads, labels)
    return config


def _describe_classes(
    family: Family, encoder: Any, config: dict[str, Any], heads: Mapping[str, nn.Module], labels: tuple[str, ...]
) -> None:
    """Write the names of the classes of a head, and its dropout, where config.json says other ones."""
    counts = [getattr(heads[name], "C", 2) for name in ("classify", "tags") if name in heads]
    if counts and (counts[0] != _classes(config) or (labels and labels != labels_of(config))):
        labels = labels or tuple(f"LABEL_{number}" for number in range(counts[0]))
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    for head in family.heads:
        if head.name in heads and head.drop is not None and head.drop.key:
            rate = getattr(heads[head.name], "dropout", 0.0)
            if rate != head_dropout(head.drop, encoder, config):
                config[head.drop.key] = rate


def make_head(head: Head, encoder: Any, config: Mapping[str, Any], folder: Path) -> nn.Module:
    """Build the module of a head. Raises InputError where config.json asks for one that we do not have."""
    try:
        return head_of(head, encoder, config, _classes(config))
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error


def parameter_shapes(model: Published, folder: Path) -> Shapes:
    """Work out the shapes of all parameters by their names, without making them."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {"tokens": tokens, "mask": tokens, "types": tokens}
    try:
        params = jax.eval_shape(model.init, jax.random.key(0), batch)
    except (ValueError, TypeError, OverflowError) as error:  # sizes that no array can have
        raise InputError(f"{folder / 'config.json'} describes no model: {str(error)[:200]}") from error
    return {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _family(config: Mapping[str, Any], folder: Path) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{folder / 'config.json'} has model_type={model_type!r}: bertjax reads {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def family_for(encoder: Any, heads: Mapping[str, nn.Module], architecture: str) -> Family:
    """Choose the family that has such an encoder: what several could be is BERT."""
    if architecture:
        if architecture not in FAMILIES:
            raise InputError(f"no architecture {architecture!r}: choose one of {', '.join(FAMILIES)}")
        if not isinstance(encoder, FAMILIES[architecture].encoder):
            raise InputError(
                f"{architecture} of transformers has the encoder {FAMILIES[architecture].encoder.__name__}, not "
                f"{type(encoder).__name__}"
            )
        return FAMILIES[architecture]
    if isinstance(encoder, DeBERTa):
        return FAMILIES["deberta-v2" if encoder.key_bias else "deberta"]
    if not isinstance(encoder, Encoder):
        return next(family for family in FAMILIES.values() if family.encoder is type(encoder))
    if encoder.shared:
        return FAMILIES["albert"]
    if encoder.E is not None or "rtd" in heads:
        return FAMILIES["electra"]
    return FAMILIES["roberta" if encoder.first_position else "bert"]


def _classes(config: Mapping[str, Any]) -> int:
    """Count the classes of a task head as transformers does: its labels, or two."""
    labels = config.get("id2label")
    found = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if type(found) is not int or not 0 < found < 2**31:
        raise InputError(f"num_labels={found!r} is not a number of labels")
    return found


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the classes of a task head; none where the config gives them no names, or not one for each."""
    given = config.get("id2label")
    names = [given.get(str(number)) for number in range(len(given))] if isinstance(given, dict) else []
    known = [name for name in names if isinstance(name, str)]
    return tuple(known) if len(known) == len(names) else ()


def _modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what TensorFlow called gamma and beta: the oldest published weights still do. DeBERTa misspelt a name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        modern = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        modern = re.sub(r"^mask_predictions\.classifer\.", "mask_predictions.classifier.", modern)
        if modern in renamed:
            raise InputError(f"{tensor.file} has {modern} by two names")
        renamed[modern] = tensor
    return renamed


def _set_aside(
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


def _untied(
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


def _without_copies(
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


def _all_heads(family: Family, config: Mapping[str, Any]) -> tuple[Head, ...]:
    """List the heads that a folder can have: of those with the same tensors, the one of its class."""
    needed = family.classes.get(_architecture(config), ())
    return tuple(
        head
        for head in family.heads
        if head.when(config) and (head.name in needed or not (config and head.shared_names))
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _heads_of_folder(family: Family, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Head]:
    """List the heads that the folder carries: those whose tensors it has, and besides those of its class."""
    needed = family.classes.get(_architecture(config), ())
    pooling = {row.theirs for row in family.pooler.rows} if family.pooler else set()
    heads = _all_heads(family, config)
    there = [head for head in heads if ({row.theirs for row in head.rows} - pooling) & tensors.keys()]
    names = {head.name for head in there}
    found = [
        head
        for head in heads
        if head in there or (head.name in needed and head.name not in names and not head.classless)
    ]
    if family.pooler and pooling & tensors.keys() and not pooling & {row.theirs for h in found for row in h.rows}:
        found.append(family.pooler)
    return found


def _slots(family: Family, heads: Iterable[Head], shapes: Shapes) -> Iterable[_Slot]:
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
            yield _Slot(row.theirs, row.ours, None, row.form)
            continue
        for n in range(shapes[row.ours[0]][0]):
            yield _Slot(row.theirs.format(n=n + row.first_layer), row.ours, n, row.form)


def _check(slots: list[_Slot], shapes: Shapes, tensors: Mapping[str, Tensor], folder: Path) -> None:
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


def _read(slots: list[_Slot], shapes: Shapes, tensors: Mapping[str, Tensor]) -> Params:
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


def _write(family: Family, heads: list[Head], params: Params, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Lay all parameters out as their tensors, in the dtypes that these had, by their full names."""
    flat = {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    slots = list(_slots(family, heads, {name: array.shape for name, array in flat.items()}))
    left = flat.keys() - {ours for slot in slots for ours in slot.ours}
    if left:
        raise InputError(f"transformers has no place for {some(sorted(left))} in a {family.model_type}")
    tensors = {}
    for slot in slots:
        arrays = [flat[name] if slot.layer is None else flat[name][slot.layer] for name in slot.ours]
        tensors[slot.theirs] = np.asarray(slot.form.write(*arrays)).astype(FLOATS[dtypes.get(slot.theirs, "F32")])
    return tensors


def without_decoder(encoder: Any, params: Params) -> tuple[Any, Params]:
    """Take the mask decoder off a DeBERTa; other encoders have none. params: those of the encoder."""
    if not isinstance(encoder, DeBERTa) or not encoder.decoder:
        return encoder, params
    return encoder.clone(decoder=0), {name: part for name, part in params.items() if name != "decoder_positions"}


def _without_idle_decoder(
    encoder: Any, heads: Mapping[str, nn.Module], params: Params
) -> tuple[Any, Params, list[str]]:
    """Take off a mask decoder after which no head stands, and say so: a folder says by the head that it is there."""
    if not isinstance(encoder, DeBERTa) or not encoder.decoder or "mlm" in heads:
        return encoder, params, []
    encoder, own = without_decoder(encoder, params["encoder"])
    return encoder, {**params, "encoder": own}, ["left out encoder/decoder_positions: there is no head/mlm to use it"]


def _with_segments(family: Family, encoder: Any, params: Params) -> tuple[Any, Params]:
    """Give an encoder without segments the one segment of zeros that the family's classes cannot be without."""
    if not isinstance(encoder, Encoder) or encoder.types or "types" not in {field.ours for field in family.fields}:
        return encoder, params
    zeros = jnp.zeros((1, encoder.embedding_width))
    embeddings = {**params["encoder"]["embeddings"], "type": {"table": zeros}}
    return encoder.clone(types=1), {**params, "encoder": {**params["encoder"], "embeddings": embeddings}}


def _class_for(family: Family, original: Mapping[str, Any], given: Mapping[str, nn.Module], heads: list[Head]) -> str:
    """Name the class of transformers with these heads; that of the source where there was one."""
    if original and _architecture(original):
        return _architecture(original)
    classifying = {head.name for head in heads if head is not family.pooler and not head.classless}
    if not classifying and set(given) <= {head.name for head in heads}:
        return family.base_class
    asked = set(given) - {head.name for head in heads if head.classless}
    found = next((name for name, names in family.classes.items() if set(names) == asked == classifying), None)
    if found is None:
        known = "; ".join(f"{name}: {', '.join(names)}" for name, names in family.classes.items())
        raise InputError(
            f"transformers has no {family.model_type} class with the heads {', '.join(given)}; it has {known}"
        )
    return found


def _check_alike(
    family: Family,
    config: Mapping[str, Any],
    encoder: Any,
    given: Mapping[str, nn.Module],
    heads: list[Head],
    folder: Path,
) -> None:
    """Read the new config.json back and compare: whatever it cannot say would be lost without a word."""
    again = make_encoder(family, config, folder, heads)
    pairs: list[tuple[str, Any, Any]] = [("encoder", encoder, again)]
    pairs += [(head.name, given[head.name], make_head(head, again, config, folder)) for head in heads]
    for name, ours, theirs in pairs:
        if type(ours) is not type(theirs):
            raise InputError(
                f"{family.model_type} of transformers cannot have a {type(ours).__name__} as its {name}, only a "
                f"{type(theirs).__name__}"
            )
        for field in field_names(ours):
            dropped = name != "encoder" and field in _HEAD_DROPOUT
            if not dropped and field not in _NOT_ARCHITECTURE and getattr(ours, field) != getattr(theirs, field, None):
                where, mine, other = _difference(field, getattr(ours, field), getattr(theirs, field, None))
                raise InputError(
                    f"{family.model_type} of transformers cannot have {where}={_plain(mine)} in its {name}, only "
                    f"{_plain(other)}"
                )


def _difference(where: str, ours: Any, theirs: Any) -> tuple[str, Any, Any]:
    """Name the first field in which two values differ, where they are dataclasses of one kind."""
    if not is_dataclass(ours) or type(ours) is not type(theirs):
        return where, ours, theirs
    name = next(name for name in field_names(ours) if getattr(ours, name) != getattr(theirs, name))
    return f"{where}.{name}", getattr(ours, name), getattr(theirs, name)


def _plain(value: Any) -> str:
    return getattr(value, "__name__", repr(value))

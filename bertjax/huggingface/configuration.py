"""Convert between config.json and our encoders and heads.

A written config is read back and compared, so that a field which config.json cannot express is an error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast, get_args

import flax.linen as nn

from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.huggingface.families import FAMILIES, default_family
from bertjax.huggingface.folder import Tensor
from bertjax.huggingface.table import TIE, ConfigKey, Family, Head, head_dropout, head_of
from bertjax.models.published import LABELLED, ProblemType
from bertjax.serialization.description import field_names
from bertjax.serialization.places import without_places
from bertjax.wording import counted

_OTHERS = {
    "eurobert": ", an encoder with RMS norms and grouped queries",
    "nomic_bert": ", a BERT with rotary positions and gated layers",
    "xlm-roberta-xl": ", an XLM-R with norms before its sublayers",
    "roberta-prelayernorm": ", a RoBERTa with norms before its sublayers",
    "new": ", code of the folder's own, which is never run",
}
"""What sets models apart that are often taken for one of ours."""
_HEAD_DROPOUT = ("dropout", "input_dropout")  # written if config.json has a key for it
_NOT_ARCHITECTURE = ("initializer", "project_initializer", "output_initializer", "remat", "dtype", "attend")


def family_of(config: Mapping[str, Any], folder: Path) -> Family:
    """Return the family of config.json's model_type. Raises InputError for one that bertjax does not read."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    about = _OTHERS.get(model_type, "") if isinstance(model_type, str) else ""
    raise InputError(
        f"{folder / 'config.json'} has model_type={model_type!r}{about}: bertjax reads {', '.join(FAMILIES)}, use "
        "transformers for others"
    )


def code_notes(config: Mapping[str, Any]) -> list[str]:
    """Return a note on code that the folder brings along."""
    if not config.get("auto_map"):
        return []
    return [
        f"auto_map names code of the folder's own, which is never run: it is read as a {config['model_type']}, as by "
        "transformers without trust_remote_code"
    ]


def family_for(encoder: Any, heads: Mapping[str, nn.Module], architecture: str) -> Family:
    """Return the family `architecture`, or by default the one that fits the encoder and its heads.

    Raises InputError for a family that is unknown or has another encoder.
    """
    if not architecture:
        return default_family(encoder, heads)
    if architecture not in FAMILIES:
        raise InputError(f"no architecture {architecture!r}: choose one of {', '.join(FAMILIES)}")
    if not isinstance(encoder, FAMILIES[architecture].encoder):
        raise InputError(
            f"{architecture} of transformers has the encoder {FAMILIES[architecture].encoder.__name__}, not "
            f"{type(encoder).__name__}"
        )
    return FAMILIES[architecture]


def make_encoder(family: Family, config: Mapping[str, Any], folder: Path, heads: Iterable[Head] = ()) -> Any:
    """Build our encoder from config.json, and from the fields that follow from its heads.

    Raises InputError for a missing key, and for a value that bertjax cannot compute.
    """
    fields: dict[str, Any] = dict(family.fixed)
    for entry in family.config_keys:
        if entry.key not in config and entry.default is None:
            raise InputError(f"{folder / 'config.json'} has no {entry.key}: add it, nothing is guessed")
        try:
            fields[entry.field] = _decode(entry, config)
        except InputError as error:
            raise InputError(f"{folder / 'config.json'}: {entry.key}: {error}") from error
    for head in heads:
        fields |= head.encoder_fields
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


def _decode(entry: ConfigKey, config: Mapping[str, Any]) -> Any:
    given = config[entry.key] if entry.key in config or entry.default is None else entry.default(config)
    return entry.codec.decode(given, config)


def make_head(head: Head, encoder: Any, config: Mapping[str, Any], folder: Path) -> nn.Module:
    """Build the module of a head. Raises InputError where config.json asks for one that bertjax lacks."""
    try:
        return head_of(head, encoder, config, _count_classes(config))
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error


def all_heads(family: Family, config: Mapping[str, Any]) -> tuple[Head, ...]:
    """List the heads that a folder can have: of those with the same tensor names, the one of its class."""
    needed = family.classes.get(_architecture(config), ())
    return tuple(
        head
        for head in family.heads
        if head.when(config) and (head.name in needed or not (config and head.shared_names))
    )


def heads_of_folder(family: Family, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Head]:
    """List the heads of a folder: those whose tensors it has, and those of its class."""
    needed = family.classes.get(_architecture(config), ())
    pooling = family.pooler_names & tensors.keys()
    heads = all_heads(family, config)
    present = [head for head in heads if (head.tensor_names - family.pooler_names) & tensors.keys()]
    lacking = set(needed) - {head.name for head in present}
    found = [head for head in heads if head in present or (head.name in lacking and not head.classless)]
    if family.pooler and pooling and not any(pooling & head.tensor_names for head in found):
        found.append(family.pooler)
    return found


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _id2label(config: Mapping[str, Any]) -> dict[int, Any] | None:
    """Return the names of the classes by their numbers. Raises InputError for a key that is no number."""
    given = config.get("id2label")
    if given is None:
        return None
    try:
        return {int(key): name for key, name in given.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"id2label={str(given)[:80]} does not name classes by their numbers") from error


def _count_classes(config: Mapping[str, Any]) -> int:
    """Count the classes of a task head as transformers does: num_labels, else the names in id2label, else 2."""
    labels = _id2label(config)
    stated = config.get("num_labels")
    found = stated if stated is not None else 2 if labels is None else len(labels)
    if type(found) is not int or not 0 < found < 2**31:
        raise InputError(f"num_labels={found!r} is not a number of labels")
    return found


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes of a task head; none unless the config names each of them, and no more."""
    given = _id2label(config) or {}
    names = [given.get(number) for number in range(len(given))]
    known = [name for name in names if isinstance(name, str)]
    return tuple(known) if len(known) == len(names) == _count_classes(config) else ()


def label_notes(config: Mapping[str, Any], heads: Iterable[Head]) -> list[str]:
    """Return notes on keys of config.json that contradict each other about the classes of a head, as transformers."""
    given = _id2label(config) if {head.name for head in heads} & LABELLED else None
    if given is None:
        return []
    notes, count = [], _count_classes(config)
    if count != len(given):
        notes.append(f"id2label is not read: it names {counted(len(given), 'classes')}, num_labels={count} holds")
    elif not labels_of(config):
        notes.append(f"id2label does not name classes 0 to {count - 1} by strings: they are numbered")
    other = config.get("label2id")
    if isinstance(other, dict) and other != {name: number for number, name in given.items()}:
        notes.append("label2id is not read: it contradicts id2label")
    return notes


def problem_type_of(config: Mapping[str, Any]) -> ProblemType:
    """Return what a head `classify` predicts, as the text-classification pipeline of transformers decides it.

    Unless config.json says so, one label is no regression: its probability is a sigmoid, as of several labels.
    Raises InputError for a value that transformers refuses.
    """
    classes, given = _count_classes(config), config.get("problem_type")
    if given is None:
        return "multi_label_classification" if classes == 1 else "single_label_classification"
    if given not in get_args(ProblemType)[1:]:
        raise InputError(f"problem_type={given!r} is none of {', '.join(get_args(ProblemType)[1:])}")
    if given == "single_label_classification" and classes == 1:
        raise InputError(f"problem_type={given!r} needs at least two labels: use regression for a number")
    return cast(ProblemType, given)


def make_config(
    family: Family,
    encoder: Any,
    original: Mapping[str, Any],
    class_name: str,
    heads: Mapping[str, nn.Module],
    tokenizer: Tokenizer | None,
    labels: tuple[str, ...] = (),
    predicts: ProblemType = "",
) -> dict[str, Any]:
    """Build config.json for an encoder and its heads, on top of the config of the source folder, if any.

    labels, predicts: of the head, see Published.
    """
    carried = {key: value for key, value in original.items() if key not in _NAMING_CODE}
    config = {"dtype": "float32", TIE: True, **without_places(carried)}
    config = dict(family.stated(encoder)) | config if not original else config
    config |= {"model_type": family.model_type, "architectures": [class_name]}
    for entry in family.config_keys:
        ours = getattr(encoder, entry.field)
        stated = entry.key in original or (original and entry.default is not None)
        if not stated or _decode(entry, original) != ours:
            config[entry.key] = entry.codec.encode(ours, encoder)
    if tokenizer is not None and not original:
        for key, role in family.specials.items():
            index = getattr(tokenizer.vocabulary, role)
            if config.setdefault(key, index) != index:
                raise InputError(
                    f"{family.model_type} of transformers needs the {role} piece at id {config[key]}, by the encoder's "
                    f"first_position; the tokenizer has it at {index}"
                )
    _set_labels(config, heads, labels)
    stated = predicts == "multi_label_classification" and not original  # also where that is a default there
    if predicts and (stated or problem_type_of(config) != predicts):
        config["problem_type"] = predicts
    _set_dropout(family, encoder, config, heads)
    return config


_NAMING_CODE = {"auto_map", "custom_pipelines", "trust_remote_code"}
"""Keys that are not carried on: who opens the new folder would run code of who made the old one."""


def _set_labels(config: dict[str, Any], heads: Mapping[str, nn.Module], labels: tuple[str, ...]) -> None:
    """Set the names of the classes of a head where config.json has others."""
    counts = [getattr(heads[name], "C", 2) for name in ("classify", "tags") if name in heads]
    if counts and (counts[0] != _count_classes(config) or (labels and labels != labels_of(config))):
        labels = labels or tuple(f"LABEL_{number}" for number in range(counts[0]))
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
        config |= {"num_labels": counts[0]} if "num_labels" in config else {}


def _set_dropout(family: Family, encoder: Any, config: dict[str, Any], heads: Mapping[str, nn.Module]) -> None:
    """Set the dropout of a head where config.json has another."""
    for head in family.heads:
        if head.name in heads and head.dropout is not None and head.dropout.key:
            rate = getattr(heads[head.name], "dropout", 0.0)
            if rate != head_dropout(head.dropout, encoder, config):
                config[head.dropout.key] = rate


def class_for(family: Family, original: Mapping[str, Any], given: Mapping[str, nn.Module], heads: list[Head]) -> str:
    """Return the class of transformers with these heads; the class of the source folder, if any."""
    if stated := _architecture(original):
        return stated
    of_tasks = [head for head in heads if head is not family.pooler]
    without_class = {head.name for head in of_tasks if head.classless}
    wanted = {head.name for head in of_tasks} - without_class
    if not wanted and given.keys() <= {head.name for head in heads}:
        return family.base_class
    for class_name, names in family.classes.items():
        if {*names} == given.keys() - without_class == wanted:
            return class_name
    known = "; ".join(f"{name}: {', '.join(names)}" for name, names in family.classes.items())
    raise InputError(f"transformers has no {family.model_type} class with the heads {', '.join(given)}; it has {known}")


def check_round_trip(
    family: Family,
    config: Mapping[str, Any],
    encoder: Any,
    given: Mapping[str, nn.Module],
    heads: list[Head],
    folder: Path,
) -> None:
    """Read the new config.json back and compare. Raises InputError for the first field that it cannot express."""
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
            is_dropout = name != "encoder" and field in _HEAD_DROPOUT
            if (
                not is_dropout
                and field not in _NOT_ARCHITECTURE
                and getattr(ours, field) != getattr(theirs, field, None)
            ):
                where, mine, other = _difference(field, getattr(ours, field), getattr(theirs, field, None))
                raise InputError(
                    f"{family.model_type} of transformers cannot have {where}={_plain(mine)} in its {name}, only "
                    f"{_plain(other)}"
                )


def _difference(where: str, ours: Any, theirs: Any) -> tuple[str, Any, Any]:
    """Return the first field in which two values differ, with its path if they are dataclasses of one kind."""
    if not is_dataclass(ours) or type(ours) is not type(theirs):
        return where, ours, theirs
    name = next(name for name in field_names(ours) if getattr(ours, name) != getattr(theirs, name))
    return f"{where}.{name}", getattr(ours, name), getattr(theirs, name)


def _plain(value: Any) -> str:
    return getattr(value, "__name__", repr(value))

"""Read the tokenizer of a Hugging Face folder as transformers 5 does, into one self-contained `tokenizer.json`.

`tokenizer_config.json` and `config.json` name a class. A general one uses `tokenizer.json` unchanged; the class of a
family builds its own tokenizer (tokenizer_classes.py). Keys have the same effect and precedence here; an unsupported
class or value is refused by its name. Sources: transformers 5, models/auto/tokenization_auto.py,
tokenization_utils_base.py (_from_pretrained), tokenization_utils_tokenizers.py.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from bertjax.data.tokenizer_bounds import MOST_ADDED, check_tokenizer
from bertjax.data.tokenizer_classes import (
    ADDED,
    CLS,
    CONFIG,
    GENERAL,
    JSON,
    KINDS,
    MAP,
    MODEL_CONFIG,
    NAMED,
    NO_SEGMENTS,
    ROBERTA,
    Opened,
    build_general,
    content_of,
)
from bertjax.errors import InputError
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.storage.files import utf8

SENTENCEPIECE = "SentencePiece, by its own library"

_VOCABULARIES = (JSON, "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model")
KEPT = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens")


@dataclass(frozen=True)
class Reading:
    """How the tokenizer of a folder reads.

    read_as: the class of transformers whose rules apply, or the code that a bare vocabulary file was published with.
    files: those that were read. keys: each key that had an effect, as "file: key", and its value. notes: on files that
    contradict each other, and keys without effect. unread: vocabulary files that another one takes precedence over.
    """

    read_as: str
    files: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


class Compiled(NamedTuple):
    """A folder's tokenizer in two files, `tokenizer.json` and `tokenizer_config.json`, and how it was read."""

    files: Mapping[str, bytes]
    reading: Reading


def compile_folder(files: Mapping[str, bytes], origin: str) -> Compiled:
    """Read the files of a folder, `config.json` among them, as transformers does.

    Raises InputError for a class with code of its own, for values that cannot be followed, and for damaged files.
    """
    opened = _open(files, origin)
    name = _class_name(opened)
    added, extra = _merge_special_tokens(opened)
    if len(added) + len(extra) > MOST_ADDED:
        raise InputError(f"{origin} adds {len(added) + len(extra):,} tokens: no real one adds over {MOST_ADDED:,}")
    kind = KINDS.get(name)
    inputs = kind.inputs if kind else NO_SEGMENTS
    later: Callable[[Tokenizer], None] | None = None
    if kind is None:
        rust, named = build_general(opened), {key: opened.token(key, None) for key in NAMED}
    else:
        kind.check(opened, name)
        rust, named, later = kind.build(opened)
        if not {"extra_special_tokens", "additional_special_tokens"} & opened.stated.keys():
            extra = [*kind.extra]
    _add_tokens(rust, added, {**named, **_model_specific(opened)}, extra, opened)
    if later is not None:
        later(rust)
    rust.no_padding()
    rust.no_truncation()
    obeyed = {key.partition(": ")[2]: value for key, value in opened.keys.items() if isinstance(value, bool | None)}
    spelled = {key: content_of(value) for key, value in named.items() if value is not None}
    stated = opened.stated
    kept = {key: stated[key] for key in KEPT if key in stated and isinstance(stated[key], str | int | float | None)}
    for key, value in (spelled | kept).items():
        if key in opened.where:
            opened.keys[f"{opened.where[key]}: {key}"] = value
    written = obeyed | kept | spelled | {"tokenizer_class": GENERAL[1], "read_as": name}
    written |= {"model_input_names": _inputs(opened, inputs)}
    written |= {"extra_special_tokens": [content_of(token) for token in extra]} if extra else {}
    found = {JSON: rust.to_str().encode(), CONFIG: utf8(json.dumps(written, ensure_ascii=False, indent=1))}
    used = _used(opened, name)
    unread = tuple(file for file in _VOCABULARIES if file in files and file not in used)
    return Compiled(found, Reading(name, used, opened.keys, tuple(opened.notes), unread))


def _inputs(opened: Opened, usual: tuple[str, ...]) -> list[str]:
    stated = opened.stated.get("model_input_names", usual)
    if not all(isinstance(name, str) for name in stated):
        raise InputError(f"{opened.origin}: model_input_names in {CONFIG} are not names")
    return [*stated]


def _open(files: Mapping[str, bytes], origin: str) -> Opened:
    described, config, model_config = (_parsed(files, name, origin) for name in (JSON, CONFIG, MODEL_CONFIG))
    check_tokenizer(described, f"{JSON} of {origin}")
    return Opened(origin, described, config, model_config, files, dict(config), dict.fromkeys(config, CONFIG))


def sentencepiece_folder(files: Mapping[str, bytes], origin: str) -> Compiled | None:
    """Return the SentencePiece model of an ALBERT or XLNet folder that has no `tokenizer.json`; None for other folders.

    Such a model is run by its own library, with the preprocessing that it was published with; transformers, which
    builds a tokenizer of its own, does not split again pieces that end in digit and comma. Raises InputError for models
    of other families, whose ids are not those of the file.
    """
    model = next((name for name in files if name.endswith(".model")), "")
    if not model or JSON in files:
        return None
    opened = _open(files, origin)
    name = _class_name(opened, alone=True)
    kind = KINDS.get(name)
    if kind and kind.model != "Unigram" and all(file in files for file in kind.vocabulary):
        return None
    if name not in ("AlbertTokenizer", "XLNetTokenizer"):
        family = opened.model_config.get("model_type", name)
        raise InputError(
            f"{origin} has {model}, whose ids are not all of {family}'s: write its tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    added, _ = _merge_special_tokens(opened)
    if added and any(MAP not in key for key in opened.keys):
        ids = {token.content for token in added.values()} - {*CLS.values(), *ROBERTA.values()} - {"<cls>", "<sep>"}
        if ids:
            raise InputError(
                f"{origin} has {model} and added tokens ({', '.join(sorted(ids)[:5])}): write its tokenizer.json with "
                "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
    lowercase = opened.flag("do_lower_case", name == "AlbertTokenizer")
    accents = bool(opened.flag("keep_accents", False)) and name == "AlbertTokenizer"
    opened.notes.append(
        f"{model} is read as its own code reads it; transformers does not split numbers that end in a comma again"
    )
    stated = {"prepare": True, "do_lower_case": lowercase, "keep_accents": accents}
    found = {model: files[model], CONFIG: json.dumps(stated).encode()}
    used = tuple(file for file in (model, CONFIG, MODEL_CONFIG) if file in files)
    return Compiled(found, Reading(SENTENCEPIECE, used, opened.keys, tuple(opened.notes)))


def _parsed(files: Mapping[str, bytes], name: str, origin: str) -> dict[str, Any]:
    if name not in files:
        return {}
    return parse_object(files[name], f"{name} of {origin}", LARGE)


def _used(opened: Opened, name: str) -> tuple[str, ...]:
    """Name the files that were read, in the order of their weight."""
    vocabulary = (JSON,) if opened.json else KINDS[name].vocabulary
    legacy = "added_tokens_decoder" not in opened.config
    others = (CONFIG, *((MAP, ADDED) if legacy else ()), MODEL_CONFIG)
    return tuple(file for file in (*vocabulary, *others) if file in opened.files)


# The class ----------------------------------------------------------------------------------------------------------

_BY_MODEL_TYPE = {
    "albert": "AlbertTokenizer", "bert": "BertTokenizer", "camembert": "CamembertTokenizer",
    "deberta": "DebertaTokenizer", "deberta-v2": "DebertaV2Tokenizer", "distilbert": "BertTokenizer",
    "electra": "BertTokenizer", "ernie": "BertTokenizer", "longformer": "RobertaTokenizer",
    "modernbert": GENERAL[0], "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer", "roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer",
    "xlm-roberta-xl": GENERAL[0], "xlnet": "XLNetTokenizer",
}  # fmt: skip
"""transformers 5, TOKENIZER_MAPPING_NAMES; other types of model have none."""

_BY_FILE = {"vocab.txt": "BertTokenizer", "vocab.json": "RobertaTokenizer", "spiece.model": "AlbertTokenizer"}
"""Where no file names a class."""

_ALIASES = {
    "BartTokenizer": "RobertaTokenizer", "ElectraTokenizer": "BertTokenizer", "LayoutLMTokenizer": "BertTokenizer",
    "LongformerTokenizer": "RobertaTokenizer", "LxmertTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer", "SqueezeBertTokenizer": "BertTokenizer",
    "PreTrainedTokenizer": GENERAL[0], "PythonBackend": GENERAL[0], GENERAL[1]: GENERAL[0],
}  # fmt: skip


def _class_name(opened: Opened, *, alone: bool = False) -> str:
    """Name the class whose rules hold: tokenizer_config.json, then config.json, then the type of the model.

    alone: nothing but a SentencePiece model is needed.
    """
    config, model_config = opened.config, opened.model_config
    registered = _BY_MODEL_TYPE.get(str(model_config.get("model_type", "")))
    if not registered and not model_config and not opened.json:
        registered = next((name for file, name in _BY_FILE.items() if file in opened.files), None)
    file = CONFIG if config.get("tokenizer_class") else MODEL_CONFIG
    given = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    if given:
        opened.keys[f"{file}: tokenizer_class"] = given
    else:
        opened.keys[f"{MODEL_CONFIG}: model_type"] = model_config.get("model_type")
    name = _plain(str(given)) if given else registered or GENERAL[0]
    if registered == GENERAL[0] and name != registered:
        opened.notes.append(f"{file}: tokenizer_class={given} is not followed for this model_type: {JSON} as it stands")
        name = registered
    _check_class(opened, name, file, given, alone)
    return name


def _check_class(opened: Opened, name: str, file: str, given: Any, alone: bool) -> None:
    """Raise InputError for a class that cannot be followed."""
    known = name in KINDS or name == GENERAL[0]
    code = opened.config.get("auto_map")
    if code is not None and not (known and given):
        raise InputError(
            f"{opened.origin}: {CONFIG} says auto_map={json.dumps(code)}: a tokenizer with code of its own, which is "
            "not run here"
        )
    if code is not None:
        opened.notes.append(f"{CONFIG}: auto_map is not followed: {given} is known")
    if not known:
        raise InputError(
            f"{opened.origin}: {file} says tokenizer_class={given}, whose rules are not known here (those of "
            f"{', '.join(KINDS)} and {GENERAL[1]} are). Where a {JSON} says all that it does, set tokenizer_class to "
            f"{GENERAL[1]}"
        )
    if name == GENERAL[0] and not opened.json and not alone:
        raise InputError(
            f"{opened.origin}: {file} says tokenizer_class={given or name}, which needs a {JSON}: write one with "
            "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )


def _plain(name: str) -> str:
    if name == GENERAL[1]:
        return GENERAL[0]
    name = name.removesuffix("Fast")
    return _ALIASES.get(name, name)


# Special and added tokens ---------------------------------------------------------------------------------------------


def _merge_special_tokens(opened: Opened) -> tuple[dict[int, AddedToken], list[Any]]:
    """Return the added tokens by their ids, and the further special ones, as PreTrainedTokenizerBase merges them."""
    stated, where = opened.stated, opened.where
    if "additional_special_tokens" in stated and not stated.get("extra_special_tokens"):
        stated["extra_special_tokens"] = stated.pop("additional_special_tokens")
        where["extra_special_tokens"] = CONFIG
    if "added_tokens_decoder" in opened.config:
        decoder = opened.config["added_tokens_decoder"]
        by_id = {int(index): _token(token) for index, token in decoder.items()}
        opened.keys[f"{CONFIG}: added_tokens_decoder"] = [token.content for token in by_id.values()]
        ignored = [name for name in (MAP, ADDED) if name in opened.files]
        if ignored:
            opened.notes.append(f"{' and '.join(ignored)} not read: {CONFIG} has added_tokens_decoder")
    else:
        by_id = _legacy_tokens(opened)
    by_content = {token.content: token for token in by_id.values()}
    for key in [*stated]:
        if isinstance(stated[key], dict) and stated[key].get("__type") == "AddedToken":
            stated[key] = _token(stated[key])
        if key in NAMED and isinstance(stated[key], str | AddedToken):
            stated[key] = by_content.get(content_of(stated[key]), stated[key])
    return by_id, [_token(token) for token in _extra(opened)]


def _legacy_tokens(opened: Opened) -> dict[int, AddedToken]:
    """Merge special_tokens_map.json into `stated`; return the added tokens of added_tokens.json and tokenizer.json.

    They apply where tokenizer_config.json has no `added_tokens_decoder`.
    """
    stated, by_id = opened.stated, {}
    for key, value in _parsed(opened.files, MAP, opened.origin).items():
        if key in stated and _spelling(stated[key]) != _spelling(value):
            opened.notes.append(
                f"{key} is {_spelling(stated[key])!r} in {CONFIG}, {_spelling(value)!r} in {MAP}: the latter holds"
            )
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = AddedToken(**{name: x for name, x in value.items() if name != "special"}, special=True)
        elif key == "extra_special_tokens" and isinstance(value, list):
            value = [*(stated.get(key) or []), *value]
        stated[key], opened.where[key] = value, MAP
    for key in NAMED:
        if not isinstance(stated.get(key), dict):
            opened.token(key, None)  # raises InputError for anything but a string
    named = {content_of(_token(stated[key])) for key in NAMED if stated.get(key)}
    named |= {content_of(_token(token)) for token in stated.get("extra_special_tokens") or []}
    for content, index in _parsed(opened.files, ADDED, opened.origin).items():
        special = content in named
        by_id[int(index)] = AddedToken(content, normalized=not special, special=special)
    if by_id:
        opened.keys[ADDED] = [token.content for token in by_id.values()]
    for token in opened.json.get("added_tokens", ()):
        by_id[token["id"]] = AddedToken(**{key: x for key, x in token.items() if key != "id"})
    return by_id


def _extra(opened: Opened) -> list[Any]:
    extra = opened.stated.get("extra_special_tokens", opened.stated.get("additional_special_tokens")) or []
    return list(extra.values()) if isinstance(extra, dict) else list(extra)


def _token(value: Any) -> Any:
    """Turn the description of a token into one; a string stays a string."""
    if isinstance(value, dict):
        return AddedToken(**{key: x for key, x in value.items() if key != "__type"})
    return value


def _spelling(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelling(each) for each in value]
    return value.get("content") if isinstance(value, dict) else value


def _model_specific(opened: Opened) -> dict[str, Any]:
    """Return tokens that go by names of the model's own (`image_token`), which are special too."""
    return {
        key: value
        for key, value in opened.stated.items()
        if key.endswith("_token") and key not in NAMED and isinstance(value, str | AddedToken)
    }


def _add_tokens(
    rust: Tokenizer, added: Mapping[int, AddedToken], named: Mapping[str, Any], extra: list[Any], opened: Opened
) -> None:
    """Add tokens in the order of PreTrainedTokenizerFast, which decides their ids where the model has none for them."""
    tokens: list[Any] = [added[index] for index in sorted(added)]
    present = {token.content for token in (*rust.get_added_tokens_decoder().values(), *tokens)}
    names = {content_of(value) for value in named.values() if value is not None}
    spelled: dict[str, list[Any]] = {}
    for value in (*(value for value in named.values() if value is not None), *extra):
        alike = spelled.setdefault(content_of(value), [])
        if content_of(value) not in present and value not in alike:  # of one spelling given twice the last holds
            tokens.append(value)
            alike.append(value)
    tokens = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in tokens:
        if not token.special and token.content in names:
            token.special = True
    before = {token.content: index for index, token in rust.get_added_tokens_decoder().items()}
    rust.add_tokens(tokens)
    for index, token in rust.get_added_tokens_decoder().items():
        if token.content not in before and not token.special:
            opened.keys.setdefault("added tokens", []).append(f"{token.content} {index}")
    for index, token in added.items():
        given = rust.token_to_id(token.content)
        if given is not None and given != index:
            opened.notes.append(f"{token.content} has id {index} in its file, and {given} here, as in transformers")

"""Read and write the tokenizer of a Hugging Face folder.

It is written as a self-contained `tokenizer.json`, so that no class of transformers adds rules of its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from bertjax.data.templates import Template, templates_for
from bertjax.data.tokenizer import FastTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from bertjax.data.tokenizer_classes import CONFIG, GENERAL, JSON, NO_SEGMENTS, SEGMENTS
from bertjax.errors import InputError
from bertjax.huggingface.table import Family
from bertjax.huggingface.unigram import differs, tokenizer_json
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.storage.files import read_inside, write

_FILES = (JSON, "vocab.txt", "vocab.json")
_ROLES = ("pad", "unk", "cls", "sep", "mask")


def read_tokenizer(folder: Path, config: Mapping[str, Any], V: int) -> Tokenizer | None:
    """Read the tokenizer, None where the folder has none.

    Raises InputError where it has more ids than the model has rows; fewer are padding of the table; and for links to
    files outside the folder, as for its weights.
    """
    if not any(folder.glob("*.model")) and not any((folder / name).is_file() for name in _FILES):
        return None
    if not any((folder / name).exists() for name in _FILES if name != "vocab.txt"):
        content = read_inside(folder, "vocab.txt", LARGE.bytes) if (folder / "vocab.txt").exists() else b"\n"
        size = content.count(b"\n") + (not content.endswith(b"\n"))
        if size > V + 1:  # before a tokenizer is built of them
            raise InputError(f"{folder}: the tokenizer has {size} ids, vocab_size is only {V}")
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocabulary.size > V:
        raise InputError(f"{folder}: the tokenizer has {tokenizer.vocabulary.size} ids, vocab_size is only {V}")
    return tokenizer


def write_tokenizer(
    tokenizer: Tokenizer, family: Family, folder: Path, *, longest: int | None, segments: bool
) -> list[str]:
    """Write tokenizer.json and tokenizer_config.json, and a SentencePiece model unchanged; return notes to report.

    longest: the tokens that the model has positions for, None where there is no limit. segments: whether the model has
    segment ids as an input.
    """
    notes: list[str] = []
    config = parse_object(tokenizer.files.get(CONFIG, b"{}"), CONFIG)
    if "read_as" in config and JSON in tokenizer.files:
        written, described = config, tokenizer.files[JSON].decode()
    else:
        templates = templates_for(tokenizer, cls_last=family.cls_last)
        written = {f"{role}_token": tokenizer.piece(getattr(tokenizer.vocabulary, role)) for role in _ROLES}
        written |= config | {"read_as": tokenizer.reading.read_as, "tokenizer_class": GENERAL[1]}
        written |= {"model_input_names": [*(SEGMENTS if segments else NO_SEGMENTS)]}
        written |= {"padding_side": "left"} if templates.left else {}
        if isinstance(tokenizer, SentencePieceTokenizer):
            described, reason = _unigram(tokenizer, family)
            model = next(name for name in tokenizer.files if name.endswith(".model"))
            write(folder / "spiece.model", tokenizer.files[model])
            notes += [f"wrote spiece.model, but no {JSON}: {reason}"] if reason else []
        else:
            assert isinstance(tokenizer, FastTokenizer)
            described = _fast(tokenizer, templates.text, templates.pair, segments)
    if longest is not None:
        stated = written.get("model_max_length")
        if not isinstance(stated, int | float) or stated <= 0:  # of whatever type, in a folder of others
            stated = longest
        written["model_max_length"] = min(longest, stated)
    if described:
        write(folder / JSON, described)
    write(folder / CONFIG, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return notes


def _fast(tokenizer: FastTokenizer, text: Template, pair: Template, segments: bool) -> str:
    """Describe a bare vocabulary, with its longest word, its special tokens, and its templates.

    The mask of a vocabulary whose pieces include the space before them takes that space, as in published RoBERTa.
    """
    if JSON in tokenizer.files:
        rust = tokenizers.Tokenizer.from_str(tokenizer.files[JSON].decode())
    else:
        rust = tokenizers.Tokenizer.from_str(tokenizer.library.to_str())
        v = tokenizer.vocabulary
        for index in sorted({*v[1:]}):
            lstrip = index == v.mask and "vocab.json" in tokenizer.files
            rust.add_special_tokens([tokenizers.AddedToken(tokenizer.piece(index), lstrip=lstrip, special=True)])
    if rust.post_processor is None:
        rust.post_processor = _template(tokenizer, text, pair, segments)
    return rust.to_str()


def _template(tokenizer: Tokenizer, text: Template, pair: Template, segments: bool) -> processors.TemplateProcessing:
    v = tokenizer.vocabulary
    names = {"cls": tokenizer.piece(v.cls), "sep": tokenizer.piece(v.sep), "a": "$A", "b": "$B"}
    one, two = (
        " ".join(f"{names[part]}:{segment if segments else 0}" for part, segment in template)
        for template in (text, pair)
    )
    return processors.TemplateProcessing(
        single=one, pair=two, special_tokens=[(names["cls"], v.cls), (names["sep"], v.sep)]
    )


def _unigram(tokenizer: SentencePieceTokenizer, family: Family) -> tuple[str, str]:
    """Describe a SentencePiece model; nothing, and the reason, where transformers would make other ids with it."""
    described = tokenizer_json(tokenizer, cls_last=family.cls_last)
    if described is None:
        return "", "its model is of another kind than unigram"
    text = differs(tokenizer, described)
    return (described, "") if text is None else ("", f"transformers would make other ids of {text!r}")

"""Embed texts: hidden states pooled to one vector each, as the folder of the model says.

A folder of sentence-transformers says how (models/sentence.py); without its modules.json an embedding is the mean of
all tokens, scaled to length 1. Reimers and Gurevych 2019. The special tokens count as tokens of a text.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.trained import Model
from bertjax.data.templates import framed, specials
from bertjax.data.tokenizer import Template, Tokenizer, tokenizer_from_files
from bertjax.data.tokenizer_classes import CONFIG, JSON
from bertjax.errors import InputError
from bertjax.inference.template_of import templates_of
from bertjax.models.layers import apply
from bertjax.models.sentence import SentenceEmbedding, sentence_head
from bertjax.serialization.bounded_json import LARGE, parse_object
from bertjax.texts import several
from bertjax.types import Array, Params
from bertjax.wording import counted

_UNLIMITED = 1 << 31


class _Reader(NamedTuple):
    """How texts become rows. limit: tokens of a row. truncates: whether longer texts are truncated, else refused."""

    tokenizer: Tokenizer
    template: Template
    prompt: str
    limit: int
    truncates: bool
    from_left: bool


def embed(
    model: Model,
    texts: str | Sequence[str],
    *,
    prompt: str | None = None,
    max_length: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> Iterator[np.ndarray]:
    """Yield an embedding f32 [D] for each text, in order.

    prompt: the name of one of the model's prompts, which is put before each text; None for the model's default prompt
    if it has one, "" for none. max_length: truncate texts to this number of tokens, special tokens included; with 0, to
    the length of the folder that the model came from, and where it has none, raises InputError for texts longer than
    the model's position table, as for a max_length beyond it. Batches are padded to their longest text. Truncated and
    blank texts are counted and reported through `say`. Raises InputError if the folder has modules that bertjax does
    not have, and for an unknown prompt.
    """
    notes: Counter[str] = Counter()
    yield from embed_and_count(model, texts, notes, prompt=prompt, max_length=max_length, batch_size=batch_size)
    for note, count in (+notes).items():
        say(counted(count, note))


def embed_and_count(
    model: Model,
    texts: str | Sequence[str],
    notes: Counter[str],
    *,
    prompt: str | None = None,
    max_length: int = 0,
    batch_size: int = 32,
) -> Iterator[np.ndarray]:
    """As `embed`, but count truncated and blank texts in `notes`."""
    if reason := model.config.get("huggingface", {}).get("no_embedding"):
        raise InputError(f"{reason}. The encoder alone can be read: FOLDER:encoder, embedded by the mean of all tokens")
    texts = several(texts)
    head, params = sentence_head(model.objective, model.params)
    reader = _reader(model, head, prompt, max_length)
    skipped = 0 if head.include_prompt or not reader.prompt else _prompt_length(reader)
    for start in range(0, len(texts), batch_size):
        rows = [_row(reader, text, notes) for text in texts[start : start + batch_size]]
        length = min(reader.limit, -(-max(len(ids) for ids, _ in rows) // 32) * 32)  # few lengths, few compilations
        tokens = np.full((len(rows), length), model.text.vocabulary.pad, np.int32)
        mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
        for row, (ids, segments) in enumerate(rows):
            tokens[row, : len(ids)], types[row, : len(ids)], mask[row, : len(ids)] = ids, segments, 1
        batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "types": jnp.asarray(types)}
        yield from np.asarray(_pooled(head, params, model.encode(batch), batch["mask"], skipped))


def checking_lengths(model: Model, prompt: str | None, max_length: int) -> Callable[[str], None]:
    """Return a function that raises InputError for a text that `embed` refuses, as this does for a model."""
    head, _ = sentence_head(model.objective, model.params)
    reader = _reader(model, head, prompt, max_length)

    def check(text: str) -> None:
        if not reader.truncates:
            _row(reader, text, Counter())

    return check


@partial(jax.jit, static_argnums=0)
def _pooled(head: SentenceEmbedding, params: Params, x_BLD: Array, mask_BL: Array, skipped: int) -> Array:
    return apply(head, params, x_BLD, mask_BL, skipped)


def _reader(model: Model, head: SentenceEmbedding, prompt: str | None, max_length: int) -> _Reader:
    positions = model.encoder.max_length or _UNLIMITED
    if max_length > positions:
        raise InputError(f"max_length={max_length}, but the model has {positions} positions: reduce it")
    limit = min(max_length or head.max_length or _UNLIMITED, positions)
    template = templates_of(model).text
    if limit < specials(template):
        raise InputError(
            f"{counted(limit, 'tokens')}: a text has {specials(template)} special ones alone, so allow more"
        )
    tokenizer = _lowercased(model.text) if head.lowercase else model.text
    config = parse_object(model.text.files.get(CONFIG, b"{}"), CONFIG)
    truncates, from_left = bool(max_length or head.max_length), config.get("truncation_side") == "left"
    return _Reader(tokenizer, template, _prompt(head, prompt), limit, truncates, from_left)


def _prompt(head: SentenceEmbedding, name: str | None) -> str:
    """Return the text of a prompt."""
    prompts = dict(head.prompts)
    name = head.default_prompt if name is None else name
    if name and name not in prompts:
        known = f"its prompts are {', '.join(map(repr, prompts))}" if prompts else "it has none"
        raise InputError(f"the model has no prompt {name!r}: {known}")
    return prompts[name] if name else ""


def _prompt_length(reader: _Reader) -> int:
    """Count the tokens of the prompt as sentence-transformers does: encoded as a text, without the last special one."""
    tokens, _ = _row(reader._replace(prompt=""), reader.prompt, Counter())
    return len(tokens) - (reader.template[-1][0] in ("cls", "sep"))


def _row(reader: _Reader, text: str, notes: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encode a text with its prompt and special tokens: ids and segments."""
    (ids,) = reader.tokenizer.ids([reader.prompt + text])
    around = specials(reader.template)
    room = reader.limit - around
    if len(ids) > room and not reader.truncates:
        raise InputError(
            f"{len(ids) + around} tokens exceed the {reader.limit} positions of the model: truncate with "
            f"--max-length {reader.limit}, or shorten {text[:60]!r}…"
        )
    notes[f"texts truncated to {reader.limit} tokens"] += len(ids) > room
    notes["blank texts, embedded by their special tokens alone"] += not ids
    kept = ids[len(ids) - room :] if reader.from_left and len(ids) > room else ids[:room]
    row = framed(reader.template, reader.tokenizer.vocabulary, kept)
    return row.tokens, row.types


def _lowercased(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that lower-cases texts first, as the library does: letter by letter, but added tokens."""
    files = dict(tokenizer.files)
    if JSON in files:
        described = parse_object(files[JSON], JSON, LARGE)
        given = described.get("normalizer")
        others = given["normalizers"] if given and given["type"] == "Sequence" else [given] if given else []
        if not any(each["type"] == "Lowercase" for each in others):
            described["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *others]}
        files[JSON] = json.dumps(described).encode()
    else:
        config = parse_object(files.get(CONFIG, b"{}"), CONFIG) | {"do_lower_case": True}
        files[CONFIG] = json.dumps(config).encode()
    return tokenizer_from_files(files, origin="the tokenizer")

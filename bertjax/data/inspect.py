"""Statistics of a corpus: its size, the fit of its tokenizer, and a sample of its text."""

from pathlib import Path
from typing import Any

from bertjax.data.records import DOCUMENT, TokenReader, corpus_tokenizer, read_manifest, shard_name
from bertjax.errors import InputError
from bertjax.storage.paths import path_of


def inspect_corpus(folder: str | Path, *, sample_tokens: int = 120) -> dict[str, Any]:
    """Return counts, unknown rate, fertility (tokens per word), and the decoded beginning of a document."""
    manifest = read_manifest(folder)
    if not manifest.total("tokens") or not manifest.total("sentences"):
        raise InputError(f"corpus {folder} holds no text: build it again")
    tokenizer = corpus_tokenizer(folder)
    split = next(iter(sorted(name for name, shards in manifest.splits.items() if shards)))
    shards = manifest.splits[split]
    reader = TokenReader(path_of(folder) / shard_name(split, 0, len(shards)), manifest.dtype)
    tokens, flags = reader.read(0, min(shards[0].tokens, 64 * sample_tokens))
    begins = [int(i) for i in (flags & DOCUMENT).nonzero()[0]]
    start = begins[len(begins) // 2] if begins else 0
    total = manifest.total("tokens")
    return {
        "documents": manifest.total("documents"),
        "sentences": manifest.total("sentences"),
        "tokens": total,
        "tokens_by_split": {name: sum(shard.tokens for shard in found) for name, found in manifest.splits.items()},
        "shards": sum(len(found) for found in manifest.splits.values()),
        "vocabulary": manifest.vocabulary.size,
        "unknown_rate": manifest.unknown / total,
        "fertility": total / max(1, manifest.words),
        "tokens_per_sentence": total / manifest.total("sentences"),
        "dropped": manifest.dropped,
        "repeats": manifest.repeats,
        "held_out": manifest.split_key,
        "tokenizer": manifest.tokenizer,
        "sample": tokenizer.decode(tokens[start : start + sample_tokens].tolist()),
    }

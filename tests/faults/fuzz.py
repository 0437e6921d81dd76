"""Give readers of what others made random and changed content: they answer or raise InputError, soon: `make fuzz`.

    python tests/faults/fuzz.py [--seconds 1800] [--seed 0] [TARGET …]

Hypothesis draws honest content with a few changes, of JSON at its nodes, else of bytes, and random bytes and texts.
What fails is shrunk, printed and kept in the folder that is named at the end. A failure is an exception of another
kind, over two seconds of processor time, or over 300 MB of memory. Counts are added up in fuzz.json beside this file,
from which docs/reliability.md is written.
"""

import argparse
import copy
import gzip
import json
import lzma
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from security.tokenizer_folders import model_of, sentencepiece_model, tokenizer_json
from security.weights import file_of
from texts import make_documents, wordpiece_files

from bertjax.checkpoints.info import checked_info
from bertjax.config import load_experiment
from bertjax.data import corpus
from bertjax.data.build import BuildSettings, build
from bertjax.data.records import CHUNK, TokenReader, decode_record, encode_record, read_manifest
from bertjax.data.source import Corpus
from bertjax.data.tokenizer import load_tokenizer, tokenizer_from_files
from bertjax.errors import InputError
from bertjax.huggingface.configuration import (
    all_heads,
    family_of,
    label_notes,
    make_encoder,
    make_head,
    problem_type_of,
)
from bertjax.huggingface.folder import FLOATS, find_tensors, read_tensor
from bertjax.run.mended import mended
from bertjax.serialization.bounded_json import parse, parse_object
from bertjax.serialization.description import from_json, to_json, up_to_date
from bertjax.tasks import choices, formats, squad
from bertjax.tasks.reading import Notes

RESULTS = Path(__file__).with_name("fuzz.json")
REPOSITORY = Path(__file__).parents[2]
SECONDS, MEGABYTES = 2.0, 300

ODD = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf"), "", "a", "[UNK]",
    "../x", "/etc/passwd", "\x1b[2J", "\ud800", "\0", "é", "\u2028", "١", "a" * 3000,
    [], [[]], [1], ["a", "b"], {}, {"type": "x"}, {"a": None}, "bertjax.config.load_experiment",
)  # fmt: skip
WORDS = (b"\r\n", b"\n", b"\r", b"\t", b'"', b",", b"\xef\xbb\xbf", b"\xff", b"\0", b"\xed\xa0\x80", b"\xc2\x85", b"{",
         b"}", b"[", b"]", b"=", b"..", b"-1", b"9" * 40, b"nan", b"1e999", b"\\ud800", b"<doc", b"</doc>", b"```",
         b"\xe2\x80\xa8", b"\x1b[2J")  # fmt: skip


def changed(value: Any, rng: random.Random) -> Any:
    """Return JSON with a few random changes at random places."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        holder, places = value, []
        while isinstance(holder, dict | list) and holder:
            key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
            places.append((holder, key))
            holder = holder[key]
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        act = rng.random()
        if act < 0.15:
            del holder[key]
        elif act < 0.3 and isinstance(holder, dict):
            holder[str(rng.choice(ODD))] = holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, left out, repeated or added."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        found = found or bytearray(b"\0")
        place, act = rng.randrange(len(found)), rng.random()
        if act < 0.4:
            found[place] = rng.randrange(256)
        elif act < 0.6:
            del found[place : place + rng.randint(1, 9)]
        elif act < 0.75:
            found[place:place] = found[place : place + rng.randint(1, 9)]
        else:
            found[place:place] = rng.choice(WORDS)
    return bytes(found)


@dataclass(frozen=True)
class Target:
    """A reader, with honest content, of which JSON is changed at its nodes.

    read(content, folder): what is tried; folder: an empty one, the same each time. errors: what may be raised. wrap:
    makes a file of the JSON that was changed.
    """

    read: Callable[[bytes, Path], object]
    seeds: tuple[Any, ...]
    errors: tuple[type[Exception], ...] = (InputError,)
    wrap: Callable[[bytes], bytes] = field(default=lambda content: content)

    def changed(self, rng: random.Random) -> bytes:
        """Return honest content with random changes."""
        honest = rng.choice(self.seeds)
        if isinstance(honest, bytes):
            return flipped(honest, rng)
        text = json.dumps(changed(honest, rng), ensure_ascii=rng.random() < 0.9)
        content = self.wrap(text.encode(errors="surrogatepass" if rng.random() < 0.5 else "replace"))
        return flipped(content, rng) if rng.random() < 0.2 else content


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def reading(content: bytes, folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return reading


def _all(read: Callable[..., Iterator[object]], *more: Any) -> Callable[[Path], object]:
    return lambda path: list(read(path, *more))


def _example(form: Any) -> Callable[[Path], object]:
    return lambda path: list(form.read(path, Notes()))


_SUFFIX = {0x1F: ".gz", 0x28: ".zst", 0xFD: ".xz", 0x42: ".bz2"}


def _compressed(content: bytes, folder: Path) -> object:
    return _file("a" + _SUFFIX.get(content[0] if content else 0, ".zst"), _all(corpus.plain))(content, folder)


def _weights(path: Path) -> None:
    for tensor in find_tensors(path.parent).values():
        if tensor.dtype in FLOATS:
            read_tensor(tensor)


def _tokenizer(name: str, *beside: tuple[str, bytes]) -> Callable[[bytes, Path], object]:
    def reading(content: bytes, folder: Path) -> object:
        for other, honest in beside:
            (folder / other).write_bytes(honest)
        (folder / name).write_bytes(content)
        tokenizer = load_tokenizer(folder)
        return tokenizer.ids(["good time of [MASK]", ""])

    return reading


def _published(content: bytes, folder: Path) -> None:
    config = parse_object(content, "config.json")
    family = family_of(config, folder)
    for head in all_heads(family, config):
        make_head(head, make_encoder(family, config, folder, (head,)), config, folder)
    problem_type_of(config)
    label_notes(config, family.heads)


def _shard(path: Path) -> None:
    reader = TokenReader(path, np.uint16)
    reader.read(0, 100)
    reader.read(CHUNK * (reader.records - 1), 1)


def _described(content: bytes, folder: Path) -> object:
    return from_json(up_to_date(parse(content, "it")))


TEXT = b'The first line.\nAnother, of two.\n\n<doc id="1" title="a">\nText.\n</doc>\n# Title\n\n```\ncode\n```\n'
LINES = b'{"text": "one"}\n{"text": "two \\u00e9", "n": 1}\n'
TABLE = b'text\tother\tlabel\ngood\tday\tyes\n"bad"\tnight\tno\n'
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADER = {"a": ENTRY, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}, "__metadata__": {"format": "pt"}}
QUESTIONS = {
    "version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "In 1999 it was so.", "qas": [
        {"id": "1", "question": "When?", "answers": [{"text": "1999", "answer_start": 3}], "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True}]}]}],
}  # fmt: skip
SETTINGS = {
    "tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]", "model_max_length": 512,
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True, "lstrip": False}},
    "extra_special_tokens": ["[X]"], "auto_map": {"AutoTokenizer": ["x.T", None]}, "padding_side": "right",
}  # fmt: skip
ADDED = {"id": 5, "content": "a", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}  # fmt: skip
CONFIG = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 20, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16,
    "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "initializer_range": 0.02, "id2label": {"0": "bad", "1": "good"}, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = (
    CONFIG,
    CONFIG | {"model_type": "roberta"},
    CONFIG | {"model_type": "albert", "embedding_size": 8, "num_hidden_groups": 1, "inner_group_num": 1},
    CONFIG | {"model_type": "electra", "embedding_size": 8},
    CONFIG | {
        "model_type": "deberta-v2", "type_vocab_size": 0, "relative_attention": True, "position_buckets": 4,
        "max_relative_positions": -1, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        "share_att_key": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "conv_act": "tanh",
    },
    {
        "model_type": "distilbert", "vocab_size": 20, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12,
        "max_position_embeddings": 16, "dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu",
        "initializer_range": 0.02, "sinusoidal_pos_embds": False,
    },
    {
        "model_type": "xlnet", "vocab_size": 20, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 12,
        "ff_activation": "gelu", "untie_r": True, "attn_type": "bi", "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "dropout": 0.1, "d_head": 4, "clamp_len": -1, "same_length": False,
    },
    {
        "model_type": "modernbert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16, "hidden_activation": "gelu",
        "initializer_range": 0.02, "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "global_attn_every_n_layers": 1,
        "local_attention": 4, "global_rope_theta": 1e4, "local_rope_theta": 1e4, "pad_token_id": 0,
        "layer_types": ["full_attention", "sliding_attention"], "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
)  # fmt: skip
OVERRIDES = (
    b"seed=3", b"objective.encoder.D=8\nobjective.encoder.H=2", b"phases.0.batch_size=8\nsteps=3", b"run.profile=1,2",
    b"optimizer.learning_rate.peak=1e-3", b"mesh=data:1", b"amend=optimizer.learning_rate.peak:5e-5@37", b"length=16",
    b"run.platform=cpu\nrun.keep=3\ninit=", b"mesh.fsdp=2",
)  # fmt: skip


def targets(home: Path) -> dict[str, Target]:
    """Return all targets by name; home: for a small corpus, which some of them need."""
    tokenizer = tokenizer_from_files(wordpiece_files(), origin="the test vocabulary")
    made = home / "corpus"
    build(make_documents(30), tokenizer, made, BuildSettings(corpus.split_sentences, holdout=0.1, shard_tokens=4000))
    shard = next(made.glob("corpus-train.array_record-*")).read_bytes()
    index = next(made.glob("corpus-train-*.sentences.npy"))
    manifest = json.loads((made / "manifest.json").read_text())
    experiment = load_experiment(REPOSITORY / "experiments/smoke.py", [f"data={made}"])
    info = {"experiment": to_json(experiment), "tokenizer": {"vocab.txt": "YQ=="}, "fingerprint": "a", "step": 3,
            "checksums": {"params": {"a": "00000000"}}, "versions": {"jax": "0.1"}, "skips": {"total": 1}}  # fmt: skip
    vocabulary = wordpiece_files()["vocab.txt"]
    bert = ("config.json", b'{"model_type": "bert"}')

    def overrides(content: bytes, folder: Path) -> object:
        given_ = [
            line for line in content.decode(errors="replace").split("\n") if not line.startswith(("data", "init"))
        ]
        return load_experiment(REPOSITORY / "experiments/smoke.py", [f"data={made}", *given_])

    def of_corpus(content: bytes, folder: Path) -> object:
        content_before = index.read_bytes()
        index.write_bytes(content)
        try:
            return Corpus(str(made), "train")
        finally:
            index.write_bytes(content_before)

    texts = {
        "plain": corpus.plain, "sentences": corpus.sentences, "wikiextractor": corpus.wikiextractor,
        "markdown": corpus.markdown, "jsonl": corpus.json_lines("text"),
    }  # fmt: skip
    return {
        **{f"text-{name}": Target(_file("a.txt", _all(read)), (TEXT, LINES)) for name, read in texts.items()},
        "text-compressed": Target(
            _compressed, (gzip.compress(TEXT), zstandard.compress(TEXT), lzma.compress(TEXT), b"BZh9")
        ),
        "table": Target(_file("a.tsv", _example(formats.Table(("text", "other"), "label"))), (TABLE,)),
        "table-quoted": Target(
            _file("a.csv", _example(formats.Table(("text",), "label", delimiter=",", quoted=True))),
            (TABLE.replace(b"\t", b","),),
        ),
        "conll": Target(_file("a.txt", _example(formats.Conll())), (b"EU B-ORG\nis O\n\nnot O\n-DOCSTART- O\n",)),
        "squad": Target(_file("a.json", _example(formats.Squad(unanswerable=True))), (QUESTIONS,)),
        "squad-gold": Target(_file("a.json", squad.read_gold), (QUESTIONS,)),
        "squad-answers": Target(_file("a.json", squad.read_answers), ({"1": "1999", "2": ""},)),
        "race": Target(
            _file("a.txt", _example(choices.Race())),
            ({"article": "It is.", "questions": ["Is it _ ?"], "options": [["a", "b", "c", "d"]], "answers": ["A"]},),
        ),
        "arc": Target(
            _file("a.jsonl", _example(choices.Arc())),
            ({"id": "1", "question": {"stem": "Why?", "choices": [{"text": "a", "label": "A"},
              {"text": "b", "label": "B"}]}, "answerKey": "A"},),
        ),
        "record": Target(
            lambda content, folder: decode_record(content),
            (encode_record(np.arange(100, dtype=np.uint16), np.zeros(100, np.uint8)),),
            (ValueError,),
        ),
        "shard": Target(_file("a", _shard), (shard,)),
        "index": Target(of_corpus, (index.read_bytes(),)),
        "manifest": Target(_file("manifest.json", lambda path: read_manifest(path.parent)), (manifest,)),
        "overrides": Target(overrides, OVERRIDES),
        "weights": Target(
            _file("model.safetensors", _weights), (HEADER,), wrap=lambda content: file_of(content, bytes(32))
        ),
        "weights-index": Target(
            _file("model.safetensors.index.json", _weights),
            ({"metadata": {"total_size": 3}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}},),
        ),
        "tokenizer-json": Target(
            lambda content, folder: tokenizer_from_files({"tokenizer.json": content}, origin="the folder").ids(["a b"]),
            tuple(tokenizer_json(model=model_of(kind)) | {"added_tokens": [ADDED]}
                  for kind in ("WordPiece", "WordLevel", "BPE", "Unigram")),
        ),
        "tokenizer-vocabulary": Target(_tokenizer("vocab.txt", bert), (vocabulary,)),
        "tokenizer-settings": Target(_tokenizer("tokenizer_config.json", bert, ("vocab.txt", vocabulary)), (SETTINGS,)),
        "tokenizer-sentencepiece": Target(
            lambda content, folder: tokenizer_from_files({"spiece.model": content}, origin="the folder").ids(["a b"]),
            (sentencepiece_model(),),
        ),
        "config": Target(_published, CONFIGS),
        "description": Target(_described, (to_json(experiment),)),
        "info": Target(lambda content, folder: checked_info(parse(content, "it"), folder), (info,)),
        "log": Target(
            lambda content, folder: list(mended(content.split(b"\n"), 20, 5)),
            (b'{"step": 5, "loss": 1.5}\n{"step": 10, "loss": NaN}\n{"step": 20, "lost": "x"}\n',),
        ),
        "json": Target(lambda content, folder: parse(content, "it"), (QUESTIONS, CONFIG)),
    }  # fmt: skip


class Failure(Exception):
    """A reader that neither answered nor refused; `where` tells failures apart."""

    def __init__(self, where: str, text: str) -> None:
        super().__init__(text)
        self.where = where


def tried(target: Target, content: bytes, folder: Path) -> None:
    """Give content to a reader. Raises Failure where it neither answers nor refuses, or is slow or large."""
    begun, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(content, folder)
    except target.errors as error:
        if not str(error):
            raise Failure("silent", "an error without a message") from error
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "/bertjax/" in each.filename]
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        raise Failure(f"{type(error).__name__} at {place}", traceback.format_exc()) from error
    spent, grown = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if spent > SECONDS:
        raise Failure("slow", f"{spent:.1f} s")
    if grown > MEGABYTES * 1024:
        raise Failure("large", f"{grown // 1024} MB")


def fuzz(
    target: Target, folder: Path, seed: int, executions: int, known: Container[str] = ()
) -> dict[str, tuple[bytes, str]]:
    """Try so much content, and return what failed, shrunk, but for known failures: where -> (content, traceback)."""
    found: dict[str, tuple[bytes, str]] = {}
    drawn = st.one_of(
        *[st.randoms(use_true_random=False).map(target.changed)] * 4,
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")),
    )

    @seeded(seed)
    @settings(
        max_examples=executions, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(drawn)
    def once(content: bytes) -> None:
        try:
            tried(target, content, folder)
        except Failure as failure:
            if failure.where not in found and failure.where not in known:
                latest[failure.where] = (content, str(failure))  # the last one is the smallest
                raise

    while True:
        latest: dict[str, tuple[bytes, str]] = {}
        try:
            once()
        except Exception:
            if not latest:
                raise
            found |= latest
            continue
        return found


def section() -> list[str]:
    """Return the lines of docs/reliability.md about fuzzing."""
    if not RESULTS.exists():
        return []
    results = json.loads(RESULTS.read_text())
    counts = results["executions"]
    lines = [
        "",
        "## Fuzzing",
        "",
        "`make fuzz` (tests/faults/fuzz.py) gives random and changed content to what reads the files of others:",
        f"{len(counts)} readers of texts, tasks, records, weights, tokenizers, configs, descriptions, logs, overrides.",
        "Allowed are a value and an error that names the mistake, within two seconds and 300 MB. So far",
        f"{sum(counts.values()):,} executions, {results['seconds'] / 60:.0f} minutes, which found, each mended now:",
        "",
    ]
    return lines + [f"- {each}" for each in results["mended"]]


def main() -> None:
    """Fuzz targets in turn until the time is over, and add the counts to fuzz.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="names (default: all)")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    known = targets(home)
    chosen = {name: known[name] for name in options.targets or known}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"seconds": 0, "executions": {}, "mended": []}
    begun, seed, known_failures = time.monotonic(), options.seed, set[str]()
    while time.monotonic() - begun < options.seconds:
        for name, target in chosen.items():
            seed += 1
            round_begun = time.monotonic()
            (home / name).mkdir(exist_ok=True)
            for where, (content, text) in fuzz(target, home / name, seed, ROUND, known_failures).items():
                known_failures.add(where)
                kept = home / f"{name}-{seed}-{len(list(home.iterdir()))}"
                kept.write_bytes(content)
                print(f"{name}: {where}, kept as {kept}\n{text}", flush=True)
            results["executions"][name] = results["executions"].get(name, 0) + ROUND
            results["seconds"] += time.monotonic() - round_begun
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            if time.monotonic() - begun > options.seconds:
                break
    print(f"{sum(results['executions'].values()):,} executions so far; finds in {home}")


ROUND = 500

if __name__ == "__main__":
    main()

"""Files that are small, or quickly made, and ask for gigabytes or hours: what it costs to refuse each.

`python -P tests/security/bombs.py` prints a table of seconds and of memory, each in a process of its own.
"""

import gzip
import json
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import zstandard

from bertjax.data import corpus
from bertjax.data.tokenizer import load_tokenizer
from bertjax.errors import InputError
from bertjax.huggingface.folder import find_tensors, read_config
from bertjax.tasks.choices import Copa
from bertjax.tasks.formats import Conll, JsonLines, Squad, Table
from bertjax.tasks.squad import read_answers

SECONDS, MEGABYTES = 1.0, 100


def reads(reader):
    """Read documents up to the first that is refused, as `data build` does."""

    def refused(path):
        for document in reader(path, corpus.LONGEST_LINE):
            if isinstance(document, corpus.Bad):
                raise InputError(document.reason)

    return refused


def examples(form):
    def refused(path):
        for _ in form.read(path, Counter()):
            pass

    return refused


def gzip_zeros():
    """Return 1 GiB of zeros, in a few members so that it is made quickly."""
    return gzip.compress(bytes(2**24)) * 2**6


def zstd_zeros():
    return zstandard.ZstdCompressor(level=3).compress(bytes(2**24)) * 2**6


def zstd_of_repeats():
    """Make a frame of blocks of one byte each that is repeated 128 Ki times, 8 GiB in all."""
    block = struct.pack("<I", (2**17 << 3) | (1 << 1))[:3] + b"a"
    header = b"\x28\xb5\x2f\xfd" + bytes([0b0000_0000, (13 << 3)])  # no size, a window of 8 MiB
    return header + block * 2**16


def zstd_with_a_window(log):
    return b"\x28\xb5\x2f\xfd" + bytes([0, (log - 10) << 3]) + bytes([0, 0, 0]) * 10


def weights(header):
    return struct.pack("<Q", len(header)) + header


def entry(shape, begin=0, end=0):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def sparse(size, content=b""):
    """Return a writer of a file of this size that takes no room."""

    def write(path):
        with path.open("wb") as file:
            file.write(content)
            file.truncate(size)

    return write


def tokenizer(**changes):
    vocab = {piece: index for index, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    described = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": None, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}}  # fmt: skip
    return json.dumps(described | changes).encode()


def steps(step, number):
    return {"type": "Sequence", "normalizers": [step] * number, "decoders": [step] * number}


REPLACE = {"type": "Replace", "pattern": {"String": "a"}}
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
DEEP = b"[" * 5_000_000
TABLE, CSV = Table(("text",), "label"), Table(("text",), "label", delimiter=",", quoted=True)
LINES = JsonLines(("text",), "label")
NAME = "column" * 10

# name: (file, its content or a writer, what reads it)
BOMBS: dict[str, tuple[str, bytes | Callable[[], bytes] | Callable[[Path], None], Callable[[Path], object]]] = {
    "zstd: 1 GiB of zeros": ("a.zst", zstd_zeros, reads(corpus.plain)),
    "zstd: 8 GiB of one letter": ("a.zst", zstd_of_repeats, reads(corpus.plain)),
    "zstd: a window of 2 GiB": ("a.zst", lambda: zstd_with_a_window(31), reads(corpus.plain)),
    "zstd: a million empty frames": (
        "a.zst", lambda: zstandard.ZstdCompressor().compress(b"") * 10**6, reads(corpus.sentences)),
    "gzip: 1 GiB of zeros": ("a.gz", gzip_zeros, reads(corpus.plain)),
    "gzip: a million empty members": ("a.gz", lambda: gzip.compress(b"") * 10**6, reads(corpus.sentences)),
    "gzip: 300 MB of equal lines": (
        "a.gz", lambda: gzip.compress(b"a line\n" * 430_000) * 100, reads(corpus.sentences)),
    "a line of 2 GiB": ("a.txt", sparse(2**31, b"a" * 100), reads(corpus.plain)),
    "JSON lines: brackets": ("a.jsonl", DEEP, reads(corpus.json_lines("text"))),
    "JSON lines: a line of 2 GiB": ("a.jsonl", sparse(2**31, b'{"text": "'), reads(corpus.json_lines("text"))),
    "JSON lines: a text of line ends": (
        "a.jsonl", b'{"text": "a\\u0000' + b"\\n" * 10_000_000 + b'"}', reads(corpus.json_lines("text"))),
    "JSON lines: a number of 5 million digits": (
        "a.jsonl", b'{"text": ' + b"1" * 5_000_000 + b"}", reads(corpus.json_lines("text"))),
    "labelled data: a gzip line of 1 GiB": ("train.tsv.gz", gzip_zeros, examples(TABLE)),
    "labelled data: a zstd line of 1 GiB": ("train.jsonl.zst", zstd_zeros, examples(LINES)),
    "labelled data: a line of 2 GiB": ("train.tsv", sparse(2**31, b"text\tlabel\n"), examples(TABLE)),
    "a header whose last name repeats": (
        "train.tsv", "\t".join([*map(str, range(90_000)), "x", "x"]).encode(), examples(TABLE)),
    "a header of a million long names": ("train.tsv", "\t".join([NAME] * 200_000).encode(), examples(TABLE)),
    "a header of 90,000 columns": ("train.tsv", "\t".join(map(str, range(90_000))).encode(), examples(TABLE)),
    "a row of 10 million cells": ("train.csv", b"text,label\n" + b"," * 10_000_000, examples(CSV)),
    "a quote that is never closed": ("train.csv", b'text,label\n"' + b"a\n" * 5_000_000, examples(CSV)),
    "JSON lines: objects in objects": ("train.jsonl", b'{"a":' * 3_000_000, examples(LINES)),
    "JSON lines: a million keys": (
        "train.jsonl", json.dumps({str(n): 0 for n in range(1_000_000)}).encode(), examples(LINES)),
    "CoNLL: a word of 2 GiB": ("train.conll", sparse(2**31, b"word "), examples(Conll())),
    "SQuAD: a file of 2 GiB": ("dev.json", sparse(2**31, b'{"data": ['), examples(Squad(True))),
    "SQuAD: brackets": ("dev.json", b'{"data": ' + DEEP, examples(Squad(True))),
    "SQuAD: answers of 2 GiB": ("answers.json", sparse(2**31, b"{"), read_answers),
    "COPA: entities of entities": (
        "copa.xml", f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><x>&l11;</x>'.encode(), examples(Copa())),
    "weights: a header of 230,000 names": (
        "model.safetensors",
        lambda: weights(json.dumps({f"encoder.layer.{n}": entry([0]) for n in range(230_000)}).encode()),
        lambda path: find_tensors(path.parent)),
    "weights: a header of 40,000 names": (
        "model.safetensors",
        lambda: weights(json.dumps({f"encoder.layer.{n}": entry([0]) for n in range(40_000)}).encode()),
        lambda path: find_tensors(path.parent)),
    "weights: a name of 3 MB twice": (
        "model.safetensors", lambda: weights(b'{"%s": 1, "%s": 1}' % (b"a" * 1_500_000, b"a" * 1_500_000)),
        lambda path: find_tensors(path.parent)),
    "weights: a shape of 30,000 axes": (
        "model.safetensors", lambda: weights(json.dumps({"a": entry([10**90] * 30_000)}).encode()),
        lambda path: find_tensors(path.parent)),
    "weights: an index of 2 GiB": (
        "model.safetensors.index.json", sparse(2**31, b"{"), lambda path: find_tensors(path.parent)),
    "config.json: brackets": ("config.json", DEEP, lambda path: read_config(path.parent)),
    "config.json: 2 GiB": ("config.json", sparse(2**31, b"{"), lambda path: read_config(path.parent)),
    "tokenizer.json: forty doubled letters": (
        "tokenizer.json", lambda: tokenizer(normalizer=steps({**REPLACE, "content": "aa"}, 40)), load_tokenizer),
    "tokenizer.json: a megabyte before each text": (
        "tokenizer.json", lambda: tokenizer(normalizer={"type": "Prepend", "prepend": "a" * 2**20}), load_tokenizer),
    "tokenizer.json: a megabyte for each letter": (
        "tokenizer.json", lambda: tokenizer(decoder=steps({**REPLACE, "content": "a" * 2**20}, 1)), load_tokenizer),
    "vocab.txt of 4 million pieces": (
        "vocab.txt", lambda: "\n".join(map(str, range(4_000_000))).encode(), load_tokenizer),
    "vocab.txt whose last piece repeats": (
        "vocab.txt", lambda: "\n".join([*map(str, range(500_000)), "x", "x"]).encode(), load_tokenizer),
    "vocab.txt of 2 GiB": ("vocab.txt", sparse(2**31, b"[PAD]\n"), load_tokenizer),
    "tokenizer.json: brackets": ("tokenizer.json", b'{"model": ' + DEEP, load_tokenizer),
    "tokenizer.json of 2 GiB": ("tokenizer.json", sparse(2**31, b"{"), load_tokenizer),
}  # fmt: skip


def cost(name: str, folder: Path) -> tuple[float, float, str]:
    """Return seconds, megabytes and the message of a refusal; the message begins with "!" where nothing is refused."""
    file, content, read = BOMBS[name]
    path = folder / file
    maker = os.fork()  # what it takes to make the file is not memory that reading it finds free
    if not maker:
        made = content(path) if callable(content) and content.__name__ == "write" else content
        if made is not None:
            path.write_bytes(made() if callable(made) else made)
        os._exit(0)
    os.waitpid(maker, 0)
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            before, begun = resident("VmRSS"), time.perf_counter()
            try:
                read(path)
                message = "! it is read"
            except InputError as error:
                message = str(error)
            except BaseException as error:  # noqa: BLE001
                message = f"! {type(error).__name__}: {error}"
            seconds = time.perf_counter() - begun
            found = [seconds, (resident("VmHWM") - before) / 1e6, message[:300]]
            os.write(send, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    path.unlink()
    return tuple(json.loads(answer)) if answer else (0.0, 0.0, "! the process ended")


def resident(what: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{what}:")[1].split()[0])


def table() -> dict[str, tuple[float, float, str]]:
    with tempfile.TemporaryDirectory() as folder:
        return {name: cost(name, Path(folder)) for name in BOMBS}


if __name__ == "__main__":
    found = table()
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        print("| file | seconds | MB | refused by |\n|---|---:|---:|---|")
        for name, (seconds, megabytes, message) in found.items():
            reason = message.replace(tempfile.gettempdir(), "").replace("|", "/")
            print(f"| {name} | {seconds:.2f} | {megabytes:.0f} | {reason[-100:]} |")

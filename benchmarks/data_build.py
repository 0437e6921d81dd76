"""Time `bertjax data build` beside the `tokenizers` library alone, on the same text.

    python benchmarks/data_build.py wiki/ --format wikiextractor --tokenizer vocab.txt

Ours is the whole command: reading, sentences, tokenisation in processes, shards, hashes, manifest. Theirs is only
`encode_batch_fast` on the same lines, already in memory, with as many threads as cores. They take turns on the whole
text. Printed: tokens per second and core of each, the ratio pair by pair with its spread, and the peak memory of the
build, all processes together, on a sixth of the files and on all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tokenizers

from bertjax.data.corpus import find_files
from bertjax.data.tokenizer import FastTokenizer, load_tokenizer


def build(files: list[Path], options: argparse.Namespace) -> tuple[int, float, int]:
    """Run the command on `files`: tokens, seconds, peak bytes of all its processes together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bertjax", "data", "build", *map(str, files), "--format", options.format]
        command += ["--tokenizer", options.tokenizer, "--out", f"{folder}/corpus", "--json"]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        out, _ = process.communicate()
        seconds = time.perf_counter() - begun
        watcher.join()
        return json.loads(out)["tokens"], seconds, peak[0]


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_resident(pid) for pid in _family(process.pid)))
        time.sleep(0.05)


def _family(pid: int) -> list[int]:
    """List a process and those it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _family(int(child)))]


def _resident(pid: int) -> int:
    """Return the memory of a process in bytes, pages that it shares with others counted in part (Linux only)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def alone(lines: list[str], tokenizer: tokenizers.Tokenizer) -> tuple[int, float]:
    """Encode the lines with the library: tokens, seconds."""
    begun = time.perf_counter()
    tokens = 0
    for start in range(0, len(lines), 1000):
        encoded = tokenizer.encode_batch_fast(lines[start : start + 1000], add_special_tokens=False)
        tokens += sum(len(each.ids) for each in encoded)
    return tokens, time.perf_counter() - begun


def main() -> None:
    """Let both take turns and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", nargs="+")
    parser.add_argument("--format", default="wikiextractor")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    files, cores = find_files(options.input), os.cpu_count() or 1
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    ours_tokenizer = load_tokenizer(options.tokenizer)
    assert isinstance(ours_tokenizer, FastTokenizer)
    ours, theirs, peaks = [], [], []
    for _ in range(options.repeats):
        tokens, seconds, peak = build(files, options)
        ours.append(tokens / seconds / cores)
        peaks.append(peak)
        tokens, seconds = alone(lines, ours_tokenizer.library)
        theirs.append(tokens / seconds / cores)
    ratios = np.array(ours) / np.array(theirs)
    size = sum(file.stat().st_size for file in files)
    part = files[: max(1, len(files) // 6)]
    small = [build(part, options)[2] for _ in range(3)]
    part_size = sum(file.stat().st_size for file in part)
    print(f"data build:       {np.median(ours):,.0f} tokens/s and core")
    print(f"tokenizers alone: {np.median(theirs):,.0f} tokens/s and core")
    print(f"ratio: {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
    for name, amount, found in (("a sixth", part_size, small), ("all", size, peaks)):
        print(f"peak memory on {name} ({amount / 1e6:.0f} MB): {np.median(found) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()

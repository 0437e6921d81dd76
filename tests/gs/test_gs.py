"""Corpora, runs and models in Cloud Storage, read and written directly, against an emulator."""

import asyncio
import dataclasses
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from corpora import files_of
from gs_program import experiment
from texts import make_documents

from bertjax import train
from bertjax.checkpoints.described import sized_as
from bertjax.checkpoints.export import convert
from bertjax.checkpoints.trained import load
from bertjax.commands.main import main
from bertjax.data.build import BuildSettings, build
from bertjax.data.copy import copy_corpus
from bertjax.data.corpus import find_files, split_sentences
from bertjax.data.pairs import NextSentencePairs
from bertjax.data.records import TokenReader, read_manifest
from bertjax.errors import InputError
from bertjax.report import read
from bertjax.run import local_files
from bertjax.run.workdir import lock_workdir
from bertjax.storage import files, lease, paths
from bertjax.storage.paths import path_of
from bertjax.train import fit, sharded_step

HERE = Path(__file__).parent
SETTINGS = BuildSettings(split_sentences, holdout=0.1, shard_tokens=4000)


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """Compile step and evaluation once for all runs."""
    made = cache(lambda: sharded_step(*_step_of("gs://made/corpus")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["bertjax.data.build"], "_BATCH", 20_000)  # so that there are several shards
        patch.setattr(train, "evaluator", cache(train.evaluator))
        patch.setattr(train.fit, "__kwdefaults__", train.fit.__kwdefaults__ | {"make_step": lambda *_: made()})
        yield


def _step_of(corpus):
    ours = experiment(corpus)
    return ours, ours.phases[0], ours.mesh.mesh(8)


@pytest.fixture(scope="module")
def local_corpus(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "corpus"
    build(make_documents(200), tokenizer, folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def corpus(served, tokenizer):
    build(make_documents(200), tokenizer, path_of("gs://made/corpus"), SETTINGS)
    return "gs://made/corpus"


@pytest.fixture(scope="module")
def run(corpus):
    """Train in Cloud Storage from beginning to end. Tests do not change it."""
    fit(experiment(corpus), "gs://made/run")
    return "gs://made/run"


def contents(folder):
    """Return the objects of a folder and what they hold."""
    home = path_of(folder)
    return {str(path.relative_to(home)): path.read_bytes() for path in files.files_below(home)}


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


# What is no place, and what is missing


@pytest.mark.parametrize(
    "name",
    ["s3://bucket/x", "file:///x", "gs:/bucket/x", "GS://bucket/x", "gs://", "gs://bucket", "gs://bucket/../x",
     "gs://b*/x", "gs://bucket/a#1", "gs:///x", "http://x/y"],
)  # fmt: skip
def test_what_is_no_place_is_named_with_one_that_is(name):
    with pytest.raises(InputError, match=f"{re.escape(name)}.*gs://BUCKET/FOLDER"):
        path_of(name)


def test_other_places_are_refused_before_anything_is_made(tmp_path, monkeypatch, tokenizer, corpus, capsys):
    place = "s3://bucket/x"
    monkeypatch.chdir(tmp_path)
    ours = experiment(corpus)
    rows = dataclasses.replace(ours.phases[0], rows=NextSentencePairs(place, 16))
    calls = [
        lambda: fit(ours, place),
        lambda: fit(dataclasses.replace(ours, phases=(rows,)), tmp_path / "run"),
        lambda: fit(dataclasses.replace(ours, init=place), tmp_path / "run"),
        lambda: load(place),
        lambda: convert("nowhere", place),
        lambda: read_manifest(place),
        lambda: find_files([place]),
    ]
    for call in calls:
        with pytest.raises(InputError, match=re.escape(place)):
            call()
    (tmp_path / "text").write_text("A text.")
    (tmp_path / "vocab.txt").write_bytes(tokenizer.files["vocab.txt"])
    before = files_of(tmp_path)
    for out in ("data build text --format plain --tokenizer vocab.txt", "tokenizer train text --format plain --size 9"):
        assert main([*out.split(), "--out", place]) == 2
        assert place in capsys.readouterr().err
    assert files_of(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"text", "vocab.txt"}


def test_without_the_extra_gs_is_refused_and_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    find = paths.importlib.util.find_spec
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    with pytest.raises(InputError, match=r"bertjax\[gcs\]"):
        load("gs://made/run")
    assert not any(tmp_path.iterdir())


def test_what_needs_no_cloud_storage_loads_none_of_it():
    program = "import sys; from bertjax.commands.main import main\n"
    program += "try: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print([name for name in ('gcsfs', 'fsspec', 'aiohttp', 'google.cloud') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


def test_a_missing_bucket_and_a_missing_object_are_named(cloud, corpus, capsys):
    with pytest.raises(InputError, match="there is no bucket gs://nobucket: check its name"):
        load("gs://nobucket/run")
    assert main(["evaluate", "--model", "gs://made/nothing"]) == 2
    assert "there is no folder gs://made/nothing" in capsys.readouterr().err
    with pytest.raises(InputError, match="gs://made/nothing is not a corpus"):
        read_manifest("gs://made/nothing")


def test_a_forbidden_bucket_is_named_with_the_remedy(cloud, corpus, tokenizer):
    cloud.fault = lambda method, path: 403 if "/b/closed/" in path else None
    for call in (lambda: load("gs://closed/run"), lambda: fit(experiment(corpus), "gs://closed/run")):
        with pytest.raises(InputError, match=r"no permission for gs://closed.*Storage Object User"):
            call()


def test_a_bucket_that_may_be_read_but_not_written_is_refused_before_training(cloud, corpus, place):
    cloud.fault = lambda method, path: 403 if method == "POST" else None
    with pytest.raises(InputError, match=f"no permission for {place}/run/lock: .*Storage Object User"):
        fit(experiment(corpus), f"{place}/run")
    with pytest.raises(InputError, match=f"no permission for {place}/text: .*Storage Object User"):
        files.write(path_of(place) / "text", "x")


# Corpora


def test_a_corpus_in_cloud_storage_has_the_files_of_one_on_a_disk(corpus, local_corpus):
    assert contents(corpus) == files_of(local_corpus)


def test_a_build_that_was_killed_resumes_and_another_one_is_refused(place, tokenizer, local_corpus, monkeypatch):
    out, upload = path_of(f"{place}/corpus"), files.upload
    monkeypatch.setattr(lease, "_EACH", 0.2)

    def killed(local, path):
        if path.name.startswith("train-00001.sentences"):
            raise KeyboardInterrupt
        upload(local, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "upload", killed)
        build(make_documents(200), tokenizer, out, SETTINGS)
    with lease.leased(out / "lock", "build"), pytest.raises(InputError, match="another build is going on in gs://"):
        build(make_documents(200), tokenizer, out, SETTINGS)
    build(make_documents(200), tokenizer, out, SETTINGS)
    assert contents(out) == files_of(local_corpus)


def test_a_corpus_is_copied_verified_and_what_is_there_is_not_copied_again(
    corpus, local_corpus, place, tmp_path, cloud
):
    size = sum(len(content) for content in files_of(local_corpus).values())
    assert copy_corpus(corpus, tmp_path / "copy") == size
    assert files_of(tmp_path / "copy") == files_of(local_corpus)
    assert copy_corpus(corpus, tmp_path / "copy") == 0
    shard = max((tmp_path / "copy").glob("*array_record*"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    shard.write_bytes(content)  # of an interrupted copy
    (tmp_path / "copy" / "manifest.json").unlink()
    assert len(content) < copy_corpus(corpus, tmp_path / "copy") < size
    assert main(["data", "copy", str(tmp_path / "copy"), f"{place}/corpus", "--json"]) == 0
    assert contents(f"{place}/corpus") == files_of(local_corpus)
    assert main(["data", "verify", f"{place}/corpus"]) == 0
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"{shard.name} is damaged"):
        copy_corpus(tmp_path / "copy", f"{place}/other")
    files.write(path_of(place) / "filled" / "text", "x")
    with pytest.raises(InputError, match=r"is not empty .text."):
        copy_corpus(corpus, f"{place}/filled")


def test_damaged_objects_of_a_corpus_are_refused(place, corpus):
    for name, content in contents(corpus).items():
        flipped = bytearray(content)
        if name.endswith(".npy") or "array_record" in name:
            flipped[-1 if name.endswith(".npy") else 500] ^= 1
        files.write(path_of(place) / name, bytes(flipped))
    with pytest.raises(InputError, match=r"gs://made/.*\.npy is missing or damaged"):
        NextSentencePairs(place, 16).open("train")
    manifest = read_manifest(place)
    name = next(name for name in contents(place) if "validation.array_record-00000" in name)
    with pytest.raises(InputError, match="is damaged around token 0"):
        TokenReader(path_of(place) / name, manifest.dtype).read(0, manifest.splits["validation"][0].tokens)


# Runs


@pytest.mark.slow
def test_a_run_in_cloud_storage_equals_one_on_a_disk(run, corpus, tmp_path):
    fit(experiment(corpus), tmp_path)
    assert (path_of(run) / "log.jsonl").read_bytes() == (tmp_path / "log.jsonl").read_bytes()
    assert same(load(run).params, load(tmp_path).params)
    assert not (path_of(run) / "lock").exists()


def test_runs_are_compared_where_they_are_and_their_sizes_are_read_there(run, place):
    assert main(["report", run, "--out", f"{place}/report.html"]) == 0
    assert "held-out: loss" in (path_of(place) / "report.html").read_text()
    (found,) = read([run])
    assert found.train["loss"].size and found.train["flops"][-1] > 0 and not found.notes
    assert sized_as(run, load(run).objective) == load(run).objective


def test_a_checkpoint_without_its_last_object_does_not_count(run, place):
    for name, content in contents(run).items():
        if not re.search(r"checkpoints/4/commit_success.txt", name):
            files.write(path_of(place) / name, content)
    assert load(place).config == load(f"{run}/checkpoints/2").config


def test_a_run_that_was_copied_from_a_disk_goes_on(run, corpus, tmp_path, place, monkeypatch):
    put, calls = train.place_batch, iter(range(100))

    def dying(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return put(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "place_batch", dying)
        fit(experiment(corpus), tmp_path)
    files.upload(tmp_path, path_of(place))
    fit(experiment(corpus), place)
    assert same(load(run).params, load(place).params)
    assert (path_of(place) / "log.jsonl").read_bytes() == (path_of(run) / "log.jsonl").read_bytes()


def test_a_flipped_bit_in_a_checkpoint_is_refused_by_its_checksum(run, place):
    step = contents(f"{run}/checkpoints/4")
    largest = max((name for name in step if name.startswith("params") and "/d/" in name), key=lambda n: len(step[n]))
    refused = 0
    for position in range(0, len(step[largest]), len(step[largest]) // 4):
        flipped = bytearray(step[largest])
        flipped[position] ^= 1
        for name, content in (step | {largest: bytes(flipped)}).items():
            files.write(path_of(place) / f"flip-{position}" / name, content)
        with pytest.raises(InputError, match=f"checkpoint {place}/flip-{position} is damaged"):
            load(f"{place}/flip-{position}")
        refused += 1
    assert refused >= 4


@pytest.mark.slow
def test_commands_read_and_write_models_in_cloud_storage(run, corpus, place, tmp_path, capsys):
    assert main(["evaluate", "--model", run, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["convert", run, f"{place}/alone"]) == 0
    assert main(["convert", run, f"{place}/hf", "--to", "huggingface"]) == 0
    capsys.readouterr()
    assert main(["convert", f"{place}/hf", f"{tmp_path}/back"]) == 0
    for model in (f"{place}/alone", f"{place}/hf", f"{tmp_path}/back"):
        assert same(load(f"{model}:encoder").params, load(f"{run}:encoder").params)
    assert main(["convert", run, f"{place}/alone"]) == 2
    assert f"{place}/alone is not empty" in capsys.readouterr().err
    assert main(["predict", "fill-mask", "--model", f"{place}/hf", "A [MASK].", "--json"]) == 0
    assert main(["data", "inspect", corpus, "--json"]) == 0
    assert main(["evaluate", "--model", f"{run}/checkpoints/4", "--data", corpus, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == expected
    fit(dataclasses.replace(experiment(corpus), init=f"{place}/hf"), f"{place}/warm")
    assert not same(load(f"{place}/warm").params, load(run).params)


@pytest.mark.slow
def test_texts_tokenizers_and_labelled_data_are_read_there_and_models_are_fine_tuned_there(run, place, capsys):
    home = path_of(place)
    files.write(home / "text" / "a.txt", "der der\n")
    files.write(home / "text" / "b.txt.gz", gzip.compress(b"der die\n" * 3))
    files.write(home / "text" / ".hidden", "no text")
    vocabulary = ["tokenizer", "train", f"{place}/text", "--format", "plain", "--size", "12", "--out", f"{place}/words"]
    assert main(["convert", f"{run}:encoder", f"{place}/hf", "--to", "huggingface"]) == 0
    capsys.readouterr()
    assert main(vocabulary) == 0
    assert {path.name for path in files.files_below(home / "words")} >= {"vocab.txt"}
    capsys.readouterr()
    built = ["data", "build", f"{place}/text", "--format", "plain", "--tokenizer", f"{place}/hf", "--workers", "0"]
    assert main([*built, "--holdout", "0", "--out", f"{place}/corpus", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2
    rows = "sentence\tlabel\n" + "der die\t1\ndie\t0\n" * 4
    for name in ("train", "dev"):
        files.write(home / "glue" / "SST-2" / f"{name}.tsv", rows)
    tuned = ["finetune", "glue", "task=sst2", f"init={place}/hf", f"data={place}/glue", "seeds=1", "epochs=1"]
    assert main([*tuned, "batch_size=8", "length=16", "--workdir", f"{place}/tuned", "--json"]) in (0, 1)
    accuracy = json.loads(capsys.readouterr().out)["seeds"][0]["best"]["metrics"]["accuracy"]
    assert (
        main(["evaluate", "task", "sst2", "--model", f"{place}/tuned/best", "--data", f"{place}/glue", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy
    files.write(home / "lines.txt", "der\n")
    assert main(["predict", "classify", "--model", f"{place}/tuned/best", "--input", f"{place}/lines.txt"]) == 0


@pytest.mark.slow
def test_two_processes_train_in_one_place_are_killed_and_go_on_bit_equal(corpus, place, cloud):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    environment = os.environ | dict.fromkeys(service, f"http://{cloud.target}")  # without faults, so without the proxy
    environment |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_COMPILATION_CACHE_DIR": os.environ["BERTJAX_TEST_PROGRAMS"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
    }
    for what, code in (("killed", -signal.SIGKILL), ("resumed", 0)):
        command = [sys.executable, str(HERE / "gs_program.py"), what, corpus, place]
        running = [
            subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(n)}, stderr=subprocess.PIPE, text=True)
            for n in range(2)
        ]
        for process in running:
            _, said = process.communicate(timeout=120)
            assert process.returncode == code, said[-3000:]
    assert same(load(f"{place}/straight").params, load(f"{place}/killed").params)
    assert (path_of(place) / "straight/log.jsonl").read_bytes() == (path_of(place) / "killed/log.jsonl").read_bytes()


# The lock


def test_the_lock_names_its_owner_is_taken_over_when_it_ends_and_a_run_that_lost_it_stops(place, monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 2.0)
    monkeypatch.setattr(lease, "_EACH", 0.2)
    lock = path_of(place) / "lock"
    with lock_workdir(place) as check:
        with pytest.raises(InputError, match=f"another run is going on in {place} .process {os.getpid()} on"):
            lock_workdir(place).__enter__()
        check()
        files.write(lock, json.dumps({"owner": "another one"}))  # as after an outage of more than SECONDS
        deadline = time.monotonic() + 5
        with pytest.raises(InputError, match=r"was taken over .another one"):
            while time.monotonic() < deadline:
                check()
                time.sleep(0.05)
    assert lease.owner_of(lock) == "another one"  # it is not deleted
    begun = time.monotonic()
    with lock_workdir(place):  # of an owner that does not renew it
        assert 0.5 < time.monotonic() - begun < 6
    assert not lock.exists()


def test_a_build_that_lost_its_lock_writes_nothing_more(place, tokenizer, monkeypatch):
    out, lost = path_of(f"{place}/corpus"), []

    def check(self):
        lost.append(sorted(path.name for path in files.files_below(out)))
        raise InputError("was taken over")

    monkeypatch.setattr(lease.Lease, "check", check)
    with pytest.raises(InputError, match="was taken over"):
        build(make_documents(200), tokenizer, out, SETTINGS)
    assert lost[0] and not any(name.endswith((".partial", ".npy", "manifest.json")) for name in lost[0])
    assert "manifest.json" not in contents(out)


def test_renewal_goes_on_after_any_error_and_a_lock_not_renewed_for_long_is_read_again(place, monkeypatch):
    monkeypatch.setattr(lease, "_EACH", 0.05)
    written, read, refusals = lease._written, lease._read, iter([True])

    def refused(path, text, generation):
        if next(refusals, False):
            raise lease._Refused(None)
        return written(path, text, generation)

    lock = path_of(place) / "lock"
    with lease.leased(lock) as held:
        first = files.version_of(lock)[1]
        monkeypatch.setattr(lease, "_read", lambda path: (_ for _ in ()).throw(ConnectionError))
        monkeypatch.setattr(lease, "_written", refused)
        deadline = time.monotonic() + 5
        while files.version_of(lock)[1] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert files.version_of(lock)[1] != first
        monkeypatch.setattr(lease, "_read", read)
        monkeypatch.setattr(held, "_rewritten", lambda: 1 / 0)
        time.sleep(0.2)
        files.write(lock, json.dumps({"owner": "another one"}))
        held.check()  # it was renewed a moment ago
        monkeypatch.setattr(lease, "SECONDS", 0.1)
        with pytest.raises(InputError, match=r"was taken over .another one"):
            held.check()


def test_a_lock_or_a_log_that_is_too_large_is_not_read(place, monkeypatch, cloud):
    files.write(path_of(place) / "lock", b" " * (2**16 + 1))
    assert lease.owner_of(path_of(place) / "lock") == "an unknown process"
    assert not [path for path in map(str, cloud.requests) if "alt=media" in path]
    monkeypatch.setattr(local_files, "_LARGEST", 100)
    files.write(path_of(place) / "log.jsonl", "x" * 101)
    with pytest.raises(InputError, match=r"log.jsonl has 101 bytes"):
        local_files.local_files(path_of(place), None).__enter__()


def test_the_lock_of_a_killed_process_of_this_machine_is_free(place):
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = {"owner": "one that was killed", "process": lease._process(ended.pid)}
    ended.kill()
    ended.wait()
    files.write(path_of(place) / "lock", json.dumps(theirs))
    begun = time.monotonic()
    with lock_workdir(place):
        assert time.monotonic() - begun < 5


# Faults of the service


@pytest.fixture
def hasty(monkeypatch):
    """Let gcsfs wait a twentieth of its seconds between attempts: its 31 to 36 seconds become less than two."""
    from gcsfs import retry

    sleep = asyncio.sleep

    class Hasty:
        def __getattr__(self, name):
            return getattr(asyncio, name)

        async def sleep(self, seconds):
            await sleep(seconds / 20)

    monkeypatch.setattr(retry, "asyncio", Hasty())


@pytest.mark.slow
def test_a_run_survives_a_service_that_is_slow_refuses_and_disappears(run, corpus, place, cloud):
    """It is slow, then gone for 2 seconds, then every other request of 2 seconds is refused, twice over."""
    begun = []

    def fault(method, path):
        begun.append(time.monotonic())
        passed = begun[-1] - begun[0]
        if 0.3 < passed < 2.3:
            return 0
        if passed < 5 and len(begun) % 2:
            return 503 if len(begun) % 4 == 1 else 429
        return 0.002 if passed < 20 else None

    cloud.fault = fault
    fit(experiment(corpus), place)
    cloud.fault = lambda *_: None
    assert same(load(run).params, load(place).params)
    assert (path_of(place) / "log.jsonl").read_bytes() == (path_of(run) / "log.jsonl").read_bytes()


@pytest.mark.parametrize("status", [0, 503, 429])
def test_a_service_that_stays_away_ends_a_command_in_bounded_time_with_the_code_to_try_again(
    run, status, cloud, hasty, capsys
):
    cloud.fault = lambda *_: status
    begun = time.monotonic()
    assert main(["data", "inspect", "gs://made/corpus"]) == 75
    assert time.monotonic() - begun < 8
    assert "Cloud Storage does not answer for gs://made/corpus" in capsys.readouterr().err


def test_every_request_to_a_server_that_accepts_and_says_nothing_has_a_limit(cloud):
    limits = paths.file_system().requests_timeout
    assert 0 < limits.sock_connect <= 30
    assert 0 < limits.sock_read <= 120
    assert not paths.file_system().dircache.use_listings_cache

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from corpora import FIRST, VOCABULARY, numbered, read_documents, read_shards, write_corpus
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tensorflow_datasets.proto import tf_example_pb2

from bertjax.data import records
from bertjax.data.records import (
    CHUNK,
    DOCUMENT,
    Manifest,
    ShardWriter,
    TokenReader,
    corpus_tokenizer,
    decode_record,
    encode_record,
    read_manifest,
    shard_name,
    write_manifest,
)
from bertjax.data.tokenizer import fingerprint
from bertjax.errors import InputError

RNG = np.random.default_rng(0)
N = 5000
TOKENS, FLAGS = RNG.integers(0, 60_000, N).astype(np.uint16), RNG.integers(0, 8, N).astype(np.uint8) | DOCUMENT


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Write one shard, in uneven pieces, and return its record file."""
    folder = tmp_path_factory.mktemp("shard")
    writer = ShardWriter(folder, "train", 0, np.uint16)
    for begin, end in pairwise([0, 1, 1000, 1024, 3100, N]):
        piece = slice(begin, end)
        writer.add(TOKENS[piece], FLAGS[piece], np.array([end - begin], np.int32), np.array([1], np.int32))
    writer.close()
    return writer.paths[0]


@given(
    st.sampled_from([np.uint16, np.uint32]).flatmap(lambda dtype: arrays(dtype, st.integers(0, 400))),
    arrays(np.uint8, st.integers(0, 400)),
)
def test_a_record_is_the_example_that_protobuf_parses_and_one_that_protobuf_wrote_is_read(tokens, flags):
    record = encode_record(tokens, flags)
    expected = {"tokens": tokens.tobytes(), "flags": flags.tobytes()}
    parsed = tf_example_pb2.Example.FromString(record)
    assert {name: list(value.bytes_list.value) for name, value in parsed.features.feature.items()} == {
        name: [value] for name, value in expected.items()
    }
    assert decode_record(record) == tuple(expected.values())
    written = tf_example_pb2.Example()
    for name, value in expected.items():
        written.features.feature[name].bytes_list.value.append(value)
    assert decode_record(written.SerializeToString()) == tuple(expected.values())
    assert written.ByteSize() == len(record)


@given(st.integers(0, N - 1), st.integers(1, 2 * CHUNK + 2))
def test_any_slice_of_a_shard_equals_the_written_tokens(shard, start, length):
    tokens, flags = TokenReader(shard, np.uint16).read(start, min(length, N - start))
    np.testing.assert_array_equal(tokens, TOKENS[start : start + length])
    np.testing.assert_array_equal(flags, FLAGS[start : start + length])


def test_a_flipped_bit_in_a_shard_is_harmless_or_an_error_and_never_other_tokens(shard, tmp_path):
    content = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(content, np.uint8))  # most of the file is filling
    path, errors = tmp_path / "flipped", 0
    for place in [*RNG.choice(used, 40), *RNG.integers(0, len(content), 20)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << RNG.integers(8)
        path.write_bytes(flipped)
        try:
            tokens, flags = TokenReader(path, np.uint16).read(0, N)
        except InputError as error:
            assert str(path) in str(error)
            errors += 1
        else:
            np.testing.assert_array_equal(tokens, TOKENS)
            np.testing.assert_array_equal(flags, FLAGS)
    assert errors > 20


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_truncated_shard_is_an_error_that_names_the_file(shard, tmp_path, kept):
    content = shard.read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=str(path)):
        TokenReader(path, np.uint16).read(0, N)


def test_ids_beyond_the_vocabulary_are_an_error_and_not_the_vector_of_another(shard):
    largest = int(TOKENS.max())
    TokenReader(shard, np.uint16, largest + 1).read(0, N)
    with pytest.raises(InputError, match=f"{shard} is damaged around token 0"):
        TokenReader(shard, np.uint16, largest).read(0, N)


def test_reading_past_the_end_of_a_shard_is_an_error_and_not_fewer_tokens(shard):
    reader = TokenReader(shard, np.uint16)
    with pytest.raises(InputError):
        reader.read(N + CHUNK, 1)
    with pytest.raises(InputError):
        reader.read(N - 10, 20)


@pytest.mark.parametrize(
    "sizes",
    [[(2047, 1024)], [(2048, 1023)], [(2048, 1025)], [(2050, 1025)], [(1000, 500), (2048, 1024)], [(4, 9)]],
)
def test_records_of_other_sizes_are_damage_and_not_other_tokens(tmp_path, sizes):
    """Each has bytes of tokens, of two each, and flags."""
    writer = ArrayRecordWriter(str(tmp_path / "shard"), "group_size:1")
    for tokens, flags in sizes:
        writer.write(encode_record(np.ones(tokens, np.uint8), np.ones(flags, np.uint8)))
    writer.close()
    with pytest.raises(InputError, match=f"{tmp_path / 'shard'} is damaged around token 0"):
        TokenReader(tmp_path / "shard", np.uint16).read(0, 2 if len(sizes) == 1 else 1200)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_stored_in_the_smallest_type_that_holds_them(tmp_path, size, dtype):
    last = [[[FIRST, size - 1]]]
    folder = write_corpus(tmp_path / "corpus", {"train": [last]}, VOCABULARY._replace(size=size))
    assert read_manifest(folder).dtype is dtype
    assert read_documents(folder, "train") == last


def test_tfds_reads_the_folder_of_a_corpus(tmp_path):
    shards = [numbered([[700, 900], [30]]), numbered([[5]])]
    folder = write_corpus(tmp_path / "corpus", {"train": shards, "validation": shards[1:]})
    builder = tfds.builder_from_directory(folder)
    for split in ("train", "validation"):
        examples = list(builder.as_data_source(split))
        shards = read_shards(folder, split)
        for place, name in enumerate(("tokens", "flags")):
            assert np.concatenate([example[name] for example in examples]).tolist() == [
                value for shard in shards for value in shard[place]
            ]
        assert builder.info.splits[split].num_examples == len(examples)


def test_the_manifest_holds_counts_and_the_hash_of_every_file_and_the_tokenizer(corpus, tokenizer):
    manifest = read_manifest(corpus)
    assert set(manifest.splits) == {"train", "validation"}
    hashed = []
    for split, shards in manifest.splits.items():
        for index, (shard, (tokens, _, sentences, documents)) in enumerate(
            zip(shards, read_shards(corpus, split), strict=True)
        ):
            assert (shard.tokens, shard.sentences, shard.documents) == (len(tokens), len(sentences), len(documents))
            names = [shard_name(split, index, len(shards))]
            names += [records.index_name(split, index, len(shards), what) for what in ("sentences", "documents")]
            hashed += names
            contents = [(Path(corpus) / name).read_bytes() for name in names]
            assert shard.sha256 == tuple(hashlib.sha256(content).hexdigest() for content in contents)
    assert {path.name for path in Path(corpus).iterdir()} == {
        *hashed, "manifest.json", "tokenizer", "dataset_info.json", "features.json"
    }  # fmt: skip
    assert manifest.total("documents") == 300
    assert manifest.tokenizer == fingerprint(tokenizer) == fingerprint(corpus_tokenizer(corpus))
    assert manifest.vocabulary == tokenizer.vocabulary


def test_a_manifest_is_read_as_it_was_written_and_identified_by_its_content(tmp_path):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[2], [3, 4]]), numbered([[9]])]})
    manifest = replace(read_manifest(folder), words=7, unknown=2, dropped={"not UTF-8": 3})
    before = records.manifest_digest(folder)
    write_manifest(Path(folder), manifest)
    assert read_manifest(folder) == manifest
    assert isinstance(manifest, Manifest) and records.manifest_digest(folder) != before


def damage(change):
    def damaged(content):
        described = json.loads(content)
        change(described)
        return json.dumps(described).encode()

    return damaged


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[]",
        lambda content: content.replace(b"vocab", b"\xffocab"),
        damage(lambda described: described.pop("splits")),
        damage(lambda described: described["vocabulary"].pop("mask")),
        damage(lambda described: described.update(format=0)),
        damage(lambda described: described["splits"]["train"][0].pop("tokens")),
        damage(lambda described: described.update(splits=None)),
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_the_file(tmp_path, damaged):
    folder = write_corpus(tmp_path / "corpus", {"train": [numbered([[2], [3, 4]])]})
    path = Path(folder) / "manifest.json"
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path}.*build"):
        read_manifest(folder)


def test_a_folder_that_is_no_corpus_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} is not a corpus.*data build"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match=r"nowhere is not a corpus.*data build"):
        read_manifest("nowhere")
    with pytest.raises(InputError, match=r"no corpus given.*data build"):
        read_manifest("")
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(InputError, match="interrupted: run it again"):
        read_manifest(tmp_path)

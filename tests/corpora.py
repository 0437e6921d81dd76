"""Write and read corpora by hand: what is written is given token by token, what is read is parsed by protobuf."""

import hashlib
import json
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from bertjax.data.records import (
    DOCUMENT,
    SENTENCE,
    WORD,
    Manifest,
    ShardWriter,
    index_name,
    read_manifest,
    shard_name,
    write_manifest,
)
from bertjax.data.tokenizer import Vocabulary

VOCABULARY = Vocabulary(60_000, pad=0, unk=1, cls=2, sep=3, mask=4)
FIRST = 5  # the first id that is not special


def numbered(lengths):
    """Turn documents [[tokens per sentence]] into sentences of ids that count up: an id tells its place."""
    starts = iter(accumulate((n for document in lengths for n in document), initial=FIRST))
    return [[list(range(start, start + n)) for n, start in zip(document, starts, strict=False)] for document in lengths]


def starts_word(token):
    """Decide which made tokens begin words: two of three."""
    return token % 3 != 0


def flags_of(document):
    """Return the flags of a document's tokens."""
    flags = [WORD * starts_word(token) for sentence in document for token in sentence]
    for start in accumulate(map(len, document[:-1]), initial=0):
        flags[start] = SENTENCE | WORD
    flags[0] |= DOCUMENT
    return flags


def write_corpus(folder, splits, vocabulary=VOCABULARY):
    """Write splits {name: [shard]}; a shard is a list of documents, these of sentences, these of ids."""
    Path(folder).mkdir(parents=True)
    dtype = np.uint16 if vocabulary.size <= 2**16 else np.uint32
    written = {}
    for split, shards in splits.items():
        found = []
        for index, documents in enumerate(shards):
            writer = ShardWriter(Path(folder), split, index, dtype)
            for document in documents:
                tokens = np.array([token for sentence in document for token in sentence], np.uint32)
                lengths = np.array([len(sentence) for sentence in document], np.int32)
                flags = np.array(flags_of(document), np.uint8)
                writer.add(tokens, flags, lengths, np.array([len(document)], np.int32))
            found.append(writer.close())
            names = [shard_name(split, index, len(shards))]
            names += [index_name(split, index, len(shards), what) for what in ("sentences", "documents")]
            for path, name in zip(writer.paths, names, strict=True):
                path.rename(Path(folder) / name)
        written[split] = tuple(found)
    write_manifest(Path(folder), Manifest("0" * 64, vocabulary, written, words=1, unknown=0, dropped={}))
    return str(folder)


def restate(folder, **counts):
    """Write into the manifest the hashes of the files of the first shard of train, and `counts` in place of its own."""
    path = Path(folder) / "manifest.json"
    stated = json.loads(path.read_text())
    shards = stated["splits"]["train"]
    names = [shard_name("train", 0, len(shards))]
    names += [index_name("train", 0, len(shards), what) for what in ("sentences", "documents")]
    shards[0] |= {
        "sha256": [hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() for name in names],
        **counts,
    }
    path.write_text(json.dumps(stated))


def read_shards(folder, split):
    """Read every shard of a split: ids, flags, tokens per sentence, sentences per document, as lists."""
    manifest = read_manifest(folder)
    count = len(manifest.splits[split])
    shards = []
    for index in range(count):
        reader = ArrayRecordReader(str(Path(folder) / shard_name(split, index, count)))
        examples = [tf_example_pb2.Example.FromString(record) for record in reader.read_all()]
        values = {
            name: b"".join(example.features.feature[name].bytes_list.value[0] for example in examples)
            for name in ("tokens", "flags")
        }
        indexes = [np.load(Path(folder) / index_name(split, index, count, what)) for what in ("sentences", "documents")]
        tokens = np.frombuffer(values["tokens"], manifest.dtype).tolist()
        shards.append((tokens, list(values["flags"]), *(array.tolist() for array in indexes)))
    return shards


def read_documents(folder, split):
    """Read a split as documents of sentences of ids, by its index, all shards in a row."""
    documents = []
    for tokens, _, sentences, counts in read_shards(folder, split):
        bounds = [0, *accumulate(sentences)]
        pieces = iter([tokens[begin:end] for begin, end in pairwise(bounds)])
        documents += [[next(pieces) for _ in range(count)] for count in counts]
    return documents


def files_of(folder):
    """Return the files of a folder and what they hold."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def write_tfds(folder, name, split, features, rows):
    """Write a split of a data set as TFDS does; rows: texts as bytes, numbers as int."""
    import tensorflow_datasets as tfds  # slow to import, and few tests need it

    base, _, config = name.partition("/")
    place = Path(folder) / name / "1.0.0"
    place.mkdir(parents=True)
    writer = ArrayRecordWriter(str(place / f"{base}-{split}.array_record-00000-of-00001"), "group_size:1")
    for row in rows:
        example = tf_example_pb2.Example()
        for key, value in row.items():
            feature = example.features.feature[key]
            (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
        writer.write(example.SerializeToString())
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    shards = {"name": split, "shardLengths": [str(len(rows))], "numBytes": "1", "filepathTemplate": template}
    info = {"name": base, "configName": config, "version": "1.0.0", "fileFormat": "array_record", "splits": [shards]}
    (place / "dataset_info.json").write_text(json.dumps(info))
    tfds.features.FeaturesDict(features).save_config(str(place))

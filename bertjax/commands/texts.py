"""The commands that build and inspect corpora and tokenizers: data, tokenizer."""

import argparse
import os
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from bertjax.commands.arguments import command, plain, print_result, readable, takes_json, takes_model, tell, with_hints
from bertjax.errors import InputError
from bertjax.storage.paths import path_of
from bertjax.terminal import show, show_json
from bertjax.wording import counted

if TYPE_CHECKING:
    from bertjax.data.corpus import Bad, Document
    from bertjax.data.look import Look
    from bertjax.data.templates import Templates
    from bertjax.data.tokenizer import Tokenizer


def add(commands: Any) -> None:
    """Add these commands."""
    data = with_hints(commands.add_parser("data", help="build and inspect corpora")).add_subparsers(
        required=True, metavar="ACTION"
    )
    build = command(data, "build", _build, "tokenise text into a corpus",
                     "bertjax data build wiki/ --format wikiextractor --tokenizer vocab.txt --out corpus/")  # fmt: skip
    _text_input(build)
    build.add_argument("--tokenizer", required=True, metavar="T",
                       help="vocab.txt, vocab.json, tokenizer.json, a .model file, or a folder with one")  # fmt: skip
    build.add_argument("--out", required=True, metavar="DIR", help="folder for the corpus, on a disk or gs://…")
    build.add_argument(
        "--holdout", type=float, default=0.01, help="fraction of documents held out for validation (default: 0.01)"
    )
    build.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one for each core)"
    )
    build.add_argument("--seed", type=int, default=0, help="seed of the held-out documents (default: 0)")
    build.add_argument("--shard-tokens", type=int, default=2**26, metavar="N", help="tokens in a shard (default: 2^26)")
    _parses_special_tokens(build)
    takes_json(build)
    inspect = command(data, "inspect", _inspect, "print statistics of a corpus", "bertjax data inspect corpus/")
    inspect.add_argument("corpus", metavar="DIR")
    takes_json(inspect)
    copy = command(data, "copy", _copy, "copy a corpus to a disk or to Cloud Storage, verified",
                   "bertjax data copy gs://mine/wiki /mnt/disk/wiki")  # fmt: skip
    copy.add_argument("corpus", metavar="DIR", help="the corpus, on a disk or gs://…")
    copy.add_argument("out", metavar="OUT", help="a new folder, or one with an unfinished copy")
    takes_json(copy)
    verify = command(data, "verify", _verify, "compare all files of a corpus with the hashes in its manifest",
                     "bertjax data verify corpus/")  # fmt: skip
    verify.add_argument("corpus", metavar="DIR")
    takes_json(verify)

    tokenizers = with_hints(commands.add_parser("tokenizer", help="train and inspect tokenizers"))
    tokenizer = tokenizers.add_subparsers(required=True, metavar="ACTION")
    train = command(tokenizer, "train", _train_tokenizer, "train a vocabulary",
                     "bertjax tokenizer train wiki/ --format wikiextractor --kind wordpiece --size 30522 --lowercase "
                     "--out tokenizer/")  # fmt: skip
    _text_input(train)
    train.add_argument("--kind", choices=("wordpiece", "bpe", "unigram"), default="wordpiece")
    train.add_argument("--size", type=int, required=True, metavar="V", help="size of the vocabulary")
    train.add_argument("--lowercase", action="store_true", help="lowercase and strip accents")
    train.add_argument(
        "--sample-bytes", type=int, default=2**29, metavar="N", help="bytes of text to train on (default: 2^29)"
    )
    train.add_argument("--out", required=True, metavar="DIR", help="folder for the tokenizer, on a disk or gs://…")
    takes_json(train)

    looking = command(tokenizer, "inspect", _inspect_tokenizer, "show how a model's tokenizer encodes texts",
                       'bertjax tokenizer inspect --model bert-base-uncased "Магия реальна!"')  # fmt: skip
    takes_model(looking)
    looking.add_argument("text", nargs="*", metavar="TEXT", help="texts; without any, describe the vocabulary")
    _parses_special_tokens(looking)
    takes_json(looking)


def _parses_special_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parse-special-tokens", action="store_true",
                        help="a literal [MASK] or </s> in a text is the special token, not text")  # fmt: skip


def _text_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="INPUT", help="files or folders (.gz and .zst too), or a TFDS name")
    parser.add_argument(
        "--format", required=True, choices=("plain", "sentences", "wikiextractor", "jsonl", "markdown", "tfds"),
        help="plain: one document per file; sentences: one sentence per line, blank lines between documents; jsonl: "
        "one document per line; markdown: one book per file",
    )  # fmt: skip
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="the text's field in jsonl and tfds (default: text)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="the data folder of TFDS")
    parser.add_argument("--longest-line", type=int, default=10**6, metavar="BYTES", help="longer lines are errors")
    parser.add_argument("--skip-bad", action="store_true", help="skip and count input that cannot be read")


def _documents(options: argparse.Namespace) -> tuple["Iterator[Document | Bad]", list[Any], int]:
    """Open the input: return its documents, its identity, and its size in bytes, 0 if unknown."""
    from bertjax.data import corpus
    from bertjax.storage.files import version_of

    if options.format == "tfds":
        names = [corpus.tfds(name, options.text_field, options.data_dir) for name in options.input]
        return chain.from_iterable(names), [options.text_field, options.data_dir, *options.input], 0
    readers = {
        "plain": corpus.plain,
        "sentences": corpus.sentences,
        "wikiextractor": corpus.wikiextractor,
        "jsonl": corpus.json_lines(options.text_field),
        "markdown": corpus.markdown,
    }
    found = corpus.find_files(options.input)
    files = [file for file in found if not isinstance(file, corpus.Bad)]
    read = readers[options.format]
    identity: list[Any] = [options.format, options.text_field, options.longest_line]
    identity += [list(file) for file in found if isinstance(file, corpus.Bad)]
    versions = [version_of(file) for file in files]
    identity += [[str(file), *version] for file, version in zip(files, versions, strict=True)]
    sizes = zip(files, versions, strict=True)
    size = sum(size * (4 if file.suffix in (".gz", ".zst") else 1) for file, (size, _) in sizes)
    documents = ([file] if isinstance(file, corpus.Bad) else read(file, options.longest_line) for file in found)
    return chain.from_iterable(documents), identity, size


def _build(options: argparse.Namespace) -> None:
    from bertjax.data.build import BuildSettings, build, one_sentence
    from bertjax.data.corpus import split_sentences
    from bertjax.data.tokenizer import load_tokenizer, parsing_special_tokens
    from bertjax.run.writers import Progress

    settings = BuildSettings(
        split_sentences=one_sentence if options.format == "sentences" else split_sentences,
        holdout=options.holdout,
        seed=options.seed,
        skip_bad=options.skip_bad,
        workers=options.workers,
        shard_tokens=options.shard_tokens,
    )
    out = path_of(options.out)
    tokenizer = load_tokenizer(options.tokenizer)
    if options.parse_special_tokens:
        tokenizer = parsing_special_tokens(tokenizer)
    documents, identity, _ = _documents(options)
    progress, begun = Progress(), time.monotonic()

    def report(read: int, tokens: int) -> None:
        rate = tokens / max(1e-9, time.monotonic() - begun)
        progress.line(f"{counted(read, 'documents')}  {counted(tokens, 'tokens')}  {rate:,.0f} tokens/s")

    manifest = build(documents, tokenizer, out, settings, identity=identity, report=report)
    totals: dict[str, Any] = {count: manifest.total(count) for count in ("documents", "sentences", "tokens")}
    totals |= {"dropped": manifest.dropped, "repeats": manifest.repeats}
    print_result(options, totals | {"seconds": round(time.monotonic() - begun, 1)})


def _inspect(options: argparse.Namespace) -> None:
    from bertjax.data.inspect import inspect_corpus

    print_result(options, inspect_corpus(options.corpus))


def _verify(options: argparse.Namespace) -> None:
    from bertjax.data.verify import verify_corpus

    print_result(options, verify_corpus(options.corpus))


def _copy(options: argparse.Namespace) -> None:
    from bertjax.data.copy import copy_corpus
    from bertjax.run.writers import Progress

    print_result(options, {"bytes": copy_corpus(options.corpus, options.out, report=Progress().line)})


def _train_tokenizer(options: argparse.Namespace) -> None:
    from bertjax.data import vocabulary
    from bertjax.data.tokenizer import fingerprint, load_tokenizer

    train = {
        "wordpiece": vocabulary.train_wordpiece,
        "bpe": vocabulary.train_byte_level_bpe,
        "unigram": vocabulary.train_unigram,
    }[options.kind]
    out = path_of(options.out)
    documents, _, size = _documents(options)
    done = vocabulary.train_vocabulary(
        documents, train, size=options.size, lowercase=options.lowercase, input_bytes=size,
        sample_bytes=options.sample_bytes, skip_bad=options.skip_bad, out=out,
    )  # fmt: skip
    tokenizer = load_tokenizer(out)
    print_result(options, done | {"vocabulary": tokenizer.vocabulary.size, "fingerprint": fingerprint(tokenizer)})


def _inspect_tokenizer(options: argparse.Namespace) -> None:
    from bertjax.data.look import describe, look, summary

    tokenizer, templates = _tokenizer_of(options)
    if not options.text:
        print_result(options, summary(tokenizer, templates))
    elif not options.json:
        print_result(options, describe(tokenizer))
    for text in options.text:
        found = look(tokenizer, text, templates)
        if options.json:
            show_json(plain(found))
        else:
            _print_look(found)


def _tokenizer_of(options: argparse.Namespace) -> tuple["Tokenizer", "Templates"]:
    """Read the tokenizer of a model and its templates; of a folder without a model, its tokenizer alone."""
    from bertjax.checkpoints.trained import load
    from bertjax.data.templates import templates_for
    from bertjax.data.tokenizer import load_tokenizer, parsing_special_tokens
    from bertjax.inference.compatible import check_tokenizer
    from bertjax.inference.template_of import templates_of

    try:
        model = load(options.model, options.experiment)
        check_tokenizer(model, options.model)
        tokenizer, templates = model.text, templates_of(model)
    except InputError as error:
        if not path_of(options.model).is_dir():
            raise
        tokenizer = load_tokenizer(options.model)
        templates = templates_for(tokenizer, cls_last=False)
        tell(f"note: no model: {error}")
    return parsing_special_tokens(tokenizer) if options.parse_special_tokens else tokenizer, templates


def _print_look(found: "Look") -> None:
    show(found.text)
    show(f"    {'piece':<16} {'id':>7} mask segment offsets")
    for token in found.tokens:
        place = f"{token.start}–{token.end}" if token.start is not None else "special"
        show(f"    {token.piece:<16} {token.id:>7} {token.mask:>4} {token.segment:>7} {place}")
    show(f"    decoded: {found.decoded!r} ({found.round_trip})")
    for name, script in found.scripts.items():
        show(f"    {name}: {readable(script)}")
    for warning in found.warnings:
        show(f"    warning: {warning}")

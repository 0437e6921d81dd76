"""The commands of sentence embeddings: evaluate retrieval, evaluate similarity, predict search."""

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bertjax.commands.arguments import command, names_in, positive, print_result, takes_json, takes_model, tell
from bertjax.errors import InputError
from bertjax.storage.paths import path_of
from bertjax.wording import counted


def add_evaluations(scored: Any) -> None:
    """Add the evaluations of embeddings to those of `evaluate`."""
    retrieval = command(scored, "retrieval", _evaluate_retrieval, "evaluate embeddings by searching a collection",
                        "bertjax evaluate retrieval --model runs/embed --data pairs.csv "
                        "--columns question,answer")  # fmt: skip
    _takes_settings(retrieval)
    retrieval.add_argument("--data", metavar="FILE", help="a file of pairs, as of training, or SQuAD's JSON: each "
                           "anchor is searched for among all passages")  # fmt: skip
    retrieval.add_argument("--columns", default="anchor,positive", metavar="NAMES",
                           help="columns of anchors, passages and hard negatives (default: %(default)s)")  # fmt: skip
    retrieval.add_argument("--queries", metavar="FILE", help="instead: texts with ids (columns id and text)")
    retrieval.add_argument("--passages", metavar="FILE", help="texts with ids, and a title if there is one")
    retrieval.add_argument("--relevant", metavar="FILE",
                           help="ids of queries and passages (columns query and passage, or BEIR's query-id and "
                           "corpus-id), with a degree `score` if there is one")  # fmt: skip

    similarity = command(scored, "similarity", _evaluate_similarity,
                         "evaluate embeddings by the correlation of cosines with scores of pairs, such as STS-B",
                         "bertjax evaluate similarity --model runs/embed --data STS-B/dev.tsv")  # fmt: skip
    _takes_settings(similarity)
    similarity.add_argument("--data", required=True, metavar="FILE", help="a .csv, .tsv or .jsonl")
    similarity.add_argument("--columns", default="sentence1,sentence2", metavar="NAMES",
                            help="columns of the two texts (default: %(default)s)")  # fmt: skip
    similarity.add_argument("--label", default="score", metavar="NAME", help="column of the score (default: score)")


def _takes_settings(parser: argparse.ArgumentParser) -> None:
    takes_model(parser)
    parser.add_argument("--width", type=positive, default=0, metavar="N", help="use the first N dimensions alone")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts in a batch (default: 32)")
    parser.add_argument("--max-length", type=positive, default=0, metavar="N",
                        help="truncate to N tokens (default: the length that the model states)")  # fmt: skip
    takes_json(parser)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    given = {"width": options.width, "max_length": options.max_length, "batch_size": options.batch_size}
    return given | {"say": tell}


def _loaded(options: argparse.Namespace) -> Any:
    """Load the model. Raises InputError where it does not belong to its tokenizer."""
    from bertjax.checkpoints.trained import load
    from bertjax.inference.compatible import check_tokenizer
    from bertjax.machine.xla_flags import keep_compiled_programs

    keep_compiled_programs(tell)
    model = load(options.model, options.experiment)
    check_tokenizer(model, options.model)
    return model


def _evaluate_retrieval(options: argparse.Namespace) -> None:
    from bertjax.inference.retrieval import evaluate_retrieval

    collection = _collection(options)
    print_result(options, dict(evaluate_retrieval(_loaded(options), collection, **_settings(options))))


def _collection(options: argparse.Namespace) -> Any:
    from bertjax.tasks.collection import collection_of_pairs, read_collection

    files = (options.queries, options.passages, options.relevant)
    if bool(options.data) == any(files) or (any(files) and not all(files)):
        raise InputError(
            "give --data with pairs, or --queries, --passages and --relevant together; to search without knowing what "
            "is relevant use bertjax predict search"
        )
    notes: Counter[str] = Counter()
    if options.data:
        columns = names_in(options.columns)
        if len(columns) < 2:
            raise InputError(f"--columns {options.columns}: name two, of queries and of their passages")
        collection = collection_of_pairs(path_of(options.data), columns, notes)
    else:
        queries, passages, relevant = map(path_of, files)
        collection = read_collection(queries, passages, relevant, notes)
    for note, count in (+notes).items():
        tell(counted(count, note))
    return collection


def _evaluate_similarity(options: argparse.Namespace) -> None:
    from bertjax.inference.retrieval import evaluate_similarity
    from bertjax.tasks.collection import read_scored_pairs

    notes: Counter[str] = Counter()
    columns = names_in(options.columns)
    pairs, scores = read_scored_pairs(path_of(options.data), columns, options.label, notes)
    for note, count in (+notes).items():
        tell(counted(count, note))
    print_result(options, dict(evaluate_similarity(_loaded(options), pairs, scores, **_settings(options))))


def takes_passages(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict search`."""
    parser.add_argument("--passages", required=True, metavar="FILE",
                        help="what is searched: a .txt with a passage on each line, or a .csv, .tsv or .jsonl with "
                        "columns id and text")  # fmt: skip
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="passages for each query (default: 5)")
    parser.add_argument("--max-length", type=positive, default=0, metavar="N",
                        help="truncate to N tokens (default: the length that the model states)")  # fmt: skip


class Search:
    """Search the passages of a file, embedded once, at the first queries."""

    def __init__(self, options: argparse.Namespace) -> None:
        from bertjax.tasks.collection import read_passages

        notes: Counter[str] = Counter()
        self._options = options
        self._vectors: Any = None  # until the first queries
        self._passages = list(read_passages(path_of(options.passages), notes).items())
        for note, count in (+notes).items():
            tell(counted(count, note))

    def __call__(self, model: Any, queries: list[str], notes: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield the best passages of each query."""
        from bertjax.inference.retrieval import PASSAGE, search, vectors

        options = self._options
        settings = {"max_length": options.max_length, "batch_size": options.batch_size, "say": tell}
        if not queries:
            return
        if self._vectors is None:
            self._vectors = vectors(model, [text for _, text in self._passages], PASSAGE, **settings)
        found = search(model, queries, self._vectors, top=options.top, **settings)
        for query, hits in zip(queries, found, strict=True):
            ranked = [
                {"id": self._passages[hit.place][0], "score": round(hit.score, 6), "text": self._passages[hit.place][1]}
                for hit in hits
            ]
            yield {"query": query, "passages": ranked}


def shown(result: dict[str, Any]) -> str:
    """Format the passages that a search found for people."""
    lines = [f"    {hit['score']:.4f}  {hit['id']}  {hit['text'][:100]}" for hit in result["passages"]]
    return "\n".join([result["query"], *lines])

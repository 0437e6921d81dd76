"""Sentence embeddings of your own: contrastive training of any encoder on pairs of texts.

    bertjax pretrain experiments/embed.py init=all-MiniLM-L6-v2/ data=pairs.csv columns=question,answer \\
        --workdir runs/embed
    bertjax pretrain experiments/embed.py init=runs/bert data=train-v1.1.json validation=dev-v1.1.json --workdir runs/qa
    bertjax pretrain experiments/embed.py init=bert-base/ data=texts.csv columns=text length=64 --workdir runs/simcse

`data` is a .csv, .tsv or .jsonl with a column of anchors (queries) and one of the passages that belong to them, then
columns of hard negatives, if any; or a folder with files train and validation; or SQuAD's JSON. With one column it is
SimCSE: each text is its own passage, which dropout tells apart. Each anchor is compared with the passages of the whole
batch, so a larger batch is a harder task: where memory does not hold it, `chunks` encodes it in parts, exactly.

Afterwards: bertjax evaluate retrieval, predict search, convert --to sentence-transformers (docs/embeddings.md).
"""

from typing import Literal

from bertjax.checkpoints.described import Init
from bertjax.checkpoints.trained import Model, load
from bertjax.config import Experiment, Phase, Run
from bertjax.data.records import corpus_tokenizer
from bertjax.data.tokenizer import same_tokenizer
from bertjax.errors import InputError
from bertjax.huggingface.folder import is_huggingface
from bertjax.huggingface.sentence_transformers import transformer_folder
from bertjax.inference.retrieval import PASSAGE
from bertjax.inference.template_of import is_cls_last, templates_of
from bertjax.models.published import Published
from bertjax.models.sentence import (
    SENTENCE,
    SentenceEmbedding,
    UnitLength,
    cls_token,
    last_token,
    mean_tokens,
    sentence_head,
)
from bertjax.objectives.contrastive import Contrastive
from bertjax.optim.optimizer import Optimizer
from bertjax.optim.schedules import Schedule
from bertjax.storage.paths import path_of
from bertjax.tasks.text_pairs import TextPairs

POOLING = {"mean": mean_tokens, "cls": cls_token, "last": last_token}


def experiment(
    init: str,
    data: str,
    validation: str = "",  # a file of pairs, for the loss on the way; of a folder its file validation
    columns: tuple[str, ...] = ("anchor", "positive"),  # then those of hard negatives; of one column it is SimCSE
    negatives: int = 0,  # the most hard negatives of a row; by default one for each column of them
    steps: int = 0,  # instead of epochs
    epochs: float = 1.0,
    batch_size: int = 64,
    chunks: int = 1,  # parts in which a batch is encoded, where memory does not hold its activations
    length: int = 128,  # the most tokens of a passage
    anchor_length: int = 0,  # of an anchor; by default as many
    temperature: float = 0.05,
    widths: tuple[int, ...] = (),  # numbers of first dimensions that are also trained alone (Matryoshka)
    pooling: Literal["", "mean", "cls", "last"] = "",  # by default as the folder of init says, else the mean
    query_prompt: str = "",  # put before anchors; by default the prompt `query` of init
    passage_prompt: str = "",
    learning_rate: float = 5e-5,
    tokenizer: str = "",  # a folder; by default that of init
    init_experiment: str = "",  # the file of init, where its encoder is a class of your own
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Build the experiment."""
    model = Init.parse(init).source
    source = load(model, init_experiment)
    anchor_length = anchor_length or length
    head = head_of(source, pooling, {"query": query_prompt, "passage": passage_prompt}, max(length, anchor_length))
    encoder = source.encoder.clone(dtype=dtype)
    if encoder.max_length and max(length, anchor_length) > encoder.max_length:
        raise ValueError(
            f"length={max(length, anchor_length)}, but {init} has {encoder.max_length} positions: reduce it"
        )
    objective = Contrastive(Published(encoder, ((SENTENCE, head),), is_cls_last(source)), temperature, widths, chunks)
    usual = dict(head.prompts).get(head.default_prompt, "")
    of_query, of_passage = (dict(head.prompts).get(role, usual) for role in ("query", "passage"))
    rows = TextPairs(
        data, tokenizer or tokenizer_of(model, source), templates_of(source), columns, length, anchor_length,
        negatives or max(0, len(columns) - 2), (of_query, of_passage), validation,
    )  # fmt: skip
    steps = steps or max(1, round(epochs * rows.count() / batch_size))
    return Experiment(
        objective=objective,
        optimizer=Optimizer(
            Schedule(learning_rate, warmup=steps // 10, total=steps), rates=(*objective.frozen, (".*", 1.0))
        ),
        phases=(Phase(steps, batch_size, rows),),
        init=init,
        run=Run(evaluate_every=500, evaluate_batches=20, checkpoint_every=500),
    )


def head_of(source: Model, pooling: str, prompts: dict[str, str], length: int) -> SentenceEmbedding:
    """Return the head of the model, or one with this pooling; with these prompts and this length in use."""
    head, _ = sentence_head(source.objective, source.params)
    if pooling:
        head = SentenceEmbedding(
            (POOLING[pooling],), (UnitLength(),), prompts=head.prompts, default_prompt=head.default_prompt
        )
    known = dict(head.prompts)
    passage = next((known[name] for name in PASSAGE if name in known), None)  # as searching chooses it
    if passage is not None:
        known.setdefault("passage", passage)
    known |= {name: text for name, text in prompts.items() if text}
    if head.lowercase or (any(known.values()) and not head.include_prompt):
        raise ValueError(
            "do_lower_case and include_prompt=false of sentence-transformers are not trained: set pooling=mean (or cls)"
        )
    return head.clone(max_length=length, prompts=tuple(known.items()))


def tokenizer_of(init: str, source: Model) -> str:
    """Return the folder of the tokenizer of a model: that of transformers itself, or of the corpus of a run."""
    folder = path_of(init.removesuffix(":encoder"))
    if is_huggingface(folder):
        return str(transformer_folder(folder))
    for phase in source.config.get("phases", ()):
        rows = phase["rows"]
        corpus = path_of(rows.get("corpus") or ".") / "tokenizer"
        if rows.get("corpus") and corpus.is_dir() and same_tokenizer(corpus_tokenizer(corpus.parent), source.text):
            return str(corpus)
        if rows.get("tokenizer") and path_of(rows["tokenizer"]).exists():
            return str(rows["tokenizer"])
    raise InputError(f"the tokenizer of {init} is in no folder: pass tokenizer=FOLDER, such as that of its corpus")

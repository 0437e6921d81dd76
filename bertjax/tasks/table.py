"""The tasks that bertjax knows by name: files, columns, label names, metrics and quirks of each.

Columns and quirks are those of nyu-mll/GLUE-baselines src/tasks.py, google-research/bert run_classifier.py, and the
data sets' own documentation.
"""

from bertjax.errors import InputError
from bertjax.nearest import did_you_mean
from bertjax.tasks.choices import Arc, Copa, Options, Race
from bertjax.tasks.formats import Conll, LabelledFolders, Paraphrases, Squad, Table
from bertjax.tasks.tags import iob2_labels
from bertjax.tasks.task import Kind, Part, Task
from bertjax.tasks.tfds import Alternatives, Articles, Columns, Lettered, Questions, Tagged


def _glue(
    name: str,
    folder: str,
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    *,
    label: str = "label",
    kind: Kind = "classify",
    metrics: tuple[str, ...] = ("accuracy",),
    spelled: tuple[str, ...] = (),
    scale: tuple[float, float] | None = None,
    skip_incomplete: bool = False,
) -> Task:
    """Define a task of three TSV files with headers, of which the test split has no labels."""
    table = Table(texts, label, skip_incomplete=skip_incomplete)
    parts = (
        Part("train", ("train.tsv",), table, "train"),
        Part("validation", ("dev.tsv",), table, "validation"),
        Part("test", ("test.tsv",), Table(texts), "test"),
    )
    records = Columns(texts, skip_incomplete=skip_incomplete)
    return Task(name, kind, labels, metrics, parts, spelled, (folder,), (f"glue/{name}",), records, scale)


_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = (
    "contradiction",
    "entailment",
    "neutral",
)  # as in run_classifier.py; other code orders them differently
_COLA = Table(("sentence",), "label", columns=("source", "label", "mark", "sentence"))
_PREMISES = Columns(("premise", "hypothesis"))

COLA = Task(
    "cola", "classify", ("unacceptable", "acceptable"), ("matthews", "accuracy"),
    (
        Part("train", ("train.tsv",), _COLA, "train"),
        Part("validation", ("dev.tsv",), _COLA, "validation"),
        Part("test", ("test.tsv",), Table(("sentence",)), "test"),  # the one with a header
    ),
    ("0", "1"), ("CoLA",), ("glue/cola",), Columns(("sentence",)),
)  # fmt: skip
SST2 = _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), spelled=("0", "1"))
MRPC = Task(
    "mrpc", "classify", ("not_equivalent", "equivalent"), ("f1", "accuracy"),
    (
        Part("train", ("train.tsv", "msr_paraphrase_train.txt"), Paraphrases(dev=False), "train"),
        Part("validation", ("dev.tsv", "msr_paraphrase_train.txt"), Paraphrases(dev=True), "validation"),
        Part("test", ("test.tsv",), Table(("#1 String", "#2 String")), "test"),
    ),
    ("0", "1"), ("MRPC",), ("glue/mrpc",), Columns(("sentence1", "sentence2")),
)  # fmt: skip
STSB = _glue(
    "stsb", "STS-B", ("sentence1", "sentence2"), (), label="score", kind="regress", metrics=("pearson", "spearman"),
    scale=(0.0, 5.0),
)  # fmt: skip
QQP = _glue(
    "qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), label="is_duplicate",
    metrics=("f1", "accuracy"), spelled=("0", "1"), skip_incomplete=True,
)  # fmt: skip
MNLI = Task(
    "mnli", "classify", _MNLI, ("accuracy",),
    (
        # By name: the label is column 11 of train and column 15 of dev.
        Part("train", ("train.tsv",), Table(("sentence1", "sentence2"), "gold_label"), "train"),
        Part("validation", ("dev_matched.tsv",), Table(("sentence1", "sentence2"), "gold_label"), "validation_matched"),
        Part("validation_mismatched", ("dev_mismatched.tsv",), Table(("sentence1", "sentence2"), "gold_label"),
             "validation_mismatched"),
        Part("test", ("test_matched.tsv",), Table(("sentence1", "sentence2")), "test_matched"),
        Part("test_mismatched", ("test_mismatched.tsv",), Table(("sentence1", "sentence2")), "test_mismatched"),
    ),
    (), ("MNLI",), ("glue/mnli",), _PREMISES,
)  # fmt: skip
QNLI = _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT)
RTE = _glue("rte", "RTE", ("sentence1", "sentence2"), _ENTAILMENT)
WNLI = _glue("wnli", "WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment"), spelled=("0", "1"))
AX = Task(
    "ax", "classify", _MNLI, ("matthews", "accuracy"),
    (
        Part("validation", ("diagnostic-full.tsv",), Table(("Premise", "Hypothesis"), "Label")),
        Part("test", ("diagnostic.tsv", "AX.tsv"), Table(("sentence1", "sentence2")), "test"),
    ),
    (), ("AX", "diagnostic"), ("glue/ax",), _PREMISES,
)  # fmt: skip
GLUE = (COLA, SST2, MRPC, STSB, QQP, MNLI, QNLI, RTE, WNLI)

SQUAD = Task(
    "squad", "span", (), ("f1", "exact"),
    (
        Part("train", ("train-v1.1.json", "train-v1.1.rebuilt.json"), Squad(False), "train"),
        Part("validation", ("dev-v1.1.json", "dev-v1.1.rebuilt.json"), Squad(False), "validation"),
    ),
    (), ("squad", "SQuAD"), ("squad/v1.1",), Questions(False),
)  # fmt: skip
SQUAD2 = Task(
    "squad2", "span", (), ("f1", "exact"),
    (
        Part("train", ("train-v2.0.json",), Squad(True), "train"),
        Part("validation", ("dev-v2.0.json", "dev-v2.0.rebuilt.json"), Squad(True), "validation"),
    ),
    (), ("squad", "SQuAD"), ("squad/v2.0",), Questions(True), unanswerable=True,
)  # fmt: skip


CONLL2003 = Task(
    "conll2003", "tag", iob2_labels(("PER", "ORG", "LOC", "MISC")), ("entity_f1",),
    (
        Part("train", ("eng.train", "train.txt"), Conll(), "train"),
        Part("validation", ("eng.testa", "valid.txt"), Conll(), "dev"),
        Part("test", ("eng.testb", "test.txt"), Conll(), "test"),
    ),
    (), ("conll2003", "CoNLL-2003"), ("conll2003",), Tagged(),
)  # fmt: skip
WNUT17 = Task(
    "wnut17", "tag", iob2_labels(("corporation", "creative-work", "group", "location", "person", "product")),
    ("entity_f1",),
    (
        Part("train", ("wnut17train.conll",), Conll()),
        Part("validation", ("emerging.dev.conll",), Conll()),
        Part("test", ("emerging.test.annotated",), Conll()),
    ),
    (), ("wnut17", "WNUT-17"),
)  # fmt: skip
RACE = Task(
    "race", "choice", (), ("accuracy",),
    (
        Part("train", ("train", "train.json"), Race(), "train"),
        Part("validation", ("dev", "dev.json", "expmrc-race-dev.json"), Race(), "dev"),
        Part("test", ("test", "test.json"), Race(), "test"),
    ),
    (), ("RACE", "race", "race_expmrc"), ("race/middle", "race/high"), Articles(), options=4,
)  # fmt: skip
_ENDINGS = ("ending0", "ending1", "ending2", "ending3")
SWAG = Task(
    "swag", "choice", (), ("accuracy",),
    (
        Part("train", ("train.csv",), Options("sent1", "sent2", _ENDINGS, "label")),
        Part("validation", ("val.csv",), Options("sent1", "sent2", _ENDINGS, "label")),
        Part("test", ("test.csv",), Options("sent1", "sent2", _ENDINGS)),
    ),
    (), ("SWAG", "swag"), options=4,
)  # fmt: skip
COPA = Task(
    "copa", "choice", (), ("accuracy",),
    (
        # As SuperGLUE has it, else the XML: its balanced development set trains, its test set evaluates.
        Part("train", ("train.jsonl", "balanced-copa-dev-all.xml", "copa-dev.xml"), Copa(), "train"),
        Part("validation", ("val.jsonl", "copa-test.xml"), Copa(), "validation"),
        Part("test", ("test.jsonl",), Copa(), "test"),
    ),
    (), ("COPA", "copa", "balanced_copa"), ("super_glue/copa",), Alternatives(), options=2,
)  # fmt: skip


def _arc(name: str, subset: str) -> Task:
    short = subset.lower()
    parts = (
        Part("train", (f"ARC-{subset}-Train.jsonl", f"{short}_train.csv"), Arc(), "train"),
        Part("validation", (f"ARC-{subset}-Dev.jsonl", f"{short}_validation.csv"), Arc(), "validation"),
        Part("test", (f"ARC-{subset}-Test.jsonl", f"{short}_test.csv"), Arc(), "test"),
    )
    folders = (f"ARC-{subset}", "arc")
    tfds = (f"ai2_arc/ARC-{subset}",)
    return Task(name, "choice", (), ("accuracy",), parts, (), folders, tfds, Lettered(), options=5)


ARC_EASY, ARC_CHALLENGE = _arc("arc_easy", "Easy"), _arc("arc_challenge", "Challenge")
IMDB = Task(
    "imdb", "classify", ("neg", "pos"), ("accuracy",),
    (
        Part("train", ("train",), LabelledFolders(("neg", "pos")), "train"),
        Part("validation", ("test",), LabelledFolders(("neg", "pos")), "test"),  # it has no other
    ),
    (), ("aclImdb",), ("imdb_reviews",), Columns(("text",)),
)  # fmt: skip

TASKS = (*GLUE, AX, SQUAD, SQUAD2, CONLL2003, WNUT17, RACE, SWAG, COPA, ARC_EASY, ARC_CHALLENGE, IMDB)


def find_task(name: str) -> Task:
    """Return the task of this name. Raises InputError for an unknown name."""
    for task in TASKS:
        if task.name == name:
            return task
    names = [task.name for task in TASKS]
    meant = did_you_mean(name, [*names, "own"])
    raise InputError(f"unknown task {name!r}: {f'{meant} ' if meant else ''}the tasks are {', '.join(names)}")

"""What a checkpoint says of itself: the types of its `info`, which are checked as it is read."""

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from bertjax.huggingface.configuration import family_of
from bertjax.serialization.typed_json import typed
from bertjax.tasks.pooling import Windows


class Notes(TypedDict):
    """The Hugging Face folder that a model came from: its config.json, and how it was read."""

    config: NotRequired[dict[str, Any]]
    prefixed: NotRequired[bool]
    dtypes: NotRequired[dict[str, Literal["F32", "F16", "BF16"]]]
    ignored: NotRequired[dict[str, str]]
    reported: NotRequired[list[str]]
    no_embedding: NotRequired[str]
    similarity: NotRequired[str]


class DescribedPhase(TypedDict):
    """The description of a phase."""

    rows: dict[str, Any]
    type: NotRequired[str]
    steps: NotRequired[int]
    batch_size: NotRequired[int]
    accumulate: NotRequired[int]


class DescribedAmendment(TypedDict):
    """The description of an `Amendment`."""

    name: str
    value: str
    step: int
    type: NotRequired[str]


class ChosenThreshold(TypedDict):
    """The probability above which `label`, of two, is predicted, with the macro F1 on the validation split."""

    label: str
    probability: float
    macro_f1: float


class Described(TypedDict):
    """The description of an experiment, or of a model alone. What is Any is rebuilt by `from_json` or not used."""

    objective: dict[str, Any]
    type: NotRequired[str]
    optimizer: NotRequired[dict[str, Any]]
    phases: NotRequired[list[DescribedPhase]]
    seed: NotRequired[int]
    init: NotRequired[str]
    mesh: NotRequired[dict[str, Any] | None]
    run: NotRequired[dict[str, Any] | None]
    counters: NotRequired[dict[str, Any]]
    amend: NotRequired[list[DescribedAmendment]]
    extend: NotRequired[int | None]
    architecture: NotRequired[str]
    part_of: NotRequired[str]
    huggingface: NotRequired[Notes]
    step: NotRequired[int]  # of the best model of a fine-tuning, with its metrics
    metrics: NotRequired[dict[str, float]]
    threshold: NotRequired[ChosenThreshold]
    windows: NotRequired[Windows]


class Info(TypedDict):
    """The `info` of a checkpoint. tokenizer: its files in base64. checksums: of arrays, by item and name."""

    experiment: Described
    tokenizer: dict[str, str]
    fingerprint: str
    checksums: dict[str, dict[str, str]]
    versions: NotRequired[dict[str, str]]
    step: NotRequired[int]
    data: NotRequired[list[str]]
    model: NotRequired[str]
    skips: NotRequired[dict[str, float]]


def checked_info(info: Any, step_folder: Path) -> dict[str, Any]:
    """Return the `info` of a checkpoint, of today's names. Raises InputError where a value is not of its type."""
    checked: dict[str, Any] = {**typed(info, Info, "info")}
    if config := checked["experiment"].get("huggingface", {}).get("config"):
        family_of(config, step_folder)  # raises InputError for one that this version does not have
    return checked

"""Write the predictions of an evaluation, beside the labels of the data."""

import json
from pathlib import Path
from typing import Any

from bertjax.storage import files
from bertjax.tasks.answers import Answered, write_answers
from bertjax.tasks.scoring import Evaluated


def write_predictions(folder: Path, evaluated: Evaluated) -> None:
    """Write predictions.jsonl, a line for each example: its place, label, prediction and probabilities by label.

    For questions also SQuAD's official files.
    """
    folder = files.make_folder(folder, "")
    if evaluated.task.kind == "span":
        write_answers(folder, evaluated.predictions, unanswerable=evaluated.task.unanswerable)
    with files.writing(folder / "predictions.jsonl") as file:
        for number, gold in enumerate(evaluated.gold):
            file.write(json.dumps(_line(evaluated, number, gold), ensure_ascii=False).encode() + b"\n")


def _line(evaluated: Evaluated, number: int, gold: Any) -> dict[str, Any]:
    task, predicted = evaluated.task, evaluated.predictions[number]
    line = {"example": evaluated.examples[number].origin, "gold": gold, "predicted": predicted}
    if isinstance(predicted, Answered):
        return line | {"predicted": predicted.answer.text, "probability": round(float(predicted.answer.probability), 7)}
    if task.kind == "classify":
        line |= {"gold": task.labels[gold], "predicted": task.labels[predicted]}
    if task.kind == "multilabel":
        line |= {name: [task.labels[label] for label in line[name]] for name in ("gold", "predicted")}
    if evaluated.probabilities is not None:
        chances = [round(float(chance), 7) for chance in evaluated.probabilities[number]]
        line["probabilities"] = dict(zip(task.labels, chances, strict=True)) if task.labels else chances
    return line

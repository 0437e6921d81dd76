"""What honest people made is read as ever, and nothing of it looks like an attack."""

import json

import pytest

from security import world as w
from security.running import run

HONEST = {
    "a run is loaded": ("run", w.LOAD),
    "a run is evaluated": ("run", w.EVALUATE),
    "a run fills masks": ("run", w.FILL),
    "a run is converted": ("run", w.CONVERT),
    "a run is exported": ("run", w.EXPORT),
    "a run begins another": ("run", w.PRETRAIN),
    "a folder of transformers is loaded": ("language", w.LOAD),
    "a folder of transformers fills masks": ("language", w.FILL),
    "a classifier classifies": ("classifier", w.CLASSIFY),
    "a classifier is scored": ("classifier", w.SCORE),
    "a classifier is fine-tuned": ("classifier", w.FINETUNE),
    "a sentence model embeds": ("sentence", w.EMBED),
    "a sentence model is exported": ("sentence", w.EXPORT_SENTENCE),
    "a tokenizer is shown": ("tokenizer", w.LOOK),
    "a corpus is built": ("texts", w.BUILD),
    "a corpus is inspected": ("corpus", w.INSPECT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honest_folders_pass(name, world, capsys):
    kind, command = HONEST[name]
    w.copied(kind)(world)
    outcome = run(world, command, capsys)
    # One step is no fine-tuning: it is no better than a constant, which has an exit code.
    assert outcome.code == (1 if command is w.FINETUNE else 0), outcome.err + outcome.trace
    assert not outcome.watch.violations
    if command is w.FINETUNE:
        assert json.loads((world.out / "results.json").read_text())

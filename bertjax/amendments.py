"""Change a number of the optimiser from a step on, in a run that goes on: recorded with the run, so resuming is exact.

    amend=optimizer.learning_rate.peak:5e-5@37,optimizer.clip:0.5@100

A run that is made longer (`extend=20000`) is amended too: steps:20000@10001 are 20,000 steps in all, of which the ones
from 10,001 on go by the schedule of so many steps.
"""

import re
from dataclasses import dataclass

from bertjax.errors import InputError

_FORM = re.compile(r"optimizer\.[A-Za-z0-9_.]+:[^@:]+@\d+|steps:[1-9]\d{0,15}@\d+", re.ASCII)

STEPS = "steps"
"""The name of an amendment by which the run is longer: its value is the number of all steps."""


@dataclass(frozen=True)
class Amendment:
    """The field `name` of an experiment has `value`, a text as in an override, from the update of step `step` on."""

    name: str
    value: str
    step: int

    def __post_init__(self) -> None:
        if not _FORM.fullmatch(str(self)):
            raise InputError(
                f"amend={self}: give optimizer.FIELD:VALUE@STEP, such as optimizer.learning_rate.peak:5e-5@37; nothing "
                "else of an experiment may change on the way"
            )

    def __str__(self) -> str:
        return f"{self.name}:{self.value}@{self.step}"

    @staticmethod
    def separate(text: str) -> list[str]:
        """Separate amendments by commas; a value may have some too, as in optimizer.spikes:10,128@37."""
        return re.split(rf",(?=\s*(?:optimizer\.|{STEPS}:))", text.strip("()[]"))

    @staticmethod
    def parse(text: str) -> "Amendment":
        """Parse NAME:VALUE@STEP. Raises InputError for another form."""
        name, _, rest = text.strip().partition(":")
        value, _, step = rest.rpartition("@")
        return Amendment(name, value, int(step) if step.isdecimal() else -1)

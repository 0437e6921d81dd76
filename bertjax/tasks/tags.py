"""Parse the entities of tags in any of the common schemes, and convert them to IOB2.

IOB1 begins an entity with B- only where it follows another of its type; IOB2 always does; BIOES (or BILOU) also marks
the last word, and a word alone. Beginnings are decided as in the script conlleval: malformed sequences of
tags still give entities.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """Words first .. last are one entity of this type."""

    kind: str
    first: int
    last: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence.

    An entity begins at B-, S- and U-, and at I-, E- and L- after another type or O; it ends before the next one, and
    after E-, L-, S- and U-. So IOB1, IOB2 and BIOES are parsed alike.
    """
    found: list[Entity] = []
    open_kind, first = "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        continues = open_kind and mark in ("I", "E", "L") and kind == open_kind
        if open_kind and not continues:
            found.append(Entity(open_kind, first, place - 1))
            open_kind = ""
        if mark == "O":
            continue
        if not open_kind:
            open_kind, first = kind, place
        if mark in ("E", "L", "S", "U"):
            found.append(Entity(open_kind, first, place))
            open_kind = ""
    return found


def strict_entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Return only the entities that are tagged exactly in `scheme`: iob1, iob2 or bioes."""
    begins, ends, single = {"iob1": ("BI", "I", "BI"), "iob2": ("B", "I", "B"), "bioes": ("B", "E", "S")}[scheme]
    found = []
    for entity in entities(tags):
        marks = [tag.partition("-")[0] for tag in tags[entity.first : entity.last + 1]]
        valid = marks[0] in single if len(marks) == 1 else marks[0] in begins and marks[-1] in ends
        valid &= all(mark == "I" for mark in marks[1:-1])
        # In IOB1 an entity begins with B- if and only if it follows another of its type.
        if scheme == "iob1" and marks[0] == "B":
            valid &= entity.first > 0 and tags[entity.first - 1].partition("-")[2] == entity.kind
        if valid:
            found.append(entity)
    return found


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """Convert the tags of a sentence to IOB2."""
    written = ["O"] * len(tags)
    for entity in entities(tags):
        written[entity.first] = f"B-{entity.kind}"
        written[entity.first + 1 : entity.last + 1] = [f"I-{entity.kind}"] * (entity.last - entity.first)
    return tuple(written)


def iob2_labels(types: tuple[str, ...]) -> tuple[str, ...]:
    """Return the IOB2 tags of these entity types: O, then B- and I- of each."""
    return ("O", *(f"{mark}-{kind}" for kind in types for mark in "BI"))

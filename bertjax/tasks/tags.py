"""Parse the entities of tags in any of the common schemes, and convert them to IOB2.

IOB1 begins an entity with B- only where it follows another of its type; IOB2 always does; BIOES (BILOU, BMES) also
marks the last word, and a word alone. Beginnings are decided as in the script conlleval: malformed sequences of tags
still give entities. Marks are before the type or after it, with a hyphen or an underscore: B-PER, B_PER, PER-B, PER_B.
Without marks, neighbouring words of one type are one entity, as in the `simple` strategy of transformers' pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

OUTSIDE = "O"
_MARKS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
"""The letters of BIOES, BILOU and BMES, and what they mean in BIOES."""


class Entity(NamedTuple):
    """Words first .. last are one entity of this type."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Scheme:
    """How tags name entities.

    marks: where the mark of a tag is: `first` (B-PER) or `last` (PER-B) with `separator` between, `none` for types
    alone (PER, and O for other words), `words` where tags are no entities at all, such as parts of speech. types: those
    whose tags have marks, () for any.
    """

    marks: Literal["first", "last", "none", "words"] = "first"
    separator: str = "-"
    types: tuple[str, ...] = ()

    def parse(self, tag: str) -> tuple[str, str]:
        """Return mark and type of a tag: B, I, E, S, or O with no type. A tag without a mark has I."""
        if tag == OUTSIDE:
            return OUTSIDE, ""
        mark, kind = self._split(tag)
        if self.marks in ("first", "last") and mark in _MARKS and kind and (not self.types or kind in self.types):
            return _MARKS[mark], kind
        return "I", tag

    def has_mark(self, tag: str) -> bool:
        """Return whether a tag is O or has a mark."""
        return tag == OUTSIDE or (self._split(tag)[0] in _MARKS and self._split(tag)[1] != "")

    def _split(self, tag: str) -> tuple[str, str]:
        if self.marks == "last":
            kind, _, mark = tag.rpartition(self.separator)
        else:
            mark, _, kind = tag.partition(self.separator)
        return mark, kind

    def types_of(self, labels: Sequence[str]) -> tuple[str, ...]:
        """List the types of entities that labels name, sorted."""
        return tuple(sorted({kind for _, kind in map(self.parse, labels)} - {""}))

    @property
    def name(self) -> str:
        """Its name among SCHEMES."""
        return next(name for name, scheme in SCHEMES.items() if replace(self, types=()) == scheme)


IOB = Scheme()
PLAIN = Scheme("none")
WORDS = Scheme("words")
SCHEMES = {
    "B-TYPE": IOB,
    "B_TYPE": Scheme("first", "_"),
    "TYPE-B": Scheme("last", "-"),
    "TYPE_B": Scheme("last", "_"),
    "TYPE": PLAIN,
    "words": WORDS,
}
"""By the tag of an entity's first word; of `words` tags are no entities."""


def scheme_of(labels: Sequence[str]) -> Scheme:
    """Decide how labels name entities.

    A label B-… or I-… means marks before types, as in transformers, also where others have none; E-, S- and other marks
    count with types that have B- or I- too. Any other place or separator of marks counts only if every label but O has
    one, and each type B or I. Without marks, labels are types of entities if O is among them, else tags of words.
    """
    tags = [label for label in labels if label != OUTSIDE]
    for scheme in (IOB, Scheme("first", "_"), Scheme("last", "-"), Scheme("last", "_")):
        parsed = [scheme.parse(tag) for tag in tags if scheme.has_mark(tag)]
        kinds, begun = {kind for _, kind in parsed}, {kind for mark, kind in parsed if mark in "BI"}
        every = 0 < len(parsed) == len(tags)
        if (every and begun == kinds) or (scheme == IOB and (every or begun)):
            return Scheme(scheme.marks, scheme.separator, tuple(sorted(kinds if every else begun)))
    return PLAIN if OUTSIDE in labels else WORDS


def entities(tags: Sequence[str], scheme: Scheme = IOB) -> list[Entity]:
    """Return the entities of a sentence.

    An entity begins at B-, S- and U-, and at I-, E- and L- after another type or O; it ends before the next one, and
    after E-, L-, S- and U-. So IOB1, IOB2 and BIOES are parsed alike.
    """
    found: list[Entity] = []
    open_kind, first = "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, kind = scheme.parse(tag)
        continues = open_kind and mark in ("I", "E") and kind == open_kind
        if open_kind and not continues:
            found.append(Entity(open_kind, first, place - 1))
            open_kind = ""
        if mark == OUTSIDE:
            continue
        if not open_kind:
            open_kind, first = kind, place
        if mark in ("E", "S"):
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


def to_iob2(tags: Sequence[str], scheme: Scheme = IOB) -> tuple[str, ...]:
    """Convert the tags of a sentence to IOB2."""
    written = [OUTSIDE] * len(tags)
    for entity in entities(tags, scheme):
        written[entity.first] = f"B-{entity.kind}"
        written[entity.first + 1 : entity.last + 1] = [f"I-{entity.kind}"] * (entity.last - entity.first)
    return tuple(written)


def iob2_labels(types: tuple[str, ...]) -> tuple[str, ...]:
    """Return the IOB2 tags of these entity types: O, then B- and I- of each."""
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in "BI"))

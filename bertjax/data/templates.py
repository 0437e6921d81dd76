"""Templates of rows: the positions of special tokens and texts, their segments, and the side of the padding.

google-research/bert run_classifier.py and run_squad.py; fairseq models/roberta/hub_interface.py and
examples/roberta/README.race.md; zihangdai/xlnet classifier_utils.py, run_squad.py, run_race.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bertjax.data.tokenizer import Template, Tokenizer, Vocabulary


@dataclass(frozen=True)
class Templates:
    """The templates of a family of models.

    text: one text. pair: two texts. question: a question `a` and its context `b`. option: a context `a` and an ending
    `b`. left: whether padding is on the left, so that the last token is at the last position.
    """

    text: Template
    pair: Template
    question: Template
    option: Template
    left: bool = False


_PAIR = (("cls", 0), ("a", 0), ("sep", 0), ("b", 1), ("sep", 1))

BERT = Templates((("cls", 0), ("a", 0), ("sep", 0)), _PAIR, _PAIR, _PAIR)
"""Also of ALBERT, ELECTRA, DeBERTa, DistilBERT and the modern encoders; those without segments ignore them."""

_DOUBLE = (("cls", 0), ("a", 0), ("sep", 0), ("sep", 0), ("b", 0), ("sep", 0))

ROBERTA = Templates(
    text=(("cls", 0), ("a", 0), ("sep", 0)),
    pair=_DOUBLE,
    question=_DOUBLE,
    option=(("cls", 0), ("b", 0), ("sep", 0), ("a", 0), ("sep", 0)),
)
"""Two separators between texts, one segment; an option precedes its context."""

_CLS_LAST = (("a", 0), ("sep", 0), ("b", 1), ("sep", 1), ("cls", 2))

XLNET = Templates(
    text=(("a", 0), ("sep", 0), ("cls", 2)),
    pair=_CLS_LAST,
    question=(("b", 0), ("sep", 0), ("a", 1), ("sep", 1), ("cls", 2)),
    option=_CLS_LAST,
    left=True,
)
"""The classification token last, padding on the left; a context precedes its question."""


def templates_for(tokenizer: Tokenizer, *, cls_last: bool) -> Templates:
    """Choose the templates of a model. cls_last: the classification token is the last one (XLNet).

    Vocabularies with the special tokens of fairseq (`<s>`, `</s>`) belong to models trained with two separators. If the
    tokenizer's files have templates of one text and of two, these are used, also for questions and options of families
    in which they have the template of a pair.
    """
    family = XLNET if cls_last else ROBERTA if tokenizer.piece(tokenizer.vocabulary.cls) == "<s>" else BERT
    if tokenizer.templates is None:
        return family
    text, pair = tokenizer.templates
    swapped = tuple(({"a": "b", "b": "a"}.get(part, part), segment) for part, segment in pair)
    return replace(
        family,
        text=text,
        pair=pair,
        question=pair if family.question == family.pair else swapped,
        option=pair if family.option == family.pair else family.option,
    )


def one_segment(templates: Templates) -> Templates:
    """Return templates with segment 0 throughout."""

    def flat(template: Template) -> Template:
        return tuple((part, 0) for part, _ in template)

    t = templates
    return replace(t, text=flat(t.text), pair=flat(t.pair), question=flat(t.question), option=flat(t.option))


class Framed(NamedTuple):
    """A row without padding. tokens, types: i32 [n]. a, b, cls: their first positions, -1 if absent."""

    tokens: np.ndarray
    types: np.ndarray
    a: int
    b: int
    cls: int


def specials(template: Template) -> int:
    """Return the number of special tokens of a template."""
    return sum(part in ("cls", "sep") for part, _ in template)


def framed(template: Template, v: Vocabulary, a: Sequence[int], b: Sequence[int] = ()) -> Framed:
    """Build a row from a template and the ids of one or two texts."""
    ids: dict[str, Sequence[int]] = {"cls": [v.cls], "sep": [v.sep], "a": a, "b": b}
    begins = {"a": -1, "b": -1, "cls": -1}
    tokens: list[int] = []
    types: list[int] = []
    for part, segment in template:
        begins[part] = len(tokens)
        tokens += ids[part]
        types += [segment] * len(ids[part])
    return Framed(np.array(tokens, np.int32), np.array(types, np.int32), begins["a"], begins["b"], begins["cls"])

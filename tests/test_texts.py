"""A text where several are meant is one text."""

import pytest

from bertjax.errors import InputError
from bertjax.texts import several, several_choices, several_or_pairs, several_questions


def test_one_is_a_list_of_one():
    assert several("a cat sat") == several(["a cat sat"]) == several(text for text in ["a cat sat"]) == ["a cat sat"]
    assert several_or_pairs("a cat") == ["a cat"]
    assert several_or_pairs(["a", ["b", "c"]]) == ["a", ("b", "c")]
    assert several_questions(("who?", "me")) == several_questions([["who?", "me"]]) == [("who?", "me")]
    assert several_choices(("a cat", ["sat", "sang"])) == [("a cat", ["sat", "sang"])]
    assert several_choices([("a cat", ("sat", "sang"))] * 2) == [("a cat", ["sat", "sang"])] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: several(5), "texts is 5: give a text, or a list of texts"),
        (lambda: several(None), "texts is None"),
        (lambda: several(b"a"), "texts is a bytes"),
        (lambda: several({"a": "b"}), "texts is a dict"),
        (lambda: several(["a", 2]), "texts: number 2 is 2, not a text"),
        (lambda: several([("a", "b")]), "number 1 is a tuple, not a text"),
        (lambda: several_or_pairs([["a", 1]]), "texts, number 1: number 2 is 1"),
        (lambda: several_questions("who?"), r"questions is a text: give a list of pairs \(question, context\)"),
        (lambda: several_questions(["who?"]), "question 1 is 'who.' of 1 parts: give a question and its context"),
        (lambda: several_questions([("a", "b", "c")]), "of 3 parts"),
        (lambda: several_choices([("a", "bc")]), "choice 1 is not a context and a list of its endings"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()

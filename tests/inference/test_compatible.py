from types import SimpleNamespace

import pytest

from bertjax.errors import InputError
from bertjax.inference.compatible import check_texts, check_tokenizer


def sized(pieces, rows):
    """What is looked at of a model: how many pieces its tokenizer has, and how many rows its word table."""
    text = SimpleNamespace(vocabulary=SimpleNamespace(size=pieces, pad=0, cls=1, sep=2), templates=None)
    return SimpleNamespace(text=text, encoder=SimpleNamespace(V=rows), config={})


@pytest.mark.parametrize(
    ("pieces", "rows"),
    [(30522, 30522), (30522, 30528), (50280, 50368), (128001, 128100), (250102, 251000), (10, 137)],
)
def test_padding_of_published_word_tables_is_taken(pieces, rows):
    check_tokenizer(sized(pieces, rows), "model")


@pytest.mark.parametrize(("pieces", "rows"), [(30000, 30522), (30522, 30000), (28996, 30522), (30522, 30650)])
def test_a_tokenizer_of_another_size_is_refused_with_both_sizes_and_what_to_do(pieces, rows):
    with pytest.raises(InputError, match=r"they do not belong together, so put the model's own vocabulary") as error:
        check_tokenizer(sized(pieces, rows), "model")
    assert f"{pieces:,} ids" in str(error.value) and f"{rows:,} rows" in str(error.value)


def test_warnings_about_texts_name_their_place_and_stop_at_the_word_limit(tokenizer):
    model, reported = SimpleNamespace(text=tokenizer), []
    found = check_texts(model, ["time", "Магия"], reported.append, where="mine, validation: ")
    assert reported == ["warning: mine, validation: 1 of 2 words (50.0%) are unknown to this vocabulary: Магия"]
    assert check_texts(model, ["Магия"], reported.append, found) == {"unknown"} and len(reported) == 1
    assert check_texts(model, ["time", "Магия"], reported.append, most_words=1) == frozenset()
    assert check_texts(model, ["[MASK]"], reported.append) == frozenset()

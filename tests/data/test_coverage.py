import numpy as np
import pytest

from bertjax.data.coverage import coverage, script_of
from bertjax.data.layout import BERT, XLNET
from bertjax.data.look import look, summary
from bertjax.data.tokenizer import tokenizer_from_files

ENGLISH = "the film is a fine one and so we like it very much though not all of us do , as some say".split()  # noqa: SIM905
LETTERS = "магияреальна"


@pytest.fixture(scope="module")
def english():
    """Words of English, Cyrillic letters, and nothing of Georgian: as BERT's vocabulary."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz" + LETTERS))
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *ENGLISH, "!", ".", *letters, *(f"##{x}" for x in letters)]
    return tokenizer_from_files({"vocab.txt": "\n".join(dict.fromkeys(pieces)).encode()}, origin="english")


def test_ordinary_text_gives_no_warning(english):
    found = coverage(english, ["The film is a fine one, and so we like it!", "Some of us do . . ."])
    assert found.warnings() == {} and found.words > 12


def test_a_script_that_falls_into_letters_is_named_with_its_words(english):
    found = coverage(english, ["Магия реальна!"])
    assert len(english.encode("Магия реальна!").ids) == 13  # 12 letters and the mark
    assert list(found.warnings()) == ["CYRILLIC"]
    assert (
        "cuts Cyrillic words into single letters, 12 pieces for 12 letters: Магия, реальна"
        in found.warnings()["CYRILLIC"]
    )


def test_unknown_words_are_named_where_they_are_over_one_in_a_hundred(english):
    georgian = "მაგია"
    assert "1 of 3 words (33.3%) become unknown" in coverage(english, [f"the {georgian} film"]).warnings()["unknown"]
    assert georgian in coverage(english, [f"the {georgian} film"]).warnings()["unknown"]
    assert coverage(english, [f"{' the' * 99} {georgian}"]).warnings() == {}
    assert coverage(english, [f"{' the' * 98} {georgian}"]).warnings() != {}
    assert "unknown" in coverage(english, ["a fine film 😀"]).warnings()


def test_scripts_are_those_of_unicode_and_ideographs_are_words_each(english):
    assert [script_of(x) for x in ("été", "Ω", "کتاب", "12", "😀", "...", "_x")] == [
        "LATIN", "GREEK", "ARABIC", "NUMBER", "SYMBOL", "", "LATIN"
    ]  # fmt: skip
    assert coverage(english, ["魔法"]).scripts["CJK"].words == 2


def test_looking_stops_at_enough_words(english):
    assert coverage(english, ["the film"] * 100, most_words=10).words == 10


def test_a_look_shows_pieces_places_and_what_comes_back(english):
    found = look(english, "The filma!", BERT)
    assert [token.piece for token in found.tokens] == ["[CLS]", "the", "film", "##a", "!", "[SEP]"]
    assert [(token.start, token.end) for token in found.tokens[1:4]] == [(0, 3), (4, 8), (8, 9)]
    assert found.tokens[0].start is None and found.round_trip == "alike" and found.warnings == []
    assert found.scripts == {"latin": {"words": 2, "pieces_per_word": 1.5, "unknown": 0.0}}
    assert look(english, "the film ab", BERT).round_trip == "exact"
    assert look(english, "the მაგია", BERT).round_trip == "differs"
    last = look(english, "the film", XLNET).tokens
    assert [token.segment for token in last] == [0, 0, 0, 2] and last[1].end == 8
    assert summary(english)["mask"] == "[MASK] 4" and np.isfinite(summary(english)["ids"])

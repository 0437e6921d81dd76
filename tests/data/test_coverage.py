import unicodedata

import numpy as np
import pytest

from bertjax.data.coverage import coverage, evenly
from bertjax.data.look import look, summary
from bertjax.data.templates import BERT, XLNET
from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.data.vocabulary import train_byte_level_bpe
from bertjax.data.words import script_of

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


def test_a_script_split_into_letters_gives_a_warning_with_its_words(english):
    found = coverage(english, ["Магия реальна!"])
    assert len(english.encode("Магия реальна!").ids) == 13  # 12 letters and the mark
    assert list(found.warnings()) == ["CYRILLIC"]
    assert found.warnings()["CYRILLIC"] == (
        "this vocabulary splits Cyrillic words into letters or less, 12 pieces for 12 letters: Магия, реальна "
        "(2 of 2 words)"
    )


def test_unknown_words_are_named_where_they_are_over_one_in_a_hundred(english):
    georgian = "მაგია"
    assert "1 of 3 words (33.3%) are unknown" in coverage(english, [f"the {georgian} film"]).warnings()["unknown"]
    assert georgian in coverage(english, [f"the {georgian} film"]).warnings()["unknown"]
    assert coverage(english, [f"{' the' * 99} {georgian}"]).warnings() == {}
    assert coverage(english, [f"{' the' * 98} {georgian}"]).warnings() != {}
    assert "unknown" in coverage(english, ["a fine film 😀"]).warnings()


def test_scripts_are_those_of_unicode_and_ideographs_are_words_each(english):
    assert [script_of(x) for x in ("été", "Ω", "کتاب", "12", "😀", "...", "_x")] == [
        "LATIN", "GREEK", "ARABIC", "NUMBER", "SYMBOL", "", "LATIN"
    ]  # fmt: skip
    assert coverage(english, ["魔法"]).scripts["CJK"].words == 2


def test_looking_stops_at_enough_words_also_within_a_text(english):
    assert coverage(english, ["the film"] * 100, most_words=10).words == 10
    assert coverage(english, ["the film " * 100 + LETTERS], most_words=10).words == 10
    long = ["the film is fine , as one " * 100 + "Магия реальна"]
    found = coverage(english, long)
    assert found.words == 602 and found.scripts["CYRILLIC"].pieces == 12 and found.scripts["LATIN"].pieces == 600


@pytest.fixture(scope="module")
def by_letters():
    """A vocabulary of single letters, as BERT's is to foreign scripts, of kana and of some ideographs too."""
    letters = sorted({x for text in FOREIGN for x in text + unicodedata.normalize("NFD", text) if x != " "})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *ENGLISH, "!", "魔", "法", "北", "京", *letters, *(f"##{x}" for x in letters)]
    return tokenizer_from_files({"vocab.txt": "\n".join(dict.fromkeys(pieces)).encode()}, origin="letters")


BENGALI, HINDI, TAMIL = "বাংলা ভাষা একটি ভাষা", "भारत एक विशाल देश है", "தமிழ் மொழி இது"
FOREIGN = [BENGALI, HINDI, TAMIL, "Он не мы я ты", "これはテスト", "نمی\u200cخواهم"]


def test_vowel_signs_and_joiners_are_parts_of_their_words(by_letters):
    for text, script in ((BENGALI, "BENGALI"), (HINDI, "DEVANAGARI"), (TAMIL, "TAMIL")):
        found = coverage(by_letters, [text])
        assert found.words == len(text.split()) and list(found.scripts) == [script]
        assert list(found.warnings()) == [script]
        assert set(found.scripts[script].shattered) == {*text.split()} - {"है"}  # of one letter, with a mark
    found = coverage(by_letters, ["نمی\u200cخواهم \u200c، cafe\u0301"])
    assert {name: script.words for name, script in found.scripts.items()} == {"ARABIC": 1, "LATIN": 1}


def test_short_words_of_a_script_count_together(by_letters):
    found = coverage(by_letters, ["Он не мы я ты"]).warnings()
    assert list(found) == ["CYRILLIC"] and "8 pieces for 8 letters: Он, не, мы, ты" in found["CYRILLIC"]
    assert coverage(by_letters, ["is it", "as we do"]).warnings() == {}


def test_kana_fall_into_letters_and_ideographs_are_pieces_by_design(by_letters):
    found = coverage(by_letters, ["これはテスト 魔法"])
    assert list(found.warnings()) == ["HIRAGANA", "KATAKANA"] and found.words == 8
    assert "3 pieces for 3 letters: これは" in found.warnings()["HIRAGANA"]
    assert coverage(by_letters, ["魔法北京"]).warnings() == {}
    assert list(coverage(by_letters, ["魔法北京國"]).warnings()) == ["unknown"]


def test_digits_and_their_like_are_not_judged(by_letters):
    assert coverage(by_letters, ["the film"]).scripts["LATIN"].letters == 7
    assert coverage(by_letters, ["the film x86_64 b2b ты2"]).scripts["LATIN"].letters == 7


def test_a_rare_script_gives_a_warning_if_two_of_its_words_are_split(english):
    lines = ["the film is a fine one and so we like it very much"] * 30
    found = coverage(english, [*lines, "Магия реальна!"]).warnings()
    assert list(found) == ["CYRILLIC"] and "Магия, реальна (2 of 392 words)" in found["CYRILLIC"]
    assert coverage(english, [*lines, "Магия"]).warnings() == {}
    assert list(coverage(english, ["Магия", *lines[:3]]).warnings()) == ["CYRILLIC"]  # of 40 words


def test_a_few_split_words_in_a_known_script_give_no_warning():
    letters = sorted(set(LETTERS))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "магия", "она", *letters, *(f"##{x}" for x in letters)]
    known = tokenizer_from_files({"vocab.txt": "\n".join(pieces).encode()}, origin="known")
    found = coverage(known, ["Магия она реальна магия магия"])
    assert found.scripts["CYRILLIC"].shattered == {"Магия": 0, "она": 0, "реальна": 1, "магия": 0}
    assert found.warnings() == {}


def test_bytes_of_ideographs_are_no_pieces_by_design():
    lines = ["the time is good and the man is new"] * 50
    tokenizer = tokenizer_from_files(train_byte_level_bpe(iter(lines), 280, False), origin="bytes")
    found = coverage(tokenizer, ["魔法"]).warnings()
    assert list(found) == ["CJK"] and "splits CJK words" in found["CJK"] and "6 pieces for 2 letters" in found["CJK"]


def test_a_long_run_is_named_by_its_beginning(english):
    said = coverage(english, ["ა" * 100]).warnings()["unknown"]
    assert said.endswith(f": {'ა' * 24}…")


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100, 1000, 987])
def test_any_prefix_of_the_even_order_is_spread_over_the_whole(size):
    order = list(evenly(range(size)))
    assert sorted(order) == list(range(size))
    if size >= 100:
        for seen in (20, 50):
            gaps = np.diff(sorted([0, *order[:seen], size]))
            assert gaps.max() <= 4 * size / seen


def test_look_shows_pieces_offsets_and_the_decoded_text(english):
    found = look(english, "The filma!", BERT)
    assert [token.piece for token in found.tokens] == ["[CLS]", "the", "film", "##a", "!", "[SEP]"]
    assert [(token.start, token.end) for token in found.tokens[1:4]] == [(0, 3), (4, 8), (8, 9)]
    assert found.tokens[0].start is None and found.round_trip == "alike" and found.warnings == []
    assert found.scripts == {"latin": {"words": 2, "pieces_per_word": 1.5, "unknown": 0.0}}
    assert look(english, "the film ab", BERT).round_trip == "exact"
    assert look(english, "the მაგია", BERT).round_trip == "differs"
    last = look(english, "the film", XLNET).tokens
    assert [token.segment for token in last] == [0, 0, 0, 2] and last[1].end == 8
    assert summary(english, BERT)["mask"] == "[MASK] 4" and np.isfinite(summary(english, BERT)["ids"])

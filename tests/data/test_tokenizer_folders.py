"""Folders of others read as transformers reads them: its ids are in tokenizer_folders.json."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizer_folders import FOLDERS, LITERAL, ROBERTA, TEXTS, bpe, oracle, unigram, wordpiece, write
from tokenizer_folders import wordpiece_json as from_json

from bertjax.data.look import describe
from bertjax.data.templates import BERT as BERT_TEMPLATES
from bertjax.data.templates import framed, templates_for
from bertjax.data.tokenizer import (
    fingerprint,
    load_tokenizer,
    parsing_special_tokens,
    save_tokenizer,
    saved_tokenizer,
    tokenizer_from_files,
)
from bertjax.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "tokenizer_folders.json").read_text())


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_reads_as_transformers_reads_it(case, tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, FOLDERS[case]()))
    found = GOLDEN[case]
    assert tokenizer.ids(TEXTS) == found["ids"]
    assert [tokenizer.encode(text).ids.tolist() for text in TEXTS] == found["ids"]
    templates = templates_for(tokenizer, cls_last=False)
    (die,) = tokenizer.ids(["die"])
    row = framed(templates.pair, tokenizer.vocabulary, die, die)
    if case == "ALBERT":  # transformers 5 feeds it no segments, though it was trained with two
        found = found | {"pair": [[index, int(place > 2)] for place, (index, _) in enumerate(found["pair"])]}
    assert [list(x) for x in zip(row.tokens.tolist(), row.types.tolist(), strict=True)] == found["pair"]
    if "split" not in case:
        assert parsing_special_tokens(tokenizer).ids([LITERAL]) == [found["parsed"]]
    v = tokenizer.vocabulary
    specials = {v.pad, v.cls, v.sep, v.mask}
    assert specials.isdisjoint(tokenizer.ids([LITERAL, "[MASK] <mask> <pad>"])[1]), "a literal is text"


@pytest.mark.parametrize("case", FOLDERS)
def test_a_tokenizer_of_a_folder_survives_saving_and_checkpoints(case, tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, FOLDERS[case]()))
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for again in (
        load_tokenizer(tmp_path / "saved"),
        saved_tokenizer(tmp_path / "saved"),
        tokenizer_from_files(tokenizer.files, origin="a checkpoint"),
    ):
        assert fingerprint(again) == fingerprint(tokenizer) and again.vocabulary == tokenizer.vocabulary
        assert again.ids(TEXTS) == GOLDEN[case]["ids"] and again.templates == tokenizer.templates


@pytest.mark.parametrize("case", ["strip_accents", "json, class of BERT", "</w>"])
def test_the_golden_ids_are_those_of_transformers(case, tmp_path):
    pytest.importorskip("transformers")
    assert oracle(write(tmp_path, FOLDERS[case]())) == GOLDEN[case]


def test_a_literal_special_token_is_text_and_an_added_one_a_token(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, FOLDERS["json, class of BERT"]()))
    assert [tokenizer.piece(index) for index in tokenizer.ids(["[SEP] [E1]"])[0]] == ["[", "[UNK]", "]", "[E1]"]
    parsing = parsing_special_tokens(tokenizer)
    assert [parsing.piece(index) for index in parsing.ids(["[SEP] [E1]"])[0]] == ["[SEP]", "[E1]"]
    again = tokenizer_from_files(parsing.files, origin="a checkpoint")
    assert again.ids(["[SEP]"]) == [[tokenizer.vocabulary.sep]] and fingerprint(again) != fingerprint(tokenizer)
    mask_only = parsing_special_tokens(tokenizer, mask_only=True)
    assert tokenizer.vocabulary.mask in mask_only.ids(["[MASK]"])[0]
    assert tokenizer.vocabulary.sep not in mask_only.ids(["[SEP]"])[0]


def test_bare_vocabularies_parse_special_tokens_too(tmp_path):
    files = {name: content for name, content in wordpiece().items() if name != "config.json"}
    tokenizer = load_tokenizer(write(tmp_path, files))
    parsing = parsing_special_tokens(tokenizer)
    assert tokenizer.ids(["die [MASK]"])[0][:2] == [5, 16]
    assert parsing.ids(["die [MASK]"]) == [[5, tokenizer.vocabulary.mask]]
    assert parsing.vocabulary == tokenizer.vocabulary


REFUSED = {
    "BertJapaneseTokenizer": wordpiece({"tokenizer_class": "BertJapaneseTokenizer"}),
    "PhobertTokenizer": bpe({"tokenizer_class": "PhobertTokenizer"}),
    "TapasTokenizer": wordpiece({"tokenizer_class": "TapasTokenizer"}),
    "auto_map=.*mine.Tok": wordpiece({"auto_map": {"AutoTokenizer": ["mine.Tok", None]}}),
    "do_lower_case='no'": wordpiece({"do_lower_case": "no"}),
    "strip_accents=1": wordpiece({"strip_accents": 1}),
    "mask_token=7": wordpiece({"mask_token": 7}),
    "needs a tokenizer.json": wordpiece({"tokenizer_class": "PreTrainedTokenizerFast"}),
    "tokenizer.json is Unigram": unigram({}, ROBERTA, "bert", ("<s> $A </s>", "<s> $A </s> $B </s>")),
    "spm.model, whose ids are not all of deberta-v2's": {"spm.model": "x", "config.json": {"model_type": "deberta-v2"}},
    "name no mask token": unigram(
        {"tokenizer_class": "PreTrainedTokenizerFast"}, ["<a>", "<unk>", "<s>", "</s>", "<pad>"], "bert",
        ("<s> $A </s>", "<s> $A </s> $B </s>"),
    ),
    "more than two kinds of special tokens": unigram(
        {"tokenizer_class": "PreTrainedTokenizerFast"}, ROBERTA, "bert", ("<s> $A <unk> </s>", "<s> $A </s> $B </s>")
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_unsupported_tokenizer_settings_are_refused_by_name(why, tmp_path):
    with pytest.raises(InputError, match=why):
        load_tokenizer(write(tmp_path, REFUSED[why]))


def test_the_reading_names_files_keys_and_contradictions(tmp_path):
    files = from_json({"do_lower_case": False, "strip_accents": True, "sep_token": "e"})
    files |= {"special_tokens_map.json": {"sep_token": "[SEP]"}, "vocab.txt": "x\n"}
    found = describe(load_tokenizer(write(tmp_path, files)))
    assert found["read_as"] == "BertTokenizer" and found["unread"] == ["vocab.txt"]
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"]
    assert found["files"] == names
    assert found["keys"]["tokenizer_config.json: strip_accents"] is True
    assert found["keys"]["special_tokens_map.json: sep_token"] == "[SEP]"
    note = "sep_token is 'e' in tokenizer_config.json, '[SEP]' in special_tokens_map.json: the latter holds"
    assert note in found["notes"]


@pytest.mark.parametrize(
    ("files", "note"),
    [
        (wordpiece({}), "the vocabulary has capitals, but no file says do_lower_case"),
        (wordpiece({}, **{"added_tokens.json": {"[E1]": 99}}), r"\[E1\] has id 99 in its file, and 22 here"),
        (from_json({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}), "do_lower_case=True has no"),
        (bpe(None), "<mask> takes the space before it"),
    ],
)
def test_decisions_in_reading_a_tokenizer_are_noted(files, note, tmp_path):
    assert any(re.search(note, each) for each in load_tokenizer(write(tmp_path, files)).reading.notes)


def test_bare_files_read_as_published_and_keep_their_fingerprints(tmp_path):
    files = {name: content for name, content in wordpiece({"do_lower_case": True}).items() if name != "config.json"}
    tokenizer = load_tokenizer(write(tmp_path, files))
    assert sorted(tokenizer.files) == ["tokenizer_config.json", "vocab.txt"]
    assert tokenizer.templates is None and templates_for(tokenizer, cls_last=False) == BERT_TEMPLATES


# What is a word -------------------------------------------------------------------------------------------------------


def grouped(tokenizer, text):
    encoding = tokenizer.encode(text)
    places = [*np.flatnonzero(encoding.word_starts).tolist(), len(encoding.ids)]
    pieces = [tokenizer.piece(index) for index in encoding.ids]
    return [pieces[a:b] for a, b in pairwise(places)]


def test_each_ideograph_and_piece_of_scripts_without_spaces_is_a_word_of_wordpiece(tmp_path):
    pieces = ["a", "##a", "##b", "か", "##か", "ก", "##ก", "京", "##都"]
    files = wordpiece({"tokenize_chinese_chars": False, "do_lower_case": False}, pieces)
    tokenizer = load_tokenizer(write(tmp_path, files))
    assert grouped(tokenizer, "aab かか กก 京都a") == [["a", "##a", "##b"], ["か"], ["##か"], ["ก"], ["##ก"],
                                                  ["京"], ["##都"], ["##a"]]  # fmt: skip


def test_each_character_without_spaces_is_a_word_of_byte_level_bpe_though_it_is_cut_into_bytes(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, bpe({})))
    assert [len(word) for word in grouped(tokenizer, "京都")] == [3, 3]
    assert [len(word) for word in grouped(tokenizer, "dieé")] == [3]


def test_words_of_a_suffixed_vocabulary_begin_after_its_mark(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, FOLDERS["</w>"]()))
    assert grouped(tokenizer, "die bu die") == [["die</w>"], ["b", "u</w>"], ["die</w>"]]


def test_words_of_sentencepiece_begin_at_its_mark_and_at_each_piece_without_spaces(tmp_path):
    names = ROBERTA
    files = unigram({}, names, "xlm-roberta", ("<s> $A </s>", "<s> $A </s> </s> $B </s>"))
    described = json.loads(files["tokenizer.json"])
    described["model"]["vocab"] += [["京", -3.0], ["都", -3.0], ["かな", -3.0]]
    tokenizer = load_tokenizer(write(tmp_path, files | {"tokenizer.json": described}))
    assert grouped(tokenizer, "die 京都かなdie") == [["▁die"], ["▁"], ["京"], ["都"], ["かな"], ["die"]]

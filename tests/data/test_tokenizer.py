import io
import json
import os
import unicodedata
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from original_tokenization import CJK, OLD, TRICKY, basic_tokens, pieces_of, wordpieces
from texts import make_documents

from bertjax.data.tokenizer import fingerprint, load_tokenizer, save_tokenizer, tokenizer_from_files
from bertjax.errors import InputError

BERT, ROBERTA = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALBERT = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abc", "ab", "abc", "mask", "##a", "##b", "##bc", "##cab", *"中!$'[]", "б", "##й", "😀"]

texts = st.lists(st.sampled_from(TRICKY) | st.sampled_from(OLD), max_size=12).map("".join)


def wordpiece_files(pieces=WORDS, **config):
    files = {"vocab.txt": "\n".join([*BERT, *pieces]).encode()}
    return files | ({"tokenizer_config.json": json.dumps(config).encode()} if config else {})


def byte_level_files():
    pieces = [*ROBERTA[:4], *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    merges = ["h e", "Ġ t", "Ġt he", "l l", "Ã ©", "ð Ł", "o r"]
    pieces += [merge.replace(" ", "") for merge in merges] + ROBERTA[4:]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def json_files(model, pre_tokenizer, special=True):
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizer
    rust.add_tokens([tokenizers.AddedToken(name, special=special) for name in BERT])
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    rust.enable_truncation(3)
    rust.enable_padding(length=9)
    return {"tokenizer.json": rust.to_str().encode()}


def json_wordpiece_files(pre_tokenizer=None, **settings):
    letters = [x for c in "MASKmask[]<>/padunklsep" for x in (c, f"##{c}")]
    pieces = {piece: index for index, piece in enumerate(dict.fromkeys([*BERT, *letters]))}
    model = tokenizers.models.WordPiece(pieces, unk_token="[UNK]")
    return json_files(model, pre_tokenizer or tokenizers.pre_tokenizers.BertPreTokenizer(), **settings)


def json_unigram_files():
    pieces = [(name, 0.0) for name in BERT] + [("▁", -2.0)] + [(letter, -3.0) for letter in "MASKmask[]"]
    model = tokenizers.models.Unigram(list(dict(pieces).items()), unk_id=1)
    return json_files(model, tokenizers.pre_tokenizers.Metaspace())


@cache
def sentencepiece_files():
    """Train a model with the symbols that ALBERT reserves, with pieces that end in digit and comma."""
    lines = [line.lower() for document in make_documents(80) for line in document.lines]
    lines += ["it cost 1,000, 2,000, or 13,500, pounds (1,000,000,) in 1999, of 5, or 7,", "5, 7, 5, 5,"] * 40
    lines += ["the other [mask], then <pad> again; a fish finds"] * 40
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=113, character_coverage=1.0, minloglevel=2,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>", unk_piece="<unk>",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"], user_defined_symbols=["(", ")", '"', "-", ".", "–", "£", "€"],
    )  # fmt: skip
    return {"spiece.model": model.getvalue()}


KINDS = {
    "wordpiece": wordpiece_files,
    "byte-level BPE": byte_level_files,
    "sentencepiece": sentencepiece_files,
    "tokenizer.json": json_wordpiece_files,
}


@cache
def make(kind, **settings):
    return tokenizer_from_files(KINDS[kind](**settings), origin=kind)


@pytest.mark.parametrize("lowercase", [True, False])
@given(text=texts)
@example(text="héllo\u0301 ABC abcab\u200dc")
@example(text="a" * 200 + " " + "a" * 201 + " " + "A\u0301" * 200)
@example(text="x" + "a" * 200)
def test_wordpiece_equals_a_transcription_of_the_published_code(lowercase, text):
    tokenizer = make("wordpiece", do_lower_case=lowercase)
    encoding = tokenizer.encode(text)
    assert pieces_of(tokenizer, encoding.ids) == wordpieces(text, lowercase, {*BERT, *WORDS})
    for index, (begin, end) in zip(encoding.ids, encoding.offsets.tolist(), strict=True):
        if index != tokenizer.vocabulary.unk:
            spelled = "".join(basic_tokens(text[begin:end], lowercase))
            assert spelled == tokenizer.piece(index).removeprefix("##")


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_treats_every_character_as_the_transcription_does(lowercase):
    edges = {edge + i for block in CJK for edge in block for i in (-1, 0, 1)}
    chosen = [x for x in OLD if unicodedata.category(x) != "Lo" or ord(x) % 16 == 0 or ord(x) in edges]
    texts = [f"a{character}b{character}" for character in chosen]
    expected = [basic_tokens(text, lowercase) for text in texts]
    words = {word for found in expected for word in found}
    tokenizer = tokenizer_from_files(wordpiece_files(sorted(words), do_lower_case=lowercase), origin="all words")
    found = [pieces_of(tokenizer, ids) for ids in tokenizer.ids(texts)]
    wrong = [(text, x, y) for text, x, y in zip(texts, found, expected, strict=True) if x != y]
    assert not wrong


BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(byte): byte for byte in BYTES} | {
    chr(256 + number): byte for number, byte in enumerate(byte for byte in range(256) if byte not in BYTES)
}


@given(texts | st.text())
@example("the theory, hello  \n\t all\u3000👩\u200d👧 é\0\ufffd")
def test_byte_level_bpe_gives_any_text_back_and_offsets_point_at_its_bytes(text):
    tokenizer = make("byte-level BPE")
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    spelled = [bytes(BYTE_OF[x] for x in piece) for piece in pieces_of(tokenizer, encoding.ids)]
    assert b"".join(spelled) == text.encode()
    for piece, (begin, end) in zip(spelled, encoding.offsets.tolist(), strict=True):
        assert piece in text[begin:end].encode() and end - begin <= len(piece)


def test_byte_level_bpe_applies_its_merges_in_order_and_keeps_spaces_with_the_next_word():
    tokenizer = make("byte-level BPE")
    assert pieces_of(tokenizer, tokenizer.encode("the other\n hell").ids) == [
        *("t", "he", "Ġ", "o", "t", "he", "r", "Ċ", "Ġ", "he", "ll")
    ]
    assert pieces_of(tokenizer, tokenizer.encode("or the").ids) == ["or", "Ġthe"]


def prepared(text):
    """Transcribe preprocess_text of google-research/albert, for a model without capitals."""
    text = " ".join(text.split()).replace("``", '"').replace("''", '"')
    text = unicodedata.normalize("NFKD", text)
    return "".join(character for character in text if not unicodedata.combining(character)).lower()


def albert_pieces(model, text):
    """Transcribe encode_pieces of google-research/albert: pieces that end in digit and comma are split again."""
    found = []
    for piece in model.encode(prepared(text), out_type=str):
        if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
            again = model.encode(piece[:-1].replace("▁", ""), out_type=str)
            if piece[0] != "▁" and again[0][0] == "▁":
                again[0] = again[0][1:]
            found += [x for x in again if x] + [","]
        else:
            found.append(piece)
    return found


@given(
    st.lists(st.sampled_from([*"abeé19ﬁ½,. \n\t`'\"–[ÅÉ中\u0301", "1,000,", " 5,", " the", "[MASK]", "''"])).map(
        "".join
    )
)
@example("It cost 1,000, (``Émile'') 7,, the,1,000,5, – £ ﬁsh")
@example("the\x85the\x1fthe\x1cthe '\x85' of")
def test_published_sentencepiece_models_see_text_as_their_own_code_prepared_it(text):
    tokenizer = make("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_files()["spiece.model"])
    encoding = tokenizer.encode(text)
    expected = albert_pieces(model, text)
    assert encoding.ids.tolist() == [model.piece_to_id(piece) for piece in expected]
    offsets = encoding.offsets.tolist()
    assert offsets == sorted(offsets) and all(0 <= begin <= end <= len(text) for begin, end in offsets)


def test_sentencepiece_offsets_point_at_the_text_that_the_piece_spells():
    tokenizer, text = make("sentencepiece"), "It cost 1,000,000, É'' (the)"
    encoding = tokenizer.encode(text)
    spelled = [text[begin:end] for begin, end in encoding.offsets.tolist()]
    pieces = [piece.replace("▁", " ") for piece in pieces_of(tokenizer, encoding.ids)]
    assert "".join(spelled) == text and spelled[pieces.index("e") :][:2] == ["É", "''"]
    changed = {"É": "e", "''": '"', "I": "i"}
    expected = "".join(changed.get(piece, piece) for piece in spelled).lower()
    assert "".join(pieces) == " " + expected
    assert "1,000," in pieces_of(tokenizer, range(tokenizer.vocabulary.size)) and "1,000," not in pieces


def test_every_piece_of_a_character_that_is_taken_apart_points_at_it():
    tokenizer = make("sentencepiece")
    encoding = tokenizer.encode("5 ½")
    assert len(encoding.ids) >= 4
    assert all(end == 3 and begin <= 2 for begin, end in encoding.offsets.tolist()[-3:])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.lists(texts, max_size=4))
def test_ids_of_many_texts_are_those_of_each_alone(kind, data):
    tokenizer = make(kind)
    assert tokenizer.ids(data) == [tokenizer.encode(text).ids.tolist() for text in data]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("wordpiece", "abca [mask] 中b!", ["abc ##a", "[", "mask", "]", "中", "b", "!"]),
        ("byte-level BPE", "heor the!ll\no", ["he or", "Ġthe", "! ll Ċ o"]),
        ("sentencepiece", "theo (5) 7,o", ["▁the o", "▁", "( 5", ")", "▁ 7", ", o"]),
        ("tokenizer.json", "sad [mask]", ["s ##a ##d", "[", "m ##a ##s ##k", "]"]),
    ],
)
def test_word_starts_are_where_words_and_punctuation_begin(kind, text, words):
    tokenizer = make(kind)
    encoding = tokenizer.encode(text)
    groups = []
    for index, starts in zip(encoding.ids, encoding.word_starts, strict=True):
        groups += [[]] if starts else []
        groups[-1].append(tokenizer.piece(index))
    assert [" ".join(group) for group in groups] == words
    assert tokenizer.word_rule(encoding.ids).tolist() == encoding.word_starts.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_their_roles_and_encoding_adds_none(kind):
    tokenizer = make(kind)
    names = {"byte-level BPE": [ROBERTA[i] for i in (1, 3, 0, 2, 4)], "sentencepiece": ALBERT}.get(kind, BERT)
    size, *specials = tokenizer.vocabulary
    assert pieces_of(tokenizer, specials) == names
    assert (
        size == len(tokenizer.word_rule.starts_V)
        and [tokenizer.piece(i) for i in range(size)].index(names[-1]) == specials[-1]
    )
    empty = tokenizer.encode("")
    assert empty.ids.shape == (0,) and empty.offsets.shape == (0, 2) and empty.word_starts.shape == (0,)
    assert tokenizer.decode(specials).split() == names or tokenizer.decode(specials) == "".join(names)


LITERALS = [
    form.format(name)
    for name in {*BERT, *ROBERTA}
    for form in ("{}", "a {} b", "a{}a", " {}{} ".replace("{}{}", "{0}{0}"))
]


@pytest.mark.parametrize(
    "files",
    [
        *KINDS.values(),
        lambda: json_wordpiece_files(special=False),
        lambda: json_wordpiece_files(tokenizers.pre_tokenizers.WhitespaceSplit()),
        json_unigram_files,
    ],
    ids=[*KINDS, "json, added", "json, split at white space", "json, unigram"],
)
def test_a_literal_special_in_text_never_becomes_the_special_token(files):
    tokenizer = tokenizer_from_files(files(), origin="made")
    specials = {*tokenizer.vocabulary[1:]} - {tokenizer.vocabulary.unk}
    for text, ids in zip(LITERALS, tokenizer.ids(LITERALS), strict=True):
        assert specials.isdisjoint(ids) and specials.isdisjoint(tokenizer.encode(text).ids.tolist()), text


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_loaded_with_the_same_fingerprint_and_ids(kind, tmp_path):
    tokenizer = make(kind)
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == tokenizer.files
    (name,) = {"vocab.txt", "vocab.json", "tokenizer.json", "spiece.model"} & set(tokenizer.files)
    for again in (
        load_tokenizer(tmp_path / "saved"),
        load_tokenizer(str(tmp_path / "saved" / name)),
        tokenizer_from_files(tokenizer.files, origin="files"),
    ):
        assert fingerprint(again) == fingerprint(tokenizer)
        assert again.vocabulary == tokenizer.vocabulary
        assert again.ids(["Abc the É 1,000,"]) == tokenizer.ids(["Abc the É 1,000,"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_changes_with_any_file(kind):
    files = dict(make(kind).files)
    changed = [files | {name: content + b"\n"} for name, content in files.items()]
    changed += [files | {"more": b""}, {f"x{name}": content for name, content in files.items()}]
    found = {fingerprint(SimpleNamespace(files=each)) for each in [files, *changed]}
    assert len(found) == len(changed) + 1 and all(len(each) == 64 for each in found)


def test_the_fingerprint_tells_whether_wordpiece_lower_cases():
    cased, uncased = (make("wordpiece", do_lower_case=lowercase) for lowercase in (False, True))
    assert fingerprint(cased) != fingerprint(uncased) == fingerprint(make("wordpiece"))


@pytest.mark.parametrize(
    ("files", "lowercase"),
    [
        (wordpiece_files(), True),
        (wordpiece_files(["a", "[unused1]", "<S>"]), True),
        (wordpiece_files(["a", "B"]), False),
        (wordpiece_files(["a", "##É"]), False),
        (wordpiece_files(["a", "B"], do_lower_case=True), True),
        (wordpiece_files(["a"], do_lower_case=False), False),
        (wordpiece_files(["a", "B"], tokenizer_class="BertTokenizer"), False),
    ],
)
def test_lower_casing_is_as_stated_or_else_told_by_capitals_in_the_vocabulary(files, lowercase):
    tokenizer = tokenizer_from_files(files, origin="made")
    assert tokenizer.ids(["A"]) == ([[5]] if lowercase else [[tokenizer.vocabulary.unk]])
    assert json.loads(tokenizer.files["tokenizer_config.json"])["do_lower_case"] is lowercase


def without(kind, name):
    """Leave a special piece out of the files of a tokenizer."""
    files = KINDS[kind]()
    if kind == "byte-level BPE":
        kept = [piece for piece in json.loads(files["vocab.json"]) if piece != name]
        return files | {"vocab.json": json.dumps({piece: index for index, piece in enumerate(kept)}).encode()}
    if kind == "sentencepiece":
        lines = ["a b c d e f g h"] * 9
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=14, minloglevel=2, hard_vocab_limit=False,
            pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=[x for x in BERT[2:] if x != name],
        )  # fmt: skip
        return {"spiece.model": model.getvalue()}
    return {key: content.replace(name.encode(), b"[other]") for key, content in files.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_without_a_mask_is_an_error_that_names_it(kind):
    mask = "<mask>" if kind == "byte-level BPE" else "[MASK]"
    with pytest.raises(InputError, match=r"the vocabulary of mine has no .*\[MASK\] nor <mask>.*tokenizer train"):
        tokenizer_from_files(without(kind, mask), origin="mine")


# what is wrong -> files
DAMAGED = {
    "a piece twice": wordpiece_files([*"abca"]),
    "a vocabulary that is not UTF-8": {"vocab.txt": "\n".join([*BERT, "é"]).encode("latin-1")},
    "a configuration cut short": wordpiece_files() | {"tokenizer_config.json": b'{"do_lower'},
    "a tokenizer.json cut short": {"tokenizer.json": json_wordpiece_files()["tokenizer.json"][:-9]},
    "merges that are missing": {"vocab.json": byte_level_files()["vocab.json"]},
    "a vocab.json cut short": byte_level_files() | {"vocab.json": b'{"<s>": 0, '},
    "a model cut short": {"spiece.model": sentencepiece_files()["spiece.model"][:99]},
    "an empty model": {"spiece.model": b""},
    "no tokenizer": {"readme.md": b"text"},
    "a configuration that is a list": wordpiece_files() | {"tokenizer_config.json": b"[]"},
    "a tokenizer.json of something else": {"tokenizer.json": b'{"a": 1}'},
    "a vocab.json that is a list": byte_level_files() | {"vocab.json": b"[1]"},
    "merges of other pieces": byte_level_files() | {"merges.txt": b"x y\n"},
    "ids with a gap": byte_level_files() | {"vocab.json": byte_level_files()["vocab.json"].replace(b": 9,", b": 999,")},
    "an id twice": byte_level_files() | {"vocab.json": byte_level_files()["vocab.json"].replace(b": 9,", b": 8,")},
    "a blank line between pieces": wordpiece_files(["a", "", "b"]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_an_error_that_names_their_origin(case):
    with pytest.raises(InputError, match="mine"):
        tokenizer_from_files(DAMAGED[case], origin="mine")


def test_the_error_for_a_piece_twice_names_the_piece():
    with pytest.raises(InputError, match=r"mine lists 'a' twice"):
        tokenizer_from_files(DAMAGED["a piece twice"], origin="mine")


def test_a_path_without_a_tokenizer_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path} holds no tokenizer: .*vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match=rf"no tokenizer at {tmp_path}/x: .*vocab\.txt"):
        load_tokenizer(tmp_path / "x")


DATA = os.environ.get("BERTJAX_DATA")
with_data = pytest.mark.skipif(not DATA, reason="BERTJAX_DATA names no folder with published tokenizers")
PUBLISHED = {"albert": "albert-base", "bert": "bert-base-uncased", "roberta": "roberta-base"}


@cache
def published(name):
    return load_tokenizer(Path(DATA) / "tokenizers" / name)


def golden():
    """List (tokenizer, text, ids without specials), as public test suites expect them."""
    described = json.loads((Path(DATA) / "golden" / "tokenizer_encodings.json").read_text())
    for case in described["encodings"]:
        if case.get("preset") == "albert_base_en_uncased":
            continue  # expects capitals to be unknown: its tokenizer does not lower-case as ALBERT's own code does
        tokenizer = published(PUBLISHED[case["model"]])
        if "expected_ids_no_special" in case:
            expected = case["expected_ids_no_special"]
        else:
            both = case["expected_encoding"]
            rows = zip(both["input_ids"], both["attention_mask"], strict=True)
            expected = [ids[1 : sum(mask) - 1] for ids, mask in rows]
        for text, ids in zip(case["sequences"], expected, strict=True):
            yield tokenizer, text, ids


@with_data
def test_published_tokenizers_give_the_ids_that_other_projects_expect_of_them():
    cases = list(golden())
    assert len(cases) >= 5 and len({id(tokenizer) for tokenizer, _, _ in cases}) == 3
    for tokenizer, text, ids in cases:
        assert tokenizer.encode(text).ids.tolist() == ids


@with_data
def test_published_tokenizers_have_the_sizes_and_special_ids_of_their_models():
    found = {
        name: tuple(published(name).vocabulary)
        for name in ("bert-base-uncased", "bert-base-cased", "roberta-base", "albert-base", "xlnet-cased")
    }
    assert found == {
        "bert-base-uncased": (30522, 0, 100, 101, 102, 103),
        "bert-base-cased": (28996, 0, 100, 101, 102, 103),
        "roberta-base": (50265, 1, 3, 0, 2, 50264),
        "albert-base": (30000, 0, 1, 2, 3, 4),
        "xlnet-cased": (32000, 5, 0, 3, 4, 6),
    }


@with_data
@given(text=texts)
def test_the_published_wordpiece_vocabularies_are_applied_as_the_transcription_does(text):
    for name, lowercase in (("bert-base-uncased", True), ("bert-base-cased", False)):
        tokenizer = published(name)
        vocabulary = vocabulary_of(name)
        assert pieces_of(tokenizer, tokenizer.encode(text).ids) == wordpieces(text, lowercase, vocabulary)


@cache
def vocabulary_of(name):
    return set((Path(DATA) / "tokenizers" / name / "vocab.txt").read_text().split("\n"))


@with_data
def test_a_literal_special_stays_text_for_every_published_tokenizer():
    for name in (*PUBLISHED.values(), "bert-base-cased", "xlnet-cased"):
        tokenizer = published(name)
        specials = {*tokenizer.vocabulary[1:]} - {tokenizer.vocabulary.unk}
        assert specials.isdisjoint(index for ids in tokenizer.ids(LITERALS) for index in ids)

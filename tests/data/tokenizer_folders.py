"""Small tokenizer folders as others have them, and what transformers 5.24 makes of texts with each.

`python tests/data/tokenizer_folders.py` prints the ids anew where transformers is installed.
"""

import json
from pathlib import Path

import tokenizers

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MODERN = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
PIECES = [
    "die",
    "br",
    "##ü",
    "##u",
    "##cke",
    "über",
    "uber",
    "##n",
    "京",
    "##都",
    "京都",
    "[",
    "]",
    "e",
    "##1",
    "/",
    "A",
]
TEXTS = ["Die Brücke über A", "京都 [E1] die", "nanocoat e die", "e" * 101]
LITERAL = "e</s>die [SEP]"


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def wordpiece(config=None, pieces=PIECES, **more):
    """Return the files of a BERT folder with a vocab.txt."""
    files = {"vocab.txt": "\n".join([*BERT, *pieces]) + "\n", "config.json": {"model_type": "bert"}} | more
    return files | ({} if config is None else {"tokenizer_config.json": config})


def wordpiece_json(config, added=(), model_type="bert", **settings):
    """Return the files of a BERT folder with a tokenizer.json that neither lower-cases nor lets words be long."""
    ids = {piece: index for index, piece in enumerate([*BERT, *PIECES])}
    rust = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(ids, unk_token="[UNK]", **({"max_input_chars_per_word": 101} | settings))
    )
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    rust.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in BERT])
    for token in added:
        rust.add_tokens([token])
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] [SEP] $B [SEP]"}
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        **template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    described = {"tokenizer.json": rust.to_str(), "config.json": {"model_type": model_type}}
    return described | {"tokenizer_config.json": config}


def bpe(config, suffix="", names=ROBERTA, model_type="roberta", **more):
    """Return vocab.json and merges.txt, byte-level or with a suffix at the ends of words."""
    if suffix:
        letters = [*"dieuberAnrück", *(x + suffix for x in "dieuberAnrück")]
        merges = [("d", "i"), ("di", "e" + suffix)]
    else:
        letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        merges = [("d", "i"), ("di", "e"), ("Ġ", "die")]
    pieces = dict.fromkeys([*names, *letters, *(a + b for a, b in merges)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    text = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges), ""])
    files = {"vocab.json": vocabulary, "merges.txt": text, "config.json": {"model_type": model_type}}
    return files | ({} if config is None else {"tokenizer_config.json": config}) | more


def unigram(config, names, model_type, template, normalizer=None):
    """Return the files of a folder with a unigram tokenizer.json. template: of one text and of two."""
    scores = [(name, 0.0) for name in names]
    scores += [("▁", -2.0), ("▁die", -3.0), ("▁Die", -4.0), ("die", -4.5)]
    scores += [(x, -5.0) for x in "dieDubenrckAühg<>/s[]"]
    unk = next(index for index, name in enumerate(names) if "unk" in name.lower())
    rust = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk))
    rust.normalizer = normalizer
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    rust.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in names])
    one, two = template
    specials = [(name, names.index(name)) for name in names if name in f"{one} {two}".replace(":0", "").split()]
    rust.post_processor = tokenizers.processors.TemplateProcessing(one, two, special_tokens=specials)
    files = {"tokenizer.json": rust.to_str(), "config.json": {"model_type": model_type}}
    return files | {"tokenizer_config.json": config}


E1 = tokenizers.AddedToken("[E1]", special=True)
NANO = tokenizers.AddedToken("nanocoat", special=False, normalized=True)
NAMED = {"cls_token": "<bos>", "sep_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
XLMR = (ROBERTA, "xlm-roberta", ("<s> $A </s>", "<s> $A </s> </s> $B </s>"))
GENERAL = "PreTrainedTokenizerFast"

FOLDERS = {
    "nothing said": lambda: wordpiece(),
    "strip_accents": lambda: wordpiece({"strip_accents": False}),
    "strip_accents, cased": lambda: wordpiece({"strip_accents": True, "do_lower_case": False}),
    "tokenize_chinese_chars": lambda: wordpiece({"tokenize_chinese_chars": False}),
    "do_lower_case, of ELECTRA": lambda: wordpiece({"do_lower_case": False, "tokenizer_class": "ElectraTokenizer"}),
    "added_tokens.json": lambda: wordpiece({}, **{"added_tokens.json": {"[E1]": 22, "nanocoat": 23}}),
    "special_tokens_map.json": lambda: wordpiece(
        {"sep_token": "e"}, **{"special_tokens_map.json": {"sep_token": "[SEP]", "additional_special_tokens": ["[E1]"]}}
    ),
    "added_tokens_decoder": lambda: wordpiece(
        {"added_tokens_decoder": {"22": {"content": "[E1]", "lstrip": True, "special": True}}},
        **{"added_tokens.json": {"nanocoat": 22}},
    ),
    "json, class of BERT": lambda: wordpiece_json({"tokenizer_class": "BertTokenizer"}, [E1, NANO]),
    "json, class of BERT, cased": lambda: wordpiece_json({"do_lower_case": False}, [E1, NANO]),
    "json, general class": lambda: wordpiece_json({"tokenizer_class": GENERAL, "do_lower_case": True}, [E1, NANO]),
    "json of ModernBERT": lambda: wordpiece_json({"tokenizer_class": "BertTokenizer"}, [E1], "modernbert"),
    "split_special_tokens": lambda: wordpiece_json({"split_special_tokens": True}, [E1, NANO]),
    "byte level": lambda: bpe(None),
    "add_prefix_space": lambda: bpe({"add_prefix_space": True}),
    "byte level of DeBERTa": lambda: bpe({}, names=BERT, model_type="deberta"),
    "</w>": lambda: bpe({"tokenizer_class": "HerbertTokenizer"}, "</w>", model_type="bert"),
    "XLM-R": lambda: unigram({}, *XLMR),
    "XLM-R's for BERT": lambda: unigram({"tokenizer_class": "XLMRobertaTokenizer"}, ROBERTA, "bert", XLMR[2]),
    "ALBERT": lambda: unigram(
        {}, ["<pad>", "<unk>", *BERT[2:]], "albert", ("[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")
    ),
    "named": lambda: unigram(NAMED, MODERN, "modernbert", ("<bos> $A <eos>", "<bos> $A <eos> $B <eos>")),
}  # fmt: skip


def oracle(folder):
    """Return the ids of each text without and of a pair with special tokens, and the segments of the pair."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pair = tokenizer("die", "die")
    segments = pair.get("token_type_ids") or [0] * len(pair["input_ids"])
    return {
        "ids": tokenizer(TEXTS, add_special_tokens=False)["input_ids"],
        "parsed": tokenizer(LITERAL, add_special_tokens=False)["input_ids"],
        "pair": [list(x) for x in zip(pair["input_ids"], segments, strict=True)],
    }


if __name__ == "__main__":
    import tempfile

    found = {}
    for case, files in FOLDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[case] = oracle(write(Path(folder), files()))
    lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(each)}" for case, each in found.items())
    Path(__file__).with_name("tokenizer_folders.json").write_text("{\n" + lines + "\n}\n")

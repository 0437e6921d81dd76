"""Read and write the tokenizer of a Hugging Face folder: the files as they are, and what transformers asks beside them.

Where we deviate: transformers' WordPiece gives up words of over 100 characters, ours of over 200, as BERT's own does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.data.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from bertjax.errors import InputError
from bertjax.huggingface.table import Family
from bertjax.huggingface.unigram import tokenizer_json

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
_CLASSES = {"vocab.txt": "BertTokenizer", "vocab.json": "RobertaTokenizer", "tokenizer.json": "PreTrainedTokenizerFast"}


def read_tokenizer(folder: Path, config: Mapping[str, Any], V: int) -> Tokenizer | None:
    """Read the tokenizer, None where the folder has none.

    Raises InputError where it has more ids than the model has rows; fewer are padding of the table.
    """
    models = sorted(path.name for path in folder.glob("*.model"))
    if not models and not any((folder / name).is_file() for name in _FILES):
        return None
    renumbered = config["model_type"] == "xlm-roberta" or "spm.model" in models  # the latter is DeBERTa's
    if renumbered and not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder} has {models[0] if models else 'no tokenizer.json'}, whose ids are not all of "
            f"{config['model_type']}'s: "
            "write its tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    original = folder / "spiece.model"  # exact, where a tokenizer.json is made after it
    tokenizer = load_tokenizer(original if original.is_file() else folder)
    if tokenizer.vocabulary.size > V:
        raise InputError(f"{folder}: the tokenizer has {tokenizer.vocabulary.size} ids, vocab_size is only {V}")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, family: Family, folder: Path) -> None:
    """Write its files by the names that transformers knows, and tokenizer_config.json with its class and specials."""
    files = dict(tokenizer.files)
    model = next((name for name in files if name.endswith(".model")), "")
    kind = next((name for name in _FILES if name in files), model)
    config = json.loads(files.pop("tokenizer_config.json", b"{}"))
    stated = {f"{role}_token": tokenizer.piece(getattr(tokenizer.vocabulary, role)) for role in _ROLES}
    if isinstance(tokenizer, SentencePieceTokenizer):
        files = {"spiece.model": files[model]}
        described = tokenizer_json(tokenizer, cls_last=family.cls_last)
        if described is not None:
            files["tokenizer.json"] = described.encode()
        stated |= {"tokenizer_class": _CLASSES["tokenizer.json"]}
    else:
        stated |= {"tokenizer_class": _CLASSES[kind]}
        if kind == "vocab.json":  # these classes add the names that they know, unless told ours
            stated |= {"bos_token": stated["cls_token"], "eos_token": stated["sep_token"]}
            stated |= {"tokenizer_class": "DebertaTokenizer"} if family.model_type == "deberta" else {}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    text = json.dumps(stated | config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n")


_ROLES = ("pad", "unk", "cls", "sep", "mask")

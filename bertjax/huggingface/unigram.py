"""Write a SentencePiece model as a tokenizer.json, which is what transformers reads exactly as it stands.

Its own reading of `.model` files splits text otherwise than SentencePiece does. Where even this one deviates: the
published ALBERT and XLNet vocabularies have pieces that end in digit and comma, which their own code splits again
(data/tokenizer.py); here such a piece costs so much that it is never chosen, which is the same but for rare numbers.
"""

from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as protocol
from tokenizers import normalizers, pre_tokenizers

from bertjax.data.tokenizer import SentencePieceTokenizer

_NEVER = -1e4  # far below the logarithm of any probability
_UNIGRAM = 1  # in the model's own list of kinds


def tokenizer_json(tokenizer: SentencePieceTokenizer, *, cls_last: bool) -> str | None:
    """Describe the tokenizer as JSON, None where it is of another kind than unigram.

    cls_last: a text ends with the separator and the classification token, instead of standing between them.
    """
    content = next(content for name, content in tokenizer.files.items() if name.endswith(".model"))
    messages: Any = protocol  # its classes are made as it is imported
    model = messages.ModelProto.FromString(content)
    if model.trainer_spec.model_type != _UNIGRAM:
        return None
    again = tokenizer.split_again
    scores = [(piece.piece, _NEVER if n in again else piece.score) for n, piece in enumerate(model.pieces)]
    v = tokenizer.vocabulary
    rust = tokenizers.Tokenizer(
        tokenizers.models.Unigram(scores, v.unk, byte_fallback=model.trainer_spec.byte_fallback)
    )
    steps: list[Any] = []
    if tokenizer.published:
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [normalizers.Replace(tokenizers.Regex(r"[\s\x{1c}-\x{1f}\x{85}]"), " ")]
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
        steps += [normalizers.Lowercase()] if tokenizer.lowercase else []
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    if model.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    rust.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.normalizer_spec.add_dummy_prefix else "never"
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    rust.decoder = tokenizers.decoders.Metaspace(prepend_scheme=scheme)
    rust.add_special_tokens([tokenizer.piece(index) for index in (v.pad, v.unk, v.cls, v.sep, v.mask)])
    cls, sep = tokenizer.piece(v.cls), tokenizer.piece(v.sep)
    one, two = (f"$A:0 {sep}:0 {cls}:2", f"$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2")
    if not cls_last:
        one, two = (f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1")
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        single=one, pair=two, special_tokens=[(cls, v.cls), (sep, v.sep)]
    )
    return rust.to_str()

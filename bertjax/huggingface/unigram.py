"""Convert a SentencePiece model to a tokenizer.json, which transformers uses unchanged.

Its own conversion of `.model` files splits text differently from SentencePiece. Where this one deviates too: the
published ALBERT and XLNet vocabularies have pieces that end in digit and comma, which their own code splits again
(data/tokenizer.py); here such a piece has so low a score that it is never chosen, which differs for rare numbers only.
"""

import random
import unicodedata
from collections.abc import Iterator
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as protocol
from tokenizers import normalizers, pre_tokenizers

from bertjax.data.tokenizer import SentencePieceTokenizer


def _combining() -> str:
    """Return a pattern of the characters that the published code takes for accents, `unicodedata.combining`.

    They are not quite the marks that the library strips: vowel signs of Thai are none, some spacing marks are.
    """
    points = {point for point in range(0x110000) if unicodedata.combining(chr(point))}
    begins = [point for point in sorted(points) if point - 1 not in points]
    ends = [point for point in sorted(points) if point + 1 not in points]
    return "[" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in zip(begins, ends, strict=True)) + "]"


_NEVER = -1e4  # far below the logarithm of any probability
_TILDE = "\ufdd0"  # a noncharacter
_UNIGRAM = 1  # in the model's own list of kinds


def differs(tokenizer: SentencePieceTokenizer, described: str) -> str | None:
    """Return the first of some noisy texts in 31 languages of which `described` makes other ids, None for none.

    Literal special tokens are not among them, which transformers takes for the tokens themselves.
    """
    rust = tokenizers.Tokenizer.from_str(described)
    texts = list(noisy_texts())
    ours, theirs = tokenizer.ids(texts), rust.encode_batch_fast(texts, add_special_tokens=False)
    return next((text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b.ids), None)


def noisy_texts(count: int = 2000, seed: int = 0) -> Iterator[str]:
    """Yield sentences of 31 languages in turn, with odd characters inserted, letters left out and capitals."""
    draw = random.Random(seed)
    for number in range(count):
        text = list(_SENTENCES[number % len(_SENTENCES)])
        for _ in range(draw.randint(0, 6)):
            kind, place = draw.random(), draw.randrange(len(text))
            if kind < 0.7:
                text.insert(place, draw.choice(_ODD))
            elif kind < 0.8:
                text[place] = ""
            else:
                text[place] = text[place].upper()
        yield "".join(text)


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
        if not tokenizer.keep_accents:
            steps += [normalizers.NFKD(), normalizers.Replace(tokenizers.Regex(_combining()), "")]
        if tokenizer.lowercase:
            # Python's lower() knows the sigma at the end of a word, the library's does not.
            letter = r"[\p{Lu}\p{Ll}\p{Lt}]"
            steps += [normalizers.Replace(tokenizers.Regex(f"(?<={letter})Σ(?!{letter})"), "ς")]
            steps += [normalizers.Lowercase()]
    if model.normalizer_spec.precompiled_charsmap:
        # The library looks up a letter with its combining marks, and drops a joiner or an accent after a letter that
        # the map changes, so NFKC is applied first. The maps of SentencePiece leave one tilde alone.
        if not tokenizer.published and "nfkc" in model.normalizer_spec.name:
            steps += [normalizers.Replace("～", _TILDE), normalizers.NFKC(), normalizers.Replace(_TILDE, "～")]
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


_SENTENCES = """
All human beings are born free and equal in dignity and rights.
Alle Menschen sind frei und gleich an Würde und Rechten geboren.
Tous les êtres humains naissent libres et égaux en dignité et en droits.
Todos los seres humanos nacen libres e iguales en dignidad y derechos.
Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.
Todos os seres humanos nascem livres e iguais em dignidade e direitos.
Alle mensen worden vrij en gelijk in waardigheid en rechten geboren.
Alla människor är födda fria och lika i värde och rättigheter.
Alle mennesker er født frie og like i verdighet og rettigheter.
Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan.
Wszyscy ludzie rodzą się wolni i równi w godności i prawach.
Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti.
Minden emberi lény szabadon születik és egyenlő méltósága van.
Toate ființele umane se nasc libere și egale în demnitate.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.
Все люди рождаются свободными и равными в своём достоинстве.
Усі люди народжуються вільними і рівними у своїй гідності.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.
تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت برابرند.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता है।
সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা নিয়ে জন্মগ্রহণ করে।
எல்லா மனிதர்களும் சுதந்திரமாகவே பிறக்கின்றனர்.
మానవులెల్లరును జన్మతః స్వతంత్రులు మరియు సమానులు.
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์
ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ ສິດທິ ເສລີພາບ
人人生而自由，在尊严和权利上一律平等。
すべての人間は、生まれながらにして自由であり、かつ平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm.
""".strip().split("\n")
"""The first article of the Universal Declaration of Human Rights, or its beginning."""

_ODD = (
    "  ", "\t", "\n", "\xa0", "\u3000", "\u200b", "\u200d", "\u0301", "\u0327", "``", "''", '"', "1,000", "3,5,",
    "2,", "(1,234.50)", "\xbd", "\ufb01", "\xc5", "\u2460", "\u338f", "\uff46\uff55\uff4c\uff4c", "\u0130", "\xdf",
    "\u03c2", "\U0001f600", "\U0001f469\u200d\U0001f467", "\ufeff", "\xad", "\u2028", "\x85", "\x1c", "\x07",
    "\u2581", "\u2581\u2581", "\u2026", "\u2014", "\u2013", "\xa3", "\u20ac", "\u01c6", "\u01c5", "\u03a3",
    "\u0391\u03a3", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "\u4e2d", "\ud55c", "\ufffd", "a\u0308", "\u0151", "\u0301",
    "\u0663", "\u06f5", "\u096f", "\ufdfa", "\u2167", "\u2122", "#", "@user", "http://a.b/c?d=1,2,", "\x00", "～",
)  # fmt: skip

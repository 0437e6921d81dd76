"""A batch has targets, whatever the script of its text, or the run says why not."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_bert, small_xlnet

from bertjax.data.tokenizer import tokenizer_from_files
from bertjax.data.vocabulary import train_byte_level_bpe, train_unigram, train_wordpiece
from bertjax.errors import InputError
from bertjax.masking import Masking, mask_tokens, ngrams, words
from bertjax.objectives.mlm import MaskedLM
from bertjax.objectives.plm import PermutationLM
from bertjax.objectives.sift import SiFT
from bertjax.permutation import Permutation
from bertjax.run.targets import check_targets, few_targets
from bertjax.types import Mean

PARTS = {
    "chinese": "渡船 早晨 离开 港口 船长 修理 旧灯 面包师 磨坊 果园 苹果 邮差 钟楼 石桥 水车 冬天 下雪 村里 孩子 带来",
    "japanese": "渡し船 は 朝 に 港 を 離れ 船長 が 古い ランプ 直す パン屋 から 粉 りんご 郵便屋 と 橋 の 上 で 冬",
    "thai": "เรือ ข้ามฟาก ออกจาก ท่าเรือ ตอนเช้า กัปตัน ซ่อม ตะเกียง เก่า คนทำ ขนมปัง ซื้อ แป้ง จาก โรงสี แอปเปิล ใน สวน",
    "english": "the ferry leaves harbour every morning and captain mends an old lamp while bakers carry flour home",
}
TRAIN = {"wordpiece": train_wordpiece, "bpe": train_byte_level_bpe, "unigram": train_unigram}


def sentences(script, count):
    draw, parts = np.random.default_rng(5), PARTS[script].split()
    space = " " if script == "english" else ""
    return [space.join(draw.choice(parts, 14)) + "." for _ in range(count)]


@pytest.mark.parametrize("unit", [words, ngrams(3)], ids=["words", "n-grams"])
@pytest.mark.parametrize("kind", TRAIN)
@pytest.mark.parametrize("script", PARTS)
def test_whole_words_are_within_the_recipe_in_every_script(script, kind, unit):
    size = {"wordpiece": 150, "bpe": 340, "unigram": 90}[kind]
    lines = sentences(script, 200)
    while True:
        try:
            tokenizer = tokenizer_from_files(TRAIN[kind](iter(lines), size, False), origin="made")
            break
        except InputError:  # fewer pieces than asked for
            size -= 10
    L, v = 64, tokenizer.vocabulary
    rows = []
    for text in sentences(script, 24):
        encoding = tokenizer.encode(text * 3)
        rows.append((encoding.ids[:L], encoding.word_starts[:L]))
    tokens = np.full((len(rows), L), v.pad, np.int32)
    starts, mask = np.ones_like(tokens), np.zeros_like(tokens)
    for row, (ids, begins) in enumerate(rows):
        tokens[row, : len(ids)], starts[row, : len(ids)], mask[row, : len(ids)] = ids, begins, 1
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "word_starts": jnp.asarray(starts),
             "example": jnp.arange(len(rows), dtype=jnp.uint32)}  # fmt: skip
    spec = Masking(mask_id=v.mask, random_ids=(5, v.size), specials=(v.cls, v.sep), unit=unit)
    masked = jax.jit(lambda key, batch: mask_tokens(key, batch, spec))(jax.random.key(7), batch)
    targets = np.asarray(masked.weights_BP).sum(1)
    assert targets.min() > 0
    assert 0.10 < targets.sum() / mask.sum() <= 0.16


def means(weight, real=1000.0, name="loss/mlm"):
    return {name: Mean(np.float32(0), np.float32(weight)), "tokens/real": Mean(np.float32(real), np.float32(1024))}


MLM = MaskedLM(small_bert(), Masking(4, (5, 9)))
PLM = PermutationLM(small_xlnet(), Permutation((1,), parts=(64, 64), targets=20))


@pytest.mark.parametrize(("name", "objective"), [("loss/mlm", MLM), ("loss/plm", PLM), ("loss/mlm", SiFT(MLM))])
def test_a_batch_without_a_target_is_an_error_with_its_reason(name, objective):
    with pytest.raises(InputError, match=r"no token of the batch of step 3 is a target of loss/.*longer than the"):
        check_targets(3, objective, means(0, name=name), (8, 128))
    check_targets(3, objective, means(1, name=name), (8, 128))
    check_targets(3, SimpleNamespace(), {"loss/classify": Mean(np.float32(0), np.float32(0))}, (8, 128))


def test_an_objective_says_itself_how_many_targets_it_expects():
    denoising = SimpleNamespace(expected_targets=lambda rows, length, real: {"loss/denoise": real / 2})
    with pytest.raises(InputError, match="is a target of loss/denoise"):
        check_targets(3, denoising, means(0, name="loss/denoise"), (8, 128))
    assert "249 tokens" in few_targets(denoising, means(249, name="loss/denoise"), (8, 128))


def test_fewer_than_half_of_the_targets_are_a_warning():
    assert few_targets(MLM, means(75), (8, 128)) is None
    assert "74 tokens of the first batch are targets, 49% of the 150" in few_targets(MLM, means(74), (8, 128))
    assert few_targets(SiFT(MLM), means(74), (8, 128))
    few = dataclasses.replace(MLM, masking=Masking(4, (5, 9), max_predictions=2))
    assert few_targets(few, means(8), (8, 128)) is None and few_targets(few, means(7), (8, 128))
    assert few_targets(PLM, means(80, name="loss/plm"), (8, 128)) is None
    assert few_targets(PLM, means(79, name="loss/plm"), (8, 128))
    assert few_targets(PLM, means(159, name="loss/plm"), (8, 256))  # two windows a row
    assert few_targets(SimpleNamespace(), {"loss/classify": means(0)["loss/mlm"]}, (8, 128)) is None

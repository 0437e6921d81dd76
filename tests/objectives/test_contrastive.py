"""Contrastive training: its formula, the same on every mesh, cached gradients, what is no negative."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import (
    small_bert,
    small_deberta,
    small_modernbert,
    small_xlnet,
    some_passages,
    with_labels,
    without_dropout,
)

from bertjax.errors import InputError
from bertjax.flops import model_flops
from bertjax.models.published import Published
from bertjax.models.sentence import SENTENCE, Projection, SentenceEmbedding, UnitLength, identity, vector_width
from bertjax.objectives import contrastive
from bertjax.objectives.contrastive import Contrastive
from bertjax.random import with_global_rows
from bertjax.rules import name_of
from bertjax.sharding import placement
from bertjax.sharding.collectives import gather_params
from bertjax.sharding.mesh import MeshShape, by_row
from bertjax.sharding.placement import storage_shardings
from bertjax.types import average

KEY = jax.random.key(3)
MODEL = Published(small_bert(N=1), ((SENTENCE, SentenceEmbedding()),))
OBJECTIVE = Contrastive(MODEL, temperature=0.5, widths=(8,))
BATCH = with_labels(some_passages, rows=8, length=16)
PARAMS = jax.jit(OBJECTIVE.init)(KEY, BATCH)


def gradient(objective, params=PARAMS, batch=BATCH):
    return jax.jit(jax.value_and_grad(partial(objective.loss, train=True), has_aux=True))(params, batch, KEY)


def assert_close(one, other, rtol=1e-4, atol=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def by_hand(anchors, passages, texts, temperature):
    """Return the mean loss, one anchor and one passage at a time, in float64."""
    losses = []
    for i, (anchor, own, *_) in enumerate(texts):
        exponents = []
        for j, (other, *candidates) in enumerate(texts):
            for k, text in enumerate(candidates):
                a, p = anchors[i].astype(np.float64), passages[j, k].astype(np.float64)
                similarity = a @ p / np.linalg.norm(a) / np.linalg.norm(p) / temperature
                if i == j and k == 0:
                    mine = similarity
                elif text < 0 or text in (anchor, own) or (k == 0 and other == anchor):
                    continue
                exponents.append(similarity)
        if len(exponents) > 1 and anchor >= 0:
            losses.append(np.log(np.exp(exponents).sum()) - mine)
    return np.mean(losses)


def test_the_loss_is_its_formula_without_what_the_data_say_is_no_negative(monkeypatch):
    """Of the vectors of any encoder: with a passage of two anchors, an anchor twice, and an anchor as a passage."""
    rng = np.random.default_rng(0)
    anchors, passages = rng.normal(size=(6, 16)), rng.normal(size=(6, 2, 16))
    texts = np.array([[0, 1, 2], [3, 1, 4], [0, 5, -1], [6, 7, 0], [8, 9, 8], [-1, -1, -1]], np.int32)
    given = tuple(jnp.asarray(x, jnp.float32) for x in (anchors, passages))
    monkeypatch.setattr(Contrastive, "vectors", lambda self, *args, **options: given)
    batch = {name: array[:6] for name, array in BATCH.items()} | {"texts": jnp.asarray(texts)}
    loss, metrics = dataclasses.replace(OBJECTIVE, widths=(8,)).loss({}, batch, KEY, train=False)
    full, short = by_hand(anchors, passages, texts, 0.5), by_hand(anchors[:, :8], passages[:, :, :8], texts, 0.5)
    np.testing.assert_allclose(loss, full + short, rtol=1e-5)
    np.testing.assert_allclose(average(metrics["loss/contrastive_8"]), short, rtol=1e-5)
    compared, false = contrastive.allowed(jnp.asarray(texts))
    assert false.sum(1).tolist() == [3, 1, 2, 0, 1, 0]
    assert metrics["negatives/false"].sum == 7 and metrics["loss/contrastive"].weight == 5
    assert not compared[:5, 10:].any()


@pytest.mark.parametrize(("shape", "chunks"), [(MeshShape(data=8), 1), (MeshShape(data=2, fsdp=2), 2)], ids=str)
def test_the_negatives_are_those_of_the_whole_batch_on_every_mesh(shape, chunks, monkeypatch):
    """With dropout: loss and gradient of one device are those of several, which hold one row or two each."""
    objective = dataclasses.replace(OBJECTIVE, chunks=chunks)
    monkeypatch.setattr(placement, "SMALLEST", 1)
    mesh = shape.mesh(8, jax.devices()[: shape.data * shape.fsdp])

    def loss(params, batch, rng):
        return objective.loss(gather_params(params), batch, rng, train=True)

    placed = jax.device_put((PARAMS, BATCH), (storage_shardings(mesh, PARAMS), by_row(mesh)))
    with jax.set_mesh(mesh):
        several = jax.jit(jax.value_and_grad(loss, has_aux=True))(*placed, KEY)
    one = gradient(objective)
    assert one[0][1]["negatives/used"].sum == 8 * 13  # 8 passages and 6 hard negatives, but for its own
    assert_close(one, several, rtol=2e-5, atol=5e-7)


def test_cached_gradients_are_those_of_the_whole_batch_in_less_memory():
    """Without dropout they equal those of one part; with dropout those of GradCache by hand, with the same draws."""
    plain = without_dropout(OBJECTIVE)
    whole, parts = gradient(plain), gradient(dataclasses.replace(plain, chunks=4))
    assert_close(whole, parts)

    cached = dataclasses.replace(OBJECTIVE, chunks=2)
    texts = {name: array for name, array in BATCH.items() if name in contrastive._TEXTS}
    rows = [{name: array[c::2] for name, array in texts.items()} for c in range(2)]
    keys = [jax.random.fold_in(KEY, c) for c in range(2)]

    @jax.jit
    def by_hand(params):
        encode = partial(cached._encoded, train=True)
        vectors = [encode(params, *part) for part in zip(rows, keys, strict=True)]
        together = jax.tree.map(lambda *parts: jnp.stack(parts, 1).reshape(8, *parts[0].shape[1:]), *vectors)

        def loss_of(vectors):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Contrastive, "vectors", lambda self, *args, **options: vectors)
                return OBJECTIVE.loss(params, BATCH, KEY, train=True)[0]

        loss, wanted = jax.value_and_grad(loss_of)(together)
        gradients = []
        for c, part in enumerate(zip(rows, keys, strict=True)):
            _, pull = jax.vjp(lambda params, part=part: encode(params, *part), params)
            gradients += pull(jax.tree.map(lambda x, c=c: x[c::2], wanted))
        return loss, jax.tree.map(lambda *parts: sum(parts), *gradients)

    (loss, _), found = gradient(cached)
    assert_close((loss, found), by_hand(PARAMS))


def test_memory_is_that_of_one_part():
    def peak(chunks):
        objective = dataclasses.replace(OBJECTIVE, chunks=chunks, widths=())
        many = jax.tree.map(lambda x: jnp.tile(x, (8, *[1] * (x.ndim - 1))), BATCH)
        compiled = jax.jit(jax.grad(lambda params, batch: objective.loss(params, batch, KEY, train=True)[0]))
        return compiled.lower(PARAMS, many).compile().memory_analysis().temp_size_in_bytes

    assert peak(8) < 0.4 * peak(1)


def test_dropout_tells_equal_texts_apart():
    """SimCSE: a row's passage is its anchor, and the other rows are its negatives."""
    names = ("tokens", "mask", "types")
    twice = {f"passage_{name}": BATCH[name][:, None] for name in names} | {name: BATCH[name] for name in names}
    twice |= {"texts": jnp.tile(jnp.arange(8)[:, None], (1, 2))}
    one, other = jax.jit(partial(OBJECTIVE.vectors, train=True))(PARAMS, twice, KEY)
    assert (jnp.abs(one - other[:, 0]).max(1) > 1e-3).all()
    one, other = jax.jit(partial(OBJECTIVE.vectors, train=False))(PARAMS, twice, KEY)
    assert_close(one, other[:, 0])
    assert contrastive.allowed(twice["texts"]).compared_BC.all()


def test_a_batch_without_negatives_has_no_gradient():
    same = BATCH | {"texts": jnp.zeros_like(BATCH["texts"])}
    (loss, metrics), found = gradient(OBJECTIVE, batch=same)
    assert loss == 0 and metrics["loss/contrastive"].weight == 0 and metrics["negatives/used"].sum == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "must be above 0"),
        ({"temperature": float("nan")}, "must be above 0"),
        ({"temperature": float("inf")}, "finite"),
        ({"widths": (32,)}, "from 1 to 31"),
        ({"widths": (8, 8)}, "each once"),
        ({"widths": (0,)}, "from 1 to 31"),
        ({"chunks": 0}, "1 or more"),
        ({"model": Published(small_bert())}, "need one head"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OBJECTIVE, **fields)


def test_batches_that_cannot_be_trained_are_refused_when_they_are_traced():
    def trace(objective, batch):
        jax.eval_shape(partial(objective.loss, train=True), PARAMS, batch, KEY)

    one = {name: array[:1] for name, array in BATCH.items()}
    pair = one | {name: array[:, :1] for name, array in one.items() if name.startswith("passage_")}
    trace(OBJECTIVE, one)  # it has a hard negative
    with pytest.raises(ValueError, match="no negative to compare with"):
        trace(OBJECTIVE, pair)
    with pytest.raises(ValueError, match=r"chunks=3 do not divide .* are 8"):
        trace(dataclasses.replace(OBJECTIVE, chunks=3), BATCH)
    with pytest.raises(ValueError, match="needs passages in the batch"):
        trace(OBJECTIVE, {"tokens": BATCH["tokens"], "mask": BATCH["mask"]})
    with pytest.raises(InputError, match="leave accumulate at 1"):
        trace(OBJECTIVE, with_global_rows(KEY, BATCH))


def test_the_width_of_vectors_follows_the_modules():
    def width(**fields):
        return vector_width(SentenceEmbedding(**fields), 32)

    two = SentenceEmbedding().pooling * 2
    assert (width(), width(width=5), width(pooling=two)) == (32, 5, 64)
    assert width(transforms=(Projection(32, 12, identity), UnitLength())) == 12


def test_its_flops_are_those_of_its_texts_whatever_the_chunks():
    one, two = (model_flops(dataclasses.replace(OBJECTIVE, chunks=n), BATCH) for n in (1, 2))
    assert one == two > 0


@pytest.mark.parametrize(
    "encoder", [small_xlnet(), small_deberta(decoder=2), small_modernbert()], ids=lambda x: type(x).__name__
)
def test_encoders_of_every_kind_are_trained_but_for_what_only_pre_training_reads(encoder):
    objective = Contrastive(Published(encoder, ((SENTENCE, SentenceEmbedding()),)))
    params = jax.eval_shape(objective.init, KEY, BATCH)
    jax.eval_shape(partial(objective.loss, train=True), params, BATCH, KEY)
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    frozen = [name for name in names for pattern, _ in objective.frozen if re.search(pattern, name)]
    expected = {"XLNet": ["encoder/mask_embedding"], "DeBERTa": ["encoder/decoder_positions/table"]}
    assert frozen == expected.get(type(encoder).__name__, [])

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import small_albert, small_bert, small_deberta, small_modernbert, small_xlnet, supervised
from flax.traverse_util import flatten_dict

from bertjax.models.heads import PairHead, TokenHead
from bertjax.models.layers import Normal
from bertjax.models.published import Published
from bertjax.models.span_heads import Beams, SpanLogits, electra_span_head, xlnet_span_head
from bertjax.objectives import supervised as labelled
from bertjax.objectives.supervised import BeamSpans, Supervised
from bertjax.serialization.description import from_json, to_json

KEY, B, L = jax.random.key(0), 3, 6
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
X = jax.random.normal(KEY, (B, L, 4))
NARROW = small_bert(D=4, initializer=Normal(1.0))
PAIR = PairHead(32, 3, Normal(), "float32")


def nll(logits, label):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum()) - logits[label]


def says(logits):
    return lambda x, *more: logits


def test_rows_of_padding_and_padded_options_do_not_count():
    logits = jax.random.normal(KEY, (3, 3))
    metrics, _ = labelled.classes(says(logits), X, {"mask": MASK, "labels": jnp.array([2, 0, 1])})
    assert metrics["loss/classify"].weight == 2
    np.testing.assert_allclose(metrics["loss/classify"].sum, nll(logits[0], 2) + nll(logits[1], 0), rtol=1e-5)
    # Questions of three options, two and none; rows of the head: [B·C, 1].
    mask = jnp.stack([MASK, MASK, MASK.at[1].set(0)], axis=1)
    metrics, _ = labelled.options(says(logits.reshape(9, 1)), X, {"mask": mask, "labels": jnp.array([2, 1, 0])})
    expected = nll(logits[0], 2) + nll(logits[1, :2], 1)
    np.testing.assert_allclose(metrics["loss/choice"].sum, expected, rtol=1e-5)
    assert metrics["loss/choice"].weight == 2


def test_numbers_are_compared_by_their_squared_difference():
    y, labels = jnp.array([[0.5], [2.0], [9.0]]), jnp.array([1.0, 4.0, 0.0])
    metrics, predictions = labelled.numbers(says(y), X, {"mask": MASK, "labels": labels})
    assert metrics["loss/regress"].sum == 0.25 + 4 and metrics["loss/regress"].weight == 2
    assert predictions["regress"][0].shape == (3, 1)


def test_labels_are_scored_each_by_itself():
    logits, labels = jax.random.normal(KEY, (B, 4)), jnp.array([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    metrics, predictions = labelled.labels(says(logits), X, {"mask": MASK, "labels": labels})
    assert metrics["loss/labels"].weight == 2  # the third row is padding
    x, y = np.asarray(logits[:2], np.float64), np.asarray(labels[:2])
    expected = np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - x * y  # of torch.nn.BCEWithLogitsLoss
    np.testing.assert_allclose(metrics["loss/labels"].sum / 2, expected.mean(), rtol=1e-5)
    right = ((x > 0) == (y > 0)).mean()
    np.testing.assert_allclose(metrics["accuracy/labels"].sum / metrics["accuracy/labels"].weight, right, rtol=1e-5)
    chances = np.asarray(jax.nn.softmax(predictions["labels"][0]))[:2, :, 0]
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-x)), rtol=1e-5)
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(metrics["loss/labels"].sum / 2, theirs, rtol=1e-5)


def test_tags_are_scored_where_there_is_one():
    logits = jax.random.normal(KEY, (B, L, 5))
    labels = jnp.full((B, L), -1).at[0, 1].set(3).at[1, 2].set(0)
    metrics, _ = labelled.tags(says(logits), X, {"mask": MASK, "labels": labels})
    assert metrics["loss/tags"].weight == 2
    np.testing.assert_allclose(metrics["loss/tags"].sum, nll(logits[0, 1], 3) + nll(logits[1, 2], 0), rtol=1e-5)


def test_spans_are_chosen_among_the_tokens_of_a_row():
    logits, labels = jax.random.normal(KEY, (B, L, 2)), jnp.array([[1, 5], [0, 0], [0, 0]])
    metrics, _ = labelled.spans(says(logits), X, {"mask": MASK, "labels": labels})
    parts = [nll(logits[0, :, 0], 1), nll(logits[0, :, 1], 5), nll(logits[1, :4, 0], 0), nll(logits[1, :4, 1], 0)]
    np.testing.assert_allclose(metrics["loss/span"].sum, sum(parts) / 2, rtol=1e-5)
    assert metrics["loss/span"].weight == 2


def test_answerability_is_weighted_and_the_head_gets_the_gold_start():
    seen = []

    def head(x, starts):
        seen.append(starts)
        zeros = jnp.zeros((B, L))
        return SpanLogits(zeros, zeros, jnp.array([2.0, -1.0, 5.0]))

    labels, answerable = jnp.array([[1, 5], [0, 0], [0, 0]]), jnp.array([1, 0, 0])
    batch = {"mask": MASK, "labels": labels, "answerable": answerable, "context": MASK}
    metrics, _ = BeamSpans(weight=0.25)(head, X, batch)
    np.testing.assert_array_equal(seen[0], [1, 0, 0])
    # Binary cross-entropy of the logit of there being no answer.
    expected = np.log1p(np.exp(2.0)) + np.log1p(np.exp(1.0))
    np.testing.assert_allclose(metrics["cross_entropy/answerable"].sum, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/answerable"].sum, 0.25 * expected, rtol=1e-5)


@pytest.mark.parametrize("head", [xlnet_span_head(NARROW, -1), electra_span_head(NARROW, 0)])
def test_beams_equal_the_training_logits_for_the_most_likely_starts(head):
    """By the other path: the most likely starts, given one after another."""
    context = jnp.array([[0, 1, 1, 1, 1, 0]] * B)
    params = head.init(KEY, X, context)
    beams = head.apply(params, X, context)
    assert isinstance(beams, Beams)
    for s in range(beams.starts_BS.shape[1]):
        logits = head.apply(params, X, context, beams.starts_BS[:, s])
        chances = jax.nn.log_softmax(logits.start_BL)
        picked = jnp.take_along_axis(chances, beams.starts_BS[:, s : s + 1], 1)[:, 0]
        np.testing.assert_allclose(beams.start_scores_BS[:, s], picked, atol=1e-5)
        ends = jax.nn.log_softmax(logits.end_BL)
        picked = jnp.take_along_axis(ends, beams.ends_BST[:, s], 1)
        np.testing.assert_allclose(beams.end_scores_BST[:, s], picked, atol=1e-5)
        np.testing.assert_allclose(beams.unanswerable_B, logits.unanswerable_B, atol=1e-5)
    allowed = {1, 2, 3, 4, 5 if head.position else 0}
    likely = beams.start_scores_BS > -100
    assert set(np.asarray(beams.starts_BS)[likely].tolist()) <= allowed and int(likely.sum()) == B * min(5, head.starts)


def test_alberts_span_head_is_xlnets_with_the_classification_token_first():
    """Against google-research/albert squad_utils.py create_v2_model, derived anew in numpy."""
    head, context, starts = xlnet_span_head(NARROW, 0), jnp.array([[0, 1, 1, 1, 1, 0]] * B), np.array([2, 4, 0])
    params = head.init(KEY, X, context)["params"]
    params = jax.tree.map(lambda x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape), params)
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, X))
    hidden = np.array([[False, False, False, False, False, True]] * B)  # the rest is context, or the first token

    def dense(name, inputs):
        return inputs @ p[name]["kernel"] + p[name].get("bias", 0.0)

    start = dense("start", x)[..., 0]
    chances = np.where(hidden, 0, np.exp(start))
    expected = np.einsum("bl,bld->bd", chances / chances.sum(-1, keepdims=True), x)
    none = dense("answer", np.tanh(dense("answer_hidden", np.concatenate([expected, x[:, 0]], -1))))[:, 0]
    given = np.repeat(x[np.arange(B), starts][:, None], L, axis=1)
    joined = np.tanh(dense("end_hidden", np.concatenate([x, given], -1)))
    normed = (joined - joined.mean(-1, keepdims=True)) / np.sqrt(joined.var(-1, keepdims=True) + 1e-12)
    end = dense("end", normed * p["end_norm"]["scale"] + p["end_norm"]["bias"])[..., 0]
    said = head.apply({"params": params}, X, context, starts)
    np.testing.assert_allclose(said.start_BL[~hidden], start[~hidden], atol=1e-4)
    np.testing.assert_allclose(said.end_BL[~hidden], end[~hidden], atol=1e-4)
    np.testing.assert_allclose(said.unanswerable_B, none, atol=1e-4)
    assert "bias" not in p["answer"] and float(said.start_BL[0, 5]) < -1e8


def test_a_warm_start_copies_lower_layers_pooler_and_head():
    objective = supervised(small_bert(), labelled.classes, "classify", PAIR, pooler_of="pair", renewed=1)
    params = jax.eval_shape(objective.init, KEY, {"tokens": MASK, "mask": MASK})
    found = jax.tree.map(lambda x: np.ones(x.shape, np.float32), params)
    found["head"] = {"pair": {"pooler": found["head"]["classify"]["pooler"], "classifier": {"kernel": np.ones(1)}}}
    taken = objective.remap_params(found)
    assert taken["head"] == {"classify": {"pooler": found["head"]["pair"]["pooler"]}}
    assert taken["encoder"]["layers"]["feedforward"]["widen"]["kernel"].shape == (1, 32, 64)
    assert taken["encoder"]["embeddings"]["word"]["table"].shape == (200, 32)
    inherited = ((r"/pooler/", False), (".*", True))
    again = supervised(small_bert(), labelled.classes, "classify", PAIR, pooler_of="pair", inherited=inherited)
    assert "head" not in again.remap_params(found)
    with pytest.raises(ValueError, match="name one of its parts, generator or discriminator"):
        objective.remap_params({"generator": {}, "discriminator": {}})


def test_a_stack_without_the_first_layer_keeps_what_is_below_the_renewed_ones():
    found = {"encoder": {"layers": {"norm": np.arange(4.0), "attention_norm": {"scale": np.arange(1.0, 4)}}}}
    kept = {}
    for renewed in (1, 3, 4):
        objective = supervised(small_modernbert(N=4), labelled.classes, "classify", PAIR, renewed=renewed)
        names = flatten_dict(objective.remap_params(found), sep="/")
        kept[renewed] = {name.rpartition("layers/")[2]: leaf.tolist() for name, leaf in names.items()}
    assert kept == {1: {"norm": [0, 1, 2], "attention_norm/scale": [1, 2]}, 3: {"norm": [0]}, 4: {}}


def test_parameters_that_only_pre_training_uses_are_frozen():
    assert supervised(small_bert(), labelled.classes, "classify", PAIR).frozen == ()
    assert supervised(small_xlnet(), labelled.classes, "classify", PAIR).frozen[0][1] == 0.0
    assert "decoder" in supervised(small_deberta(decoder=1), labelled.classes, "classify", PAIR).frozen[0][0]


def test_an_objective_is_described_and_rebuilt_and_serves_as_its_model():
    objective = supervised(small_bert(), BeamSpans(0.3), "beams", electra_span_head(small_bert(), 0))
    assert from_json(to_json(objective)) == objective
    assert objective.objective == objective.model


def test_objectives_that_cannot_train_are_refused():
    with pytest.raises(ValueError, match="needs one head, of a task: this model has none"):
        Supervised(Published(small_bert()), labelled.classes)
    with pytest.raises(ValueError, match="renewed=3 top layers"):
        supervised(small_bert(), labelled.classes, "classify", PAIR, renewed=3)
    with pytest.raises(ValueError, match="the layers of this encoder share parameters"):
        supervised(small_albert(), labelled.classes, "classify", PAIR, renewed=1)
    with pytest.raises(ValueError, match="weight=-1"):
        BeamSpans(-1)
    with pytest.raises(ValueError, match="needs `labels`"):
        objective = supervised(small_bert(), labelled.tags, "tags", TokenHead(32, 2, Normal(), "float32"))
        batch = {"tokens": MASK, "mask": MASK}
        jax.eval_shape(lambda: objective.loss(objective.init(KEY, batch), batch, KEY, train=False))

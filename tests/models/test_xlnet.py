import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SPECIALS, random_params, small_xlnet

from bertjax.config import load_experiment
from bertjax.models.heads import SequenceSummary
from bertjax.models.language import word_table
from bertjax.models.xlnet import Memory, XLNet
from bertjax.permutation import Permutation, permute
from bertjax.plan.step import plan
from bertjax.rules import NOT_NORM_NOR_BIAS, match, name_of

KEY = jax.random.key(0)


def init(encoder):
    """Return parameters larger than at the start, so that every influence shows."""
    return random_params(encoder, noise=0.1)


@cache
def compiled(encoder, **static):
    return jax.jit(partial(encoder.apply, method="streams", **static))


def run(encoder, params, *inputs, train=False, reuse=0, **options):
    return compiled(encoder, train=train, reuse=reuse)({"params": params}, *inputs, **options)


def random_window(seed, rows, parts, *, targets=4, pieces=180):
    """Make rows of distinct ids with a functional token in the middle and at the end, and a permutation of each."""
    rng, L = np.random.default_rng(seed), sum(parts)
    tokens = np.stack([rng.permutation(pieces)[:L] + 10 for _ in range(rows)])
    tokens[:, parts[0] // 2], tokens[:, -1] = SPECIALS
    ones = jnp.ones((rows, L), jnp.int32)
    batch = {"tokens": jnp.asarray(tokens, jnp.int32), "mask": ones, "word_starts": ones}
    return batch, permute(jax.random.key(seed), batch, Permutation(functional=SPECIALS, parts=parts, targets=targets))


@pytest.mark.parametrize("seed", range(6))
def test_no_prediction_depends_on_its_target_or_on_what_comes_later(seed):
    """By gradient: a query row sees lower ranks and nothing else, a content row its own too; all see the memory."""
    encoder = small_xlnet(N=3)
    parts = [(12,), (8, 4), (6, 6)][seed % 3]
    batch, permuted = random_window(seed, 1, parts)
    tokens, params = np.asarray(batch["tokens"]), init(encoder)
    states = jax.random.normal(KEY, (encoder.N, 1, 5, encoder.D))
    sign_B = jnp.array([1 - 2 * (seed % 2)])

    @jax.jit
    @jax.jacrev
    def influence(inputs, params, batch, permuted, sign_B):
        table, states = inputs
        changed = params | {"embeddings": {"word": {"table": table}}}
        memory = Memory(states, jnp.ones((1, 5), jnp.int32))
        streams = run(
            encoder, changed, batch["tokens"], batch["mask"], ranks_BL=permuted.ranks_BL,
            targets_BP=permuted.positions_BP, sign_B=sign_B, memory=memory,
        )  # fmt: skip
        return jnp.abs(streams.content_BLD[0]).sum(-1), jnp.abs(streams.query_BPD[0]).sum(-1)

    (content, content_memory), (query, query_memory) = jax.device_get(
        influence((word_table(params), states), params, batch, permuted, sign_B)
    )
    ranks = np.asarray(permuted.ranks_BL[0])
    of_targets = ranks[np.asarray(permuted.positions_BP[0])]
    assert len(set(of_targets)) == 4
    sees = np.abs(content[:, tokens[0]]).sum(-1) > 0
    np.testing.assert_array_equal(sees, ranks[:, None] >= ranks[None, :])
    sees = np.abs(query[:, tokens[0]]).sum(-1) > 0
    np.testing.assert_array_equal(sees, of_targets[:, None] > ranks[None, :])
    for found in (content_memory, query_memory):
        assert (np.abs(found).sum((1, 2, 4)) > 0).all()


def test_windows_with_memory_equal_the_longer_row():
    """Where it is defined: all of the first window is remembered, and it could not see the second in the longer row."""
    encoder = small_xlnet(N=3)
    params, L = init(encoder), 10
    batch, _ = random_window(3, 2, (2 * L,), targets=6)
    rng = np.random.default_rng(0)
    ranks = jnp.asarray(np.stack([np.concatenate([rng.permutation(L), 100 + rng.permutation(L)]) for _ in range(2)]))
    types = jnp.asarray(np.concatenate([np.zeros((2, L)), rng.integers(0, 3, (2, L))], 1), jnp.int32)
    targets = jnp.asarray([[1, 4, 13, 17], [0, 9, 10, 19]])
    sign = jnp.array([1, -1])
    whole = run(encoder, params, batch["tokens"], batch["mask"], types, ranks_BL=ranks, targets_BP=targets, sign_B=sign)
    memory = encoder.empty_memory(2, L)
    for begin, columns in ((0, slice(0, 2)), (L, slice(2, 4))):
        part = [x[:, begin : begin + L] for x in (batch["tokens"], batch["mask"], types)]
        streams = run(
            encoder, params, *part, ranks_BL=ranks[:, begin : begin + L], targets_BP=targets[:, columns] - begin,
            sign_B=sign, memory=memory, reuse=L,
        )  # fmt: skip
        memory = streams.memory
        np.testing.assert_allclose(streams.content_BLD, whole.content_BLD[:, begin : begin + L], atol=2e-5)
        np.testing.assert_allclose(streams.query_BPD, whole.query_BPD[:, columns], atol=2e-5)


def test_memory_keeps_the_newest_reused_states():
    encoder = small_xlnet()
    params = init(encoder)
    memory = encoder.empty_memory(2, 7)
    firsts = []
    for seed in range(4):
        batch, permuted = random_window(seed, 2, (5, 3), targets=2)
        memory = run(
            encoder, params, batch["tokens"], batch["mask"], ranks_BL=permuted.ranks_BL, memory=memory, reuse=5
        ).memory
        firsts.append(word_table(params)[batch["tokens"][:, :5]])
        expected = jnp.concatenate([jnp.zeros((2, 7, encoder.D)), *firsts], axis=1)[:, -7:]
        np.testing.assert_array_equal(memory.states_NBMD[0], expected)  # the first layer's inputs
        filled = min(7, 5 * len(firsts))
        np.testing.assert_array_equal(
            memory.mask_BM, np.r_[np.full(7 - filled, -1), np.ones(filled)][None].repeat(2, 0)
        )


def test_empty_memory_is_masked():
    encoder = small_xlnet()
    params = init(encoder)
    batch, permuted = random_window(1, 2, (5, 3))
    inputs = params, batch["tokens"], batch["mask"]
    views = {"ranks_BL": permuted.ranks_BL, "targets_BP": permuted.positions_BP}
    without, with_empty = (
        run(encoder, *inputs, memory=memory, **views) for memory in (None, encoder.empty_memory(2, 4))
    )
    np.testing.assert_allclose(without.content_BLD, with_empty.content_BLD, atol=1e-6)
    used = np.asarray(permuted.weights_BP) > 0  # an unused slot may see nothing, and then means nothing
    assert used.any()
    np.testing.assert_allclose(without.query_BPD[used], with_empty.query_BPD[used], atol=1e-6)


def test_same_length_hides_what_lies_further_back_than_the_memory_is_long():
    encoder = small_xlnet(same_length=True, N=1)
    params, tokens = init(encoder), jnp.arange(10, 16)[None]

    @jax.jit
    @jax.jacrev
    def influence(table):
        changed = params | {"embeddings": {"word": {"table": table}}}
        memory = encoder.empty_memory(1, 2)
        streams = run(
            encoder, changed, tokens, jnp.ones_like(tokens), ranks_BL=jnp.arange(6)[None], memory=memory, reuse=6
        )
        return jnp.abs(streams.content_BLD[0]).sum(-1)

    seen = np.asarray(jnp.abs(influence(word_table(params))[:, tokens[0]]).sum(-1)) > 0
    back = np.arange(6)[:, None] - np.arange(6)[None]
    np.testing.assert_array_equal(seen, (back >= 0) & (back <= 2))


def test_rows_padded_on_the_left_are_read_and_summarised_as_if_alone():
    encoder, n, L = small_xlnet(), 6, 10
    params = init(encoder)
    tokens = jnp.arange(20, 20 + n)[None]
    padded = jnp.concatenate([jnp.zeros((1, L - n), jnp.int32), tokens], axis=1)
    mask = (padded > 0).astype(jnp.int32)
    alone = run(encoder, params, tokens, jnp.ones_like(tokens)).content_BLD
    within = run(encoder, params, padded, mask).content_BLD
    np.testing.assert_allclose(alone, within[:, L - n :], atol=1e-5)
    summary = SequenceSummary(encoder.D, 0.1, encoder.initializer, "float32")
    head = summary.init(KEY, alone)["params"]
    found = summary.apply({"params": head}, within)
    np.testing.assert_allclose(found, summary.apply({"params": head}, alone), atol=1e-6)
    kernel, bias = head["summary"]["kernel"], head["summary"]["bias"]
    np.testing.assert_allclose(found[0], np.tanh(alone[0, -1] @ kernel + bias), atol=1e-5)
    dropped = summary.apply({"params": head}, within, train=True, rngs={"dropout": KEY})
    assert (dropped == 0).any()


def test_without_segments_the_segment_term_is_that_of_one_segment():
    encoder = small_xlnet()
    params, tokens = init(encoder), jnp.arange(20, 30)[None]
    ones = jnp.ones_like(tokens)

    def apply(*types):
        return run(encoder, params, tokens, ones, *types).content_BLD

    np.testing.assert_allclose(apply(), apply(ones), atol=1e-5)
    assert jnp.abs(apply(ones) - apply(jnp.arange(10)[None] // 5)).max() > 1e-3


def test_a_reversed_row_gives_mirrored_attention():
    encoder = small_xlnet()
    batch, permuted = random_window(0, 2, (12,))
    params = init(encoder)
    forward = run(
        encoder, params, batch["tokens"], batch["mask"], ranks_BL=permuted.ranks_BL, targets_BP=permuted.positions_BP
    )
    mirrored = run(
        encoder, params, batch["tokens"][:, ::-1], batch["mask"], ranks_BL=permuted.ranks_BL[:, ::-1],
        targets_BP=11 - permuted.positions_BP, sign_B=jnp.array([-1, -1]),
    )  # fmt: skip
    np.testing.assert_allclose(forward.content_BLD, mirrored.content_BLD[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(forward.query_BPD, mirrored.query_BPD, atol=1e-5)


def test_both_streams_have_dropout_with_separate_keys():
    encoder = small_xlnet(dropout=0.5)
    batch, permuted = random_window(0, 2, (12,))
    views = {"ranks_BL": permuted.ranks_BL, "targets_BP": permuted.positions_BP}
    params = init(encoder)
    a, b = (
        run(encoder, params, batch["tokens"], batch["mask"], train=True, rngs={"dropout": jax.random.key(i)}, **views)
        for i in range(2)
    )
    for x, y in ((a.content_BLD, b.content_BLD), (a.query_BPD, b.query_BPD)):
        assert abs((x == 0).mean() - 0.5) < 0.1 and not ((x == 0) == (y == 0)).all()


def test_tied_biases_are_one_set_for_all_layers():
    names = {
        untied: {name_of(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(init(small_xlnet(untied=untied)))}
        for untied in (True, False)
    }
    for kind in ("content", "position", "segment"):
        assert names[True][f"layers/attention/{kind}_bias"] == (2, 2, 16)
        assert names[False][f"{kind}_bias"] == (2, 16)
    assert len(names[True]) == len(names[False])


@pytest.mark.parametrize(("size", "encoder"), [("base", 116_718_336), ("large", 360_268_800)])
def test_parameters_are_as_many_as_published(size, encoder):
    groups = plan(load_experiment("experiments/xlnet.py", [f"size={size}"]))["params_by_group"]
    assert sum(count for name, count in groups.items() if name.startswith("encoder/")) == encoder
    assert groups["head/plm"] == 32_000


def test_the_biases_of_attention_are_decayed_as_published():
    rules = match(NOT_NORM_NOR_BIAS, init(small_xlnet()))
    kept = {name_of(path) for path, decayed in jax.tree_util.tree_leaves_with_path(rules) if not decayed}
    assert {name.rsplit("/", 1)[1] for name in kept} == {"scale", "bias"}


@pytest.mark.slow
def test_remat_changes_no_gradient():
    batch, permuted = random_window(2, 2, (8, 4))

    def gradient(encoder):
        def loss(params):
            streams = run(
                encoder, params, batch["tokens"], batch["mask"], ranks_BL=permuted.ranks_BL,
                targets_BP=permuted.positions_BP, memory=encoder.empty_memory(2, 3), reuse=8, train=True,
                rngs={"dropout": KEY},
            )  # fmt: skip
            return jnp.square(streams.query_BPD).sum() + streams.content_BLD[:, 3].sum()

        return jax.device_get(jax.jit(jax.grad(loss))(init(encoder)))

    plain, *changed = (jax.tree.leaves(gradient(small_xlnet(remat=remat))) for remat in ("none", "dots", "full"))
    for leaves in changed:
        for a, b in zip(plain, leaves, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(a).max()) + 1e-6)


def test_in_bfloat16_the_gradient_of_the_mask_embedding_is_summed_over_targets_in_float32():
    """Of 1,024 targets: 0.002 from float32, where it was 0.035 when summed in bfloat16."""
    tokens = np.random.default_rng(0).integers(5, 60, (2, 512), np.int32)
    ranks = np.tile(np.arange(512, dtype=np.int32), (2, 1))
    inputs = {"mask_BL": np.ones_like(tokens), "ranks_BL": ranks, "targets_BP": ranks, "method": "streams"}
    weight_D = jnp.arange(32) / 32

    @partial(jax.jit, static_argnums=0)
    def gradient(encoder, params):
        def score(params):
            return (encoder.apply(params, tokens, **inputs).query_BPD.astype(jnp.float32) @ weight_D).sum()

        return jax.grad(score)(params)["params"]["mask_embedding"]

    encoder = small_xlnet(D=32, N=1, dropout=0.0)
    params = jax.jit(partial(encoder.init, **inputs))(jax.random.key(0), tokens)
    exact, found = gradient(encoder, params), gradient(dataclasses.replace(encoder, dtype="bfloat16"), params)
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.01


def test_bfloat16_stays_near_float32():
    batch, permuted = random_window(2, 2, (8, 4))
    views = {"ranks_BL": permuted.ranks_BL, "targets_BP": permuted.positions_BP}
    params = random_params(small_xlnet())
    found = [
        run(small_xlnet(dtype=dtype), params, batch["tokens"], batch["mask"], **views).query_BPD
        for dtype in ("float32", "bfloat16")
    ]
    assert found[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0], found[1].astype(jnp.float32), atol=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"H": 5}, "H=5 heads"),
        ({"D": 33, "H": 1}, "even"),
        ({"clamp": 0}, "clamp=0"),
        ({"N": 0}, "N=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"remat": "some"}, "remat='some'"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        XLNet(**({"V": 10, "D": 32, "N": 1, "H": 2, "F": 8} | fields))


def test_a_query_stream_without_an_order_is_refused():
    tokens = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="needs ranks"):
        run(small_xlnet(), init(small_xlnet()), tokens, tokens, targets_BP=tokens[:, :1])

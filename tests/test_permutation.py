import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SPECIALS, V

from bertjax import permutation
from bertjax.permutation import Permutation, permute

KEY = jax.random.key(0)
draw = jax.jit(permute, static_argnums=2)
LAW = np.array([1 / n for n in range(1, 6)]) / (137 / 60)  # of the lengths of runs

XLNET = Permutation(functional=SPECIALS)
SMALL = Permutation(functional=SPECIALS, parts=(24, 40), targets=12)
SPECS = [
    XLNET,
    Permutation(functional=SPECIALS, parts=(32, 32), targets=10),
    Permutation(functional=SPECIALS, parts=(32, 32), targets=13, block=8),
    Permutation(functional=SPECIALS, parts=(8, 8), targets=5, block=4),
    SMALL,
    Permutation(functional=SPECIALS, parts=(40, 24), targets=30, block=8),
    Permutation(functional=SPECIALS, parts=(48,), targets=20),
    Permutation(functional=SPECIALS, parts=(8, 40, 16), targets=20),
]


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.parts} by {spec.block}")
def spec(request):
    return request.param


def windows(spec, rows=20, functional=0.1, wordiness=0.6):
    """Make full windows, a share of their tokens functional, with words of random lengths."""
    rng = np.random.default_rng(0)
    shape = rows, spec.window
    tokens = np.where(rng.random(shape) < functional, rng.choice(SPECIALS, shape), rng.integers(10, V, shape))
    batch = {"tokens": tokens, "mask": np.ones(shape), "word_starts": rng.random(shape) < wordiness}
    batch["backward"] = np.zeros(rows)
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    return batch | {"example": jnp.asarray(rng.permutation(10 * rows)[:rows], jnp.uint32)}


def targets(permuted):
    """Return which tokens are targets: bool [B, L]."""
    found = np.zeros(permuted.ranks_BL.shape, bool)
    b, p = np.nonzero(permuted.weights_BP)
    found[b, np.asarray(permuted.positions_BP)[b, p]] = True
    return found


def functional(batch):
    return np.isin(batch["tokens"], SPECIALS)


def slices(spec):
    ends = np.cumsum(spec.parts).tolist()
    return [slice(end - length, end) for end, length in zip(ends, spec.parts, strict=True)]


def mirrored(array, spec):
    """Turn around each part of rows."""
    return np.concatenate([np.asarray(array)[:, here][:, ::-1] for here in slices(spec)], 1)


def order(ranks_BL, spec):
    """Return what the ranks of tokens that all are functional say: the index of each within its part."""
    return np.concatenate([ranks_BL[:, here] - 2 * here.start for here in slices(spec)], 1)


def orders(spec, rows=20):
    """Draw the index of every token: int [B, L]."""
    return order(np.asarray(draw(KEY, windows(spec, rows, functional=1), spec).ranks_BL), spec)


# Who sees whom.


def published(index_L, target_L, functional_L, spec):
    """_local_perm for each part, then the blocks between parts: perm_mask [L, L], true where i may not see j."""
    perm_mask = np.zeros((len(index_L), len(index_L)), bool)
    for here in slices(spec):
        target, plain = target_L[here], ~target_L[here] & ~functional_L[here]
        rev = np.where(plain, -1, index_L[here])
        itself = np.where(target, rev, rev + 1)
        perm_mask[here, here] = (itself[:, None] <= rev[None]) & ~plain[None]
        perm_mask[here, here.stop :] = True
    return perm_mask


def test_ranks_compare_as_the_published_mask_of_both_streams(spec):
    batch = windows(spec)
    permuted = draw(KEY, batch, spec)
    ranks_BL = np.asarray(permuted.ranks_BL)
    seen = set()
    for b, (ranks, target, special) in enumerate(zip(ranks_BL, targets(permuted), functional(batch), strict=True)):
        perm_mask = published(order(ranks_BL, spec)[b], target, special, spec)
        content = ~perm_mask | np.eye(spec.window, dtype=bool)
        np.testing.assert_array_equal(ranks[:, None] >= ranks[None], content)
        np.testing.assert_array_equal(ranks[target][:, None] > ranks[None], ~perm_mask[target])
        seen |= set(zip(target.tolist(), special.tolist(), strict=True))
    assert seen == {(False, False), (True, False), (False, True)}


def test_parts_attend_to_earlier_parts_and_plain_tokens_are_visible_within_their_own(spec):
    batch = windows(spec)
    permuted = draw(KEY, batch, spec)
    ranks_BL = np.asarray(permuted.ranks_BL)
    plain_BL = ~targets(permuted) & ~functional(batch)
    for here in slices(spec):
        assert (ranks_BL[:, here, None] > ranks_BL[:, None, : here.start]).all()
        assert (ranks_BL[:, here, None] < ranks_BL[:, None, here.stop :]).all()
        visible_BQK = ranks_BL[:, here, None] >= ranks_BL[:, None, here]
        assert visible_BQK.swapaxes(1, 2)[plain_BL[:, here]].all()
        np.testing.assert_array_equal(
            visible_BQK[plain_BL[:, here]], np.repeat(plain_BL[:, here], plain_BL[:, here].sum(1), 0)
        )


def test_an_index_is_a_permutation_of_blocks_in_order_that_share_their_offsets(spec):
    index_BL = orders(spec)
    per_part = [index_BL[:, here] for here in slices(spec)]
    for index, length in zip(per_part, spec.parts, strict=True):
        np.testing.assert_array_equal(np.sort(index), np.broadcast_to(np.arange(length), index.shape))
        block = spec.block or length
        np.testing.assert_array_equal(index // block, np.broadcast_to(np.arange(length) // block, index.shape))
        np.testing.assert_array_equal(index % block, np.tile(index[:, :block], length // block))
    for one, other in itertools.pairwise(per_part):
        n = spec.block or min(one.shape[1], other.shape[1])
        assert (one[:, :n] != other[:, :n]).any(1).mean() > 0.8, "parts draw orders of their own"
    assert len(np.unique(index_BL, axis=0)) > 10


def test_every_order_is_equally_likely_and_parts_are_independent():
    spec = Permutation(functional=SPECIALS, parts=(4, 3), targets=2)
    rows = 14400
    index = orders(spec, rows)
    _, counts = np.unique(index, axis=0, return_counts=True)
    assert len(counts) == math.factorial(4) * math.factorial(3)
    assert np.abs(counts - rows / 144).max() < 4.5 * np.sqrt(rows / 144)
    chi2 = ((counts - rows / 144) ** 2).sum() / (rows / 144)
    assert abs(chi2 - 143) < 4.5 * np.sqrt(2 * 143)


def test_every_place_in_a_part_gets_every_index_alike():
    spec, rows = Permutation(functional=SPECIALS, parts=(16, 16), targets=4), 6400
    index = orders(spec, rows)
    counts = np.stack([(index == value).sum(0) for value in range(16)])
    assert np.abs(counts - rows / 16).max() < 4.5 * np.sqrt(rows * 15 / 256)


def test_the_order_says_nothing_about_the_targets_whatever_the_example():
    """Without words all targets are fill: from shared bits they would come first in the order."""
    spec = Permutation(functional=(), parts=(32, 32), targets=20)
    batch = windows(spec, 8, wordiness=0) | {"example": jnp.arange(8, dtype=jnp.uint32)}
    drawn = [draw(jax.random.key(seed), batch, spec) for seed in range(100)]
    index = np.stack([order(np.asarray(permuted.ranks_BL), spec) for permuted in drawn])
    target = np.stack([targets(permuted) for permuted in drawn])
    for here in slices(spec):
        means = (index * target)[:, :, here].sum((0, 2)) / target[:, :, here].sum((0, 2))
        # 10 of 32 drawn without replacement, 100 times: mean 15.5, variance (32² - 1)/12 · 22/31 / 1000.
        assert np.abs(means - 15.5).max() < 4.5 * np.sqrt(1023 / 12 * 22 / 31 / 1000)


# The targets.


def sequential(run_bits, fill_bits, real, starts, goal, spec):
    """_sample_mask, one run after the other, each from its row of bits; then the fill."""

    def uniform(bits):
        return np.float32(int(bits) >> 8) * np.float32(2**-24)

    length, chosen, count, at = len(real), np.zeros(len(real), bool), 0, 0
    upto = np.cumsum(LAW[: spec.longest] / LAW[: spec.longest].sum()).astype(np.float32)
    wanted = math.ceil(goal * real.sum() / length)
    for bits in run_bits:
        if at >= length or count >= wanted:
            break
        n = 1
        while n < spec.longest and uniform(bits[0]) >= upto[n - 1]:
            n += 1
        n = min(n, wanted - count)
        left = math.floor(uniform(bits[1]) * np.float32(spec.context * n))
        right = spec.context * n - left
        begin = at + left
        while begin < length and not starts[begin]:
            begin += 1
        end = begin + n
        if begin >= length or end >= length:
            break
        chosen[begin:end] = real[begin:end]
        count, at = count + n, end + right
    else:
        assert at >= length or count >= wanted, "the search ran out of bits"
    for position in np.argsort(fill_bits >> 1, kind="stable"):
        if chosen.sum() < wanted and real[position]:
            chosen[position] = True
    return chosen


@pytest.mark.parametrize(
    ("length", "goal", "fields"),
    [
        (256, 43, {}),
        (256, 200, {}),
        (64, 11, {}),
        (37, 5, {"longest": 3, "context": 2}),
        (50, 20, {"longest": 1, "context": 1}),
        (8, 3, {}),
        (2, 1, {}),
    ],
)
def test_the_runs_equal_the_sequential_loop_on_the_same_bits(length, goal, fields):
    spec = Permutation(functional=SPECIALS, parts=(length,), targets=goal, **fields)
    most = -(-length // (1 + spec.context))
    rng, rows = np.random.default_rng(length), 60
    lengths = rng.integers(0, length + 1, (rows, 1))
    lengths[: rows // 2] = length
    real = np.arange(length) < lengths
    real[::2] = real[::2, ::-1]  # padding on either side
    starts = (rng.random((rows, length)) < rng.choice([0.1, 0.6, 1], (rows, 1))) & real
    keys = jax.random.split(jax.random.key(length), rows)
    found = jax.jit(jax.vmap(lambda *arguments: permutation._runs(*arguments, goal, spec)))(keys, real, starts)
    halves = jax.vmap(jax.random.split)(keys)
    run_bits = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (most, 2)))(halves[:, 0]))
    fill_bits = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (length,)))(halves[:, 1]))
    for b in range(rows):
        expected = sequential(run_bits[b], fill_bits[b], real[b], starts[b], goal, spec)
        np.testing.assert_array_equal(found[b], expected)


def runs(target):
    """Return [begin, end) of the runs of one row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], target, [0]])))
    return edges[::2], edges[1::2]


LONG = Permutation(functional=(), parts=(1200,), targets=60)  # so long that no row needs the fill


def test_runs_have_the_published_law_of_lengths():
    drawn = targets(draw(KEY, windows(LONG, 400, functional=0), LONG))
    lengths = []
    for target in drawn:
        begins, ends = runs(target)
        lengths.extend((ends - begins)[:12])  # after 11 runs of 5 there is still room for one more
    n = len(lengths)
    share = np.bincount(lengths, minlength=6)[1:] / n
    assert np.abs(share - LAW).max() < 4.5 * np.sqrt(LAW[0] * (1 - LAW[0]) / n)
    variance = (LAW * np.arange(1, 6) ** 2).sum() - (300 / 137) ** 2
    assert abs(np.mean(lengths) - 5 / (137 / 60)) < 4.5 * np.sqrt(variance / n)


def test_runs_begin_where_words_do():
    batch = windows(LONG, 400, functional=0, wordiness=0.3)
    drawn, starts = targets(draw(KEY, batch, LONG)), np.asarray(batch["word_starts"])
    for target, start in zip(drawn, starts, strict=True):
        assert start[runs(target)[0]].all()


def test_runs_lie_at_uniform_places_in_six_times_as_much_context():
    drawn = targets(draw(KEY, windows(LONG, 400, functional=0, wordiness=1), LONG))
    places = {n: [] for n in range(1, 6)}
    for target in drawn:
        at = 0
        for begin, end in zip(*runs(target), strict=True):
            n = int(end - begin)
            left = int(begin - at)
            assert 0 <= left < 6 * n
            places[n].append(left)
            at = end + 6 * n - left
    for n, found in places.items():
        counts = np.bincount(found, minlength=6 * n)
        expected = len(found) / (6 * n)
        assert expected > 20 and np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_fill_is_uniform_over_what_is_left():
    spec, rows = Permutation(functional=(), parts=(20,), targets=7), 6000
    counts = targets(draw(KEY, windows(spec, rows, wordiness=0), spec)).sum(0)
    assert np.abs(counts - rows * 7 / 20).max() < 4.5 * np.sqrt(rows * 7 * 13 / 400)


def test_xlnet_predicts_43_and_42_of_512():
    permuted = draw(KEY, windows(XLNET, functional=0), XLNET)
    target = targets(permuted)
    assert permuted.positions_BP.shape == (20, 85) and (permuted.weights_BP == 1).all()
    assert (target[:, :256].sum(1) == 43).all() and (target[:, 256:].sum(1) == 42).all()


def test_counts_are_the_goals_less_the_functional_tokens_that_were_hit(spec):
    batch = windows(spec, functional=0.2)
    without = targets(draw(KEY, batch | {"tokens": jnp.full_like(batch["tokens"], 50)}, spec))
    for here, goal in zip(slices(spec), spec.goals, strict=True):
        assert (without[:, here].sum(1) == goal).all()
    assert sum(spec.goals) == spec.targets and np.ptp(spec.goals) <= 1
    assert (without & functional(batch)).any()
    permuted = draw(KEY, batch, spec)
    ranks = np.asarray(permuted.ranks_BL)
    sees = (ranks[:, None, :] < ranks[:, :, None]).any(-1)  # else it would see all alike, itself included
    np.testing.assert_array_equal(targets(permuted), without & ~functional(batch) & sees)


def test_slots_list_the_targets_in_order_with_their_own_ids_and_weights(spec):
    batch = windows(spec, functional=0.3)
    permuted = draw(KEY, batch, spec)
    used_B = np.asarray(permuted.weights_BP).sum(1).astype(int)
    assert used_B.min() < spec.targets
    for used, positions, weights in zip(used_B, np.asarray(permuted.positions_BP), permuted.weights_BP, strict=True):
        assert (np.diff(positions[:used]) > 0).all() and not positions[used:].any()
        np.testing.assert_array_equal(weights, np.arange(spec.targets) < used)
    originals = np.take_along_axis(np.asarray(batch["tokens"]), np.asarray(permuted.positions_BP), 1)
    np.testing.assert_array_equal(permuted.targets_BP, originals)


def test_rows_that_hold_their_text_backwards_choose_the_mirror_image(spec):
    batch = windows(spec)
    forward = draw(KEY, batch, spec)
    row_is_backward = np.arange(20) % 2
    names = ("tokens", "mask", "word_starts")
    turned = {n: np.where(row_is_backward[:, None], mirrored(batch[n], spec), batch[n]) for n in names}
    turned = {name: jnp.asarray(array) for name, array in turned.items()}
    turned |= {"example": batch["example"], "backward": jnp.asarray(row_is_backward, jnp.int32)}
    expected = np.where(row_is_backward[:, None], mirrored(targets(forward), spec), targets(forward))
    found = targets(draw(KEY, turned, spec))
    np.testing.assert_array_equal(found, expected)
    read_forward = targets(draw(KEY, turned | {"backward": batch["backward"]}, spec))
    assert (found != read_forward).any()


def test_padding_is_never_a_target_and_short_rows_get_their_share():
    spec, lengths = SMALL, np.arange(65)
    batch = windows(spec, 65, functional=0)
    for mask in (np.arange(64) < lengths[:, None], np.arange(63, -1, -1) < lengths[:, None]):
        batch["mask"] = jnp.asarray(mask, jnp.int32)
        for seed in range(5):
            permuted = draw(jax.random.key(seed), batch, spec)
            target = targets(permuted)
            assert not (target & ~mask).any()
            for here, length, goal in zip(slices(spec), spec.parts, spec.goals, strict=True):
                share = [math.ceil(goal * int(real) / length) for real in mask[:, here].sum(1)]
                alone = mask[:, : here.stop].sum(1) == 1  # a token that sees no other is no target
                np.testing.assert_array_equal(target[:, here].sum(1), np.where(alone, 0, share))


# What the draws follow.


def test_draws_follow_the_key_and_the_example_not_the_place_in_the_batch():
    batch = windows(SMALL)
    shuffle = np.random.default_rng(1).permutation(20)
    moved = draw(KEY, {name: array[shuffle] for name, array in batch.items()}, SMALL)
    for a, b in zip(draw(KEY, batch, SMALL), moved, strict=True):
        np.testing.assert_array_equal(a[shuffle], b)
    once = draw(KEY, batch, SMALL)
    for other in (draw(jax.random.key(1), batch, SMALL), draw(KEY, batch | {"example": batch["example"] + 1}, SMALL)):
        assert (targets(other) != targets(once)).any(1).all()
    everything = windows(SMALL, functional=1)
    assert (draw(KEY, everything, SMALL).ranks_BL != draw(jax.random.key(1), everything, SMALL).ranks_BL).any(1).all()


def test_a_seed_fixes_the_targets_of_an_example_but_not_their_order():
    spec, batch = dataclasses.replace(SMALL, seed=5), windows(SMALL)
    once, again = draw(KEY, batch, spec), draw(jax.random.key(9), batch, spec)
    np.testing.assert_array_equal(once.positions_BP, again.positions_BP)
    assert (once.ranks_BL != again.ranks_BL).any(1).all()
    other = draw(KEY, batch, dataclasses.replace(spec, seed=6))
    assert (targets(other) != targets(once)).any(1).all()
    renamed = draw(KEY, batch | {"example": batch["example"] + 1}, spec)
    assert (targets(renamed) != targets(once)).any(1).all()


def test_rows_have_independent_draws():
    batch = windows(SMALL, 1)
    same = {name: jnp.repeat(array, 20, 0) for name, array in batch.items() if name not in ("example", "backward")}
    permuted = draw(KEY, same, SMALL)
    assert len(np.unique(targets(permuted), axis=0)) == 20


# What is refused.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": ()}, r"parts=\(\).*must be 1 or more"),
        ({"parts": (256, 0)}, r"parts=\(256, 0\).*must be 1 or more"),
        ({"longest": 0}, "longest=0.*must be 1 or more"),
        ({"context": 0}, "context=0 must be 1 or more"),
        ({"targets": 0}, "targets=0 are 0 in a part of 256 tokens: use 1 to 255 a part"),
        ({"targets": 1}, "targets=1 are 0 in a part of 256 tokens"),
        ({"targets": 511}, "targets=511 are 256 in a part of 256 tokens"),
        ({"parts": (500, 12)}, "targets=85 are 42 in a part of 12 tokens: use 1 to 11 a part"),
        ({"block": 0}, "block=0 does not divide a part of 256 tokens"),
        ({"block": 100}, "block=100 does not divide a part of 256 tokens"),
        ({"parts": (256, 128), "block": 256}, "block=256 does not divide a part of 128 tokens"),
    ],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(XLNET, **fields)


def test_a_part_may_hold_one_plain_token_and_no_less():
    assert dataclasses.replace(XLNET, targets=510).goals == (255, 255)


def test_rows_that_are_no_windows_or_have_no_words_are_refused():
    batch = windows(SMALL, 2)
    with pytest.raises(ValueError, match=r"rows of 64 tokens are no windows of parts \(256, 256\)"):
        permute(KEY, batch, XLNET)
    del batch["word_starts"]
    with pytest.raises(ValueError, match="word_starts"):
        permute(KEY, batch, SMALL)

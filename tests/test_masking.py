import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MASKING, SPECIALS, B, L, V, make_batch

from bertjax import masking
from bertjax.masking import (
    Masking,
    mask_tokens,
    mask_with_replacement,
    ngrams,
    put,
    rounded,
    spans,
    stochastically_rounded,
    tokens,
    words,
)

KEY = jax.random.key(0)
draw = jax.jit(mask_tokens, static_argnums=2)
draw_again = jax.jit(mask_with_replacement, static_argnums=2)
UNITS = {"tokens": tokens, "words": words, "ngrams": ngrams(3), "spans": spans(0.2, 10)}
ELECTRA = dataclasses.replace(MASKING, masked=0.85, random=0.0)


def full_batch(rows, length, seed=0):
    """Make rows without padding: [CLS] … [SEP], words of 1 to 3 pieces."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, V, (rows, length))
    ids[:, 0], ids[:, -1] = SPECIALS
    starts = rng.random((rows, length)) < 0.6
    starts[:, :2] = starts[:, -1] = True
    batch = {"tokens": ids, "mask": np.ones_like(ids), "word_starts": starts.astype(int)}
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


def chosen(masked, length):
    """Return which positions were chosen: bool [B, L]."""
    rows, used = np.arange(len(masked.positions_BP))[:, None], np.asarray(masked.weights_BP) > 0
    found = np.zeros((len(rows), length + 1), bool)
    found[rows, np.where(used, masked.positions_BP, length)] = True
    return found[:, :-1]


def times_chosen(masked, length):
    """Return how often every position was chosen: int [B, L]."""
    rows, used = np.arange(len(masked.positions_BP))[:, None], np.asarray(masked.weights_BP) > 0
    counts = np.zeros((len(rows), length + 1), int)
    np.add.at(counts, (rows, np.where(used, masked.positions_BP, length)), 1)
    return counts[:, :-1]


@pytest.fixture(params=UNITS)
def spec(request):
    return dataclasses.replace(MASKING, unit=UNITS[request.param])


def test_slots_list_the_chosen_positions_in_order_with_their_original_ids(spec):
    batch = make_batch()
    masked = draw(KEY, batch, spec)
    for b in range(B):
        used = int(masked.weights_BP[b].sum())
        positions = np.asarray(masked.positions_BP[b])
        assert (np.diff(positions[:used]) > 0).all() and not positions[used:].any()
        np.testing.assert_array_equal(masked.weights_BP[b], np.arange(spec.slots(L)) < used)
    originals = np.take_along_axis(np.asarray(batch["tokens"]), np.asarray(masked.positions_BP), 1)
    np.testing.assert_array_equal(masked.targets_BP, originals)


def test_only_chosen_positions_change_and_never_specials_or_padding(spec):
    batch = make_batch()
    seen = np.zeros((B, L), bool)
    for seed in range(40):
        masked = draw(jax.random.key(seed), batch, spec)
        where = chosen(masked, L)
        assert (np.asarray(masked.tokens_BL == batch["tokens"]) | where).all()
        seen |= where
    allowed = (np.asarray(batch["mask"]) > 0) & ~np.isin(batch["tokens"], SPECIALS)
    assert not (seen & ~allowed).any()
    assert seen[allowed].mean() > 0.9


@pytest.mark.parametrize(("length", "count"), [(128, 19), (512, 77)])
def test_full_rows_get_the_published_number_of_predictions(length, count):
    batch = full_batch(4, length)
    np.testing.assert_array_equal(draw(KEY, batch, MASKING).weights_BP.sum(1), count)
    capped = dataclasses.replace(MASKING, max_predictions=count - 3)
    masked = draw(KEY, batch, capped)
    assert masked.positions_BP.shape == (4, count - 3)
    np.testing.assert_array_equal(masked.weights_BP.sum(1), count - 3)


def test_counts_follow_the_length_of_each_row_as_python_rounds():
    length = 64
    batch = full_batch(length, length)
    lengths = np.arange(1, length + 1)
    batch["mask"] = jnp.asarray(np.arange(length) < lengths[:, None], jnp.int32)
    found = draw(KEY, batch, dataclasses.replace(MASKING, specials=())).weights_BP.sum(1)
    np.testing.assert_array_equal(found, [max(1, round(0.15 * n)) for n in lengths.tolist()])


def test_stochastic_rounding_gives_roberta_76_or_77_of_512_and_the_mean_between():
    spec = dataclasses.replace(MASKING, specials=(), count=stochastically_rounded, random_ids=(4, V))
    counts = np.asarray(draw(KEY, full_batch(2000, 512), spec).weights_BP.sum(1))
    assert set(counts) == {76, 77}
    assert abs(counts.mean() - 76.8) < 4 * 0.4 / np.sqrt(2000)


def test_roberta_chooses_specials_too():
    spec = dataclasses.replace(MASKING, specials=())
    where = chosen(draw(KEY, full_batch(2000, 32), spec), 32)
    np.testing.assert_allclose(where[:, [0, -1]].mean(0), 5 / 32, atol=0.035)


def test_every_candidate_is_equally_likely():
    batch = full_batch(1, 48)
    batch = {name: jnp.repeat(array, 6000, 0) for name, array in batch.items()}
    rate = chosen(draw(KEY, batch, MASKING), 48).mean(0)
    expected = 7 / 46  # round(0.15 · 48) of all but two specials
    assert np.abs(rate[1:-1] - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / 6000)
    assert rate[0] == rate[-1] == 0


@pytest.mark.parametrize("shares", [(0.8, 0.1), (1.0, 0.0), (0.5, 0.5)])
def test_chosen_tokens_are_replaced_in_the_asked_shares(shares):
    spec = dataclasses.replace(MASKING, masked=shares[0], random=shares[1], random_ids=(5, 9))
    batch = full_batch(3000, 64)
    batch["tokens"] = jnp.where(batch["tokens"] > 2, 50, batch["tokens"])
    masked = draw(KEY, batch, spec)
    after = np.asarray(masked.tokens_BL)[chosen(masked, 64)]
    n, kept = len(after), 1 - sum(shares)
    for found, share in (((after == 3), shares[0]), (np.isin(after, [5, 6, 7, 8]), shares[1]), ((after == 50), kept)):
        assert abs(found.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / n) + 1e-9
    ids, counts = np.unique(after[np.isin(after, [5, 6, 7, 8])], return_counts=True)
    if shares[1]:
        assert list(ids) == [5, 6, 7, 8] and np.ptp(counts) < 6 * np.sqrt(counts.mean())


def test_random_replacements_cover_the_whole_range_as_bert_does():
    spec = dataclasses.replace(MASKING, masked=0.0, random=1.0)
    masked = draw(KEY, full_batch(2000, 64), spec)
    assert set(np.asarray(masked.tokens_BL)[chosen(masked, 64)]) == set(range(V))


def test_words_are_chosen_whole_or_not_at_all():
    batch = full_batch(200, 64)
    where = chosen(draw(KEY, batch, dataclasses.replace(MASKING, unit=words)), 64)
    starts = np.asarray(batch["word_starts"])
    word = np.cumsum(starts, 1)
    for b in range(200):
        for w in np.unique(word[b, 1:-1]):
            assert len(set(where[b, word[b] == w])) == 1


def greedy(bits, starts, candidates, n):
    """BERT's loop, one word after the other in the order of their random bits."""
    units, taken = [], np.zeros(len(bits), bool)
    for position in np.flatnonzero(candidates):
        if starts[position]:
            units.append([])
        units[-1].append(position)
    for unit in sorted(units, key=lambda unit: bits[unit[0]] >> 1):
        if taken.sum() + len(unit) <= n:
            taken[unit] = True
    return taken


@pytest.mark.parametrize("length", [5, 37, 128])
@pytest.mark.parametrize("wordiness", [0.3, 0.7, 1.0])
def test_choosing_in_rounds_equals_the_sequential_loop(length, wordiness):
    rng = np.random.default_rng(length)
    choose = jax.jit(masking._choose)
    for _ in range(60):
        candidates = rng.random(length) < 0.8
        after_gap = np.concatenate([[True], ~candidates[:-1]])
        starts = (rng.random(length) < wordiness) | ~candidates | after_gap
        bits = rng.integers(0, 2**32, length, dtype=np.uint32)
        bits[:3] = bits[0]  # words whose random numbers collide
        n = int(rng.integers(0, length // 3 + 2))
        np.testing.assert_array_equal(choose(bits, starts, candidates, n), greedy(bits, starts, candidates, n))


@pytest.mark.parametrize(("unit", "mean"), [(ngrams(3), 18 / 11), (spans(0.2, 10), 3.797)])
def test_groups_have_the_published_sizes(unit, mean):
    """ALBERT: mean 18/11 words; SpanBERT: 3.8."""
    bits = jax.random.bits(KEY, (50, 4000))
    starts = np.asarray(jax.vmap(unit, (0, None))(bits, jnp.ones(4000, bool)))
    sizes = np.concatenate([np.diff(np.flatnonzero(row)) for row in starts])
    law = np.bincount(sizes, minlength=len(unit.probabilities) + 1)[1:] / len(sizes)
    np.testing.assert_allclose(law, unit.probabilities, atol=4.5 * np.sqrt(0.25 / len(sizes)))
    np.testing.assert_allclose(sizes.mean(), mean, rtol=0.02)


def test_groups_begin_at_words_and_break_at_specials_and_padding():
    batch = make_batch()
    for unit in (ngrams(3), spans(0.2, 10)):
        spec = dataclasses.replace(MASKING, unit=unit, rate=0.4)
        where = chosen(draw(KEY, batch, spec), L)
        candidates = (np.asarray(batch["mask"]) > 0) & ~np.isin(batch["tokens"], SPECIALS)
        inner = candidates[:, 1:] & candidates[:, :-1] & (np.asarray(batch["word_starts"])[:, 1:] == 0)
        assert (where[:, 1:] == where[:, :-1])[inner].all()


def test_spans_make_longer_runs_than_tokens():
    batch = full_batch(400, 128)
    runs = {}
    for name, unit in UNITS.items():
        where = chosen(draw(KEY, batch, dataclasses.replace(MASKING, unit=unit)), 128)
        begins = where & ~np.concatenate([np.zeros((400, 1), bool), where[:, :-1]], 1)
        runs[name] = where.sum() / begins.sum()
    assert runs["tokens"] < runs["words"] < runs["ngrams"] < runs["spans"]
    np.testing.assert_allclose(runs["tokens"], 1 / (1 - 0.15), rtol=0.02)


def test_dynamic_masks_follow_the_key_and_the_example_not_the_place_in_the_batch(spec):
    batch = make_batch()
    order = np.random.default_rng(1).permutation(B)
    shuffled = {name: array[order] for name, array in batch.items()}
    for a, b in zip(draw(KEY, batch, spec), draw(KEY, shuffled, spec), strict=True):
        np.testing.assert_array_equal(a[order], b)
    renamed = batch | {"example": batch["example"] + 1}
    assert not np.array_equal(draw(KEY, batch, spec).tokens_BL, draw(KEY, renamed, spec).tokens_BL)


def test_static_masks_follow_the_example_and_the_seed_alone():
    spec = dataclasses.replace(MASKING, seed=5)
    batch = make_batch()
    once, again = draw(KEY, batch, spec), draw(jax.random.key(9), batch, spec)
    np.testing.assert_array_equal(once.tokens_BL, again.tokens_BL)
    other = draw(KEY, batch, dataclasses.replace(spec, seed=6))
    assert not np.array_equal(once.tokens_BL, other.tokens_BL)


def test_rows_without_candidates_or_text_get_no_predictions():
    batch = full_batch(2, 16)
    batch["mask"] = batch["mask"].at[0].set(0)
    batch["tokens"] = batch["tokens"].at[1].set(SPECIALS[0])
    masked = draw(KEY, batch, MASKING)
    assert not masked.weights_BP.any()
    np.testing.assert_array_equal(masked.tokens_BL, batch["tokens"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"masked": 0.9, "random": 0.2}, "not parts of 1"),
        ({"random_ids": (7, 7)}, "not a range"),
        ({"max_predictions": 0}, "leaves nothing to predict"),
    ],
)
def test_contradictions_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MASKING, **fields)
    with pytest.raises(ValueError, match="not a distribution"):
        masking.Groups((0.5, 0.6))


def test_units_of_words_need_word_starts():
    batch = make_batch()
    del batch["word_starts"]
    with pytest.raises(ValueError, match="word_starts"):
        mask_tokens(KEY, batch, dataclasses.replace(MASKING, unit=words))


def test_host_and_device_batches_are_masked_alike(spec):
    batch = make_batch()
    on_host = {name: np.array(array) for name, array in batch.items()}
    for a, b in zip(draw(KEY, batch, spec), mask_tokens(KEY, on_host, spec), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(on_host["mask"], batch["mask"])


def test_a_recipe_is_short_to_write():
    assert Masking(mask_id=3, random_ids=(0, 10)).slots(128) == 20
    assert rounded is Masking(mask_id=3, random_ids=(0, 10)).count


def test_draws_with_replacement_fill_the_slots_and_never_touch_specials_or_padding():
    batch = make_batch()
    allowed = (np.asarray(batch["mask"]) > 0) & ~np.isin(batch["tokens"], SPECIALS)
    seen = np.zeros((B, L), bool)
    for seed in range(60):
        masked = draw_again(jax.random.key(seed), batch, ELECTRA)
        times = times_chosen(masked, L)
        assert (np.asarray(masked.tokens_BL == batch["tokens"]) | (times > 0)).all()
        seen |= times > 0
    assert not (seen & ~allowed).any()
    assert seen[allowed].mean() > 0.98
    used_B = np.asarray([max(1, round(0.15 * int(n))) for n in batch["mask"].sum(1)])
    np.testing.assert_array_equal(masked.weights_BP, np.arange(ELECTRA.slots(L)) < used_B[:, None])
    originals = np.take_along_axis(np.asarray(batch["tokens"]), np.asarray(masked.positions_BP), 1)
    np.testing.assert_array_equal(masked.targets_BP, originals)
    for positions, used in zip(np.asarray(masked.positions_BP), used_B, strict=True):
        assert (np.diff(positions[:used]) >= 0).all() and not positions[used:].any()


@pytest.mark.parametrize(
    ("length", "rate", "published", "used"), [(128, 0.15, 19, 19), (512, 0.15, 79, 77), (512, 0.25, 130, 128)]
)
def test_electras_slots_suffice_for_its_predictions_and_are_no_more(length, rate, published, used):
    assert int((rate + 0.005) * length) == published
    spec = dataclasses.replace(ELECTRA, rate=rate, max_predictions=published)
    masked = draw_again(KEY, full_batch(4, length), spec)
    assert masked.positions_BP.shape[1] <= published
    np.testing.assert_array_equal(masked.weights_BP.sum(1), used)


def test_of_electras_15_percent_duplicates_leave_14():
    rows, n, k = 1000, 510, 77  # candidates, draws
    distinct = (times_chosen(draw_again(KEY, full_batch(rows, 512), ELECTRA), 512) > 0).sum(1)
    none, neither = (1 - 1 / n) ** k, (1 - 2 / n) ** k
    variance = n * (n - 1) * neither + n * none - (n * none) ** 2
    assert abs(distinct.mean() - n * (1 - none)) < 4.5 * np.sqrt(variance / rows)
    np.testing.assert_allclose(distinct.std(), np.sqrt(variance), rtol=0.12)
    np.testing.assert_allclose(n * (1 - none) / 512, 0.14, atol=5e-4)


def test_draws_with_replacement_are_uniform_and_independent():
    batch, rows, n = full_batch(1, 20), 9000, 18
    batch = {name: jnp.repeat(array, rows, 0) for name, array in batch.items()}
    times = times_chosen(draw_again(KEY, batch, ELECTRA), 20)
    assert not times[:, [0, -1]].any()
    counts = times[:, 1:-1].sum(0)
    assert np.abs(counts - rows * 3 / n).max() < 4.5 * np.sqrt(rows * 3 / n)
    for most, share in ((1, 17 * 16 / n**2), (2, 3 * 17 / n**2), (3, 1 / n**2)):  # of three draws
        assert abs((times.max(1) == most).mean() - share) < 4.5 * np.sqrt(share * (1 - share) / rows)


def test_a_token_drawn_twice_stays_only_if_both_draws_leave_it():
    batch = full_batch(3000, 64)
    masked = draw_again(KEY, batch, ELECTRA)
    times = times_chosen(masked, 64)
    after, before = np.asarray(masked.tokens_BL), np.asarray(batch["tokens"])
    assert np.isin(after[after != before], 3).all()
    for m in (1, 2):
        kept = (after == before)[times == m].mean()
        n = (times == m).sum()
        assert n > 1000 and abs(kept - 0.15**m) < 4.5 * np.sqrt(0.15**m / n)


def test_random_ids_drawn_with_replacement_are_uniform_and_the_largest_wins():
    spec = dataclasses.replace(ELECTRA, masked=0.0, random=1.0, random_ids=(4, 8))
    masked = draw_again(KEY, full_batch(3000, 64), spec)
    times = times_chosen(masked, 64)
    for m in (1, 2):
        ids = np.asarray(masked.tokens_BL)[times == m]
        law = np.diff((np.arange(5) / 4) ** m)
        share = np.bincount(ids - 4, minlength=4) / len(ids)
        assert np.abs(share - law).max() < 4.5 * np.sqrt(0.25 / len(ids))


def test_draws_with_replacement_follow_the_key_and_the_example_or_the_seed():
    batch = make_batch()
    order = np.random.default_rng(1).permutation(B)
    once = draw_again(KEY, batch, ELECTRA)
    for a, b in zip(once, draw_again(KEY, {n: x[order] for n, x in batch.items()}, ELECTRA), strict=True):
        np.testing.assert_array_equal(a[order], b)
    assert not np.array_equal(once.tokens_BL, draw_again(jax.random.key(1), batch, ELECTRA).tokens_BL)
    static = dataclasses.replace(ELECTRA, seed=5)
    for a, b in zip(draw_again(KEY, batch, static), draw_again(jax.random.key(1), batch, static), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_without_candidates_get_no_draws_with_replacement():
    batch = full_batch(2, 16)
    batch["mask"] = batch["mask"].at[0].set(0)
    batch["tokens"] = batch["tokens"].at[1].set(SPECIALS[0])
    masked = draw_again(KEY, batch, ELECTRA)
    assert not masked.weights_BP.any() and not masked.positions_BP.any()
    np.testing.assert_array_equal(masked.tokens_BL, batch["tokens"])


@pytest.mark.parametrize("unit", [words, ngrams(3)])
def test_units_larger_than_a_token_are_not_drawn_with_replacement(unit):
    with pytest.raises(ValueError, match="cannot be drawn with replacement: use mask_tokens"):
        mask_with_replacement(KEY, make_batch(), dataclasses.replace(MASKING, unit=unit))


def test_put_equals_a_loop_in_which_the_largest_wins_and_unused_slots_write_nothing():
    rng = np.random.default_rng(0)
    put_rows = jax.jit(put)
    for _ in range(100):
        before = rng.integers(0, 100, 12)
        positions, values, used = rng.integers(0, 12, 9), rng.integers(-2, 100, 9), rng.random(9) < 0.7
        expected = before.copy()
        for slot in np.argsort(values):
            if used[slot] and values[slot] >= 0:
                expected[positions[slot]] = values[slot]
        np.testing.assert_array_equal(put_rows(before, positions, values, used), expected)

"""Intervals cover, tests agree with enumeration, and bad input is refused in words."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.evaluation import compare as c

FINITE = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
PAIRED = st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=30)


def compare(before, after, seed=0, **options):
    options = {"name": "score", "resamples": 400} | options
    return c.compare(before, after, generator=ops.generator(seed), **options)


def coverage(interval, sample, truth, *, trials=400):
    draw, generator = np.random.default_rng(0), ops.generator(0)
    intervals = [interval(sample(draw), generator=generator) for _ in range(trials)]
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


# 400 trials: the share of covering intervals has standard error 0.0109 at 95 %; the bounds below
# lie 4 of these (false alarm 6e-5) from the nominal value less what so small a sample loses.
@pytest.mark.parametrize("interval", [c.percentile_interval, c.bca_interval])
def test_bootstrap_intervals_cover_normal_differences(interval):
    found = coverage(
        lambda x, **o: interval(x, resamples=600, **o), lambda d: d.normal(0.3, 1, 60), 0.3
    )
    assert 0.95 - 0.012 - 0.044 <= found <= 0.95 + 0.044


def test_bca_covers_skewed_differences():
    found = coverage(
        lambda x, **o: c.bca_interval(x, resamples=600, **o), lambda d: d.exponential(1, 60), 1.0
    )
    assert found >= 0.95 - 0.025 - 0.044


def test_bca_covers_paired_binary_outcomes():
    def changes(draw):
        return (draw.random(100) < 0.5).astype(float) - (draw.random(100) < 0.3)

    found = coverage(lambda x, **o: c.bca_interval(x, resamples=600, **o), changes, 0.2)
    assert 0.95 - 0.012 - 0.044 <= found <= 0.95 + 0.044


def test_wilson_and_student_cover():
    draw = np.random.default_rng(1)
    # 4000 trials, standard error 0.0034; Wilson wobbles by about 0.02 around the level.
    inside = [
        low <= 0.1 <= high
        for low, high in (c.wilson_interval(int(k), 30) for k in draw.binomial(30, 0.1, 4000))
    ]
    assert 0.92 <= np.mean(inside) <= 0.99
    runs = [c.t_interval(draw.normal(2, 5, 3)) for _ in range(4000)]
    assert abs(np.mean([r.low <= 2 <= r.high for r in runs]) - 0.95) <= 4 * 0.0035


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    [(0.95, 1, 12.7062047), (0.95, 2, 4.3026527), (0.95, 4, 2.7764451), (0.95, 9, 2.2621572),
     (0.99, 5, 4.0321430), (0.9, 30, 1.6972609), (0.95, 1000, 1.9623390)],
)  # fmt: skip
def test_student_quantiles_are_those_of_the_tables(confidence, freedom, t):
    assert c.student_quantile(confidence, freedom) == pytest.approx(t, rel=1e-7)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_sign_flip_is_exact_where_it_can_be(differences):
    patterns = itertools.product((-1, 1), repeat=len(differences))
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(p, differences, strict=True))) for p in patterns]
    expected = np.mean([s >= observed for s in sums])
    assert c.sign_flip_test(differences, generator=ops.generator(0)) == pytest.approx(expected)


def test_sampled_sign_flips_come_near_the_exact_value():
    differences = [1.0, -2.0, 3.5, 0.5, 4.0, -1.0, 2.0, 2.5, -0.5, 1.5, 3.0, 0.25]
    exact = c.sign_flip_test(differences, generator=ops.generator(0))
    sampled = c.sign_flip_test(differences, generator=ops.generator(0), resamples=4000)
    error = math.sqrt(exact * (1 - exact) / 4000)  # 5 standard errors: false alarm 6e-7
    assert exact != sampled
    assert abs(exact - sampled) <= 5 * error + 1 / 4000


def test_sign_flip_keeps_its_level_when_nothing_differs():
    draw = np.random.default_rng(2)
    p_values = [
        c.sign_flip_test(draw.normal(0, 1, 9), generator=ops.generator(0)) for _ in range(2000)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_binomial(outcomes):
    before, after = zip(*outcomes, strict=True)
    changed = [a for b, a in outcomes if a != b]
    n, k = len(changed), min(sum(changed), len(changed) - sum(changed))
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert c.mcnemar(before, after) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_holds_for_many_changes():
    before = np.arange(200_000) % 2
    assert c.mcnemar(before, 1 - before) == 1.0
    assert c.mcnemar(np.zeros(5000), np.ones(5000)) == 0.0


@given(PAIRED)
def test_swapping_sides_flips_signs(rows):
    before, after = map(list, zip(*rows, strict=True))
    there, back = compare(before, after), compare(after, before)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == pytest.approx(back.p_value)
    percentile = [
        c.percentile_interval(np.subtract(*sides), resamples=400, generator=ops.generator(0))
        for sides in ((after, before), (before, after))
    ]
    assert percentile[0].low == pytest.approx(-percentile[1].high, abs=1e-9)


@given(PAIRED, st.randoms(use_true_random=False))
def test_order_of_examples_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    there = compare(*map(list, zip(*rows, strict=True)))
    again = compare(*map(list, zip(*shuffled, strict=True)))
    assert there.difference == pytest.approx(again.difference, abs=1e-9)
    if len(rows) <= 8:  # the exact test; the others draw anew
        assert there.p_value == pytest.approx(again.p_value)


@given(PAIRED, FINITE)
def test_a_constant_added_to_both_sides_changes_nothing(rows, shift):
    before, after = (np.array(side) for side in zip(*rows, strict=True))
    there, moved = compare(before, after), compare(before + shift, after + shift)
    for name in ("difference", "low", "high"):
        assert getattr(there, name) == pytest.approx(getattr(moved, name), abs=1e-6)


def test_same_generator_same_numbers_whatever_holds_them():
    before, after = [0.0, 1.0, 2.5, 3.0], [1.0, 1.5, 2.0, 4.0]
    first = compare(before, after)
    assert first == compare(torch.tensor(before, dtype=torch.bfloat16), np.array(after))
    assert first == replace(first)
    assert json.loads(json.dumps(first.to_json()))["difference"] == 0.5


def test_binary_outcomes_take_mcnemar():
    before, after = [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0]
    assert compare(before, after).p_value == c.mcnemar(before, after)


def test_chunks_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = c.bca_interval(values, generator=ops.generator(0), resamples=100)
    monkeypatch.setattr(c, "CHUNK", 100)
    assert whole == c.bca_interval(values, generator=ops.generator(0), resamples=100)


def test_one_example_has_no_interval_and_equal_ones_no_width():
    single = compare([0.2], [0.7])
    assert (single.low, single.high, single.p_value) == (None, None, 1.0)
    equal = compare([0.1] * 5, [0.3] * 5)
    assert equal.low == equal.high == equal.difference
    nothing = compare([1, 0, 1], [1, 0, 1])
    assert (nothing.difference, nothing.low, nothing.high, nothing.p_value) == (0, 0, 0, 1.0)
    assert c.t_interval([3.0]) == c.Interval(3.0, None, None, 0.95, 1)


def test_win_rate_counts_ties_half():
    rate = c.win_rate(6, 2, 2)
    assert rate.win_rate == 0.7
    assert (rate.low, rate.high) == c.wilson_interval(7, 10)
    assert c.win_rate(0, 0, 5).low == 0.0
    assert rate.win_rate == pytest.approx(1 - c.win_rate(2, 2, 6).win_rate)


def test_wilson_matches_a_published_value():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I: 81 of 263, method 3.
    assert c.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_holm_by_hand():
    assert c.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert c.holm([0.7, 0.9]) == [1.0, 1.0]
    assert c.holm([]) == []


def test_subsets_are_compared_apart_and_corrected():
    before, after = [0] * 12, [1] * 8 + [0] * 4
    names = ["a"] * 8 + ["b"] * 3 + ["c"]
    rows = c.compare_by_subset(before, after, names, generator=ops.generator(0))
    assert [(r.name, r.n, r.difference) for r in rows] == [
        ("a", 8, 1.0),
        ("b", 3, 0.0),
        ("c", 1, 0),
    ]
    assert rows[0].p_value == pytest.approx(3 * 2 / 2**8)
    assert rows[2].low is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compare([], []), "score before: needs one number for each of at least 1 example"),
        (lambda: compare([1.0, 2.0], [1.0]), "same examples; found 2 and 1"),
        (lambda: compare([1.0, math.nan], [1.0, 2.0]), "finite; found nan at place 1 and 1 such"),
        (lambda: compare([1.0, 2.0], [1.0, math.inf]), "score after: .* found inf"),
        (lambda: compare([1.0, 2.0], [1.0, 2.0], confidence=1.0), "confidence must be above 0"),
        (lambda: c.mcnemar([0.5, 1.0], [1.0, 1.0]), "outcomes must be 0 or 1"),
        (lambda: c.wilson_interval(0, 0), "at least 1 trial"),
        (lambda: c.win_rate(0, 0, 0), "at least 1 trial"),
        (lambda: c.win_rate(-1, 1, 1), "at least 0"),
        (lambda: c.holm([0.1, 1.2]), "from 0 to 1"),
        (lambda: c.t_interval(np.ones((2, 2))), r"found shape \[2, 2\]"),
        (
            lambda: c.compare_by_subset([1, 2], [1, 2], ["a"], generator=ops.generator(0)),
            "one name per example; found 1 for 2",
        ),
    ],
)
def test_degenerate_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()

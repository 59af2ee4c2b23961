import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import TypeCheckError

from melior import ops, selection

NAN, INF = math.nan, math.inf
LEVELS = st.sampled_from([NAN, -INF, INF, -1.0, 0.0, 0.25, 0.5, 1.0])
MATRICES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: hnp.arrays("float32", shape, elements=LEVELS)
)


def finite(row):
    return {i: x for i, x in enumerate(row) if math.isfinite(x)}


@given(MATRICES)
def test_best_and_worst_are_the_ends_and_the_first_of_their_kind(array):
    best, worst = selection.best_and_worst(torch.from_numpy(array))
    for row, b, w in zip(array.tolist(), best.tolist(), worst.tolist(), strict=True):
        scored = finite(row)
        if not scored:
            assert (b, w) == (-1, -1)
            continue
        assert b == min(i for i, x in scored.items() if x == max(scored.values()))
        assert w == min(i for i, x in scored.items() if x == min(scored.values()))


@given(MATRICES)
def test_spread_means_two_different_scores(array):
    found = selection.has_spread(torch.from_numpy(array)).tolist()
    assert found == [len(set(finite(row).values())) > 1 for row in array.tolist()]


@given(MATRICES, st.integers(1, 8))
def test_top_is_a_stable_sort_of_what_is_scored(array, m):
    chosen = selection.top(torch.from_numpy(array), m)
    for row, found in zip(array.tolist(), chosen.tolist(), strict=True):
        scored = finite(row)
        expected = sorted(scored, key=lambda i: (-scored[i], i))[:m]
        assert found == expected + [-1] * (m - len(expected))


@given(MATRICES)
def test_choices_move_with_the_candidates(array):
    scores = torch.from_numpy(array)
    flipped = scores.flip(-1)
    for ends, other in zip(
        selection.best_and_worst(scores), selection.best_and_worst(flipped), strict=True
    ):
        for row, mirrored, i, j in zip(scores, flipped, ends, other, strict=True):
            assert i == -1 or row[i] == mirrored[j]


@given(MATRICES, st.floats(0.5, 4), st.floats(-3, 3))
def test_choices_do_not_depend_on_scale_and_shift(array, scale, shift):
    scores = torch.from_numpy(array).double()
    moved = scores * scale + shift
    assert torch.equal(selection.has_spread(scores), selection.has_spread(moved))
    assert torch.equal(selection.top(scores, 3), selection.top(moved, 3))


def test_boltzmann_follows_the_softmax():
    scores = torch.tensor([[0.0, 1.0, NAN, 2.0]]).expand(20_000, 4)
    drawn = selection.boltzmann(scores, 1, temperature=0.7, generator=ops.generator(3))[:, 0]
    count = torch.bincount(drawn, minlength=4).double()
    expected = torch.tensor([0.0, 1.0, -INF, 2.0]).double().div(0.7).softmax(-1) * 20_000
    kept = expected > 0
    chi_square = ((count - expected)[kept] ** 2 / expected[kept]).sum()
    assert count[2] == 0
    assert chi_square < 18.4, "2 degrees of freedom: false alarm once in 10,000 seeds"


def test_boltzmann_draws_pairs_without_replacement():
    logits = torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64)
    p = logits.softmax(-1)
    drawn = selection.boltzmann(
        logits.expand(20_000, 3), 2, temperature=1.0, generator=ops.generator(4)
    )
    chi_square = 0.0
    for i in range(3):
        for j in range(3):
            count = int(((drawn[:, 0] == i) & (drawn[:, 1] == j)).sum())
            if i == j:
                assert count == 0
                continue
            expected = float(20_000 * p[i] * p[j] / (1 - p[i]))
            chi_square += (count - expected) ** 2 / expected
    assert chi_square < 25.7, "5 degrees of freedom: false alarm once in 10,000 seeds"


def test_boltzmann_at_a_low_temperature_takes_the_best():
    scores = torch.rand(50, 5, generator=ops.generator(0))
    drawn = selection.boltzmann(scores, 1, temperature=1e-6, generator=ops.generator(1))
    assert torch.equal(drawn, selection.top(scores, 1))


def test_boltzmann_bears_huge_scores_and_rows_without_any():
    scores = torch.tensor([[1e30, -1e30], [NAN, NAN]])
    drawn = selection.boltzmann(scores, 2, temperature=1.0, generator=ops.generator(1))
    assert drawn.tolist() == [[0, 1], [-1, -1]]


def test_random_other_is_even_among_those_below_the_best():
    scores = torch.tensor([[1.0, 0.0, 0.5, NAN, 1.0]]).expand(10_000, 5)
    best, other = selection.best_and_random(scores, generator=ops.generator(5))
    count = torch.bincount(other, minlength=5)
    assert set(best.tolist()) == {0}
    assert count[[0, 3, 4]].sum() == 0
    assert abs(int(count[1]) - 5000) < 195, "3.9 standard errors: once in 10,000 seeds"


def test_random_other_is_missing_without_spread():
    scores = torch.tensor([[1.0, 1.0], [NAN, 2.0], [NAN, NAN]])
    best, other = selection.best_and_random(scores, generator=ops.generator(5))
    assert best.tolist() == [0, 1, -1]
    assert other.tolist() == [-1, -1, -1]


@given(MATRICES)
def test_best_and_second_are_of_the_two_highest_levels(array):
    best, second = selection.best_and_second(torch.from_numpy(array))
    for row, b, s in zip(array.tolist(), best.tolist(), second.tolist(), strict=True):
        scored = finite(row)
        levels = sorted(set(scored.values()), reverse=True)
        wanted = [min(i for i, x in scored.items() if x == level) for level in levels[:2]]
        assert [b, s] == [*wanted, -1, -1][:2]


LOGITS = hnp.array_shapes(min_dims=1, max_dims=1, min_side=1, max_side=5).flatmap(
    lambda side: hnp.arrays("float64", (2, *side, *side), elements=st.sampled_from(
        [NAN, -INF, INF, -3.0, 0.0, 0.5, 40.0]))
)  # fmt: skip


@given(LOGITS)
def test_mean_win_is_the_mean_over_known_others(array):
    found = selection.mean_win(torch.from_numpy(array)).tolist()
    for matrix, row in zip(array.tolist(), found, strict=True):
        for i, value in enumerate(row):
            known = [x for j, x in enumerate(matrix[i]) if j != i and not math.isnan(x)]
            wins = [1.0 if x == INF else 0.0 if x == -INF else 1 / (1 + math.exp(-x))
                    for x in known]  # fmt: skip
            assert math.isnan(value) if not wins else value == pytest.approx(sum(wins) / len(wins))


def test_wins_of_antisymmetric_logits_balance():
    drawn = torch.randn(4, 5, 5, generator=ops.generator(0), dtype=torch.float64)
    found = selection.mean_win(drawn - drawn.transpose(-1, -2))
    assert torch.allclose(found.mean(-1), torch.full((4,), 0.5, dtype=torch.float64))


VOTES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=4).flatmap(
    lambda shape: hnp.arrays("float64", shape, elements=st.sampled_from(
        [NAN, 0.0, 0.4, 0.46, 0.5, 0.54, 0.6, 1.0]))
)  # fmt: skip


@given(VOTES, st.sampled_from([0.0, 0.05, 0.2]))
def test_judges_agree_when_all_who_vote_are_on_one_side_by_delta(array, delta):
    wins = torch.from_numpy(array)
    found = selection.agree(wins, delta=delta).tolist()
    for column, side in zip(array.T.tolist(), found, strict=True):
        voting = [p for p in column if not math.isnan(p)]
        first = bool(voting) and all(p > 0.5 and p - 0.5 >= delta for p in voting)
        second = bool(voting) and all(p < 0.5 and 0.5 - p >= delta for p in voting)
        assert side == first - second
    assert selection.agree(1 - wins, delta=delta).tolist() == [-side for side in found]
    assert selection.agree(wins.flip(0), delta=delta).tolist() == found


def test_same_seed_same_draws():
    scores = torch.rand(20, 4, generator=ops.generator(0))
    draws = [
        selection.boltzmann(scores, 2, temperature=0.5, generator=ops.generator(9))
        for _ in range(2)
    ]
    assert torch.equal(*draws)


def test_a_vector_of_scores_is_refused():
    with pytest.raises(TypeCheckError):
        selection.has_spread(torch.zeros(3))

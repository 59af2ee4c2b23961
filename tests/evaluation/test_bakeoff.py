"""Standings and duels against what is known of the numbers."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from melior.evaluation.bakeoff import duels, marginal_means, outcome, pooled, standing
from melior.evaluation.compare import compare, holm

N, SEEDS = 60, (1, 2, 3)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def arm(shift, *, seed, by_seed=(0.0, 0.0, 0.0), noise=0.3):
    """An arm whose numbers are those of the prompts, plus a shift, plus what seeds add."""
    world = np.random.default_rng(0).normal(size=N)
    own = np.random.default_rng(seed)
    return {
        s: {"score": (world + shift + extra + noise * own.normal(size=N)).tolist()}
        for s, extra in zip(SEEDS, by_seed, strict=True)
    }


def test_examples_are_averaged_over_seeds_before_they_are_compared():
    left, right = arm(0.0, seed=1), arm(0.5, seed=2)
    (duel,) = duels({"a": left, "b": right}, "score", generator=draw())
    means = [np.mean([own[s]["score"] for s in SEEDS], axis=0) for own in (left, right)]
    expected = compare(means[0], means[1], name="reward model's score", generator=draw())
    assert (duel.first, duel.second) == ("b", "a")
    assert duel.comparison == expected
    assert duel.comparison.n == N, "three seeds are not three times as many examples"


def test_a_large_difference_is_real_and_none_is_not():
    arms = {"a": arm(0.0, seed=1), "b": arm(0.02, seed=2), "c": arm(1.0, seed=3)}
    found = {frozenset((d.first, d.second)): d for d in duels(arms, "score", generator=draw())}
    assert found[frozenset("ac")].is_real and found[frozenset("bc")].is_real
    assert not found[frozenset("ab")].is_real


def test_a_difference_that_one_seed_turns_is_not_real():
    steady = arm(0.0, seed=1)
    shaky = arm(0.5, seed=2, by_seed=(1.0, 1.0, -1.2))
    (duel,) = duels({"a": steady, "b": shaky}, "score", generator=draw())
    assert duel.comparison.low > 0 and duel.comparison.p_value < 0.05
    assert duel.n_agreeing == 2 and not duel.is_real


def test_p_values_are_corrected_for_all_pairs():
    arms = {str(i): arm(0.1 * i, seed=i + 1, noise=1.5) for i in range(4)}
    found = duels(arms, "score", generator=draw())
    raw = []
    for duel in found:
        seeds = list(SEEDS)
        ends = (pooled(arms[name], "score", seeds) for name in (duel.second, duel.first))
        raw.append(compare(*ends, name="x", generator=draw()).p_value)
    assert len(found) == 6
    corrected = [duel.comparison.p_value for duel in found]
    assert corrected == pytest.approx(holm(raw), abs=0.02), "resamples differ, no more"


def test_only_common_seeds_count():
    left, right = arm(0.0, seed=1), arm(1.0, seed=2)
    del right[2]
    (duel,) = duels({"a": left, "b": right}, "score", generator=draw())
    assert duel.over_seeds.n == 2
    assert duels({"a": left, "b": {}}, "score", generator=draw()) == []


def test_false_alarms_are_rare_where_no_arm_differs():
    """Of 60 bake-offs of three equal arms, at most 8 find a difference (5% each, p = 0.004)."""
    alarms = 0
    for world in range(60):
        arms = {name: arm(0.0, seed=100 * world + i) for i, name in enumerate("abc", 1)}
        alarms += any(duel.is_real for duel in duels(arms, "score", generator=draw(world)))
    assert alarms <= 8


def test_standings_tell_seeds_examples_and_the_start_apart():
    own, start = arm(1.0, seed=1), {"score": arm(0.0, seed=9)[1]["score"]}
    found = standing(own, start, "score", generator=draw())
    assert found.by_seed == tuple(float(np.mean(own[s]["score"])) for s in SEEDS)
    assert found.over_seeds.estimate == pytest.approx(np.mean(found.by_seed))
    assert found.against_start.difference == pytest.approx(1.0, abs=0.2)
    assert found.error == pytest.approx(np.std(pooled(own, "score", SEEDS), ddof=1) / N**0.5)
    assert standing(own, {}, "score", generator=draw()).against_start is None
    assert standing(own, start, "kl", generator=draw()) is None


def test_marginal_means_average_cells_of_a_seed_first():
    cells = [
        ({"data": "x", "seed": 1}, 1.0), ({"data": "x", "seed": 1}, 3.0),
        ({"data": "x", "seed": 2}, 4.0), ({"data": "y", "seed": 1}, 7.0),
        ({"data": "", "seed": 1}, 100.0),
    ]  # fmt: skip
    found = marginal_means(cells, "data")
    assert found["x"].estimate == 3.0 and found["x"].n == 2
    assert found["y"].estimate == 7.0 and found["y"].low is None
    assert set(found) == {"x", "y"}


def test_the_best_comes_first_and_leads_with_those_it_is_not_ahead_of():
    arms = {"a": arm(0.0, seed=1), "b": arm(1.0, seed=2), "c": arm(1.01, seed=3)}
    start = {"score": arm(0.0, seed=9)[1]["score"]}
    found = outcome("score", [], start, arms, factors=[], folders={}, generator=draw())
    means = [own["score"].over_seeds.estimate for own in found.standings.values()]
    assert all(left >= right for left, right in pairwise(means))
    assert set(found.leaders) == {"b", "c"} and list(found.standings)[2] == "a"

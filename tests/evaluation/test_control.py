"""Scores of returns: the ends of the scale, its straightness, and seeds as what is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.control_files import Reference
from melior.evaluation.control import gain, normalised, score_of_seeds

HOPPER = Reference(random=-20.27, expert=3234.3)  # D4RL's


def test_a_published_score_is_found_again():
    """TD3+BC's 59.3 on hopper-medium-v2 is a return of about 1910."""
    found = normalised(np.array([1909.7, -20.27, 3234.3]), HOPPER)
    assert found.tolist() == pytest.approx([59.3, 0, 100], abs=0.01)


@given(st.floats(-1e4, 1e4), st.floats(0.1, 10), st.floats(-1e3, 1e3))
def test_units_of_the_reward_do_not_matter(value, scale, shift):
    moved = Reference(scale * HOPPER.random + shift, scale * HOPPER.expert + shift)
    plain = normalised(np.array([value]), HOPPER)
    assert normalised(np.array([scale * value + shift]), moved) == pytest.approx(plain, abs=1e-6)


def test_only_seeds_are_counted():
    few = [np.array([0.0, 100.0]), np.array([50.0, 150.0]), np.array([100.0, 200.0])]
    many = [np.tile(own, 50) for own in few]
    scale = Reference(0.0, 100.0)
    one, other = score_of_seeds(few, scale), score_of_seeds(many, scale)
    assert one.estimate == pytest.approx(100.0)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert one.high - one.low == pytest.approx(2 * 4.302653 * 50 / 3**0.5, rel=1e-5)


def test_a_gain_has_welchs_interval():
    before, after = np.array([1.0, 2.0, 4.0, 5.0]), np.array([6.0, 9.0, 12.0])
    errors = before.var(ddof=1) / 4, after.var(ddof=1) / 3
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)
    assert 3 < freedom < 4  # rounded down to 3, whose quantile is 3.182446
    found = gain(before, after)
    half = 3.182446305 * sum(errors) ** 0.5
    assert found.estimate == 6.0
    assert [found.low, found.high] == pytest.approx([6 - half, 6 + half], rel=1e-6)


def test_a_gain_of_single_or_equal_episodes_has_no_spread():
    assert gain(np.array([1.0]), np.array([2.0, 3.0])).low is None
    found = gain(np.ones(3), np.full(3, 2.0))
    assert (found.low, found.high) == (1.0, 1.0)

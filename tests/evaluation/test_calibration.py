"""The temperature of margins: recovered where it is known, refused where there is none."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from melior.evaluation.calibration import fit_temperature, pair_loss


def labelled(temperature, n=20_000, seed=0):
    """Margins of pairs whose labels are drawn from `sigmoid(h / temperature)`."""
    dice = np.random.default_rng(seed)
    h = dice.normal(0, 3, n)
    is_right = dice.random(n) < 1 / (1 + np.exp(-h / temperature))
    return np.where(is_right, h, -h)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    # The standard error is below 2 % at 20,000 pairs for each; 6 % is three of them.
    assert fit_temperature(labelled(temperature)) == pytest.approx(temperature, rel=0.06)


def test_expected_losses_give_the_exact_temperature():
    """Each margin once right and once wrong in its true share, by repetition: 3 of 4 at log 3."""
    h = np.log(3) * 2.5
    margins = [h, h, h, -h]
    assert fit_temperature(margins) == pytest.approx(2.5, rel=1e-12)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=12), st.floats(0.1, 10))
def test_it_is_the_minimum_and_scales_with_the_margins(margins, scale):
    h = np.array(margins)
    assume(h.min() < -1e-2 and h.sum() > 1e-2)
    t = fit_temperature(h)
    assert fit_temperature(scale * h) == pytest.approx(scale * t, rel=1e-6)
    best = pair_loss(h / t)
    for other in (0.5 * t, 0.99 * t, 1.01 * t, 2 * t):
        assert best <= pair_loss(h / other) + 1e-12


def test_where_there_is_no_temperature():
    with pytest.raises(ValueError, match="all ranked right"):
        fit_temperature([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="better than chance"):
        fit_temperature([1.0, -2.0])
    with pytest.raises(ValueError, match="must be finite"):
        fit_temperature([1.0, float("nan")])


def test_the_loss_of_pairs_is_bradley_terrys():
    assert pair_loss([0.0]) == pytest.approx(np.log(2))
    assert pair_loss([2.0, -1000.0]) == pytest.approx((np.log1p(np.exp(-2)) + 1000) / 2)

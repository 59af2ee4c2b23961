"""Does a scorer know where it errs: against loops, and in worlds in which that is known."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.evaluation.uncertainty import SHARES, auroc, risks, sureness

PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=1,
    max_size=25,
)
"""How sure, and how right; often as sure as others."""


@given(PAIRS)
def test_the_area_counts_every_right_and_wrong_pair(pairs):
    sign, right = (np.array(column) for column in zip(*pairs, strict=True))
    duels = [
        (a > b) + 0.5 * (a == b) for a, x in pairs if x == 1 for b, y in pairs if y == 0
    ]  # fmt: skip
    found = auroc(sign, right)
    if not duels:
        assert found is None
    else:
        assert found.value == pytest.approx(sum(duels) / len(duels), abs=1e-12)
        assert (found.low is None) == (found.high is None)
        assert found.n_right * found.n_wrong == len(duels)


@given(PAIRS, st.integers(0, 2**32 - 1))
def test_equally_sure_pairs_count_as_in_any_order_on_average(pairs, seed):
    """So the curve is one for all orders of the rows, and exact where a level of sureness ends."""
    sign, right = (np.array(column) for column in zip(*pairs, strict=True))
    found = risks(sign, right)
    mixed = np.random.default_rng(seed).permutation(len(pairs))
    assert risks(sign[mixed], right[mixed]) == pytest.approx(found, abs=1e-12)
    for level in set(sign):
        surest = right[sign >= level]
        assert found[len(surest) - 1] == pytest.approx(1 - surest.mean(), abs=1e-12)


def test_delongs_interval_holds_the_truth_as_often_as_it_says():
    """Two normals a standard deviation apart: Phi(1 / sqrt 2). Of 400 draws, 0.032 is 3 errors."""
    truth, draws = NormalDist().cdf(1 / math.sqrt(2)), np.random.default_rng(0)
    right = np.repeat([1.0, 0.0], [60, 40])
    held = 0
    for _ in range(400):
        found = auroc(draws.normal(size=100) + right, right)
        held += found.low <= truth <= found.high
    assert abs(held / 400 - 0.95) < 0.032


def world(n=4000, m=4, seed=0):
    """Margins by members whose noise differs from pair to pair: only their spread tells of it."""
    draws = np.random.default_rng(seed)
    noise = np.where(draws.random(n) < 0.5, 0.1, 3.0)
    members = 1.0 + noise * draws.normal(size=(m, n))
    return members.mean(0), [*members]


def test_where_members_lie_apart_they_err():
    margins, members = world()
    size, close, over = sureness(margins, members)
    assert close.auroc.value > 0.7
    assert over.auroc.low > size.auroc.high
    assert over.risk < size.risk
    assert over.accuracies[4] > over.accuracies[-1] + 0.05
    assert over.accuracies[-1] == pytest.approx((margins > 0).mean())


def test_a_sureness_that_knows_nothing_has_an_area_of_a_half():
    draws = np.random.default_rng(1)
    (found,) = sureness(draws.choice([-1.0, 1.0], size=4000) * draws.random(4000))
    assert found.auroc.low < 0.5 < found.auroc.high
    assert found.risk == pytest.approx(0.5, abs=0.05)


def test_a_scorer_that_errs_only_where_it_is_unsure_is_as_good_as_can_be():
    (found,) = sureness([5.0, 4.0, 3.0, -0.1])
    assert found.auroc.value == 1.0
    assert (found.auroc.low, found.auroc.high) == (None, None)
    assert found.risk == found.least_risk == pytest.approx(1 / 16)
    assert len(found.accuracies) == len(SHARES)


@pytest.mark.parametrize("margins", [[1.0], [0.0], [-1.0, -2.0], [0.0, 0.0]])
def test_margins_that_are_all_right_wrong_or_tied_have_no_area(margins):
    for one in sureness(margins, [margins, margins]):
        assert one.auroc is None
        assert one.accuracies[-1] == pytest.approx(np.mean((np.sign(margins) + 1) / 2))


def test_equal_members_are_sure_but_not_of_a_tie():
    _, _, over = sureness([1.0, 0.0, -1.0], [[1.0, 0.0, -1.0]] * 2)
    assert over.accuracies[0] == 0.5
    assert np.isfinite(over.risk)

"""Pearson's and Spearman's correlation: against NumPy by other means, ties, and laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.correlation import average_ranks, pearson, spearman

few = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def column(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@given(few)
def test_ranks_of_ties_are_the_mean_of_their_places(values):
    """By counting: one, and those below, and half of the others that are equal."""
    wanted = [1 + sum(v < own for v in values) + (values.count(own) - 1) / 2 for own in values]
    assert average_ranks(column(values))[:, 0].tolist() == wanted


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=20))
def test_pearson_is_numpys(pairs):
    left, right = (np.array(side, float) for side in zip(*pairs, strict=True))
    found = pearson(column(left), torch.tensor(right)).item()
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        assert found == 0
    else:
        assert found == pytest.approx(np.corrcoef(left, right)[0, 1], abs=1e-12)


def test_spearman_of_a_textbook_example_with_ties():
    """Ranks 1 2.5 2.5 4 and 2 1 3.5 3.5: products sum to 2.25, squares to 4.5 and 4.5."""
    left, right = column([10, 20, 20, 30]), torch.tensor([2.0, 1.0, 5.0, 5.0], dtype=torch.float64)
    assert spearman(left, right).item() == pytest.approx(2.25 / 4.5)


@given(st.lists(st.floats(-2, 2), min_size=4, max_size=9, unique=True))
def test_spearman_sees_only_the_order(values):
    left = column(values)
    right = torch.arange(len(values), dtype=torch.float64) % 3
    bent = 3 * torch.atan(left.double()) - 1
    if len(set(bent[:, 0].tolist())) == len(values):  # unless two fell together by rounding
        assert spearman(bent, right).item() == pytest.approx(spearman(left, right).item())


def test_columns_do_not_see_each_other_and_a_constant_correlates_with_nothing():
    draw = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 3, generator=draw, dtype=torch.float64)
    columns[:, 1] = 0.1  # whose mean of 50 is off by rounding
    other = torch.randn(50, generator=draw, dtype=torch.float64)
    for correlation in (pearson, spearman):
        found = correlation(columns, other)
        assert found[1] == 0
        for place in (0, 2):
            alone = correlation(columns[:, [place]], other).item()
            assert found[place].item() == pytest.approx(alone, rel=1e-12)
        assert correlation(columns, torch.full_like(other, 0.1)).tolist() == [0, 0, 0]

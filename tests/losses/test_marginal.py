"""Marginals: exact tables leave nothing, estimators are unbiased, gradients are KL's."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from melior import ops
from melior.data.marginal import all_rows, at_rank, drawn_counts, drawn_orders, revealed
from melior.losses.marginal import (
    any_order,
    centred,
    clipped,
    ensemble,
    log_conditionals,
    self_consistency,
    standardised,
    towards_energy,
)

seeds = st.integers(0, 1000)
D, K = 3, 2


def joint(seed: int) -> np.ndarray:
    """A table of probabilities, one axis to a position."""
    return np.random.default_rng(seed).dirichlet(np.ones(K**D)).reshape((K,) * D)


def marginal(table: np.ndarray, row: list[int]) -> float:
    """The sum over what is 0 in the row."""
    return float(table[tuple(slice(None) if v == 0 else v - 1 for v in row)].sum())


def conditionals(table: np.ndarray, tokens: torch.Tensor) -> torch.Tensor:
    """Exact logits `[n d k]`, as a network that is perfect would give."""
    result = torch.zeros(*tokens.shape, K, dtype=torch.float64)
    for n, row in enumerate(tokens.tolist()):
        for d, v in itertools.product(range(D), range(K)):
            result[n, d, v] = math.log(marginal(table, [*row[:d], v + 1, *row[d + 1 :]]))
    return result


def marginals(table: np.ndarray, tokens: torch.Tensor) -> torch.Tensor:
    return torch.tensor(
        [math.log(marginal(table, row)) for row in tokens.tolist()], dtype=torch.float64
    )


@settings(max_examples=8)
@given(seeds)
def test_an_exact_table_is_consistent_in_every_order_at_every_step(seed):
    """The spec's guard against steps that are off by one."""
    table = joint(seed)
    tokens = all_rows(D, K)
    for order in itertools.permutations(range(D)):
        ranks = torch.tensor(order).expand(len(tokens), -1)
        for step in range(D):
            count = torch.full((len(tokens),), step)
            before, after = revealed(tokens, ranks, count), revealed(tokens, ranks, count + 1)
            place = at_rank(ranks, count)
            own = log_conditionals(conditionals(table, before), tokens)
            own = own.gather(1, place[:, None])[:, 0]
            left = self_consistency(marginals(table, before), own, marginals(table, after))
            assert left.square().max() < 1e-20


@settings(max_examples=8)
@given(seeds)
def test_one_reading_estimates_the_likelihood_of_all_orders(seed):
    """The mean over all counts and all sets of that size is the mean over orders of the chain."""
    table = joint(seed)
    tokens = all_rows(D, K)
    estimates = torch.zeros(len(tokens), dtype=torch.float64)
    for t in range(D):
        masks = list(itertools.combinations(range(D), t))
        for known in masks:
            is_known = torch.zeros(len(tokens), D, dtype=torch.bool)
            is_known[:, list(known)] = True
            logits = conditionals(table, tokens.where(is_known, 0))
            estimates += any_order(logits, tokens, is_known) / len(masks) / D
    # With exact conditionals every order gives the joint itself.
    assert torch.allclose(estimates, -marginals(table, tokens))


def test_a_row_of_which_all_is_known_gives_nothing():
    logits = torch.randn(1, D, K, requires_grad=True)
    loss = any_order(logits, torch.ones(1, D, dtype=torch.long), torch.ones(1, D, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@given(seeds)
def test_reinforces_gradient_is_that_of_the_divergence(seed):
    """`E of grad f (f - log target)` against autograd's `KL(softmax f || target)`, all rows."""
    generator = ops.generator(seed)
    f, log_target = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    f.requires_grad_()
    log_p = f.log_softmax(0)
    (log_p.exp() * (log_p - log_target)).sum().backward()
    exact = f.grad.clone()
    f.grad = None
    chances = log_p.exp().detach()
    difference = f - log_target
    baseline = (chances * difference).sum()
    # Drawn rows are f's own distribution: weigh by it instead of drawing.
    (chances * towards_energy(f, difference - baseline)).sum().backward()
    assert torch.allclose(f.grad, exact, atol=1e-12)


@given(seeds, st.floats(-50, 50))
def test_baselines_see_no_constant(seed, constant):
    w = torch.randn(9, generator=ops.generator(seed), dtype=torch.float64)
    assert torch.allclose(centred(w + constant), centred(w), atol=1e-10)
    assert torch.allclose(standardised(w + constant), standardised(w), atol=1e-8)
    assert standardised(w).std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


def test_equal_rows_have_an_advantage_of_zero():
    assert (standardised(torch.full((5,), 3.0)) == 0).all()


def test_outliers_are_held():
    w = torch.tensor([0.0, 1.0, 2.0, 3.0, 1e10])
    assert clipped(w, deviations=20).tolist() == [0, 1, 2, 3, 22]
    alike = torch.tensor([1.0, 1.0, 1.0, 5.0])  # no spread to measure by
    assert torch.equal(clipped(alike), alike)


def test_orders_are_mixed_as_probabilities():
    logs = torch.tensor([[0.1, 0.5], [0.3, 0.5]], dtype=torch.float64).log()
    assert torch.allclose(ensemble(logs).exp(), torch.tensor([0.2, 0.5], dtype=torch.float64))


def test_rows_are_revealed_in_their_order():
    order = torch.tensor([[2, 0, 1]])
    tokens = torch.tensor([[7, 8, 9]])
    shown = [revealed(tokens, order, torch.tensor([count]))[0].tolist() for count in range(4)]
    assert shown == [[0, 0, 0], [0, 8, 0], [0, 8, 9], [7, 8, 9]]
    assert at_rank(order, torch.tensor([0])).tolist() == [1]


def test_orders_and_counts_are_drawn_evenly():
    orders = drawn_orders(6000, 3, generator=ops.generator(0))
    distinct, counts = orders.unique(dim=0, return_counts=True)
    assert len(distinct) == 6 and (counts - 1000).abs().max() < 150
    steps = drawn_counts(3000, 3, generator=ops.generator(0)).bincount()
    assert len(steps) == 3 and (steps - 1000).abs().max() < 130


def test_all_rows_are_listed_unless_there_are_too_many():
    assert all_rows(2, 2).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    with pytest.raises(ValueError, match=r"at most 2000000 can be listed; found 2\^40"):
        all_rows(40, 2)

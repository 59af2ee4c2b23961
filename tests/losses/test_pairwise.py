"""The letter's cross-entropy and the mean of both orders: in NumPy, their laws, their ends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.losses.pairwise import both_orders, letter_cross_entropy
from melior.rewards.comparisons import Verdict

logits = st.lists(st.floats(-30, 30), min_size=1, max_size=6)
shares = st.floats(0, 1)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.integers(0, 10_000), shares)
def test_cross_entropy_is_the_papers(seed, share):
    """Of three tokens, A, B and another, written out for each row."""
    scores = torch.randn(5, 3, generator=ops.generator(seed), dtype=torch.float64)
    log_probs = scores.log_softmax(-1)[:, :2]
    found = letter_cross_entropy(log_probs, torch.full((5,), share, dtype=torch.float64))
    for row, value in zip(scores.numpy(), found.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        wanted = -(share * math.log(p[0]) + (1 - share) * math.log(p[1]))
        assert value == pytest.approx(wanted, rel=1e-12)


def test_cross_entropy_is_least_where_the_letters_have_their_shares():
    """Descent on the logits of three tokens arrives at p = (s, 1 - s, 0)."""
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    share = double(0.7)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

    def close():
        optimizer.zero_grad()
        loss = letter_cross_entropy(scores.log_softmax(-1)[:, :2], share).sum()
        loss.backward()
        return loss

    optimizer.step(close)
    p = scores.detach().softmax(-1)[0].tolist()
    assert p == pytest.approx([0.7, 0.3, 0.0], abs=1e-4)


@given(st.floats(-8, 8), st.floats(-8, 8))
def test_both_orders_are_averaged_as_probabilities(first, second):
    found = float(both_orders(double(first), double(second)).sigmoid())
    wanted = (1 / (1 + math.exp(-first)) + 1 / (1 + math.exp(-second))) / 2
    assert found == pytest.approx(wanted, abs=1e-12)


@given(logits, st.integers(0, 100))
def test_exchanging_the_answers_changes_the_sign_to_the_bit(values, seed):
    first = double(*values)
    second = first + torch.randn(len(values), generator=ops.generator(seed), dtype=torch.float64)
    assert torch.equal(both_orders(-second, -first), -both_orders(first, second))
    assert torch.equal(both_orders(first, -first), torch.zeros_like(first))


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_far_logits_are_finite_and_those_of_a_verdict(first, second):
    at = double(first).requires_grad_()
    found = both_orders(at, double(second))
    found.backward()
    assert found.isfinite()
    assert at.grad.isfinite()
    assert float(found.detach()) == pytest.approx(Verdict(first, second).logit, rel=1e-9, abs=1e-9)


def test_gradients_agree_with_finite_differences():
    first, second = double(0.3, -4.0, 2.0).requires_grad_(), double(0.2, 1.0, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(both_orders, (first, second))
    scores = double(0.3, -0.4, 0.2, 1.0).reshape(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(letter_cross_entropy, (scores, double(0.2, 1.0)))

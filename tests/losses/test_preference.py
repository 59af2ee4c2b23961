"""Pairwise losses: the paper's equations in float64 NumPy, laws, peers, known optima."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.preference import dpo
from melior.losses.reference_free import simpo, simpo_hinge
from melior.types import Pairwise

PEERS = Path(__file__).parents[1] / "peers"
finite = st.floats(-50, 50)


def pairwise(chosen, rejected, dtype=torch.float64) -> Pairwise:
    return Pairwise(torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))


# The spec's vector: log-probabilities -12 and -10 over 6 and 4 tokens; reference -13 and -9.5.
SUMS, REFERENCE, MEANS = (
    pairwise([-12.0], [-10.0]),
    pairwise([-13.0], [-9.5]),
    pairwise([-2.0], [-2.5]),
)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (simpo(MEANS, beta=2.0, gamma=0.6), 0.513015),
        (simpo(MEANS, beta=2.0, gamma=0.6, label_smoothing=0.1), 0.553015),
        (simpo_hinge(MEANS, beta=2.0, gamma=0.6), 0.6),
        (simpo(MEANS, beta=2.0, gamma=1.6), 1.037488),
        (simpo(MEANS, beta=2.0, gamma=1.6, label_smoothing=0.1), 0.977488),
        (dpo(SUMS, REFERENCE, beta=0.1), 0.620957),
    ],
)
def test_the_specs_vectors(found, value):
    assert found.item() == pytest.approx(value, abs=6e-7)


def log1p_exp(x: float) -> float:
    """`log(1 + exp(x))`, that is `-log sigmoid(-x)`, by another road than the code's."""
    return float(np.logaddexp(0.0, x))


@given(st.tuples(finite, finite, finite, finite), st.floats(0.01, 10), st.floats(0, 0.49))
def test_dpo_is_equation_7(numbers, beta, smoothing):
    w, l, ref_w, ref_l = numbers  # noqa: E741  # the paper's letters
    delta = (w - ref_w) - (l - ref_l)
    wanted = (1 - smoothing) * log1p_exp(-beta * delta) + smoothing * log1p_exp(beta * delta)
    policy, reference = pairwise([w], [l]), pairwise([ref_w], [ref_l])
    found = dpo(policy, reference, beta=beta, label_smoothing=smoothing)
    assert found.item() == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@given(finite, finite, st.floats(0.1, 10), st.floats(0, 5), st.floats(0, 0.49))
def test_simpo_is_equation_6(w, l, beta, gamma, smoothing):  # noqa: E741
    u = beta * w - beta * l - gamma
    wanted = (1 - smoothing) * log1p_exp(-u) + smoothing * log1p_exp(u)
    found = simpo(pairwise([w], [l]), beta=beta, gamma=gamma, label_smoothing=smoothing)
    assert found.item() == pytest.approx(wanted, rel=1e-11, abs=1e-11)


@given(finite, finite)
def test_a_reference_of_zeros_is_reference_free(w, l):  # noqa: E741
    free = simpo(pairwise([w], [l]), beta=0.3, gamma=0.0)
    zero = dpo(pairwise([w], [l]), pairwise([0.0], [0.0]), beta=0.3)
    assert torch.equal(free, zero)


@given(finite, finite, finite)
def test_a_constant_added_to_both_sides_changes_nothing(w, l, shift):  # noqa: E741
    reference = pairwise([-3.0], [-4.0])
    left = dpo(pairwise([w], [l]), reference, beta=0.1)
    right = dpo(pairwise([w + shift], [l + shift]), reference, beta=0.1)
    assert torch.allclose(left, right, atol=1e-12)


@given(finite, st.floats(0.01, 10))
def test_less_margin_costs_more(margin, step):
    zeros = pairwise([0.0], [0.0])
    for loss in (
        lambda p: dpo(p, zeros, beta=0.1),
        lambda p: simpo(p, beta=2.0, gamma=0.5),
    ):
        less, more = pairwise([margin], [0.0]), pairwise([margin + step], [0.0])
        assert loss(less).item() > loss(more).item() or loss(more).item() < 1e-12


@pytest.mark.parametrize("margin", [-1e4, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_margins_stay_finite(margin, smoothing):
    chosen = torch.tensor([margin], requires_grad=True)
    policy = Pairwise(chosen, torch.zeros(1))
    zeros = Pairwise(torch.zeros(1), torch.zeros(1))
    for value in (
        dpo(policy, zeros, beta=1.0, label_smoothing=smoothing),
        simpo(policy, beta=10.0, gamma=1.0, label_smoothing=smoothing),
        simpo_hinge(policy, beta=10.0, gamma=1.0),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), chosen)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_gradients_agree_with_finite_differences():
    draw = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(5, generator=draw, dtype=torch.float64) for _ in range(4))
    a.requires_grad_(), b.requires_grad_()
    checks = (
        lambda x, y: dpo(Pairwise(x, y), Pairwise(c, d), beta=0.7, label_smoothing=0.1),
        lambda x, y: simpo(Pairwise(x, y), beta=2.0, gamma=0.5, label_smoothing=0.1),
        lambda x, y: simpo_hinge(Pairwise(x, y), beta=0.2, gamma=0.5),
    )
    for check in checks:
        assert torch.autograd.gradcheck(check, (a, b))


def test_the_reference_gets_no_gradient():
    reference = Pairwise(torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True))
    policy = Pairwise(torch.ones(1, requires_grad=True), torch.zeros(1))
    dpo(policy, reference, beta=0.1).sum().backward()
    assert reference.chosen.grad is None


def test_policy_equal_to_reference_costs_log_2():
    assert dpo(SUMS, SUMS, beta=0.1).item() == pytest.approx(math.log(2))


def test_dpo_arrives_at_the_known_optimum():
    """On an enumerable bandit the optimum is `pi ~ reference * exp(reward / beta)` (eq. 4)."""
    beta = 0.5
    reward = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logits = start.clone().requires_grad_()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    chosen, rejected = (torch.tensor(side) for side in zip(*pairs, strict=True))
    weight = torch.sigmoid(reward[chosen] - reward[rejected])  # Bradley-Terry labels, exact
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        policy = logits.log_softmax(-1)
        losses = dpo(
            Pairwise(policy[chosen], policy[rejected]),
            Pairwise(start[chosen], start[rejected]),
            beta=beta,
        )
        value = (weight * losses).sum()
        value.backward()
        return value

    optimizer.step(closure)
    wanted = (start + reward / beta).log_softmax(-1)
    assert torch.allclose(logits.log_softmax(-1), wanted, atol=1e-5)


def test_simpo_separates_a_pair_by_its_margin():
    """The smoothed loss is least where `sigmoid(beta * margin - gamma) = 1 - smoothing`."""
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([margin], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        policy = Pairwise(margin, torch.zeros_like(margin))
        value = simpo(policy, beta=2.0, gamma=1.0, label_smoothing=0.2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert margin.item() == pytest.approx((math.log(0.8 / 0.2) + 1.0) / 2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("peer", "loss"), [("trl_dpo", dpo), ("trl_simpo", simpo), ("trl_simpo_hinge", simpo_hinge)]
)
def test_agreement_with_a_peer(peer, loss):
    """Numbers of an independent implementation, see the file for version and script."""
    frozen = json.loads((PEERS / f"{peer}.json").read_text(encoding="utf-8"))
    assert frozen["rows"]
    for row in frozen["rows"]:
        sides = [pairwise(row["policy_chosen"], row["policy_rejected"])]
        if "reference_chosen" in row:
            sides.append(pairwise(row["reference_chosen"], row["reference_rejected"]))
        assert loss(*sides, **row["options"]).tolist() == pytest.approx(row["losses"], rel=2e-6)

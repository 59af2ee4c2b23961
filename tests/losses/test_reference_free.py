"""Losses without a reference: the equations in float64 NumPy, laws, peers, known optima."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.preference import dpo
from melior.losses.reference_free import cpo, log_odds, orpo, rrhf, simpo, simpo_hinge, slic
from melior.types import Pairwise
from tests.losses.bandit import (
    REWARD,
    bradley_terry,
    centred,
    descend,
    optimal_policy,
    pairwise,
    peer_rows,
)

log_prob = st.floats(-50, -0.01)
LOSSES = {
    "simpo": partial(simpo, beta=2.0, gamma=0.5, label_smoothing=0.1),
    "simpo_hinge": partial(simpo_hinge, beta=0.2, gamma=0.5),
    "slic": partial(slic, delta=1.0),
    "rrhf": rrhf,
    "cpo": partial(cpo, beta=0.3, label_smoothing=0.1),
    "orpo": partial(orpo, lam=0.25),
}


def log1p_exp(x: float) -> float:
    """`log(1 + exp(x))`, that is `-log sigmoid(-x)`, by another road than the code's."""
    return float(np.logaddexp(0.0, x))


def smoothed(x: float, e: float) -> float:
    return (1 - e) * log1p_exp(-x) + e * log1p_exp(x)


def odds_ratio(w: float, l: float) -> float:  # noqa: E741  # the paper's letters
    """Of probabilities, without logarithms until the end."""
    w, l = np.longdouble(w), np.longdouble(l)  # noqa: E741
    return float(np.log((np.exp(w) / -np.expm1(w)) / (np.exp(l) / -np.expm1(l))))


EQUATIONS = {  # of the chosen answer's log-probability a and the rejected one's b
    "simpo": lambda a, b: smoothed(2.0 * a - 2.0 * b - 0.5, 0.1),
    "simpo_hinge": lambda a, b: max(0.0, 1 - (0.2 * a - 0.2 * b - 0.5)),
    "slic": lambda a, b: max(0.0, 1.0 - a + b),
    "rrhf": lambda a, b: max(0.0, b - a),
    "cpo": lambda a, b: smoothed(0.3 * a - 0.3 * b, 0.1),
    "orpo": lambda a, b: 0.25 * log1p_exp(-odds_ratio(a, b)),
}


@pytest.mark.parametrize("name", LOSSES)
@given(st.lists(st.tuples(log_prob, log_prob), min_size=1, max_size=4))
def test_every_loss_is_its_equation(name, rows):
    w, l = (list(side) for side in zip(*rows, strict=True))  # noqa: E741
    wanted = [EQUATIONS[name](*row) for row in rows]
    assert LOSSES[name](pairwise(w, l)).tolist() == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    in_float32 = LOSSES[name](pairwise(w, l, torch.float32)).tolist()
    assert in_float32 == pytest.approx(wanted, rel=1e-4, abs=1e-4)


# The spec's vector: log-probabilities -12 and -10 over 6 and 4 tokens.
SUMS, MEANS = pairwise([-12.0], [-10.0]), pairwise([-2.0], [-2.5])


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (simpo(MEANS, beta=2.0, gamma=0.6), 0.513015),
        (simpo(MEANS, beta=2.0, gamma=0.6, label_smoothing=0.1), 0.553015),
        (simpo_hinge(MEANS, beta=2.0, gamma=0.6), 0.6),
        (simpo(MEANS, beta=2.0, gamma=1.6), 1.037488),
        (simpo(MEANS, beta=2.0, gamma=1.6, label_smoothing=0.1), 0.977488),
        # The vectors hold the paper's NLL too: 12 summed, 2 as a mean over tokens, weight 1.
        (cpo(SUMS, beta=0.1) + 12, 12.798139),
        (cpo(SUMS, beta=0.1) + 2, 2.798139),
        (rrhf(MEANS) + 12, 12.0),
        (slic(SUMS, delta=1.0) + 12, 15.0),
        (orpo(MEANS, lam=0.1) + 2, 2.045193),
        (log_odds(MEANS.chosen) - log_odds(MEANS.rejected), 0.559763),
    ],
)
def test_the_specs_vectors(found, value):
    assert found.item() == pytest.approx(value, abs=6e-7)


@given(log_prob, log_prob)
def test_a_reference_of_zeros_is_reference_free(w, l):  # noqa: E741
    zero = dpo(pairwise([w], [l]), pairwise([0.0], [0.0]), beta=0.3)
    assert torch.equal(simpo(pairwise([w], [l]), beta=0.3, gamma=0.0), zero)
    assert torch.equal(cpo(pairwise([w], [l]), beta=0.3), zero)


@given(log_prob, log_prob)
def test_the_hinges_are_one_family(w, l):  # noqa: E741
    policy = pairwise([w], [l])
    found = 0.5 * slic(policy, delta=2.0)
    assert torch.allclose(found, simpo_hinge(policy, beta=0.5, gamma=0.0), atol=1e-12)
    assert torch.allclose(rrhf(policy), slic(policy, delta=0.0), atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "orpo"])
@given(log_prob, log_prob, st.floats(-10, 10))
def test_a_constant_added_to_both_sides_changes_nothing(name, w, l, shift):  # noqa: E741
    left = LOSSES[name](pairwise([w], [l]))
    right = LOSSES[name](pairwise([w + shift], [l + shift]))
    assert torch.allclose(left, right, atol=1e-10)


def test_orpo_is_no_matter_of_the_margin_alone():
    """Near certainty the same margin of log-probabilities is a wider one of log-odds."""
    wide, narrow = orpo(pairwise([-0.1, -5.0], [-0.5, -5.4]), lam=1.0)
    assert wide < narrow


@pytest.mark.parametrize("name", LOSSES)
@given(st.permutations(range(5)))
def test_the_order_of_pairs_changes_nothing(name, order):
    draw = torch.Generator().manual_seed(0)
    w, l = -3 * torch.rand(2, 5, generator=draw, dtype=torch.float64)  # noqa: E741
    straight, shuffled = LOSSES[name](Pairwise(w, l)), LOSSES[name](Pairwise(w[order], l[order]))
    assert torch.equal(straight[order], shuffled)


@pytest.mark.parametrize(
    "loss",
    [
        partial(simpo, beta=2.0, gamma=0.5),
        partial(cpo, beta=0.1),
        partial(orpo, lam=0.5),
        partial(slic, delta=1.0),
        rrhf,
        partial(simpo_hinge, beta=2.0, gamma=0.5),
    ],
)
@given(log_prob, st.floats(0.01, 10))
def test_less_margin_costs_more(loss, chosen, step):
    less, more = pairwise([chosen - step], [-5.0]), pairwise([chosen], [-5.0])
    assert loss(less).item() > loss(more).item() or loss(less).item() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chosen", [-1e4, -1e-9, 0.0])
@pytest.mark.parametrize("rejected", [-1e4, -1e-9, 0.0])
def test_extreme_log_probs_stay_finite(name, chosen, rejected):
    w = torch.tensor([chosen], requires_grad=True)
    l = torch.tensor([rejected], requires_grad=True)  # noqa: E741
    value = LOSSES[name](Pairwise(w, l))
    gradients = torch.autograd.grad(value.sum(), (w, l))
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    draw = torch.Generator().manual_seed(0)
    w, l = -3 * torch.rand(2, 5, generator=draw, dtype=torch.float64) - 0.1  # noqa: E741
    w.requires_grad_(), l.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name](Pairwise(a, b)), (w, l))


@given(st.floats(-20, -1e-5))
def test_log_odds_are_those_of_the_probability(a):
    found = log_odds(torch.tensor([a], dtype=torch.float64)).item()
    assert found == pytest.approx(a - float(np.log(-np.expm1(np.longdouble(a)))), rel=1e-12)


@pytest.mark.parametrize("a", [-1e-5, -1e-3, -0.5, -3.0, -40.0])
def test_log_odds_keep_their_digits_in_float32(a):
    """`log1p(-exp(a))`, as often written, errs by 3e-4 of them at -1e-5."""
    single = float(np.float32(a))
    exact = single - math.log(-math.expm1(single))
    assert log_odds(torch.tensor([a])).item() == pytest.approx(exact, rel=1e-6)


def test_a_wide_enough_margin_teaches_hinges_nothing():
    for loss in (partial(slic, delta=1.0), rrhf, partial(simpo_hinge, beta=2.0, gamma=0.5)):
        policy = pairwise([-1.0], [-9.0])
        policy.chosen.requires_grad_()
        loss(policy).sum().backward()
        assert policy.chosen.grad == 0


# Known optima on an enumerable bandit, see tests/losses/bandit.py.


@pytest.mark.parametrize(
    ("loss", "implied_reward"),
    [
        (partial(cpo, beta=0.5), lambda policy: 0.5 * policy),
        (partial(simpo, beta=2.0, gamma=0.0), lambda policy: 2.0 * policy),
        (partial(orpo, lam=0.1), lambda policy: policy - (1 - policy.exp()).log()),
    ],
)
def test_under_bradley_terry_the_implied_reward_becomes_the_true_one(loss, implied_reward):
    """The start policy plays no part: CPO arrives at `exp(reward / beta)`, ORPO at log-odds."""
    policy = optimal_policy(lambda policy, _: loss(policy), bradley_terry())
    assert torch.allclose(centred(implied_reward(policy)), centred(REWARD), atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (partial(simpo, beta=2.0, gamma=1.0, label_smoothing=0.2), (math.log(4) + 1.0) / 2.0),
        (partial(cpo, beta=0.5, label_smoothing=0.2), math.log(4) / 0.5),
    ],
)
def test_smoothing_gives_the_margin_an_end(loss, wanted):
    """Least where the modelled chance of winning is `1 - smoothing`."""
    margin = descend(
        lambda m: loss(Pairwise(m, torch.zeros_like(m))).sum(), torch.zeros(1, dtype=torch.float64)
    )
    assert margin.item() == pytest.approx(wanted, abs=1e-6)


# Peers

TRL = {
    "simpo": lambda policy, *, simpo_gamma, **options: simpo(policy, gamma=simpo_gamma, **options),
    "sigmoid": cpo,
    "hinge": lambda policy, *, beta: simpo_hinge(policy, beta=beta, gamma=0.0),
    "orpo": lambda policy, *, beta: orpo(policy, lam=beta),
}


@pytest.mark.parametrize("name", TRL)
def test_agreement_with_trl(name):
    """Its CPO and ORPO trainers, less the NLL that they add; ORPO is computed in float32 there."""
    for row in peer_rows("trl_reference_free", name):
        policy = pairwise(row["policy_chosen"], row["policy_rejected"])
        found = TRL[name](policy, **row["options"]).tolist()
        assert found == pytest.approx(row["losses"], rel=2e-5 if name == "orpo" else 2e-6)

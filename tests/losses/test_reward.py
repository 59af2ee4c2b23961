"""Reward models' losses: the equations in float64 NumPy, laws, peers, known optima."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.reward import bradley_terry, centring_penalty
from melior.types import Pairwise

PEERS = Path(__file__).parents[1] / "peers"
finite = st.floats(-50, 50)
smoothings = st.floats(0, 0.49)


def pairwise(chosen, rejected, dtype=torch.float64) -> Pairwise:
    return Pairwise(torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))


@pytest.mark.parametrize(
    ("rewards", "options", "value"),
    [
        (([0.3], [0.3]), {}, math.log(2)),
        (([1.0], [-1.0]), {}, 0.126928),
        (([1.0], [-1.0]), {"margin": 2.0}, math.log(2)),
        (([1.0], [-1.0]), {"label_smoothing": 0.1}, 0.326928),
        (([-1.0], [1.0]), {}, 2.126928),
    ],
)
def test_vectors(rewards, options, value):
    assert bradley_terry(pairwise(*rewards), **options).item() == pytest.approx(value, abs=6e-7)


@given(finite, finite, st.floats(0, 10), smoothings)
def test_bradley_terry_is_the_likelihood_of_the_label(w, l, margin, smoothing):  # noqa: E741
    """`log p` from the two odds themselves, by numpy's logaddexp."""
    win = w - margin - np.logaddexp(w - margin, l)
    lose = l - np.logaddexp(w - margin, l)
    wanted = -(1 - smoothing) * win - smoothing * lose
    found = bradley_terry(pairwise([w], [l]), margin=margin, label_smoothing=smoothing)
    assert found.item() == pytest.approx(wanted, rel=1e-11, abs=1e-11)


@given(finite, finite, finite, smoothings)
def test_a_constant_added_to_both_rewards_changes_nothing(w, l, shift, smoothing):  # noqa: E741
    left = bradley_terry(pairwise([w], [l]), label_smoothing=smoothing)
    right = bradley_terry(pairwise([w + shift], [l + shift]), label_smoothing=smoothing)
    assert torch.allclose(left, right, atol=1e-12)


@given(finite, finite)
def test_swapping_both_sides_is_flipping_the_label(w, l):  # noqa: E741
    """At half flipped the loss no longer knows which side was better."""
    one = bradley_terry(pairwise([w], [l]), label_smoothing=0.5)
    other = bradley_terry(pairwise([l], [w]), label_smoothing=0.5)
    assert torch.allclose(one, other, rtol=1e-12)


@given(finite, st.floats(0.01, 10))
def test_less_margin_costs_more(margin, step):
    less, more = (bradley_terry(pairwise([m], [0.0])).item() for m in (margin, margin + step))
    assert less > more or more < 1e-12


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=6), st.randoms())
def test_the_order_of_pairs_does_not_matter(pairs, dice):
    order = list(range(len(pairs)))
    dice.shuffle(order)
    for loss in (bradley_terry, centring_penalty):
        plain = loss(pairwise(*map(list, zip(*pairs, strict=True))))
        moved = [pairs[i] for i in order]
        assert torch.equal(loss(pairwise(*map(list, zip(*moved, strict=True)))), plain[order])


def test_a_margin_a_pair_is_as_one_margin_each():
    margins = [0.0, 0.5, 3.0]
    rewards = pairwise([1.0, 2.0, -1.0], [0.0, 3.0, -1.5])
    found = bradley_terry(rewards, margin=torch.tensor(margins, dtype=torch.float64))
    for i, margin in enumerate(margins):
        alone = Pairwise(rewards.chosen[i : i + 1], rewards.rejected[i : i + 1])
        assert torch.equal(found[i : i + 1], bradley_terry(alone, margin=margin))


@given(finite, finite)
def test_centring_is_the_square_of_the_sum(w, l):  # noqa: E741
    found = centring_penalty(pairwise([w], [l])).item()
    assert found == pytest.approx(w * w + 2 * w * l + l * l, abs=1e-9)


def test_centring_moves_no_margin():
    chosen = torch.tensor([2.0, -1.0], requires_grad=True)
    rejected = torch.tensor([0.5, -4.0], requires_grad=True)
    centring_penalty(Pairwise(chosen, rejected)).sum().backward()
    assert torch.equal(chosen.grad, rejected.grad)
    assert chosen.grad.ne(0).all()


@pytest.mark.parametrize("margin", [-1e4, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_margins_stay_finite(margin, smoothing):
    chosen = torch.tensor([margin], requires_grad=True)
    value = bradley_terry(Pairwise(chosen, torch.zeros(1)), label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(value.sum(), chosen)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_gradients_agree_with_finite_differences():
    draw = torch.Generator().manual_seed(0)
    w, l = (torch.randn(5, generator=draw, dtype=torch.float64) for _ in range(2))  # noqa: E741
    w.requires_grad_(), l.requires_grad_()
    for loss in (
        lambda x, y: bradley_terry(Pairwise(x, y), margin=0.3, label_smoothing=0.1),
        lambda x, y: centring_penalty(Pairwise(x, y)),
    ):
        assert torch.autograd.gradcheck(loss, (w, l))


def test_no_gradient_flows_into_the_margin():
    margin = torch.ones(1, requires_grad=True)
    chosen = torch.ones(1, requires_grad=True)
    bradley_terry(Pairwise(chosen, torch.zeros(1)), margin=margin).sum().backward()
    assert margin.grad is None
    assert chosen.grad is not None


def test_rewards_come_back_from_exact_preferences():
    """Labels in Bradley-Terry's own shares: the optimum is the true reward, up to a constant."""
    true = torch.tensor([1.5, 0.0, -0.7, -0.8], dtype=torch.float64)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    better, worse = (torch.tensor(side) for side in zip(*pairs, strict=True))
    share = torch.sigmoid(true[better] - true[worse])
    found = torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=500, tolerance_change=1e-18)

    def closure():
        optimizer.zero_grad()
        rewards = Pairwise(found[better], found[worse])
        value = (share * bradley_terry(rewards)).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert torch.allclose(found - found.mean(), true - true.mean(), atol=1e-5)


def test_smoothing_stops_at_its_own_margin():
    """The smoothed loss is least where `sigmoid(margin) = 1 - smoothing`."""
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([margin], max_iter=200, tolerance_change=1e-18)

    def closure():
        optimizer.zero_grad()
        value = bradley_terry(Pairwise(margin, torch.zeros_like(margin)), label_smoothing=0.2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert margin.item() == pytest.approx(math.log(4), abs=1e-6)


def test_agreement_with_trl():
    """TRL's RewardTrainer on given rewards; see the file for version and script."""
    frozen = json.loads((PEERS / "trl_reward.json").read_text(encoding="utf-8"))
    assert frozen["rows"]
    for row in frozen["rows"]:
        rewards = pairwise(row["rewards_chosen"], row["rewards_rejected"])
        loss = bradley_terry(rewards, margin=torch.tensor(row["margins"], dtype=torch.float64))
        loss = loss + row["center_rewards_coefficient"] * centring_penalty(rewards)
        assert loss.mean().item() == pytest.approx(row["loss"], rel=2e-6)

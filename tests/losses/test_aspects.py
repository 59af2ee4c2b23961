"""ArmoRM's parts after the regression: equations in float64 NumPy, laws, gradients, optima."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.correlation import pearson, spearman
from melior.losses.aspects import (
    PENALTIES,
    Decorrelation,
    coefficients,
    decorrelation,
    gated_bradley_terry,
    gated_score,
    static_mixture,
)

seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=ops.generator(seed), dtype=torch.float64)


# Decorrelation


def leaking(seed: int = 0, n: int = 2000):
    """Three objectives, of which the last is verbosity and leaks 0.5 and -0.3 into the others."""
    own = normal(n, 3, seed=seed)
    return torch.stack([own[:, 0] + 0.5 * own[:, 2], own[:, 1] - 0.3 * own[:, 2], own[:, 2]], -1)


def test_penalties_take_away_the_leak_and_the_transform_has_them_in_one_row():
    rewards = leaking()
    found = decorrelation(rewards, 2)
    assert found.penalties[0].item() == pytest.approx(0.5, abs=0.051)
    assert found.penalties[1] == 0  # a negative correlation stays
    assert found.reached.all()
    assert found.transform.tolist() == [[1, 0, 0], [0, 1, 0], [-found.penalties[0], 0, 0]]
    left = rewards @ found.transform
    assert spearman(left, rewards[:, 2])[:2].max() <= 0.03
    assert (left[:, 2] == 0).all()


@given(seeds)
def test_the_transform_is_taking_verbosity_off_each(seed):
    rewards = leaking(seed, 40)
    found = decorrelation(rewards, 2)
    for j in range(3):
        wanted = rewards[:, j] - found.penalties[j] * rewards[:, 2]
        assert torch.allclose((rewards @ found.transform)[:, j], wanted, atol=1e-12)


def test_the_least_penalty_of_the_grid_is_taken():
    rewards = leaking()
    for correlation in (spearman, pearson):
        found = decorrelation(rewards, 2, correlation=correlation, target=0.1)
        for j in (0, 1):
            meeting = [
                penalty
                for penalty in PENALTIES
                if correlation((rewards[:, j] - penalty * rewards[:, 2])[:, None], rewards[:, 2])
                <= 0.1
            ]
            assert found.penalties[j].item() == pytest.approx(meeting[0])


def test_pearsons_penalty_of_a_target_of_nothing_is_the_slope():
    """`Cov(r_j - lambda r_v, r_v) = 0` at the regression's slope."""
    rewards = leaking()
    slope = np.polyfit(rewards[:, 2].numpy(), rewards[:, 0].numpy(), 1)[0]
    fine = [step / 1000 for step in range(1000)]
    found = decorrelation(rewards, 2, correlation=pearson, target=0.0, grid=fine)
    assert found.penalties[0].item() == pytest.approx(slope, abs=0.001)


def test_an_objective_that_no_penalty_frees_is_told_and_loses_all_of_verbosity():
    rewards = leaking()
    rewards[:, 0] += 5 * rewards[:, 2]
    found = decorrelation(rewards, 2)
    assert found.reached.tolist() == [False, True, True]
    assert found.penalties[0] == 1


def test_a_constant_objective_keeps_its_reward_and_constant_verbosity_is_refused():
    rewards = leaking()
    rewards[:, 0] = 0.1
    assert decorrelation(rewards, 2).penalties[0] == 0
    rewards[:, 2] = 0.25
    with pytest.raises(ValueError, match=r"verbosity must differ; found 0\.25 everywhere"):
        decorrelation(rewards, 2)


def test_the_grid_begins_as_the_released_one():
    released = [0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
    released += [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert list(PENALTIES[:24]) == released
    assert PENALTIES[-1] == 1.5
    assert list(PENALTIES) == sorted(PENALTIES)


# The gated score


def mixed(seed: int):
    rewards, gate = normal(5, 3, seed=seed), normal(5, 3, seed=seed + 1).softmax(-1)
    found = Decorrelation(normal(3, seed=seed + 2).abs(), torch.ones(3).bool(), 2)
    return rewards, gate, found.transform


@given(seeds)
def test_coefficients_of_raw_rewards_add_up_to_the_score(seed):
    rewards, gate, transform = mixed(seed)
    score = gated_score(rewards, gate, transform)
    counted = coefficients(gate, transform)
    assert torch.allclose((rewards * counted).sum(-1), score, atol=1e-12)
    penalties = -transform[2, :2]
    assert torch.allclose(counted[:, :2], gate[:, :2])
    assert torch.allclose(counted[:, 2], gate[:, 2] * transform[2, 2] - gate[:, :2] @ penalties)


@given(seeds)
def test_the_score_is_the_sum_over_objectives_in_numpy(seed):
    rewards, gate, transform = (own.numpy() for own in mixed(seed))
    wanted = [
        sum(gate[i, j] * sum(rewards[i, a] * transform[a, j] for a in range(3)) for j in range(3))
        for i in range(5)
    ]
    found = gated_score(*map(torch.tensor, (rewards, gate, transform)))
    assert np.allclose(found.numpy(), wanted, rtol=1e-12)


@given(seeds)
def test_gated_bradley_terry_is_the_likelihood_of_the_label(seed):
    chosen, gate, transform = mixed(seed)
    rejected = normal(5, 3, seed=seed + 3)
    win, lose = (gated_score(side, gate, transform).numpy() for side in (chosen, rejected))
    wanted = np.logaddexp(win, lose) - win
    found = gated_bradley_terry(chosen, rejected, gate, transform)
    assert np.allclose(found.numpy(), wanted, rtol=1e-11, atol=1e-12)


def test_the_gate_is_taught():
    """As the softmax over the pair would not: one gate to a pair, and a gradient that is not 0."""
    chosen, _, transform = mixed(0)
    logits = normal(5, 3, seed=9).requires_grad_()
    loss = gated_bradley_terry(chosen, normal(5, 3, seed=3), logits.softmax(-1), transform)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.abs().max() > 0.01
    assert slope.sum(-1).abs().max() < 1e-12  # a constant added to all logits does nothing


def test_gradients_agree_with_finite_differences():
    chosen, gate, transform = mixed(4)
    inputs = [own.requires_grad_() for own in (chosen, normal(5, 3, seed=8), gate)]
    assert torch.autograd.gradcheck(lambda *own: gated_bradley_terry(*own, transform), inputs)


def test_a_gate_finds_the_objective_that_labels_follow():
    """Labels in Bradley-Terry's own shares under weights 2 and 0: the optimum is those weights."""
    left, right = normal(400, 2, seed=1), normal(400, 2, seed=2)
    share = (2 * (left - right)[:, 0]).sigmoid()
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    plain = torch.eye(2, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_change=1e-18)

    def closure():
        optimizer.zero_grad()
        gate = weights.expand(400, 2)
        won, lost = (
            gated_bradley_terry(*own, gate, plain) for own in ((left, right), (right, left))
        )
        value = (share * won + (1 - share) * lost).mean()
        value.backward()
        return value

    optimizer.step(closure)
    assert weights.tolist() == pytest.approx([2, 0], abs=1e-5)


# The mixture that is the same for every prompt


def test_the_static_mixture_is_the_optimum():
    """No other share or scale that it may choose makes the pairs likelier."""
    left, right = normal(300, 3, seed=1), normal(300, 3, seed=2)
    logit = (left - right) @ torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    is_won = torch.rand(300, generator=ops.generator(3), dtype=torch.float64) < logit.sigmoid()
    chosen, rejected = left.where(is_won[:, None], right), right.where(is_won[:, None], left)
    allowed = torch.tensor([True, True, False])

    def loss(weights):
        return torch.nn.functional.softplus(-(chosen - rejected) @ weights).mean()

    found = static_mixture(chosen, rejected, allowed, weights=torch.ones(len(chosen)))
    assert found[2] == 0
    assert (found >= 0).all()
    for nudge in (normal(3, seed=seed) * 0.05 for seed in range(20)):
        near = (found + nudge).clamp(min=0) * allowed
        assert loss(near) >= loss(found) - 1e-9


def test_a_static_mixture_of_pairs_that_one_objective_ranks_right_ends():
    chosen = torch.tensor([[1.0, 0.0]]).double().expand(20, 2)
    both, even = torch.tensor([True, True]), torch.ones(20)
    found = static_mixture(chosen, torch.zeros(20, 2).double(), both, weights=even)
    assert found.isfinite().all()
    assert found[0] > 10 > found[1]


def test_a_pair_of_weight_two_moves_the_static_mixture_like_two_pairs():
    draw = torch.Generator().manual_seed(2)
    chosen, rejected = torch.randn(2, 40, 3, generator=draw, dtype=torch.float64)
    counts, allowed = torch.arange(40) % 3, torch.ones(3, dtype=torch.bool)
    many = (own.repeat_interleave(counts, 0) for own in (chosen, rejected))
    wanted = static_mixture(*many, allowed, weights=torch.ones(int(counts.sum())))
    found = static_mixture(chosen, rejected, allowed, weights=counts.double())
    assert torch.allclose(found, wanted, atol=1e-5)
    plain = static_mixture(chosen, rejected, allowed, weights=torch.ones(40))
    assert not torch.allclose(found, plain, atol=1e-2)

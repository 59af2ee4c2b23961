"""GPO's world: what the games are, that the step is the regression's optimum, what is exploited."""

import math

import numpy as np
import pytest
import torch

from melior import ops
from melior.claims import gpo


@pytest.mark.parametrize("kind", gpo.GAMES)
def test_games_are_antisymmetric_and_at_most_one(kind):
    games = gpo.drawn_games(kind, ops.generator(0))
    assert torch.equal(games, -games.transpose(-1, -2))
    assert games.abs().amax((-1, -2)).tolist() == [1.0] * gpo.N_GAMES


def test_a_best_answer_is_there_in_order_and_never_in_the_circle():
    in_order = gpo.drawn_games("in order", ops.generator(0))
    assert ((in_order >= 0).all(-1).sum(-1) == 1).all()
    circle = gpo.drawn_games("rock-paper-scissors", ops.generator(0))
    assert not (circle >= 0).all(-1).any()
    # Differences of rewards: s_ij + s_jk = s_ik.
    sums = in_order[:, :, :, None] + in_order[:, None, :, :]
    assert torch.allclose(sums, in_order[:, :, None, :].expand_as(sums))


def test_rewards_are_the_likeliest():
    """At the optimum expected wins are the observed ones, answer by answer; moving costs."""
    games = gpo.drawn_games("random", ops.generator(1))
    fitted = gpo.bradley_terry_scores(games)
    wins, told = ((gpo.STEEPNESS * own).sigmoid() for own in (games, fitted))
    assert torch.allclose(wins.sum(-1), told.sum(-1), atol=1e-12)
    sums = fitted[:, :, :, None] + fitted[:, None, :, :]
    assert torch.allclose(sums, fitted[:, :, None, :].expand_as(sums))
    circle = gpo.drawn_games("rock-paper-scissors", ops.generator(1))
    assert gpo.bradley_terry_scores(circle).abs().max() < 1e-12
    in_order = gpo.drawn_games("in order", ops.generator(1))
    assert torch.allclose(gpo.bradley_terry_scores(in_order), in_order, atol=1e-10)


def test_one_step_is_the_optimum_of_the_papers_regression():
    """Eq. 5.3 by gradient descent, its constant free, on one game of five answers."""
    scores = gpo.drawn_games("random", ops.generator(2))[:1]
    start = torch.randn(1, 5, generator=ops.generator(3), dtype=torch.float64)
    old = start.softmax(-1)[0]
    beta = math.sqrt(2) / 2  # of a run of two steps, whose last iterate is the second
    logits = start[0].clone().requires_grad_()
    constant = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits, constant], max_iter=500, tolerance_grad=1e-12)
    against = scores[0] @ old

    def closure():
        optimizer.zero_grad()
        ratio = logits.log_softmax(-1) - old.log()
        loss = (old * (ratio - against / beta + constant).square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = gpo.played(scores, start, 2)["last"][0]
    assert torch.allclose(found, logits.softmax(-1), atol=1e-6)


def test_averages_are_of_all_iterates_by_the_definition():
    scores = gpo.drawn_games("random", ops.generator(4))[:1]
    start = torch.randn(1, 5, generator=ops.generator(5), dtype=torch.float64)
    matrix, policy = scores[0].numpy(), np.exp(start[0].numpy())
    policies, steps = [policy / policy.sum()], 7
    for _ in range(steps - 1):
        new = policies[-1] * np.exp(2 / math.sqrt(steps) * matrix @ policies[-1])
        policies.append(new / new.sum())
    found = {name: own[0].numpy() for name, own in gpo.played(scores, start, steps).items()}
    geometric = np.exp(np.log(policies).mean(0))
    assert found["average"] == pytest.approx(np.mean(policies, 0), abs=1e-12)
    assert found["last"] == pytest.approx(policies[-1], abs=1e-12)
    assert found["mean logits"] == pytest.approx(geometric / geometric.sum(), abs=1e-12)


def test_only_the_even_mixture_is_safe_in_rock_paper_scissors():
    scores = gpo.drawn_games("rock-paper-scissors", ops.generator(0))[:2]
    policies = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0, 0]], dtype=torch.float64)
    assert gpo.exploitability(scores, policies).tolist() == pytest.approx([0, 1], abs=1e-12)


def test_longer_games_end_closer_to_safety_and_the_last_iterate_does_not():
    scores = gpo.drawn_games("rock-paper-scissors", ops.generator(0))
    start = torch.randn(gpo.N_GAMES, 3, generator=ops.generator(6), dtype=torch.float64)
    short, long = (gpo.played(scores, start, steps) for steps in (50, 800))
    mean = {
        (name, i): float(gpo.exploitability(scores, own[name]).mean())
        for i, own in enumerate((short, long))
        for name in own
    }
    assert mean["average", 1] < mean["average", 0] / 2
    assert mean["last", 1] > 10 * mean["average", 1]

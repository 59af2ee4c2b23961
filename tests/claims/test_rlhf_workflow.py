"""RLHF Workflow's worlds: rewards, what each arm learns from, biased verdicts, what choices do."""

import math
from statistics import NormalDist

import pytest
import torch

from melior import ops, selection
from melior.claims import rlhf_workflow as claim
from melior.claims.rlhf_workflow_world import (
    FAR,
    Policy,
    biased_judge,
    drawn_answers,
    drawn_world,
    judged,
    long_answers,
    swap_averaged,
)
from tests.claims.chances import fits


@pytest.fixture(scope="module")
def world():
    return drawn_world(ops.generator(0), offset=FAR)


def test_the_start_policy_is_a_standard_normal_over_the_pool(world):
    answers, share = world.features[..., 4:8], world.start.exp()
    assert torch.allclose(share.sum(-1), torch.ones(210), atol=1e-5)
    mean = (share[..., None] * answers).sum(1)
    square = (share * answers.square().sum(-1)).sum(1)
    assert mean.mean(0).abs().max() < 0.05
    assert float(square.mean()) == pytest.approx(4, abs=0.15)


def test_rewards_are_best_at_a_place_that_is_linear_in_the_prompt(world):
    """Each reward is quadratic in the answer: three answers' places give the target away."""
    answers, prompts = world.features[..., 4:8].double(), world.features[:, 0, :4].double()
    # -4 r = |y|^2 - 2 y . t + |t|^2, so that t comes of a linear system.
    left = torch.cat([2 * answers[:, :20], torch.ones(210, 20, 1)], -1)
    right = 4 * world.rewards[:, :20].double() + answers[:, :20].square().sum(-1)
    target = torch.linalg.lstsq(left, right[..., None]).solution[:, :4, 0]
    design = torch.cat([prompts, torch.ones(210, 1)], -1)
    fitted = torch.linalg.lstsq(design, target).solution
    assert torch.allclose(design @ fitted, target, atol=1e-2)
    assert fitted[4].tolist() == pytest.approx([FAR] * 4, abs=1e-2)


def test_an_untrained_policy_is_the_start(world):
    policy = Policy(seed=0)
    assert torch.allclose(policy.log_probs(world), world.start, atol=1e-5)
    assert judged(policy, world)["KL"] == pytest.approx(0, abs=1e-5)


def test_answers_are_drawn_by_their_probabilities(world):
    table = world.part(0, 1).start
    drawn = drawn_answers(table, 20_000, ops.generator(1))[0]
    order = table[0].argsort(descending=True)[:30]
    counts = [int((drawn == own).sum()) for own in order]
    shares = table[0, order].double().exp()
    rest = 1 - float(shares.sum())
    assert fits([*counts, 20_000 - sum(counts)], [*shares.tolist(), rest])


def test_pairs_are_of_one_prompt_and_the_better_first(world):
    train = world.part(0, 150)
    for arm in (claim.Arm(), claim.Arm(is_random=True)):
        better, worse = claim.drawn_pairs(Policy(seed=0), train, arm, ops.generator(2))
        assert torch.equal(better[:, :4], worse[:, :4])
        assert 140 <= len(better) <= 150
        scores = [reward_of(train, side) for side in (better, worse)]
        assert (scores[0] > scores[1]).all()


def reward_of(world, shown):
    """Look an answer up by its features."""
    same = (world.features.flatten(0, 1)[None] == shown[:, None]).all(-1)
    return world.rewards.flatten()[same.int().argmax(-1)]


def test_offline_and_online_pay_for_as_many_labels(world, monkeypatch):
    seen = []
    original = claim.drawn_pairs
    monkeypatch.setattr(claim, "drawn_pairs", lambda *own: seen.append(own[0]) or original(*own))
    for way in (claim.offline, lambda *own, **options: claim.online(claim.Arm(), *own, **options)):
        seen.clear()
        way(world.part(0, 20), 1, seed=0)
        assert len(seen) == claim.ROUNDS


def test_a_short_run_gains_reward_online(world):
    train, test = world.part(0, 150), world.part(150, 210)
    start = judged(Policy(seed=0), test)
    after = judged(claim.online(claim.Arm(), train, 60, seed=0), test)
    assert after["reward"] > start["reward"] + 2
    assert after["KL"] > 1


def test_a_judge_without_bias_is_right_as_often_as_the_labels_allow():
    """The share right in one order: an integral over how clear pairs are, in 4000 cells."""
    said = claim.verdicts(biased_judge(ops.generator(0), bias=0.0))
    clear, noise = NormalDist(0, 1.5), NormalDist(0, 0.3)
    right = 0.0
    for i in range(4000):
        z = clear.inv_cdf((i + 0.5) / 4000)
        label, says = 1 / (1 + math.exp(-2 * z)), 1 - noise.cdf(-z)
        right += (label * says + (1 - label) * (1 - says)) / 4000
    assert said["right in one order"] == pytest.approx(right, abs=4 * 0.5 / math.sqrt(20_000))
    assert said["off antisymmetry"] < 1e-12


def test_bias_flips_verdicts_and_both_orders_take_it_out():
    flips = [claim.verdicts(biased_judge(ops.generator(0), bias=b)) for b in (0.0, 1.0, 2.0)]
    assert [round(own["verdicts that flip"], 1) for own in flips] == [0.1, 0.5, 0.8]
    assert flips[2]["right in both"] > flips[2]["right in one order"] + 0.2


def test_swap_averaging_is_antisymmetric_and_sees_no_constant_bias_at_a_tie():
    first, exchanged = torch.tensor([0.7, 3.0]), torch.tensor([0.7, -1.0])
    found = swap_averaged(first, exchanged)
    assert found[0].item() == pytest.approx(0.5)
    assert torch.allclose(found + swap_averaged(exchanged, first), torch.ones(2))


def test_the_shorter_answer_is_chosen_where_the_penalty_decides():
    """The released scripts put such a pair back in the order of its raw rewards."""
    rewards, lengths = torch.tensor([[2.0, 1.5]]), torch.tensor([[1000.0, 100.0]])
    best, worst = selection.best_and_worst(rewards - 1e-3 * lengths)
    assert (best.tolist(), worst.tolist()) == ([1], [0])


def test_chosen_lengths_fall_with_the_penalty_and_as_released_they_need_not():
    found = claim.lengths_chosen(0)
    own = [found[f"penalty {p:g}"]["longer by"] for p in claim.PENALTIES]
    assert own == sorted(own, reverse=True)
    assert own[-1] < 0 < own[0]
    released = [found[f"penalty {p:g}, as released"]["longer by"] for p in claim.PENALTIES]
    assert released != sorted(released, reverse=True)


def test_rewards_rise_with_length():
    rewards, lengths = long_answers(ops.generator(0))
    both = torch.stack([lengths.flatten(), rewards.flatten()])
    slope = torch.cov(both)[0, 1] / lengths.var()
    assert float(slope) == pytest.approx(1 / 500, rel=0.15)

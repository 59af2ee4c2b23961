"""The bandits of MADPO and of reward-augmented data: labels, twins, controls, exact measures."""

from math import comb

import numpy as np
import pytest
import torch

from melior import ops
from melior.claims import bandit, madpo, reward_augmented
from melior.claims.reward_augmented import SETTINGS
from melior.types import Pairwise
from tests.claims.chances import fits

MAIN = SETTINGS[""]


def rated(where: str = "") -> reward_augmented.World:
    return reward_augmented.drawn_worlds([100, 101], SETTINGS[where])


def test_expected_reward_and_divergence_are_sums_over_actions():
    dice = ops.generator(0)
    features = torch.randn(1, 3, 4, 5, generator=dice, dtype=torch.float64)
    weights, start = torch.randn(2, 1, 1, 5, generator=dice, dtype=torch.float64)
    rewards = torch.randn(1, 3, 4, generator=dice, dtype=torch.float64)
    table, reference = bandit.log_probs(features, weights), bandit.log_probs(features, start)
    wanted_reward = wanted_kl = 0.0
    for prompt in range(3):
        p, q = (np.exp(features[0, prompt].numpy() @ own[0, 0].numpy()) for own in (weights, start))
        p, q = p / p.sum(), q / q.sum()
        wanted_reward += float(p @ rewards[0, prompt].numpy()) / 3
        wanted_kl += float((p * np.log(p / q)).sum()) / 3
    assert bandit.expected_reward(table, rewards).item() == pytest.approx(wanted_reward)
    assert bandit.divergence(table, reference).item() == pytest.approx(wanted_kl)


def test_every_pair_becomes_two_records_and_the_second_is_swapped():
    data = rated().rated
    twins, n = reward_augmented.with_goals(data), data.chosen.shape[1]
    assert torch.equal(twins.pairs.chosen[:, :n], data.chosen)
    assert torch.equal(twins.pairs.chosen[:, n:], data.rejected)
    assert torch.equal(twins.pairs.rejected[:, n:], data.chosen)
    assert torch.equal(twins.goals[:, :n], data.score_chosen)
    assert torch.equal(twins.goals[:, n:], data.score_rejected)
    # Each record's chosen answer is the one whose score is its goal, as R(x, y, g) asks.
    defect = reward_augmented.without_swap(data)
    assert torch.equal(defect.goals, twins.goals)
    assert torch.equal(defect.pairs.chosen[:, n:], data.chosen)
    half = reward_augmented.half_with_goals(data)
    assert half.goals.shape[1] == n
    assert half.count.tolist() == [n, n]


def test_clear_pairs_come_first_and_only_they_are_used():
    data = rated().rated
    kept = reward_augmented.filtered(data)
    for seed in range(2):
        gap = data.score_chosen[seed] - data.score_rejected[seed]
        clear = [i for i, own in enumerate(gap.tolist()) if own > 1.5]
        count = int(kept.count[seed])
        assert count == len(clear)
        assert 0 < count < len(gap)
        assert kept.pairs.chosen[seed, :count].tolist() == data.chosen[seed, clear].tolist()


@pytest.mark.parametrize("where", SETTINGS)
def test_pairs_are_rated_on_the_scale_and_never_tie(where):
    data = rated(where).rated
    assert data.chosen.shape == (2, SETTINGS[where].n)
    assert (data.score_chosen > data.score_rejected).all()
    assert data.score_chosen.max() <= 10
    assert data.score_rejected.min() >= 1


def test_the_rejected_action_is_any_of_the_others():
    """Without noise the best of four shown wins; which loses is even over ranks: chi-square."""
    dice = ops.generator(5)
    setting = reward_augmented.Setting(shift=0.0, noise=0.0, n=8000)
    features = torch.randn(300, 10, 24, generator=dice, dtype=torch.float64)
    rewards = reward_augmented.true_reward(features[..., 0], setting)
    data = reward_augmented.drawn_pairs(features, rewards, setting, dice)
    order = data.features[..., 0].argsort(-1, descending=True).argsort(-1)
    best = order.gather(-1, data.chosen[:, None])[:, 0]
    other = order.gather(-1, data.rejected[:, None])[:, 0]
    assert (best < other).all()
    # Of 4 places drawn from 10, the lowest is b, the other one of the rest, even over b+1..9.
    exact = np.zeros((10, 10))
    for b in range(7):
        exact[b, b + 1 :] = comb(9 - b, 3) / comb(10, 4) / (9 - b)
    counts = torch.bincount(10 * best + other, minlength=100).numpy()
    assert fits(counts, exact.flatten())


def test_a_plain_arm_does_not_know_the_goal():
    world = rated()
    arm = reward_augmented.ARMS["plain DPO"]
    weights = reward_augmented.trained(arm, world, [100, 101], 3)
    assert (weights[:, 1] == 0).all()
    low, high = (reward_augmented.judged(weights, world, goal) for goal in (1.0, 10.0))
    assert np.allclose(low["reward"], high["reward"])


def test_the_reference_unlearned_nothing():
    world = rated()
    found = reward_augmented.judged(world.start, world, 10.0)
    assert found["unlearning"] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("quality", madpo.QUALITIES)
def test_labels_are_bradley_terry(quality):
    """The share of pairs that the better action wins is its sigmoid; a false alarm in 10,000."""
    hits = expected = variance = 0.0
    for seed in range(10):
        world = madpo.drawn_world(ops.generator(seed), quality)
        assert (world.chosen != world.rejected).all()
        rewards = world.rewards
        chosen, rejected = (
            rewards.gather(-1, side[:, None])[:, 0] for side in (world.chosen, world.rejected)
        )
        gap = chosen - rejected
        if quality == "Low":
            worst = rewards.argmin(-1)
            assert ((world.chosen == worst) | (world.rejected == worst)).all()
        share = gap.abs().sigmoid()
        hits += float((gap > 0).sum())
        expected += float(share.sum())
        variance += float((share * (1 - share)).sum())
    assert abs(hits - expected) < 3.9 * variance**0.5


def test_high_pairs_are_two_actions_of_the_reference():
    """Chi-square over the ranks of both actions by the reference; a false alarm in 10,000 runs."""
    counts, exact, n_seeds = np.zeros(144), np.zeros((12, 12)), 10
    for seed in range(n_seeds):
        world = madpo.drawn_world(ops.generator(seed), "High")
        chances = bandit.log_probs(world.features[None], world.start[None, None])[0].exp()
        ranks = chances.argsort(-1, descending=True).argsort(-1)
        sides = torch.stack([world.chosen, world.rejected], -1)
        first, second = ranks.gather(-1, sides).sort(-1).values.unbind(-1)
        counts += torch.bincount(12 * first + second, minlength=144).numpy()
        p = chances.sort(-1, descending=True).values
        odds = p / (1 - p)  # of the second, once the first is gone: p_j / (1 - p_i)
        either = odds[:, :, None] * p[:, None, :] + p[:, :, None] * odds[:, None, :]
        exact += np.triu(either.mean(0).numpy(), 1) / n_seeds
    assert fits(counts, exact.flatten())


def test_the_reward_model_has_converged():
    """At the likelihood's maximum, what labels and model say of the features agree."""
    world = madpo.stacked([madpo.drawn_world(ops.generator(seed), "High") for seed in (100, 101)])
    margin = bandit.reward_margins(world.pairs)
    chosen, rejected = (
        bandit.rows_of(world.features.flatten(1, 2), side + 12 * torch.arange(1500))
        for side in (world.chosen, world.rejected)
    )
    gradient = ((-margin).sigmoid()[..., None] * (chosen - rejected)).mean(1)
    assert gradient.abs().max() < 2e-3
    assert (margin < 0).any()  # it disagrees with some labels: nothing was learned by heart


def batch(n_seeds: int = 2, n: int = 64) -> madpo.Batch:
    dice = ops.generator(9)
    one, two, three, four, margin = torch.randn(5, n_seeds * n, generator=dice).double()
    return madpo.Batch(Pairwise(one, two), Pairwise(three, four), 2 * margin, n_seeds)


def test_soft_labels_are_what_the_weights_amount_to_in_expectation():
    """Where |h| < tau: the weighted loss of both orders, in their Bradley-Terry shares."""
    both = batch()
    swapped = madpo.Batch(
        Pairwise(both.policy.rejected, both.policy.chosen),
        Pairwise(both.reference.rejected, both.reference.chosen),
        -both.margin,
        both.n_seeds,
    )
    share = both.margin.sigmoid()
    weighted = madpo.ARMS["MADPO"].made([1, 2])
    soft = madpo.ARMS["soft labels"].made([1, 2])
    expected = share * weighted(both) + (1 - share) * weighted(swapped)
    assert both.margin.abs().max() < 7
    assert torch.allclose(expected, soft(both))


def test_beta_dpo_keeps_four_fifths_and_each_seed_its_own_state():
    both = batch()
    arm = madpo.ARMS["beta-DPO"].made([5, 6])
    first, second = arm(both), arm(both)
    assert first.shape == (2 * 51,)
    for place, seed in enumerate([5, 6]):
        part = slice(64 * place, 64 * (place + 1))
        own = madpo.Batch(
            Pairwise(both.policy.chosen[part], both.policy.rejected[part]),
            Pairwise(both.reference.chosen[part], both.reference.rejected[part]),
            both.margin[part],
            1,
        )
        alone = madpo.ARMS["beta-DPO"].made([seed])
        assert torch.equal(alone(own), first[51 * place : 51 * (place + 1)])
        assert torch.equal(alone(own), second[51 * place : 51 * (place + 1)])
    assert not torch.equal(first, second)  # the state has moved


def test_reward_at_the_same_kl_lies_between_two_betas():
    """MADPO at a KL of 1 against DPO, whose reward is 10 at 0.5 and 20 at 1.5: 15 there."""
    arms = {"DPO, beta 2": (0.1, 5.0), "DPO": (0.5, 10.0), "DPO, beta 0.5": (1.5, 20.0)}
    arms |= {"DPO, beta 0.25": (2.0, 21.0), "DPO, beta 0.1": (3.0, 22.0), "MADPO": (1.0, 14.0)}
    measured = {
        f"High: {name}": {"KL": np.array([kl]), "reward": np.array([reward])}
        for name, (kl, reward) in arms.items()
    }
    assert madpo.at_the_same_kl("High")(measured).tolist() == [1.0]

"""Learning the dynamics reward: it finds what is off unreal, and comes back to the same bits."""

import copy
import itertools

import numpy as np
import pytest
import torch

from melior.data.control import Transitions
from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_fitting import examples
from melior.rewards.control_adversary import Adversary, AdversaryOptions, learn_reward
from melior.training.loop import fit

SHAPE = DynamicsOptions(observations=1, actions=1, members=2, elites=2, hidden=16, layers=1)
OPTIONS = AdversaryOptions(
    steps=300, batch_size=64, learning_rate=2e-3, hidden=32, layers=1, every=10
)


def world(n=300, seed=0):
    """What follows is half of what was, and the action."""
    rng = np.random.default_rng(seed)
    seen, acted = rng.normal(size=(n, 1)), rng.uniform(-1, 1, size=(n, 1))
    following = 0.5 * seen + acted + 0.05 * rng.normal(size=(n, 1))
    none = np.zeros(n, bool)
    columns = (seen, acted, seen[:, 0], following)
    return Transitions(*(column.astype(np.float32) for column in columns), none, none)


def unfitted(seed=0):
    """Dynamics that know scales and nothing else."""
    dynamics = Dynamics(SHAPE, seed=seed)
    known = examples(world())
    dynamics.fit_scales(known.observations, known.actions, known.targets)
    return dynamics


def test_what_is_off_is_less_real_than_what_is_true():
    reward = learn_reward(unfitted(), world(), OPTIONS, seed=1)
    unseen = world(200, seed=7)
    seen, acted, following = map(
        torch.from_numpy, (unseen.observations, unseen.actions, unseen.next_observations)
    )
    with torch.no_grad():
        true = reward(seen, acted, following).mean()
        for shift in (-1.5, 1.5):
            assert reward(seen, acted, following + shift).mean() < true - 0.05


def test_the_dynamics_given_stay_as_they_are():
    dynamics = unfitted()
    before = copy.deepcopy(dynamics.state_dict())
    adversary = Adversary(dynamics, world(), OPTIONS, seed=1)
    for batch in itertools.islice(adversary.batches(), 5):
        adversary(batch)
    assert all(torch.equal(before[name], weight) for name, weight in dynamics.state_dict().items())


def test_snapshots_are_taken_after_the_warm_up():
    options = AdversaryOptions(steps=50, batch_size=8, hidden=4, layers=1, warmup=0.2, every=20)
    adversary = Adversary(unfitted(), world(30), options, seed=1)
    taken = []
    fit(adversary, adversary.batches(), hooks=[lambda n, _: taken.append(len(adversary.snapshots))])
    assert [n for n, (a, b) in enumerate(itertools.pairwise(taken), 2) if b > a] == [30, 50]
    one, other = (s.discriminator.members.weights[0] for s in adversary.snapshots)
    assert not torch.equal(one, other)


def test_an_adversary_that_is_left_comes_back_to_the_same_bits():
    options = AdversaryOptions(steps=24, batch_size=16, hidden=8, layers=1, every=4, warmup=0.0)
    whole = Adversary(unfitted(), world(60), options, seed=1)
    fit(whole, whole.batches())

    first = Adversary(unfitted(), world(60), options, seed=1)
    for batch in itertools.islice(first.batches(), 10):
        first(batch)
    again = Adversary(unfitted(), world(60), options, seed=1)
    again.load_state(copy.deepcopy(first.state()))
    fit(again, again.batches())
    assert len(again.snapshots) == len(whole.snapshots) == 6
    for one, other in zip(again.snapshots, whole.snapshots, strict=True):
        assert (one.real, one.generated) == pytest.approx((other.real, other.generated), abs=1e-6)
        for left, right in zip(
            one.discriminator.parameters(), other.discriminator.parameters(), strict=True
        ):
            assert torch.equal(left, right)


def test_metrics_say_which_side_they_are_of():
    adversary = Adversary(unfitted(), world(30), OPTIONS, seed=1)
    metrics = adversary(next(adversary.batches()))
    assert {"discriminator/accuracy", "discriminator/loss", "generator/reward"} <= metrics.keys()
    assert 0 <= metrics["discriminator/accuracy"] <= 1

"""What learns to act: each arrives at an optimum known by hand, and comes back to the same bits.

The world is one decision: whatever is seen, `-4 (a - 0.5)^2` is earned and the task is over.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from melior import ops
from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_policies import Critics, GaussianPolicy, PlainPolicy, PolicyOptions
from melior.stages.control.learners import (
    ActorCriticOptions,
    Cloning,
    Rows,
    SoftActorCritic,
    Td3Bc,
    Td3BcOptions,
    conservative,
    inconsistent,
)

SHAPE = PolicyOptions(observations=2, actions=1, hidden=16)
FAST = ActorCriticOptions(
    actor_rate=3e-3, critic_rate=1e-2, temperature_rate=3e-2, actor_schedule="constant"
)


def rows(*, centre=0.0, spread=1.0, n=64, seed=0, worth=4.0, imagined=False):
    generator = ops.generator(seed)
    actions = centre + spread * (2 * torch.rand(n, 1, generator=generator) - 1)
    seen = torch.randn(n, 2, generator=generator)
    after = torch.randn(n, 2, generator=generator)
    rewards = -worth * (actions[:, 0] - 0.5).square()
    is_over = torch.ones(n, dtype=torch.bool)
    return Rows(seen, actions, rewards, after, is_over, torch.full((n,), imagined))


def soft(**options):
    policy, critics = GaussianPolicy(SHAPE, seed=0), Critics(SHAPE, seed=1)
    return SoftActorCritic(policy, critics, FAST, total_steps=1000, seed=2, **options)


def td3_bc():
    policy, critics = PlainPolicy(SHAPE, seed=0), Critics(SHAPE, seed=1)
    return Td3Bc(policy, critics, Td3BcOptions(), total_steps=1000, seed=2)


def trained(learner, steps, **options):
    for step in range(steps):
        metrics = learner([rows(seed=step, **options)])
    assert all(torch.tensor(list(metrics.values())).isfinite())
    return learner


def acts(learner):
    return learner.policy.act(rows(seed=999).observations).detach()


def test_soft_actor_critic_finds_the_best_action_and_stays_as_wide_as_it_should():
    """By hand: a Gaussian of variance `alpha / 8` has the target's entropy, -1, at 0.063."""
    learner = trained(soft(), 400)
    assert (acts(learner).mean() - 0.5).abs() < 0.1
    seen = rows(seed=1, n=512).observations
    _, log_prob = learner.policy.draw(seen, generator=ops.generator(0))
    assert -log_prob.mean().item() == pytest.approx(-1.0, abs=0.4)
    assert 0.03 < learner.temperature < 0.1


def test_cloning_does_what_was_done():
    policy = PlainPolicy(SHAPE, seed=0)
    learner = Cloning(policy, learning_rate=1e-2, total_steps=1000)
    trained(learner, 150, centre=-0.3, spread=0.2)
    assert (acts(learner) + 0.3).abs().max() < 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_td3_bc_lies_between_what_was_done_and_what_is_best(seed):
    """Logged around 0, where `(1 + a) / 2` is earned. By hand, of eq. 3 and 5 with an alpha of 1:

    `2 a = Q'(a) / |Q(a)| = 1 / (1 + a)`, to whose root, `(sqrt(3) - 1) / 2`, what errs in Q is led
    back; unweighed by `|Q|` it would be 1 / 4.
    """
    policy, critics = PlainPolicy(SHAPE, seed=seed), Critics(SHAPE, seed=seed + 100)
    options = Td3BcOptions(alpha=1.0, learning_rate=3e-3)
    learner = Td3Bc(policy, critics, options, total_steps=300, seed=seed)
    for step in range(300):
        batch = rows(seed=1000 * seed + step, spread=0.6, n=256)
        learner([replace(batch, rewards=(1 + batch.actions[:, 0]) / 2)])
    assert acts(learner).mean().item() == pytest.approx((math.sqrt(3) - 1) / 2, abs=0.05)


def test_the_policy_of_td3_bc_moves_every_other_step():
    learner, moved = td3_bc(), []
    for step in range(4):
        before = [weight.clone() for weight in learner.policy.parameters()]
        learner([rows(seed=step)])
        pairs = zip(before, learner.policy.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))
    assert moved == [False, True, False, True]


def test_caution_lowers_what_was_not_done():
    """All actions are worth 0 in truth; those of the log lie within 0.2 of 0."""
    learners = [soft(), soft(caution=conservative(weight=0.3, draws=4))]
    values = []
    for learner in learners:
        trained(learner, 120, spread=0.2, worth=0.0)
        seen = rows(seed=999).observations
        done, undone = (
            learner.critics(seen, torch.full((64, 1), action)).mean() for action in (0.0, 0.9)
        )
        values.append((done - undone).item())
    assert abs(values[0]) < 0.3 and values[1] > 0.5


def ensemble(deviation):
    """Members that differ where `deviation` is not 0."""
    options = DynamicsOptions(2, 1, members=4, elites=3, hidden=8, layers=1)
    dynamics = Dynamics(options, seed=0)
    targets = deviation * torch.randn(20, 3, generator=ops.generator(1))
    dynamics.fit_scales(rows(n=20).observations, rows(n=20).actions, targets)
    return dynamics


def test_doubt_is_of_imagined_rows_and_of_members_that_differ():
    batch, imagined = rows(n=6), rows(n=6, imagined=True)
    mixed = Rows(
        **{name: torch.cat([column, vars(imagined)[name]]) for name, column in vars(batch).items()}
    )
    learner = soft()
    doubts = inconsistent(ensemble(5.0), weight=2.0)(learner, mixed)
    assert (doubts[:6] == 0).all() and (doubts[6:] > 1e-4).all()
    with torch.no_grad():  # a policy that always does the same
        learner.policy.network.weights[-1].zero_()
        learner.policy.network.biases[-1].copy_(torch.tensor([20.0, -20.0]))
    assert (inconsistent(ensemble(0.0), weight=2.0)(learner, mixed) < 1e-4).all()
    assert (inconsistent(ensemble(5.0), weight=2.0)(learner, batch) == 0).all()


def test_doubt_is_of_actions_that_are_drawn():
    """A policy whose middle is worth the same everywhere, and whose draws are not."""
    learner, batch = soft(), rows(n=64, imagined=True)
    found = [inconsistent(ensemble(0.0), weight=1.0)(learner, batch) for _ in range(2)]
    assert not torch.equal(*found)  # of one mind on what follows, and not on what is done there
    with torch.no_grad():
        for weight in learner.policy.parameters():
            weight.zero_()
        learner.policy.network.biases[-1][..., 1] = -20.0  # draws that are all but the middle
    middle = inconsistent(ensemble(0.0), weight=1.0)(learner, batch)
    assert middle.mean() < 0.1 * found[0].mean()


def test_a_temperature_keeps_to_its_most():
    learner = soft()
    learner._log_temperature.data.fill_(2.0)
    assert learner.temperature == pytest.approx(math.exp(2.0))
    capped = SoftActorCritic(
        learner.policy, learner.critics, replace(FAST, max_temperature=1.0), total_steps=9, seed=0
    )
    capped._log_temperature.data.fill_(2.0)
    assert capped.temperature == 1.0


def test_doubt_lowers_what_is_believed():
    """Each row earns 0; with a doubt of 1 it is believed to be worth -1."""
    for doubt in (0.0, 1.0):
        learner = soft(doubt=lambda learner, batch, of=doubt: torch.full_like(batch.rewards, of))
        trained(learner, 120, worth=0.0)
        values = learner.critics(rows(seed=999).observations, rows(seed=999).actions)
        assert values.mean().item() == pytest.approx(-doubt, abs=0.1)


@pytest.mark.parametrize(
    "made",
    [
        lambda: soft(caution=conservative(weight=0.3, draws=2)),
        td3_bc,
        lambda: Cloning(PlainPolicy(SHAPE, seed=0), learning_rate=1e-3, total_steps=9),
    ],
)
def test_a_learner_that_is_left_comes_back_to_the_same_bits(made):
    whole, first, again = made(), made(), made()
    trained(whole, 9)
    for step in range(5):
        first([rows(seed=step)])
    again.load_state(copy.deepcopy(first.state()))
    for step in range(5, 9):
        again([rows(seed=step)])
    for name, value in whole.state().items():
        found = again.state()[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value

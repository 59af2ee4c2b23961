"""MOREC at the level of policies: what one learns in a world of Pendulum, by how steps are chosen.

One world for each seed, learned from the log of a policy that has learned by half; in it a policy
for each arm, from the same start, by MOPO. Gymnasium is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from melior import ops
from melior.claims.claim import Measured
from melior.claims.networks import side_by_side
from melior.data.control import Transitions
from melior.envs.control import collect, lives, never_over, returns, sizes
from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_fitting import FittingOptions, fit_dynamics
from melior.models.control_policies import Critics, GaussianPolicy, PolicyOptions
from melior.rewards.control_adversary import AdversaryOptions, learn_reward
from melior.stages.control.imagination import FilterName, imagination
from melior.stages.control.learners import ActorCriticOptions, SoftActorCritic
from melior.stages.control.online import Online, OnlineOptions
from melior.stages.control.options import ImagineOptions
from melior.stages.control.reality import reality
from melior.stages.control.replay import NO_FLOOR, Floor, MixedBatches, Mixture
from melior.stages.control.world import World
from melior.training.loop import fit

TASK: Final = "Pendulum-v1"
N_SEEDS = 3
"""Of the claim's: each takes minutes."""
LEARNED = 3000
"""Steps in the task of who is logged: about half way."""
N_LOGGED, BATCH, EPISODES, JUDGED = 10_000, 256, 50, 7_000_000
DISCOUNT: Final = 0.99
IMAGINE = ImagineOptions(horizon=50, starts=200, every=500)


@dataclass(frozen=True)
class Arm:
    """How a step is taken, and what rewards are counted from."""

    filter: FilterName
    threshold: float | None
    """Below which a roll-out is stopped; none is the one that stops few of the log's own stretches
    as long as roll-outs."""
    has_floor: bool
    """Rewards are counted from the log's lowest."""


ARMS: Final = {
    "none": Arm("none", 0.0, has_floor=False),
    "none, from the floor": Arm("none", 0.0, has_floor=True),
    "choice alone": Arm("softmax", 0.0, has_floor=False),
    "filter": Arm("softmax", IMAGINE.threshold, has_floor=True),
    "sparing filter": Arm("softmax", None, has_floor=True),
}
RETURN = "Pendulum: return"


def policies(seeds: Sequence[int], steps: int) -> Measured:
    """Return the return of each arm's policy, and of the log, one seed after another."""
    return side_by_side([_policies(seed, steps) for seed in seeds[:N_SEEDS]])


def _policies(seed: int, steps: int) -> dict[str, dict[str, float]]:
    logged = _half_learned(seed, min(LEARNED, 1200 + 2 * steps))
    shape = DynamicsOptions(*sizes(TASK), hidden=64, layers=2)
    dynamics = Dynamics(shape, seed=seed)
    fit_dynamics(dynamics, logged, FittingOptions(max_epochs=min(30, steps)), seed=seed)
    adversary = AdversaryOptions(steps=min(1000, 300 + 10 * steps), spread=2)
    world = World(dynamics, learn_reward(dynamics, logged, adversary, seed=seed))
    found = {"log": {RETURN: float(logged.whole_returns().mean())}}
    for arm in ARMS:
        policy = _learned(arm, world, logged, seed=seed, steps=steps)
        lived = returns(TASK, policy.act, episodes=EPISODES, seed=JUDGED)
        found[arm] = {RETURN: float(lived.mean())}
    return found


def _half_learned(seed: int, steps: int) -> Transitions:
    """Log who has learned in the task for so many steps, by soft actor-critic."""
    shape, options = PolicyOptions(*sizes(TASK), hidden=32), OnlineOptions(steps, hidden=32)
    with lives(TASK, copies=options.copies, seed=seed) as world:
        learner = Online(world, shape, options, seed=seed)
        fit(learner, learner.batches())
    generator = ops.generator(ops.stream(seed, "log"))
    return collect(
        TASK, lambda seen: learner.policy.draw(seen, generator=generator)[0],
        steps=N_LOGGED, copies=options.copies, seed=seed + 1000,
    )  # fmt: skip


def _learned(
    arm: str, world: World, logged: Transitions, *, seed: int, steps: int
) -> GaussianPolicy:
    """Return the policy that an arm has learned in the world, by MOPO."""
    how = ARMS[arm]
    threshold = how.threshold
    if threshold is None:
        threshold = reality(world, logged, IMAGINE).sparing
    options = replace(IMAGINE, threshold=threshold)
    shape = PolicyOptions(*sizes(TASK), hidden=64)
    policy, critics = GaussianPolicy(shape, seed=seed), Critics(shape, seed=seed)
    for scale in (policy.scale, critics.scale):
        scale.standardise(torch.from_numpy(logged.observations))
    learner = SoftActorCritic(
        policy, critics,
        ActorCriticOptions(DISCOUNT, actor_rate=1e-3, critic_rate=1e-3, max_temperature=1.0),
        total_steps=steps, seed=seed,
    )  # fmt: skip
    imagine = imagination(
        world, policy, logged, transition_filter=how.filter, is_over=never_over, penalty=0.5,
        options=options, seed=seed,
    )  # fmt: skip
    floor = Floor.of(logged, discount=DISCOUNT) if how.has_floor else NO_FLOOR
    mixture = Mixture(BATCH, round(options.real_share * BATCH), options.every, options.keep)
    batches = MixedBatches(
        logged,
        imagine,
        mixture,
        describe=lambda _: {},
        total=steps,
        seed=seed,
        floor=floor,
    )
    fit(learner, batches())
    return policy

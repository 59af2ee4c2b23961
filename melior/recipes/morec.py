"""MOREC: offline reinforcement learning in a learned world that knows how real it is.

Luo, Xu, Cao, Yu 2023, arXiv 2310.05422: dynamics are fitted to a log, discriminators of all
iterations of an adversary averaged to a reward of dynamics, and roll-outs of the policy filtered by
it. The policy learns by MOPO or by MOBILE, with or without the filter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from melior.checks import in_range, not_read
from melior.stages.control.options import (
    OF_REWARD,
    ImagineOptions,
    LogOptions,
    NetworkOptions,
    TrainOptions,
    WorldOptions,
    as_learned,
)

if TYPE_CHECKING:
    from melior.envs.control import Termination
    from melior.models.control_policies import Critics, GaussianPolicy
    from melior.stages.control.imagination import Imagination
    from melior.stages.control.inputs import Inputs
    from melior.stages.control.learn import Student
    from melior.stages.control.learners import SoftActorCritic
    from melior.stages.control.phases import Phases
    from melior.stages.control.replay import Floor, MixedBatches
    from melior.stages.control.world import World

PAPER = "Luo, Xu, Cao, Yu 2023, arXiv 2310.05422"


@dataclass(frozen=True)
class Config:
    """Learn to act from logged transitions, in a world that is learned from them."""

    log: LogOptions
    train: TrainOptions
    world: WorldOptions = WorldOptions()
    imagine: ImagineOptions = ImagineOptions()
    network: NetworkOptions = NetworkOptions()
    base: Literal["mopo", "mobile"] = "mopo"
    """Who is pessimistic: MOPO lowers rewards where the ensemble is unsure, MOBILE targets where
    its members disagree on what follows is worth."""
    filter: Literal["softmax", "best", "none"] = "softmax"
    """How one of the candidates is chosen by the dynamics reward; `none` takes any, and is MOPO or
    MOBILE as they were. Tuned per task by the authors, as the penalty is."""
    penalty: float = 0.5
    """Weight of the pessimism; the authors: 0.1 to 20, per task."""
    discount: float = 0.99
    actor_rate: float = 1e-4
    critic_rate: float = 3e-4
    entropy_in_target: bool = True
    """Without it what follows is worth its value alone; MOBILE's release leaves it out in some
    tasks."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("penalty", self.penalty, 0)
        in_range("discount", self.discount, 0, 1)
        in_range("actor_rate", self.actor_rate, 0, above=True)
        in_range("critic_rate", self.critic_rate, 0, above=True)
        if self.base == "mobile":
            of = " of the world" if self.world.world else ""
            in_range(f"elites{of}", self.world.elites, 2)
        if self.filter == "none":
            where = "with --filter none"
            not_read(self.imagine, ("threshold", "temperature", "on_reject"), where)
            if not self.world.world:  # else they are what that world was learned by
                not_read(self.world, OF_REWARD, where)
        if self.filter == "best":
            not_read(self.imagine, ("temperature",), "with --filter best")

    @classmethod
    def tiny(cls, dataset: str, out: str) -> Config:
        """Return a config that runs in seconds."""
        return cls(
            LogOptions(dataset),
            TrainOptions.tiny(out),
            WorldOptions(members=3, elites=2, dynamics_hidden=16, dynamics_layers=2, max_epochs=10,
                         reward_steps=40, reward_hidden=16, snapshot_every=4),
            ImagineOptions(horizon=5, starts=20, every=30),
            NetworkOptions(hidden=16),
        )  # fmt: skip


def run(config: Config) -> None:
    """Learn the world, learn to act in it, judge in the real task, save and report."""
    from melior.report.terminal import present
    from melior.stages.control.inputs import read_inputs, rule_of
    from melior.stages.control.learn import ControlPlan, learn

    config = replace(config, world=as_learned(config.world))
    inputs = read_inputs(config.log, config.train)
    _check_bound(config, inputs)
    is_over, earned = rule_of(config.log, inputs), _reward_of(config, inputs)
    floor = _floor(config, inputs)
    plan = ControlPlan("morec", PAPER, config.log, config.train, config)
    present([learn(plan, inputs, lambda phases: _student(
        config, inputs, is_over, phases=phases, earned=earned, floor=floor
    ))])  # fmt: skip


def _check_bound(config: Config, inputs: Inputs) -> None:
    """Refuse a bound within which the log itself does not lie: the policy would learn elsewhere."""
    logged, bound = inputs.logged, config.imagine.bound
    largest = float(max(abs(logged.observations).max(), abs(logged.next_observations).max()))
    if largest >= bound:
        raise ValueError(
            f"{config.log.dataset}: bound must be above the log's observations, {largest:.6g}; "
            f"found {bound:g}; give --bound {2 * largest:.2g}"
        )


def _reward_of(config: Config, inputs: Inputs) -> str:
    """Say what rewards imagined steps have, once a true one has been held against the log."""
    from melior.envs.control import check_reward, named_function

    named = config.imagine.true_reward
    if not named:
        return "learned"
    off = check_reward(named_function(named, "true_reward"), inputs.logged)
    return f"the true one, {named}, {off:.3g} off the log's on average"


def _student(
    config: Config,
    inputs: Inputs,
    is_over: Termination,
    *,
    phases: Phases,
    earned: str,
    floor: Floor,
) -> tuple[Student, World]:
    """Learn the world, and put together who learns to act in it."""
    from melior.models.control_policies import Critics, GaussianPolicy
    from melior.stages.control.learn import Student, policy_options, standardise
    from melior.stages.control.reality import note_reality
    from melior.stages.control.world import learn_world
    from melior.training.checkpoint import Generators

    _note_rewards(config, phases, earned=earned, floor=floor)
    seed, is_filtered = config.train.seed, config.filter != "none"
    world = learn_world(phases, inputs, config.world, with_reward=is_filtered)
    facts = {"reward of imagined steps": earned}
    if is_filtered:
        facts |= note_reality(phases, world, inputs.logged, config.imagine)
    shape = policy_options(inputs, config.network)
    policy, critics = GaussianPolicy(shape, seed=seed), Critics(shape, seed=seed)
    standardise(inputs, (policy.scale, critics.scale))
    learner = _learner(config, policy, critics, world)
    imagine, batches = _batches(config, inputs, is_over, world=world, policy=policy, floor=floor)
    student = Student(
        policy, learner, batches,
        {"batches": batches, "imagination": Generators(imagine.generators)},
        lambda: dict(batches.metrics), facts,
    )  # fmt: skip
    return student, world


def _note_rewards(config: Config, phases: Phases, *, earned: str, floor: Floor) -> None:
    """Say what imagined steps earn, and from where it is counted."""
    if config.imagine.true_reward:
        phases.run.note(f"reward of imagined steps: {earned}, and not one learned from the log")
    if floor.reward < 0:
        phases.run.note(
            f"rewards are counted from the log's lowest, {floor.reward:.4g}, so that none of its "
            "steps is worse than a rejected one, after which nothing follows; values are higher by "
            f"{-floor.reward / (1 - floor.discount):.4g}"
        )


def _learner(
    config: Config, policy: GaussianPolicy, critics: Critics, world: World
) -> SoftActorCritic:
    """Return soft actor-critic; MOBILE's doubts what the elites disagree on."""
    from melior.stages.control.learners import (
        ActorCriticOptions,
        SoftActorCritic,
        inconsistent,
        no_doubt,
    )

    options = ActorCriticOptions(
        config.discount, actor_rate=config.actor_rate, critic_rate=config.critic_rate,
        max_temperature=1.0, entropy_in_target=config.entropy_in_target,
    )  # fmt: skip
    is_mobile = config.base == "mobile"
    doubt = inconsistent(world.dynamics, weight=config.penalty) if is_mobile else no_doubt
    return SoftActorCritic(
        policy, critics, options, total_steps=config.train.steps, seed=config.train.seed,
        doubt=doubt,
    )  # fmt: skip


def _batches(
    config: Config,
    inputs: Inputs,
    is_over: Termination,
    *,
    world: World,
    policy: GaussianPolicy,
    floor: Floor,
) -> tuple[Imagination, MixedBatches]:
    """Return how the policy is rolled out, and batches of that and of the log."""
    from melior.stages.control.imagination import described, imagination
    from melior.stages.control.replay import MixedBatches, Mixture

    train, options = config.train, config.imagine
    imagine = imagination(
        world, policy, inputs.logged, transition_filter=config.filter, is_over=is_over,
        penalty=config.penalty if config.base == "mopo" else 0.0, options=options, seed=train.seed,
    )  # fmt: skip
    n_real = round(options.real_share * train.batch_size)
    mixture = Mixture(train.batch_size, n_real, options.every, options.keep)
    batches = MixedBatches(
        inputs.logged, imagine, mixture, total=train.steps, seed=train.seed,
        describe=lambda found: described(found, world.dynamics.elites),
        floor=floor,
    )  # fmt: skip
    return imagine, batches


def _floor(config: Config, inputs: Inputs) -> Floor:
    """Return what rewards are counted from, where a rejected step is a terminal."""
    from melior.rewards.control import LEAST
    from melior.stages.control.replay import NO_FLOOR, Floor

    options = config.imagine
    if config.filter == "none" or options.on_reject != "terminal" or options.threshold <= LEAST:
        return NO_FLOOR
    return Floor.of(inputs.logged, discount=config.discount)

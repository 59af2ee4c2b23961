"""CQL: soft actor-critic whose critics are held down on what was never done.

Kumar, Zhou, Tucker, Levine 2020, arXiv 2006.04779: the critics' loss and how far values of drawn
actions stand above those of logged ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from melior.checks import in_range
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions

if TYPE_CHECKING:
    from melior.stages.control.learners import ActorCriticOptions

PAPER = "Kumar, Zhou, Tucker, Levine 2020, arXiv 2006.04779"


@dataclass(frozen=True)
class Config:
    """Learn to act from logged transitions, with critics that are cautious off them."""

    log: LogOptions
    train: TrainOptions
    network: NetworkOptions = NetworkOptions()
    conservatism: float = 2.5
    """Weight of the caution beside half a squared distance (eq. 4); the authors' code has 5 in
    locomotion, beside the whole one, which is the same."""
    draws: int = 10
    """Actions drawn of each of three kinds."""
    discount: float = 0.99
    actor_rate: float = 1e-4
    critic_rate: float = 3e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("conservatism", self.conservatism, 0)
        in_range("draws", self.draws, 1)
        in_range("discount", self.discount, 0, 1)
        in_range("actor_rate", self.actor_rate, 0, above=True)
        in_range("critic_rate", self.critic_rate, 0, above=True)

    @classmethod
    def tiny(cls, dataset: str, out: str) -> Config:
        """Return a config that runs in seconds."""
        return cls(LogOptions(dataset), TrainOptions.tiny(out), NetworkOptions(hidden=16))


def run(config: Config) -> None:
    """Learn to act, judge in the real task, save and report."""
    from melior.models.control_policies import Critics, GaussianPolicy
    from melior.report.terminal import present
    from melior.stages.control.inputs import read_inputs
    from melior.stages.control.learn import ControlPlan, learn_of_log, policy_options, standardise
    from melior.stages.control.learners import SoftActorCritic, conservative

    inputs, train = read_inputs(config.log, config.train), config.train
    shape = policy_options(inputs, config.network)
    policy, critics = GaussianPolicy(shape, seed=train.seed), Critics(shape, seed=train.seed)
    standardise(inputs, (policy.scale, critics.scale))
    learner = SoftActorCritic(
        policy, critics, _options(config), total_steps=train.steps, seed=train.seed,
        caution=conservative(weight=config.conservatism, draws=config.draws),
    )  # fmt: skip
    plan = ControlPlan("cql", PAPER, config.log, train, config)
    present([learn_of_log(plan, inputs, policy, learner)])


def _options(config: Config) -> ActorCriticOptions:
    """Return the authors' settings: their code's targets are without entropy."""
    from melior.stages.control.learners import ActorCriticOptions

    return ActorCriticOptions(
        config.discount, actor_rate=config.actor_rate, critic_rate=config.critic_rate,
        actor_schedule="constant", entropy_in_target=False,
    )  # fmt: skip

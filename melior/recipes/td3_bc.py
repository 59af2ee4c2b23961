"""TD3+BC: value-based learning that stays close to what was done.

Fujimoto, Gu 2021, arXiv 2106.06860: the actor's loss of TD3 and the squared distance to the logged
action, weighed by the size of the values.
"""

from __future__ import annotations

from dataclasses import dataclass

from melior.checks import in_range
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions

PAPER = "Fujimoto, Gu 2021, arXiv 2106.06860"


@dataclass(frozen=True)
class Config:
    """Learn to act from logged transitions, close to what was done."""

    log: LogOptions
    train: TrainOptions
    network: NetworkOptions = NetworkOptions()
    alpha: float = 2.5
    """Weight of value beside closeness; the authors'."""
    discount: float = 0.99
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("alpha", self.alpha, 0)
        in_range("discount", self.discount, 0, 1)
        in_range("learning_rate", self.learning_rate, 0, above=True)

    @classmethod
    def tiny(cls, dataset: str, out: str) -> Config:
        """Return a config that runs in seconds."""
        return cls(LogOptions(dataset), TrainOptions.tiny(out), NetworkOptions(hidden=16))


def run(config: Config) -> None:
    """Learn to act, judge in the real task, save and report."""
    from melior.models.control_policies import Critics, PlainPolicy
    from melior.report.terminal import present
    from melior.stages.control.inputs import read_inputs
    from melior.stages.control.learn import ControlPlan, learn_of_log, policy_options, standardise
    from melior.stages.control.learners import Td3Bc, Td3BcOptions

    inputs, train = read_inputs(config.log, config.train), config.train
    shape = policy_options(inputs, config.network)
    policy, critics = PlainPolicy(shape, seed=train.seed), Critics(shape, seed=train.seed)
    standardise(inputs, (policy.scale, critics.scale))
    options = Td3BcOptions(
        alpha=config.alpha, discount=config.discount, learning_rate=config.learning_rate
    )
    learner = Td3Bc(policy, critics, options, total_steps=train.steps, seed=train.seed)
    plan = ControlPlan("td3-bc", PAPER, config.log, train, config)
    present([learn_of_log(plan, inputs, policy, learner)])

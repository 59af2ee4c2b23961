"""Behaviour cloning: a policy that does what was done (Pomerleau 1991)."""

from __future__ import annotations

from dataclasses import dataclass

from melior.checks import in_range
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions

PAPER = "Pomerleau 1991, Neural Computation 3(1)"


@dataclass(frozen=True)
class Config:
    """Learn to do what was done in logged transitions: the baseline of all others."""

    log: LogOptions
    train: TrainOptions
    network: NetworkOptions = NetworkOptions()
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Check the range."""
        in_range("learning_rate", self.learning_rate, 0, above=True)

    @classmethod
    def tiny(cls, dataset: str, out: str) -> Config:
        """Return a config that runs in seconds."""
        return cls(LogOptions(dataset), TrainOptions.tiny(out), NetworkOptions(hidden=16))


def run(config: Config) -> None:
    """Learn to act, judge in the real task, save and report."""
    from melior.models.control_policies import PlainPolicy
    from melior.report.terminal import present
    from melior.stages.control.inputs import read_inputs
    from melior.stages.control.learn import ControlPlan, learn_of_log, policy_options, standardise
    from melior.stages.control.learners import Cloning

    inputs, train = read_inputs(config.log, config.train), config.train
    policy = PlainPolicy(policy_options(inputs, config.network), seed=train.seed)
    standardise(inputs, [policy.scale])
    learner = Cloning(policy, learning_rate=config.learning_rate, total_steps=train.steps)
    plan = ControlPlan("cloning", PAPER, config.log, train, config)
    present([learn_of_log(plan, inputs, policy, learner)])

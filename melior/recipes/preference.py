"""Learn from comparisons in one stage: the config and the run of every objective."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import ClassVar

from melior.objectives.objective import Objective
from melior.objectives.table import objective_kind
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs


@dataclass(frozen=True)
class Config:
    """Learn from comparisons."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    objective: Objective
    optim: OptimConfig = OptimConfig()
    name: ClassVar[str]
    """The objective's, which is the command's."""


@cache
def config_of(name: str) -> type[Config]:
    """Return the config of an objective: its options, with its defaults, on one level."""
    kind = objective_kind(name)
    optim = OptimConfig(learning_rate=kind.learning_rate)
    own = [
        ("objective", kind, field(default=kind())),
        ("optim", OptimConfig, field(default=optim)),
    ]
    space = {"name": name, "__doc__": kind.__doc__, "__module__": __name__}
    return make_dataclass(
        f"{kind.__name__}Config", own, bases=(Config,), frozen=True, namespace=space
    )


def tiny(name: str, model: str, data: str, out: str) -> Config:
    """Return a config that runs in seconds on a tiny model."""
    return config_of(name)(
        ModelOptions(model=model, dtype="fp32"),
        DataOptions(data=(data,), n_samples=2),
        LoopOptions(out=out, epochs=4, batch_size=8, save_steps=4),
        objective_kind(name)(),
        OptimConfig(learning_rate=1e-2),
    )


def run(config: Config) -> None:
    """Train, judge, save and report."""
    objective = config.objective
    check_inputs(config.model, config.data, config.loop, holds=objective.data)
    from melior.report.terminal import present
    from melior.stages.learn import Plan, learn

    parts = (config.model, config.data, config.optim, config.loop)
    plan = Plan(config.name, objective.paper, objective.method(), *parts, config)
    present([learn(plan)])

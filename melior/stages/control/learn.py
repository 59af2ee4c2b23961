"""The policy of a run: it learns from batches, is judged in the real task, and is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from melior.config import config_to_dict
from melior.envs.control import Act, returns
from melior.evaluation.control import normalised
from melior.models.control import Scale
from melior.models.control_policies import GaussianPolicy, PlainPolicy, PolicyOptions
from melior.records import Metrics
from melior.stages.control.inputs import Inputs, write_inputs
from melior.stages.control.judge import write_verdict
from melior.stages.control.learners import Rows
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions
from melior.stages.control.phases import Phases
from melior.stages.control.replay import LogBatches, logged_rows
from melior.stages.control.world import World
from melior.training.checkpoint import Stateful
from melior.training.hooks import every
from melior.training.loop import Hook
from melior.training.run import Run, read_rows

EVALUATION_SEED = 1_000_000
"""Of the episodes in which policies are judged: the same at each judgement and in each run."""


@runtime_checkable
class Learner(Stateful, Protocol):
    """Whatever learns to act, step by step."""

    def __call__(self, batch: Sequence[Rows], /) -> Metrics:
        """Learn from a batch."""


@dataclass(frozen=True)
class Student:
    """A policy, what teaches it, and where its batches come from."""

    policy: GaussianPolicy | PlainPolicy
    learner: Learner
    batches: Callable[[], Iterator[Sequence[Rows]]]
    parts: dict[str, Stateful]
    """What batches depend on, by name."""
    metrics: Callable[[], Metrics] = dict
    """Numbers of where its batches come from, written with each judgement."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the report must say of it."""


@dataclass(frozen=True)
class ControlPlan:
    """All that a run of control needs to know, as values."""

    recipe: str
    paper: str
    log: LogOptions
    train: TrainOptions
    config: object
    """The recipe's dataclass, to be written down."""


def learn(
    plan: ControlPlan,
    inputs: Inputs,
    student: Callable[[Phases], tuple[Student, World | None]],
) -> Path:
    """Teach a policy and prove what came of it; return the run's folder.

    Args:
        plan: what is run.
        inputs: the log, checked.
        student: makes who learns, once the phases before it are done; with the world that it
            imagines in, if there is one.
    """
    train = plan.train
    with Run.create(
        train.out, plan.recipe, plan.config, sys.argv, paper=plan.paper, resume=train.resume,
        overwrite=train.overwrite, allow_changes=train.allow_changes, report_to=train.report_to,
    ) as run:  # fmt: skip
        write_inputs(run.folder, inputs, plan.log, train)
        about = {"options": config_to_dict(plan.config), "data": inputs.sha256}
        phases = Phases(run, train, about)
        who, world = student(phases)
        before = phases.taken
        _teach(phases, inputs, who)
        who.policy.save(run.folder / "model" / "policy")
        write_verdict(
            run.folder, inputs, who.policy, world, train=train, before=before, facts=who.facts
        )
    return run.folder


def learn_of_log(
    plan: ControlPlan, inputs: Inputs, policy: GaussianPolicy | PlainPolicy, learner: Learner
) -> Path:
    """Teach a policy by nothing but a log, and prove what came of it; return the run's folder."""
    train = plan.train
    batches = LogBatches(
        logged_rows(inputs.logged), size=train.batch_size, total=train.steps, seed=train.seed
    )
    student = Student(policy, learner, batches, {"batches": batches})
    return learn(plan, inputs, lambda _: (student, None))


def policy_options(inputs: Inputs, shape: NetworkOptions) -> PolicyOptions:
    """Return what policies and critics of a log are made from."""
    widths = inputs.logged.observations.shape[1], inputs.logged.actions.shape[1]
    return PolicyOptions(*widths, hidden=shape.hidden, layers=shape.layers)


def standardise(inputs: Inputs, scales: Iterable[Scale]) -> None:
    """Let networks read observations in the log's deviations."""
    observations = torch.from_numpy(inputs.logged.observations)
    for scale in scales:
        scale.standardise(observations)


def _teach(phases: Phases, inputs: Inputs, who: Student) -> None:
    train, before = phases.train, phases.taken

    def judge(step: int) -> None:
        found = who.metrics()
        if train.eval_episodes:
            found |= judged(inputs, who.policy.act, episodes=train.eval_episodes)
        if found:
            phases.run.append(before + step, found)

    def hooks(start: int) -> Iterator[Hook]:
        if start == 0 and not _is_judged(phases.run.folder, before):
            judge(0)
        yield every(train.eval_steps, judge, last=train.steps)

    phases.fit(
        "policy", who.learner, who.batches, parts={"learner": who.learner, **who.parts},
        total=train.steps, hooks=hooks,
    )  # fmt: skip


def _is_judged(folder: Path, step: int) -> bool:
    """Say whether a judgement was written at a step: a run cut off before the first checkpoint."""
    return any(row["step"] == step and "eval_return" in row for row in read_rows(folder))


def judged(inputs: Inputs, act: Act, *, episodes: int) -> Metrics:
    """Return the mean return of a policy in the real task, and its normalised score if known."""
    found = returns(inputs.task, act, episodes=episodes, seed=EVALUATION_SEED)
    metrics = {"eval_return": float(found.mean())}
    if inputs.reference:
        metrics["eval_score"] = float(normalised(found, inputs.reference).mean())
    return metrics

"""Data sets of a task, of five kinds, by one learner: random, medium, medium-replay, and expert's.

Fu et al. 2020 (D4RL), arXiv 2004.07219: medium is a policy stopped at about a third of the
expert's score, medium-replay all that it has lived until then, medium-expert half of each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from melior import ops
from melior.data.control import Transitions
from melior.data.control_files import About, Logged, Reference, write_logged
from melior.envs.control import Act, collect, lives, returns, sizes
from melior.evaluation.control import normalised
from melior.models.control_policies import GaussianPolicy, PolicyOptions
from melior.records import Metrics
from melior.stages.control.judge import comparison
from melior.stages.control.online import Online, OnlineOptions
from melior.training.checkpoint import State, under
from melior.training.options import StepOptions
from melior.training.run import Run, write_json
from melior.training.steps import opened, take_steps

PAPER = "Fu et al. 2020, arXiv 2004.07219"
KINDS = ("random", "medium", "medium-replay", "expert", "medium-expert")
EPISODES, SEED = 20, 3_000_000
"""Episodes by which the policies on the way are told apart, and the seed of the first."""
FRESH, FRESH_SEED = 100, 3_500_000
"""Of the references: others than those by which the expert was chosen, which flatter it."""
_SEEDS = {"random": 4_000_000, "medium": 5_000_000, "expert": 6_000_000}


@dataclass(frozen=True)
class CollectPlan:
    """What is collected, as values."""

    task: str
    """As Gymnasium names it."""
    online: OnlineOptions
    rows: int
    """Transitions of each set but medium-replay, which has as many as were lived."""
    level: float
    """The share of the way from random to expert at which a policy is medium."""
    suffix: str
    """`.npz` or `.parquet`."""
    loop: StepOptions
    config: object
    """The command's dataclass, to be written down."""


@dataclass(frozen=True)
class Stage:
    """A policy as it was, and how well it did."""

    steps: int
    """In the task."""
    policy: GaussianPolicy
    mean: float
    """Return of its middle actions."""


@dataclass(frozen=True)
class Actors:
    """Who acts in the data sets."""

    drawn: Act
    """Actions drawn evenly."""
    medium: Stage
    expert: Stage


def collected(plan: CollectPlan) -> Path:
    """Teach a policy in a task, and write what it, its earlier self and nobody have done there.

    Returns:
        The run's folder, in which the data sets lie by their kinds.

    Raises:
        ValueError: nothing was learned.
    """
    shape = PolicyOptions(*sizes(plan.task), plan.online.hidden, plan.online.layers)
    seed, copies = plan.loop.seed, plan.online.copies
    with (
        opened("collect control", PAPER, plan.config, plan.loop) as run,
        lives(plan.task, copies=copies, seed=seed) as world,
    ):
        if plan.loop.overwrite:
            for kind in KINDS:
                _place(run, plan, kind).unlink(missing_ok=True)
        learner = Online(world, shape, plan.online, seed=seed)
        way = Way(plan.task, learner)
        take_steps(
            run, learner, learner.batches(), {"learner": learner, "way": way},
            config=plan.config, loop=plan.loop, judge=way,
        )  # fmt: skip
        _write(run, plan, way.stages, learner.lived())
    return run.folder


class Way:
    """Judges a policy while it learns, and keeps it as it was where it beat all before.

    The best is among these, and whoever was the first to reach a level below it.
    """

    def __init__(self, task: str, learner: Online) -> None:
        self._task, self._learner = task, learner
        self.stages: list[Stage] = []

    def __call__(self) -> Metrics:
        """Judge the policy as it is; before it has lived it is nobody's medium."""
        policy = self._learner.policy
        mean = float(returns(self._task, policy.act, episodes=EPISODES, seed=SEED).mean())
        if self._learner.steps and all(mean > stage.mean for stage in self.stages):
            self.stages.append(Stage(self._learner.steps, copy.deepcopy(policy), mean))
        return {"return": mean}

    def state(self) -> State:
        """Return the policies that were kept, each weight of all of them in one tensor."""
        if not self.stages:
            return {"stages": 0}
        state: State = {"stages": len(self.stages)}
        state["steps"] = torch.tensor([stage.steps for stage in self.stages])
        state["means"] = torch.tensor([stage.mean for stage in self.stages], dtype=torch.float64)
        kept = [stage.policy.state_dict() for stage in self.stages]
        return state | {
            f"policy/{name}": torch.stack([own[name] for own in kept]) for name in kept[0]
        }

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        weights = under("policy/", tensors)
        self.stages = []
        for place in range(int(state["stages"])):
            policy = copy.deepcopy(self._learner.policy)
            policy.load_state_dict({name: own[place] for name, own in weights.items()})
            steps, mean = int(tensors["steps"][place]), float(tensors["means"][place])
            self.stages.append(Stage(steps, policy, mean))


def _write(run: Run, plan: CollectPlan, stages: list[Stage], lived: Transitions) -> None:
    """Write all data sets, and what they hold."""
    drawn, expert = (
        _uniform(sizes(plan.task)[1], ops.generator(ops.stream(plan.loop.seed, "evenly"))),
        stages[-1],
    )
    at_random, at_best = (
        returns(plan.task, act, episodes=FRESH, seed=FRESH_SEED)
        for act in (drawn, expert.policy.act)
    )
    low, high = float(at_random.mean()), float(at_best.mean())
    if high <= low:
        raise ValueError(
            f"{plan.task}: a policy that is better than random actions, {low:.5g}, is needed; the "
            f"best reached {high:.5g} within {plan.online.steps} steps; raise --steps"
        )
    reference = Reference(low, high)
    scores = normalised(np.array([stage.mean for stage in stages]), reference)
    medium = stages[int(np.argmax(scores >= min(100 * plan.level, scores.max())))]
    sets = _sets(plan, Actors(drawn, medium, expert), lived)
    about = About(plan.task, reference, {
        "learner": "soft actor-critic", "seed": plan.loop.seed,
        "steps_of_medium": medium.steps, "steps_of_expert": expert.steps,
    })  # fmt: skip
    for kind, logged in sets.items():
        told = replace(about, facts={"kind": kind, **about.facts})
        write_logged(_place(run, plan, kind), Logged(logged, told))
    found = {kind: logged.whole_returns() for kind, logged in sets.items()}
    write_json(run.folder / "evaluation.json", {
        "title": f"Before: random actions. After: the expert. {FRESH} episodes of each, which "
                 "chose nobody",
        "comparisons": [comparison("return", at_random, at_best)],
        "tables": [_table(sets, found, reference)],
        "pictures": [{"kind": "dots", "title": "Returns of whole episodes in each data set",
                      "unit": "return", "values": {k: v.tolist() for k, v in found.items()}}],
        "facts": {"steps of the medium policy": medium.steps,
                  "steps of the expert": expert.steps},
    })  # fmt: skip


def _place(run: Run, plan: CollectPlan, kind: str) -> Path:
    return run.folder / f"{kind}{plan.suffix}"


def _sets(plan: CollectPlan, actors: Actors, lived: Transitions) -> dict[str, Transitions]:
    """Return what random actions, two policies and the way to the first have done."""
    seed, rows, copies = plan.loop.seed, plan.rows, plan.online.copies
    generator = ops.generator(ops.stream(seed, "logged actions"))

    def of(act: Act, kind: str) -> Transitions:
        return collect(plan.task, act, steps=rows, copies=copies, seed=_SEEDS[kind] + seed)

    def softly(stage: Stage) -> Act:
        return lambda seen: stage.policy.draw(seen, generator=generator)[0]

    sets = {"random": of(actors.drawn, "random"), "medium": of(softly(actors.medium), "medium")}
    sets["medium-replay"] = _first(lived, actors.medium.steps // copies, copies)
    sets["expert"] = of(softly(actors.expert), "expert")
    halves = [sets[kind].rows(slice(0, rows // 2)) for kind in ("medium", "expert")]
    sets["medium-expert"] = _joined([_ended(half) for half in halves])
    return sets


def _table(
    sets: Mapping[str, Transitions],
    found: Mapping[str, Float[np.ndarray, " e"]],
    reference: Reference,
) -> dict[str, Any]:
    rows = [
        [kind, len(sets[kind]), len(own), float(own.mean()),
         float(normalised(own, reference).mean())]
        for kind, own in found.items()
    ]  # fmt: skip
    return {
        "title": "Data sets",
        "columns": ["", "rows", "whole episodes", "mean return", "score"],
        "rows": rows,
        "note": f"Random actions, {reference.random:.5g}, are score 0; the expert's middle actions,"
                f" {reference.expert:.5g}, score 100.",
    }  # fmt: skip


def _first(lived: Transitions, each: int, copies: int) -> Transitions:
    """Return the first steps of each copy, whose last episodes are cut off there."""
    whole = len(lived) // copies
    parts = [lived.rows(slice(i * whole, i * whole + each)) for i in range(copies)]
    return _joined([_ended(part) for part in parts])


def _ended(part: Transitions) -> Transitions:
    timeouts = part.timeouts.copy()
    timeouts[-1] = not part.terminals[-1]
    return replace(part, timeouts=timeouts)


def _joined(parts: list[Transitions]) -> Transitions:
    names = vars(parts[0])
    return Transitions(
        **{name: np.concatenate([vars(part)[name] for part in parts]) for name in names}
    )


def _uniform(width: int, generator: torch.Generator) -> Act:
    def act(observations: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        return torch.empty(len(observations), width).uniform_(-1, 1, generator=generator)

    return act

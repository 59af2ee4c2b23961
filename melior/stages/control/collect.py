"""Data sets of a task, of five kinds, by one learner: random, medium, medium-replay, and expert's.

Fu et al. 2020 (D4RL), arXiv 2004.07219: medium is a policy stopped at about a third of the
expert's score, medium-replay all that it has lived until then, medium-expert half of each.
"""

from __future__ import annotations

import copy
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
from melior.stages.control.online import Online, OnlineOptions
from melior.training.hooks import Progress, every
from melior.training.loop import Hook, fit

KINDS = ("random", "medium", "medium-replay", "expert", "medium-expert")
EPISODES, SEED = 20, 3_000_000
"""Episodes by which a policy's return is told, and the seed of the first."""
_SEEDS = {"random": 4_000_000, "medium": 5_000_000, "expert": 6_000_000}


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


def collected(
    task: str,
    folder: Path,
    options: OnlineOptions,
    *,
    rows: int,
    level: float,
    judge_every: int,
    suffix: str,
    seed: int,
) -> dict[str, Any]:
    """Teach a policy in a task, and write what it, its earlier self and nobody have done there.

    Args:
        task: as Gymnasium names it.
        folder: where the data sets go, by their kinds.
        options: how the policy learns.
        rows: transitions of each set but medium-replay, which has as many as were lived.
        level: the share of the way from random to expert at which a policy is medium.
        judge_every: steps in the task between judgements.
        suffix: `.npz` or `.parquet`.
        seed: of all that is drawn.

    Raises:
        ValueError: nothing was learned.
    """
    way, lived = _taught(task, options, judge_every=judge_every, seed=seed)
    drawn = _uniform(sizes(task)[1], ops.generator(seed))
    at_random = float(returns(task, drawn, episodes=EPISODES, seed=SEED).mean())
    expert = max(way, key=lambda stage: stage.mean)
    if expert.mean <= at_random:
        raise ValueError(
            f"{task}: a policy that is better than random actions, {at_random:.5g}, is needed; the "
            f"best was {expert.mean:.5g} within {options.steps} steps; raise --steps"
        )
    reference = Reference(at_random, expert.mean)
    scores = normalised(np.array([stage.mean for stage in way]), reference)
    actors = Actors(drawn, way[int(np.argmax(scores >= 100 * level))], expert)
    sets = _sets(task, actors, lived, rows=rows, copies=options.copies, seed=seed)
    about = About(task, reference, {
        "learner": "soft actor-critic", "seed": seed,
        "steps_of_medium": actors.medium.steps, "steps_of_expert": expert.steps,
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    for kind, logged in sets.items():
        told = replace(about, facts={"kind": kind, **about.facts})
        write_logged(folder / f"{kind}{suffix}", Logged(logged, told))
        facts[kind] = _facts(logged, reference)
    return {"reference": reference, "sets": facts}


def _facts(logged: Transitions, reference: Reference) -> dict[str, float]:
    found = logged.whole_returns()
    score = float(normalised(np.array([found.mean()]), reference)[0])
    return {
        "rows": len(logged), "episodes": len(found), "return": float(found.mean()), "score": score,
    }  # fmt: skip


def _taught(
    task: str, options: OnlineOptions, *, judge_every: int, seed: int
) -> tuple[list[Stage], Transitions]:
    """Return a policy at each judgement, and all that was lived."""
    stages: list[Stage] = []
    shape = PolicyOptions(*sizes(task), options.hidden, options.layers)
    n_random = -(-options.random_steps // options.copies) * options.copies
    total = -(-options.steps // options.copies) * options.copies - n_random
    with (
        lives(task, copies=options.copies, seed=seed) as world,
        Progress(options.steps, start=options.random_steps) as progress,
    ):
        learner = Online(world, shape, options, seed=seed)

        def judge(step: int) -> None:
            policy = copy.deepcopy(learner.policy)
            found = returns(task, policy.act, episodes=EPISODES, seed=SEED)
            stages.append(Stage(n_random + step, policy, float(found.mean())))

        def show(step: int, metrics: Metrics) -> None:
            progress(n_random + step, {"reward": stages[-1].mean} if stages else {})

        hooks: list[Hook] = [every(judge_every, judge, last=total), show]
        fit(learner, learner.batches(), hooks=hooks)
        return stages, learner.lived()


def _sets(
    task: str, actors: Actors, lived: Transitions, *, rows: int, copies: int, seed: int
) -> dict[str, Transitions]:
    """Return what random actions, two policies and the way to the first have done."""
    generator = ops.generator(seed + 1)

    def of(act: Act, kind: str) -> Transitions:
        return collect(task, act, steps=rows, copies=copies, seed=_SEEDS[kind] + seed)

    def softly(stage: Stage) -> Act:
        return lambda seen: stage.policy.draw(seen, generator=generator)[0]

    sets = {"random": of(actors.drawn, "random"), "medium": of(softly(actors.medium), "medium")}
    sets["medium-replay"] = _first(lived, actors.medium.steps // copies, copies)
    sets["expert"] = of(softly(actors.expert), "expert")
    halves = [sets[kind].rows(slice(0, rows // 2)) for kind in ("medium", "expert")]
    sets["medium-expert"] = _joined([_ended(half) for half in halves])
    return sets


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

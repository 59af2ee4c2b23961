"""What came of a run: returns in the real task, and how far the learned world can be followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.control import Transitions
from melior.envs.control import Act, collect, returns
from melior.evaluation.compare import Interval
from melior.evaluation.control import gain, normalised
from melior.models.control import Scale
from melior.models.control_policies import Policy
from melior.sampling.control import Candidates, Filter, best, candidates, evenly
from melior.stages.control.inputs import Inputs
from melior.stages.control.options import TrainOptions
from melior.stages.control.world import World
from melior.training.run import read_rows, write_json

LAST = 10
"""Judgements whose mean is a run's score: never its best, never its last alone."""
EPISODES, SEED = 20, 2_000_000
"""Episodes of the final judgement, and the seed of the first: others than those of the curve."""
HORIZON, WINDOWS = 50, 64
"""How far the learned world is followed, and by how many stretches of a log."""
AROUND, PLACES, REACH = 32, 17, 4.0
"""Of the picture of the reward: logged rows, places to each side, deviations of a change."""
Follow = Callable[[Tensor, Tensor, Candidates], Float[Tensor, "n d"]]


@dataclass(frozen=True)
class Windows:
    """Stretches of episodes."""

    actions: Float[Tensor, "n t a"]
    observations: Float[Tensor, "n t+1 d"]
    """The one before each action, and the last."""


def write_verdict(
    folder: Path,
    inputs: Inputs,
    policy: Policy,
    world: World | None,
    *,
    train: TrainOptions,
    before: int,
    facts: Mapping[str, str],
) -> None:
    """Write `evaluation.json`: returns against the log's, and the world's errors.

    `before` is the step of the run at which the policy began to learn.
    """
    found: dict[str, Any] = {
        "title": "",
        "comparisons": [],
        "tables": [],
        "facts": dict(facts),
    }
    if train.eval_episodes:
        found["title"] = (
            f"Before: the episodes of the log. After: the policy, in {EPISODES} new ones"
        )
        lived = returns(inputs.task, policy.act, episodes=EPISODES, seed=SEED)
        found["comparisons"] = _comparisons(inputs, lived)
        found["tables"] = _scores(folder, inputs, before)
    if world is not None:
        found["world"] = world_facts(world, inputs, policy.act if train.eval_episodes else None)
    write_json(folder / "evaluation.json", found)


def world_facts(world: World, inputs: Inputs, act: Act | None) -> dict[str, Any]:
    """Return how far the world can be followed, by the log and by a policy, and its reward."""
    ways = {"the log's own actions": inputs.logged}
    if act is not None:
        ways["the policy's actions"] = collect(
            inputs.task, act, steps=8 * HORIZON * 4, copies=8, seed=SEED
        )
    errors = {
        name: found
        for name, logged in ways.items()
        if (found := errors_over_horizon(world, logged, inputs.logged))
    }
    return {"errors": errors, "reward": reward_around(world, inputs.logged)}


@torch.no_grad()
def errors_over_horizon(
    world: World, lived: Transitions, scale: Transitions
) -> dict[str, list[float]]:
    """Return how far off the world is after each step, as it is followed with real actions.

    The median, over starts, of the distance in deviations of the log's observations; by how what
    follows is taken from the candidates. Empty where no episode is long enough.
    """
    found: dict[str, list[float]] = {}
    stretches = windows(lived, HORIZON)
    if stretches.actions.shape[1] < 2:
        return found
    measure = Scale(scale.observations.shape[1])
    measure.standardise(torch.from_numpy(scale.observations))
    unit = torch.where(measure.width > 0, measure.width, 1.0)
    for name, follow in _ways(world).items():
        generator = ops.generator(0)
        state = stretches.observations[:, 0]
        found[name] = []
        for depth in range(stretches.actions.shape[1]):
            actions = stretches.actions[:, depth]
            drawn = candidates(
                world.dynamics, state, actions, draws=2, bound=torch.inf, generator=generator
            )
            state = follow(state, actions, drawn)
            off = ((state - stretches.observations[:, depth + 1]) / unit).norm(dim=-1)
            found[name].append(float(off.median()))
    return found


def windows(lived: Transitions, horizon: int) -> Windows:
    """Return stretches of episodes, evenly spread, as long as the longest and a horizon allow."""
    length = min(horizon, max(rows.stop - rows.start for rows in lived.episodes()))
    rows = np.stack(stretches(lived, length, shortest=length))
    first = lived.observations[rows[:, :1]]
    observations = np.concatenate([first, lived.next_observations[rows]], axis=1)
    return Windows(torch.from_numpy(lived.actions[rows]), torch.from_numpy(observations))


def stretches(
    lived: Transitions, horizon: int, *, shortest: int = 1
) -> list[Int[np.ndarray, " t"]]:
    """Return the rows of stretches of episodes, evenly spread; of a shorter episode all of it."""
    found = [
        np.arange(place, min(place + horizon, rows.stop))
        for rows in lived.episodes()
        for place in range(
            rows.start, max(rows.start, rows.stop - horizon) + 1, max(1, horizon // 2)
        )
    ]
    found = [rows for rows in found if len(rows) >= shortest]
    spread = np.linspace(0, len(found) - 1, min(WINDOWS, len(found))).round().astype(int)
    return [found[place] for place in spread]


@torch.no_grad()
def reward_around(world: World, logged: Transitions) -> dict[str, Any]:
    """Return the dynamics reward where what followed is moved along the first two numbers.

    The mean over logged rows; moved by so many deviations of the logged changes. A row of the
    result is a place along the second number, and a place in it one along the first.
    """
    width = logged.observations.shape[1]
    if width < 2 or world.reward is None:
        return {}
    places = torch.randperm(len(logged), generator=ops.generator(0))[:AROUND].numpy()
    rows = logged.rows(places)
    seen, acted, followed = map(
        torch.from_numpy, (rows.observations, rows.actions, rows.next_observations)
    )
    unit = torch.from_numpy(logged.next_observations - logged.observations).std(0, correction=0)
    reach = torch.linspace(-REACH, REACH, PLACES)
    table = []
    for up in reach:
        moved = followed[:, None, :].repeat(1, PLACES, 1)
        moved[:, :, 0] += reach * unit[0]
        moved[:, :, 1] += up * unit[1]
        many = (seen.repeat_interleave(PLACES, 0), acted.repeat_interleave(PLACES, 0))
        rewards = world.reward(*many, moved.flatten(0, 1)).view(-1, PLACES)
        table.append(rewards.mean(0).tolist())
    return {"places": reach.tolist(), "rewards": table}


def comparison(
    name: str, before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"]
) -> dict[str, Any]:
    """Return what a report draws of two policies' returns."""
    found: Interval = gain(before, after)
    return {
        "name": name, "unit": "", "before": float(before.mean()), "after": float(after.mean()),
        "difference": found.estimate, "low": found.low, "high": found.high,
        "confidence": found.confidence, "higher_is_better": True,
    }  # fmt: skip


def _comparisons(inputs: Inputs, lived: Float[np.ndarray, " n"]) -> list[dict[str, Any]]:
    logged = inputs.logged.whole_returns()
    rows = [comparison("return", logged, lived)]
    if inputs.reference:
        scores = (normalised(own, inputs.reference) for own in (logged, lived))
        rows.insert(0, comparison("normalised score", *scores))
    return rows


def _scores(folder: Path, inputs: Inputs, before: int) -> list[dict[str, Any]]:
    """Return the mean of the last judgements, which is what a run is reported by.

    Never that of the policy before it learned; no table where nothing else was judged, as in a run
    that learned with `--eval-episodes 0` and is judged only now that it is resumed.
    """
    judged = [
        row for row in read_rows(folder) if "eval_return" in row and int(row["step"]) > before
    ][-LAST:]
    if not judged:
        return []
    names = {"eval_return": "return", "eval_score": "normalised score"}
    rows = [
        [said, fmean(float(row[key]) for row in judged)]
        for key, said in names.items()
        if key in judged[-1]
    ]
    table = {
        "title": f"Mean of the last {len(judged)} judgements",
        "columns": ["", "mean"],
        "rows": rows,
        "note": f"Task {inputs.task}; references {_reference(inputs)}.",
    }
    return [table]


def _reference(inputs: Inputs) -> str:
    if inputs.reference is None:
        return "not known"
    return ", ".join(f"{name} {value:.5g}" for name, value in asdict(inputs.reference).items())


def _ways(world: World) -> Mapping[str, Follow]:
    """Return how what follows may be taken from the candidates."""

    def mean(seen: Tensor, acted: Tensor, drawn: Candidates) -> Tensor:
        return drawn.prediction.next_observations[world.dynamics.elites].mean(0)

    def picked(transition_filter: Filter) -> Follow:
        return lambda seen, acted, drawn: transition_filter(seen, acted, drawn).next_observations

    ways = {"any candidate": picked(evenly(generator=ops.generator(1)))}
    if world.reward is not None:
        ways["best by the dynamics reward"] = picked(Filter(world.reward, best, -torch.inf))
    return {**ways, "the elites' mean": mean}

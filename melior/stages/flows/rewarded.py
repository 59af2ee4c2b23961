"""A flow network that learns one reward from nothing, and rivals that look at it as often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.flow import FlowEnvironment, Trajectories
from melior.evaluation.pictures import against, over_plane
from melior.models.flow import FlowModel, policy_of, start_flow_model
from melior.models.flow_saved import ONE_REWARD, save_flows
from melior.options import OptimConfig
from melior.records import Metrics
from melior.rewards.flow import LogReward, checked
from melior.sampling.flow import Policy, evenly, sample
from melior.stages.flows.judge import (
    TOP,
    Finds,
    Truth,
    judged_by,
    listed,
    modes_of,
    of_samples,
    side_by_side,
)
from melior.stages.flows.named import load_environment, load_reward
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.stages.flows.rivals import back_and_forth, q_learning
from melior.stages.flows.scratch import rollouts
from melior.training.checkpoint import Generators
from melior.training.loop import descend
from melior.training.options import StepOptions
from melior.training.run import Run, read_rows, write_json
from melior.training.steps import opened, take_steps

Learned = Callable[
    [FlowEnvironment, FlowModel, LogReward, Trajectories], tuple[Float[Tensor, ""], Metrics]
]
"""From trajectories and what they are worth to a loss."""
TRIES = 1000
CURVE = 100
"""Points of a curve of the modes found."""


@dataclass(frozen=True)
class Rewarded:
    """All that learning one reward needs to know, as values."""

    recipe: str
    paper: str
    flow: FlowOptions
    reward: RewardOptions
    objective: Learned
    looks_ahead: bool
    """The objective asks for the reward of every state, so that each must be an object."""
    rivals: tuple[str, ...]
    """`mcmc`, `dqn`."""
    exploration: float
    width: int
    depth: int
    learns_backward: bool
    optim: OptimConfig
    loop: StepOptions
    config: object


@dataclass
class Task:
    """What is built, what it is worth, and how often that was asked."""

    env: FlowEnvironment
    log_reward: LogReward
    modes: Int[Tensor, "m d"]
    truth: Truth | None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Of each way: looks at the reward, and the modes built until then."""


def learn_reward(plan: Rewarded) -> Path:
    """Learn to sample a reward and judge what comes of it; return the run's folder."""
    plan.reward.check(plan.flow)
    env = load_environment(plan.flow)
    task = _task(plan, env)
    if plan.looks_ahead:
        _refuse_what_cannot_stop(env, plan.loop.seed)
    with opened(plan.recipe, plan.paper, plan.config, plan.loop) as run:
        model = start_flow_model(
            env, seed=plan.loop.seed, width=plan.width, depth=plan.depth,
            learns_backward=plan.learns_backward,
        )  # fmt: skip
        before = judged(task, policy_of(model, env), seed=plan.loop.seed)
        _learn(plan, run, task, model)
        nothing = env.start.new_zeros(0, len(env.start))
        save_flows(run.folder / "model", model, nothing, kind=ONE_REWARD, about=_about(plan))
        write_json(run.folder / "evaluation.json", _verdict(plan, run, task, model, before))
    return run.folder


def judged(task: Task, policy: Policy, *, seed: int) -> Metrics:
    """Return how well a policy samples the reward."""
    return judged_by(task.env, policy, task.log_reward, task.modes, truth=task.truth, seed=seed)


def _task(plan: Rewarded, env: FlowEnvironment) -> Task:
    log_reward, graph = checked(load_reward(plan.reward, plan.flow)), listed(env)
    if graph is None:
        generator = ops.generator(plan.loop.seed + 4)
        known = sample(env, evenly(env.allowed), TRIES, generator=generator).objects
    else:
        known = graph.states[graph.can_stop]
    modes = modes_of(known, log_reward, plan.reward.mode_share)
    return Task(env, log_reward, modes, Truth.of(graph, log_reward) if graph else None)


def _refuse_what_cannot_stop(env: FlowEnvironment, seed: int) -> None:
    walked = sample(env, evenly(env.allowed), TRIES, generator=ops.generator(seed))
    states = walked.states[walked.is_step]
    stuck = ~env.allowed(states)[:, -1]
    if stuck.any():
        raise ValueError(
            "objective fl-db asks for the reward of every state, so that each must be an object;"
            f" found {states[stuck][0].tolist()}, which is not; use db or subtb"
        )


def _learn(plan: Rewarded, run: Run, task: Task, model: FlowModel) -> None:
    loop, generator, finds = plan.loop, ops.generator(plan.loop.seed), Finds(task.modes)
    batches = rollouts(
        task.env, model,
        batch_size=loop.batch_size, exploration=plan.exploration, generator=generator,
    )  # fmt: skip
    step = descend(
        partial(plan.objective, task.env, model, task.log_reward),
        dict(model.named_parameters()), plan.optim, total_steps=max(1, loop.steps),
    )  # fmt: skip

    def counted(batch: Sequence[Trajectories]) -> Metrics:
        return step(batch) | finds([part.objects for part in batch])

    take_steps(
        run, counted, batches,
        {"step": step, "draws": Generators({"draws": generator}), "finds": finds},
        config=plan.config, loop=loop,
        judge=lambda: judged(task, policy_of(model, task.env), seed=loop.seed),
    )  # fmt: skip


def _verdict(
    plan: Rewarded, run: Run, task: Task, model: FlowModel, before: Metrics
) -> dict[str, Any]:
    """Return the run's `evaluation.json`, with the rivals at as many looks at the reward."""
    after = judged(task, policy_of(model, task.env), seed=plan.loop.seed)
    found = {"flows, untrained": before, "flows": after}
    task.curves["flows"] = _curve(run, plan.loop.batch_size)
    found |= {name: _RIVALS[name](plan, task) for name in plan.rivals}
    key = "top_reward" if task.truth is None else "total_variation"
    name = f"reward of the {TOP} best" if task.truth is None else "total variation from the reward"
    pictures: list[dict[str, Any]] = [
        {
            "kind": "lines",
            "title": "Modes built, of those there are" if task.truth else "Modes built",
            "over": "look",
            "lines": {name: [list(point) for point in own] for name, own in task.curves.items()},
        }
    ]
    if task.truth:
        drawn, states = task.truth.built(policy_of(model, task.env)), task.truth.graph.states
        pictures += [
            over_plane("What the reward asks for", states, task.truth.wanted),
            over_plane("What is drawn", states, drawn),
            against("Each object's share", ("asked for", "drawn"), task.truth.wanted, drawn),
        ]
    looks = plan.loop.steps * plan.loop.batch_size
    return {
        "title": f"Ways to sample {plan.reward.reward}, {looks} looks at the reward each",
        "comparisons": [
            {
                "name": name, "unit": "", "before": before[key], "after": after[key],
                "difference": after[key] - before[key], "is_exact": task.truth is not None,
                "higher_is_better": task.truth is None,
            }
        ],
        "facts": {"modes": len(task.modes), "looks at the reward": looks},
        "tables": [side_by_side(found)],
        "pictures": pictures,
    }  # fmt: skip


def _about(plan: Rewarded) -> dict[str, Any]:
    return {"env": asdict(plan.flow), "width": plan.width, "depth": plan.depth}


def _curve(run: Run, batch_size: int) -> list[tuple[int, float]]:
    """Read the modes over looks at the reward from what the run has written."""
    rows = [row for row in read_rows(run.folder) if "modes" in row]
    return _thinned([(int(row["step"]) * batch_size, row["modes"]) for row in rows])


def _by_chains(plan: Rewarded, task: Task) -> Metrics:
    """Let as many chains as there are trajectories in a batch walk as many steps."""
    loop = plan.loop
    walked = back_and_forth(
        task.env, task.log_reward, chains=loop.batch_size,
        longest=max(1, min(task.env.longest - 1, 4)), generator=ops.generator(loop.seed + 5),
    )  # fmt: skip
    objects = _followed("mcmc", islice(walked, loop.steps), task, loop)
    return of_samples(objects, task.log_reward, task.modes)


def _by_values(plan: Rewarded, task: Task) -> Metrics:
    """Let Q-learning build as many trajectories, and judge its last policy."""
    loop, last = plan.loop, [evenly(task.env.allowed)]
    learned = q_learning(
        task.env, task.log_reward, batch_size=loop.batch_size, width=plan.width,
        exploration=plan.exploration, optim=plan.optim, steps=loop.steps, seed=loop.seed + 6,
    )  # fmt: skip

    def built() -> Iterable[Tensor]:
        for policy, objects in learned:
            last[0] = policy
            yield objects

    objects = _followed("dqn", built(), task, loop)
    found = of_samples(objects, task.log_reward, task.modes)
    return found | (task.truth.metrics(last[0]) if task.truth else {})


_RIVALS: dict[str, Callable[[Rewarded, Task], Metrics]] = {"mcmc": _by_chains, "dqn": _by_values}


def _followed(
    name: str, built: Iterable[Tensor], task: Task, loop: StepOptions
) -> Int[Tensor, "n d"]:
    """Count the modes as they are built; return the last objects, as many as are judged."""
    finds, points, last = Finds(task.modes), list[tuple[int, float]](), list[Tensor]()
    keep = -(-TRIES // loop.batch_size)
    for step, objects in enumerate(built, 1):
        points.append((step * loop.batch_size, finds([objects])["modes"]))
        last = [*last[-keep + 1 :], objects] if keep > 1 else [objects]
    task.curves[name] = _thinned(points)
    return torch.cat(last)[-TRIES:] if last else task.env.start[None]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    every = max(1, len(points) // CURVE)
    return [*points[::every], *points[-1:]]

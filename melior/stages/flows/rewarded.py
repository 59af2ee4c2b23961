"""A flow network that learns one reward from nothing, and rivals that look at it as often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.flow import FlowEnvironment, Trajectories, rows_of
from melior.evaluation.flow import observed
from melior.evaluation.pictures import against, over_plane
from melior.models.flow import FlowModel, policy_of, start_flow_model
from melior.models.flow_saved import ONE_REWARD, save_flows
from melior.options import OptimConfig
from melior.own import contents
from melior.records import Metrics
from melior.rewards.flow import LogReward, Modes, checked
from melior.sampling.flow import Policy, evenly, sample
from melior.stages.flows.judge import (
    TOP,
    Truth,
    judged_by,
    listed,
    of_samples,
    side_by_side,
)
from melior.stages.flows.modes import Finds, built_over_looks, known_modes, modes_of
from melior.stages.flows.named import load_environment, load_reward
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.stages.flows.rivals import back_and_forth, q_learning
from melior.stages.flows.scratch import rollouts
from melior.training.checkpoint import Generators
from melior.training.loop import descend
from melior.training.options import StepOptions
from melior.training.run import Run, write_json
from melior.training.steps import opened, take_steps

Learned = Callable[
    [FlowEnvironment, FlowModel, LogReward, Trajectories], tuple[Float[Tensor, ""], Metrics]
]
"""From trajectories and what they are worth to a loss."""
TRIES = 1000


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


@dataclass(frozen=True)
class Task:
    """What is built, and what it is worth."""

    env: FlowEnvironment
    log_reward: LogReward
    modes: Modes | None
    mode_share: float
    truth: Truth | None

    def finds(self) -> Finds:
        """Begin to note what is built."""
        return Finds(self.modes, self.log_reward, self.mode_share)


@dataclass
class Looks:
    """A reward that counts of how many objects it was asked."""

    log_reward: LogReward
    count: int = 0

    def __call__(self, objects: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Ask."""
        self.count += len(objects)
        return self.log_reward(objects)


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
        finds = _learn(plan, run, task, model)
        nothing = env.start.new_zeros(0, len(env.start))
        save_flows(run.folder / "model", model, nothing, kind=ONE_REWARD, about=_about(plan))
        write_json(run.folder / "evaluation.json", _verdict(plan, task, model, before, finds))
    return run.folder


def judged(task: Task, policy: Policy, *, seed: int) -> Metrics:
    """Return how well a policy samples the reward."""
    return judged_by(task.env, policy, task.log_reward, task.modes, truth=task.truth, seed=seed)


def _task(plan: Rewarded, env: FlowEnvironment) -> Task:
    log_reward, graph = checked(load_reward(plan.reward, plan.flow)), listed(env)
    truth = Truth.of(graph, log_reward) if graph else None
    modes = modes_of(plan.reward, plan.flow, graph, log_reward)
    return Task(env, log_reward, modes, plan.reward.mode_share, truth)


def _refuse_what_cannot_stop(env: FlowEnvironment, seed: int) -> None:
    walked = sample(env, evenly(env.allowed), TRIES, generator=ops.generator(seed))
    states = walked.states[walked.is_step]
    stuck = ~env.allowed(states)[:, -1]
    if stuck.any():
        raise ValueError(
            "objective fl-db asks for the reward of every state, so that each must be an object;"
            f" found {states[stuck][0].tolist()}, which is not; use db or subtb"
        )


def _learn(plan: Rewarded, run: Run, task: Task, model: FlowModel) -> Finds:
    loop, generator = plan.loop, ops.generator(plan.loop.seed)
    finds, looks = task.finds(), Looks(task.log_reward)
    batches = rollouts(
        task.env, model,
        batch_size=loop.batch_size, exploration=plan.exploration, generator=generator,
    )  # fmt: skip
    step = descend(
        partial(plan.objective, task.env, model, looks),
        dict(model.named_parameters()), plan.optim, total_steps=max(1, loop.steps),
    )  # fmt: skip

    def counted(batch: Sequence[Trajectories]) -> Metrics:
        before, metrics = looks.count, step(batch)
        objects = torch.cat([part.objects for part in batch])
        return metrics | finds(objects, looks.count - before)

    take_steps(
        run, counted, batches,
        {"step": step, "draws": Generators({"draws": generator}), "finds": finds},
        about=contents(plan.flow.env, plan.reward.reward),
        config=plan.config, loop=loop,
        judge=lambda: judged(task, policy_of(model, task.env), seed=loop.seed),
    )  # fmt: skip
    return finds


def _verdict(
    plan: Rewarded, task: Task, model: FlowModel, before: Metrics, finds: Finds
) -> dict[str, Any]:
    """Return the run's `evaluation.json`, with the rivals at as many looks at the reward."""
    policy = policy_of(model, task.env)
    after = judged(task, policy, seed=plan.loop.seed)
    found, built = {"flows, untrained": before, "flows": after}, {"flows": finds}
    for name in plan.rivals if finds.looks else ():
        built[name] = task.finds()
        found[name] = _RIVALS[name](plan, task, built[name], finds)
    table = side_by_side(found)
    if task.truth and "mcmc" in found:
        table["note"] += (
            ", of mcmc counted over the later half of where its chains were, by which even a"
            " perfect sampler is some way off"
        )
    key, name = "total_variation", "total variation from the reward"
    if task.truth is None:
        key, name = "log_top_reward", f"log of the mean reward of the {TOP} best"
    return {
        "title": f"Ways to sample {plan.reward.reward}, {finds.looks} looks at the reward each",
        "comparisons": [
            {
                "name": name, "unit": "", "before": before[key], "after": after[key],
                "difference": after[key] - before[key], "is_exact": task.truth is not None,
                "higher_is_better": task.truth is None,
            }
        ],
        "facts": {"looks at the reward": finds.looks, **known_modes(task.modes)},
        "tables": [table],
        "pictures": [
            built_over_looks(built, over="look"),
            *(_shares(task.truth, policy) if task.truth else ()),
        ],
    }  # fmt: skip


def _shares(truth: Truth, policy: Policy) -> list[dict[str, Any]]:
    drawn, states = truth.built(policy), truth.graph.states
    return [
        over_plane("What the reward asks for", states, truth.wanted),
        over_plane("What is drawn", states, drawn),
        against("Each object's share", ("asked for", "drawn"), truth.wanted, drawn),
    ]


def _about(plan: Rewarded) -> dict[str, Any]:
    return {"env": asdict(plan.flow), "width": plan.width, "depth": plan.depth}


def _by_chains(plan: Rewarded, task: Task, finds: Finds, flows: Finds) -> Metrics:
    """Let as many chains as there are trajectories in a batch walk until flows' looks are spent.

    What chains draw is where they were in the later half of it.
    """
    loop = plan.loop
    walked = back_and_forth(
        task.env, task.log_reward, chains=loop.batch_size,
        longest=max(1, min(task.env.longest - 1, 4)), generator=ops.generator(loop.seed + 5),
    )  # fmt: skip
    n, truth, later = -(-flows.looks // loop.batch_size), task.truth, []

    def seen() -> Iterable[Tensor]:
        for step, objects in enumerate(islice(walked, n)):
            if truth and step >= n // 2:
                later.append(rows_of(truth.graph.states, objects))
            yield objects

    found = of_samples(_followed(seen(), finds), task.log_reward, task.modes)
    if truth is None:
        return found
    return found | truth.apart(observed(torch.cat(later), len(truth.graph.states)))


def _by_values(plan: Rewarded, task: Task, finds: Finds, flows: Finds) -> Metrics:
    """Let Q-learning build objects until flows' looks are spent, and judge its last policy."""
    loop, last = plan.loop, [evenly(task.env.allowed)]
    learned = q_learning(
        task.env, task.log_reward, batch_size=loop.batch_size,
        width=plan.width, exploration=plan.exploration, optim=plan.optim,
        steps=-(-flows.looks // loop.batch_size), seed=loop.seed + 6,
    )  # fmt: skip

    def built() -> Iterable[Tensor]:
        for policy, objects in learned:
            last[0] = policy
            yield objects

    found = of_samples(_followed(built(), finds), task.log_reward, task.modes)
    return found | (task.truth.metrics(last[0]) if task.truth else {})


_RIVALS: dict[str, Callable[[Rewarded, Task, Finds, Finds], Metrics]] = {
    "mcmc": _by_chains,
    "dqn": _by_values,
}


def _followed(built: Iterable[Tensor], finds: Finds) -> Int[Tensor, "n d"]:
    """Note what is built; return the last objects, as many as are judged."""
    last: list[Tensor] = []
    for objects in built:
        finds(objects, len(objects))
        last = [*last[-(TRIES // len(objects)) :], objects]
    return torch.cat(last)[-TRIES:]

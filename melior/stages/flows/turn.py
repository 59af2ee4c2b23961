"""From flows towards outcomes to a sampler of one reward: summed exactly, and by a predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melior import ops
from melior.data.flow import FlowEnvironment, KnowsReach, rows_of
from melior.envs.flow import Strings
from melior.evaluation.pictures import against, over_plane
from melior.losses.flow_outcomes import converted
from melior.models.flow import FlowModel, log_shares
from melior.models.flow_outcomes import Predictor, Speller
from melior.models.flow_saved import Saved, load_flows, read_about
from melior.models.parts import WEIGHTS
from melior.options import OptimConfig
from melior.own import contents
from melior.records import Metrics
from melior.rewards.flow import LogReward, Modes, summable
from melior.sampling.flow import Policy
from melior.stages.flows.finetune import amortise, edges, predicted
from melior.stages.flows.judge import (
    DRAWN,
    TOP,
    Exam,
    Truth,
    judged_by,
    listed,
    side_by_side,
)
from melior.stages.flows.learn import warn_of_calibration
from melior.stages.flows.modes import Finds, built_over_looks, known_modes, modes_of
from melior.stages.flows.named import load_environment, load_reward
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.stages.flows.pretrain import outcome_tables
from melior.stages.flows.spelled import amortise_spelled, spelled_edges
from melior.training.checkpoint import Generators
from melior.training.loop import descend
from melior.training.options import StepOptions
from melior.training.run import Run, write_json
from melior.training.steps import opened, take_steps
from melior.types import Objective

PAIRS = 2**18
"""Of a state and an outcome, read at a time."""


@dataclass(frozen=True)
class Turning:
    """All that turning flows to a reward needs to know, as values."""

    recipe: str
    paper: str
    model: str
    reward: RewardOptions
    most_outcomes: int
    """That a sum goes over; of more, some stand for all."""
    is_spelled: bool
    """The predictor writes outcomes letter by letter, where it else lists them."""
    exploration: float
    width: int
    optim: OptimConfig
    loop: StepOptions
    config: object


@dataclass(frozen=True)
class Task:
    """Flows, and what they are turned to."""

    flow: FlowOptions
    env: FlowEnvironment
    model: FlowModel
    outcomes: Int[Tensor, "y d"]
    """That were seen and are worth something: flow towards others was never learned."""
    log_reward: Float[Tensor, " y"]
    of_objects: LogReward
    modes: Modes | None
    truth: Truth | None
    left_out: int
    """Outcomes that others stand for."""


@runtime_checkable
class Built(Protocol):
    """A batch that says what its trajectories built."""

    @property
    def objects(self) -> Int[Tensor, "m d"]:
        """Return it."""


B = TypeVar("B", bound=Built)


@dataclass(frozen=True)
class Amortiser(Generic[B]):
    """A predictor, what it draws by, and how it learns; outcomes are listed or spelled."""

    network: nn.Module
    policy: Policy
    batches: Callable[[torch.Generator], Iterator[list[B]]]
    objective: Objective[B]


def turn_flows(plan: Turning) -> Path:
    """Turn flows to a reward and judge what comes of it; return the run's folder."""
    folder = Path(plan.model)
    about = read_about(folder)
    flow = FlowOptions(**about["env"])
    plan.reward.check(flow)
    if plan.is_spelled and flow.env != "strings":
        raise ValueError(f"--spelled is for strings, which have one length; found {flow.env}")
    env = load_environment(flow)
    saved = load_flows(folder, env, width=int(about["width"]), depth=int(about["depth"]))
    task = _task(plan, flow, env, saved)
    with opened(plan.recipe, plan.paper, plan.config, plan.loop) as run:
        exam = Exam.of(env, task.truth.graph if task.truth else None, seed=plan.loop.seed + 1)
        warn_of_calibration(run, exam.metrics(task.model))
        if task.left_out:
            run.note(
                f"{len(task.outcomes)} outcomes, drawn evenly, stand for all that were seen and"
                f" are worth something; {task.left_out} are left out (--most-outcomes)"
            )
        if plan.is_spelled and plan.loop.steps:
            run.note(
                "the predictor spells outcomes of its own: also such as the explorer never built,"
                " whose flows were never learned; the sum over outcomes leaves these out"
            )
        way = amortiser(plan, task)
        before = judged(task, way.policy, seed=plan.loop.seed)
        finds = _learn(plan, run, task, way)
        verdict = _verdict(plan, task, way.policy, before)
        verdict["pictures"].insert(0, built_over_looks({"predictor": finds}, over="object built"))
        write_json(run.folder / "evaluation.json", verdict)
    return run.folder


def worth_something(
    outcomes: Int[Tensor, "y d"], log_reward: Float[Tensor, " y"]
) -> tuple[Int[Tensor, "z d"], Float[Tensor, " z"]]:
    """Leave out the outcomes that are worth nothing.

    Raises:
        ValueError: nothing is worth anything.
    """
    has_worth = log_reward > -torch.inf
    if not has_worth.any():
        raise ValueError(
            f"reward: one of the {len(outcomes)} outcomes that the explorer built must be worth"
            " something; found a reward of 0 everywhere; pre-train with an explorer that goes"
            " further, or give another reward"
        )
    return outcomes[has_worth], log_reward[has_worth]


def exact(task: Task, *, is_masked: bool = False) -> Policy:
    """Return the policy that is the sum over outcomes, with nothing trained."""

    def policy(states: Tensor, _: Tensor) -> Tensor:
        parts = states.split(max(1, PAIRS // len(task.outcomes)))
        return torch.cat([_summed(task, part, is_masked=is_masked) for part in parts])

    return policy


def judged(task: Task, policy: Policy, *, seed: int) -> Metrics:
    """Return how well a policy samples the reward."""
    return judged_by(task.env, policy, task.of_objects, task.modes, truth=task.truth, seed=seed)


def _task(plan: Turning, flow: FlowOptions, env: FlowEnvironment, saved: Saved) -> Task:
    log_reward = summable(load_reward(plan.reward, flow))
    graph = listed(env)
    truth = Truth.of(graph, log_reward) if graph else None
    outcomes, worth = worth_something(saved.outcomes, log_reward(saved.outcomes))
    modes = modes_of(plan.reward, flow, graph, log_reward)
    order = torch.randperm(len(outcomes), generator=ops.generator(plan.loop.seed + 7))
    kept = order[: plan.most_outcomes].sort().values
    left_out = len(outcomes) - len(kept)
    return Task(
        flow, env, saved.model, outcomes[kept], worth[kept], log_reward, modes, truth, left_out
    )


def _summed(task: Task, states: Tensor, *, is_masked: bool) -> Tensor:
    log_flow, log_forward = outcome_tables(task.env, task.model, states, task.outcomes)
    if is_masked:
        assert isinstance(task.env, KnowsReach)
        n, y = len(states), len(task.outcomes)
        each, every = states.repeat_interleave(y, 0), task.outcomes.repeat(n, 1)
        log_flow = log_flow.masked_fill(~task.env.reachable(each, every).view(n, y), -torch.inf)
    # Flows not yet learned may lead to where nothing of worth is within reach, and the sum says
    # nothing: there any way on will do that is allowed.
    return log_shares(
        converted(log_flow, log_forward, task.log_reward)[1], task.env.allowed(states)
    )


def amortiser(plan: Turning, task: Task) -> Amortiser[Any]:
    """Return a fresh predictor with the way in which it learns."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.loop.seed)
        return _spelled(plan, task) if plan.is_spelled else _listed(plan, task)


def _listed(plan: Turning, task: Task) -> Amortiser[Any]:
    env = task.env
    n_features = env.features(env.start[None]).shape[-1]
    network = Predictor(n_features, env.n_actions, len(task.outcomes), width=plan.width)
    return Amortiser(
        network,
        predicted(env, network),
        lambda generator: edges(
            env, network, task.outcomes,
            batch_size=plan.loop.batch_size, exploration=plan.exploration, generator=generator,
        ),
        lambda batch: amortise(env, task.model, network, task.outcomes, task.log_reward, batch),
    )  # fmt: skip


def _spelled(plan: Turning, task: Task) -> Amortiser[Any]:
    env, best = task.env, float(task.log_reward.max())
    assert isinstance(env, Strings)
    network = Speller(env.length, env.n_letters, width=plan.width)
    return Amortiser(
        network,
        predicted(env, network),
        lambda generator: spelled_edges(
            env, network,
            batch_size=plan.loop.batch_size, exploration=plan.exploration, generator=generator,
        ),
        lambda batch: amortise_spelled(
            env, task.model, network, task.of_objects, batch, best=best
        ),
    )  # fmt: skip


def _learn(plan: Turning, run: Run, task: Task, way: Amortiser[B]) -> Finds:
    """Train the predictor, or go on with it; return what it built on the way."""
    loop, generator = plan.loop, ops.generator(plan.loop.seed)
    finds = Finds(task.modes, task.of_objects, plan.reward.mode_share)
    step = descend(
        way.objective, dict(way.network.named_parameters()), plan.optim,
        total_steps=max(1, loop.steps),
    )  # fmt: skip

    def counted(batch: Sequence[B]) -> Metrics:
        objects = torch.cat([part.objects for part in batch])
        return step(batch) | finds(objects, len(objects))

    take_steps(
        run, counted, way.batches(generator),
        {"step": step, "draws": Generators({"draws": generator}), "finds": finds},
        config=plan.config, loop=loop,
        about=contents(Path(plan.model) / WEIGHTS, task.flow.env, plan.reward.reward),
        judge=lambda: judged(task, way.policy, seed=loop.seed),
    )  # fmt: skip
    return finds


def _verdict(plan: Turning, task: Task, learned: Policy, before: Metrics) -> dict[str, Any]:
    """Return the run's `evaluation.json`: each way to sample the reward, side by side."""
    seed, ways = plan.loop.seed, {"sum over outcomes": exact(task)}
    if isinstance(task.env, KnowsReach):
        ways["the same, what is out of reach masked"] = exact(task, is_masked=True)
    found = {name: judged(task, policy, seed=seed) for name, policy in ways.items()}
    found["predictor, untrained"] = before
    if plan.loop.steps:
        ways["predictor"] = learned
        found["predictor"] = judged(task, learned, seed=seed)
    facts: dict[str, Any] = {
        "outcomes worth something that were seen": len(task.outcomes),
        **known_modes(task.modes),
    }
    pictures: list[dict[str, Any]] = []
    if task.truth:
        facts["share of the reward on outcomes that were seen"] = _coverage(task, task.truth)
        pictures = _pictures(task.truth, ways)
    return {
        "title": f"Ways to sample {plan.reward.reward}",
        "comparisons": _comparisons(task, found["sum over outcomes"], seed=seed),
        "facts": facts,
        "tables": [side_by_side(found)],
        "pictures": pictures,
    }


def _comparisons(task: Task, found: Metrics, *, seed: int) -> list[dict[str, Any]]:
    """Hold the sum for this reward against that for one which is the same everywhere.

    Nothing is held where what one of them drew is worth nothing, which has no log.
    """
    evenly = replace(task, log_reward=torch.zeros_like(task.log_reward))
    is_listed = task.truth is not None
    key, name = (
        ("total_variation", "total variation from the reward")
        if is_listed
        else ("log_top_reward", f"log of the mean reward of the {TOP} best of {DRAWN}")
    )
    unturned = judged(evenly, exact(evenly), seed=seed)
    if key not in unturned or key not in found:
        return []
    before, after = unturned[key], found[key]
    return [
        {
            "name": f"{name}, by flows that were not turned and by their sum",
            "unit": "",
            "before": before,
            "after": after,
            "difference": after - before,
            "is_exact": is_listed,
            "higher_is_better": not is_listed,
        }
    ]


def _coverage(task: Task, truth: Truth) -> float:
    rows = rows_of(truth.graph.states, task.outcomes)
    return float(truth.wanted[rows].sum())


def _pictures(truth: Truth, ways: dict[str, Policy]) -> list[dict[str, Any]]:
    states = truth.graph.states
    names = ("asked for", "drawn")
    found = {name: truth.built(policy) for name, policy in ways.items()}
    drawn = [over_plane("What the reward asks for", states, truth.wanted)]
    drawn += [over_plane(f"What is drawn: {name}", states, own) for name, own in found.items()]
    drawn += [against(name, names, truth.wanted, own) for name, own in found.items()]
    return drawn

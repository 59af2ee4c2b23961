"""From nothing to a network that builds whatever is asked for: explore, try, judge, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from melior import ops
from melior.data.flow import FlowEnvironment, Graph
from melior.evaluation.compare import compare
from melior.evaluation.pictures import over_plane
from melior.models.flow import FlowModel, start_flow_model
from melior.models.flow_outcomes import Novelty
from melior.models.flow_saved import save_flows
from melior.options import OptimConfig
from melior.own import contents
from melior.stages.flows.explore import (
    Explorer,
    Remembered,
    backtracker,
    curious,
    wanderer,
)
from melior.stages.flows.judge import OUT_OF_REACH, SPREAD, Exam, listed, objects_of
from melior.stages.flows.named import load_environment
from melior.stages.flows.options import FlowOptions
from melior.stages.flows.pretrain import Balance, attempts, contrast
from melior.training.checkpoint import Generators, Stateful
from melior.training.loop import descend
from melior.training.options import StepOptions
from melior.training.run import Run, write_json
from melior.training.steps import opened, take_steps


@dataclass(frozen=True)
class Pretraining:
    """All that learning towards outcomes needs to know, as values."""

    recipe: str
    paper: str
    flow: FlowOptions
    explorer: str
    """`curious`, `wander` or `backward`."""
    balance: Balance
    epsilon: float
    """The reward of a failure."""
    exploration: float
    """Share of actions that are drawn evenly, when the network tries."""
    width: int
    depth: int
    optim: OptimConfig
    loop: StepOptions
    config: object


def pretrain_flows(plan: Pretraining) -> Path:
    """Learn to build whatever is asked for; return the run's folder."""
    env, loop = load_environment(plan.flow), plan.loop
    graph = listed(env)
    if plan.explorer == "backward" and graph is None:
        raise ValueError(
            "explorer backward takes apart what can be listed; found too many states; use curious"
            " or wander"
        )
    with opened(plan.recipe, plan.paper, plan.config, loop) as run:
        model = start_flow_model(
            env, seed=loop.seed, is_conditioned=True, width=plan.width, depth=plan.depth
        )
        exam = Exam.of(env, graph, seed=loop.seed + 1)
        before = exam.succeeded(model)
        memory = _learn(plan, run, env, model, graph, exam)
        about = {"env": asdict(plan.flow), "width": plan.width, "depth": plan.depth}
        save_flows(run.folder / "model", model, memory.outcomes, about=about)
        write_json(
            run.folder / "evaluation.json", _verdict(run, exam, model, before, memory, graph)
        )
    return run.folder


def _learn(
    plan: Pretraining,
    run: Run,
    env: FlowEnvironment,
    model: FlowModel,
    graph: Graph | None,
    exam: Exam,
) -> Remembered:
    loop, generator = plan.loop, ops.generator(plan.loop.seed)
    explorer, parts = _explorer(plan, env, graph, generator)
    memory = Remembered(explorer, len(env.start))
    batches = attempts(
        env, model, memory,
        batch_size=loop.batch_size, exploration=plan.exploration, generator=generator,
    )  # fmt: skip
    objective = partial(contrast, env, model, plan.balance, epsilon=plan.epsilon)
    step = descend(
        objective, dict(model.named_parameters()), plan.optim, total_steps=max(1, loop.steps)
    )
    take_steps(
        run, step, batches,
        {"step": step, "draws": Generators({"draws": generator}), "outcomes": memory, **parts},
        about=contents(plan.flow.env),
        config=plan.config, loop=loop, judge=lambda: exam.metrics(model),
    )  # fmt: skip
    return memory


def _explorer(
    plan: Pretraining, env: FlowEnvironment, graph: Graph | None, generator: torch.Generator
) -> tuple[Explorer, dict[str, Stateful]]:
    """Return who goes ahead, and what of it goes into a checkpoint."""
    if plan.explorer == "wander":
        return wanderer(env, generator=generator), {}
    if plan.explorer == "backward":
        assert graph is not None
        return backtracker(env, objects_of(graph), generator=generator), {}
    seed = plan.loop.seed + 2
    model = start_flow_model(env, seed=seed, width=plan.width, depth=plan.depth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        novelty = Novelty(env.features(env.start[None]).shape[-1], width=plan.width)
    found = curious(
        env, model, novelty,
        optim=plan.optim, total_steps=max(1, plan.loop.steps), generator=generator,
    )  # fmt: skip
    return found, {"explorer": found.step}


def _verdict(
    run: Run,
    exam: Exam,
    model: FlowModel,
    before: Tensor,
    memory: Remembered,
    graph: Graph | None,
) -> dict[str, Any]:
    """Return the run's `evaluation.json`; warn where a conversion could not be trusted."""
    after, found = exam.succeeded(model), exam.metrics(model)
    success = compare(
        before.double(), after.double(), name="success at what is asked for", unit="share",
        generator=ops.generator(exam.seed + 2),
    )  # fmt: skip
    facts: dict[str, Any] = {
        "spread over outcomes of log F at the start": found["spread"],
        "outcomes that the explorer built": len(memory.seen),
    }
    if "out_of_reach" in found:
        facts["median log F out of reach"] = found["out_of_reach"]
    if graph is not None:
        facts["share of all objects"] = len(memory.seen) / len(objects_of(graph))
    warn_of_calibration(run, found)
    return {
        "title": f"{len(exam.wanted)} outcomes asked for",
        "comparisons": [success.to_json()],
        "facts": facts,
        "pictures": [
            over_plane("Success, cell by cell", exam.wanted, after.double()),
            over_plane("What the explorer built", memory.outcomes, torch.ones(len(memory.seen))),
        ],
    }


def warn_of_calibration(run: Run, found: dict[str, float]) -> None:
    """Say where flows are such that a sum over outcomes would be off."""
    said: Sequence[tuple[bool, str]] = (
        (
            found["spread"] > SPREAD,
            f"total flows differ between outcomes: a spread of at most {SPREAD:g} is needed to"
            f" convert them; found {found['spread']:.2f}; train longer",
        ),
        (
            found.get("out_of_reach", OUT_OF_REACH) > OUT_OF_REACH,
            f"flow is left where an outcome is out of reach: a median log of at most"
            f" {OUT_OF_REACH:g} is needed to convert it; found"
            f" {found.get('out_of_reach', 0.0):.2f}; train longer",
        ),
    )
    for is_so, sentence in said:
        if is_so:
            run.note(sentence)

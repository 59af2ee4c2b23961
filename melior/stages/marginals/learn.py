"""From an energy, or from rows, to marginals: learn, judge, save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from melior import ops
from melior.evaluation.compare import compare
from melior.models.marginal import ConditionalModel
from melior.models.marginal_saved import Marginals, save_marginals, start_marginals
from melior.options import OptimConfig
from melior.own import contents
from melior.records import Metrics
from melior.stages.marginals.autoregressive import all_steps, draws, one_order, one_step
from melior.stages.marginals.energy import Baseline, Chains, Pull, Walkers
from melior.stages.marginals.judge import Exam, errors, metrics, verdict
from melior.stages.marginals.likelihood import Shuffled, distil, likelihood, with_chains
from melior.stages.marginals.options import MarginalOptions, NetworkOptions
from melior.stages.marginals.world import World, load_world
from melior.training.checkpoint import Generators, Stateful
from melior.training.hooks import Progress
from melior.training.loop import Step, descend, fit
from melior.training.options import StepOptions
from melior.training.run import Run, write_json
from melior.training.steps import opened, take_steps
from melior.types import Objective

B = TypeVar("B")
QUERIES, ORDERS = 200, 5
OFF = 0.15
"""How far from 1 the sum over all rows may be without a warning."""
ALPHA = ", let the rate fall (--lr-scheduler-type linear), or weigh consistency more (--alpha)"
"""What helps besides, where marginals are pulled to a target."""
SCALED = ("sum over all rows", "sum over all rows, by importance")


@dataclass(frozen=True)
class MarginalPlan:
    """All that learning marginals needs to know, as values."""

    recipe: str
    paper: str
    source: MarginalOptions
    network: NetworkOptions
    pull: Pull
    """From an energy and chains to a loss."""
    baseline: Baseline
    """Of rivals at an energy."""
    rivals: tuple[str, ...]
    """`arm`, `arm-mc`."""
    block: int
    steps_per_epoch: int
    """Of chains, after which they are drawn anew."""
    likelihood_share: float
    """Of the steps, that the conditionals take before the marginals, where rows are given."""
    validation_share: float
    optim: OptimConfig
    loop: StepOptions
    config: object


def learn_marginals(plan: MarginalPlan) -> Path:
    """Learn and judge; return the run's folder."""
    loop = plan.loop
    world = load_world(plan.source, seed=loop.seed, validation_share=plan.validation_share)
    about = {
        "length": world.length, "n_values": world.n_values, "alphabet": list(world.alphabet),
        "tokens": plan.source.tokens, "shape": list(world.shape),
        "width": plan.network.width, "blocks": plan.network.blocks, "rivals": list(plan.rivals),
    }  # fmt: skip
    with opened(plan.recipe, plan.paper, plan.config, loop) as run:
        found = start_marginals(about, seed=loop.seed)
        (_from_energy if world.rows is None else _from_rows)(plan, run, world, found)
        # Whatever becomes of the rivals, MaM is there.
        save_marginals(run.folder / "model", found.alone)
        for name, rival in found.rivals.items():
            _alone(plan, world, name, rival)
        save_marginals(run.folder / "model", found)
        exam = _exam(found, world, loop.seed)
        said = verdict(found, exam)
        if remark := off(said["facts"], weighs="" if plan.source.data else ALPHA):
            run.note(remark)
        # Both are asked the same, and held against the same: what is known once all is learned.
        better = compare(
            errors(start_marginals(about, seed=loop.seed), exam), errors(found, exam),
            name="error of log-marginals at one reading", unit="nats", higher_is_better=False,
            generator=ops.generator(loop.seed + 2),
        )  # fmt: skip
        said["comparisons"] = [better.to_json()]
        write_json(run.folder / "evaluation.json", said)
    return run.folder


def _exam(found: Marginals, world: World, seed: int) -> Exam:
    """Return the queries of a run, and what is known of them now."""
    return Exam.of(found, world, n_queries=QUERIES, n_orders=ORDERS, seed=seed + 1)


def _from_energy(plan: MarginalPlan, run: Run, world: World, found: Marginals) -> None:
    assert world.log_target is not None
    generator = ops.generator(plan.loop.seed)
    walkers = _walkers(plan, found, generator)
    objective = partial(plan.pull, found.marginals, found.conditionals, world.log_target)
    step = descend(
        objective, dict(found.both.named_parameters()), plan.optim,
        total_steps=max(1, plan.loop.steps),
    )  # fmt: skip
    parts: Mapping[str, Stateful] = {
        "step": step, "chains": walkers, "draws": Generators({"draws": generator})
    }  # fmt: skip
    take_steps(
        run, step, iter(walkers), parts,
        about=contents(plan.source.target), config=plan.config, loop=plan.loop,
        judge=lambda: metrics(found, _exam(found, world, plan.loop.seed)),
    )  # fmt: skip


def _from_rows(plan: MarginalPlan, run: Run, world: World, found: Marginals) -> None:
    """Take the first stage's steps on the conditionals, and the others on the marginals."""
    assert world.rows is not None
    loop, generator = plan.loop, ops.generator(plan.loop.seed)
    n_first = _first_steps(plan)
    rows = Shuffled(world.rows, loop.batch_size, generator)
    walkers = _walkers(plan, found, generator)

    def step_of(part: nn.Module, objective: Objective[Chains], n: int) -> Step[Chains]:
        return descend(objective, dict(part.named_parameters()), plan.optim, total_steps=max(1, n))

    first = step_of(found.conditionals, partial(likelihood, found.conditionals), n_first)
    objective = partial(distil, found.marginals, found.conditionals)
    second = step_of(found.marginals, objective, loop.steps - n_first)

    def take(batch: Sequence[Chains]) -> Metrics:
        return first(batch) if first.steps < n_first else second(batch)

    def batches() -> Iterator[list[Chains]]:
        yield from islice(rows, max(0, n_first - first.steps))
        yield from with_chains(rows, walkers)

    parts: dict[str, Stateful] = {
        "first": first, "second": second, "rows": rows, "chains": walkers,
        "draws": Generators({"draws": generator}),
    }  # fmt: skip
    take_steps(
        run, take, batches(), parts,
        about=contents(plan.source.data), config=plan.config, loop=loop,
        judge=lambda: metrics(found, _exam(found, world, loop.seed)),
    )  # fmt: skip


def _first_steps(plan: MarginalPlan) -> int:
    return round(plan.likelihood_share * plan.loop.steps)


def _alone(plan: MarginalPlan, world: World, name: str, rival: ConditionalModel) -> None:
    """Teach a rival; where that fails, say which, and that only it is lost."""
    try:
        (_alone_at_energy if world.rows is None else _alone_on_rows)(plan, world, name, rival)
    except ValueError as error:
        raise ValueError(f"rival {name}, once MaM was learned and saved: {error}") from error


def _alone_on_rows(plan: MarginalPlan, world: World, name: str, rival: ConditionalModel) -> None:
    """Teach a rival the batches that the first stage reads: after a stop, from the start again."""
    assert world.rows is not None
    loop, n = plan.loop, _first_steps(plan)
    batches = Shuffled(world.rows, loop.batch_size, ops.generator(loop.seed))
    step = descend(
        partial(one_order, rival), dict(rival.named_parameters()), plan.optim, total_steps=max(1, n)
    )
    _take(step, batches, n, name)


def _alone_at_energy(plan: MarginalPlan, world: World, name: str, rival: ConditionalModel) -> None:
    """Teach a rival on as many rows of its own as there are chains, for as many steps."""
    assert world.log_target is not None
    loop, way = plan.loop, {"arm": all_steps, "arm-mc": one_step}[name]
    batches = draws(rival, count=loop.batch_size, generator=ops.generator(loop.seed))
    objective = partial(way, rival, world.log_target, baseline=plan.baseline)
    step = descend(
        objective, dict(rival.named_parameters()), plan.optim, total_steps=max(1, loop.steps)
    )
    _take(step, batches, loop.steps, name)


def _take(step: Step[B], batches: Iterable[list[B]], n: int, name: str) -> None:
    """Take a rival's steps, and show how many: they are as many as MaM's, and may cost more."""
    with Progress(n, what=f"rival {name}: step") as progress:
        fit(step, islice(batches, n), hooks=[progress])


def _walkers(plan: MarginalPlan, found: Marginals, generator: torch.Generator) -> Walkers:
    block = min(plan.block, found.length)
    return Walkers(found.conditionals, plan.loop.batch_size, block, plan.steps_per_epoch, generator)


def off(facts: Mapping[str, Any], *, weighs: str) -> str:
    """Say where marginals do not add up to 1, as nan does not; nothing where they do."""
    total = next((facts[name] for name in SCALED if name in facts), 1.0)
    if abs(total - 1) <= OFF:
        return ""
    return (
        f"the marginals of all complete rows ought to add up to 1 and add up to {total:.3g};"
        f" train longer{weighs}"
    )

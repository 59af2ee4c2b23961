"""How right marginals are: against the truth where rows can be listed, else against several orders.

Of text and images the paper's reference is an ensemble of orders of the conditionals; here it is
taken only where nothing better is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.correlation import pearson, spearman
from melior.data.marginal import UNKNOWN, drawn_counts, drawn_orders, revealed
from melior.evaluation.marginal import (
    chained_log_joint,
    divergence,
    exact_log_marginals,
    separated,
)
from melior.evaluation.pictures import against
from melior.losses.marginal import ensemble
from melior.models.marginal_saved import Marginals
from melior.records import Metrics
from melior.sampling.marginal import Conditionals, any_order, completed, log_likelihood
from melior.stages.marginals.energy import Chains, finite, inconsistency
from melior.stages.marginals.show import shown
from melior.stages.marginals.world import World

DRAWN, REPEATS, CHUNK = 1000, 10, 8192
SEPARATIONS = (1.0, 5.0)
"""Nats between values that are correlated, besides the correlation of all."""


@dataclass(frozen=True)
class Exam:
    """Parts of rows, and what is known of their log-probabilities."""

    world: World
    queries: Int[Tensor, "n d"]
    order: Int[Tensor, "orders n d"]
    """In each, what a query knows comes first."""
    rows: Int[Tensor, "m d"]
    """Complete ones, of which the queries are parts."""
    seed: int
    wanted: Float[Tensor, " n"]
    """Of each query: exact where rows can be listed, else what several orders say together."""

    @classmethod
    def of(
        cls, found: Marginals, world: World, *, n_queries: int, n_orders: int, seed: int
    ) -> Exam:
        """Draw queries: of the truth where it is listed, of held-out rows, or of the model.

        Whatever stands in for the truth is of the model as it now is.
        """
        generator = ops.generator(seed)
        if world.held_out is not None:
            picked = torch.randint(len(world.held_out), (n_queries,), generator=generator)
            rows = world.held_out[picked]
        elif world.listed is not None:
            chances = world.listed.log_joint.exp()
            picked = chances.multinomial(n_queries, replacement=True, generator=generator)
            rows = world.listed.rows[picked]
        else:
            rows = any_order(found.conditionals, n_queries, found.length, generator=generator)
        shape, most = rows.shape, max(1, found.length - 1)
        sizes = torch.randint(1, most + 1, (n_queries,), generator=generator)
        queries = revealed(rows, drawn_orders(*shape, generator=generator), sizes)
        orders = torch.stack(
            [
                known_first(queries, drawn_orders(*shape, generator=generator))
                for _ in range(n_orders)
            ]
        )
        if world.listed is not None:
            wanted = exact_log_marginals(world.listed.rows, world.listed.log_joint, queries)
        else:
            wanted = ensemble(along(found, queries, orders))
        return cls(world, queries, orders, rows, seed, wanted)

    @property
    def standard(self) -> str:
        """What the wanted values are."""
        return f"{len(self.order)} orders" if self.world.listed is None else "exact"


def known_first(queries: Int[Tensor, "n d"], order: Int[Tensor, "n d"]) -> Int[Tensor, "n d"]:
    """Return the order in which a query's known positions come before the others."""
    return (order + queries.shape[1] * (queries == UNKNOWN)).argsort(-1).argsort(-1)


@torch.no_grad()
def metrics(found: Marginals, exam: Exam) -> Metrics:
    """Return how far one reading is from what is known, and how far steps are from agreeing."""
    said, wanted = found.marginals.normalised(exam.queries).double(), exam.wanted
    generator = ops.generator(exam.seed + 1)
    n, length = exam.rows.shape
    steps = Chains(
        exam.rows,
        drawn_orders(n, length, generator=generator),
        drawn_counts(n, length, generator=generator),
    )
    apart = inconsistency(found.marginals, found.conditionals, steps)
    return {
        "marginal_error": float((said - wanted).abs().mean()),
        "pearson": float(pearson(said[:, None], wanted)),
        "spearman": float(spearman(said[:, None], wanted)),
        "self_consistency_error": float(apart.abs().double().mean()),
        **_of_what_is_drawn(found, exam.world),
    }


@torch.no_grad()
def errors(found: Marginals, exam: Exam) -> Float[Tensor, " n"]:
    """Return how far each query's log-marginal at one reading is from what is known, in nats."""
    return (found.marginals.normalised(exam.queries).double() - exam.wanted).abs()


def along(
    found: Marginals, queries: Int[Tensor, "n d"], orders: Int[Tensor, "orders n d"]
) -> Float[Tensor, "orders n"]:
    """Return what the conditionals say of queries, read along each of several orders."""
    return torch.stack([log_likelihood(found.conditionals, queries, own) for own in orders])


@torch.no_grad()
def verdict(found: Marginals, exam: Exam) -> dict[str, Any]:
    """Return all there is to say, as in a run's `evaluation.json`."""
    said, wanted = found.marginals.normalised(exam.queries).double(), exam.wanted
    facts: dict[str, Any] = metrics(found, exam)
    for least in SEPARATIONS:
        kept = separated(wanted, least)
        if len(kept) > 2:
            facts[f"pearson of {len(kept)} values {least:g} nats apart"] = float(
                pearson(said[kept, None], wanted[kept])
            )
    seen = shown(found, exam.world, seed=exam.seed + 4)
    facts |= _likelihood(found, exam) | _total(found, exam) | timed(found, exam) | seen["facts"]
    return {
        "title": f"{len(exam.queries)} parts of rows, held against {exam.standard}",
        "comparisons": [],
        "facts": {key.replace("_", " "): value for key, value in facts.items()},
        "tables": seen["tables"],
        "pictures": [
            against("Log-marginals", (exam.standard, "one reading"), wanted, said),
            *seen["pictures"],
        ],
    }


def timed(found: Marginals, exam: Exam) -> dict[str, float]:
    """Return the time of a query at one reading, and along an order.

    There it is read once for each value that it knows. All queries at once and turn by turn; the
    least time of each.
    """
    ways: tuple[Callable[[], object], ...] = (
        lambda: found.marginals.normalised(exam.queries),
        lambda: log_likelihood(found.conditionals, exam.queries, exam.order[0]),
    )
    rounds = [[_seconds(act) for act in ways] for _ in range(REPEATS)]
    at_once, along = (min(own) / len(exam.queries) for own in zip(*rounds, strict=True))
    return {
        "seconds a query at one reading": at_once,
        "seconds a query along one order": along,
        "times faster than one order": along / at_once,
    }


def _of_what_is_drawn(found: Marginals, world: World) -> Metrics:
    """Return the exact divergence of the conditionals, drawn from left to right, if it is known."""
    if world.listed is None:
        return {}
    order = torch.arange(found.length)
    drawn = chained_log_joint(found.conditionals, order, found.n_values)
    joint = world.listed.log_joint
    parts = world.listed.rows.split(CHUNK)
    said = torch.cat([found.marginals.normalised(part) for part in parts]).double()
    return {
        "divergence": divergence(drawn, joint),
        "distance": float((said.exp() - joint.exp()).abs().sum()) / 2,
    }


def _likelihood(found: Marginals, exam: Exam) -> dict[str, float]:
    """Return what held-out rows cost, or how far what is drawn is from an energy."""
    world, generator = exam.world, ops.generator(exam.seed + 2)
    if world.held_out is not None:
        n, length = world.held_out.shape
        orders = [drawn_orders(n, length, generator=generator) for _ in range(len(exam.order))]
        log_p = along(found, world.held_out, torch.stack(orders))
        nats = -float(ensemble(log_p).mean())
        ahead = torch.arange(length).expand(n, -1)
        alone = {
            f"negative log-likelihood, {name}, taught one position a reading":
                -float(log_likelihood(rival, world.held_out, ahead).mean())
            for name, rival in found.rivals.items()
        }  # fmt: skip
        return {
            "negative log-likelihood, one order": -float(log_p.mean()),
            f"negative log-likelihood, {len(orders)} orders": nats,
            "bits a position": nats / length / math.log(2),
            **alone,
        }
    rows = any_order(found.conditionals, DRAWN, found.length, generator=generator)
    order = drawn_orders(*rows.shape, generator=generator)
    facts = _from_energy(found.conditionals, world, rows, order)
    ahead = torch.arange(found.length).expand(DRAWN, -1)
    nothing = torch.full_like(ahead, UNKNOWN)
    for name, rival in found.rivals.items():
        rows = completed(rival, nothing, ahead, 0, generator=generator)
        own = _from_energy(rival, world, rows, ahead)
        if world.listed is not None:
            drawn = chained_log_joint(rival, ahead[0], found.n_values)
            own = {"divergence": divergence(drawn, world.listed.log_joint)} | own
        facts |= {f"{key}, {name}": value for key, value in own.items()}
    return facts


def _from_energy(
    conditionals: Conditionals, world: World, rows: Int[Tensor, "n d"], order: Int[Tensor, "n d"]
) -> dict[str, float]:
    """Return how far rows that were drawn in an order are from the target."""
    assert world.log_target is not None
    gap = log_likelihood(conditionals, rows, order) - finite(world.log_target, rows).double()
    spread = float(gap.std()) / len(gap) ** 0.5
    facts = {"KL of what is drawn, less log Z": float(gap.mean()), "its standard error": spread}
    if world.log_z is not None:
        facts["KL of what is drawn, by samples"] = float(gap.mean()) + world.log_z
    return facts


def _total(found: Marginals, exam: Exam) -> dict[str, float]:
    """Return what the marginals of all complete rows add up to: listed, or by importance."""
    if exam.world.listed is not None:
        parts = exam.world.listed.rows.split(CHUNK)
        said = torch.cat([found.marginals.normalised(part) for part in parts]).double()
        return {"sum over all rows": float(said.exp().sum())}
    generator = ops.generator(exam.seed + 3)
    rows = any_order(found.conditionals, DRAWN, found.length, generator=generator)
    order = drawn_orders(*rows.shape, generator=generator)
    said = found.marginals.normalised(rows).double()
    weight = (said - log_likelihood(found.conditionals, rows, order)).exp()
    return {
        "sum over all rows, by importance": float(weight.mean()),
        "rows that this rests on": float(weight.sum().square() / weight.square().sum()),
    }


def _seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began

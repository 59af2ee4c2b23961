"""MaM's claim: one reading says any marginal, and an energy is learned at few readings a row.

Liu, Ramadge, Adams 2024, arXiv 2310.12920. Ising's lattice of 4 x 4 sites, whose 65,536 rows can
all be listed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melior import ops
from melior.claims.claim import (
    Aside,
    Claim,
    Cloud,
    Dots,
    Measured,
    Rule,
    Table,
    above,
    at_least,
    at_most,
    difference,
)
from melior.claims.networks import side_by_side
from melior.correlation import pearson, spearman
from melior.data.marginal import all_rows, drawn_orders, revealed
from melior.evaluation.marginal import (
    chained_log_joint,
    divergence,
    exact_log_marginals,
    separated,
)
from melior.losses.marginal import standardised
from melior.models.marginal import ConditionalModel, MarginalModel
from melior.options import OptimConfig
from melior.rewards.marginal import Ising
from melior.sampling.marginal import Conditionals, log_likelihood
from melior.stages.marginals.autoregressive import all_steps, draws, one_step
from melior.stages.marginals.energy import Walkers, energy
from melior.stages.marginals.judge import known_first
from melior.training.loop import descend, fit
from melior.types import Objective

SIDE, N_VALUES, WIDTH, COUNT, BLOCK, EPOCH = 4, 2, 128, 256, 4, 200
STEPS, ARM_STEPS = 3000, 600
QUERIES, ORDERS, REPEATS, SEPARATION = 200, 5, 20, 1.0
OPTIM = OptimConfig(
    learning_rate=1e-3, lr_scheduler_type="constant", warmup_ratio=0, max_grad_norm=100
)
ALPHA = {"MaM": 4.0, "alpha 0": 0.0}
"""Weight of consistency; without it the conditionals learn nothing."""
PARTS = {"1 to 5 sites": (1, 5), "6 to 10 sites": (6, 10), "11 to 15 sites": (11, 15)}
"""Queries by how much they know."""
QUERY = "MaM, a query"
"""Whose numbers are those of every query, not of a seed."""
B = TypeVar("B")
Said = Callable[[Int[Tensor, "n d"]], Float[Tensor, " n"]]
"""From parts of rows to their log-marginals."""


@dataclass(frozen=True)
class World:
    """The lattice, all its rows and their exact log-probabilities."""

    ising: Ising
    rows: Int[Tensor, "rows d"]
    log_joint: Float[Tensor, " rows"]


def lattice(side: int) -> World:
    """Return the world of one size."""
    ising = Ising(side)
    rows = all_rows(ising.length, N_VALUES)
    return World(ising, rows, ising.log_target(rows).double() - ising.log_z())


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Train all arms on every seed, and hold them against the listed truth."""
    world = lattice(SIDE)
    return side_by_side([of_seed(world, seed, steps) for seed in seeds])


def of_seed(world: World, seed: int, steps: int) -> dict[str, dict[str, float | Sequence[float]]]:
    """Return what all arms reach on a seed."""
    queries = asked(world, seed)
    found: dict[str, dict[str, float | Sequence[float]]] = {}
    for name, alpha in ALPHA.items():
        marginals, conditionals = learned_at_once(world, seed, steps, alpha=alpha)
        found[name] = {**of_conditionals(world, conditionals, drawn_places(world, seed))}
        found[name] |= of_marginals(world, marginals.normalised, queries)
        if name == "MaM":
            found[name]["speed"] = speed(marginals, conditionals, queries, seed)
            found |= by_query(world, marginals.normalised, queries)
    forward = torch.arange(world.ising.length)[None]
    for name, objective, n in (("ARM", all_steps, ARM_STEPS), ("ARM-MC", one_step, steps)):
        rival = learned_by_steps(world, seed, min(n, steps), objective)
        found[name] = {**of_conditionals(world, rival, forward)}
    return found


def learned_at_once(
    world: World, seed: int, steps: int, *, alpha: float
) -> tuple[MarginalModel, ConditionalModel]:
    """Return both networks of MaM after some steps of chains that persist."""
    length = world.ising.length
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        marginals = MarginalModel(length, N_VALUES, width=WIDTH)
        conditionals = ConditionalModel(length, N_VALUES, width=WIDTH)
    batches = Walkers(conditionals, COUNT, BLOCK, EPOCH, ops.generator(seed))  # fmt: skip
    objective = partial(
        energy, marginals, conditionals, world.ising.log_target, baseline=standardised, alpha=alpha
    )
    learn(objective, nn.ModuleList([marginals, conditionals]), islice(batches, steps), steps)
    return marginals, conditionals


def learned_by_steps(
    world: World, seed: int, steps: int, objective: Callable[..., tuple[Tensor, dict[str, float]]]
) -> ConditionalModel:
    """Return conditionals of one order that learned the energy alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conditionals = ConditionalModel(world.ising.length, N_VALUES, width=WIDTH)
    batches = draws(conditionals, count=COUNT, generator=ops.generator(seed))
    target = world.ising.log_target
    learn(
        partial(objective, conditionals, target, baseline=standardised),
        conditionals, islice(batches, steps), steps,
    )  # fmt: skip
    return conditionals


def learn(
    objective: Objective[B], network: nn.Module, batches: islice[list[B]], steps: int
) -> None:
    """Take the steps."""
    fit(descend(objective, dict(network.named_parameters()), OPTIM, total_steps=steps), batches)


def of_conditionals(
    world: World, conditionals: Conditionals, orders: Int[Tensor, "orders d"]
) -> dict[str, float]:
    """Return `KL(drawn || exact)` in nats, averaged over orders of drawing."""
    found = [chained_log_joint(conditionals, order, N_VALUES) for order in orders]
    return {"KL": sum(divergence(own, world.log_joint) for own in found) / len(found)}


@torch.no_grad()
def of_marginals(
    world: World, log_marginals: Said, queries: Int[Tensor, "n d"]
) -> dict[str, float]:
    """Return how far one reading is from the truth, of complete rows and of parts of them."""
    joint = torch.cat([log_marginals(part) for part in world.rows.split(8192)]).double()
    exact = exact_log_marginals(world.rows, world.log_joint, queries)
    found = log_marginals(queries).double()
    kept = separated(exact, SEPARATION)
    return {
        "distance": float((joint.exp() - world.log_joint.exp()).abs().sum()) / 2,
        "sum": float(joint.exp().sum()),
        "error": float((found - exact).abs().mean()),
        "Pearson": float(pearson(found[:, None], exact)),
        "Spearman": float(spearman(found[:, None], exact)),
        "Pearson, separated": float(pearson(found[kept, None], exact[kept])),
    }


@torch.no_grad()
def by_query(
    world: World, log_marginals: Said, queries: Int[Tensor, "n d"]
) -> dict[str, dict[str, float | Sequence[float]]]:
    """Return each query's value beside the truth, and the mean error by how many sites it knows."""
    exact = exact_log_marginals(world.rows, world.log_joint, queries)
    said = log_marginals(queries).double()
    error, known = (said - exact).abs(), (queries > 0).sum(-1)
    found: dict[str, dict[str, float | Sequence[float]]] = {
        QUERY: {"exact": exact.tolist(), "at one reading": said.tolist()}
    }
    for name, (low, high) in PARTS.items():
        found[name] = {"error": float(error[(known >= low) & (known <= high)].mean())}
    return found


def speed(
    marginals: MarginalModel, conditionals: ConditionalModel, queries: Int[Tensor, "n d"], seed: int
) -> float:
    """Return how many times faster the queries are read at once than along one order.

    Turn by turn, the least time of each; along the order, a query is read once for each site that
    it knows.
    """
    order = known_first(queries, drawn_orders(*queries.shape, generator=ops.generator(seed)))
    with torch.no_grad():
        taken = [
            (
                _seconds(lambda: marginals.normalised(queries)),
                _seconds(lambda: log_likelihood(conditionals, queries, order)),
            )
            for _ in range(REPEATS)
        ]
    at_once, along = (min(own) for own in zip(*taken, strict=True))
    return along / at_once


def asked(world: World, seed: int) -> Int[Tensor, "n d"]:
    """Return parts, of 1 site to all but one, of rows drawn from the truth."""
    generator = ops.generator(seed + 10**6)
    chances = world.log_joint.exp()
    rows = world.rows[chances.multinomial(QUERIES, replacement=True, generator=generator)]
    length = rows.shape[1]
    sizes = torch.randint(1, length, (QUERIES,), generator=generator)
    return revealed(rows, drawn_orders(QUERIES, length, generator=generator), sizes)


def drawn_places(world: World, seed: int) -> Int[Tensor, "orders d"]:
    """Return orders in which rows are drawn, every permutation equally likely."""
    return drawn_orders(ORDERS, world.ising.length, generator=ops.generator(seed + 2 * 10**6))


def _seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


CLAIM = Claim(
    name="mam",
    title="MaM: any marginal at one reading",
    paper="Liu, Ramadge, Adams 2024, arXiv 2310.12920",
    claimed=(
        "A network that says the probability of any part of a row at one reading can be learned "
        "from an energy at a number of readings that does not grow with the row, and comes close; "
        "conditionals that learn from one step of each row do not, and those that pay for all "
        "steps come closer still."
    ),
    world=f"""Ising's torus of {SIDE} x {SIDE} sites as in the paper (coupling 0.1 with each edge
counted twice, field 0.2), all of whose {N_VALUES**SIDE**2:,} rows are listed. **KL** is from the
rows that the conditionals draw to the exact distribution, computed by listing, in nats (of MaM and
its ablation the mean over {ORDERS} random orders; the rivals have one order). **distance** is half
the summed distance of what the marginal network says of complete rows from the truth, their total
variation (TV) where they add up to 1, and **sum** what they add up to; with alpha 0 nothing ties
them to the value of nothing that is subtracted. **error** is the mean absolute error in nats of
{QUERIES} log-marginals of 1 to {SIDE**2 - 1} sites of rows drawn from the truth, **Pearson** and
**Spearman** their correlation with the truth. The released evaluation correlates only values some
nats apart; "separated" does so at {SEPARATION:g} nat. **speed** is how many times faster those
queries are read at once than along one order by the conditionals, which read a query once for each
site that it knows, in CPU time.

Arms: MaM after {STEPS} steps of {COUNT} chains (two residual nets of 3 x {WIDTH}, Adam 1e-3,
alpha 4, blocks of {BLOCK}); the same with alpha 0; ARM, {ARM_STEPS} steps with likelihoods read
in full, {SIDE**2} readings a row; ARM-MC, as many steps as MaM, with likelihoods guessed from one
step. All take REINFORCE's gradient with standardised advantages.""",
    limits="""The thresholds are those of a pilot on other seeds by other code, where ARM-MC had
half as many steps as here. A lattice of 16 sites can be listed; the paper's have 100 and more. The
rivals draw each row anew, site by site, so that only their likelihoods differ in cost. Speed is
measured on the machine that writes this page, 200 queries at a time.""",
    measure=measure,
    steps=STEPS,
    rules=(
        Rule("error of marginals, in nats", lambda m: m["MaM"]["error"], at_most(0.2), True),
        Rule("Pearson of marginals with the truth", lambda m: m["MaM"]["Pearson"],
             at_least(0.99), True),
        Rule("TV of complete rows, taken as they are", lambda m: m["MaM"]["distance"],
             at_most(0.08), True),
        Rule("distance from 1 of the sum over all rows", lambda m: abs(m["MaM"]["sum"] - 1),
             at_most(0.15), True),
        Rule("KL of MaM", lambda m: m["MaM"]["KL"], at_most(0.15), True),
        Rule("KL of ARM-MC over that of MaM", lambda m: m["ARM-MC"]["KL"] / m["MaM"]["KL"],
             at_least(3), True),
        Rule("KL of MaM minus ARM, which pays for all steps", difference("MaM", "ARM", "KL"),
             above(0), True),
        Rule("speed of marginals at one reading", lambda m: m["MaM"]["speed"],
             at_least(SIDE**2 / 2), True),
    ),
    asides=(
        Aside("error of marginals with alpha 0", lambda m: m["alpha 0"]["error"]),
        Aside("Pearson with alpha 0", lambda m: m["alpha 0"]["Pearson"]),
        Aside("Pearson of values a nat apart", lambda m: m["MaM"]["Pearson, separated"]),
        Aside("Spearman of marginals with the truth", lambda m: m["MaM"]["Spearman"]),
    ),
    tables=(
        Table("What is drawn", ("MaM", "alpha 0", "ARM", "ARM-MC"), ("KL",)),
        Table("What is said at one reading of parts", tuple(ALPHA),
              ("error", "Pearson", "Spearman", "Pearson, separated")),
        Table("What is said of complete rows", ("MaM",), ("distance", "sum")),
        Table("Error by how much a query knows", tuple(PARTS), ("error",)),
    ),
    pictures=(
        Cloud("enumeration", "Log-marginals against enumeration, all queries of all seeds", QUERY,
              "exact", "at one reading"),
        Dots("kl", "Divergence of what is drawn, in nats", ("MaM", "ARM", "ARM-MC"), "KL"),
        Dots("marginals", "Error of log-marginals, in nats", ("MaM", *PARTS), "error"),
    ),
)  # fmt: skip

"""SimPO's claim: dividing by the length keeps quality where labels favour length.

Meng, Xia, Chen 2024, arXiv 2405.14734. A tabular autoregressive policy, whose expected quality and
length are computed exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from melior import ops
from melior.claims.claim import (
    Array,
    Aside,
    Claim,
    Dots,
    Measured,
    Rule,
    Scatter,
    Table,
    above,
    at_least,
    best_of,
    difference,
    minus,
)
from melior.claims.simpo_world import (
    N_PAIRS,
    World,
    drawn_world,
    judged,
    log_prob,
    picked,
    sides,
    stacked_worlds,
)
from melior.claims.worlds import drawn_batches, fitted
from melior.losses.preference import dpo
from melior.losses.reference_free import simpo
from melior.types import Pairwise

STEPS, BATCH_SIZE, LEARNING_RATE = 300, 256, 0.02

Loss = Callable[[Pairwise, Pairwise], Tensor]
"""From the policy's and the reference's log-probabilities to one loss per pair."""


@dataclass(frozen=True)
class Arm:
    """A loss on summed or on averaged log-probabilities."""

    loss: Loss
    is_averaged: bool
    learning_rate: float = LEARNING_RATE


def dpo_arm(beta: float, learning_rate: float = LEARNING_RATE) -> Arm:
    """Return DPO, on sums."""
    return Arm(partial(dpo, beta=beta), is_averaged=False, learning_rate=learning_rate)


def simpo_arm(ratio: float, learning_rate: float = LEARNING_RATE, *, beta: float = 2.0) -> Arm:
    """Return SimPO with a margin of `ratio * beta`."""
    loss = partial(simpo, beta=beta, gamma=ratio * beta)
    return Arm(lambda policy, _: loss(policy), is_averaged=True, learning_rate=learning_rate)


def unnormalised_arm(beta: float = 0.1, learning_rate: float = LEARNING_RATE) -> Arm:
    """Return SimPO's loss without the division by the length: sums, and a margin of 1."""
    loss = partial(simpo, beta=beta, gamma=1.0)
    return Arm(lambda policy, _: loss(policy), is_averaged=False, learning_rate=learning_rate)


MAIN = {
    "DPO": dpo_arm(0.1),
    "SimPO": simpo_arm(0.5),
    "no length norm": unnormalised_arm(),
}
GAMMAS = {
    "SimPO, gamma/beta 0": simpo_arm(0.0),
    "SimPO": MAIN["SimPO"],
    "SimPO, gamma/beta 1": simpo_arm(1.0),
    "SimPO, gamma/beta 2": simpo_arm(2.0),
}
BETAS = {
    "DPO, beta 0.03": dpo_arm(0.03),
    "DPO": MAIN["DPO"],
    "DPO, beta 0.3": dpo_arm(0.3),
    "DPO, beta 1": dpo_arm(1.0),
}
RATES = {
    f"{name}, rate {rate:g}": arm
    for rate in (0.005, 0.01, 0.04)
    for name, arm in (
        ("DPO", dpo_arm(0.1, rate)),
        ("SimPO", simpo_arm(0.5, rate)),
        ("no length norm", unnormalised_arm(0.1, rate)),
    )
}
UNNORMALISED = {
    "no length norm, beta 0.03": unnormalised_arm(0.03),
    "no length norm": MAIN["no length norm"],
    "no length norm, beta 0.3": unnormalised_arm(0.3),
    "no length norm, beta 1": unnormalised_arm(1.0),
}
OTHER_BETAS = {
    "SimPO, beta 1": simpo_arm(0.5, beta=1.0),
    "SimPO, beta 5": simpo_arm(0.5, beta=5.0),
    "SimPO, beta 10": simpo_arm(0.5, beta=10.0),
}
ARMS = MAIN | GAMMAS | BETAS | UNNORMALISED | OTHER_BETAS | RATES


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Train every arm on every seed and measure it exactly."""
    world = stacked_worlds([drawn_world(ops.generator(seed)) for seed in seeds])
    batches = drawn_batches(seeds, steps, batch_size=BATCH_SIZE, n=[N_PAIRS] * len(seeds))
    reference = judged(world.start, world)
    return {"reference": reference} | {
        name: judged(trained(arm, world, batches), world) for name, arm in ARMS.items()
    }


def trained(arm: Arm, world: World, batches: Int[Tensor, "steps e b"]) -> Tensor:
    """Return the logits that an arm arrives at."""
    with torch.no_grad():
        reference = Pairwise(
            *(log_prob(world.start, side).flatten() for side in sides(world.train))
        )

    def loss(logits: Tensor, step: int) -> Tensor:
        rows = batches[step]
        found = [log_prob(logits, picked(side, rows)) for side in sides(world.train)]
        if arm.is_averaged:
            found = [
                own / side.lengths.gather(1, rows)
                for own, side in zip(found, sides(world.train), strict=True)
            ]
        started = [
            side.reshape(len(rows), -1).gather(1, rows).flatten()
            for side in (reference.chosen, reference.rejected)
        ]
        policy = Pairwise(*(own.flatten() for own in found))
        return arm.loss(policy, Pairwise(*started)).reshape(rows.shape)

    return fitted(world.start, loss, steps=len(batches), learning_rate=arm.learning_rate)


def settings(name: str) -> tuple[str, ...]:
    """Return all arms of a method: the one of the rules, and those of the sweeps."""
    return tuple(arm for arm in ARMS if arm == name or arm.startswith(f"{name}, "))


def smallest_fall(measured: Measured) -> Array:
    """Return by how much the chosen log-probability falls from one gamma to the next, at least."""
    path = [measured[arm]["chosen log-prob"] for arm in GAMMAS if arm != "SimPO, gamma/beta 1"]
    return np.minimum(path[0] - path[1], path[1] - path[2])


CLAIM = Claim(
    name="simpo",
    title="SimPO: dividing by the length carries the load",
    paper="Meng, Xia, Chen 2024, arXiv 2405.14734",
    claimed=(
        "Length normalisation is the part that matters: where labels favour length, SimPO keeps "
        "quality and does not drift long, while the same loss without the division does. A larger "
        "gamma lowers the likelihood of the chosen answers."
    ),
    world="""A tabular policy: 4 prompts, 10 tokens (0 ends an answer), up to 16 tokens, a logit
for each prompt, position, token before and token. The reference's logits are normal with
deviation 0.3; the end is less likely by 0.2, by 3 more at the first two positions, and barred
at the first, for the sampler and the scorer alike. The **quality** of an answer is the share of
its words for which `(token + prompt) mod 3 = 0`. 4000 pairs are drawn from the reference and
labelled by Bradley-Terry with the logit `8 (quality_a - quality_b) + 0.3 (length_a -
length_b)`: labels favour length. 2000 test pairs are labelled by quality alone. 300 steps of
Adam, 256 pairs each, rate 0.02.

Arms: DPO (beta 0.1), SimPO (beta 2, gamma/beta 0.5), the same without length norm (`-log
sigmoid(0.1 (log pi_w - log pi_l) - 1)`), other gammas, and sweeps over beta and rate. Expected
quality and length of what a policy says are exact, by dynamic programming. `p` is the average
log-probability of a token; `chosen log-prob` is its mean over the chosen training answers.""",
    limits="""Rate, end and length bias were set by hand, and the thresholds after seeing pilot
seeds; the seeds here are others. The rules compare the arms at the settings above; the sweeps
say whether another setting of a rival would have changed the order. That a larger gamma *helps*
is not asserted.""",
    measure=measure,
    steps=STEPS,
    rules=(
        Rule("quality: SimPO minus no length norm",
             difference("SimPO", "no length norm", "quality"), at_least(0.06), True),
        Rule("quality: SimPO minus DPO",
             difference("SimPO", "DPO", "quality"), at_least(0.03), True),
        Rule("length: no length norm minus SimPO",
             difference("no length norm", "SimPO", "length"), at_least(1.0), True),
        Rule("chosen log-prob: smallest fall along gamma/beta 0, 0.5, 2",
             smallest_fall, above(0.0), True),
    ),
    asides=(
        Aside("quality: SimPO at its best setting minus no length norm at its best",
              minus(best_of(settings("SimPO"), "quality"),
                    best_of(settings("no length norm"), "quality"))),
        Aside("quality: SimPO at its best setting minus DPO at its best",
              minus(best_of(settings("SimPO"), "quality"), best_of(settings("DPO"), "quality"))),
        Aside("quality: SimPO at gamma/beta 2 minus SimPO at 0",
              difference("SimPO, gamma/beta 2", "SimPO, gamma/beta 0", "quality")),
    ),
    tables=(
        Table("The arms", ("reference", *MAIN), ("quality", "length", "chosen log-prob",
              "right by p", "right by DPO's reward", "of these, wrong by p"),
              "Shares are of the clean test pairs."),
        Table("Gamma", tuple(GAMMAS), ("quality", "length", "chosen log-prob", "right by p"),
              "SimPO alone is gamma/beta 0.5."),
        Table("DPO's beta", tuple(BETAS),
              ("quality", "length", "right by DPO's reward", "of these, wrong by p"),
              "DPO alone is beta 0.1."),
        Table("Other betas", tuple(UNNORMALISED | OTHER_BETAS), ("quality", "length")),
        Table("Learning rates", tuple(RATES), ("quality", "length"), "The arms above have 0.02."),
    ),
    pictures=(
        Dots("quality", "Expected quality", tuple(MAIN | GAMMAS | BETAS | UNNORMALISED),
             "quality", "reference"),
        Scatter("quality-and-length", "Quality against length",
                {"DPO over beta": tuple(BETAS), "SimPO over gamma": tuple(GAMMAS),
                 "no length norm over beta": tuple(UNNORMALISED),
                 "reference": ("reference",)}, "length", "quality"),
    ),
)  # fmt: skip

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
from jaxtyping import Bool, Float, Int
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
from melior.claims.worlds import drawn_batches, fitted, per_seed, stacked
from melior.losses.preference import dpo
from melior.losses.reference_free import simpo
from melior.types import Pairwise

PROMPTS, POSITIONS, VOCABULARY, END = 4, 16, 10, 0
N_PAIRS, N_TEST = 4000, 2000
STEPS, BATCH_SIZE, LEARNING_RATE = 300, 256, 0.02
QUALITY_WEIGHT, LENGTH_WEIGHT = 8.0, 0.3
"""What a better and what a longer answer add to the logit that it is preferred."""

Loss = Callable[[Pairwise, Pairwise], Tensor]
"""From the policy's and the reference's log-probabilities to one loss per pair."""


@dataclass(frozen=True)
class Answers:
    """Sampled answers: where each token stands in the flat table, and how many there are."""

    places: Int[Tensor, "*e n t"]
    lengths: Float[Tensor, "*e n"]
    """Tokens, the end token among them."""
    quality: Float[Tensor, "*e n"]
    """Share of good tokens among those before the end."""


@dataclass(frozen=True)
class Pairs:
    """Two answers to each prompt, the preferred one first."""

    chosen: Answers
    rejected: Answers


@dataclass(frozen=True)
class World:
    """What one seed gives, or several along a first axis."""

    start: Float[Tensor, "*e p t v v"]
    """Logits of the reference by prompt, position, token before, token."""
    train: Pairs
    test: Pairs


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
OTHER_BETAS = {
    "no length norm, beta 0.03": unnormalised_arm(0.03),
    "no length norm, beta 0.3": unnormalised_arm(0.3),
    "no length norm, beta 1": unnormalised_arm(1.0),
    "SimPO, beta 1": simpo_arm(0.5, beta=1.0),
    "SimPO, beta 5": simpo_arm(0.5, beta=5.0),
    "SimPO, beta 10": simpo_arm(0.5, beta=10.0),
}
ARMS = MAIN | GAMMAS | BETAS | RATES | OTHER_BETAS


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Train every arm on every seed and measure it exactly."""
    world = stacked_worlds([drawn_world(ops.generator(seed)) for seed in seeds])
    batches = drawn_batches(seeds, steps, batch_size=BATCH_SIZE, n=[N_PAIRS] * len(seeds))
    reference = judged(world.start, world)
    return {"reference": reference} | {
        name: judged(trained(arm, world, batches), world) for name, arm in ARMS.items()
    }


def drawn_world(dice: torch.Generator) -> World:
    """Draw a reference, training pairs that favour length, and clean test pairs."""
    start = 0.3 * torch.randn(
        PROMPTS, POSITIONS, VOCABULARY, VOCABULARY, generator=dice, dtype=torch.float64
    )
    start[..., END] -= 0.2
    start[:, :2, :, END] -= 3
    left, right = (sampled(start, N_PAIRS, dice) for _ in range(2))
    logit = QUALITY_WEIGHT * (left.quality - right.quality)
    logit = logit + LENGTH_WEIGHT * (left.lengths - right.lengths)
    is_won = torch.rand(N_PAIRS, generator=dice, dtype=torch.float64) < logit.sigmoid()
    train = in_order(left, right, is_won)
    left, right = (sampled(start, N_TEST, dice) for _ in range(2))
    return World(start, train, in_order(left, right, left.quality > right.quality))


def sampled(logits: Float[Tensor, "p t v v"], n: int, dice: torch.Generator) -> Answers:
    """Draw answers, the same number to every prompt, token by token."""
    chances = log_probs(logits).exp()
    prompt = torch.arange(n) % PROMPTS
    before, is_open = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool)
    places, lengths, good = [], torch.zeros(n), torch.zeros(n)
    for position in range(POSITIONS):
        token = torch.multinomial(chances[prompt, position, before], 1, generator=dice)[:, 0]
        place = ((prompt * POSITIONS + position) * VOCABULARY + before) * VOCABULARY + token
        places.append(place.where(is_open, -1))
        lengths += is_open
        good += is_open & is_good(prompt, token)
        is_open, before = is_open & (token != END), token
    words = lengths - (~is_open).to(lengths)
    return Answers(torch.stack(places, -1), lengths.double(), (good / words).double())


def is_good(prompt: Int[Tensor, "*n"], token: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Say which tokens make an answer to a prompt good; the end token never does."""
    return ((token + prompt) % 3 == 0) & (token != END)


def in_order(left: Answers, right: Answers, is_won: Bool[Tensor, " n"]) -> Pairs:
    """Make pairs of two answers to each prompt, the winner first."""

    def choose(first: Answers, second: Answers) -> Answers:
        return Answers(
            first.places.where(is_won[:, None], second.places),
            first.lengths.where(is_won, second.lengths),
            first.quality.where(is_won, second.quality),
        )

    return Pairs(choose(left, right), choose(right, left))


def log_probs(logits: Float[Tensor, "*e p t v v"]) -> Float[Tensor, "*e p t v v"]:
    """Return the policy's table; no answer ends before its first word."""
    is_barred = torch.zeros(POSITIONS, VOCABULARY, VOCABULARY, dtype=torch.bool)
    is_barred[0, :, END] = True
    return logits.masked_fill(is_barred, -torch.inf).log_softmax(-1)


def log_prob(logits: Float[Tensor, "e p t v v"], answers: Answers) -> Float[Tensor, "e n"]:
    """Return the summed log-probability of each answer."""
    flat = log_probs(logits).flatten(1)
    places = answers.places.flatten(1)
    told = flat.gather(1, places.clamp(min=0)).where(places >= 0, 0.0)
    return told.reshape(answers.places.shape).sum(-1)


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


def sides(pairs: Pairs) -> tuple[Answers, Answers]:
    """Return the chosen and the rejected answers."""
    return pairs.chosen, pairs.rejected


def picked(answers: Answers, rows: Int[Tensor, "e b"]) -> Answers:
    """Return some answers of each seed."""
    return Answers(
        answers.places.gather(1, rows[..., None].expand(-1, -1, POSITIONS)),
        answers.lengths.gather(1, rows),
        answers.quality.gather(1, rows),
    )


@torch.no_grad()
def judged(logits: Float[Tensor, "e p t v v"], world: World) -> dict[str, Array]:
    """Measure a policy: exact expectations, and how it ranks the clean pairs."""
    quality, length = expected_quality_and_length(logits)
    trained_on = log_prob(logits, world.train.chosen) / world.train.chosen.lengths
    sums = [log_prob(logits, side) for side in sides(world.test)]
    means = [own / side.lengths for own, side in zip(sums, sides(world.test), strict=True)]
    ratios = [
        own - log_prob(world.start, side) for own, side in zip(sums, sides(world.test), strict=True)
    ]
    differs = world.test.chosen.quality != world.test.rejected.quality
    by_mean, by_ratio = means[0] > means[1], ratios[0] > ratios[1]

    def share(which: Tensor) -> Array:
        return per_seed((which & differs).sum(-1) / differs.sum(-1))

    return {
        "quality": per_seed(quality),
        "length": per_seed(length),
        "chosen log-prob": per_seed(trained_on.mean(-1)),
        "right by p": share(by_mean),
        "right by DPO's reward": share(by_ratio),
        "right by DPO's reward, wrong by p": share(by_ratio & ~by_mean),
    }


def expected_quality_and_length(
    logits: Float[Tensor, "e p t v v"],
) -> tuple[Float[Tensor, " e"], Float[Tensor, " e"]]:
    """Return both exactly, averaged over prompts: forward over positions, words, good words."""
    chances = log_probs(logits).exp()
    n_seeds = len(logits)
    prompts, tokens = torch.arange(PROMPTS)[:, None], torch.arange(VOCABULARY)[None]
    good = is_good(*torch.broadcast_tensors(prompts, tokens))[None, :, :, None]
    counts = torch.arange(POSITIONS + 1, dtype=torch.float64)
    # Where an unfinished answer stands: chance by its last token and its number of good words.
    mass = torch.zeros(n_seeds, PROMPTS, VOCABULARY, POSITIONS + 1, dtype=torch.float64)
    mass[:, :, END, 0] = 1
    quality = torch.zeros(n_seeds, dtype=torch.float64)
    length = torch.zeros_like(quality)
    for position in range(POSITIONS):
        moved = torch.einsum("epvg,epvw->epwg", mass, chances[:, :, position])
        length += mass.sum((1, 2, 3)) / PROMPTS
        quality += (moved[:, :, END] @ counts).sum(-1) / max(position, 1) / PROMPTS
        moved[:, :, END] = 0
        mass = moved.roll(1, dims=-1).where(good, moved)
    quality += (mass @ counts).sum((1, 2)) / POSITIONS / PROMPTS
    return quality, length


def stacked_worlds(worlds: Sequence[World]) -> World:
    """Put worlds on one axis of seeds."""

    def pairs(parts: Sequence[Pairs]) -> Pairs:
        return Pairs(
            stacked([part.chosen for part in parts]), stacked([part.rejected for part in parts])
        )

    return World(
        torch.stack([world.start for world in worlds]),
        pairs([world.train for world in worlds]),
        pairs([world.test for world in worlds]),
    )


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
        Aside("right by p: SimPO minus DPO", difference("SimPO", "DPO", "right by p")),
    ),
    tables=(
        Table("The arms", ("reference", *MAIN), ("quality", "length", "chosen log-prob",
              "right by p", "right by DPO's reward", "right by DPO's reward, wrong by p"),
              "Shares are of the clean test pairs."),
        Table("Gamma", tuple(GAMMAS), ("quality", "length", "chosen log-prob", "right by p"),
              "SimPO alone is gamma/beta 0.5."),
        Table("DPO's beta", tuple(BETAS),
              ("quality", "length", "right by DPO's reward, wrong by p"), "DPO alone is beta 0.1."),
        Table("Other betas", tuple(OTHER_BETAS), ("quality", "length")),
        Table("Learning rates", tuple(RATES), ("quality", "length"), "The arms above have 0.02."),
    ),
    pictures=(
        Dots("quality", "Expected quality", ("DPO", "SimPO", "no length norm", *list(GAMMAS)[::2],
             *list(BETAS)[::2], "DPO, beta 1"), "quality", "reference"),
        Scatter("quality-and-length", "Quality against length",
                {"DPO over beta": tuple(BETAS), "SimPO over gamma": tuple(GAMMAS),
                 "no length norm over beta": ("no length norm, beta 0.03", "no length norm",
                                              "no length norm, beta 0.3", "no length norm, beta 1"),
                 "reference": ("reference",)}, "length", "quality"),
    ),
)  # fmt: skip

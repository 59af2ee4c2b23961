"""The world of SimPO's claim: a tabular policy, labels that favour length, exact expectations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.claims.claim import Array
from melior.claims.worlds import per_seed, stacked

PROMPTS, POSITIONS, VOCABULARY, END = 4, 16, 10, 0
N_PAIRS, N_TEST = 4000, 2000
QUALITY_WEIGHT, LENGTH_WEIGHT = 8.0, 0.3
"""What a better and what a longer answer add to the logit that it is preferred."""


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
        "of these, wrong by p": per_seed(
            (by_ratio & ~by_mean & differs).sum(-1) / (by_ratio & differs).sum(-1).clamp(min=1)
        ),
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

"""GPM's claim: antisymmetric scores of embeddings express cycles, at one pass per answer.

Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197. Answers on a circle, each beating the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

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
    at_least,
    at_most,
    difference,
    within,
)
from melior.claims.gpm_world import N_PROMPTS, N_TRAIN, WIDTH, World, drawn_world
from melior.claims.networks import descend, side_by_side
from melior.losses.general import fit_embedding, general_preference, skew_score, skew_scores
from melior.models.embedding import EmbeddingOptions, PreferenceHead

STEPS, LEARNING_RATE, HIDDEN = 600, 3e-3, 64
BETA = 0.1
SIZES = (2, 4, 8, 16, 32)
"""Numbers of answers to one prompt, where passes are counted."""


class Rewards(nn.Module):
    """A number for each answer; scores are differences, and the loss Bradley and Terry's."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.read = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, world: World) -> Float[Tensor, "n k k"]:
        """Return by how much each answer (row) beats each other one."""
        rewards = self.read(world.answers)[..., 0]
        return rewards[:, :, None] - rewards[:, None, :]


class Embeddings(nn.Module):
    """Preference embeddings under a perceptron of one hidden layer; it counts its passes."""

    def __init__(self, options: EmbeddingOptions, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.read = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU())
        self.head = PreferenceHead(options, seed=seed)
        self.passes = 0

    def forward(self, world: World) -> Float[Tensor, "n k k"]:
        """Return by how much each answer (row) beats each other one."""
        return skew_scores(self.embed(world.answers), self.gate(world.prompts))

    def embed(self, answers: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """Return embeddings, in one pass."""
        self.passes += 1
        return self.head(self.read(answers))

    def gate(self, prompts: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Return how much each plane counts."""
        return self.head.gate(self.read(prompts))


@dataclass(frozen=True)
class Arm:
    """A network, and the temperature of its loss at a share of the steps."""

    made: Callable[[int], nn.Module]
    """From a seed."""
    beta: Callable[[float], float]


def general(
    dimensions: int = 6,
    *,
    beta: Callable[[float], float] = lambda _: BETA,
    is_normalised: bool = True,
    gate: str = "mean-one",
) -> Arm:
    """Return GPM."""
    options = EmbeddingOptions(HIDDEN, dimensions, is_normalised, gate)
    return Arm(lambda seed: Embeddings(options, seed=seed), beta)


def cooled(share: float) -> float:
    """Return a beta that falls from 1 to 0.1 over the first half of the steps."""
    return BETA ** min(1.0, 2 * share)


MAIN = {"BT": Arm(lambda seed: Rewards(seed=seed), lambda _: 1.0), "GPM": general()}
WORLDS = {"3-cycles": 3, "4-cycles": 4, "5-cycles": 5, "in order": 5}
"""How many answers there are; only the last has no cycle."""
VARIANTS = {
    "6 dimensions": general(),
    "4 dimensions": general(4),
    "2 dimensions": general(2),
    "2 dimensions, beta 1": general(2, beta=lambda _: 1.0),
    "2 dimensions, cooled": general(2, beta=cooled),
    "2 dimensions, any length": general(2, is_normalised=False),
    "any length": general(is_normalised=False),
    "no gate": general(gate="none"),
    "gate that adds up to 1": general(gate="sum-one"),
}
"""On 3-cycles, for 5 steps of 12."""


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Train every arm in its worlds, and count what it takes to score many answers."""
    return side_by_side([measured_on(seed, steps) for seed in seeds])


def measured_on(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Measure all arms on the worlds of one seed."""
    short = max(1, 5 * steps // 12)
    found = {}
    for place, (where, size) in enumerate(WORLDS.items()):
        is_cyclic = where != "in order"
        world = drawn_world(ops.generator(seed + place * 10**6), size=size, is_cyclic=is_cyclic)
        for name, arm in MAIN.items():
            own = steps if is_cyclic else short
            found[f"{where}: {name}"] = accuracies(arm, world, steps=own, seed=seed)
        if where == "3-cycles":
            for name, arm in VARIANTS.items():
                found[name] = accuracies(arm, world, steps=short, seed=seed)
    for size in SIZES:
        found |= counted(size, seed)
    return found


def accuracies(arm: Arm, world: World, *, steps: int, seed: int) -> dict[str, float]:
    """Train an arm on most prompts and return the share of pairs it has right; ties count half."""
    network = arm.made(seed)
    train, test = world.part(0, N_TRAIN), world.part(N_TRAIN, N_PROMPTS)

    def loss(step: int) -> Tensor:
        won = network(train)[:, train.winners, train.losers].flatten()
        return general_preference(won, torch.ones_like(won), beta=arm.beta(step / steps))

    descend(network, loss, steps=steps, learning_rate=LEARNING_RATE)
    return {"accuracy": right(network, test), "accuracy in training": right(network, train)}


@torch.no_grad()
def right(network: nn.Module, world: World) -> float:
    """Return the share of pairs whose winner beats the loser."""
    won = network(world)[:, world.winners, world.losers]
    return float((won.sign() + 1).mean() / 2)


@torch.no_grad()
def counted(size: int, seed: int) -> dict[str, dict[str, float]]:
    """Score all pairs of one prompt's answers in two ways, and fit a matrix drawn at random."""
    dice = ops.generator(seed + size)
    answers, prompt = (torch.randn(n, WIDTH, generator=dice) for n in (size, 1))
    network = Embeddings(EmbeddingOptions(HIDDEN), seed=seed)
    embeddings = torch.cat([network.embed(answers[[i]]) for i in range(size)])
    gate, singly = network.gate(prompt), network.passes
    scores = skew_scores(embeddings[None], gate)[0]
    by_pairs, network.passes = torch.zeros(size, size), 0
    for i in range(size):
        for j in (own for own in range(size) if own != i):
            both = network.embed(answers[[i, j]])
            by_pairs[i, j] = skew_score(both[:1], both[1:], gate)[0]
    drawn = torch.randn(size, size, generator=dice, dtype=torch.float64)
    wanted = drawn - drawn.T
    fitted = fit_embedding(wanted)
    planes = torch.ones(1, fitted.shape[-1] // 2, dtype=torch.float64)
    error = (skew_scores(fitted[None], planes)[0] - wanted).abs().max()
    return {
        f"GPM, K {size}": {
            "answers": size,
            "passes": singly,
            "off by": float((scores - by_pairs).abs().max()),
            "fitted off by": float(error),
        },
        f"pair by pair, K {size}": {"answers": size, "passes": network.passes},
    }


def largest(quantity: str) -> Callable[[Measured], Array]:
    """Return the measure: the largest value over all numbers of answers."""
    return lambda measured: np.stack([measured[f"GPM, K {k}"][quantity] for k in SIZES]).max(0)


def miscounted(name: str, passes: Callable[[int], int]) -> Callable[[Measured], Array]:
    """Return the measure: how far the passes are from a number of them, at most."""

    def measure(measured: Measured) -> Array:
        wrong = [measured[f"{name}, K {k}"]["passes"] - passes(k) for k in SIZES]
        return np.abs(np.stack(wrong)).max(0)

    return measure


def accuracy(arm: str) -> Callable[[Measured], Array]:
    """Return the measure: an arm's accuracy on prompts that it never saw."""
    return lambda measured: measured[arm]["accuracy"]


TRAINED = tuple(f"{where}: {name}" for where in WORLDS for name in MAIN)
COUNTED = {name: tuple(f"{name}, K {k}" for k in SIZES) for name in ("GPM", "pair by pair")}
CLAIM = Claim(
    name="gpm",
    title="GPM: preferences that go in circles",
    paper="Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197",
    claimed=(
        "A score that is antisymmetric in two embeddings learns cyclic preferences, at which any "
        "Bradley-Terry reward is no better than chance, and embeds K answers in K passes where a "
        "judge of pairs needs K (K - 1). Where preferences are transitive, it may lose "
        "to Bradley-Terry by a little."
    ),
    world="""120 prompts of 8 normal numbers, each with 3, 4 or 5 answers at even places
around a circle, off by noise of deviation 0.1; where the circle begins is linear in the
prompt, with deviation 3. Each answer beats the one before it, and the first beats the last. A
model sees cosine, sine and the prompt's numbers through a fixed random map and tanh, 32
features; the gate sees the prompt through the same map with 0 for cosine and sine. *in order*
is the control: 5 answers along half a circle, which begins nearly at the same place
(deviation 0.5), each beating all before it. 84 prompts teach, 36 judge. A perceptron of 64
hidden units; 600 steps of AdamW on all pairs, rate 0.003; 250 in the control and for the
variants.

*BT* is one reward, beta 1. *GPM* has 6 dimensions, length 1, the gate whose mean is 1, and
beta 0.1. The variants change one thing, on 3-cycles; *cooled* lets beta fall from 1 to 0.1
over the first half of the steps. **accuracy** is the share of pairs whose winner beats the
loser, ties half. Passes are counted on answers drawn at random: *pair by pair* computes each
ordered pair by itself, and **off by** is the largest difference between its scores and those
of one product of embeddings. **fitted off by** is that of the closed form for a random
antisymmetric matrix, in K / 2 planes.""",
    limits="""The thresholds were set after pilot seeds; the seeds here are others. Cycles are
the world's by construction: whether human preferences hold many is another question, and the
paper's own cyclic sets are judged on the triples that were trained on. 2 dimensions of length
1 are a circle, on which training can wind the wrong way round and stay there: such an arm
ends anywhere from one half to 1, and its mean says little. On 3-cycles no reward can have more
than 2 of 3 pairs right. That passes are so few follows from the form of the score; a judge that
reads both answers together may be right where embeddings are not. Whether policies trained on
such scores are better is not a part of this claim. Where circles begin, and what the gate
sees, is not in the paper's summary that this world follows and was chosen here.""",
    measure=measure,
    steps=STEPS,
    rules=(
        *(Rule(f"accuracy: GPM on {n}-cycles", accuracy(f"{n}-cycles: GPM"), at_least(0.93))
          for n in (3, 5)),
        *(Rule(f"accuracy: BT on {n}-cycles", accuracy(f"{n}-cycles: BT"), at_most(0.62))
          for n in (3, 5)),
        Rule("accuracy: BT in order", accuracy("in order: BT"), at_least(0.95)),
        Rule("accuracy: GPM in order", accuracy("in order: GPM"), at_least(0.85)),
        Rule("passes: farthest from K, GPM", miscounted("GPM", lambda k: k), within(0), True),
        Rule("passes: farthest from K (K - 1), pair by pair",
             miscounted("pair by pair", lambda k: k * (k - 1)), within(0), True),
        Rule("scores: off by at most, of all K", largest("off by"), at_most(1e-5), True),
        Rule("scores: fitted off by at most, of all K", largest("fitted off by"),
             at_most(1e-5), True),
    ),
    asides=(
        Aside("accuracy: GPM on 4-cycles", accuracy("4-cycles: GPM")),
        Aside("accuracy: BT on 4-cycles", accuracy("4-cycles: BT")),
        Aside("accuracy: BT minus GPM in order",
              difference("in order: BT", "in order: GPM", "accuracy")),
        *(Aside(f"accuracy: {name}", accuracy(name)) for name in VARIANTS if name[0] == "2"),
    ),
    tables=(
        Table("The arms", TRAINED, ("accuracy", "accuracy in training")),
        Table("Variants on 3-cycles", tuple(VARIANTS), ("accuracy", "accuracy in training"),
              "250 steps each."),
        Table("Passes", COUNTED["GPM"], ("passes", "off by", "fitted off by")),
        Table("Passes, pair by pair", COUNTED["pair by pair"], ("passes",)),
    ),
    pictures=(
        Dots("accuracy", "Accuracy on new prompts", TRAINED, "accuracy"),
        Dots("variants", "Accuracy on new prompts, variants on 3-cycles", tuple(VARIANTS),
             "accuracy"),
        Scatter("passes", "Passes to score all pairs of K answers", COUNTED, "answers", "passes"),
    ),
)  # fmt: skip

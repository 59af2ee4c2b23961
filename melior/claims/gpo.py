"""GPO's claim: played against itself on general scores, the average policy cannot be exploited.

Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197, sec. 5. Games whose answers beat each other as a
matrix says, with the exact step and the exact exploitability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float
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
    at_least,
    at_most,
    difference,
    within,
)
from melior.claims.networks import side_by_side

STEPS, N_GAMES, ANSWERS = 800, 20, 5
STEEPNESS = 4.0
"""A comparison is won with probability sigmoid of so many times its score; BT sees these."""
GAMES = ("rock-paper-scissors", "random", "in order")
ARMS = ("GPO, average", "GPO, last", "GPO, mean logits", "BT, average", "BT, last")
LENGTHS = {"T 50": 1 / 16, "T 200": 1 / 4, "T 800": 1, "T 3200": 4}
"""Of the run, as a share of the claim's steps."""


def drawn_games(kind: str, dice: torch.Generator) -> Float[Tensor, "n k k"]:
    """Draw games: by how much each answer (row) beats each other one, at most 1."""
    if kind == "rock-paper-scissors":
        cycle = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
        return cycle.expand(N_GAMES, 3, 3)
    shape = (N_GAMES, ANSWERS, ANSWERS if kind == "random" else 1)
    drawn = torch.randn(shape, generator=dice, dtype=torch.float64)
    scores = drawn - drawn.transpose(-1, -2)
    return scores / scores.abs().amax((-1, -2), keepdim=True)


def bradley_terry_scores(scores: Float[Tensor, "n k k"]) -> Float[Tensor, "n k k"]:
    """Return the differences of rewards that make a game's wins most likely, by Newton's method.

    All pairs are seen alike, and as often as need be. On the scale of the game's scores.
    """
    wins = (STEEPNESS * scores).sigmoid()
    rewards = torch.zeros_like(scores[..., 0])
    flat = torch.ones_like(scores) / scores.shape[-1]  # rewards are known but for a constant
    for _ in range(30):
        told = (rewards[:, :, None] - rewards[:, None, :]).sigmoid()
        slope = (told - wins).sum(-1)
        curve = told * (1 - told)
        bend = torch.diag_embed(curve.sum(-1)) - curve
        rewards = rewards - torch.linalg.solve(bend + flat, slope)
    return (rewards[:, :, None] - rewards[:, None, :]) / STEEPNESS


def played(
    scores: Float[Tensor, "n k k"], start: Float[Tensor, "n k"], steps: int
) -> dict[str, Float[Tensor, "n k"]]:
    """Play each game's policy against itself, and return its last and its average iterate.

    The step is what eq. 5.3 comes to where the policy can be anything: `log pi += (S pi) / beta`,
    with `beta = sqrt(T) / 2` for T steps. *mean logits* is the policy of the averaged logits, as
    averaging the weights of a softmax would give it; the theorem speaks of the averaged policy.
    """
    logits, rate = start.log_softmax(-1), 2 / sqrt(steps)
    mean, mean_logits = torch.zeros_like(start), torch.zeros_like(start)
    policy = logits.exp()
    for _ in range(steps):
        policy = logits.exp()
        mean, mean_logits = mean + policy / steps, mean_logits + logits / steps
        logits = (logits + rate * (scores @ policy[..., None])[..., 0]).log_softmax(-1)
    return {"average": mean, "last": policy, "mean logits": mean_logits.softmax(-1)}


def exploitability(
    scores: Float[Tensor, "n k k"], policy: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Return by how much the best answer beats a policy; 0 for what no answer beats."""
    return (scores @ policy[..., None])[..., 0].amax(-1)


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Play all games of each seed, by their scores and by Bradley-Terry's."""
    return side_by_side([measured_on(seed, steps) for seed in seeds])


def measured_on(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Measure all arms on the games of one seed."""
    found: dict[str, dict[str, float]] = {}
    for place, kind in enumerate(GAMES):
        dice = ops.generator(seed + place * 10**6)
        scores = drawn_games(kind, dice)
        start = torch.randn(scores.shape[:2], generator=dice, dtype=torch.float64)
        found[f"{kind}: start"] = said(scores, start.softmax(-1))
        for length, share in LENGTHS.items():
            own = max(1, round(share * steps))
            for name, seen in (("GPO", scores), ("BT", bradley_terry_scores(scores))):
                for iterate, policy in played(seen, start, own).items():
                    found[f"{kind}: {name}, {iterate}, {length}"] = {
                        "steps": own, **said(scores, policy)
                    }  # fmt: skip
    return found


def said(scores: Float[Tensor, "n k k"], policy: Float[Tensor, "n k"]) -> dict[str, float]:
    """Return how exploitable a policy is: on average over the games, and in the worst of them."""
    found = exploitability(scores, policy)
    return {"exploitability": float(found.mean()), "in the worst game": float(found.max())}


def exploited(arm: str, quantity: str = "exploitability") -> Callable[[Measured], Array]:
    """Return the measure: how exploitable an arm is after the claim's steps."""
    return lambda measured: measured[f"{arm}, T 800"][quantity]


def half_of_bradley_terry(kind: str) -> Callable[[Measured], Array]:
    """Return the measure: half of Bradley-Terry's exploitability less GPO's, both averaged."""
    theirs, ours = (exploited(f"{kind}: {name}, average") for name in ("BT", "GPO"))
    return lambda measured: np.asarray(theirs(measured) / 2 - ours(measured))


def over_steps(kind: str) -> dict[str, tuple[str, ...]]:
    """Return each arm at all lengths, for the picture."""
    return {arm: tuple(f"{kind}: {arm}, {length}" for length in LENGTHS) for arm in ARMS}


CYCLIC = GAMES[:2]
CLAIM = Claim(
    name="gpo",
    title="GPO: the average policy in games without a best answer",
    paper="Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197",
    claimed=(
        "A policy that is improved against itself on general preference scores approaches, on "
        "average over its iterates, one that no answer beats; improved on Bradley-Terry rewards of "
        "the same comparisons it does not, where preferences go in circles. Nothing is promised "
        "for the last iterate."
    ),
    world=f"""Games: a matrix says by how much each answer beats each other one, at most by 1.
*Rock-paper-scissors* has 3 answers and scores of 1; *random* has 5, and is `A - A'` of normal
numbers; *in order* is the control, differences of one normal number for each of 5 answers. A
seed gives {N_GAMES} games of each kind, and for each a policy to start from, the softmax of
normal numbers. Each step is exact, `log pi += (S pi) / beta` with `beta = sqrt(T) / 2` for T steps,
which is what the paper's regression (eq. 5.3) comes to for a policy that can be anything.

*GPO* plays by the game's scores. *BT* plays in the same way by differences of rewards, fitted to
all comparisons, each won with probability `sigmoid(4 s)`, on the scale of the scores.
**exploitability** is the score of the best answer against the policy, on average over the games:
0 for what no answer beats. *average* is the mixture of all iterates, *last* the last of them,
and *mean logits* the policy of their averaged logits: what averaging weights would give, were the
policy linear in them.""",
    limits="""The thresholds are those of a pilot with other starts; the seeds here are others.
Scores are the games' own, without noise and without a model that has to learn them, and steps
have no sampling error: what is held to the test is the update, not its approximation by a
network on best and worst of a few answers. A mixture of iterates is sampled by drawing an iterate
first; a single network that would be the mixture has to be distilled. The control cannot favour
GPO: in it Bradley-Terry's rewards are exact, and both arms walk the same way. The last iterate
is reported and not judged; it circles.""",
    measure=measure,
    steps=STEPS,
    rules=(
        *(Rule(f"{kind}, exploitability: GPO, average", exploited(f"{kind}: GPO, average"),
               at_most(0.05)) for kind in CYCLIC),
        *(Rule(f"{kind}, exploitability: half of BT's minus GPO's, averages",
               half_of_bradley_terry(kind), at_least(0)) for kind in CYCLIC),
        Rule("in order, exploitability: BT minus GPO, averages",
             difference("in order: BT, average, T 800", "in order: GPO, average, T 800",
                        "exploitability"), within(0.001), in_every_seed=True),
    ),
    asides=(
        *(Aside(f"{kind}, exploitability: GPO, {iterate}", exploited(f"{kind}: GPO, {iterate}"))
          for kind in CYCLIC for iterate in ("last", "mean logits")),
        *(Aside(f"{kind}, exploitability in the worst game: GPO, average",
                exploited(f"{kind}: GPO, average", "in the worst game")) for kind in CYCLIC),
    ),
    tables=tuple(
        Table(
            f"{kind}", (f"{kind}: start", *(f"{kind}: {arm}, T 800" for arm in ARMS)),
            ("exploitability", "in the worst game"),
        )
        for kind in GAMES
    ) + tuple(
        Table(f"{kind}, by the number of steps",
              tuple(f"{kind}: GPO, average, {length}" for length in LENGTHS)
              + tuple(f"{kind}: BT, average, {length}" for length in LENGTHS),
              ("steps", "exploitability"))
        for kind in CYCLIC
    ),
    pictures=(
        Dots("exploitability", "Exploitability in random games",
             ("random: start", *(f"random: {arm}, T 800" for arm in ARMS)), "exploitability"),
        *(Scatter(f"steps-{kind}", f"Exploitability by steps, {kind}", over_steps(kind),
                  "steps", "exploitability") for kind in CYCLIC),
    ),
)  # fmt: skip

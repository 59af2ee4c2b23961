"""A world small enough to be solved by hand: three answers, their true rewards, all pairs of them.

Also what every test of a loss needs: pairs from numbers, a descent to the end, frozen peers.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from melior.types import Pairwise

PEERS = Path(__file__).parents[1] / "peers"
START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
CHOSEN, REJECTED = (
    side.flatten() for side in torch.meshgrid(*[torch.arange(3)] * 2, indexing="ij")
)
"""Every ordered pair of answers, those of an answer with itself too."""

Loss = Callable[[Pairwise, Pairwise], Tensor]


def pairwise(chosen, rejected, dtype=torch.float64) -> Pairwise:
    return Pairwise(torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))


def bradley_terry() -> Tensor:
    """Probability that the first answer of each pair wins."""
    return torch.sigmoid(REWARD[CHOSEN] - REWARD[REJECTED])


def linear() -> Tensor:
    """Win probabilities whose *differences*, not log-odds, add up: for regressions on them."""
    return 0.5 + 0.4 * (REWARD[CHOSEN] - REWARD[REJECTED])


def sides(log_probs: Tensor) -> Pairwise:
    return Pairwise(log_probs[CHOSEN], log_probs[REJECTED])


def optimal_policy(loss: Loss, wins: Tensor) -> Tensor:
    """Log-probabilities of the policy that the loss asks for, each pair as often as it occurs.

    Answers are drawn from the start policy, so that pairs occur as its products.
    """
    share = (START[CHOSEN] + START[REJECTED]).exp() * wins
    return descend(
        lambda logits: (share * loss(sides(logits.log_softmax(-1)), sides(START))).sum(), START
    ).log_softmax(-1)


def optimal_ratio(loss: Loss, wins: Tensor) -> Tensor:
    """Log-ratios that the loss asks for, where they need not come from probabilities."""
    share = (START[CHOSEN] + START[REJECTED]).exp() * wins
    return descend(
        lambda ratio: (share * loss(sides(START + ratio), sides(START))).sum(),
        torch.zeros_like(START),
    )


def descend(value: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return where the value is least."""
    at = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [at],
        max_iter=500,
        tolerance_change=0.0,
        tolerance_grad=1e-11,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = value(at)
        found.backward()
        return found

    optimizer.step(closure)
    return at.detach()


def centred(values: Tensor) -> Tensor:
    """Take away what no comparison can tell: a constant."""
    return values - values.mean()


def peer_rows(file: str, name: str) -> list[dict]:
    """Frozen numbers of another implementation; the file names package, version and script."""
    rows = json.loads((PEERS / f"{file}.json").read_text(encoding="utf-8"))["rows"][name]
    assert rows
    return rows


def peer_sums(row: dict, model: str) -> Pairwise:
    """Log-probabilities of a peer's row, which gives them token by token, summed over tokens."""
    totals = ([sum(answer) for answer in row[f"{model}_{side}"]] for side in ("chosen", "rejected"))
    return pairwise(*totals)


def peer_means(row: dict, model: str) -> Pairwise:
    """The same, averaged over tokens."""
    means = (
        [sum(answer) / len(answer) for answer in row[f"{model}_{side}"]]
        for side in ("chosen", "rejected")
    )
    return pairwise(*means)

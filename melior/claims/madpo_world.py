"""The world of MADPO's claim: a log-linear bandit with good or poor pairs and noisy labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.claims.bandit import Pairs, divergence, expected_reward, log_probs
from melior.claims.claim import Array
from melior.claims.worlds import per_seed

N_PROMPTS, ACTIONS, FEATURES, N_PAIRS = 300, 12, 16, 1500
QUALITIES = ("High", "Low")
"""Two actions of the reference; the better of two against the worst of all."""


@dataclass(frozen=True)
class World:
    """What one seed gives, or several along a first axis."""

    start: Float[Tensor, "*e d"]
    features: Float[Tensor, "*e n a d"]
    """Of all actions of the prompt of each pair."""
    rewards: Float[Tensor, "*e n a"]
    """True ones of the same actions; labels come of them, and no arm reads them."""
    chosen: Int[Tensor, "*e n"]
    rejected: Int[Tensor, "*e n"]
    test_features: Float[Tensor, "*e p a d"]
    test_rewards: Float[Tensor, "*e p a"]

    @property
    def pairs(self) -> Pairs:
        """The labelled pairs."""
        return Pairs(self.features, self.chosen, self.rejected)


def drawn_world(dice: torch.Generator, quality: str) -> World:
    """Draw what is rewarded, a reference, and pairs of its actions with noisy labels."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice, dtype=torch.float64)

    direction = normal(FEATURES)
    direction = direction / direction.norm()

    def prompts() -> tuple[Tensor, Tensor]:
        features = normal(N_PROMPTS, ACTIONS, FEATURES)
        noise = 0.3 * normal(N_PROMPTS, ACTIONS)
        return features, 3 * (1.2 * features @ direction + noise).tanh()

    (features, rewards), (test_features, test_rewards) = prompts(), prompts()
    start = 0.15 * normal(FEATURES)
    prompt = torch.arange(N_PAIRS) % N_PROMPTS
    pair = torch.multinomial((features @ start).softmax(-1)[prompt], 2, generator=dice)
    if quality == "Low":
        better = rewards[prompt].gather(-1, pair).argmax(-1, keepdim=True)
        worst = rewards[prompt].argmin(-1, keepdim=True)
        pair = torch.cat([pair.gather(-1, better), worst], -1)
    left, right = rewards[prompt].gather(-1, pair).unbind(-1)
    # Gumbel noise of scale 1 on both rewards is Bradley-Terry on their difference.
    is_won = torch.rand(N_PAIRS, generator=dice, dtype=torch.float64) < (left - right).sigmoid()
    chosen, rejected = pair[:, 0].where(is_won, pair[:, 1]), pair[:, 1].where(is_won, pair[:, 0])
    return World(
        start, features[prompt], rewards[prompt], chosen, rejected, test_features, test_rewards
    )


@torch.no_grad()
def judged(weights: Float[Tensor, "e d"], world: World) -> dict[str, Array]:
    """Measure a policy on new prompts, exactly."""
    table, reference = (
        log_probs(world.test_features, own[:, None]) for own in (weights, world.start)
    )
    return {
        "reward": per_seed(expected_reward(table, world.test_rewards)),
        "KL": per_seed(divergence(table, reference)),
    }

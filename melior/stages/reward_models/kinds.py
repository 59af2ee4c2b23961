"""What a kind of reward model is to the stage that trains it: functions, and what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from melior.data.batches import GroupBatch, TokenGroup
from melior.data.chat import ChatFormat
from melior.data.duels import Duels
from melior.data.examples import Data
from melior.losses.reward import bradley_terry, centring_penalty
from melior.models.heads import RewardModel, load_reward_model, reward_chat, save_reward_model
from melior.models.trial import Packing
from melior.options import ModelOptions
from melior.stages.data import Encode, answer_by_answer
from melior.types import Pairwise


@runtime_checkable
class Trained(Packing, Protocol):
    """What training asks of a model, whatever it says."""

    masters: dict[str, Tensor]

    @property
    def start_hash(self) -> str:
        """A fingerprint of what is computed, taken before training."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training may change, by name."""

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass."""


M = TypeVar("M", bound=Trained)


def _as_they_are(groups: Sequence[TokenGroup], seed: int) -> Sequence[TokenGroup]:
    return groups


@dataclass(frozen=True)
class Judged:
    """What a reward model says of `p` pairs of answers, as `melior.data.duels` lists them."""

    losses: Float[Tensor, " p"]
    margins: Float[Tensor, " p"]
    """Log-odds of the better answer."""
    seen: Mapping[str, Float[Tensor, " _"]] = field(default_factory=dict)
    """Numbers by name whose least, mean and greatest are told."""
    shares: Mapping[str, Float[Tensor, " p"]] = field(default_factory=dict)
    """By what is said of each pair, 1 or 0: compared before and after, the fewer the better."""


@dataclass(frozen=True)
class Kind(Generic[M]):
    """How a kind of reward model is loaded, what it says and learns by, and how it is saved."""

    load: Callable[[ModelOptions, int], M]
    """Ready to be trained; the seed draws what is fresh."""
    is_fresh: Callable[[M], bool]
    """Whether what it says means nothing before training."""
    judged: Callable[[M, GroupBatch, Duels], Judged]
    """What it says of a batch, with gradient."""
    save: Callable[[M, Path], None]
    chat: Callable[[ModelOptions], ChatFormat] = reward_chat
    data: Data = "pairs"
    encode: Encode = answer_by_answer
    tolerated: frozenset[str] = frozenset()
    """Codes of findings in the data that are no errors for this kind."""
    notes: Callable[[], Iterable[str]] = tuple
    """Sentences about the run that its record keeps; asked for when the data is read."""
    learned: Callable[[Sequence[TokenGroup], int], Sequence[TokenGroup]] = _as_they_are
    """What of the groups is trained on, where that is less than what they are judged by; a seed
    draws it."""


def scalar(
    *, margin_weight: float, label_smoothing: float, center_rewards_coefficient: float
) -> Kind[RewardModel]:
    """Return the kind that says one number of each answer, by Bradley-Terry's likelihood.

    Args:
        margin_weight: of the data's own margins, by which the better answer is asked to win.
        label_smoothing: share of labels taken to be flipped.
        center_rewards_coefficient: of the penalty that keeps rewards around 0.
    """

    def judged(model: RewardModel, batch: GroupBatch, pairs: Duels) -> Judged:
        given = model.rewards(batch.forest)
        rewards = Pairwise(given[pairs.better], given[pairs.worse])
        asked = margin_weight * batch.margins[pairs.groups].to(given)
        likelihood = bradley_terry(rewards, margin=asked, label_smoothing=label_smoothing)
        losses = likelihood + center_rewards_coefficient * centring_penalty(rewards)
        return Judged(losses, rewards.margin, {"reward": given})

    return Kind(
        lambda options, seed: load_reward_model(options, trainable=True, seed=seed),
        lambda model: model.is_fresh, judged, save_reward_model,
    )  # fmt: skip

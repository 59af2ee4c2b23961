"""Losses of reward models: the rewards of two answers to one prompt in, one number per pair out."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from melior.losses.preference import smoothed_log_sigmoid_loss
from melior.types import Pairwise


def bradley_terry(
    rewards: Pairwise,
    *,
    margin: float | Float[Tensor, " n"] = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " n"]:
    """Bradley-Terry's likelihood of the better answer.

    Bradley, Terry 1952; as a reward model's loss Stiennon et al. 2020, arXiv 2009.01325, sec. 3.4:
    `-log sigmoid(r_w - r_l)`. With a `margin` m it is `-log sigmoid(r_w - r_l - m)`, Touvron et
    al. 2023, arXiv 2307.09288, eq. 2. With `label_smoothing` e the flipped label counts too:
    `-(1-e) log sigmoid(r_w - r_l - m) - e log sigmoid(-(r_w - r_l - m))`; without a margin it is
    least at `r_w - r_l = log((1-e) / e)`, so that a certain pair no longer pulls for ever.

    Args:
        rewards: one number of any sign per answer; only their difference counts.
        margin: by how much the better answer is asked to win, at least 0; no gradient flows into
            it.
        label_smoothing: share of labels taken to be flipped, at least 0 and below 0.5.
    """
    asked = margin.detach() if isinstance(margin, Tensor) else margin
    return smoothed_log_sigmoid_loss(rewards.margin - asked, label_smoothing)


def centring_penalty(rewards: Pairwise) -> Float[Tensor, " n"]:
    """What keeps rewards around 0, where Bradley-Terry leaves them free to drift.

    Eisenstein et al. 2023, arXiv 2312.09244, eq. 2: `(r_w + r_l)^2`, to be added with a small
    coefficient (TRL's `center_rewards_coefficient`, of which it recommends 0.01). By itself it
    moves no margin: its gradient is the same on both sides.
    """
    return (rewards.chosen + rewards.rejected).square()

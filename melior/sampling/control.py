"""Transitions out of a modelled world: candidates for what follows, one chosen, roll-outs cut.

A filter inside a world model is a choice on a score matrix: `n` rows, `k` candidates each. Axes as
in `models.control`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior import selection
from melior.envs.control import Reward, Termination
from melior.models.control import Dynamics, Prediction

OnReject = Literal["terminal", "truncate", "drop"]
Choice = Callable[[Float[Tensor, "n k"]], Int[Tensor, " n"]]
"""Which candidate goes on, of a score matrix."""
Draw = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n a"]]
"""An action for each observation."""
Penalty = Callable[[Prediction], Float[Tensor, " n"]]
"""By how much the learned reward is lowered where the ensemble is unsure."""
Score = Callable[
    [Float[Tensor, "n d"], Float[Tensor, "n a"], Float[Tensor, "n d"]], Float[Tensor, " n"]
]
"""How real transitions look: observation, action and what followed; higher is more so."""


@dataclass(frozen=True)
class Candidates:
    """What may follow, as the elites draw it."""

    next_observations: Float[Tensor, "n k d"]
    rewards: Float[Tensor, "n k"]
    members: Int[Tensor, " k"]
    """The member of the ensemble that drew each."""
    prediction: Prediction
    """Of all members, which penalties read."""


@dataclass(frozen=True)
class Picked:
    """One candidate of each row."""

    next_observations: Float[Tensor, "n d"]
    rewards: Float[Tensor, " n"]
    """Of the same candidate."""
    scores: Float[Tensor, " n"]
    members: Int[Tensor, " n"]


@dataclass(frozen=True)
class Filter:
    """How candidates are scored and chosen, and below which score a roll-out stops."""

    score: Score
    choose: Choice
    threshold: float

    def __call__(
        self,
        observations: Float[Tensor, "n d"],
        actions: Float[Tensor, "n a"],
        drawn: Candidates,
    ) -> Picked:
        """Return the candidate chosen for each row.

        Raises:
            ValueError: a row's candidates are not finite.
        """
        n, k, _ = drawn.next_observations.shape
        scores = self.score(
            observations.repeat_interleave(k, 0),
            actions.repeat_interleave(k, 0),
            drawn.next_observations.flatten(0, 1),
        ).view(n, k)
        chosen = self.choose(scores)
        if (chosen < 0).any():
            raise ValueError(
                "dynamics: a finite candidate is needed for each row; found none for "
                f"{int((chosen < 0).sum())} of {n}; the ensemble has diverged"
            )
        row = torch.arange(n, device=chosen.device)
        return Picked(
            drawn.next_observations[row, chosen],
            drawn.rewards[row, chosen],
            scores[row, chosen],
            drawn.members[chosen],
        )


@dataclass(frozen=True)
class Imagined:
    """Rows of roll-outs, step after step; those of one step stand together."""

    observations: Float[Tensor, "n d"]
    actions: Float[Tensor, "n a"]
    rewards: Float[Tensor, " n"]
    """Less the penalty."""
    next_observations: Float[Tensor, "n d"]
    terminals: Bool[Tensor, " n"]
    scores: Float[Tensor, " n"]
    members: Int[Tensor, " n"]
    rejected: Bool[Tensor, " n"]
    starts: Int[Tensor, " n"]
    """Which roll-out a row is of."""
    depths: Int[Tensor, " n"]
    """How many steps lie before it."""
    n_starts: int
    """Roll-outs, whether or not any of their rows are kept."""
    n_rejected: int
    """Of them, those that ended by a rejected step, kept or left out."""

    def __len__(self) -> int:
        return len(self.rewards)


@torch.no_grad()
def candidates(
    dynamics: Dynamics,
    observations: Float[Tensor, "n d"],
    actions: Float[Tensor, "n a"],
    *,
    draws: int,
    bound: float,
    generator: torch.Generator,
) -> Candidates:
    """Draw what may follow: so many times from each elite, within `-bound` and `bound`."""
    prediction = dynamics.predict(observations, actions)
    mean = torch.cat([prediction.next_observations, prediction.rewards[..., None]], dim=-1)
    members = dynamics.elites.repeat_interleave(draws)
    mean, deviations = mean[members], prediction.deviations[members]
    noise = torch.empty_like(mean).normal_(generator=generator)
    drawn = (mean + deviations * noise).transpose(0, 1)
    following = drawn[..., :-1].clamp(-bound, bound)
    return Candidates(following, drawn[..., -1], members, prediction)


def evenly(*, generator: torch.Generator) -> Filter:
    """Return the filter that is none: any candidate, as likely as another; nothing is rejected.

    MOPO and MOBILE without MOREC, which take a random elite for each row.
    """
    return Filter(_same, sharply(temperature=1.0, generator=generator), threshold=-torch.inf)


def sharply(*, temperature: float, generator: torch.Generator) -> Choice:
    """Return the choice in proportion to `exp(score / temperature)` (Luo et al. 2023)."""
    return lambda scores: selection.boltzmann(
        scores, 1, temperature=temperature, generator=generator
    )[:, 0]


def best(scores: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """Return the candidate with the highest score."""
    return selection.best_and_worst(scores)[0]


@torch.no_grad()
def imagine(
    dynamics: Dynamics,
    starts: Float[Tensor, "n d"],
    draw: Draw,
    transition_filter: Filter,
    *,
    is_over: Termination,
    penalty: Penalty,
    true_reward: Reward | None = None,
    horizon: int,
    draws: int,
    bound: float,
    on_reject: OnReject,
    generator: torch.Generator,
) -> Imagined:
    """Roll a policy out in a modelled world, each row until it ends, is rejected, or `horizon`.

    What follows a step beyond the horizon is still worth something: its row is no terminal.

    Args:
        dynamics: with its elites chosen.
        starts: observations from which to go.
        draw: the policy.
        transition_filter: which candidate goes on, and when a roll-out has left what is known.
        is_over: the task's own rule; sees candidates as they are kept, within the bound.
        penalty: of the ensemble's prediction.
        true_reward: the task's own, in place of the learned one, which comes with the candidate.
        horizon: the most steps.
        draws: candidates of each elite.
        bound: how far from 0 an observation's numbers may lie.
        on_reject: a rejected step is kept as a terminal (the released code does so, although it
            also holds a way to drop it), kept as a step after which the roll-out merely stops, or
            left out.
        generator: of the candidates; choices have their own.
    """
    parts: list[dict[str, Tensor]] = []
    rows, observations = torch.arange(len(starts), device=starts.device), starts
    for depth in range(horizon):
        if not len(rows):
            break
        actions = draw(observations)
        drawn = candidates(
            dynamics, observations, actions, draws=draws, bound=bound, generator=generator
        )
        picked = transition_filter(observations, actions, drawn)
        step = observations, actions, picked.next_observations
        over = is_over(*_copies(step))
        rejected = picked.scores < transition_filter.threshold
        earned = picked.rewards if true_reward is None else true_reward(*_copies(step))
        parts.append({
            "observations": observations, "actions": actions,
            "rewards": earned - penalty(drawn.prediction),
            "next_observations": picked.next_observations,
            "terminals": over | rejected if on_reject == "terminal" else over,
            "scores": picked.scores, "members": picked.members, "rejected": rejected,
            "starts": rows, "depths": torch.full_like(rows, depth),
        })  # fmt: skip
        goes_on = ~(over | rejected)
        rows, observations = rows[goes_on], picked.next_observations[goes_on]
    return _joined(parts, n_starts=len(starts), drops=on_reject == "drop")


def _copies(step: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a user's own function may write into."""
    observations, actions, following = step
    return observations.clone(), actions.clone(), following.clone()


def _joined(parts: Sequence[Mapping[str, Tensor]], *, n_starts: int, drops: bool) -> Imagined:
    """Put the steps of all depths behind one another, rejected ones counted and kept or not."""
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    rejected = columns["rejected"]
    if drops:
        columns = {name: column[~rejected] for name, column in columns.items()}
    return Imagined(**columns, n_starts=n_starts, n_rejected=int(rejected.sum()))


def _same(
    observations: Float[Tensor, "n d"],
    actions: Float[Tensor, "n a"],
    next_observations: Float[Tensor, "n d"],
    /,
) -> Float[Tensor, " n"]:
    """Score all that is finite alike."""
    is_finite = next_observations.isfinite().all(-1)
    return torch.where(is_finite, 0.0, torch.nan)

"""MOREC's claim: among what an ensemble draws, the dynamics reward finds what the world would do.

Luo, Xu, Cao, Yu 2023, arXiv 2310.05422. Far from the data, by the distance to the true successor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.claims.claim import Array, Measured
from melior.claims.morec_world import (
    DESTABILISING,
    STABILISING,
    Controller,
    lived,
    moved_by,
)
from melior.claims.networks import side_by_side
from melior.correlation import pearson
from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_fitting import FittingOptions, fit_dynamics
from melior.rewards.control import DynamicsReward
from melior.rewards.control_adversary import AdversaryOptions, learn_reward
from melior.sampling.control import Candidates, best, candidates, sharply

STEPS = 2000
"""Of discriminator and generator."""
N_LOGGED, N_JUDGED = 4096, 1024
DRAWS, TEMPERATURE, BOUND = 2, 0.1, 25.0
PLACES = {"near": STABILISING, "far": DESTABILISING}
"""Whose transitions are judged: those of the controller that was logged, and of another."""
ARMS = (
    "random", "best", "softmax", "mean", "closest", "shuffled", "last snapshot", "not calibrated",
)  # fmt: skip
Choice = Callable[[Float[Tensor, "n k"]], Int[Tensor, " n"]]


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Return what all arms reach near the data and far from it, one seed after another."""
    return side_by_side([_measured(seed, steps) for seed in seeds])


def _measured(seed: int, steps: int) -> dict[str, dict[str, float]]:
    generator = ops.generator(seed)
    logged = lived(STABILISING, N_LOGGED, generator=generator)
    shape = DynamicsOptions(observations=2, actions=1, hidden=64, layers=2)
    dynamics = Dynamics(shape, seed=seed)
    fit_dynamics(dynamics, logged, FittingOptions(), seed=seed)
    reward = learn_reward(dynamics, logged, AdversaryOptions(steps=steps), seed=seed)
    unit = torch.from_numpy(logged.next_observations - logged.observations).std(0)
    found: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for place, controller in PLACES.items():
        for arm, quantities in _at(controller, dynamics, reward, unit, generator).items():
            for name, value in quantities.items():
                found[arm][f"{place}: {name}"] = value
    return found


@torch.no_grad()
def _at(
    controller: Controller,
    dynamics: Dynamics,
    reward: DynamicsReward,
    unit: Float[Tensor, " d"],
    generator: torch.Generator,
) -> dict[str, dict[str, float]]:
    """Return each arm's error, and how well its score tells the error, on new transitions."""
    judged = lived(controller, N_JUDGED, generator=generator)
    seen, acted = torch.from_numpy(judged.observations), torch.from_numpy(judged.actions)
    truth = moved_by(seen, acted)
    drawn = candidates(dynamics, seen, acted, draws=DRAWS, bound=BOUND, generator=generator)
    errors = _distance(drawn.next_observations, truth[:, None], unit)
    real = partial(_scores, seen=seen, acted=acted, drawn=drawn)
    rewards = real(reward)
    mixed = rewards[torch.randperm(len(rewards), generator=generator)]
    newest = reward.only(torch.tensor([len(reward.real) - 1]))
    softly = sharply(temperature=TEMPERATURE, generator=generator)
    arms: dict[str, tuple[Tensor, Choice]] = {
        "random": (torch.zeros_like(rewards), softly),
        "best": (rewards, best),
        "softmax": (rewards, softly),
        "closest": (-errors, best),
        "shuffled": (mixed, best),
        "last snapshot": (real(newest), best),
        "not calibrated": (real(partial(_plainly, reward)), best),
    }
    found = {
        name: _reached(scores, choose(scores), errors) for name, (scores, choose) in arms.items()
    }
    middle = drawn.prediction.next_observations[dynamics.elites].mean(0)
    return found | {"mean": {"error": float(_distance(middle, truth, unit).mean())}}


def _scores(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    seen: Float[Tensor, "n d"],
    acted: Float[Tensor, "n a"],
    drawn: Candidates,
) -> Float[Tensor, "n k"]:
    n, k, _ = drawn.next_observations.shape
    many = (seen.repeat_interleave(k, 0), acted.repeat_interleave(k, 0))
    return score(*many, drawn.next_observations.flatten(0, 1)).view(n, k)


def _plainly(
    reward: DynamicsReward,
    seen: Float[Tensor, "n d"],
    acted: Float[Tensor, "n a"],
    following: Float[Tensor, "n d"],
) -> Float[Tensor, " n"]:
    """The average without each snapshot's own scale."""
    return reward.discriminators(seen, acted, following).sigmoid().mean(0)


def _reached(
    scores: Float[Tensor, "n k"], chosen: Int[Tensor, " n"], errors: Float[Tensor, "n k"]
) -> dict[str, float]:
    score, error = (table.gather(1, chosen[:, None])[:, 0] for table in (scores, errors))
    kept = error[score > score.median()]
    return {
        "error": float(error.mean()),
        "correlation": float(pearson(score[:, None], error)[0]),
        "error of the kept half": float(kept.mean()) if len(kept) else float(error.mean()),
    }


def _distance(
    found: Float[Tensor, "*n d"], truth: Float[Tensor, "*#n d"], unit: Float[Tensor, " d"]
) -> Float[Tensor, "*n"]:
    return ((found - truth) / unit).norm(dim=-1)


def share(arm: str, quantity: str, *, of: str) -> Callable[[Measured], Array]:
    """Return the measure: an arm's quantity as a share of the `error` of another, seed by seed."""
    place = quantity.partition(":")[0]
    return lambda measured: measured[arm][quantity] / measured[of][f"{place}: error"]

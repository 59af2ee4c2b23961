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
from melior.claims import morec_policy
from melior.claims.claim import (
    Array,
    Aside,
    Claim,
    Dots,
    Measured,
    Rule,
    Table,
    at_most,
    difference,
)
from melior.claims.morec_policy import RETURN
from melior.claims.morec_world import (
    DESTABILISING,
    STABILISING,
    Controller,
    lived,
    moved_by,
)
from melior.claims.networks import side_by_side
from melior.correlation import pearson
from melior.envs.control import sizes
from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_fitting import FittingOptions, fit_dynamics
from melior.rewards.control import DynamicsReward
from melior.rewards.control_adversary import AdversaryOptions, learn_reward
from melior.sampling.control import Candidates, best, candidates, sharply

STEPS = 2000
"""Of discriminator and generator."""
LEAST = 40
"""Fewer leave no discriminator that knows real from generated."""
N_LOGGED, N_JUDGED = 4096, 1024
DRAWS, TEMPERATURE, BOUND = 2, 0.1, 25.0
PLACES = {"near": STABILISING, "far": DESTABILISING}
"""Whose transitions are judged: those of the controller that was logged, and of another."""
ARMS = (
    "random", "best", "softmax", "mean", "closest", "shuffled", "last snapshot", "not calibrated",
)  # fmt: skip
Choice = Callable[[Float[Tensor, "n k"]], Int[Tensor, " n"]]


def measure(seeds: Sequence[int], steps: int) -> Measured:
    """Return what all arms reach near the data and far from it, and policies at the end of it."""
    sizes(morec_policy.TASK)  # asks for Gymnasium before, not after, the minutes of the rest
    found = side_by_side([_measured(seed, steps) for seed in seeds])
    return {**found, **morec_policy.policies(seeds, 3 * steps)}


def _measured(seed: int, steps: int) -> dict[str, dict[str, float]]:
    generator = ops.generator(ops.stream(seed, "world"))
    logged = lived(STABILISING, N_LOGGED, generator=generator)
    shape = DynamicsOptions(observations=2, actions=1, hidden=64, layers=2)
    dynamics = Dynamics(shape, seed=seed)
    fit_dynamics(dynamics, logged, FittingOptions(max_epochs=min(200, steps)), seed=seed)
    adversary = AdversaryOptions(steps=max(steps, LEAST), every=min(20, max(steps, LEAST) // 4))
    reward = learn_reward(dynamics, logged, adversary, seed=seed)
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
    lived_errors = _distance(
        drawn.next_observations, torch.from_numpy(judged.next_observations)[:, None], unit
    )
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
    found = {}
    for name, (scores, choose) in arms.items():
        chosen = choose(scores)
        found[name] = _reached(scores, chosen, errors)
        found[name]["error to what was lived"] = float(
            lived_errors.gather(1, chosen[:, None]).mean()
        )
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


def value(arm: str, quantity: str) -> Callable[[Measured], Array]:
    """Return the measure: an arm's quantity."""
    return lambda measured: measured[arm][quantity]


def _shares(arm: str) -> Aside:
    said = f"far from the log: error of *{arm}* as a share of that of any candidate"
    return Aside(said, share(arm, "far: error", of="random"))


CANDIDATES = tuple(arm for arm in ARMS if arm != "mean")
CLAIM = Claim(
    name="morec",
    title="MOREC: what a learned dynamics reward finds among candidates",
    paper="Luo, Xu, Cao, Yu 2023, arXiv 2310.05422",
    claimed=(
        "Where a policy leaves the data, the dynamics that are fitted to them err. A reward of "
        "dynamics, the average of the discriminators of all iterations of an adversary, still "
        "tells there which of an ensemble's candidates is closest to what the world would do, and "
        "where none is."
    ),
    world="""A mass at place x with speed v is pushed along a line: its acceleration is
`2 tanh(1.5 a) - 0.8 v |v| - sin(2x)`, a step takes 0.2, and normal noise of 0.01 is added to
both numbers. 4096 transitions are logged of a controller that holds the mass (it pushes
against x + v with gain 0.8 and noise 0.3, from starts spread 0.7), in episodes of 8 steps.
Judged are 1024 transitions of the same controller, *near*, and 1024 of one that lets it go
(gain -0.3, noise 0.6, starts spread 1.2), *far*: about half of these have a number more than
2.5 deviations from the log's mean. An ensemble of 7 perceptrons of two layers of 64 is fitted
until none gets better; its best 5 draw 2 candidates each. The dynamics reward is learned by
2000 steps of a discriminator (two layers of 128) against a model that starts as the ensemble;
a snapshot is kept each 20 steps after the first fifth.

*random* takes any candidate, as MOPO and MOBILE do; *best* the one with the highest reward;
*softmax* draws by `exp(reward / 0.1)`. Controls: *mean* of the elites; *closest*, which knows
the truth; *shuffled*, the rewards of other rows; *last snapshot* alone; *not calibrated*, the
average without each snapshot's own scale. **error** is the mean distance to where the law,
without noise, takes the mass, in deviations of the logged changes; **correlation** is
Pearson's, of the chosen candidate's score and its error; **the kept half** are the rows whose
chosen score is above the median.

**Policies**, for the first three seeds and needing Gymnasium, are not judged but reported: soft
actor-critic learns in Pendulum for 3000 steps, 10,000 more of its steps are the *log*, and from
that a world is learned as above (30 passes at most, 1000 steps of the discriminator). In this one
world five policies learn by MOPO, 6000 steps, penalty 0.5, roll-outs of 50 steps: *none* takes any
candidate and stops nothing; *choice alone* draws one by `exp(reward / 0.1)`; *filter* stops below a
reward of 0.6 besides, as the authors do; *sparing filter* below what stops one in fifty of the
log's own stretches of 50 steps. What is stopped is a terminal, and there rewards are counted from
the log's lowest, so that none of its steps is worse; *none, from the floor* does that alone.
**Return** is the mean of 50 episodes in Pendulum itself.""",
    limits="""The thresholds (a share of 0.9, a correlation of -0.4, a share of 0.6, and near
the log no harm) were taken from four pilot seeds of a prototype, in a summary of the paper; a pilot
of this code on seed 0 moved none. The world's push, its episodes of 8 steps and the stop of the
fit are ours. The mean of the elites is no sample, and says nothing of how wide the world is: near
the log it errs less than any candidate, far from it more than the best one. Near the log
candidates differ by little but the world's own noise, and choosing among them does harm. One
dimension of place, one task: nothing is said of the benchmark figures of the paper. Three
policies an arm, of one setting that nobody tuned, say little of which arm is better: the authors
tune filter and penalty for each task. How they learn the reward was never released; the adversary
here is our own.""",
    measure=measure,
    steps=STEPS,
    rules=(
        Rule("far from the log: error of the best as a share of that of any candidate",
             share("best", "far: error", of="random"), at_most(0.9)),
        Rule("far from the log: correlation of the best's reward and its error",
             value("best", "far: correlation"), at_most(-0.4)),
        Rule("far from the log: error of the half with the higher reward as a share of all",
             share("best", "far: error of the kept half", of="best"), at_most(0.6)),
        Rule("near the log: error of the best as a share of that of any candidate",
             share("best", "near: error", of="random"), at_most(1.0)),
    ),
    asides=(
        *(_shares(arm) for arm in ("softmax", "mean", "closest", "shuffled", "last snapshot",
                                   "not calibrated")),
        Aside("far from the log: correlation of the last snapshot's score and its error",
              value("last snapshot", "far: correlation")),
        Aside("far from the log: correlation of shuffled rewards and errors",
              value("shuffled", "far: correlation")),
        Aside("near the log: distance of the best to what was lived, noise and all, less that of "
              "any candidate",
              lambda measured: measured["best"]["near: error to what was lived"]
              - measured["random"]["near: error to what was lived"]),
        *(Aside(f"policies in Pendulum: return of *{arm}* less that of *none*",
                difference(arm, "none", RETURN)) for arm in list(morec_policy.ARMS)[1:]),
    ),
    tables=(
        Table("Error of the next state", ARMS, ("far: error", "near: error")),
        Table("What the score tells", CANDIDATES,
              ("far: correlation", "far: error of the kept half", "near: correlation")),
        Table("Policies", ("log", *morec_policy.ARMS), (RETURN,)),
    ),
    pictures=(
        Dots("far", "Error far from the log", ARMS, "far: error", "random"),
        Dots("near", "Error near the log", ARMS, "near: error", "random"),
        Dots("correlation", "Score and error, far from the log", CANDIDATES, "far: correlation"),
        Dots("policies", "Policies in Pendulum", ("log", *morec_policy.ARMS), RETURN, "log"),
    ),
)  # fmt: skip

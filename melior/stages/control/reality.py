"""What a dynamics reward says of steps that are real, before a policy is rolled out by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from melior import ops
from melior.data.control import Transitions
from melior.records import Metrics
from melior.rewards.control import LEAST
from melior.sampling.control import candidates
from melior.stages.control.judge import stretches
from melior.stages.control.options import ImagineOptions
from melior.stages.control.phases import Phases
from melior.stages.control.world import World
from melior.training.run import read_rows

MANY = 0.2
"""Share of real stretches that are stopped from which on a filter is warned of."""
FEW = 0.02
"""Share of real stretches that may be stopped: what a policy must not lose is the whole of them."""
ENOUGH = 30
"""Stretches that a threshold can be told from."""
SURE = 2.0
"""Standard errors by which the log's steps must look more real than others."""


@dataclass(frozen=True)
class Reality:
    """How real stretches of the log look, step by step, and what a filter makes of them."""

    logged: float
    """Mean reward of what followed."""
    imagined: float
    """... of what an elite draws in its place. Near the log that is as good, in a good world."""
    mixed: float
    """... of what would follow if each step changed as another of them did: not real."""
    error: float
    """Standard error of the difference between `logged` and `mixed`."""
    below: float
    """Share of the steps that are rejected, although they are real."""
    stopped: float
    """Share of the stretches with such a step."""
    sparing: float
    """The threshold that stops `FEW` of them."""
    stretches: int
    steps: int
    """Of the longest stretch."""

    @property
    def metrics(self) -> Metrics:
        """Return the numbers to be written down."""
        names = ("logged", "imagined", "mixed", "below", "stopped")
        return {f"reality/{name}": getattr(self, name) for name in names}


@torch.no_grad()
def reality(world: World, logged: Transitions, options: ImagineOptions) -> Reality:
    """Score stretches of the log as long as roll-outs may be: of a shorter episode, all of it.

    The reward has learned from these steps: of new ones it says less.
    """
    assert world.reward is not None  # a world for a filter is learned, or read, with its reward
    generator, lived = ops.generator(0), stretches(logged, options.horizon)
    lengths = [len(one) for one in lived]
    places = np.concatenate(lived)
    seen, acted, followed = (
        torch.from_numpy(column[places])
        for column in (logged.observations, logged.actions, logged.next_observations)
    )
    drawn = candidates(
        world.dynamics, seen, acted, draws=1, bound=torch.inf, generator=generator
    ).next_observations
    other = torch.randperm(len(seen), generator=generator)
    real = world.reward(seen, acted, followed)
    mixed = world.reward(seen, acted, seen + (followed - seen)[other])
    least = torch.stack([one.amin() for one in real.split(lengths)])
    return Reality(
        logged=float(real.mean()),
        imagined=float(world.reward(seen, acted, drawn[:, 0]).mean()),
        mixed=float(mixed.mean()),
        error=float((real - mixed).std(correction=0)) / len(np.unique(places)) ** 0.5,
        below=float((real < options.threshold).float().mean()),
        stopped=float((least < options.threshold).float().mean()),
        sparing=float(least.quantile(FEW)),
        stretches=len(lived),
        steps=max(lengths),
    )


def note_reality(
    phases: Phases, world: World, logged: Transitions, options: ImagineOptions
) -> dict[str, str]:
    """Write down what the reward says of the log, and warn where a filter by it would do harm.

    Return what the report must say of it.
    """
    found = reality(world, logged, options)
    if not any("reality/logged" in row for row in read_rows(phases.run.folder)):
        phases.run.append(phases.taken, found.metrics)
    said = [
        f"{found.logged:.3f} on average of the log's own steps, {found.imagined:.3f} of steps "
        f"imagined in their place, {found.mixed:.3f} of steps with another's change; "
        f"{100 * found.below:.3g} % of the log's are below the threshold"
    ]
    if found.logged - found.mixed <= SURE * found.error:
        said.append(
            "it does not tell the log's steps from steps with another's change: learn it longer, "
            "by --reward-steps, or take --filter none"
        )
    if found.stopped > MANY:
        is_known = found.stretches >= ENOUGH and found.sparing > 1.001 * LEAST  # which stops none
        few = f", --threshold {found.sparing:.3g} stops {100 * FEW:g} %" if is_known else ""
        said.append(
            f"the threshold {options.threshold:g} stops {100 * found.stopped:.3g} % of "
            f"{found.stretches} stretches of the log of up to {found.steps} steps, although each "
            "is real, and the policy learns to keep away from there; --threshold 0 chooses and "
            f"stops none{few}"
        )
    for sentence in said:
        phases.run.note(f"dynamics reward: {sentence}")
    return {"dynamics reward": "; ".join(said)}

"""A reward that knows the log's steps is told from one that knows nothing, and what it stops."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from melior.data.control import Transitions
from melior.models.control import DiscriminatorOptions, Discriminators, Dynamics, DynamicsOptions
from melior.rewards.control import DynamicsReward
from melior.stages.control.options import ImagineOptions, TrainOptions
from melior.stages.control.phases import Phases
from melior.stages.control.reality import note_reality, reality
from melior.stages.control.world import World
from melior.training.run import Run, read_rows

N, LENGTH = 80, 10
REAL, WRONG = (-np.log(1 - 1 / (1 + np.exp(-end))) for end in (1.0, -1.0))


def steps() -> Transitions:
    """A log in which the first number moves by the action, one up or one down."""
    up = np.random.default_rng(0).permutation(np.repeat([1.0, -1.0], N // 2)).astype(np.float32)
    seen = np.stack([np.cumsum(up) - up, np.zeros(N, np.float32)], axis=1)
    never, late = np.zeros(N, bool), np.arange(N) % LENGTH == LENGTH - 1
    change = np.stack([up, np.zeros(N, np.float32)], axis=1)
    return Transitions(seen, up[:, None], np.zeros(N, np.float32), seen + change, never, late)


def world(knows: float) -> World:
    """Dynamics that always go up, and a reward for change and action that agree."""
    dynamics = Dynamics(DynamicsOptions(2, 1, members=2, elites=2, hidden=4, layers=1), seed=0)
    judge = Discriminators(DiscriminatorOptions(2, 1, hidden=2, layers=1), seed=0)
    logged = steps()
    judge.fit_scales(*map(torch.from_numpy, (logged.observations, logged.next_observations)))
    with torch.no_grad():
        for weight in (*dynamics.members.parameters(), *judge.members.parameters()):
            weight.zero_()
        dynamics.outputs.centre.copy_(torch.tensor([1.0, 0.0, 0.0]))
        dynamics.outputs.width.zero_()
        apart = torch.tensor([1.0, -1.0])  # relu(a - c) and relu(c - a)
        judge.members.weights[0][0, 2], judge.members.weights[0][0, 3] = apart, -apart
        judge.members.weights[1].fill_(-knows)
    return World(dynamics, DynamicsReward(judge, torch.zeros(1), -torch.ones(1)))


def test_a_reward_that_knows_the_world_tells_real_steps_from_others():
    found = reality(world(1.0), steps(), ImagineOptions(horizon=LENGTH))
    up = float((steps().actions > 0).mean())
    assert found.logged == pytest.approx(REAL, rel=1e-5)
    assert found.imagined == pytest.approx(up * REAL + (1 - up) * WRONG, rel=1e-5)
    assert WRONG + 0.2 < found.mixed < REAL - 0.2  # another's change is the same by half
    assert (found.below, found.stopped, found.steps) == (0, 0, LENGTH)
    strict = reality(world(1.0), steps(), ImagineOptions(horizon=LENGTH, threshold=2.0))
    assert (strict.below, strict.stopped) == (1, 1)
    assert strict.sparing == pytest.approx(REAL, rel=1e-5)


@dataclass(frozen=True)
class Config:
    train: TrainOptions


@pytest.mark.parametrize(
    ("knows", "threshold", "warned"),
    [
        (1.0, 0.6, []),
        (0.0, 0.6, ["does not tell the log's steps from"]),
        (1.0, 1.4, [f"stops 100 % of the log's own stretches of {LENGTH} steps"]),
    ],
)
def test_a_filter_that_would_do_harm_is_warned_of_once(knows, threshold, warned, tmp_path):
    train = TrainOptions(str(tmp_path / "run"))
    options = replace(ImagineOptions(), threshold=threshold)
    with Run.create(train.out, "morec", Config(train), []) as run:
        phases = Phases(run, train, {}, taken=7)
        for _ in range(2):  # a resumed run comes by again
            said = note_reality(phases, world(knows), steps(), options)
    notes = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["notes"]
    assert len(notes) == 1 + len(warned)
    assert all(one in note for one, note in zip(warned, notes[1:], strict=True))
    assert said["dynamics reward"].count(";") >= len(warned)
    (row,) = read_rows(tmp_path / "run")
    assert row["step"] == 7
    assert row["reality/logged"] == reality(world(knows), steps(), options).logged

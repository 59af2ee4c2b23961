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


def short(n_episodes: int, n_wrong: int = 1) -> Transitions:
    """A log of an episode of five steps, of which the fourth is wrong, and many of two steps."""
    logged, n = steps().rows(slice(5 + 2 * n_episodes)), 5 + 2 * n_episodes
    change = logged.next_observations - logged.observations
    change[3 : 3 + n_wrong] *= -1
    ends = (np.arange(n) >= 4) & (np.arange(n) % 2 == 0)
    following = logged.observations + change
    return replace(logged, next_observations=following, terminals=ends, timeouts=ends & False)


def test_episodes_shorter_than_the_horizon_have_their_say():
    found = reality(world(1.0), short(30), ImagineOptions(horizon=LENGTH, threshold=0.6))
    assert (found.stretches, found.steps) == (31, 5)
    assert found.below == pytest.approx(1 / 65)
    assert found.stopped == pytest.approx(1 / 31)  # and not all that are as long as the longest
    assert WRONG < found.sparing < REAL


def test_steps_of_two_stretches_count_once():
    """At a horizon of 4 a stretch begins at each second step: most steps are of two."""
    half = reality(world(1.0), steps(), ImagineOptions(horizon=4))
    whole = reality(world(1.0), steps(), ImagineOptions(horizon=LENGTH))
    assert (half.stretches, whole.stretches) == (32, 8)
    assert half.error == pytest.approx(whole.error, rel=0.1)


@dataclass(frozen=True)
class Config:
    train: TrainOptions


@pytest.mark.parametrize(
    ("knows", "threshold", "warned"),
    [
        (1.0, 0.6, []),
        (0.0, 0.6, ["does not tell the log's steps from"]),
        (1.0, 1.4, [f"stops 100 % of 8 stretches of the log of up to {LENGTH} steps"]),
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
    assert all(one in said["dynamics reward"] for one in warned)
    (row,) = read_rows(tmp_path / "run")
    assert row["step"] == 7
    assert row["reality/logged"] == reality(world(knows), steps(), options).logged


@pytest.mark.parametrize(
    ("n_episodes", "n_wrong", "named"), [(29, 1, True), (28, 1, False), (29, 4, False)]
)
def test_a_threshold_is_named_only_where_it_can_be_told(n_episodes, n_wrong, named, tmp_path):
    """Of few stretches none can; and below the least reward that there is nothing is stopped."""
    logged = short(n_episodes, n_wrong)
    train = TrainOptions(str(tmp_path / "run"))
    with Run.create(train.out, "morec", Config(train), []) as run:
        said = note_reality(
            Phases(run, train, {}), world(1.0), logged, ImagineOptions(threshold=2.0)
        )["dynamics reward"]
    assert f"the threshold 2 stops 100 % of {1 + n_episodes} stretches" in said
    assert "--threshold 0 chooses and stops none" in said
    assert ("stops 2 %" in said) == named

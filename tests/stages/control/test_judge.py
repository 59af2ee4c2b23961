"""How far a world is followed: windows stay within episodes, and a perfect world is never off."""

import numpy as np
import torch

from melior import ops
from melior.claims.morec_world import STABILISING, lived
from melior.data.control import Transitions
from melior.models.control import DiscriminatorOptions, Discriminators, Dynamics, DynamicsOptions
from melior.rewards.control import DynamicsReward
from melior.stages.control.judge import errors_over_horizon, reward_around, windows
from melior.stages.control.world import World


def straight(n: int, length: int) -> Transitions:
    """A log in which each step adds (1, 2), whatever is done."""
    starts = np.repeat(np.arange(n // length, dtype=np.float32) * 7, length)
    steps = np.tile(np.arange(length, dtype=np.float32), n // length)
    seen = np.stack([starts + steps, starts + 2 * steps], axis=1)
    timeouts = steps == length - 1
    return Transitions(
        seen,
        np.zeros((n, 1), dtype=np.float32),
        np.zeros(n, dtype=np.float32),
        seen + np.array([1, 2], dtype=np.float32),
        np.zeros(n, dtype=bool),
        timeouts,
    )


def world(change: tuple[float, float]) -> World:
    """Dynamics that always change by so much, without noise, and a reward that was never taught."""
    dynamics = Dynamics(DynamicsOptions(2, 1, members=2, elites=2, hidden=4, layers=1), seed=0)
    with torch.no_grad():
        for weight in dynamics.members.parameters():
            weight.zero_()
        dynamics.outputs.centre.copy_(torch.tensor([*change, 0.0]))
        dynamics.outputs.width.zero_()
    judge = Discriminators(DiscriminatorOptions(2, 1, hidden=4), seed=0)
    return World(dynamics, DynamicsReward(judge, torch.ones(1), torch.zeros(1)))


def test_a_world_that_is_right_is_never_off_and_one_that_is_wrong_is_off_further_each_step():
    logged = straight(40, 10)
    unit = logged.observations.std(0)
    for errors in errors_over_horizon(world((1, 2)), logged, logged).values():
        assert np.allclose(errors, 0, atol=1e-5)
    for errors in errors_over_horizon(world((1.5, 2)), logged, logged).values():
        assert np.allclose(errors, 0.5 / unit[0] * np.arange(1, 11), rtol=1e-4)


def test_windows_lie_within_episodes():
    found = windows(straight(60, 20), 50)
    steps = found.observations[:, 1:] - found.observations[:, :-1]
    assert found.actions.shape[1] == 20
    assert torch.allclose(steps, torch.tensor([1.0, 2.0]))
    assert windows(straight(60, 20), 7).actions.shape[1] == 7


def test_a_log_of_single_steps_is_not_followed():
    logged = straight(3, 1)
    assert errors_over_horizon(world((1, 2)), logged, logged) == {}


def test_the_reward_is_drawn_around_what_followed():
    logged = lived(STABILISING, 64, generator=ops.generator(0))
    found = reward_around(world((1, 2)), logged)
    table = np.array(found["rewards"])
    assert table.shape == (17, 17)
    assert found["places"][8] == 0
    judge = world((1, 2)).reward
    places = torch.randperm(64, generator=ops.generator(0))[:32].numpy()
    rows = logged.rows(places)
    columns = (rows.observations, rows.actions, rows.next_observations)
    own = judge(*map(torch.from_numpy, columns)).mean().item()
    assert np.isclose(table[8, 8], own, rtol=1e-5)

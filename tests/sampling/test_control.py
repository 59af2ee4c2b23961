"""Transitions out of a modelled world: exact distributions, and roll-outs that end when they must.

The world of the roll-outs is a real ensemble whose data moved by 1 and earned 2 at every step: it
predicts just that, without a doubt.
"""

import math

import numpy as np
import pytest
import torch

from melior import ops
from melior.models.control import Dynamics, DynamicsOptions
from melior.sampling.control import (
    Candidates,
    Filter,
    best,
    candidates,
    evenly,
    imagine,
    sharply,
)
from melior.stages.control.imagination import described

OPTIONS = DynamicsOptions(observations=2, actions=1, members=5, elites=3, hidden=8, layers=1)
FALSE_ALARM = {3: 21.1, 5: 25.7}  # chi-square at one in 10,000, by degrees of freedom


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def ensemble(*, steady: bool):
    dynamics = Dynamics(OPTIONS, seed=0)
    targets = torch.tensor([[1.0, 1.0, 2.0]]).repeat(20, 1) if steady else draw(20, 3, seed=2)
    dynamics.fit_scales(draw(20, 2), draw(20, 1, seed=1), targets)
    dynamics.elect(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]))
    return dynamics


def drawn(dynamics, n, *, draws=2, bound=25.0, seed=0):
    observations, actions = draw(1, 2).expand(n, 2), draw(1, 1, seed=1).expand(n, 1)
    found = candidates(
        dynamics, observations, actions, draws=draws, bound=bound, generator=ops.generator(seed)
    )
    return observations, actions, found


def test_each_elite_draws_from_its_own_gaussian():
    """Mean and variance of 20,000 draws of each, six deviations of their error wide."""
    dynamics, n = ensemble(steady=False), 10_000
    *_, found = drawn(dynamics, n)
    assert found.members.tolist() == [1, 1, 3, 3, 4, 4]
    both = torch.cat([found.next_observations, found.rewards[..., None]], dim=-1)
    for place, member in ((0, 1), (2, 3), (4, 4)):
        sample = both[:, place : place + 2].flatten(0, 1).double()
        mean = torch.cat(
            [
                found.prediction.next_observations[member, 0],
                found.prediction.rewards[member, :1],
            ]
        )
        deviation = found.prediction.deviations[member, 0].double()
        error = (sample.mean(0) - mean).abs() / deviation
        assert (error < 6 / math.sqrt(2 * n)).all()
        assert ((sample.var(0) / deviation.square() - 1).abs() < 6 * math.sqrt(2 / (2 * n))).all()
    assert np.abs(np.corrcoef(both.flatten(1).T.numpy()) - np.eye(18)).max() < 6 / math.sqrt(n)


def test_candidates_keep_to_the_bound():
    *_, found = drawn(ensemble(steady=False), 50, bound=0.5)
    assert found.next_observations.abs().max() == 0.5


@pytest.mark.parametrize("choose", [best, sharply(temperature=0.01, generator=ops.generator(0))])
def test_the_candidate_with_the_best_score_goes_on_with_its_reward(choose):
    observations, actions, found = drawn(ensemble(steady=False), 200)
    goal = torch.tensor([0.3, -0.2])

    def closeness(observations, actions, next_observations):
        return -100 * (next_observations - goal).norm(dim=-1)

    picked = Filter(closeness, choose, -math.inf)(observations, actions, found)
    distances = (found.next_observations - goal).norm(dim=-1)
    close = picked.scores >= -100 * distances.amin(-1) - 0.2  # the softmax may take a near tie
    assert close.all()
    for n in range(0, 200, 20):
        place = (found.next_observations[n] == picked.next_observations[n]).all(-1).nonzero()[0, 0]
        assert picked.rewards[n] == found.rewards[n, place]
        assert picked.members[n] == found.members[place]


def test_the_choice_follows_the_softmax():
    n, temperature = 40_000, 0.1
    wanted = torch.tensor([0.0, 0.1, 0.05, -0.1])
    following = wanted.view(1, 4, 1).expand(n, 4, 2)
    prediction = ensemble(steady=True).predict(torch.zeros(1, 2), torch.zeros(1, 1))
    given = Candidates(following, following[..., 0], torch.arange(4), prediction)
    choose = sharply(temperature=temperature, generator=ops.generator(0))
    picked = Filter(lambda s, a, after: after[:, 0], choose, -math.inf)(
        torch.zeros(n, 2), torch.zeros(n, 1), given
    )
    expected = n * (wanted / temperature).softmax(0)
    counts = torch.bincount(picked.members, minlength=4)
    assert ((counts - expected).square() / expected).sum() < FALSE_ALARM[3]


def test_without_a_filter_any_candidate_is_as_likely():
    n = 30_000
    observations, actions, found = drawn(ensemble(steady=False), n)
    picked = evenly(generator=ops.generator(1))(observations, actions, found)
    same = (found.next_observations == picked.next_observations[:, None]).all(-1)
    counts = same.sum(0)
    assert ((counts - n / 6).square() / (n / 6)).sum() < FALSE_ALARM[5]


def test_candidates_that_are_not_finite_are_not_chosen_and_none_left_is_told():
    observations, actions, found = drawn(ensemble(steady=False), 50)
    found.next_observations[:, 1:] = math.nan
    picked = evenly(generator=ops.generator(1))(observations, actions, found)
    assert torch.equal(picked.next_observations, found.next_observations[:, 0])
    found.next_observations[7, 0] = math.nan
    with pytest.raises(ValueError, match="found none for 1 of 50; the ensemble has diverged"):
        evenly(generator=ops.generator(1))(observations, actions, found)


# -- roll-outs


def never(observations, actions, next_observations):
    return torch.zeros(len(observations), dtype=torch.bool)


def beyond(limit):
    return lambda observations, actions, next_observations: next_observations[:, 0] > limit


def free(prediction):
    return torch.zeros_like(prediction.rewards[0])


def rolled(starts, *, is_over=never, threshold=-math.inf, on_reject="terminal", **options):
    """Roll-outs in the steady world, where a higher place has a lower score."""
    given = {"penalty": free, "horizon": 4} | options
    lower = Filter(lambda s, a, after: -after[:, 0], best, threshold)
    return imagine(
        ensemble(steady=True),
        torch.tensor([[start, 0.0] for start in starts]),
        lambda observations: 0.5 * observations[:, :1],
        lower,
        is_over=is_over,
        draws=2,
        bound=25.0,
        on_reject=on_reject,
        generator=ops.generator(0),
        **given,
    )


def path(rows, start):
    """The places one roll-out comes to."""
    return rows.next_observations[rows.starts == start, 0].tolist()


def test_a_roll_out_goes_on_to_the_horizon_and_is_no_terminal_there():
    rows = rolled([0.0, 10.0])
    assert path(rows, 0) == [1.0, 2.0, 3.0, 4.0] and path(rows, 1) == [11.0, 12.0, 13.0, 14.0]
    assert not rows.terminals.any() and not rows.rejected.any()
    assert rows.depths.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(rows.actions, 0.5 * rows.observations[:, :1])
    assert rows.rewards.tolist() == pytest.approx([2.0] * 8)


def test_a_roll_out_ends_where_the_task_does():
    rows = rolled([0.0, 1.5], is_over=beyond(3))
    assert path(rows, 0) == [1.0, 2.0, 3.0, 4.0] and path(rows, 1) == [2.5, 3.5]
    assert rows.terminals[rows.starts == 0].tolist() == [False, False, False, True]
    assert rows.terminals[rows.starts == 1].tolist() == [False, True]


@pytest.mark.parametrize(
    ("on_reject", "places", "terminals"),
    [
        ("terminal", [1.0, 2.0, 3.0], [False, False, True]),
        ("truncate", [1.0, 2.0, 3.0], [False, False, False]),
        ("drop", [1.0, 2.0], [False, False]),
    ],
)
def test_a_roll_out_stops_where_what_follows_looks_unreal(on_reject, places, terminals):
    rows = rolled([0.0, 9.0], threshold=-2.5, on_reject=on_reject)
    assert path(rows, 0) == places
    assert rows.terminals[rows.starts == 0].tolist() == terminals
    assert path(rows, 1) == ([] if on_reject == "drop" else [10.0])
    assert rows.rejected.sum() == (0 if on_reject == "drop" else 2)


@pytest.mark.parametrize(("on_reject", "length"), [("truncate", 2.0), ("drop", 1.25)])
def test_what_became_of_roll_outs_counts_what_was_left_out(on_reject, length):
    """Of four, one lives to the horizon, one is rejected at its second step, two at their first."""
    starts = [-9.0, 1.0, 9.0, 9.0]
    rows = rolled(starts, threshold=-2.5, on_reject=on_reject)
    said = described(rows, torch.tensor([1, 3, 4]))
    assert said["imagined/rejected"] == 0.75
    assert said["imagined/length"] == length
    nothing = rolled([9.0, 9.0], threshold=-2.5, on_reject=on_reject)
    said = described(nothing, torch.tensor([1, 3, 4]))
    assert said["imagined/rejected"] == 1
    assert said["imagined/length"] == (0 if on_reject == "drop" else 1)


def test_rewards_are_lowered_by_the_penalty():
    rows = rolled([0.0], penalty=lambda prediction: torch.full_like(prediction.rewards[0], 0.75))
    assert rows.rewards.tolist() == pytest.approx([1.25] * 4)


def test_the_rule_sees_what_is_kept():
    seen = []

    def note(observations, actions, next_observations):
        seen.append(next_observations)
        return next_observations[:, 0] > 24.5

    rows = rolled([23.0], is_over=note)
    assert torch.equal(torch.cat(seen), rows.next_observations)
    rows = rolled([24.5], is_over=note)
    assert path(rows, 0) == [25.0]  # 25.5 within the bound


def test_what_a_users_functions_do_in_place_does_not_reach_what_is_imagined():
    def writes(observations, actions, next_observations):
        for given in (observations, actions, next_observations):
            given.zero_()
        return torch.zeros(len(given))

    starts = [0.5, 2.0]
    plain = rolled(starts, true_reward=lambda s, a, after: torch.zeros(len(s)))
    other = rolled(starts, is_over=lambda *given: writes(*given) > 0, true_reward=writes)
    for name, column in vars(plain).items():
        assert torch.as_tensor(getattr(other, name) == column).all()


def test_the_same_seed_imagines_the_same():
    options = {
        "is_over": never, "penalty": free, "horizon": 3, "draws": 2, "bound": 25.0,
        "on_reject": "terminal",
    }  # fmt: skip
    one, again, other = (
        imagine(
            ensemble(steady=False),
            draw(8, 2),
            lambda observations: observations[:, :1].tanh(),
            evenly(generator=ops.generator(seed + 1)),
            generator=ops.generator(seed),
            **options,
        )
        for seed in (0, 0, 5)
    )
    assert torch.equal(one.next_observations, again.next_observations)
    assert not torch.equal(one.next_observations, other.next_observations)

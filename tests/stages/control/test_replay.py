"""Batches: as many real rows as asked for, imagined ones of the newest roll-outs, all resumable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.claims.morec_world import STABILISING, lived
from melior.data.control import Transitions
from melior.sampling.control import Imagined
from melior.stages.control.learners import Rows
from melior.stages.control.replay import (
    Floor,
    LogBatches,
    MixedBatches,
    Mixture,
    imagined_rows,
    logged_rows,
)

LOGGED = lived(STABILISING, 64, generator=ops.generator(0))


def roll_outs(number: int, n: int = 6) -> Imagined:
    """Rows that bear the number of their roll-out as the reward."""
    seen = torch.zeros(n, 2)
    return Imagined(
        observations=seen,
        actions=torch.zeros(n, 1),
        rewards=torch.full((n,), 1000.0 + number),
        next_observations=seen,
        terminals=torch.zeros(n, dtype=torch.bool),
        scores=torch.ones(n),
        members=torch.zeros(n, dtype=torch.long),
        rejected=torch.zeros(n, dtype=torch.bool),
        starts=torch.arange(n),
        depths=torch.zeros(n, dtype=torch.long),
        n_starts=6,
        n_rejected=0,
    )


def mixed(*, n_real=2, total=12, every=3, keep=2, n=6, begun=0) -> MixedBatches:
    count = iter(range(begun, 100))
    return MixedBatches(
        LOGGED,
        lambda: roll_outs(next(count), n),
        Mixture(size=8, n_real=n_real, every=every, keep=keep),
        total=total,
        seed=0,
        describe=lambda found: {"rows": float(len(found))},
    )


def test_logged_rows_keep_time_outs_out_of_terminals():
    rows = logged_rows(LOGGED)
    assert LOGGED.timeouts.sum() == 8
    assert not rows.terminals.any() and not rows.imagined.any()
    assert torch.equal(rows.rewards, torch.from_numpy(LOGGED.rewards))


def ring(rewards, ends) -> Transitions:
    """From each place to the next, around; the place is what is seen."""
    places = np.arange(len(rewards), dtype=np.float32)[:, None]
    return Transitions(
        places,
        np.zeros_like(places),
        np.array(rewards, dtype=np.float32),
        np.roll(places, -1, 0),
        np.array(ends),
        np.zeros(len(rewards), dtype=bool),
    )


def worth(rows: Rows, discount: float) -> np.ndarray:
    """What each place of a ring is worth, by solving its linear equations in float64."""
    n = len(rows.rewards)
    goes_on = discount * (~rows.terminals).double().numpy()
    onward = np.roll(np.eye(n), 1, 1) * goes_on[:, None]
    return np.linalg.solve(np.eye(n) - onward, rows.rewards.double().numpy())


@given(
    st.lists(st.tuples(st.floats(-20, 20, width=32), st.booleans()), min_size=2, max_size=6),
    st.sampled_from([0.0, 0.5, 0.9, 0.99]),
)
def test_counted_from_the_floor_all_values_are_higher_by_the_same(steps, discount):
    logged = ring(*zip(*steps, strict=True))
    floor = Floor.of(logged, discount=discount)
    assert floor.reward == min(0.0, float(logged.rewards.min()))
    higher = worth(logged_rows(logged, floor), discount) - worth(logged_rows(logged), discount)
    np.testing.assert_allclose(higher, -floor.reward / (1 - discount), rtol=1e-5, atol=1e-4)


def test_a_rejected_step_is_worth_the_lowest_reward_for_ever():
    floor = Floor.of(ring([-3.0, -1.0, 2.0], [False] * 3), discount=0.9)
    found = replace(
        roll_outs(0, 3),
        rewards=torch.tensor([-1.0, -1.0, -1.0]),
        rejected=torch.tensor([True, False, False]),
        terminals=torch.tensor([True, True, False]),
    )
    rewards = imagined_rows(found, floor).rewards
    higher = 3.0 / (1 - 0.9)
    assert float(rewards[0]) - higher == pytest.approx(-1 + 0.9 * -3.0 / (1 - 0.9))
    assert float(rewards[1]) - higher == pytest.approx(-1)
    assert float(rewards[2]) == pytest.approx(-1 + 3)


def test_rewards_that_are_never_below_0_stay_as_they_are():
    logged = ring([0.0, 1.0], [False, True])
    floor = Floor.of(logged, discount=1.0)
    assert torch.equal(logged_rows(logged, floor).rewards, torch.tensor([0.0, 1.0]))


def test_without_a_discount_a_rejected_step_cannot_be_the_worst():
    with pytest.raises(ValueError, match=r"discount: below 1 .* found 1 and a reward of -1;"):
        Floor.of(ring([-1.0, 0.0], [False, False]), discount=1.0)


@pytest.mark.parametrize("n_real", [0, 2, 8, 100])
def test_a_batch_has_as_many_logged_rows_as_asked_for(n_real):
    for (batch,) in mixed(n_real=n_real)():
        assert len(batch.rewards) == 8
        assert int((~batch.imagined).sum()) == min(n_real, 8)
        assert torch.equal(batch.imagined, batch.rewards >= 1000)


def test_only_the_newest_roll_outs_are_drawn_from():
    drawn = [set((b.rewards[b.imagined] - 1000).int().tolist()) for (b,) in mixed(n_real=0)()]
    for step, numbers in enumerate(drawn):
        newest = step // 3
        assert numbers <= {newest - 1, newest}
    assert any(len(numbers) == 2 for numbers in drawn)


def test_where_nothing_was_imagined_all_is_logged():
    for (batch,) in mixed(n=0)():
        assert not batch.imagined.any()


@pytest.mark.parametrize("behind", [1, 3, 4, 7])
def test_mixed_batches_go_on_to_the_same_bits(behind):
    whole = mixed()
    wanted = [batch.rewards for (batch,) in whole()]
    first = mixed()
    stream = first()
    for _ in range(behind):
        next(stream)
    second = mixed(begun=-(-behind // 3))  # where roll-outs are, a run restores beside these
    second.load_state(first.state())
    assert second.metrics == {"rows": 6.0}
    found = [batch.rewards for (batch,) in second()]
    assert len(found) == 12 - behind
    assert all(map(torch.equal, found, wanted[behind:]))


def test_batches_of_a_log_go_on_to_the_same_bits():
    def batches():
        return LogBatches(logged_rows(LOGGED), size=5, total=6, seed=3)

    wanted = [batch.rewards for (batch,) in batches()()]
    first, second = batches(), batches()
    stream = first()
    next(stream), next(stream)
    second.load_state(first.state())
    assert all(map(torch.equal, [b.rewards for (b,) in second()], wanted[2:]))

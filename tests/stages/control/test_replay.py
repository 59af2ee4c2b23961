"""Batches: as many real rows as asked for, imagined ones of the newest roll-outs, all resumable."""

import pytest
import torch

from melior import ops
from melior.claims.morec_world import STABILISING, lived
from melior.sampling.control import Imagined
from melior.stages.control.replay import LogBatches, MixedBatches, Mixture, logged_rows

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
        logged_rows(LOGGED),
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

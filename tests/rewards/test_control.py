"""The dynamics reward: its equation by other means, its range, and what the average is for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.models.control import DiscriminatorOptions, Discriminators
from melior.rewards.control import DynamicsReward, Snapshot, spread

OPTIONS = DiscriminatorOptions(observations=2, actions=1, hidden=8)
LOW, HIGH = -math.log(1 - 1 / (1 + math.e)), -math.log(1 - 1 / (1 + 1 / math.e))


def draw(*shape, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=scale, size=shape)).float()


def snapshots(ends):
    parts = [Discriminators(OPTIONS, seed=seed) for seed in range(len(ends))]
    for part in parts:
        part.fit_scales(draw(30, 2), draw(30, 2, seed=1))
    return [Snapshot(part, *pair) for part, pair in zip(parts, ends, strict=True)]


def rows(n=9):
    return draw(n, 2), draw(n, 1, seed=1), draw(n, 2, seed=2, scale=3.0)


def test_the_reward_is_its_equation():
    """Row by row and snapshot by snapshot, with the odds themselves."""
    parts = snapshots([(0.1, -0.1), (0.3, 0.0), (0.02, 0.01)])
    found = DynamicsReward.of(parts)(*rows())
    for n in range(9):
        shares = []
        for part in parts:
            logit = part.discriminator(*(column[n : n + 1] for column in rows())).item()
            place = min(max(logit, part.generated), part.real)
            along = 2 * (place - part.generated) / (part.real - part.generated) - 1
            shares.append(math.exp(along) / (1 + math.exp(along)))
        wanted = -math.log(1 - sum(shares) / len(shares))
        assert found[n].item() == pytest.approx(wanted, rel=2e-5)


@given(st.integers(0, 1000), st.floats(0.001, 5))
def test_the_reward_keeps_to_its_range(seed, width):
    reward = DynamicsReward.of(snapshots([(width, 0.0), (0.0, -width)]))
    found = reward(draw(9, 2, seed=seed), draw(9, 1), draw(9, 2, seed=seed + 1, scale=100.0))
    assert (found > LOW - 1e-5).all() and (found < HIGH + 1e-5).all()


def test_what_all_find_real_has_the_highest_reward_and_what_all_find_generated_the_lowest():
    low = DynamicsReward.of(snapshots([(60.0, 50.0)] * 2))(*rows())
    high = DynamicsReward.of(snapshots([(-50.0, -60.0)] * 2))(*rows())
    assert low.tolist() == pytest.approx([LOW] * 9) and high.tolist() == pytest.approx([HIGH] * 9)
    assert pytest.approx((0.313, 1.313), abs=5e-4) == (LOW, HIGH)  # as the released code's


def test_a_snapshot_whose_scale_is_upside_down_is_left_out():
    parts = snapshots([(0.0, 0.2), (0.3, 0.0), (0.1, 0.1)])
    assert torch.equal(DynamicsReward.of(parts)(*rows()), DynamicsReward.of(parts[1:2])(*rows()))
    with pytest.raises(ValueError, match="found none among 2; train the discriminator longer"):
        DynamicsReward.of([parts[0], parts[2]])


def test_the_order_of_snapshots_and_rows_does_not_matter():
    parts = snapshots([(0.1, -0.1), (0.3, 0.0), (0.2, 0.0)])
    order = torch.tensor([4, 0, 8, 1, 2, 3, 7, 6, 5])
    plain = DynamicsReward.of(parts)(*rows())
    moved = DynamicsReward.of(parts[::-1])(*(column[order] for column in rows()))
    assert torch.allclose(moved, plain[order], atol=1e-6)


def test_many_rows_are_as_rows_alone():
    reward = DynamicsReward.of(snapshots([(0.1, -0.1), (0.3, 0.0)]))
    many = rows(2100)
    found = reward(*many)
    some = torch.tensor([0, 1023, 1024, 2099])
    assert torch.allclose(found[some], reward(*(column[some] for column in many)), atol=1e-6)
    assert reward(*(column[:0] for column in many)).shape == (0,)


def test_one_snapshot_of_several_is_that_one():
    parts = snapshots([(0.1, -0.1), (0.3, 0.0)])
    only = DynamicsReward.of(parts).only(torch.tensor([1]))
    assert torch.allclose(only(*rows()), DynamicsReward.of(parts[1:])(*rows()))


def test_the_reward_comes_back_from_its_folder(tmp_path):
    reward = DynamicsReward.of(snapshots([(0.1, -0.1), (0.3, 0.0)]))
    reward.save(tmp_path)
    assert torch.equal(DynamicsReward.load(tmp_path)(*rows()), reward(*rows()))


@pytest.mark.parametrize(
    ("count", "last", "every", "wanted"),
    [
        (10, 5, 2, [5, 7, 9]),
        (10, 400, 4, [1, 5, 9]),
        (1, 400, 10, [0]),
        (3, 3, 1, [0, 1, 2]),
    ],
)
def test_snapshots_are_spread_back_from_the_newest(count, last, every, wanted):
    assert spread(count, last=last, every=every) == wanted


def test_the_released_spreads_are_forty_and_ten():
    assert len(spread(1000, last=400, every=10)) == 40
    assert len(spread(1000, last=400, every=40)) == 10

"""Modes: where the reward says they are, whatever its scale; and what was built by which look."""

import math
from functools import partial

import pytest
import torch

from melior import ops
from melior.envs.flow import HyperGrid
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import modes_found
from melior.rewards.flow import Modes, corners
from melior.stages.flows.modes import Finds, built_over_looks, modes_of
from melior.stages.flows.named import load_reward
from melior.stages.flows.options import FlowOptions, RewardOptions

GRAPH = enumerated(HyperGrid(1, 21))


def even_places(objects, by=0.0):
    return torch.where(objects[:, 0] % 2 == 0, 0.0, -5.0) + by


@pytest.mark.parametrize("by", [-120.0, 0.0, 200.0])
def test_modes_do_not_depend_on_the_scale_of_the_reward(by):
    found = modes_of(RewardOptions("cosine"), FlowOptions(), GRAPH, partial(even_places, by=by))
    assert found is not None and found.count == 11


def test_strings_too_many_to_list_have_the_modes_of_their_reward():
    flow, reward = FlowOptions("strings", length=15, letters=256), RewardOptions("modes")
    log_reward = load_reward(reward, flow)
    modes = modes_of(reward, flow, None, log_reward)
    assert modes is not None and modes.count == 4
    even = torch.randint(1, 257, (1000, 15), generator=ops.generator(0))
    assert not modes.among(even).any()
    words = torch.tensor([0, 255, 240, 15, 60]) + 1
    made = words[torch.randint(5, (200_000, 2), generator=ops.generator(0))]
    short = FlowOptions("strings", length=2, letters=256)
    modes = modes_of(reward, short, None, load_reward(reward, short))
    assert modes is not None and modes.among(made).all() and modes.count <= 4
    best = made[load_reward(reward, short)(made) == 0]
    assert modes.among(best).all() and len(best.unique(dim=0)) == modes.count


def test_a_mode_is_reached_by_what_is_worth_a_share_of_it():
    flow = FlowOptions("strings", length=32, letters=2)
    near = RewardOptions("modes", n_modes=1, sharpness=3.0, mode_share=0.9)
    log_reward = load_reward(near, flow)
    generator = ops.generator(1)
    even = torch.randint(1, 3, (4096, 32), generator=generator)
    best = even[log_reward(even).argmax()]
    for _ in range(40):  # uphill, a bit at a time, until nothing is better
        flipped = best.repeat(32, 1) + torch.eye(32, dtype=torch.long) * (3 - 2 * best)
        best = flipped[log_reward(flipped).argmax()] if log_reward(best[None]) < 0 else best
    for flips, is_near in ((0, True), (1, True), (2, False)):  # exp(-3 / 32) is 0.91
        other = best.clone()
        other[:flips] = 3 - other[:flips]
        modes = modes_of(near, flow, None, log_reward)
        assert modes is not None and bool(modes.among(other[None]).all()) == is_near


@pytest.mark.parametrize(("height", "n_axes"), [(8, 2), (16, 2), (9, 3)])
def test_peaks_of_corners_are_found_corner_by_corner(height, n_axes):
    flow = FlowOptions(height=height, axes=n_axes)
    modes = modes_of(RewardOptions("corners"), flow, None, corners(height))
    assert modes is not None and modes.count == 2**n_axes
    cells = enumerated(HyperGrid(n_axes, height)).states
    worth = corners(height)(cells)
    assert modes.among(cells[worth == worth.max()]).all()
    assert not modes.among(cells[worth < worth.max()]).any()
    corner = cells[(worth == worth.max()) & (cells > height / 2).all(-1)]
    assert len(corner) and int(modes.among(corner).sum()) == 1


def test_a_grid_without_peaks_has_the_modes_of_its_cells():
    graph, flow = enumerated(HyperGrid(2, 3)), FlowOptions(height=3)
    modes = modes_of(RewardOptions("corners"), flow, graph, corners(3))
    assert modes is not None and modes.count == 4
    assert modes_of(RewardOptions("corners"), flow, None, corners(3)) is None


def worth_of(objects):
    """Some thousand values, the best far from common."""
    return torch.sin(objects.double() @ torch.tensor([12.9898, 78.233]).double()) * 3 - 200


def batches(n=12, seed=0):
    generator = ops.generator(seed)
    return [torch.randint(0, 30, (16, 2), generator=generator) for _ in range(n)]


@pytest.mark.parametrize("extra", [0.0, 0.5])
def test_near_the_best_is_counted_against_the_best_of_all_ways(extra):
    """By the definition, over everything that was built; a rival's best may be better."""
    finds, built = Finds(None, worth_of, 0.5), batches()
    for batch in built:
        found = finds(batch, len(batch))
    everything = torch.cat(built).unique(dim=0)
    worth = worth_of(everything)
    assert finds.best == worth.max() and finds.looks == 12 * 16
    assert found == {"near_best": float((worth >= worth.max() + math.log(0.5)).sum())}
    best = finds.best + extra
    for look, count in finds.curve(best):
        seen = torch.cat(built[: look // 16]).unique(dim=0) if look >= 16 else everything[:0]
        assert count == (worth_of(seen) >= best + math.log(0.5)).sum()
    assert finds.curve(best)[-1][0] == finds.looks


MODES = Modes(3, partial(modes_found, modes=torch.tensor([[0, 1], [5, 5], [40, 40]])))


@pytest.mark.parametrize("modes", [None, MODES], ids=["near the best", "known"])
def test_what_was_built_goes_into_a_checkpoint(modes):
    whole, begun, again = (Finds(modes, worth_of, 0.5) for _ in range(3))
    again.load_state(begun.state())  # of nothing yet
    for number, batch in enumerate(batches()):
        whole(batch, 16)
        if number == 5:
            again.load_state(whole.state())
        elif number > 5:
            again(batch, 16)
    assert again == whole and again.curve(whole.best) == whole.curve(whole.best)


def test_known_modes_are_counted_once_each():
    finds = Finds(MODES, worth_of, 0.9)
    assert finds(torch.tensor([[0, 1], [0, 1], [2, 2]]), 3) == {"modes": 1.0}
    assert finds(torch.tensor([[5, 5], [0, 1]]), 2) == {"modes": 2.0}
    picture = built_over_looks({"flows": finds}, over="look")
    assert picture["title"] == "Modes built, of 3"
    assert picture["lines"]["flows"] == [[1, 0], [2, 0], [3, 1], [4, 1], [5, 2]]

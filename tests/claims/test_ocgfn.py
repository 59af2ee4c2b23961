"""OC-GFN's claim: every arm is measured, the same seed twice alike, and the measure is exact."""

import math

import numpy as np
import pytest
import torch

from melior.claims import ocgfn
from melior.claims.claim import Cloud, Dots, judge
from melior.evaluation.flow import exact_flows, exact_policy, target, uniform_backward


def test_every_rule_and_table_finds_its_arm(monkeypatch):
    monkeypatch.setattr(ocgfn, "SCRATCH_STEPS", dict.fromkeys(ocgfn.SCRATCH, 1))
    monkeypatch.setattr(ocgfn, "WIDTH", 8)
    monkeypatch.setattr(ocgfn, "BATCH_SIZE", 4)
    found, again = (ocgfn.CLAIM.measure([seed], 2) for seed in (3, 3))
    for arm, quantities in found.items():
        for name, values in quantities.items():
            assert np.isfinite(values).all() and np.array_equal(values, again[arm][name])
    for rule in ocgfn.CLAIM.rules:
        assert len(judge(rule, found).values) == 1
    for aside in ocgfn.CLAIM.asides:
        assert len(aside.measure(found)) == 1
    for table in ocgfn.CLAIM.tables:
        assert all(name in found[arm] for arm in table.arms for name in table.quantities)
    for picture in ocgfn.CLAIM.pictures:
        if isinstance(picture, Dots):
            assert all(picture.quantity in found[arm] for arm in picture.arms)
            continue
        if isinstance(picture, Cloud):
            wanted, drawn = (found[picture.arm][name] for name in (picture.x, picture.y))
            assert wanted.sum() == pytest.approx(1) and drawn.sum() == pytest.approx(1)
            reward = picture.arm.rpartition(" ")[2]
            distance = np.abs(wanted - drawn).sum() / 2
            assert distance == pytest.approx(found["OC-GFN"][reward][0], abs=1e-6)
            continue
        for arm in (arm for arms in picture.series.values() for arm in arms):
            assert {picture.x, picture.y} <= set(found[arm])


@pytest.mark.parametrize("name", list(ocgfn.REWARDS))
def test_the_error_is_that_of_what_a_policy_builds(name):
    world, log_reward = ocgfn.grid(ocgfn.HEIGHT), ocgfn.REWARDS[name]
    reward = log_reward(world.graph.states).double()
    backward = uniform_backward(world.graph)
    flow = exact_flows(world.graph, backward, reward[:, None])[:, 0]
    policy = exact_policy(world.graph, backward, flow, reward)
    assert ocgfn.error(world, policy, log_reward) < 1e-6  # the claim's rewards are in float32
    stop = torch.tensor([-math.inf, -math.inf, 0.0]).expand(64, -1)
    at_start = target(world.graph, reward)[0].item()
    assert ocgfn.error(world, stop, log_reward) == pytest.approx(1 - at_start)

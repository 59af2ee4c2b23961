"""Trajectories of flows: drawn as the policy says, whole, and the same taken apart."""

import math
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.data.flow import NO_ACTION, Trajectories, joined, rows_of
from melior.envs.flow import Fillings, HyperGrid, Strings
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import (
    built,
    exact_flows,
    exact_policy,
    observed,
    uniform_backward,
)
from melior.models.flow import along, policy_of, start_flow_model, unconditioned
from melior.sampling.flow import drawn, evenly, sample, sample_back
from tests.claims.chances import fits

small = st.sampled_from([HyperGrid(2, 4), HyperGrid(3, 3), Strings(3, 3), Fillings(3, 2)])
seeds = st.integers(0, 1000)


def assert_whole(env, trajectories: Trajectories) -> None:
    """Every action is allowed and leads to the next state, and the last one is the stop."""
    states, actions = trajectories.states, trajectories.actions
    assert torch.equal(states[:, 0], env.start.expand(len(states), -1))
    n_steps = actions.shape[1]
    states = torch.cat([states, states[:, -1:]], 1)
    for t in range(n_steps):
        there = actions[:, t] != NO_ACTION
        here = states[there, t]
        assert env.allowed(here).gather(-1, actions[there, t, None]).all()
        on = there & (actions[:, t] != env.n_actions)
        assert torch.equal(env.step(states[on, t], actions[on, t]), states[on, t + 1])
        off = ~on
        assert (actions[off, t + 1 :] == NO_ACTION).all()
        assert torch.equal(states[off, t + 1], states[off, t])
    last = actions.gather(1, trajectories.lengths[:, None] - 1)
    assert (last == env.n_actions).all()


@given(small, seeds)
def test_trajectories_are_whole_both_ways(env, seed):
    forward = sample(env, evenly(env.allowed), 8, generator=ops.generator(seed))
    assert_whole(env, forward)
    back = sample_back(
        env, forward.objects, evenly(env.undoable), generator=ops.generator(seed + 1)
    )
    assert_whole(env, back)
    assert torch.equal(back.objects, forward.objects)
    both = joined([forward, back])
    assert_whole(env, both)
    assert torch.equal(both.lengths, torch.cat([forward.lengths, back.lengths]))


def test_objects_come_as_the_policy_says():
    """Chi-square of 20,000 objects of a policy that is in proportion to a drawn reward."""
    env = HyperGrid(2, 4)
    graph = enumerated(env)
    reward = torch.randn(16, generator=ops.generator(1), dtype=torch.float64)
    backward = uniform_backward(graph)
    flow = exact_flows(graph, backward, reward[:, None])[:, 0]
    table = exact_policy(graph, backward, flow, reward)

    def policy(states, _):
        return table[rows_of(graph.states, states)]

    found = sample(env, policy, 20_000, generator=ops.generator(2))
    counts = observed(rows_of(graph.states, found.objects), 16) * 20_000
    assert fits(counts, reward.softmax(0))
    explored = sample(env, policy, 20_000, generator=ops.generator(3), exploration=0.3)
    allowed = env.allowed(graph.states).double()
    even = (allowed / allowed.sum(-1, keepdim=True)).log()
    mixed = torch.logaddexp(table + math.log(0.7), even + math.log(0.3))
    counts = observed(rows_of(graph.states, explored.objects), 16) * 20_000
    assert fits(counts, built(graph, mixed))
    assert not fits(counts, reward.softmax(0))


def test_the_way_back_is_drawn_as_its_policy_says():
    """Of the six ways to fill three places each comes as often as the others."""
    env = Fillings(3, 2)
    objects = torch.tensor([[1, 2, 1]]).expand(6000, -1)
    ways = sample_back(env, objects, evenly(env.undoable), generator=ops.generator(0))
    _, counts = ways.actions.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert fits(counts.double(), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_draws_come_as_their_probabilities_and_never_where_there_is_none():
    log_probs = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    found = drawn(log_probs.expand(20_000, -1), generator=ops.generator(0)).bincount(minlength=4)
    assert found[3] == 0
    assert fits(found[:3].double(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def test_the_same_seed_builds_the_same():
    env = HyperGrid(2, 5)
    first, second = (
        sample(env, evenly(env.allowed), 16, generator=ops.generator(7)) for _ in range(2)
    )
    assert torch.equal(first.states, second.states) and torch.equal(first.actions, second.actions)


@dataclass(frozen=True)
class Endless(HyperGrid):
    """A grid that says it is smaller than it is."""

    longest: int = 3


def test_what_goes_on_for_too_long_gets_a_sentence():
    env = Endless(1, 9)

    def onward(states, _):
        return torch.tensor([0.0, -30.0]).expand(len(states), -1)

    with pytest.raises(ValueError, match=r"must stop within 3 actions.*goes on at \[3\]"):
        sample(env, onward, 2, generator=ops.generator(0))
    with pytest.raises(ValueError, match=r"taken apart within 2 steps"):
        sample_back(env, torch.tensor([[8]]), evenly(env.undoable), generator=ops.generator(0))
    with pytest.raises(ValueError, match="exploration must be at least 0 and at most 1; found 2"):
        sample(env, onward, 2, generator=ops.generator(0), exploration=2)


class Remembering(HyperGrid):
    """A grid that makes its masks at the first call and keeps them."""

    @cached_property
    def everything(self):
        return torch.ones(1, self.n_axes + 1, dtype=torch.bool)

    def allowed(self, states):
        return self.everything.expand(len(states), -1)


def test_what_an_environment_keeps_from_a_draw_can_be_learned_from():
    env = Remembering(2, 100)
    model = start_flow_model(env, seed=0, width=8)
    ways = sample(env, policy_of(model, env), 8, generator=ops.generator(0))
    paths, _ = along(unconditioned(model, env), ways, torch.zeros(8))
    paths.log_forward.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.ways.parameters())

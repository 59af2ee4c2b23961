"""Exact flows on graphs of all states, and what is measured against them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.data.flow import NO_ACTION
from melior.envs.flow import Fillings, HyperGrid, Strings
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import (
    built,
    diversity,
    exact_flows,
    exact_policy,
    jensen_shannon,
    mean_absolute_error,
    modes_found,
    observed,
    target,
    top,
    total_variation,
    undoable,
    uniform_backward,
    visits,
)

seeds = st.integers(0, 1000)
small = st.sampled_from([HyperGrid(2, 4), HyperGrid(3, 3), Strings(3, 3), Fillings(3, 2)])


def drawn_reward(graph, seed: int) -> torch.Tensor:
    reward = 3 * torch.randn(len(graph.states), generator=ops.generator(seed), dtype=torch.float64)
    return reward.masked_fill(~graph.can_stop, torch.nan)  # not read


def drawn_backward(graph, seed: int) -> torch.Tensor:
    shape = graph.children.shape
    logits = torch.randn(shape, generator=ops.generator(seed), dtype=torch.float64)
    return logits.masked_fill(~undoable(graph), -torch.inf).log_softmax(-1).nan_to_num(-torch.inf)


@given(small, seeds)
def test_the_policy_of_exact_flows_builds_in_proportion_to_the_reward(env, seed):
    """Whatever the way back: that is the whole point of flows."""
    graph = enumerated(env)
    reward, backward = drawn_reward(graph, seed), drawn_backward(graph, seed + 1)
    flow = exact_flows(graph, backward, reward[:, None])[:, 0]
    policy = exact_policy(graph, backward, flow, reward)
    assert torch.allclose(policy.exp().sum(-1), torch.ones(len(flow), dtype=torch.float64))
    assert total_variation(built(graph, policy), target(graph, reward)) < 1e-12
    log_z = reward[graph.can_stop].logsumexp(0)
    assert flow[0].item() == pytest.approx(log_z.item(), rel=1e-12)
    # A state's flow is the chance of passing it, times the total flow.
    assert torch.allclose(visits(graph, policy).log() + log_z, flow)


@given(small, seeds)
def test_the_flow_of_one_outcome_is_the_chance_that_the_way_back_passes(env, seed):
    graph = enumerated(env)
    backward = drawn_backward(graph, seed)
    finals = graph.can_stop.nonzero()[:, 0]
    only = torch.full((len(graph.states), len(finals)), -torch.inf, dtype=torch.float64)
    only[finals, torch.arange(len(finals))] = 0.0
    found = exact_flows(graph, backward, only).exp()
    parents = [[] for _ in graph.states]
    for row, action in (graph.children != NO_ACTION).nonzero().tolist():
        child = int(graph.children[row, action])
        parents[child].append((row, math.exp(backward[child, action])))
    for column, final in enumerate(finals.tolist()):
        chance = np.zeros(len(graph.states))
        chance[final] = 1.0
        for row in range(len(graph.states) - 1, -1, -1):  # children before parents
            for parent, share in parents[row]:
                chance[parent] += chance[row] * share
        assert np.allclose(found[:, column].numpy(), chance, rtol=1e-12, atol=1e-15)
    assert torch.allclose(found[0], torch.ones(len(finals), dtype=torch.float64))


def test_the_even_way_back_shares_among_parents():
    graph = enumerated(HyperGrid(2, 2))
    shares = {
        tuple(s.tolist()): row.exp().tolist()
        for s, row in zip(graph.states, uniform_backward(graph), strict=True)
    }
    assert shares == {(0, 0): [0, 0], (0, 1): [0, 1], (1, 0): [1, 0], (1, 1): [0.5, 0.5]}
    assert torch.equal(undoable(graph), HyperGrid(2, 2).undoable(graph.states))


def test_rewards_that_are_no_target_get_a_sentence():
    graph = enumerated(HyperGrid(1, 3))
    with pytest.raises(ValueError, match="found a reward of 0 everywhere"):
        target(graph, torch.full((3,), -torch.inf))
    with pytest.raises(ValueError, match=r"found nan at \[1\]"):
        target(graph, torch.tensor([0.0, torch.nan, 0.0]))
    with pytest.raises(ValueError, match=r"found inf at \[2\]"):
        target(graph, torch.tensor([0.0, 0.0, torch.inf]))
    assert target(graph, torch.tensor([0.0, -torch.inf, -torch.inf])).tolist() == [1, 0, 0]


def test_states_without_flow_are_never_visited():
    graph = enumerated(Strings(2, 2))
    reward = torch.full((7,), -torch.inf, dtype=torch.float64)
    reward[-1] = 2.0
    backward = uniform_backward(graph)
    flow = exact_flows(graph, backward, reward[:, None])[:, 0]
    policy = exact_policy(graph, backward, flow, reward)
    assert not policy.isnan().any()
    assert built(graph, policy)[-1].item() == 1.0


@given(seeds)
def test_distances_are_what_their_definitions_say(seed):
    p, q = torch.randn(2, 6, generator=ops.generator(seed), dtype=torch.float64).softmax(-1)
    a, b = p.numpy(), q.numpy()
    assert total_variation(p, q).item() == pytest.approx(np.maximum(a - b, 0).sum())
    assert mean_absolute_error(p, q).item() == pytest.approx(2 * np.maximum(a - b, 0).sum() / 6)
    middle = (a + b) / 2
    wanted = ((a * np.log(a / middle)).sum() + (b * np.log(b / middle)).sum()) / 2
    assert jensen_shannon(p, q).item() == pytest.approx(wanted, abs=1e-15)


def test_distributions_apart_are_as_far_as_can_be():
    apart = torch.eye(2, dtype=torch.float64)
    assert total_variation(apart[0], apart[1]) == 1
    assert jensen_shannon(apart[0], apart[1]).item() == pytest.approx(math.log(2))
    assert jensen_shannon(apart[0], apart[0]) == 0


def test_samples_are_counted_and_modes_looked_for():
    assert observed(torch.tensor([0, 2, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]
    objects = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 4]])
    assert modes_found(objects, torch.tensor([[3, 4], [2, 1]])).tolist() == [True, False]
    best, rewards = top(objects, torch.tensor([5.0, 1.0, 5.0, 7.0]), 2)
    assert best.tolist() == [[1, 4], [1, 2]] and rewards.tolist() == [7, 5]
    assert len(top(objects, torch.zeros(4), 9)[0]) == 3
    assert diversity(torch.tensor([[1, 4], [1, 2], [3, 4]])) == pytest.approx((1 + 1 + 2) / 3)
    assert diversity(best[:1]) == 0.0

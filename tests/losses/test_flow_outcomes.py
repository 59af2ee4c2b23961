"""Flows towards an outcome: equations again, exact conversion, and what may not be asked."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.envs.flow import Fillings, HyperGrid, Strings
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import (
    built,
    exact_flows,
    exact_policy,
    target,
    total_variation,
    uniform_backward,
)
from melior.losses.flow import Paths, detailed_balance, trajectory_balance
from melior.losses.flow_outcomes import (
    amortised,
    augmented_trajectory_balance,
    calibration,
    converted,
    log_success,
    teleported_balance,
)
from melior.rewards.flow import corners, sparse
from tests.losses.test_flow import N, T, drawn

seeds = st.integers(0, 1000)


def exact_outcomes(env):
    """Every outcome's exact flows and policy, with an even way back."""
    graph = enumerated(env)
    backward = uniform_backward(graph)
    finals = graph.can_stop.nonzero()[:, 0]
    only = torch.full((len(graph.states), len(finals)), -torch.inf, dtype=torch.float64)
    only[finals, torch.arange(len(finals))] = 0.0
    flow = exact_flows(graph, backward, only)
    policies = [exact_policy(graph, backward, flow[:, y], only[:, y]) for y in range(len(finals))]
    return graph, finals, flow, torch.stack(policies, 1)


@pytest.mark.parametrize("env", [HyperGrid(2, 5), Strings(3, 3), Fillings(3, 2)])
@given(seed=seeds)
def test_exact_flows_of_all_outcomes_give_exact_samplers_of_any_reward(env, seed):
    """The spec's own test, which found 6e-8 in float32."""
    graph, finals, flow, policies = exact_outcomes(env)
    reward = 3 * torch.randn(len(finals), generator=ops.generator(seed), dtype=torch.float64)
    reward[seed % len(finals)] = -torch.inf
    total, policy = converted(flow, policies, reward)
    everywhere = torch.full((len(graph.states),), -torch.inf, dtype=torch.float64)
    everywhere[finals] = reward
    assert total_variation(built(graph, policy), target(graph, everywhere)) < 1e-12
    assert total[0].item() == pytest.approx(reward.logsumexp(0).item(), abs=1e-12)
    alone = exact_flows(graph, uniform_backward(graph), everywhere[:, None])[:, 0]
    assert torch.allclose(total, alone)


@pytest.mark.parametrize("landscape", [corners(8), sparse(8)])
def test_the_specs_grid_and_rewards_are_converted_to_the_last_digit(landscape):
    graph, finals, flow, policies = exact_outcomes(HyperGrid(2, 8))
    reward = landscape(graph.states).double()
    _, policy = converted(flow, policies, reward[finals])
    assert total_variation(built(graph, policy), target(graph, reward)) < 1e-12


def test_states_that_lead_nowhere_get_some_policy():
    _, policy = converted(
        torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]),
        torch.full((2, 2, 2), math.log(0.5)),
        torch.zeros(2),
    )
    assert torch.allclose(policy.exp(), torch.full((2, 2), 0.5))


def test_rewards_that_nothing_can_be_converted_to_get_a_sentence():
    flow, forward = torch.zeros(1, 2), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="worth something is needed; found none"):
        converted(flow, forward, torch.full((2,), -torch.inf))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite or -inf; found nan or inf"):
            converted(flow, forward, torch.tensor([0.0, value]))


@given(seeds)
def test_teleported_rewards_stand_at_every_edge_and_once_at_the_stop(seed):
    paths, flow = drawn(seed)
    found, plain = teleported_balance(paths, flow), detailed_balance(paths, flow)
    for row in range(N):
        length = int(paths.is_step[row].sum())
        for step in range(T):
            seen = paths.log_reward[row].item() if step < length - 1 else 0.0
            assert found[row, step].item() == pytest.approx(plain[row, step].item() - seen)


@given(seeds)
def test_successful_trajectories_are_plain_detailed_balance(seed):
    paths, flow = drawn(seed)
    success = log_success(torch.ones(N, dtype=torch.bool), dtype=torch.float64)
    paths = Paths(paths.log_forward, paths.log_backward, paths.is_step, success)
    assert torch.equal(teleported_balance(paths, flow), detailed_balance(paths, flow))


def test_failures_are_worth_a_little():
    found = log_success(torch.tensor([True, False]), epsilon=1e-3)
    assert found.tolist() == [0, pytest.approx(math.log(1e-3))]


@given(seeds)
def test_augmented_balance_adds_novelty_to_rewards_and_ways_back(seed):
    paths, flow = drawn(seed)
    generator = ops.generator(seed + 1)
    novelty = torch.randn(N, T, generator=generator, dtype=torch.float64)
    novelty = novelty.masked_fill(~paths.is_step, torch.nan)
    novelty[:, 0] = novelty[:, 0].where(paths.is_step.sum(-1) == 1, torch.nan)  # not read else
    log_z = torch.randn(N, generator=generator, dtype=torch.float64)
    found = augmented_trajectory_balance(paths, log_z, flow, novelty)
    for row in range(N):
        length = int(paths.is_step[row].sum())
        reward = math.exp(paths.log_reward[row]) + math.exp(novelty[row, length - 1]) + 1e-8
        wanted = float(log_z[row]) - math.log(reward)
        for step in range(length):
            wanted += float(paths.log_forward[row, step])
        for step in range(length - 1):
            bonus = math.exp(novelty[row, step + 1]) / math.exp(flow[row, step + 1])
            wanted -= math.log(math.exp(paths.log_backward[row, step]) + bonus)
        assert found[row].item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(seeds)
def test_without_novelty_augmented_balance_is_trajectory_balance(seed):
    paths, flow = drawn(seed)
    none = torch.full((N, T), -torch.inf, dtype=torch.float64)
    log_z = flow[:, 0]
    found = augmented_trajectory_balance(paths, log_z, flow, none)
    assert torch.allclose(found, trajectory_balance(paths, log_z), atol=1e-5)


def test_augmented_balance_has_a_finite_gradient_with_no_reward_at_all():
    forward = torch.zeros(1, 3, requires_grad=True)
    flow = torch.tensor([[0.0, 0.0, torch.nan]], requires_grad=True)
    is_step = torch.tensor([[True, True, False]])
    backward = torch.tensor([[0.0, torch.nan, torch.nan]])
    novelty = torch.tensor([[torch.nan, -1.0, torch.nan]])
    paths = Paths(forward, backward, is_step, torch.tensor([-torch.inf]))
    loss = augmented_trajectory_balance(paths, torch.zeros(1), flow, novelty).square()
    loss.sum().backward()
    assert forward.grad.isfinite().all() and flow.grad.isfinite().all()
    assert forward.grad[0, 2] == flow.grad[0, 2] == 0 and forward.grad[0, 0] != 0


@given(seeds)
def test_the_amortised_sum_and_posterior_of_the_exact_flows_leave_nothing(seed):
    """`N = sum of r F P_F` over outcomes and `Q` its shares: the constraint holds of each."""
    flow, forward, reward = torch.randn(3, 6, generator=ops.generator(seed), dtype=torch.float64)
    weight = reward + flow + forward
    total = weight.logsumexp(0).expand(6)
    left = amortised(total, weight - total, reward, log_flow=flow, log_forward=forward)
    assert left.abs().max() < 1e-12
    low = amortised(total, weight, reward - 99, log_flow=flow, log_forward=forward, least=-15.0)
    assert np.allclose(low.numpy(), (total + weight + 15).numpy())


def test_the_outcomes_flows_are_not_moved_by_the_predictor():
    flow = torch.zeros(2, requires_grad=True)
    own = torch.zeros(2, requires_grad=True)
    amortised(own, own, torch.zeros(2), log_flow=flow, log_forward=flow).sum().backward()
    assert flow.grad is None and own.grad.tolist() == [2, 2]


def test_calibrated_flows_have_no_spread():
    assert calibration(torch.tensor([0.3, 0.3, 0.3])).item() == pytest.approx(0.0, abs=1e-7)
    assert calibration(torch.tensor([0.0, 2.0])).item() == 1.0

"""Balance of flows: the equations again by loops, laws, and flows that are known exactly."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.envs.flow import HyperGrid
from melior.losses.flow import (
    Paths,
    detailed_balance,
    flow_matching,
    forward_looking,
    huber,
    mean_of_steps,
    squared,
    sub_trajectory_balance,
    sub_trajectory_weights,
    sum_of_steps,
    trajectory_balance,
)
from melior.rewards.flow import corners

PEERS = Path(__file__).parents[1] / "peers"
seeds = st.integers(0, 10_000)
N, T = 5, 6


def drawn(seed: int, t: int = T) -> tuple[Paths, torch.Tensor]:
    """Paths of random lengths, and log-flows; what must not be read is nan."""
    generator = ops.generator(seed)
    forward, backward, flow = torch.randn(3, N, t, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, t + 1, (N,), generator=generator)
    is_step = torch.arange(t) < lengths[:, None]
    is_last = torch.arange(t) == lengths[:, None] - 1
    forward = forward.masked_fill(~is_step, torch.nan)
    backward = backward.masked_fill(~is_step | is_last, torch.nan)
    reward = torch.randn(N, generator=generator, dtype=torch.float64)
    return Paths(forward, backward, is_step, reward), flow.masked_fill(~is_step, torch.nan)


def part(paths: Paths, flow: torch.Tensor, row: int, first: int, last: int) -> float:
    """The balance of the steps from `first` to `last`, from the definition, in probabilities."""
    length = int(paths.is_step[row].sum())
    left = math.exp(flow[row, first])
    right = math.exp(paths.log_reward[row] if last == length - 1 else flow[row, last + 1])
    for step in range(first, last + 1):
        left *= math.exp(paths.log_forward[row, step])
        if step < length - 1:
            right *= math.exp(paths.log_backward[row, step])
    return math.log(left) - math.log(right)


@given(seeds)
def test_sub_trajectories_balance_as_products_of_probabilities_do(seed):
    paths, flow = drawn(seed)
    found = sub_trajectory_balance(paths, flow)
    for row in range(N):
        length = int(paths.is_step[row].sum())
        for i in range(T):
            for j in range(T):
                wanted = part(paths, flow, row, i, j) if i <= j < length else 0.0
                assert found[row, i, j].item() == pytest.approx(wanted, rel=1e-9, abs=1e-11)


@given(seeds)
def test_detailed_balance_is_the_shortest_parts_and_trajectory_balance_the_longest(seed):
    paths, flow = drawn(seed)
    every = sub_trajectory_balance(paths, flow)
    assert torch.allclose(detailed_balance(paths, flow), every.diagonal(dim1=1, dim2=2))
    last = paths.is_step.sum(-1) - 1
    corner = every[torch.arange(N), 0, last]
    assert torch.allclose(trajectory_balance(paths, flow[:, 0]), corner, rtol=1e-10, atol=1e-12)


@given(seeds)
def test_parts_that_meet_add_up(seed):
    """Balance telescopes: a part is the sum of any two into which it is cut."""
    paths, flow = drawn(seed)
    every = sub_trajectory_balance(paths, flow)
    for i in range(T):
        for j in range(i + 1, T):
            both = paths.is_step[:, j]
            for cut in range(i, j):
                joined = every[:, i, cut] + every[:, cut + 1, j]
                assert torch.allclose(joined[both], every[both, i, j], atol=1e-11)


@given(seeds, st.sampled_from([0.1, 0.9, 1.0, 2.0]))
def test_weights_are_powers_of_the_length_and_sum_to_one(seed, lamda):
    paths, _ = drawn(seed)
    found = sub_trajectory_weights(paths.is_step, lamda=lamda, dtype=torch.float64)
    for row in range(N):
        length = int(paths.is_step[row].sum())
        wanted = np.zeros((T, T))
        for i in range(length):
            for j in range(i, length):
                wanted[i, j] = lamda ** (j - i)
        assert np.allclose(found[row].numpy(), wanted / wanted.sum(), rtol=1e-10)


@given(seeds)
def test_lambda_goes_from_detailed_to_trajectory_balance(seed):
    paths, flow = drawn(seed)
    losses = squared(sub_trajectory_balance(paths, flow))

    def weighted(lamda: float) -> torch.Tensor:
        weights = sub_trajectory_weights(paths.is_step, lamda=lamda, dtype=torch.float64)
        return (weights * losses).flatten(1).sum(-1)

    steps = mean_of_steps(squared(detailed_balance(paths, flow)), paths.is_step)
    whole = squared(trajectory_balance(paths, flow[:, 0]))
    assert torch.allclose(weighted(1e-12), steps, rtol=1e-8)
    assert torch.allclose(weighted(1e12), whole, rtol=1e-8)


def test_the_weights_of_the_papers_common_library():
    """`lambda^(len - 1)` over `sum of (n - i) lambda^i`, for three steps and lambda 0.9."""
    weights = sub_trajectory_weights(torch.ones(1, 3, dtype=torch.bool), lamda=0.9)[0]
    total = 3 + 2 * 0.9 + 0.81
    wanted = [[1, 0.9, 0.81], [0, 1, 0.9], [0, 0, 1]]
    assert np.allclose(weights.numpy(), np.array(wanted) / total, rtol=1e-6)


@given(seeds)
def test_what_stands_after_the_end_counts_nothing_and_moves_nothing(seed):
    paths, flow = drawn(seed)
    leaves = [own.clone().requires_grad_() for own in (paths.log_forward, paths.log_backward, flow)]
    own = Paths(leaves[0], leaves[1], paths.is_step, paths.log_reward)
    total = (
        squared(detailed_balance(own, leaves[2])).sum()
        + squared(sub_trajectory_balance(own, leaves[2])).sum()
        + squared(trajectory_balance(own, leaves[2][:, 0])).sum()
    )
    total.backward()
    for leaf in leaves:
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert (leaf.grad[~paths.is_step] == 0).all()
    assert (leaves[0].grad[paths.is_step] != 0).all()  # the policy is moved at every step


def test_gradients_agree_with_finite_differences():
    generator = ops.generator(3)
    shape = (2, 3)
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]
    reward = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    is_step = torch.tensor([[True, True, True], [True, True, False]])

    def losses(forward, backward, flow, reward):
        paths = Paths(forward, backward, is_step, reward)
        return (
            huber(detailed_balance(paths, flow), delta=0.5),
            squared(sub_trajectory_balance(paths, flow)),
            squared(trajectory_balance(paths, flow[:, 0])),
        )

    assert torch.autograd.gradcheck(losses, (*inputs, reward))
    edges = [torch.randn(3, 2, dtype=torch.float64, generator=generator) for _ in range(2)]
    edges = [own.requires_grad_() for own in edges]
    own = torch.randn(3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(flow_matching, (*edges, own))


@given(seeds)
def test_exact_flows_balance_in_every_sense(seed):
    """A binary tree of depth two whose four leaves have any rewards: Z is their sum."""
    rewards = torch.rand(4, generator=ops.generator(seed), dtype=torch.float64) + 0.1
    inner = rewards.view(2, 2).sum(-1)
    z = rewards.sum()
    leaf = torch.arange(4)
    forward = torch.stack([inner[leaf // 2] / z, rewards / inner[leaf // 2], torch.ones(4)], 1)
    flow = torch.stack([z.expand(4), inner[leaf // 2], rewards], 1).log()
    is_step = torch.ones(4, 3, dtype=torch.bool)
    paths = Paths(forward.log(), torch.zeros(4, 3, dtype=torch.float64), is_step, rewards.log())
    assert trajectory_balance(paths, z.log().expand(4)).abs().max() < 1e-12
    assert detailed_balance(paths, flow).abs().max() < 1e-12
    assert sub_trajectory_balance(paths, flow).abs().max() < 1e-12
    # With the wrong Z every trajectory is off by the same.
    off = trajectory_balance(paths, z.log().expand(4) + 1)
    assert torch.allclose(off, torch.ones(4, dtype=torch.float64))


@given(seeds)
def test_forward_looking_flows_leave_only_what_is_still_to_come(seed):
    """With energies that add up along the way, balance holds of edges (FL-DB as in the paper)."""
    paths, rest = drawn(seed)
    energies = torch.randn(N, T, generator=ops.generator(seed + 1), dtype=torch.float64)
    found = detailed_balance(paths, forward_looking(rest, -energies))
    for row in range(N):
        for step in range(int(paths.is_step[row].sum()) - 1):
            edge = float(energies[row, step + 1] - energies[row, step])
            ratio = float(paths.log_forward[row, step] - paths.log_backward[row, step])
            wanted = float(rest[row, step] - rest[row, step + 1]) + ratio + edge
            assert found[row, step].item() == pytest.approx(wanted, abs=1e-10)


@given(seeds)
def test_flow_matching_compares_sums_of_flows(seed):
    generator = ops.generator(seed)
    inflow, outflow = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    reward = torch.randn(4, generator=generator, dtype=torch.float64)
    inflow[0, 1:] = outflow[1] = -torch.inf
    reward[2] = -torch.inf
    found = flow_matching(inflow, outflow, reward, epsilon=1e-3)
    into = np.exp(inflow.numpy()).sum(1) + 1e-3
    out = np.exp(outflow.numpy()).sum(1) + np.exp(reward.numpy()) + 1e-3
    assert np.allclose(found.numpy(), np.log(into) - np.log(out), rtol=1e-12)


def test_states_without_any_flow_match():
    none = torch.full((1, 2), -torch.inf)
    assert flow_matching(none, none, none[:, 0]).item() == 0.0


@given(st.floats(-1e4, 1e4), st.floats(0.1, 10))
def test_huber_is_a_square_that_goes_on_as_a_line(value, delta):
    residual = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    loss = huber(residual, delta=delta)
    loss.backward()
    slope = max(-2 * delta, min(2 * delta, 2 * value))
    assert residual.grad.item() == pytest.approx(slope, rel=1e-9, abs=1e-9)
    wanted = value**2 if abs(value) <= delta else delta**2 + 2 * delta * (abs(value) - delta)
    assert loss.item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_steps_are_summed_or_averaged_where_they_are():
    losses = torch.tensor([[1.0, 3.0, torch.nan], [torch.nan] * 3])
    is_step = torch.tensor([[True, True, False], [False] * 3])
    assert sum_of_steps(losses, is_step).tolist() == [4.0, 0.0]
    assert mean_of_steps(losses, is_step).tolist() == [2.0, 0.0]


def test_a_trajectory_that_only_stops_is_held_to_its_reward():
    """The target with one state: F(s0) = Z = R, whatever else."""
    flow = torch.tensor([[0.7, 5.0]])
    paths = Paths(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[True, False]]), torch.tensor([0.7])
    )
    assert detailed_balance(paths, flow).tolist() == [[0.0, 0.0]]
    assert trajectory_balance(paths, flow[:, 0]).tolist() == [0.0]


def test_losses_are_those_of_torchgfn():
    """Frozen trajectories of a grid, under a policy and flows that are linear in one-hot cells."""
    frozen = json.loads((PEERS / "torchgfn.json").read_text(encoding="utf-8"))
    env, lamda = HyperGrid(2, frozen["height"]), frozen["lamda"]
    forward, flow = (torch.tensor(frozen[k], dtype=torch.float64) for k in ("forward", "flow"))
    rows = [own[:n] for own, n in zip(frozen["actions"], frozen["lengths"], strict=True)]
    n, t = len(rows), max(map(len, rows))
    log_forward, log_backward, log_flow = torch.zeros(3, n, t, dtype=torch.float64)
    is_step = torch.zeros(n, t, dtype=torch.bool)
    reward = torch.tensor(frozen["log_reward"], dtype=torch.float64)
    for row, actions in enumerate(rows):
        state = env.start[None]
        for step, action in enumerate(actions):
            cell = env.features(state).double()
            logits = (cell @ forward.T).masked_fill(~env.allowed(state), -torch.inf)
            log_forward[row, step] = logits.log_softmax(-1)[0, action]
            log_flow[row, step] = (cell @ flow.T)[0, 0]
            is_step[row, step] = True
            if action < env.n_actions:
                state = env.step(state, torch.tensor([action]))
                log_backward[row, step] = -float(env.undoable(state).sum().double().log())
        assert corners(frozen["height"], least=0.1)(state)[0] == pytest.approx(float(reward[row]))
    paths = Paths(log_forward, log_backward, is_step, reward)
    z = torch.full((n,), frozen["log_z"], dtype=torch.float64)
    steps = squared(detailed_balance(paths, log_flow))
    weights = sub_trajectory_weights(is_step, lamda=lamda, dtype=torch.float64)
    parts = squared(sub_trajectory_balance(paths, log_flow))
    ours = {
        "trajectory balance": squared(trajectory_balance(paths, z)).mean(),
        "detailed balance": steps[is_step].mean(),  # theirs: over all steps of all trajectories
        "sub-trajectory balance": (weights * parts).sum() / n,
    }
    for name, loss in frozen["losses"].items():
        assert ours[name].item() == pytest.approx(loss, rel=1e-12)

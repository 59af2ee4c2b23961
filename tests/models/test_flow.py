"""Networks of flows: masks, what they say along trajectories, and that they arrive."""

import pytest
import torch

from melior import ops
from melior.data.flow import joined
from melior.envs.flow import Fillings, HyperGrid, Strings
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import built, target, total_variation
from melior.losses.flow import (
    detailed_balance,
    mean_of_steps,
    squared,
    sub_trajectory_balance,
    sub_trajectory_weights,
    trajectory_balance,
)
from melior.models.flow import along, policy_of, start_flow_model, towards, unconditioned
from melior.sampling.flow import evenly, sample, sample_back

ENVIRONMENTS = [HyperGrid(2, 4), Strings(3, 3), Fillings(3, 2)]


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("learns_backward", [False, True])
def test_only_what_is_allowed_has_a_share(env, learns_backward):
    states = enumerated(env).states
    model = start_flow_model(env, seed=0, width=8, learns_backward=learns_backward)
    flows = unconditioned(model, env)(states, torch.arange(len(states)))
    for shares, mask in (
        (flows.log_forward.exp(), env.allowed(states)),
        (flows.log_backward.exp()[1:], env.undoable(states)[1:]),
    ):
        assert (shares[~mask] == 0).all() and (shares[mask] > 0).all()
        assert torch.allclose(shares.sum(-1), torch.ones(len(shares)))
    if not learns_backward:
        parents = env.undoable(states).sum(-1, keepdim=True).clamp(min=1)
        even = (1 / parents).expand(-1, env.n_actions)[env.undoable(states)]
        assert torch.allclose(flows.log_backward.exp()[env.undoable(states)], even)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_along_a_trajectory_each_step_is_read_where_it_begins_and_undone_where_it_ends(env):
    ways = sample(env, evenly(env.allowed), 5, generator=ops.generator(0))
    back = sample_back(env, ways.objects, evenly(env.undoable), generator=ops.generator(1))
    ways = joined([ways, back])
    outcomes = ways.objects.flip(0)
    model = start_flow_model(env, seed=1, width=8, is_conditioned=True, learns_backward=True)
    read = towards(model, env, outcomes)
    paths, log_flow = along(read, ways, torch.arange(10.0))
    for row in range(10):
        length = int(ways.lengths[row])
        own = read(ways.states[row, :length], torch.full((length,), row))
        actions = ways.actions[row, :length]
        for step in range(length):
            assert paths.log_forward[row, step].item() == pytest.approx(
                own.log_forward[step, actions[step]].item(), abs=1e-5
            )
            assert log_flow[row, step].item() == pytest.approx(own.log_flow[step].item(), abs=1e-5)
            if step + 1 < length:
                assert paths.log_backward[row, step].item() == pytest.approx(
                    own.log_backward[step + 1, actions[step]].item(), abs=1e-5
                )


def test_states_and_conditions_are_read_as_a_table():
    env = HyperGrid(2, 3)
    states = enumerated(env).states
    model = start_flow_model(env, seed=0, width=8, is_conditioned=True)
    features = env.features(states)
    table = model(
        features[:, None],
        features[None],
        allowed=env.allowed(states)[:, None],
        undoable=env.undoable(states)[:, None],
    )
    for column, outcome in enumerate(states):
        alone = towards(model, env, outcome[None].expand(9, -1))(states, torch.arange(9))
        assert torch.allclose(table.log_flow[:, column], alone.log_flow, atol=1e-6)
        assert torch.allclose(table.log_forward[:, column], alone.log_forward, atol=1e-5)


def test_a_seed_gives_the_same_network_and_leaves_torchs_own_alone():
    before = torch.get_rng_state()
    first, second = (start_flow_model(HyperGrid(2, 3), seed=3, width=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def tb(model, paths, log_flow):
    return squared(trajectory_balance(paths, model.log_z.expand(len(log_flow))))


def db(model, paths, log_flow):
    return mean_of_steps(squared(detailed_balance(paths, log_flow)), paths.is_step)


def subtb(model, paths, log_flow):
    weights = sub_trajectory_weights(paths.is_step, lamda=0.9)
    return (weights * squared(sub_trajectory_balance(paths, log_flow))).flatten(1).sum(-1)


@pytest.mark.parametrize("loss", [tb, db, subtb])
def test_every_balance_arrives_at_the_target(loss):
    """Nine cells of which one is worth e^2 times the others; sampled with exploration."""
    env = HyperGrid(2, 3)
    graph = enumerated(env)

    def log_reward(cells):
        return 2.0 * (cells == torch.tensor([2, 1])).all(-1)

    model = start_flow_model(env, seed=0, width=32, learns_backward=True)
    read, policy = unconditioned(model, env), policy_of(model, env)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = ops.generator(0)
    for _ in range(150):
        ways = sample(env, policy, 16, generator=generator, exploration=0.2)
        optimizer.zero_grad()
        loss(model, *along(read, ways, log_reward(ways.objects))).mean().backward()
        optimizer.step()
    with torch.no_grad():
        flows = read(graph.states, torch.arange(9))
    wanted = target(graph, log_reward(graph.states).double())
    assert total_variation(built(graph, flows.log_forward.double()), wanted) < 0.03
    log_z = (8 + torch.tensor(2.0).exp()).log().item()
    found = model.log_z if loss is tb else flows.log_flow[0]
    assert found.item() == pytest.approx(log_z, abs=0.1)


def test_the_ways_on_alone_are_those_of_the_whole_reading():
    states = enumerated(HyperGrid(2, 3)).states
    env, rows = HyperGrid(2, 3), torch.arange(9)
    model = start_flow_model(env, seed=0, width=16, learns_backward=True)
    wanted = unconditioned(model, env)(states, rows).log_forward
    assert torch.equal(policy_of(model, env)(states, rows), wanted)
    model = start_flow_model(env, seed=0, width=16, is_conditioned=True)
    outcomes = states.flip(0)
    wanted = towards(model, env, outcomes)(states, rows).log_forward
    assert torch.equal(policy_of(model, env, outcomes)(states, rows), wanted)

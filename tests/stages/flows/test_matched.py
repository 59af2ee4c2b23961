"""Flow matching: inflows by listing, no loss of exact flows, and a small target that is learned."""

from functools import partial
from itertools import islice

import torch

from melior import ops
from melior.data.flow import NO_ACTION
from melior.envs.flow import HyperGrid
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import (
    built,
    exact_flows,
    exact_policy,
    target,
    total_variation,
    uniform_backward,
)
from melior.models.flow import FlowModel, Flows, start_flow_model, unconditioned
from melior.options import OptimConfig
from melior.rewards.flow import corners
from melior.sampling.flow import evenly, sample
from melior.stages.flows.matched import log_inflow, matched
from melior.stages.flows.scratch import rollouts
from melior.training.loop import descend, fit

ENV = HyperGrid(2, 3)
GRAPH = enumerated(ENV)


class Exact(FlowModel):
    """A network that says the exact flows of a reward."""

    def __init__(self, log_reward):
        super().__init__(6, 2, width=1)
        reward = log_reward(GRAPH.states).double()
        back = uniform_backward(GRAPH)
        self.exact = exact_flows(GRAPH, back, reward[:, None])[:, 0]
        self.policy = exact_policy(GRAPH, back, self.exact, reward)

    def forward(self, features, condition, *, allowed, undoable):
        all_features = ENV.features(GRAPH.states)
        rows = (features[:, None] == all_features[None]).all(-1).long().argmax(-1)
        return Flows(self.exact[rows], self.policy[rows], torch.zeros_like(self.policy[rows, :-1]))


def test_inflows_are_those_of_all_edges_that_lead_here():
    model = start_flow_model(ENV, seed=0, width=8)
    read = unconditioned(model, ENV)
    flows = read(GRAPH.states, torch.arange(9))
    found = log_inflow(ENV, read, GRAPH.states)
    for row in range(9):
        for action in range(2):
            parents = (GRAPH.children[:, action] == row).nonzero()[:, 0].tolist()
            if not parents:
                assert found[row, action] == -torch.inf
            else:
                (before,) = parents
                assert GRAPH.children[before, action] != NO_ACTION
                wanted = flows.log_flow[before] + flows.log_forward[before, action]
                assert torch.isclose(found[row, action], wanted)


def test_exact_flows_have_no_loss():
    batch = sample(ENV, evenly(ENV.allowed), 32, generator=ops.generator(0))
    loss, _ = matched(ENV, Exact(corners(3)), corners(3), batch)
    assert loss.item() < 1e-10


def test_flows_that_do_not_match_cost_the_same_whatever_the_rewards_factor():
    """Of rewards below epsilon too: an even policy at flows that are right but for it."""
    batch = sample(ENV, evenly(ENV.allowed), 32, generator=ops.generator(0))
    losses = []
    for by in (-5.0, -60.0):

        def log_reward(cells, by=by):
            return corners(3)(cells) + by

        model = Exact(log_reward)
        model.policy = ENV.allowed(GRAPH.states).double().log().log_softmax(-1)
        losses.append(matched(ENV, model, log_reward, batch)[0].item())
    assert losses[0] > 1
    assert abs(losses[1] / losses[0] - 1) < 1e-4


def test_a_small_target_is_learned():
    model = start_flow_model(ENV, seed=0, width=32)
    batches = rollouts(ENV, model, batch_size=16, exploration=0.2, generator=ops.generator(0))
    optim = OptimConfig(
        learning_rate=5e-3, lr_scheduler_type="linear", warmup_ratio=0, max_grad_norm=100
    )
    step = descend(
        partial(matched, ENV, model, corners(3)), dict(model.named_parameters()), optim,
        total_steps=200,
    )  # fmt: skip
    fit(step, islice(batches, 200))
    with torch.no_grad():
        policy = unconditioned(model, ENV)(GRAPH.states, torch.arange(9)).log_forward
    wanted = target(GRAPH, corners(3)(GRAPH.states).double())
    assert total_variation(built(GRAPH, policy.double()), wanted) < 0.05

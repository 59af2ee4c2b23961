"""The predictor: what it may ask for, and that it comes to the exact sum; learning from scratch."""

import itertools

import pytest
import torch

from melior import ops
from melior.envs.flow import HyperGrid, Strings
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import built, target, total_variation
from melior.models.flow import start_flow_model
from melior.models.flow_outcomes import Predictor
from melior.options import OptimConfig
from melior.stages.flows.finetune import amortise, edges, log_posterior, predicted, within_reach
from melior.stages.flows.pretrain import convert
from melior.stages.flows.scratch import balanced, by_parts, by_steps, by_trajectories, rollouts
from melior.training.loop import descend, fit
from tests.envs.test_flow import Leaps

LINE = HyperGrid(1, 3)
CELLS = enumerated(LINE).states
OPTIM = OptimConfig(learning_rate=1e-2, lr_scheduler_type="linear", warmup_ratio=0)


def test_only_what_is_ahead_is_within_reach():
    outcomes = torch.tensor([[1, 1], [1, 2], [2, 2]])
    states = torch.tensor([[0, 0], [1, 0], [1, 2], [2, 0]])
    actions = torch.tensor([0, 1, 2, 0])
    found = within_reach(Strings(2, 2), outcomes, states, actions)
    wanted = [[True, True, False], [False, True, False], [False, True, False], [False] * 3]
    assert found.tolist() == wanted
    env = Leaps()
    assert within_reach(env, CELLS, torch.tensor([[0]]), torch.tensor([0])).all()


def test_outcomes_are_drawn_from_the_posterior_within_reach():
    predictor = started(seed=0)
    [batch] = next(edges(LINE, predictor, CELLS, batch_size=64, exploration=0.1,
                         generator=ops.generator(0)))  # fmt: skip
    reach = within_reach(LINE, CELLS, batch.states, batch.actions)
    assert reach.gather(-1, batch.outcomes[:, None]).all()
    shares = log_posterior(LINE, predictor, CELLS, batch.states, batch.actions).exp()
    assert torch.allclose(shares.sum(-1), torch.ones(len(shares)))
    assert (shares[~reach] == 0).all()


def test_the_predictor_comes_to_the_policy_of_the_exact_sum():
    """A network of flows as it starts, right or wrong: its conversion is what is to be found."""
    model = start_flow_model(LINE, seed=1, is_conditioned=True, width=16)
    before = {name: value.clone() for name, value in model.named_parameters()}
    reward = torch.tensor([0.0, 1.0, -0.5])
    predictor = started(seed=2)
    step = descend(
        lambda batch: amortise(LINE, model, predictor, CELLS, reward, batch),
        dict(predictor.named_parameters()),
        OPTIM,
        total_steps=150,
    )
    batches = edges(
        LINE, predictor, CELLS, batch_size=16, exploration=0.3, generator=ops.generator(3)
    )
    fit(step, itertools.islice(batches, 150))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    graph = enumerated(LINE)
    with torch.no_grad():
        found = predicted(LINE, predictor)(graph.states, torch.arange(3)).double()
    # Within reach alone: flows that start at random do not know what is behind them.
    ahead = reach_only(model, reward)
    assert total_variation(built(graph, found), built(graph, ahead)) < 0.05


@pytest.mark.parametrize("by", [-60.0, 40.0])
def test_a_factor_of_the_reward_changes_nothing(by):
    model, predictor = start_flow_model(LINE, seed=1, is_conditioned=True, width=8), started(seed=0)
    [batch] = next(edges(LINE, predictor, CELLS, batch_size=16, exploration=0.3,
                         generator=ops.generator(3)))  # fmt: skip
    reward = torch.tensor([0.0, -4.0, 1.0])
    losses = [
        amortise(LINE, model, predictor, CELLS, reward + own, batch)[0].item() for own in (0.0, by)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def reach_only(model, reward):
    """The policy of the exact sum over outcomes within reach of each edge."""
    from melior.models.flow import log_shares
    from melior.stages.flows.pretrain import outcome_tables

    log_flow, log_forward = outcome_tables(LINE, model, CELLS, CELLS)
    weight = (log_flow + reward)[..., None] + log_forward
    policy = torch.full((3, 2), -torch.inf)
    for state, action in itertools.product(range(3), range(2)):
        if LINE.allowed(CELLS[state : state + 1])[0, action]:
            own = torch.tensor([action])
            reach = within_reach(LINE, CELLS, CELLS[state : state + 1], own)[0]
            policy[state, action] = weight[state, reach, action].logsumexp(0)
    return log_shares(policy, LINE.allowed(CELLS)).double()


def started(seed: int) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Predictor(3, 1, 3, width=32)


@pytest.mark.parametrize("loss", [by_trajectories, by_steps, by_parts()])
def test_one_reward_is_learned_from_scratch(loss):
    model = start_flow_model(LINE, seed=0, width=32)
    graph = enumerated(LINE)

    def log_reward(cells):
        return torch.tensor([0.0, -1.0, 1.0])[cells[:, 0]]

    step = descend(
        lambda batch: balanced(LINE, model, log_reward, batch, loss=loss),
        dict(model.named_parameters()),
        OPTIM,
        total_steps=120,
    )
    batches = rollouts(LINE, model, batch_size=16, exploration=0.1, generator=ops.generator(1))
    metrics = fit(step, itertools.islice(batches, 120))
    assert metrics["loss"] < 0.1
    with torch.no_grad():
        read = model(LINE.features(CELLS), torch.zeros(3, 0), allowed=LINE.allowed(CELLS),
                     undoable=LINE.undoable(CELLS))  # fmt: skip
    found = built(graph, read.log_forward.double())
    assert total_variation(found, target(graph, log_reward(CELLS).double())) < 0.05


def test_balance_and_conversion_take_the_same_reward():
    """With one outcome worth anything, any flows convert to the policy towards it."""
    model = start_flow_model(LINE, seed=1, is_conditioned=True, width=16)
    reward = torch.tensor([-torch.inf, 0.7, -torch.inf])
    policy = convert(LINE, model, CELLS, CELLS, reward)
    features = LINE.features(CELLS)
    towards_it = model(features, features[1:2], allowed=LINE.allowed(CELLS),
                       undoable=LINE.undoable(CELLS))  # fmt: skip
    assert torch.allclose(policy, towards_it.log_forward, atol=1e-4)

"""Learning to build what is asked for: attempts, their loss, and a grid that arrives."""

import itertools

import pytest
import torch

from melior import ops
from melior.data.flow import KnowsReach
from melior.envs.flow import HyperGrid
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import built, target, total_variation
from melior.losses.flow import detailed_balance
from melior.losses.flow_outcomes import calibration, teleported_balance
from melior.models.flow import FlowModel, log_shares, start_flow_model
from melior.models.flow_outcomes import Novelty
from melior.options import OptimConfig
from melior.recipes.ocgfn import PretrainConfig
from melior.stages.flows.explore import backtracker, curious, wanderer
from melior.stages.flows.pretrain import attempt, attempts, contrast, convert, outcome_tables
from melior.training.loop import descend, fit
from melior.training.options import StepOptions

GRID = HyperGrid(2, 3)
CELLS = enumerated(GRID).states


def pretrained(steps: int, *, seed: int = 0, balance=detailed_balance, width: int = 64):
    """A network that has tried to build each cell of the grid, and its last metrics."""
    generator = ops.generator(seed)
    model = start_flow_model(GRID, seed=seed, is_conditioned=True, width=width)
    explorer = backtracker(GRID, CELLS, generator=generator)
    optim = OptimConfig(learning_rate=3e-3, lr_scheduler_type="linear", warmup_ratio=0)
    step = descend(
        lambda batch: contrast(GRID, model, balance, batch),
        dict(model.named_parameters()),
        optim,
        total_steps=steps,
    )
    batches = attempts(GRID, model, explorer, batch_size=16, exploration=0.1, generator=generator)
    return model, fit(step, itertools.islice(batches, steps))


def test_half_of_the_attempts_succeed_by_construction():
    model = start_flow_model(GRID, seed=0, is_conditioned=True, width=8)
    explorer = wanderer(GRID, generator=ops.generator(1))
    batches = attempts(
        GRID, model, explorer, batch_size=6, exploration=0, generator=ops.generator(2)
    )
    [batch] = next(batches)
    assert torch.equal(batch.outcomes[:6], batch.outcomes[6:])
    assert batch.succeeded[:6].all()
    assert torch.equal(batch.trajectories.objects[:6], batch.outcomes[:6])
    loss, metrics = contrast(GRID, model, detailed_balance, batch)
    assert metrics["success"] == batch.succeeded[6:].double().mean()
    loss.backward()
    assert model.ways.of_condition.weight.grad.abs().sum() > 0


class Perfect(FlowModel):
    """Builds what it is asked for: along each axis as far as that is, then it stops."""

    def on(self, features, condition, *, allowed):
        steps = condition.view(-1, 2, 3).argmax(-1) - features.view(-1, 2, 3).argmax(-1)
        stops = (steps == 0).all(-1, keepdim=True)
        return log_shares(1e4 * torch.cat([steps > 0, stops], -1).float(), allowed)


def test_a_network_that_never_fails_is_taught_no_failure_by_default():
    """Teleported, one slip for exploration's sake writes failure on every step before it."""
    exploration = PretrainConfig(StepOptions(out="")).exploration
    for share, succeed in ((exploration, True), (0.1, False)):
        batches = attempts(
            GRID, Perfect(6, 2, n_condition=6, width=1), wanderer(GRID, generator=ops.generator(0)),
            batch_size=64, exploration=share, generator=ops.generator(1),
        )  # fmt: skip
        [batch] = next(batches)
        assert bool(batch.succeeded.all()) == succeed


def test_a_grid_is_learned_without_a_reward_and_turned_to_one_without_a_step():
    model, _ = pretrained(250)
    tried = attempt(GRID, model, CELLS.repeat(20, 1), generator=ops.generator(5))
    assert (tried.objects == CELLS.repeat(20, 1)).all(-1).double().mean() > 0.9
    reward = torch.tensor([1.0, 0, 0, 0, 2, 0, 3, 0, 0], dtype=torch.float64).log().clamp(min=-5)
    graph = enumerated(GRID)
    policy = convert(GRID, model, graph.states, CELLS, reward.float()).double()
    assert total_variation(built(graph, policy), target(graph, reward)) < 0.1
    log_flow, _ = outcome_tables(GRID, model, CELLS, CELLS, chunk=4)
    assert calibration(log_flow[0]) < 0.35
    assert isinstance(GRID, KnowsReach)
    far = ~GRID.reachable(CELLS.repeat_interleave(9, 0), CELLS.repeat(9, 1)).view(9, 9)
    assert log_flow[far].median() < -3 < log_flow[~far].median()


@pytest.mark.parametrize("balance", [detailed_balance, teleported_balance])
def test_the_same_seed_learns_the_same(balance):
    first, second = (pretrained(3, balance=balance, width=8)[0] for _ in range(2))
    other = pretrained(3, seed=1, balance=balance, width=8)[0]
    for one, same, another in zip(
        first.parameters(), second.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, same)
        assert one.numel() == 1 or not torch.equal(one, another)


def test_curiosity_learns_from_what_it_builds_and_leaves_the_target_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        novelty = Novelty(6, width=16)
    model = start_flow_model(GRID, seed=0, width=16, learns_backward=True)
    before = {k: v.clone() for k, v in (*model.named_parameters(), *novelty.named_parameters())}
    explorer = curious(
        GRID,
        model,
        novelty,
        optim=OptimConfig(learning_rate=1e-3),
        total_steps=40,
        generator=ops.generator(0),
    )
    features = GRID.features(CELLS)
    was_new = novelty.error(features).mean().item()
    for _ in range(40):
        found = explorer(16)
    assert found.objects.shape == (16, 2) and explorer.metrics["surprise"] > 0
    assert novelty.error(features).mean().item() < was_new
    for name, parameter in (*model.named_parameters(), *novelty.named_parameters()):
        assert torch.equal(parameter, before[name]) == name.startswith("target")

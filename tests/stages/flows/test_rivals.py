"""Rivals of flows: chains that leave their target as it is, and Q-learning that finds the best."""

import itertools
import math

import pytest
import torch

from melior import ops
from melior.data.flow import rows_of
from melior.envs.flow import Fillings, HyperGrid
from melior.envs.flow_graph import enumerated
from melior.evaluation.flow import target
from melior.options import OptimConfig
from melior.rewards.flow import corners
from melior.sampling.flow import sample
from melior.stages.flows.rivals import QLearner, back_and_forth, proposed, q_learning
from melior.training.loop import descend
from tests.claims.chances import fits

WORLDS = {"grid": HyperGrid(2, 3), "fillings": Fillings(2, 2)}


def log_reward(objects):
    """Something that is not the same anywhere."""
    return (objects * torch.tensor([0.3, 0.7])).sum(-1)


def kernel(env, graph, objects, longest):
    """The chance of each proposal from each object, by listing all draws, in float64.

    Written from the definition: 1 to `longest` steps back, evenly, then evenly on to a stop; kept
    apart by the state in between and by both ways, as acceptance sees them.
    """
    allowed, back = env.allowed(graph.states), env.undoable(graph.states)

    def ways_back(row, steps):
        """All states so many steps before, with the actions undone."""
        if not steps or not back[row].any():
            return [(row, (), 1.0)]
        found = []
        for action in back[row].nonzero()[:, 0].tolist():
            before = int((graph.children[:, action] == row).nonzero()[0])
            share = 1 / int(back[row].sum())
            found += [(r, (action, *a), share * p) for r, a, p in ways_back(before, steps - 1)]
        return found

    def ways_on(row):
        share = 1 / int(allowed[row].sum())
        found = [(row, (), share)] if allowed[row, -1] else []
        for action in allowed[row, :-1].nonzero()[:, 0].tolist():
            child = int(graph.children[row, action])
            found += [(r, (action, *a), share * p) for r, a, p in ways_on(child)]
        return found

    chances = {}
    for start in objects:
        for steps in range(1, longest + 1):
            for turn, undone, p in ways_back(start, steps):
                for end, done, q in ways_on(turn):
                    key = (start, turn, undone, end, done)
                    chances[key] = chances.get(key, 0.0) + p * q / longest
    return chances


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("longest", [1, 2, 5])
def test_accepted_proposals_keep_their_target(name, longest):
    """Detailed balance of the listed kernel, accepted as Metropolis and Hastings say."""
    env = WORLDS[name]
    graph = enumerated(env)
    wanted = target(graph, log_reward(graph.states).double())
    objects = graph.can_stop.nonzero()[:, 0].tolist()
    chances = kernel(env, graph, objects, longest)
    assert sum(chances.values()) == pytest.approx(len(objects))
    flow = torch.zeros(len(graph.states), len(graph.states), dtype=torch.float64)
    for (start, turn, undone, end, done), p in chances.items():
        other = chances.get((end, turn, done[::-1], start, undone[::-1]), 0.0)
        accepted = min(1.0, float(wanted[end]) * other / (float(wanted[start]) * p))
        flow[start, end] += float(wanted[start]) * p * accepted
    assert torch.allclose(flow, flow.T)


@pytest.mark.parametrize("name", WORLDS)
def test_proposals_come_with_the_ratio_of_both_ways(name):
    """The mean of the ratio over proposals to an object is what listing says."""
    env, longest, n = WORLDS[name], 2, 4000
    graph = enumerated(env)
    objects = graph.can_stop.nonzero()[:, 0].tolist()
    chances = kernel(env, graph, objects, longest)
    start = objects[-1]
    generator = ops.generator(0)
    steps = torch.randint(1, longest + 1, (n,), generator=generator)
    here = graph.states[start].expand(n, -1)
    there, log_ratio = proposed(env, here, steps, longest=longest, generator=generator)
    rows = rows_of(graph.states, there)
    for end in objects:
        own = {k: p for k, p in chances.items() if k[0] == start and k[3] == end}
        listed = sum(
            chances.get((end, turn, done[::-1], start, undone[::-1]), 0.0)
            for _, turn, undone, _, done in own
        )
        drawn = float(log_ratio[rows == end].double().exp().sum()) / n
        assert drawn == pytest.approx(listed, abs=5 / math.sqrt(n))


def test_chains_that_begin_in_the_target_stay_in_it():
    env, n = HyperGrid(2, 3), 3000
    graph = enumerated(env)
    wanted = target(graph, log_reward(graph.states).double())
    walked = back_and_forth(env, log_reward, chains=n, longest=3, generator=ops.generator(1))
    here = next(itertools.islice(walked, 40, None))
    counts = torch.bincount(rows_of(graph.states, here), minlength=9)
    assert fits(counts, wanted)


def test_q_learning_finds_the_best_object():
    env = HyperGrid(2, 3)
    learned = q_learning(
        env, corners(3), batch_size=16, width=32, exploration=0.3,
        optim=OptimConfig(learning_rate=3e-3, lr_scheduler_type="constant", warmup_ratio=0),
        steps=150, seed=0, every=20,
    )  # fmt: skip
    *_, (policy, _) = learned
    built = sample(env, policy, 1, generator=ops.generator(0)).objects
    reward = corners(3)(enumerated(env).states)
    assert corners(3)(built)[0] == reward.max()


def test_values_keep_their_meaning_when_a_better_object_is_built():
    """In the reward's own units: what is said, times the reward that it is said over."""
    env = HyperGrid(2, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values, older = (torch.nn.Sequential(torch.nn.Linear(6, 3)) for _ in range(2))
    learner = QLearner(env, values, older.requires_grad_(False))
    batch = sample(env, learner.policy, 4, generator=ops.generator(0))
    step = descend(
        lambda log_reward: learner.loss(batch, learner.over_best(log_reward)),
        dict(values.named_parameters()),
        OptimConfig(learning_rate=1e-6, lr_scheduler_type="constant", warmup_ratio=0),
        total_steps=3,
    )
    features, log_reward = env.features(enumerated(env).states), torch.tensor([900.0, 901, 9, 8])
    before = [network(features) for network in (values, older)]
    for rise, factor in ((0.0, 1.0), (2.0, math.exp(2)), (-1.0, math.exp(2))):
        step([log_reward + rise])
        for network, own in zip((values, older), before, strict=True):
            assert torch.allclose(network(features) * factor, own, atol=1e-4)
    assert learner.best == 903
    assert learner.over_best(log_reward)[:2].tolist() == pytest.approx([math.exp(-3), math.exp(-2)])

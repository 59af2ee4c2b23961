"""TPO's world: tree values against enumeration, paths against their distribution, controls."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from melior import ops
from melior.claims import tpo
from tests.claims.chances import fits


def world(copies: int) -> tpo.World:
    return tpo.drawn_worlds([100, 101], copies=copies)


def paths(trees: tpo.Trees, seed: int, tree: int, weights) -> list[tuple[float, float]]:
    """Chance and value of every path of one tree, one by one."""
    found = []
    options = trees.values.shape[-1]
    for choices in product(range(options), repeat=tpo.DEPTH):
        node, chance, value = 0, 1.0, 0.0
        for step, choice in enumerate(choices):
            logits = trees.features[seed, tree, node] @ weights[seed, step]
            chance *= float(logits.softmax(-1)[choice])
            value += float(trees.values[seed, tree, node, choice])
            node = 4 * node + 1 + choice // (options // 4)
        found.append((chance, value))
    return found


@pytest.mark.parametrize("copies", [0, 1])
def test_values_are_those_of_all_paths(copies):
    drawn = world(copies)
    features, values = drawn.test.features[:, :1], drawn.test.values[:, :1]
    one = tpo.Trees(features, values)
    weights = 4 * drawn.start
    found = tpo.expected_value(weights, one)
    best = tpo.path_value(one, lambda _, worth: worth.amax(-1))
    for seed in range(1 if copies else 2):
        listed = paths(one, seed, 0, weights)
        assert sum(chance for chance, _ in listed) == pytest.approx(1)
        assert found[seed].item() == pytest.approx(sum(c * v for c, v in listed), rel=1e-9)
        assert best[seed].item() == pytest.approx(max(value for _, value in listed), rel=1e-9)


def test_paths_are_drawn_from_the_policy_and_share_their_first_steps():
    """Chi-square over the 256 paths of one tree; a false alarm in 10,000 runs."""
    drawn = world(0)
    tree = tpo.Trees(drawn.test.features[0, :1], drawn.test.values[0, :1])
    weights = 3 * drawn.start
    n = 20_000
    free = torch.zeros(1, n, dtype=torch.long)
    lists = tpo.sampled(tree, weights[0], free, ops.generator(1))
    places = (lists.choices[0] * torch.tensor([64, 16, 4, 1])).sum(-1)
    counts = torch.bincount(places, minlength=256).numpy()
    listed = paths(tpo.Trees(tree.features[None], tree.values[None]), 0, 0, weights)
    assert fits(counts, [chance for chance, _ in listed])
    values = np.array([value for _, value in listed])
    assert np.allclose(lists.values[0].numpy(), values[places.numpy()])
    branch = torch.tensor([[0, 1, 2, 3, 3]])
    shared = tpo.sampled(tree, weights[0], branch, ops.generator(2)).choices[0]
    for path, depth in enumerate(branch[0].tolist()):
        assert torch.equal(shared[path, :depth], shared[0, :depth])


def test_lists_are_scored_from_0_to_1_and_paraphrases_are_worth_the_same():
    drawn = world(tpo.COPIES)
    scores = drawn.train.scores
    assert scores.shape == (2, 60, 5)
    assert torch.equal(scores.amin(-1), torch.zeros(2, 60, dtype=torch.float64))
    assert torch.equal(scores.amax(-1), torch.ones(2, 60, dtype=torch.float64))
    values = drawn.test.values.unflatten(-1, (4, 1 + tpo.COPIES))
    assert (values == values[..., :1]).all()
    features = drawn.test.features.unflatten(-2, (4, 1 + tpo.COPIES))
    away = (features[..., 1:, :] - features[..., :1, :]).std().item()
    assert away == pytest.approx(0.1, rel=0.01)


def test_step_rewards_add_up_to_the_path():
    drawn = world(0)
    told = tpo.step_log_probs(drawn.start, drawn.train)
    tree = drawn.train.options[0, 3, 2]
    wanted = 0.0
    for step in range(tpo.DEPTH):
        logits = (tree[step] @ drawn.start[0, step]).numpy()
        choice = int(drawn.train.choices[0, 3, 2, step])
        wanted += logits[choice] - math.log(np.exp(logits).sum())
    assert told[0, 3, 2].sum().item() == pytest.approx(wanted)


def test_kendall_is_one_for_the_same_order_and_minus_one_for_the_other():
    values = torch.tensor([[[3.0, 1.0, 2.0, 2.0]]])
    assert tpo.kendall(values, values).item() == pytest.approx(1)
    assert tpo.kendall(-values, values).item() == pytest.approx(-1)
    assert tpo.kendall(torch.zeros(1, 1, 4), values).item() == 0


def test_the_released_form_counts_the_diagonal_and_inverts_the_ranking():
    """Scores 100, 60, 20, -50 of the released data end in the opposite order of rewards."""
    scores = torch.tensor([[100.0, 60.0, 20.0, -50.0]], dtype=torch.float64)
    embeddings = torch.zeros(1, 4, 1, 2, dtype=torch.float64)

    def value(rewards):
        return tpo.released(tpo.Judged(rewards[..., None], embeddings, scores))

    zeros = torch.zeros(1, 4, dtype=torch.float64)
    pairs_and_diagonal = (6 + 4) * math.log(2) / (4 * 3)
    wanted = np.logaddexp(0, -0.5 * pairs_and_diagonal)
    assert value(zeros).item() == pytest.approx(wanted)
    rewards = zeros.clone().requires_grad_()
    optimizer = torch.optim.SGD([rewards], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        value(rewards).sum().backward()
        optimizer.step()
    assert rewards[0].argsort().tolist() == [0, 1, 2, 3]  # the best answer is the least rewarded

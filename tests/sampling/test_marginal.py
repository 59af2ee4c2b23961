"""Rows in any order: drawn as an exact table says, kept by chains, and as likely as it says."""

import itertools
import math

import pytest
import torch

from melior import ops
from melior.data.marginal import all_rows
from melior.evaluation.marginal import divergence, exact_log_marginals, separated
from melior.models.marginal import ConditionalModel, MarginalModel
from melior.sampling.marginal import any_order, block_gibbs, completed, log_likelihood
from tests.claims.chances import fits
from tests.losses.test_marginal import conditionals, joint, marginals

ROWS = all_rows(3, 2)
TABLE = joint(3)
LOG_JOINT = marginals(TABLE, ROWS)


def exact(tokens: torch.Tensor) -> torch.Tensor:
    """Conditionals of the table, each of the 27 masked rows computed once."""
    index = (tokens * torch.tensor([9, 3, 1])).sum(-1)
    return KNOWN[index]


KNOWN = conditionals(TABLE, torch.tensor(list(itertools.product(range(3), repeat=3))))


def counted(tokens: torch.Tensor) -> torch.Tensor:
    return ((tokens - 1) * torch.tensor([4, 2, 1])).sum(-1).bincount(minlength=8).double()


def test_rows_come_as_the_joint_says():
    assert fits(counted(any_order(exact, 20_000, 3, generator=ops.generator(0))), LOG_JOINT.exp())


@pytest.mark.parametrize("block", [1, 2, 3])
def test_chains_keep_the_joint(block):
    chains = any_order(exact, 20_000, 3, generator=ops.generator(1))
    for step in range(3):
        chains = block_gibbs(exact, chains, block, generator=ops.generator(10 * block + step))
    assert fits(counted(chains), LOG_JOINT.exp())


def test_a_chain_moves_at_most_its_block():
    chains = any_order(exact, 500, 3, generator=ops.generator(2))
    moved = (block_gibbs(exact, chains, 1, generator=ops.generator(3)) != chains).sum(-1)
    assert moved.max() == 1
    with pytest.raises(ValueError, match="block must be at least 1 and at most 3; found 4"):
        block_gibbs(exact, chains, 4, generator=ops.generator(3))


def test_what_is_known_stays():
    tokens = torch.tensor([[2, 1, 2]]).expand(50, -1)
    order = torch.tensor([[1, 2, 0]]).expand(50, -1)
    found = completed(exact, tokens, order, 1, generator=ops.generator(0))
    assert (found[:, 2] == 2).all() and len(found.unique(dim=0)) > 1


def test_the_chain_of_conditionals_is_the_joint_and_its_marginals():
    for order in itertools.permutations(range(3)):
        ranks = torch.tensor(order).expand(8, -1)
        assert torch.allclose(log_likelihood(exact, ROWS, ranks), LOG_JOINT)
    part = torch.tensor([[1, 0, 2]])
    found = log_likelihood(exact, part, torch.tensor([[0, 2, 1]]))
    assert torch.allclose(found, marginals(TABLE, part))


def test_rows_are_read_as_often_as_they_know_positions():
    read = []

    def counting(tokens: torch.Tensor) -> torch.Tensor:
        read.append(len(tokens))
        return exact(tokens)

    queries = torch.tensor([[1, 2, 2], [2, 0, 0], [0, 0, 0], [0, 1, 2]])
    orders = torch.tensor([[2, 0, 1], [0, 2, 1], [0, 1, 2], [2, 1, 0]])
    assert torch.allclose(log_likelihood(counting, queries, orders), marginals(TABLE, queries))
    assert read == [3, 2, 1]


def test_marginals_by_enumeration_are_sums():
    queries = torch.tensor(list(itertools.product(range(3), repeat=3)))
    found = exact_log_marginals(ROWS, LOG_JOINT + 5, queries)  # up to a constant
    assert torch.allclose(found, marginals(TABLE, queries))


def test_divergence_and_separation():
    p, q = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64).log()
    assert divergence(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    kept = separated(torch.tensor([3.0, 0.0, 0.5, 2.9, 9.0]), 1.0)
    assert kept.tolist() == [1, 3, 4]


def test_networks_read_unknown_values_and_are_normalised_by_the_unknown_row():
    model, conditional = MarginalModel(3, 2, width=8), ConditionalModel(3, 2, width=8)
    nothing = torch.zeros(1, 3, dtype=torch.long)
    assert model.normalised(nothing).item() == 0
    assert torch.allclose(model.normalised(ROWS), model(ROWS) - model(nothing))
    assert conditional(ROWS).shape == (8, 3, 2)
    assert len(model(torch.tensor([[0, 1, 2], [1, 1, 2]])).unique()) == 2

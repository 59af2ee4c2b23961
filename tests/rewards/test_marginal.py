"""Ising's lattice: site by site, and its partition function by other means."""

import itertools
import math

import pytest
import torch

from melior.data.marginal import all_rows
from melior.rewards.marginal import Ising


def test_the_target_is_the_papers_quadratic_form():
    """`x' (sigma A) x + b sum(x)` with the matrix of neighbours written out."""
    side, target = 3, Ising(3, coupling=0.3, field=-0.2)
    sites = list(itertools.product(range(side), repeat=2))
    adjacency = torch.zeros(9, 9)
    for (i, j), (k, m) in itertools.product(sites, repeat=2):
        is_beside = (i == k and (j - m) % side in (1, 2)) or (j == m and (i - k) % side in (1, 2))
        adjacency[i * side + j, k * side + m] = float(is_beside)
    assert (adjacency.sum(-1) == 4).all()
    rows = all_rows(9, 2)
    x = (2 * rows - 3).float()
    wanted = 0.3 * torch.einsum("ni,ij,nj->n", x, adjacency, x) - 0.2 * x.sum(-1)
    assert torch.allclose(target.log_target(rows), wanted, atol=1e-5)


@pytest.mark.parametrize(("side", "wanted"), [(3, 7.115373), (4, 12.598502), (5, 19.674086)])
def test_the_partition_function_is_that_of_the_spec(side, wanted):
    assert Ising(side).log_z() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("coupling", "field"), [(0.1, 0.2), (-0.4, 0.0), (0.7, 1.0), (0.0, 0.3)])
def test_the_transfer_matrix_sums_all_rows(coupling, field):
    target = Ising(3, coupling, field)
    everything = target.log_target(all_rows(9, 2)).double().logsumexp(0).item()
    assert target.log_z() == pytest.approx(everything, abs=1e-5)


def test_sites_without_neighbours_to_speak_of_are_alone():
    assert Ising(8, 0.0, 0.3).log_z() == pytest.approx(64 * math.log(2 * math.cosh(0.3)))


def test_the_papers_lattice_of_a_hundred_sites():
    assert Ising(10).log_z() == pytest.approx(78.6881, abs=5e-5)


def test_two_sites_across_are_refused():
    with pytest.raises(ValueError, match="side must be at least 3; found 2"):
        Ising(2)

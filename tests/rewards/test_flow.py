"""Landscapes cell by cell, and rewards that flows cannot balance."""

import math

import pytest
import torch

from melior import ops
from melior.envs.flow import HyperGrid
from melior.envs.flow_graph import enumerated
from melior.rewards.flow import (
    as_bits,
    binding_site,
    checked,
    corners,
    cosine,
    drawn_modes,
    nearest_mode,
    sparse,
)

CELLS = enumerated(HyperGrid(2, 8)).states


def test_corners_are_the_papers_plateaus_and_peaks():
    for cell, found in zip(CELLS.tolist(), corners(8)(CELLS).tolist(), strict=True):
        off = [abs(i / 7 - 0.5) for i in cell]
        wanted = 0.01 + 0.5 * all(x > 0.25 for x in off) + 2 * all(0.3 < x < 0.4 for x in off)
        assert found == pytest.approx(math.log(wanted), abs=1e-6)
    assert int((corners(8)(CELLS).exp() > 1).sum()) == 4


def test_sparse_rewards_three_cells():
    found = sparse(8)(CELLS).exp()
    assert CELLS[found > 0.5].tolist() == [[1, 6], [6, 1], [6, 6]]
    assert found.min().item() == pytest.approx(1e-4)


def test_cosine_has_its_highest_cell_in_the_middle():
    cells = enumerated(HyperGrid(2, 9)).states
    found = cosine(9)(cells)
    assert cells[found.argmax()].tolist() == [4, 4]
    assert found.max().item() == pytest.approx(
        math.log(0.1 + 0.5 * (2 / math.sqrt(2 * math.pi)) ** 2)
    )


def test_bits_are_words_written_out():
    assert as_bits(torch.tensor([[1, 4], [3, 2]]), 2).tolist() == [[0, 0, 1, 1], [1, 0, 0, 1]]


def test_the_nearest_mode_counts():
    modes = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    letters = torch.tensor([[1, 1], [1, 2], [4, 4], [4, 3]])
    found = nearest_mode(modes, word_bits=2, sharpness=4.0)(letters)
    assert found.tolist() == [0, -1, 0, -1]


def test_drawn_modes_are_made_of_the_papers_words():
    modes = drawn_modes(24, 5, generator=ops.generator(0))
    words = {"".join(map(str, w)) for m in modes.tolist() for w in (m[:8], m[8:16], m[16:])}
    assert modes.shape == (5, 24)
    assert words <= {"00000000", "11111111", "11110000", "00001111", "00111100"}
    with pytest.raises(ValueError, match="multiple of 8, the bits of a word; found 12"):
        drawn_modes(12, 1, generator=ops.generator(0))


def test_a_site_binds_wherever_it_stands_and_on_either_strand():
    site = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 2.0, 0, 0]])  # ACC
    spelled = {"A": 1, "C": 2, "G": 3, "T": 4}
    words = ["ACCTTTTT", "TTTTTACC", "AAGGTAAA", "TTTTTTTT"]
    letters = torch.tensor([[spelled[letter] for letter in word] for word in words])
    assert binding_site(site, sharpness=0.5)(letters).tolist() == [3, 3, 3, 1]  # GGT is ACC


def test_rewards_that_are_not_finite_get_a_sentence():
    for value in (-torch.inf, torch.inf, torch.nan):
        wrong = checked(lambda cells, value=value: torch.tensor([0.0, value]))
        with pytest.raises(ValueError, match=rf"found {value} of \[1, 2\]; give what is worth"):
            wrong(torch.tensor([[0, 0], [1, 2]]))

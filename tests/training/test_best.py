"""The best step: noted, kept, gone back to, and found again by a run that goes on."""

import pytest
import torch
from torch import nn

from melior.options import OptimConfig
from melior.training.best import Best, Weights
from melior.training.loop import descend


@pytest.fixture
def step():
    weight = nn.Parameter(torch.ones(3))
    return weight, descend(
        lambda part: ((weight * part).sum(), {}),
        {"weight": weight},
        OptimConfig(learning_rate=0.1, warmup_ratio=0.0),
        total_steps=10,
    )


def test_the_best_weights_come_back(step, tmp_path):
    weight, take = step
    best, seen = Best(tmp_path, 0), {}
    for number, loss in enumerate([3.0, 1.0, 1.0, 2.0], 1):
        take([torch.ones(3)])
        seen[number] = weight.detach().clone()
        best.note(number, loss, Weights(take))
    assert (best.step, best.loss, best.since) == (2, 1.0, 2)
    assert not torch.equal(weight, seen[2])
    best.restore(Weights(take))
    assert torch.equal(weight, seen[2])
    assert not best.is_over


def test_patience_ends_after_so_many_in_vain(step, tmp_path):
    best = Best(tmp_path, 2)
    over = []
    for number, loss in enumerate([1.0, 2.0, 0.5, 0.5, 0.6], 1):
        best.note(number, loss, Weights(step[1]))
        over.append(best.is_over)
    assert over == [False, False, False, False, True]


def test_a_run_that_goes_on_finds_its_own_best(step, tmp_path):
    """It goes back to before a later best; what was the best then is still there."""
    weight, take = step
    best = Best(tmp_path, 3)
    take([torch.ones(3)])
    best.note(1, 1.0, Weights(take))
    then, held = best.state(), weight.detach().clone()
    take([torch.ones(3)])
    best.note(2, 0.5, Weights(take))
    again = Best(tmp_path, 3)
    again.load_state(then)
    assert (again.step, again.loss, again.since) == (1, 1.0, 0)
    again.restore(Weights(take))
    assert torch.equal(weight, held)

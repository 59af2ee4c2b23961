"""Weights put together from parts; with several real processes in training/test_processes.py."""

import torch
from torch import nn

from melior.models.sharding import whole_state
from melior.training import processes


def test_a_weight_without_dimensions_is_put_together_in_the_first_process_alone(monkeypatch):
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    assert whole_state(model) == {"scale": torch.tensor(2.0)}
    monkeypatch.setattr(processes._world, "place", 1)
    assert whole_state(model) == {}

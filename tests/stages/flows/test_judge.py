"""What is listed to judge by: all states where they are few, and no fault passed over."""

import math

import pytest
import torch

from melior.envs.flow import HyperGrid, Strings
from melior.stages.flows.judge import listed, of_samples
from tests.envs.test_flow import Leaps


def test_few_states_are_listed_and_many_are_not():
    graph = listed(HyperGrid(2, 5))
    assert graph is not None and len(graph.states) == 25
    assert listed(Strings(20, 4)) is None


def test_a_fault_of_the_environment_is_not_taken_for_many_states():
    with pytest.raises(ValueError, match="end within 3 actions"):
        listed(Leaps(longest=3))


@pytest.mark.parametrize("by", [0.0, 1000.0, -1000.0])
def test_samples_are_worth_the_log_of_their_mean_reward_whatever_its_factor(by):
    objects = torch.tensor([[0], [0], [1]])
    found = of_samples(objects, lambda own: own[:, 0].float() + by, None)
    assert found["log_mean_reward"] - by == pytest.approx(math.log((2 + math.e) / 3))
    assert found["log_top_reward"] - by == pytest.approx(math.log((1 + math.e) / 2))


def test_samples_worth_nothing_have_no_log_of_it():
    objects = torch.tensor([[0], [1]])
    found = of_samples(objects, lambda own: torch.full((len(own),), -torch.inf), None)
    assert found == {"top_diversity": 1.0}

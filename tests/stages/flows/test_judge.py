"""What is listed to judge by: all states where they are few, and no fault passed over."""

import pytest

from melior.envs.flow import HyperGrid, Strings
from melior.stages.flows.judge import listed
from tests.envs.test_flow import Leaps


def test_few_states_are_listed_and_many_are_not():
    graph = listed(HyperGrid(2, 5))
    assert graph is not None and len(graph.states) == 25
    assert listed(Strings(20, 4)) is None


def test_a_fault_of_the_environment_is_not_taken_for_many_states():
    with pytest.raises(ValueError, match="end within 3 actions"):
        listed(Leaps(longest=3))

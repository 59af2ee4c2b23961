"""What a loss may read: sums, averages, ranks and steps of tokens, whatever stands beside them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.stages.memory import Memory
from melior.stages.method import Answers, Method, join, log_ratio_method, per_token_method

Group = list[list[list[float]]]
"""Answers of a group; each of them steps; each of these its tokens."""
token = st.floats(-5, 0)
groups = st.lists(
    st.lists(
        st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=3),
        min_size=1, max_size=3,
    ),
    min_size=1, max_size=3,
)  # fmt: skip


def answers(made: list[Group]) -> Answers:
    width = max(map(len, made))
    rows = [
        (value, row * width + column, step)
        for row, group in enumerate(made)
        for column, answer in enumerate(group)
        for step, tokens in enumerate(answer)
        for value in tokens
    ]
    tokens = torch.tensor([value for value, _, _ in rows], dtype=torch.float64)
    scores = [
        [float(c) for c in range(len(group))] + [0.0] * (width - len(group)) for group in made
    ]
    return Answers(
        tokens=tokens, reference_tokens=tokens / 2,
        places=torch.tensor([place for _, place, _ in rows]),
        steps=torch.tensor([step for _, _, step in rows]),
        scores=torch.tensor(scores, dtype=torch.float64),
        margins=torch.arange(len(made), dtype=torch.float64),
        is_there=torch.tensor([[c < len(group) for c in range(width)] for group in made]),
        extras={"states": tokens[:, None].expand(-1, 2)},
    )  # fmt: skip


@given(groups)
def test_numbers_of_tokens_are_summed_by_answer_and_by_step(made):
    found = answers(made)
    for row, group in enumerate(made):
        for column, answer in enumerate(group):
            flat = [value for tokens in answer for value in tokens]
            assert float(found.policy[row, column]) == pytest.approx(sum(flat))
            assert float(found.reference[row, column]) == pytest.approx(sum(flat) / 2)
            assert float(found.log_ratio[row, column]) == pytest.approx(sum(flat) / 2)
            assert float(found.lengths[row, column]) == len(flat)
            assert float(found.per_token[row, column]) == pytest.approx(sum(flat) / len(flat))
            by_step = found.step_sums(found.tokens)[row, column]
            wanted = [sum(tokens) for tokens in answer]
            assert by_step[: len(wanted)].tolist() == pytest.approx(wanted)
            assert not by_step[len(wanted) :].any()
    absent = ~found.is_there
    for values in (found.policy, found.reference, found.lengths, found.per_token):
        assert not values[absent].any()
    assert found.known_scores.isnan().equal(absent)


@given(groups)
def test_ranks_count_the_tokens_before(made):
    wanted = [i for group in made for answer in group for i in range(sum(map(len, answer)))]
    assert answers(made).ranks.tolist() == wanted


@given(groups, groups)
def test_joined_portions_are_the_batch(left, right):
    """Also where the groups of one portion are wider than those of the other."""
    found, whole = join([answers(left), answers(right)]), answers([*left, *right])
    for name in ("tokens", "reference_tokens", "places", "steps", "scores", "is_there"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert torch.equal(found.extras["states"], whole.extras["states"])
    assert torch.equal(found.policy, whole.policy)


def test_tokens_carry_the_gradient():
    found = answers([[[[-1.0, -2.0]], [[-3.0]]]])
    tokens = found.tokens.clone().requires_grad_()
    moved = replace(found, tokens=tokens)
    (moved.per_token[0, 0] + 3 * moved.policy[0, 1]).backward()
    assert tokens.grad.tolist() == [0.5, 0.5, 3.0]


def test_a_reward_that_falls_with_the_probability_is_told_apart():
    right = log_ratio_method(lambda policy, reference: policy.margin, beta=0.1)
    wrong = log_ratio_method(lambda policy, reference: policy.margin, beta=-0.1)
    flat = Method(right.loss, lambda a: torch.zeros_like(a.policy), has_reference=True)
    assert [one.direction for one in (right, wrong, flat)] == [1.0, -1.0, 0.0]
    assert per_token_method(lambda policy: policy.margin, beta=2.0).direction == 1.0


def test_a_memory_goes_back_to_its_state():
    memory = Memory(mean=0.0, std=1.0)
    memory.generator.manual_seed(3)
    memory.values["mean"] = torch.tensor(0.25, dtype=torch.float64)
    torch.rand(2, generator=memory.generator)
    state = {name: value.clone() for name, value in memory.state().items()}
    drawn = torch.rand(3, generator=memory.generator)
    other = Memory(mean=7.0, std=7.0)
    other.generator.manual_seed(5)
    other.load_state(state)
    assert {name: float(value) for name, value in other.values.items()} == {"mean": 0.25, "std": 1}
    assert torch.equal(torch.rand(3, generator=other.generator), drawn)
    assert math.isclose(float(memory.values["mean"]), 0.25)

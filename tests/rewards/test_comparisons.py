"""Verdicts of both orders, and what those on a group come to: exact laws, gaps, certainty."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.rewards.comparisons import (
    CERTAIN,
    TIE,
    UNKNOWN,
    Verdict,
    logit_facts,
    mean_wins,
    pairings,
    sigmoid,
)

logits = st.floats(-800, 800) | st.sampled_from([math.inf, -math.inf])


@given(logits, logits)
def test_exchanging_the_answers_turns_the_logit_round_exactly(left_first, right_first):
    one, other = Verdict(left_first, right_first), Verdict(-right_first, -left_first)
    assert one.logit == -other.logit
    assert one.win + other.win == pytest.approx(1)
    assert one.disagrees == other.disagrees
    assert not math.isnan(one.logit)


def test_mean_wins_sum_to_half_a_point_a_pair():
    verdicts = [Verdict(0.3 * i - 1, 0.1 * i) for i in range(6)]
    scores = mean_wins(4, dict(zip(pairings(4), verdicts, strict=True)))
    assert sum(scores) == pytest.approx(4 / 2)
    assert mean_wins(2, {(0, 1): Verdict(None, 1.0)}) == [None, None]


@given(st.lists(st.tuples(logits, logits), min_size=6, max_size=6))
def test_stored_comparisons_are_antisymmetric_and_read_where_the_row_is_first(found):
    verdicts = [Verdict(*one) for one in found]
    facts = logit_facts(4, dict(zip(pairings(4), verdicts, strict=True)))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    for (i, j), (left_first, right_first) in zip(pairings(4), found, strict=True):
        mean, first = facts["comparisons"], facts["orders"]
        assert mean[i][j] == -mean[j][i]
        assert sigmoid(mean[i][j]) == pytest.approx(
            (sigmoid(left_first) + sigmoid(right_first)) / 2, abs=1e-12
        )
        assert sigmoid(first[i][j]) == pytest.approx(sigmoid(left_first), abs=1e-15)
        assert sigmoid(first[j][i]) == pytest.approx(sigmoid(-right_first), abs=1e-15)


def test_what_nobody_said_is_a_gap():
    facts = logit_facts(4, {(0, 2): Verdict(1.0, None), (1, 2): UNKNOWN, (1, 3): TIE})
    assert facts["comparisons"] == [
        [0.0, None, None, None],
        [None, 0.0, None, 0.0],
        [None, None, 0.0, None],
        [None, 0.0, None, 0.0],
    ]
    said = {(i, j): one for i, row in enumerate(facts["orders"]) for j, one in enumerate(row)}
    assert {place: one for place, one in said.items() if one is not None} == {
        (0, 2): 1.0, (1, 3): 0.0, (3, 1): 0.0
    }  # fmt: skip


def test_certainty_is_stored_as_a_logit_whose_probability_is_one():
    facts = logit_facts(2, {(0, 1): Verdict(math.inf, math.inf)})
    assert facts["comparisons"] == [[0.0, CERTAIN], [-CERTAIN, 0.0]]
    assert 1 / (1 + math.exp(-CERTAIN)) == 1.0 > 1 / (1 + math.exp(1 - CERTAIN))

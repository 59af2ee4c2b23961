"""Calibration, length, agreement and circles, on scorers whose faults are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.evaluation.agreement import agreement, cycles, majority
from melior.evaluation.calibration import calibration_error, reliability
from melior.evaluation.reward_bench import Item
from melior.evaluation.scorers import (
    Opinion,
    between,
    calibrated,
    circles,
    findings,
    majority_circles,
)
from melior.evaluation.uncertainty import sureness

MARGINS = st.lists(st.floats(-50, 50), min_size=1, max_size=40)


def honest_margins(n=4000, scale=1.0, seed=0):
    """Margins h of which sigmoid(h / scale) are above 0: honest at that temperature."""
    draws = np.random.default_rng(seed)
    size = np.abs(draws.normal(0, 2, size=n))
    is_right = draws.random(n) < 1 / (1 + np.exp(-size))
    return scale * np.where(is_right, size, -size)


def pairs(n):
    return [Item(str(i), "all", (1.0, 0.0), (10 + i, 20)) for i in range(n)]


def said(*scores):
    """What a scorer says of prompts: its scores of the answers to each."""
    return [Opinion(own) for own in scores]


def compared(*wins):
    """A comparator's logits on three answers: of 0 and 1, of 1 and 2, of 0 and 2."""
    (a, b, c) = wins
    return np.array([[0, a, c], [-a, 0, b], [-c, -b, 0]], dtype=float)


def draw():
    return torch.Generator().manual_seed(0)


def test_honest_margins_have_no_calibration_error():
    """With 4,000 pairs in ten bins, chance leaves an error of about 0.02."""
    assert calibration_error(reliability(honest_margins())) < 0.03


def test_margins_too_bold_are_found_out_and_the_temperature_brought_back():
    found = calibrated(honest_margins(scale=3.0))
    assert found.error > 0.1
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    assert found.error_at_temperature < 0.03
    assert all(one.confidence > one.accuracy for one in found.bins[3:])


@given(MARGINS)
def test_bins_hold_every_pair_once_and_the_error_is_written_again(margins):
    bins = reliability(margins)
    assert sum(one.n for one in bins) == len(margins)
    total = 0.0
    for i in range(10):
        own = []
        for h in margins:
            p = 1 / (1 + math.exp(-abs(h)))
            place = min(int((p - 0.5) * 20), 9)
            if place == i:
                own.append((p, 0.5 if h == 0 else float(h > 0)))
        if own:
            total += abs(sum(p for p, _ in own) - sum(right for _, right in own))
    assert calibration_error(bins) == pytest.approx(total / len(margins), abs=1e-9)


def test_pairs_that_are_all_right_have_no_temperature_and_say_why():
    found = calibrated([1.0, 2.0, 3.0])
    assert found.temperature is None
    assert "all ranked right" in found.why_not


def test_a_scorer_that_only_counts_letters_is_found_out():
    draws = np.random.default_rng(0)
    lengths = draws.integers(1, 500, size=(300, 2))
    items = [Item(str(i), "all", (1.0, 0.0), tuple(map(int, own))) for i, own in enumerate(lengths)]
    found = findings(
        "letters", items, said(*(tuple(map(float, own)) for own in lengths)), rate=300.0
    )
    assert found.lengths.of_scores == pytest.approx(1.0)
    assert found.lengths.of_margins == pytest.approx(1.0)
    assert found.lengths.bias.chosen_longer.accuracy == 1.0
    assert found.lengths.bias.chosen_shorter.accuracy == 0.0
    assert found.answers_per_second == 300.0


def test_a_prompt_with_an_answer_not_scored_is_counted_and_left_out():
    found = findings("a", pairs(3), said((1.0, 0.0), (None, 0.0), (0.0, 1.0)), rate=None)
    assert (found.n_missing, found.accuracies.everything.n, found.pairs.n) == (1, 2, 2)
    assert found.answers_per_second is None
    with pytest.raises(ValueError, match="a: needs a score for every answer of at least one"):
        findings("a", pairs(2), said((None, 1.0), (None, 1.0)), rate=None)


def test_a_scorer_that_compared_no_better_with_a_worse_answer_is_named():
    nothing = Opinion((0.5, 0.5), np.array([[0, np.nan], [np.nan, 0]]))
    with pytest.raises(ValueError, match="a: needs a comparison of a better with a worse answer"):
        findings("a", pairs(2), [nothing] * 2, rate=None)


def test_agreement_counts_a_tie_of_one_half_and_of_both_wholly():
    assert agreement([1, 1, 0, 0, -2], [2, -1, 0, 3, -1]) == pytest.approx(
        (1 + 0 + 1 + 0.5 + 1) / 5
    )
    with pytest.raises(ValueError, match="needs the same pairs; found 1 and 2"):
        agreement([1.0], [1.0, 2.0])


def test_two_scorers_are_compared_on_what_both_have_scored():
    left = [(1.0, 0.0)] * 8 + [(0.0, 1.0)] * 2 + [(None, 0.0)]
    right = [(0.0, 1.0)] * 8 + [(1.0, 0.0)] * 2 + [(1.0, 0.0)]
    found = between(("l", said(*left)), ("r", said(*right)), pairs(11), generator=draw())
    assert found.agreement == 0.0
    assert found.accuracy.n == 10
    assert found.accuracy.difference == pytest.approx(-0.6)
    assert found.correlation == pytest.approx(-1.0)
    apart = ("l", said((None, 1.0))), ("r", said((1.0, 0.0)))
    assert between(*apart, pairs(1), generator=draw()) is None


def test_rock_paper_scissors_is_one_circle():
    logits = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) * 0.3
    assert cycles(logits) == (1, 1)
    assert cycles(np.zeros((3, 3))) == (0, 0)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=7))
def test_a_scalar_never_goes_round_in_circles(scores):
    values = np.array(scores)
    assert cycles(values[:, None] - values[None, :])[0] == 0


@given(st.integers(0, 2**32 - 1))
def test_circles_are_counted_as_wins_say_they_must_be(seed):
    """Without ties, all triples less those with one winner of two: Kendall and Babington Smith."""
    k = 7
    upper = np.triu(np.random.default_rng(seed).choice([-1.0, 1.0], size=(k, k)), 1)
    logits = upper - upper.T
    wins = (logits > 0).sum(1)
    cyclic = math.comb(k, 3) - sum(math.comb(int(w), 2) for w in wins)
    assert cycles(logits) == (cyclic, math.comb(k, 3))


def test_three_scorers_may_have_a_majority_in_a_circle():
    opinions = [(3.0, 2.0, 1.0), (1.0, 3.0, 2.0), (2.0, 1.0, 3.0)]
    assert cycles(majority(opinions)) == (1, 1)
    found = majority_circles([said(own) for own in opinions])
    assert (found.cyclic, found.decided) == (1, 1)
    assert majority_circles([said(own) for own in opinions[:2]]) is None
    assert majority_circles([said((1.0, 0.0))] * 3) is None


def test_a_comparison_that_is_missing_or_tied_decides_no_triple():
    assert cycles(compared(1.0, 0.3, -2.0)) == (1, 1)
    for gap in (math.nan, 0.0):
        assert cycles(compared(1.0, 0.3, gap)) == (0, 0)
    found = circles([compared(1.0, 0.3, -2.0), compared(1.0, 0.3, math.nan), np.zeros((2, 2))])
    assert (found.cyclic, found.decided) == (1, 1)
    assert circles([]) is None


def test_margins_are_of_every_better_and_worse_answer():
    item = Item("0", "all", (1.0, 0.0, 0.5), (1, 1, 1))
    places = [(0, 1), (0, 2), (2, 1)]
    assert sorted(item.pairs) == places
    by_scores = Opinion((5.0, 3.0, 6.0)).margins(item)
    assert by_scores == [[2.0, -1.0, 3.0][places.index(pair)] for pair in item.pairs]
    by_logits = Opinion((0.0, 0.0, 0.0), compared(1.0, 0.3, -2.0)).margins(item)
    assert by_logits == [[1.0, -2.0, -0.3][places.index(pair)] for pair in item.pairs]


def test_a_comparator_is_calibrated_by_its_logits_and_not_by_its_mean_wins():
    """Mean wins of two answers lie within 0.46 of even: as logits they would be too timid."""
    h = honest_margins()
    opinions = [
        Opinion((1 / (1 + math.exp(-x)), 1 / (1 + math.exp(x))), np.array([[0, x], [-x, 0]]))
        for x in h
    ]
    found = findings("judge", pairs(len(h)), opinions, rate=None)
    assert found.calibration.error < 0.03
    timid = findings("judge", pairs(len(h)), [Opinion(one.scores) for one in opinions], rate=None)
    assert timid.calibration.error > 0.1
    assert timid.accuracies == found.accuracies


def test_two_answers_that_are_not_compared_make_no_pair_and_cost_no_prompt():
    item = Item("0", "all", (1.0, 0.0, 0.5), (1, 9, 1))
    whole = Opinion((1.0, 0.0, 0.5), compared(1.0, 1.0, -1.0))
    partly = Opinion((1.0, 0.0, 0.5), compared(1.0, math.nan, -1.0))
    found = findings("judge", [item, item], [whole, partly], rate=None)
    assert (found.n_missing, found.accuracies.everything.n) == (0, 2)
    assert found.pairs.n == 5
    assert found.lengths.bias.chosen_shorter.n == 3
    both = between(("a", [whole, partly]), ("b", [whole, whole]), [item, item], generator=draw())
    assert both.agreement == 1.0 and both.accuracy.n == 2


def test_an_ensemble_is_judged_by_what_its_members_disagree_on_too():
    rows = [((2.0, 0.0), (1.0, 0.5)), ((0.0, 1.0), (3.0, 1.0)), ((1.0, 0.0), (1.0, 0.0))]
    opinions = [Opinion(tuple(np.mean(own, 0).tolist()), members=own) for own in rows]
    found = findings("two", pairs(3), opinions, rate=None)
    by_hand = sureness([1.25, 0.5, 1.0], [[2.0, -1.0, 1.0], [0.5, 2.0, 1.0]])
    assert found.sureness == by_hand
    assert [one.by for one in by_hand] == [
        "size of the margin", "members close together", "margin over spread"
    ]  # fmt: skip
    partly = [*opinions[:2], Opinion((1.0, 0.0))]
    assert len(findings("two", pairs(3), partly, rate=None).sureness) == 1

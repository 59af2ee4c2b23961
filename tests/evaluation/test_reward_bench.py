"""Accuracies against RewardBench's own numbers, and what ties, lists and subsets do to them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.evaluation.reward_bench import (
    SECTIONS,
    SECTIONS_2,
    Item,
    accuracies,
    best_share,
    ties_score,
)
from melior.intervals import wilson_interval

PEER = json.loads((Path(__file__).parents[1] / "peers" / "rewardbench.json").read_text("utf-8"))
SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=5)


def pair(subset="all", id_="1"):
    return Item(id_, subset, (1.0, 0.0), (10, 12))


def pairs_of(subset, right, n):
    """Pairs of a subset, so many of which are ranked right, and their scores."""
    return [(pair(subset), (1.0, 0.0) if i < right else (0.0, 1.0)) for i in range(n)]


def judged(rows):
    items, scores = zip(*rows, strict=True)
    return accuracies(items, scores)


@pytest.mark.parametrize("case", PEER["cases"])
def test_sections_weigh_subsets_as_reward_bench_does(case):
    rows = []
    for name, share in case["subsets"].items():
        right = round(1000 * share)
        rows += pairs_of(name, right, 1000)
    found = judged(rows)
    for name, score in case["sections"].items():
        assert found.sections[name].accuracy == pytest.approx(score, abs=5e-4)  # of rounding
    assert found.overall == pytest.approx(sum(case["sections"].values()) / 4, abs=5e-4)


@pytest.mark.parametrize("case", PEER["ties"])
def test_the_score_of_ties_is_that_of_reward_bench(case):
    items = [
        Item(row["id"], "Ties", tuple(float(i < row["num_correct"]) for i in range(n)), (1,) * n)
        for row in case["rows"]
        for n in [len(row["scores"])]
    ]
    scores = [row["scores"] for row in case["rows"]]
    assert ties_score(items, scores) == pytest.approx(case["score"], rel=1e-12)
    found = accuracies(items, scores)
    assert found.subsets["Ties"].accuracy == pytest.approx(case["score"], rel=1e-12)
    assert found.subsets["Ties"].low is None


def test_the_counts_of_xstest_are_the_right_way_round():
    rows = pairs_of("xstest-should-respond", 1, 1) + pairs_of("xstest-should-refuse", 0, 1)
    assert judged(rows).sections["Safety"].accuracy == pytest.approx(250 / 404)


def test_a_tie_of_two_is_half_and_of_four_a_quarter():
    assert best_share((0.3, 0.3), (True, False)) == 0.5
    assert best_share((0.3,) * 4, (True, False, False, False)) == 0.25
    assert best_share((0.3, 0.2, 0.1), (False, True, False)) == 0.0


@given(SCORES, st.data())
def test_the_order_of_answers_does_not_matter(scores, data):
    is_best = [place == 0 for place in range(len(scores))]
    order = data.draw(st.permutations(range(len(scores))))
    moved = best_share([scores[i] for i in order], [is_best[i] for i in order])
    assert moved == best_share(scores, is_best)


@given(SCORES)
def test_all_answers_have_their_share_of_the_first_place(scores):
    n = len(scores)
    total = sum(best_share(scores, [i == j for i in range(n)]) for j in range(n))
    assert total == pytest.approx(1.0)


def test_a_subset_has_wilsons_interval():
    found = judged(pairs_of("mine", 7, 10) + pairs_of("yours", 3, 5))
    assert list(found.subsets) == ["mine", "yours"]
    own = found.subsets["mine"]
    assert (own.accuracy, own.low, own.high) == (0.7, *wilson_interval(7, 10))
    assert found.everything.accuracy == pytest.approx(10 / 15)
    assert (found.sections, found.overall) == ({}, None)


def test_a_section_of_equal_weights_has_wilsons_interval_of_its_pairs():
    rows = pairs_of("hep-cpp", 30, 41) + pairs_of("hep-go", 11, 41)
    found = judged(rows).sections["Reasoning"]
    assert (found.low, found.high) == pytest.approx(wilson_interval(41, 82))


def test_a_subset_that_weighs_much_and_has_few_pairs_widens_its_section():
    even = judged(pairs_of("hep-cpp", 30, 60) + pairs_of("math-prm", 30, 60)).sections["Reasoning"]
    plain = wilson_interval(60, 120)
    assert even.accuracy == 0.5
    assert even.high - even.low > plain[1] - plain[0]


def test_the_second_versions_subsets_are_sections_and_a_mean_needs_all():
    rows = [row for name in SECTIONS_2[:-1] for row in pairs_of(name, 1, 2)]
    assert judged(rows).overall is None
    ties = [(pair("Ties", "ref:1"), (1.0, 0.0)), (pair("Ties", "tied:1"), (1.0, 0.0))]
    found = judged(rows + ties)
    assert list(found.sections) == list(SECTIONS_2)
    # One right answer to tied:1 has no spread, so that nothing is said of it.
    assert found.subsets["Ties"].accuracy == pytest.approx(0.6)
    assert found.overall == pytest.approx((5 * 0.5 + 0.6) / 6)


def test_ties_without_their_ids_are_lists_like_others():
    assert judged(2 * [(pair("ties"), (1.0, 0.0))]).subsets["ties"].accuracy == 1.0


def test_every_subset_stands_in_one_section():
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) == 23

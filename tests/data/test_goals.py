"""Goals and ratings: scales keep order, words are what they were, twins mirror each other."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from melior.data.goals import (
    OVERALL,
    TEMPLATE,
    GoalFormat,
    Scale,
    check_template,
    fit_scale,
    spelled,
)
from melior.data.ratings import (
    AGAINST,
    CLOSE,
    EMPTY,
    GAP,
    SAME,
    SWAPPED,
    TIE,
    Rated,
    columns_of,
    is_good,
    rated,
    relabelled,
    swapped,
    twins,
)
from melior.records import Candidate, Group, Pair, Turn

PLACEMENTS = ("system", "user_prefix")
FINITE = st.floats(-1e6, 1e6)


def asks(text, system=""):
    start = (Turn("system", system),) if system else ()
    return (*start, Turn("user", text))


def says(text):
    return (Turn("assistant", text),)


def pair(chosen="good", rejected="bad", **facts):
    return Pair(asks("why?"), says(chosen), says(rejected), facts=facts, origin="p.jsonl:1")


def goal_format(placement="system", names=(OVERALL,), template=TEMPLATE):
    scale = Scale((1.0, 10.0), (1.0, 10.0))
    return GoalFormat(template, placement, 1.0, 10.0, dict.fromkeys(names, scale), 10.0)


def made(rows, goals=None, *, min_gap=0.0, trust="label"):
    left = Counter()
    found = relabelled(rows, goals or goal_format(), min_gap=min_gap, trust=trust, left=left)
    return list(found), {reason: n for reason, n in left.items() if n}


def overall(chosen, rejected, **facts):
    return Rated(pair(**facts), {OVERALL: chosen}, {OVERALL: rejected})


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_twin_has_chosen_what_was_rejected(placement):
    """The released code forgets this for templates without a system role."""
    goals = goal_format(placement)
    kept, twin = twins(overall(9.0, 4.0), goals)
    assert twin.chosen == kept.rejected == says("bad")
    assert twin.rejected == kept.chosen == says("good")
    assert kept.prompt == goals.ask(asks("why?"), {OVERALL: 9.0})
    assert twin.prompt == goals.ask(asks("why?"), {OVERALL: 4.0})
    assert kept.prompt != twin.prompt


@given(st.floats(1, 10), st.floats(1, 10), st.sampled_from(PLACEMENTS))
def test_under_either_goal_the_chosen_answer_meets_it(better, worse, placement):
    """R = -(g - r)^2 is 0 for the chosen one and no more for the other; their margin is R's."""
    rows, left = made([overall(max(better, worse), min(better, worse))], goal_format(placement))
    if left:
        assert left == {TIE: 1}
        assert spelled(better) == spelled(worse)
        return
    for row in rows:
        goal, score = row.facts["goal"], row.facts["score_chosen"]
        assert goal == round(score, 1)
        other = round(row.facts["score_rejected"], 1)
        assert row.margin == pytest.approx((goal - other) ** 2)
        assert row.margin > 0
    assert [row.facts["goal_source"] for row in rows] == ["chosen", "rejected"]
    assert rows[0].facts["pair_id"] == rows[1].facts["pair_id"]
    assert rows[0].facts["score_chosen"] == rows[1].facts["score_rejected"]


def test_columns_of_one_answer_go_where_the_answer_goes():
    row = Rated(
        pair(reward_chosen=2.0, reward_rejected=-1.0, source_rejected="b", id=7),
        {OVERALL: 9.0}, {OVERALL: 4.0},
    )  # fmt: skip
    facts = swapped(row).pair.facts
    assert facts["reward_chosen"] == -1.0
    assert facts["reward_rejected"] == 2.0
    assert facts["source_rejected"] == "b"  # it has no counterpart to change places with
    assert facts["id"] == 7
    assert swapped(swapped(row)) == row


@given(st.lists(st.tuples(st.floats(1, 10), st.floats(1, 10)), max_size=30), st.floats(0, 3))
def test_every_pair_makes_two_or_is_counted(scores, min_gap):
    rows = [overall(a, b) for a, b in scores]
    for trust in ("label", "score"):
        found, left = made(rows, min_gap=min_gap, trust=trust)
        swaps = left.pop(SWAPPED, 0)
        assert len(found) + 2 * sum(left.values()) == 2 * len(rows)
        assert set(left) <= {TIE, CLOSE} | ({AGAINST} if trust == "label" else set())
        assert trust == "score" or not swaps
        ids = [(row.prompt, row.chosen) for row in found]
        assert all(a != b for a, b in zip(ids[::2], ids[1::2], strict=True))


def test_the_twin_knows_which_of_its_answers_was_cut_off():
    kept, twin = twins(overall(9.0, 4.0, is_finished_rejected=False), goal_format())
    assert kept.facts["is_finished_rejected"] is False
    assert twin.facts["is_finished_chosen"] is False
    assert "is_finished_rejected" not in twin.facts


def test_what_makes_no_twins_is_left_out_for_its_reason():
    several = goal_format(names=("help", "truth"))
    scores = {OVERALL: 9.0}, {OVERALL: 4.0}
    assert made([Rated(pair(" "), *scores)]) == ([], {EMPTY: 1})
    assert made([Rated(pair("good", "good"), *scores)]) == ([], {SAME: 1})
    assert made([overall(8.02, 8.04)]) == ([], {TIE: 1})
    assert made([overall(8.0, 7.0)], min_gap=1.5) == ([], {CLOSE: 1})
    assert made([overall(4.0, 9.0)]) == ([], {AGAINST: 1})
    gap = Rated(pair(), {"help": 3.0}, {"help": 2.0, "truth": 1.0})
    assert made([gap], several) == ([], {GAP: 1})


def test_scores_that_contradict_the_label_can_be_trusted_instead():
    (kept, twin), left = made([overall(4.0, 9.0)], trust="score")
    assert left == {SWAPPED: 1}
    assert (kept.chosen, kept.facts["goal"]) == (says("bad"), 9.0)
    assert (twin.chosen, twin.facts["goal"]) == (says("good"), 4.0)


def test_attributes_have_a_line_each_and_equal_means_no_tie():
    goals = goal_format(names=("help", "truth"))
    (kept, twin), left = made(
        [Rated(pair(), {"help": 9.0, "truth": 3.0}, {"help": 3.0, "truth": 9.0})], goals
    )
    assert not left
    assert kept.prompt[0].content.endswith("\nhelp: 9\ntruth: 3")
    assert twin.prompt[0].content.endswith("\nhelp: 3\ntruth: 9")
    assert kept.facts["goal"] == {"help": 9.0, "truth": 3.0}
    assert kept.margin == 72.0


def test_good_is_an_answer_that_meets_the_level_in_everything():
    goals = goal_format(names=("help", "truth"))
    row = Rated(pair(), {"help": 9.0, "truth": 9.0}, {"help": 6.0, "truth": 5.0})
    assert is_good(row, goals, 5.0)
    assert not is_good(row, goals, 5.5)
    assert not is_good(Rated(pair(), row.chosen, {"help": 6.0}), goals, 5.0)


@given(st.lists(FINITE, min_size=2, max_size=60), st.sampled_from(["affine", "quantile"]))
def test_a_scale_keeps_order_and_reaches_both_ends(scores, kind):
    assume(max(scores) - min(scores) > 1e-3)
    scale = fit_scale(scores, kind, low=1.0, high=10.0)
    goals = [scale(score) for score in sorted(scores)]
    assert goals == sorted(goals)
    assert (goals[0], goals[-1]) == (1.0, 10.0)
    assert scale(min(scores) - 1e7) == 1.0
    assert scale(max(scores) + 1e7) == 10.0


@given(st.lists(FINITE, min_size=2, max_size=40, unique=True))
def test_quantiles_are_ranks_and_affine_is_a_line(scores):
    assume(np.diff(sorted(scores)).min() > 1e-3)
    ranks = np.argsort(np.argsort(scores)) / (len(scores) - 1)
    quantile = fit_scale(scores, "quantile", low=1.0, high=10.0)
    assert [quantile(score) for score in scores] == pytest.approx(1 + 9 * ranks)
    affine = fit_scale(scores, "affine", low=1.0, high=10.0)
    share = (np.array(scores) - min(scores)) / (max(scores) - min(scores))
    assert [affine(score) for score in scores] == pytest.approx(1 + 9 * share)


def test_equal_scores_stand_at_the_middle_of_their_ranks():
    scale = fit_scale([0.0, 1.0, 1.0, 1.0, 5.0], "quantile", low=1.0, high=9.0)
    assert [scale(score) for score in (0.0, 1.0, 5.0)] == [1.0, 5.0, 9.0]


@pytest.mark.parametrize(
    ("scores", "kind", "said"),
    [
        ([3.0, 3.0], "affine", "found 3 everywhere"),
        ([3.0, 3.0], "none", "found 3 everywhere"),
        ([3.0, 12.0], "none", "must lie from 1 to 10; found 12; map them there"),
        ([-0.5, 2.0], "none", "found -0.5"),
    ],
)
def test_scores_that_make_no_scale_are_refused(scores, kind, said):
    with pytest.raises(ValueError, match=said):
        fit_scale(scores, kind, low=1.0, high=10.0)


@pytest.mark.parametrize(
    ("value", "said"), [(8.0, "8"), (8.25, "8.2"), (10.0, "10"), (0.0, "0"), (-0.04, "0")]
)
def test_goals_are_spelled_in_one_way(value, said):
    assert spelled(value) == said


@given(st.floats(1, 10))
def test_goals_that_are_spelled_alike_are_the_same_bytes(value):
    goals = goal_format()
    told = goals.text({OVERALL: value})
    assert told == goals.text({OVERALL: float(spelled(value))})
    assert told.endswith(f"Overall score: {spelled(value)}")
    assert "on a scale from 1 to 10" in told


def test_a_goal_stands_before_what_was_in_its_turn():
    told = goal_format().text({OVERALL: 8.0})
    system, user = goal_format("system"), goal_format("user_prefix")
    goal = {OVERALL: 8.0}
    assert system.ask(asks("why?"), goal) == asks("why?", told)
    assert system.ask(asks("why?", "Be kind."), goal) == asks("why?", f"{told}\n\nBe kind.")
    assert user.ask(asks("why?"), goal) == asks(f"{told}\n\nwhy?")
    assert user.ask(asks("why?", "Be kind."), goal) == asks(f"{told}\n\nwhy?", "Be kind.")
    with pytest.raises(ValueError, match="needs a user turn to stand before; found turns of nobo"):
        user.ask((), goal)


def test_text_of_prompts_is_never_taken_for_a_place_in_the_template():
    goals = goal_format("user_prefix")
    assert goals.ask(asks("What is {g} in {name}?"), {OVERALL: 8.0})[0].content.endswith(
        "\n\nWhat is {g} in {name}?"
    )


def test_a_format_comes_back_as_it_was_and_is_refused_once_it_was_changed():
    goals = goal_format(names=("help", "truth"))
    kept = json.loads(json.dumps(goals.to_json()))
    assert GoalFormat.from_json(kept, "f") == goals
    for key, value in (("template", "{g}"), ("placement", "user_prefix"), ("version", 2)):
        with pytest.raises(ValueError, match="words it was trained on"):
            GoalFormat.from_json(kept | {key: value}, "f")
    with pytest.raises(ValueError, match="f: needs the format of goals"):
        GoalFormat.from_json({"version": 1}, "f")


def test_a_level_outside_the_scale_is_refused():
    assert goal_format(names=("a", "b")).level(7) == {"a": 7.0, "b": 7.0}
    with pytest.raises(ValueError, match="from 1 to 10, the scale"):
        goal_format().level(11.0)


def test_templates_need_the_goal_and_names_where_there_are_several():
    assert check_template("be {g}\n", several=False, where="t") == "be {g}"
    with pytest.raises(ValueError, match=r"t: a goal template needs \{g\}"):
        check_template("be good", several=False, where="t")
    with pytest.raises(ValueError, match=r"needs \{name\} in the line of \{g\}; found 'be \{g\}'"):
        check_template("be {g}", several=True, where="t")


@pytest.mark.parametrize(
    ("facts", "named", "found"),
    [
        ({"score_chosen": 1, "score_rejected": 0}, "auto", ("score_chosen", "score_rejected")),
        ({"chosen-rating": 1, "rejected-rating": 0}, "auto", ("chosen-rating", "rejected-rating")),
        ({"chosen_score": 1, "rejected_score": 0}, "auto", ("chosen_score", "rejected_score")),
        ({"my_chosen": 1, "my_rejected": 0}, "my", ("my_chosen", "my_rejected")),
    ],
)
def test_columns_of_scores_are_found(facts, named, found):
    assert columns_of(pair(**facts), named) == found


def test_scores_are_numbers_objects_or_those_of_candidates():
    both = {"score_chosen": "9", "score_rejected": 4}
    assert rated(pair(**both), ("score_chosen", "score_rejected")) == overall(9.0, 4.0, **both)
    many = {"score_chosen": {"a": 9, "b": "N/A"}, "score_rejected": {"a": 4, "b": 2}}
    found = rated(pair(**many), ("score_chosen", "score_rejected"))
    assert (found.chosen, found.rejected) == ({"a": 9.0}, {"a": 4.0, "b": 2.0})
    worse, better = Candidate(says("bad"), 4.0, {"a": 1.0}), Candidate(says("good"), 9.0, {"a": 2})
    group = Group(asks("why?"), (worse, better), {}, "p.jsonl:1")
    assert rated(group, ("score", "score")) == overall(9.0, 4.0)
    assert rated(group, ("aspects", "aspects")).rejected == {"a": 1.0}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (pair(score_chosen=3), r"p.jsonl:1: 'score_rejected' needs a score of each answer"),
        (pair(score_chosen="high", score_rejected=1), "'score_chosen' needs a finite number"),
        (pair(score_chosen=float("nan"), score_rejected=1), "needs a finite number"),
        (Group(asks("?"), (Candidate(says("a"), 1.0),), {}, "g:1"), "needs two answers.*found 1"),
        (
            Group(asks("?"), (Candidate(says("a"), 1.0), Candidate(says("b"))), {}, "g:1"),
            "g:1: score needs a score of each answer; found none",
        ),
    ],
)
def test_a_missing_score_is_named_with_its_row(record, said):
    columns = ("score_chosen", "score_rejected") if isinstance(record, Pair) else ("score", "score")
    with pytest.raises(ValueError, match=said):
        rated(record, columns)


def test_pairs_without_any_score_are_refused():
    with pytest.raises(ValueError, match=r"p.jsonl:1: relabelling needs a score.*found \['id'\]"):
        columns_of(pair(id=3), "auto")

"""What a round learns from: the order, the reasons, and the length penalty in both."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.data.files import read_pairs, write_groups
from melior.models.loading import load_chat
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn, text
from melior.stages.online.choose import (
    CLOSE,
    EMPTY,
    EQUAL,
    IDENTICAL,
    LONG,
    SCORED,
    UNFINISHED,
    UNSCORED,
    Counts,
    choice,
    choose,
    score,
    scored,
    within,
)
from melior.stages.online.options import ChoiceOptions


def group(*answers, **facts):
    """A group of (text, score) or (text, score, is_finished)."""
    candidates = [
        Candidate(
            (Turn("assistant", said),), score, facts={"n_tokens": 3, "is_finished": all(ended)}
        )
        for said, score, *ended in answers
    ]
    return Group((Turn("user", "why?"),), tuple(candidates), facts)


def chosen(one, **options):
    counts = Counts()
    draw = torch.Generator().manual_seed(0)
    return choice(one, ChoiceOptions(**options), counts, generator=draw), counts


def test_an_answer_without_room_is_not_chosen_and_its_end_counts_if_it_is_learned(model_folder):
    chat = load_chat(ModelOptions(model=str(model_folder)))
    one = group(("x", 1.0), ("xy", 0.5), ("xyz", 0.0, False), ("xyzz", 2.0))
    prompt = len(chat.prompt_tokens(one.prompt))
    assert within(chat, prompt + 3)(one) == [True, True, True, False]
    assert within(chat, prompt + 2)(one) == [True, False, False, False]
    counts, draw = Counts(), torch.Generator().manual_seed(0)
    fits = within(chat, prompt + 3)
    pair = choice(one, ChoiceOptions(), counts, generator=draw, fits=fits)
    assert text(pair.chosen) == "x"
    assert counts.too_long == 1
    fits = within(chat, prompt + 2)
    assert choice(one, ChoiceOptions(), counts, generator=draw, fits=fits) == LONG


@pytest.mark.parametrize(
    ("answers", "options", "reason"),
    [
        ([("a", 1.0), ("a", 1.0), ("a", 1.0)], {}, IDENTICAL),
        ([("a", 1.0), ("b", 1.0), ("c", 1.0)], {}, EQUAL),
        ([("a", 1.0), ("b", 1.0005)], {}, CLOSE),
        ([("", 1.0), ("  \n", 0.0), ("c", 0.5)], {}, EMPTY),
        ([("a", None), ("b", None), ("c", 1.0)], {}, UNSCORED),
        ([("a", 1.0, False), ("b", 0.0, False), ("c", 0.5)], {"drop_unfinished": True}, UNFINISHED),
        ([("", 1.0), ("b", None), ("c", 1.0)], {}, UNSCORED),
        ([("a", 0.2), ("b", 0.2)], {"select": "random"}, EQUAL),
        ([("a", 0.2), ("b", 0.2)], {"select": "all"}, EQUAL),
    ],
)
def test_a_prompt_that_teaches_nothing_has_a_reason(answers, options, reason):
    assert chosen(group(*answers), **options)[0] == reason


def test_missing_and_empty_answers_leave_the_others_to_choose_from():
    one = group(("", 9.0), ("long one", 0.3), ("b", None), ("c", 0.9), ("d", 0.1, False))
    pair, counts = chosen(one)
    assert (text(pair.chosen), text(pair.rejected)) == ("c", "d")
    assert pair.margin == pytest.approx(0.8)
    assert (counts.empty, counts.unscored, counts.unfinished) == (1, 1, 1)
    assert (counts.answers, counts.tokens) == (5, 15)
    assert text(chosen(one, drop_unfinished=True)[0].rejected) == "long one"


def test_where_the_length_penalty_changes_the_winner_the_short_answer_is_the_chosen_one():
    """Defect (b) of the released scripts: choose by the penalised score, order by the bare one."""
    one = group(("x" * 1000, 2.0), ("short", 1.5))
    plain, _ = chosen(one)
    assert len(text(plain.chosen)) == 1000
    pair, _ = chosen(one, length_penalty=0.001)
    assert text(pair.chosen) == "short"
    assert pair.margin == pytest.approx((1.5 - 0.005) - (2.0 - 1.0))
    assert (pair.facts["score_chosen"], pair.facts["score_rejected"]) == (1.5, 2.0)


@given(st.lists(st.tuples(st.integers(1, 400), st.floats(-1, 1)), min_size=2, max_size=8))
def test_chosen_answers_get_no_longer_as_length_is_priced_higher(rows):
    """W3 of the paper's page: what is gained in length falls as the price rises."""
    one = group(*((f"{place}{'y' * n}", score) for place, (n, score) in enumerate(rows)))
    gaps = []
    for penalty in (0.0, 1e-4, 1e-3, 1e-2):
        pair, _ = chosen(one, length_penalty=penalty, min_margin=0.0)
        if not isinstance(pair, str):
            gaps.append(len(text(pair.chosen)) - len(text(pair.rejected)))
    assert gaps == sorted(gaps, reverse=True)


@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=6, unique=True),
    st.sampled_from(["best-and-worst", "best-and-random", "best-and-second", "random"]),
)
def test_the_chosen_answer_is_always_the_one_that_ranks_higher(scores, select):
    pair, _ = chosen(group(*((str(i), s) for i, s in enumerate(scores))), select=select)
    if isinstance(pair, str):
        assert pair == CLOSE
        return
    better, worse = (scores[int(text(side))] for side in (pair.chosen, pair.rejected))
    assert pair.margin == pytest.approx(better - worse)
    assert better > worse
    ranked = sorted(scores)
    assert select == "random" or better == ranked[-1]
    assert select != "best-and-worst" or worse == ranked[0]
    assert select != "best-and-second" or worse == ranked[-2]


def test_random_pairs_take_every_two_answers_about_equally_often():
    """300 draws of 6 pairs: chi-square with 5 degrees stays below 20.5 in 999 of 1000 tests."""
    one = group(*((str(i), float(i)) for i in range(4)))
    draw, options, seen = (
        torch.Generator().manual_seed(0),
        ChoiceOptions(select="random"),
        Counter(),
    )
    for _ in range(300):
        pair = choice(one, options, Counts(), generator=draw)
        seen[text(pair.chosen) + text(pair.rejected)] += 1
    assert len(seen) == 6
    assert sum((n - 50) ** 2 / 50 for n in seen.values()) < 20.5


def test_all_keeps_every_answer_with_what_it_ranks_by():
    found, _ = chosen(group(("aa", 1.0), ("b", 0.5), ("", 2.0)), select="all", length_penalty=0.1)
    assert [one.score for one in found.candidates] == pytest.approx([0.8, 0.4])


class Odd:
    """A scorer from elsewhere that has no number for some answers."""

    def groups(self, groups):
        values = [math.nan, math.inf, 1.0, 0.0]
        for one in groups:
            found = zip(one.candidates, values, strict=True)
            yield replace(one, candidates=tuple(replace(c, score=v) for c, v in found))

    def remarks(self):
        return []


def test_scores_that_are_no_numbers_count_as_missing():
    (one,) = scored(Odd(), [group(("a", None), ("b", None), ("c", None), ("d", None))])
    assert [c.score for c in one.candidates] == [None, None, 1.0, 0.0]
    assert one.candidates[0].facts["score_was"] == "nan"
    pair, counts = chosen(one)
    assert text(pair.chosen) == "c"
    assert counts.unscored == 2


def test_what_an_earlier_scorer_compared_is_gone():
    asked = group(*((one, None) for one in "abcd"), comparisons=[[0.0] * 4] * 4, orders=[], id=7)
    (one,) = scored(Odd(), [asked])
    assert one.facts == {"id": 7}


class Unasked(Odd):
    """Fails where it is asked."""

    def groups(self, groups):
        raise AssertionError("scores were there")


def test_scores_go_to_the_disk_once_and_without_numbers_that_are_none(tmp_path):
    asked = [group(*((one, None) for one in "abcd"))] * 3
    write_groups(tmp_path / "candidates.jsonl", asked)
    score(tmp_path, Odd())
    first = (tmp_path / SCORED).read_bytes()
    assert b"NaN" not in first
    assert b"Infinity" not in first
    score(tmp_path, Unasked())
    assert (tmp_path / SCORED).read_bytes() == first
    counts = choose(tmp_path, ChoiceOptions(), seed=0)
    assert (counts.chosen, counts.unscored, counts.answers) == (3, 6, 12)


def test_every_prompt_is_counted_once_and_comparisons_do_not_go_into_pairs(tmp_path):
    rows = [
        group(("a", 1.0), ("b", 0.0), comparisons=[[0, 1], [-1, 0]], orders=[], topic="x"),
        group(("a", 1.0), ("a", 1.0)),
        group(("", 1.0), ("b", 0.0)),
        group(("a", 1.0), ("b", 1.0)),
    ]
    write_groups(tmp_path / SCORED, rows)
    counts = choose(tmp_path, ChoiceOptions(), seed=0)
    assert (counts.prompts, counts.chosen) == (4, 1)
    assert counts.dropped == {IDENTICAL: 1, EMPTY: 1, EQUAL: 1}
    assert json.loads(json.dumps(counts.to_json()))["dropped"] == {
        "empty answers": 1, "equal scores": 1, "identical answers": 1,
    }  # fmt: skip
    assert counts.sentence().startswith("1 of 4 prompts are learned from; left out: 1 for")
    (pair,) = read_pairs(str(tmp_path / "pairs.jsonl"))
    assert pair.facts == {"topic": "x", "score_chosen": 1.0, "score_rejected": 0.0}


def test_a_pair_says_which_of_its_answers_was_cut_off():
    pair, _ = chosen(group(("a", 1.0, False), ("b", 0.0)))
    assert pair.facts["is_finished_chosen"] is False
    assert pair.facts["is_finished_rejected"] is True

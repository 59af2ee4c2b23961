"""Rounds held against the start and the last: wins, agreement, and where scorers part."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.files import write_groups
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn, text
from melior.stages.online.judge import (
    HELD_OUT,
    Opinion,
    Panel,
    agreement,
    judge,
    means,
    parting,
    verdict,
)

SCORES = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=3, max_size=3)


@given(SCORES, st.integers(0, 2), st.integers(0, 2))
def test_wins_of_scores_are_their_order_and_add_up_to_one(scores, place, other):
    one = Opinion(tuple(scores))
    a, b = scores[place], scores[other]
    found = one.win(place, other)
    if a is None or b is None:
        assert found is None
        return
    assert found == (1.0 if a > b else 0.0 if a < b else 0.5)
    assert found + one.win(other, place) == 1.0
    assert one.level(place) == a


@given(st.lists(st.floats(-800, 800), min_size=3, max_size=3))
def test_levels_of_a_scorer_that_compares_are_chances_to_beat_the_start(logits):
    a, b, c = logits
    one = Opinion((0.1, 0.2, 0.3), [[0.0, -a, -b], [a, 0.0, -c], [b, c, 0.0]])
    assert one.level(0) == 0.5
    assert one.level(1) == pytest.approx(1 / (1 + math.exp(-a)) if a > -700 else 0.0)
    assert one.win(2, 1) + one.win(1, 2) == pytest.approx(1.0)
    assert Opinion((None, None), [[0.0, None], [None, 0.0]]).win(1, 0) is None


def against(reward, judged):
    """Comparisons as a judgement holds them: (difference, low, high) of both scorers."""
    names = ("reward of the scorer", "score of the held-out scorer")
    return {
        "comparisons": [
            {"name": name, "difference": d, "low": low, "high": high}
            for name, (d, low, high) in zip(names, (reward, judged), strict=True)
        ]
    }


UP, DOWN, UNSURE = (0.5, 0.2, 0.8), (-0.5, -0.8, -0.2), (-0.1, -0.4, 0.2)


@pytest.mark.parametrize(
    ("last", "start", "said"),
    [
        ((UP, DOWN), (UP, UP), "since round 2"),
        ((UP, UP), (UP, DOWN), "since the start"),
        ((UP, UNSURE), (UP, UNSURE), ""),
        ((DOWN, DOWN), (DOWN, DOWN), ""),
        ((UP, (-0.5, None, None)), (UP, UP), ""),
    ],
)
def test_scorers_part_where_one_rises_and_the_other_falls_beyond_its_interval(last, start, said):
    found = parting({"last": against(*last), "start": against(*start)}, 3)
    assert (said in found) if said else found == ""
    assert not said or "the scorer's reward rose by 0.5 while the held-out scorer's fell by 0.5 (" \
        "0.2 to 0.8)" in found  # fmt: skip


def test_agreement_counts_prompts_on_one_side_and_ties_by_half():
    votes = [((0, 1), (0, 1)), ((1, 0), (0, 1)), ((0, 0), (0, 1)), ((1, 0), (1, 0))]
    both = {
        "reward": [Opinion(a) for a, _ in votes],
        "judge": [Opinion(b) for _, b in votes],
    }
    assert agreement(both, 1) == (1 + 0 + 0.5 + 1) / 4
    assert agreement({"reward": both["reward"]}, 1) is None


def test_means_leave_out_what_is_missing():
    assert means({"a": [1.0, None, 2.0], "b": [None]}) == {"a": 1.5}


class ByLength:
    """A scorer from elsewhere: longer is better; silent about answers that begin with `?`."""

    def __init__(self, sign=1):
        self.sign = sign

    def groups(self, groups):
        for one in groups:
            said = [text(c.response) for c in one.candidates]
            values = [None if s.startswith("?") else float(self.sign * len(s)) for s in said]
            found = zip(one.candidates, values, strict=True)
            yield replace(one, candidates=tuple(replace(c, score=v) for c, v in found))

    def remarks(self):
        return []


def left(place, number, answers):
    """The held-out answers of a round, as it leaves them."""
    here = place / f"round-{number}"
    here.mkdir()
    facts = {"n_tokens": 3, "is_finished": True}
    write_groups(
        here / HELD_OUT,
        [
            Group(
                (Turn("user", f"q{i}"),),
                (Candidate((Turn("assistant", said),), facts=facts),),
                {"kl": 0.25 * number},
            )
            for i, said in enumerate(answers)
        ],
    )
    return here


def test_a_round_is_held_against_the_start_and_the_last_on_prompts_with_scores(tmp_path):
    left(tmp_path, 0, ["a", "bb", "cc", "d", "?"] * 4)
    left(tmp_path, 1, ["aa", "bb", "cc", "dd", "xx"] * 4)
    here = left(tmp_path, 2, ["aaa", "bb", "c", "ddd", "xx"] * 4)
    model = ModelOptions(model="nowhere")  # its answers are there
    panel = Panel(model, {"reward": ByLength(), "judge": ByLength(-1)}, 8, 64, 0)
    found = judge(here, model, panel, 2)
    start, last = (found["against"][side]["wins"]["reward"] for side in ("start", "last"))
    assert (start["wins"], start["ties"], start["losses"]) == (8, 4, 4)
    assert (last["wins"], last["ties"], last["losses"]) == (8, 8, 4)
    assert start["win_rate"] == pytest.approx(10 / 16)
    assert start["low"] < start["win_rate"] < start["high"]
    assert start["length_controlled"]["win_rate"] < start["win_rate"]  # length is all there is
    assert "length_controlled" not in last
    assert found["agreement"] == pytest.approx(4 * 0.5 / 16)  # they agree on ties alone
    assert found["means"]["kl"] == 0.5
    assert found["numbers"]["reward"][4] == 2.0  # the start alone has none there
    assert found["against"]["start"]["comparisons"][0]["n"] == 16
    assert "since the start the scorer's reward rose" in found["parts"]
    assert json.loads((here / "judged.json").read_text()) == found
    assert "ranked" not in found["numbers"]
    told = verdict(found, {"prompts": 10, "chosen": 6})
    assert told["facts"]["share of prompts that taught nothing"] == pytest.approx(0.4)
    assert told["win_rate"]["wins"] == 4  # the held-out scorer's word


def test_a_price_on_length_is_taken_off_what_a_round_is_ranked_by(tmp_path):
    left(tmp_path, 0, ["a", "bb"])
    here = left(tmp_path, 1, ["aaa", "b"])
    panel = Panel(ModelOptions(model="nowhere"), {"reward": ByLength()}, 8, 64, 0, 0.5)
    found = judge(here, panel.start, panel, 1)
    assert found["numbers"]["reward"] == [3.0, 1.0]
    assert found["numbers"]["ranked"] == [1.5, 0.5]
    assert found["means"]["ranked"] == 1.0


@given(st.floats(-20, 20), st.floats(0, 5), st.floats(0, 5))
def test_a_price_moves_the_chance_to_beat_the_start_by_the_difference(logit, mine, starts):
    one = Opinion((None, None), [[0.0, -logit], [logit, 0.0]])
    assert one.priced(0, (starts, mine)) == 0.5
    expected = 1 / (1 + math.exp(-(logit - mine + starts)))
    assert one.priced(1, (starts, mine)) == pytest.approx(expected)
    assert Opinion((1.0, 2.0)).priced(1, (starts, mine)) == 2.0 - mine
    assert Opinion((1.0, None)).priced(1, (starts, mine)) is None

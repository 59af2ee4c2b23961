"""Verdicts of a judge behind a real socket: both orders, missing ones, memory and budget."""

import math
import time

import pytest

from melior.models import endpoint
from melior.records import Turn
from melior.rewards.comparisons import CERTAIN
from melior.rewards.judge import Budget, BudgetSpentError
from melior.rewards.judge_prompts import PAIRWISE
from melior.rewards.judging import JudgeScorer, remarks
from tests.rewards.referee import (
    ASKED,
    BIAS,
    comparison,
    group,
    judge_at,
    rater,
    referee,
    said,
    shown,
    spoken,
    with_log_probs,
)
from tests.servers import serving


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_verdict_is_the_mean_probability_of_both_orders(tmp_path):
    with serving(referee) as (url, seen):
        judge = judge_at(url, tmp_path)
        (verdict,) = judge.compare([comparison("3 points", "2 points")])
    assert len(seen) == 2
    assert verdict.left_first == pytest.approx(1 - BIAS)
    assert verdict.right_first == pytest.approx(1 + BIAS)
    assert verdict.win == pytest.approx((sigmoid(1 - BIAS) + sigmoid(1 + BIAS)) / 2)
    assert verdict.logit == pytest.approx(math.log(verdict.win / (1 - verdict.win)))
    for sent in seen:
        assert (sent["temperature"], sent["max_tokens"], sent["top_logprobs"]) == (0, 8, 20)
    three, two = said("3 points"), said("2 points")
    both = {PAIRWISE.ask(ASKED, three, two), PAIRWISE.ask(ASKED, two, three)}
    assert {sent["messages"][0]["content"] for sent in seen} == both  # they arrive in any order


def test_exchanged_comparisons_ask_nothing_new_and_equal_answers_nothing_at_all(tmp_path):
    with serving(referee) as (url, seen):
        judge = judge_at(url, tmp_path)
        there, back, same = judge.compare(
            [
                comparison("3 points", "2 points"),
                comparison("2 points", "3 points"),
                comparison("2 points", "2 points"),
            ]
        )
        assert there.logit == -back.logit
        assert same.logit == 0
        assert len(seen) == 2


def test_the_order_that_decides_is_counted_and_so_is_the_place(tmp_path):
    with serving(referee) as (url, _):
        judge = judge_at(url, tmp_path)
        close, clear = judge.compare(
            [comparison("3 points", "3 points "), comparison("3 points", "1 points")]
        )
    assert close.disagrees and close.logit == pytest.approx(0, abs=1e-12)
    assert not clear.disagrees
    tally = judge.tally
    assert (tally.comparisons, tally.disagreements, tally.first_wins) == (2, 1, 1)
    told = " ".join(remarks(tally, PAIRWISE))
    assert "the order decided 1 of 2 comparisons (50%)" in told
    assert "shown first won 25%" in told and PAIRWISE.hash in told


def test_without_log_probs_the_letter_decides(tmp_path):
    def letters(body, number):
        _, reply = referee(body, number)
        return spoken(reply["choices"][0]["message"]["content"])

    with serving(letters) as (url, _):
        clear, close = judge_at(url, tmp_path).compare(
            [comparison("9 points", "1 points"), comparison("1 points", "1 points.")]
        )
    assert (clear.logit, clear.win) == (math.inf, 1.0)
    assert (close.logit, close.win, close.disagrees) == (0.0, 0.5, True)


def test_a_label_that_is_not_listed_is_no_less_than_impossible(tmp_path):
    def only_a(body, number):
        return with_log_probs("A", A=math.log(0.9), x=math.log(0.04))

    with serving(only_a) as (url, _):
        (verdict,) = judge_at(url, tmp_path).compare([comparison("1 points", "2 points")])
    assert verdict.left_first == pytest.approx(math.log(0.9 / 0.04))
    assert verdict.logit == 0


def test_chatter_is_missing_and_never_a_number(tmp_path):
    with serving(referee) as (url, _):
        judge = judge_at(url, tmp_path)
        verdicts = judge.compare(
            [comparison("many", "2 points"), comparison("3 points", "1 points")]
        )
    assert verdicts[0].logit is None and verdicts[0].win is None and not verdicts[0].disagrees
    assert verdicts[1].logit > 0
    assert (judge.tally.verdicts, judge.tally.missing, judge.tally.comparisons) == (1, 1, 1)
    assert judge.tally.problems == {"the reply is no verdict": 2}
    assert "1 of 2 verdicts are missing" in " ".join(remarks(judge.tally, PAIRWISE))


def test_one_order_without_a_verdict_is_none_at_all(tmp_path):
    def shy(body, number):
        return spoken("Hm.") if number == 1 else referee(body, number)

    with serving(shy) as (url, _):
        judge = judge_at(url, tmp_path, concurrency=1)
        (verdict,) = judge.compare([comparison("3 points", "1 points")])
    assert verdict.logit is None


def test_a_model_that_never_gives_a_verdict_is_no_judge(tmp_path):
    with serving(lambda *_: spoken("<think>\nLet me see")) as (url, seen):
        judge = judge_at(url, tmp_path)
        asked = [comparison(f"{i} points", "1 points") for i in range(2, 60)]
        with pytest.raises(ValueError, match=r"judge tiny: needs verdicts such as 'A'.*20 replies"):
            judge.compare(asked)
        assert len(seen) <= 20 + 4


def test_a_refused_question_is_missing_and_the_others_are_not(tmp_path):
    def strict(body, number):
        if "endless" in body["messages"][0]["content"]:
            return 400, {"error": {"message": "the request exceeds the context size"}}
        return referee(body, number)

    with serving(strict) as (url, seen):
        asked = [comparison("endless 2 points", "1 points"), comparison("3 points", "1 points")]
        long, short = judge_at(url, tmp_path).compare(asked)
        assert long.logit is None and short.logit > 0
        assert len(seen) == 4
        judge = judge_at(url, tmp_path)
        judge.compare(asked)  # a refusal is not kept, so it is asked again
        assert len(seen) == 6
    assert judge.tally.problems == {"refused: the request exceeds the context size": 2}


def test_fields_that_a_server_does_not_know_are_left_out(tmp_path):
    def strict(body, number):
        for name in ("chat_template_kwargs", "top_logprobs", "logprobs"):
            if name in body:
                return 422, {"error": {"message": f"Unrecognized request argument: {name}"}}
        return spoken("A")

    with serving(strict) as (url, seen):
        (verdict,) = judge_at(url, tmp_path, concurrency=1).compare([comparison("1", "2")])
    assert verdict.logit == 0 and verdict.disagrees
    assert len(seen) == 5


@pytest.mark.parametrize(
    "reply",
    [{"choices": []}, {"text": "A"}, {"choices": [{"message": None}]}, {"choices": [3]},
     {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"token": 3}]}}]}],
)  # fmt: skip
def test_a_reply_that_is_none_is_missing(tmp_path, reply):
    def nonsense(body, number):
        return (200, reply) if number <= 2 else referee(body, number)

    with serving(nonsense) as (url, _):
        judge = judge_at(url, tmp_path, concurrency=1)
        first, second = judge.compare(
            [comparison("3 points", "1 points"), comparison("4 points", "1 points")]
        )
        assert first.logit is None and second.logit > 0
        assert sum(judge.tally.problems.values()) == 2
        (again,) = judge_at(url, tmp_path).compare([comparison("3 points", "1 points")])
        assert again.logit > 0


@pytest.mark.parametrize(
    "trouble",
    [(503, b"loading"), (429, b"busy"), (200, b"\xff\xfe{"), (200, ["A"])],
    ids=["503", "429", "bytes", "list"],
)
def test_what_may_pass_is_asked_again_and_what_stays_ends_the_run(tmp_path, trouble):
    def moody(body, number):
        return referee(body, number) if is_well or number % 2 == 0 else trouble

    def failing(body, number):
        return referee(body, number) if is_well or number <= 2 else trouble

    asked = [comparison(f"{i} points", "1 points") for i in (2, 3, 4)]
    is_well = False
    with serving(moody) as (url, seen):
        whole = judge_at(url, tmp_path / "a", concurrency=1).compare(asked)
        assert len(seen) == 12
    with serving(failing) as (url, seen):
        with pytest.raises(ValueError, match="needs a server that answers; found in 2 tries"):
            judge_at(url, tmp_path / "b", concurrency=1).compare(asked)
        is_well, answered = True, [body["messages"] for body in seen[:2]]
        assert judge_at(url, tmp_path / "b", concurrency=1).compare(asked) == whole
        assert not any(body["messages"] in answered for body in seen[2:])


def test_a_server_that_stalls_is_given_up_in_time(tmp_path):
    def stalled(body, number):
        time.sleep(0.4)
        return referee(body, number)

    with serving(stalled) as (url, _):
        judge = judge_at(url, tmp_path, timeout=0.1, concurrency=1)
        with pytest.raises(ValueError, match=r"found in 2 tries: TimeoutError|timed out"):
            judge.compare([comparison("2 points", "1 points")])


def test_replies_are_kept_and_nothing_is_asked_twice(tmp_path):
    asked = [comparison(f"{i} points", "1 points") for i in (2, 3, 4)]

    def both(body, number):
        return (referee if len(shown(body)) == 2 else rater)(body, number)

    with serving(both, models=("tiny", "other")) as (url, seen):
        first = judge_at(url, tmp_path, model="tiny").compare(asked)
        judge = judge_at(url, tmp_path, model="tiny")
        assert judge.compare(asked) == first
        assert len(seen) == 6
        assert (judge.tally.known, judge.tally.calls, judge.tally.tokens) == (6, 0, 0)
        judge_at(url, tmp_path, model="other").compare(asked)
        assert len(seen) == 12
        judge.rate([(ASKED, said("2 points"))])
        assert len(seen) == 13


def test_a_spent_budget_keeps_what_was_replied(tmp_path):
    asked = [comparison(f"{i} points", "1 points") for i in range(2, 12)]
    with serving(referee) as (url, seen):
        judge = judge_at(url, tmp_path, budget=Budget(calls=7))
        with pytest.raises(BudgetSpentError, match="7 questions and 70 tokens"):
            judge.compare(asked)
        assert len(seen) == 7
        by_tokens = judge_at(url, tmp_path, budget=Budget(tokens=40), concurrency=1)
        with pytest.raises(BudgetSpentError):
            by_tokens.compare(asked)
        assert 4 <= len(seen) - 7 <= 4 + 2  # those in flight still come
        judge_at(url, tmp_path).compare(asked)
        assert len(seen) == 20
    with pytest.raises(ValueError, match="judge_calls must be at least 0"):
        Budget(calls=-1)


def test_ratings_are_means_over_the_digits(tmp_path):
    with serving(rater) as (url, _):
        judge = judge_at(url, tmp_path)
        answers = [(ASKED, said(text)) for text in ("3 points", "none", "8 points")]
        assert judge.rate(answers) == [pytest.approx(3.25), None, pytest.approx(8.25)]
    assert (judge.tally.verdicts, judge.tally.missing) == (2, 1)


def test_groups_are_scored_by_mean_wins_and_hold_every_verdict(tmp_path):
    groups = [group("1 points", "5 points", "many", "3 points"), group("2 points", number=2)]
    with serving(referee) as (url, _):
        judge = judge_at(url, tmp_path)
        first, lone = JudgeScorer(judge, by="pairs").groups(groups)

    def win(gap):
        return (sigmoid(gap - BIAS) + sigmoid(gap + BIAS)) / 2

    scores = [one.score for one in first.candidates]
    assert scores[0] == pytest.approx((win(-4) + win(-2)) / 2)
    assert scores[1] == pytest.approx((win(4) + win(2)) / 2)
    assert scores[2] is None
    assert lone.candidates[0].score is None
    comparisons, orders = first.facts["comparisons"], first.facts["orders"]
    assert [comparisons[i][i] for i in range(4)] == [0.0] * 4
    assert comparisons[0][1] == -comparisons[1][0]
    assert sigmoid(comparisons[1][3]) == pytest.approx(win(2))
    assert comparisons[0][2] is comparisons[2][3] is None
    assert orders[1][3] == pytest.approx(2 - BIAS)  # the one that is shown first
    assert orders[3][1] == pytest.approx(-2 - BIAS)
    assert lone.facts["comparisons"] == [[0.0]]


def test_a_judge_that_is_certain_is_stored_as_json_can_hold_it(tmp_path):
    def letters(body, number):
        return spoken(referee(body, number)[1]["choices"][0]["message"]["content"])

    with serving(letters) as (url, _):
        scorer = JudgeScorer(judge_at(url, tmp_path), by="pairs")
        (scored,) = scorer.groups([group("9 points", "1 points")])
    assert scored.facts["comparisons"] == [[0.0, CERTAIN], [-CERTAIN, 0.0]]
    assert sigmoid(CERTAIN) == 1.0
    assert [one.score for one in scored.candidates] == [1.0, 0.0]


def test_a_scorer_is_asked_again_and_again(tmp_path):
    groups = [group("1 points", f"{i} points", number=i) for i in (2, 3)]
    with serving(referee) as (url, seen):
        scorer = JudgeScorer(judge_at(url, tmp_path), by="pairs")
        first = list(scorer.groups(groups))
        assert list(scorer.groups(iter(groups))) == first
        assert len(seen) == 4


def test_groups_that_the_budget_pays_for_come_whole_and_in_order(tmp_path):
    groups = [group("1 points", f"{i} points", number=i) for i in range(2, 12)]
    with serving(referee) as (url, seen):
        judge = judge_at(url, tmp_path, budget=Budget(calls=9), concurrency=1)
        found = JudgeScorer(judge, by="pairs").groups(groups)
        whole = []
        with pytest.raises(BudgetSpentError):
            whole.extend(iter(lambda: next(found), None))
        assert [one.origin for one in whole] == [one.origin for one in groups[:4]]
        assert judge.tally.comparisons == 4
        rest = list(JudgeScorer(judge_at(url, tmp_path), by="pairs").groups(groups))
        assert len(rest) == 10 and len(seen) == 20


def test_a_conversation_is_judged_whole(tmp_path):
    with serving(referee) as (url, seen):
        turns = (Turn("user", "One?"), Turn("assistant", "Yes."), Turn("user", "Two?"))
        one = comparison("2 points", "1 points")
        judge_at(url, tmp_path).compare([type(one)(turns, one.left, one.right)])
    assert "user:\n| One?\nassistant:\n| Yes.\nuser:\n| Two?" in seen[0]["messages"][0]["content"]

"""Judges' files go in and out field by field, and what is wrong with one is said in a sentence."""

import json
from pathlib import Path

import pytest

from melior.data import judgements
from melior.data.judgements import (
    Annotation,
    ArenaAnswer,
    ArenaJudgement,
    BenchAnswer,
    BenchPair,
    BenchScore,
    ModelOutput,
)

ANNOTATION = {
    "instruction": "Name a fox.", "output_1": "Fox.", "generator_1": "base", "output_2": "Reynard.",
    "generator_2": "ours", "dataset": "helpful_base", "annotator": "weighted_alpaca_eval",
    "preference": 1.87, "raw_completion": {"choices": [1]}, "time_per_example": 0.5,
    "price_per_example": 0.01,
}  # fmt: skip
GAME = {"score": "B>>A", "judgment": {"answer": "[[B>>A]]"}, "prompt": [{"role": "user"}]}
ROWS = {
    ModelOutput: {
        "dataset": "helpful_base", "instruction": "Name a fox.", "output": "Reynard.",
        "generator": "ours",
    },
    Annotation: ANNOTATION,
    ArenaAnswer: {
        "uid": "a1", "ans_id": "b2", "model": "ours",
        "messages": [
            {"role": "user", "content": "Name a fox."},
            {"role": "assistant", "content": {"answer": "Reynard."}},
        ],
        "tstamp": 1.5,
        "metadata": {
            "token_len": 3, "header_count": {"h1": 0, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
            "list_count": {"ordered": 0, "unordered": 2}, "bold_count": {"**": 1, "__": 0},
        },
    },
    ArenaJudgement: {
        "uid": "a1", "category": "hard_prompt", "judge": "j", "model": "ours", "baseline": "base",
        "games": [GAME, {**GAME, "score": None}],
    },
    BenchAnswer: {
        "question_id": 81, "answer_id": "x", "model_id": "ours",
        "choices": [{"index": 0, "turns": ["One.", "Two."]}], "tstamp": 2.5,
    },
    BenchScore: {
        "question_id": 81, "model": "ours", "judge": ["j", "single-v1"], "user_prompt": "Judge.",
        "judgment": "[[7.5]]", "score": 7.5, "turn": 1, "tstamp": 2.5,
    },
    BenchPair: {
        "question_id": 81, "model_1": "ours", "model_2": "base", "g1_winner": "model_1",
        "g2_winner": "tie", "judge": ["j", "pair-v2"], "g1_user_prompt": "p", "g1_judgment": "A",
        "g2_user_prompt": "q", "g2_judgment": "[[C]]", "turn": 2, "tstamp": 2.5,
    },
}  # fmt: skip
LEADERBOARD = (
    ",win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode,"
    "avg_length,length_controlled_winrate,lc_standard_error\n"
    "NullModel,76.9,0.9,676,129,0,805,83.975,community,872,86.4578,0.1418\n"
    "ours,50.0,,1,1,0,2,50.0,,,,\n"
)


def put(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_fields_are_those_that_the_tools_write():
    for kind, row in ROWS.items():
        assert set(judgements.as_row(judgements.parsed(kind, row, "f:1"))) == set(row)


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
def test_a_file_is_written_as_it_was_read(tmp_path, kind):
    rows = [ROWS[kind], {**ROWS[kind], "a field of theirs": [1, {"x": None}]}]
    records = list(judgements.read(kind, put(tmp_path / "in.jsonl", rows)))
    judgements.write_lines(tmp_path / "out.jsonl", records)
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    judgements.write_list(tmp_path / "out.json", records)
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == rows
    assert list(judgements.read(kind, tmp_path / "out.json")) == records


def test_a_leaderboard_is_written_as_it_was_read(tmp_path):
    (tmp_path / "in.csv").write_text(LEADERBOARD, "utf-8")
    rows = list(judgements.read_leaderboard(tmp_path / "in.csv"))
    assert [row.name for row in rows] == ["NullModel", "ours"]
    assert rows[1].length_controlled_winrate is None
    judgements.write_leaderboard(tmp_path / "out.csv", rows)
    assert (tmp_path / "out.csv").read_text("utf-8") == LEADERBOARD


def test_a_missing_preference_is_none_whatever_stands_for_it(tmp_path):
    text = "".join(
        json.dumps({**ANNOTATION, "preference": value}) + "\n" for value in (None, float("nan"), "")
    )
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    found = list(judgements.read(Annotation, tmp_path / "a.jsonl"))
    assert [one.preference for one in found] == [None] * 3


def test_an_answer_is_what_was_said_last():
    answer = judgements.parsed(ArenaAnswer, ROWS[ArenaAnswer], "f:1")
    assert answer.answer == "Reynard."
    with pytest.raises(ValueError, match="answer 'a1': needs an 'answer' in its last message"):
        _ = judgements.parsed(ArenaAnswer, {**ROWS[ArenaAnswer], "messages": []}, "f:1").answer


def test_a_score_below_zero_is_no_verdict():
    none = judgements.parsed(BenchScore, {**ROWS[BenchScore], "score": -1}, "f:1")
    assert none.verdict is None
    assert judgements.parsed(BenchScore, ROWS[BenchScore], "f:1").verdict == 7.5


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (Annotation, {"preference": 2.5}, r"f:1: 'preference' must lie from 1 to 2, .*found 2.5"),
        (Annotation, {"output_1": 3}, r"f:1: 'output_1' needs text; found 3"),
        (ArenaJudgement, {"games": "A>B"}, r"f:1: 'games' needs a list; found 'A>B'"),
        (ArenaJudgement, {"games": [3]}, r"f:1: 'games' needs an object; found 3"),
        (ArenaAnswer, {"metadata": []}, r"f:1: 'metadata' needs an object; found \[\]"),
        (BenchScore, {"score": "much"}, r"f:1: 'score' needs a finite number; found 'much'"),
        (BenchScore, {"turn": 1.5}, r"f:1: 'turn' needs a whole number; found 1.5"),
        (BenchScore, {"score": None}, r"f:1: 'score' needs a number; found None"),
        (BenchAnswer, {"choices": [{"index": 0}]}, r"f:1: 'choices': it needs 'turns'; found"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(kind, change, said):
    with pytest.raises(ValueError, match=said):
        judgements.parsed(kind, {**ROWS[kind], **change}, "f:1")


def test_a_column_that_is_nearly_right_is_named():
    row = {**ROWS[ModelOutput]}
    row["outputs"] = row.pop("output")
    with pytest.raises(ValueError, match=r"f:1: a model output of .* needs 'output'; .*did you"):
        judgements.parsed(ModelOutput, row, "f:1")


def test_nothing_is_left_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; make it"):
        judgements.write_list(tmp_path / "no" / "a.json", [])
    assert not list(tmp_path.iterdir())

"""Rows that a loss cannot learn from, on the command line: one sentence each."""

import json

import pytest

from melior import cli
from tests.objectives.rows import KINDS, kind_of, read, scored, written


@pytest.fixture
def refused(capsys, tmp_path, llama):
    """Give a command rows that it cannot use, and return its one sentence."""

    def run(name, rows, *words):
        data = put(tmp_path / "rows.jsonl", rows) if isinstance(rows, list) else rows
        with pytest.raises(SystemExit) as stopped:
            cli.main([name, "--model", str(llama), "--data", str(data),
                      "--out", str(tmp_path / "run"), *map(str, words)])  # fmt: skip
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("melior: ")
        return lines[-1]

    return run


def put(path, rows) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def lists(*, n: int = 8, **change) -> list[dict]:
    rows = [scored(i) for i in range(n)]
    return [row | {"response_list": [one | change for one in row["response_list"]]} for row in rows]


LIST_LOSSES = ("tpo", "plackett-luce", "list-softmax", "all-pairs-dpo", "best-worst-dpo")


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_a_list_loss_needs_scores(name, refused):
    said = refused(name, lists(score=None))
    assert "rows.jsonl:1: a list needs two or more candidates, each with a score" in said
    assert "score them with `melior score`" in said


def test_a_list_loss_needs_two_answers(refused):
    assert "found 1, 0 without" in refused("tpo", [KINDS["answers"](i) for i in range(8)])


def test_scores_that_are_no_numbers_are_named(refused):
    rows = lists()
    rows[2]["response_list"][1]["score"] = float("nan")
    said = refused("tpo", rows)
    assert "rows.jsonl:3: response 2: 'score' needs a finite number; found" in said


def test_lists_of_equal_scores_are_counted_and_refused(refused, llama, tmp_path):
    said = refused("tpo", lists(score=1))
    assert "8 rows (100.0%): the same score for all candidates" in said
    some = [*lists(), *lists(n=3, score=1)]
    data = put(tmp_path / "some.jsonl", some)
    cli.main(["tpo", "--model", str(llama), "--data", data, "--out", str(tmp_path / "some"),
              "--max-steps", "1", "--n-samples", "0", "--dtype", "fp32"])  # fmt: skip
    found = read(tmp_path / "some" / "data.json")["train"]["findings"]
    (equal,) = [one for one in found if one["code"] == "equal-scores"]
    assert (equal["level"], equal["count"]) == ("warning", 3)


def test_scores_outside_their_scale_are_named(refused):
    said = refused("tpo", lists(), "--score-low", "0", "--score-high", "100")
    assert "rows.jsonl:1: scores must lie from score_low 0 to score_high 100; found -40" in said


def test_steps_that_the_answer_lacks_are_named(refused):
    found = [{"response": "one two", "score": 1, "steps": ["one", "three"]},
             {"response": "one", "score": 0, "steps": ["one"]}]  # fmt: skip
    said = refused("tpo", [{"prompt": f"{i}?", "candidates": found} for i in range(8)])
    assert "rows.jsonl:1: candidate 1: step 2 must stand in the answer" in said


def test_paths_keep_their_ends(refused):
    said = refused("tpo", lists(), "--truncation-mode", "keep_start")
    assert "rows.jsonl:1: an answer in steps needs its end" in said
    assert "choose drop or keep_end" in said


def test_labels_are_true_or_false(refused):
    rows = [KINDS["answers"](i) | {"label": 3} for i in range(8)]
    assert "rows.jsonl:1: 'label' needs true or false; found the number 3" in refused("kto", rows)
    rows = [{"prompt": f"{i}?", "candidates": [{"response": "a", "score": 0.5}]} for i in range(8)]
    assert "an answer judged alone needs 'label', true or false; found the score 0.5" in refused(
        "bco", rows
    )


def test_kto_needs_two_prompts(refused):
    rows = [KINDS["answers"](i) | {"prompt": "one"} for i in range(8)]
    assert "needs answers to two or more prompts; found one prompt" in refused("kto", rows)


def test_gpo_on_scores_needs_margins(refused):
    assert kind_of("gpo-offline")().method().needs_margins
    assert kind_of("madpo")().method().needs_margins
    rows = [KINDS["pairs"](i) | {"margin": None} for i in range(8)]
    said = refused("gpo-offline", rows)
    assert "gpo-offline needs a 'margin' in its rows; found none but 0; `melior margins`" in said


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("kto", [KINDS["answers"](2 * i) for i in range(8)]),  # good ones only
        ("all-pairs-dpo", lists(score=1)),
    ],
)
def test_held_out_rows_of_which_none_is_better_are_refused(name, rows, refused, tmp_path):
    apart = put(tmp_path / "apart.jsonl", [row | {"prompt": f"{row['prompt']} so"} for row in rows])
    data = written(tmp_path / "train.jsonl", kind_of(name).data, 40, 56)
    said = refused(name, data, "--eval-data", apart)
    assert "apart.jsonl: held-out rows need better and worse answers" in said


def test_pairs_are_no_lists_of_three(refused):
    said = refused("dpo", [scored(1)] * 8)
    assert "a pair needs 'chosen' and 'rejected', or two candidates" in said
    assert "choose pairs with `melior select`" in said


def test_a_wrong_range_is_told_on_the_command_line(refused, tmp_path):
    rows = written(tmp_path / "pairs.jsonl", "pairs", 0, 8)
    assert "score_low and score_high are given together" in refused("tpo", rows, "--score-low", 0)
    assert "lam must be at least 0; found -1" in refused("orpo", rows, "--lambda", -1)

"""`melior score` with a judge or implicit rewards, stopped at any point and gone on with."""

import json
import signal
import subprocess
import sys
import time

import pytest

from melior.cli import main
from melior.commands import score
from melior.options import JudgeOptions
from melior.rewards import judge_prompts
from melior.rewards.judge_prompts import PAIRWISE, POINTWISE
from tests.rewards.referee import rater, referee
from tests.servers import serving
from tests.tiny import tiny_folder, tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def groups(tmp_path):
    path = tmp_path / "groups.jsonl"
    rows = [
        {
            "prompt": f"How many of {i}?",
            "candidates": [{"response": f"{n} points"} for n in (1, i + 2, 0)],
            "id": i,
        }
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(capsys, *words):
    """Run a command; return its exit code and what it said."""
    try:
        main(["score", *map(str, words)])
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    return code, capsys.readouterr().err


def test_a_judge_scores_groups_and_says_what_it_cost(groups, tmp_path, capsys):
    out = tmp_path / "scored.jsonl"
    with serving(referee) as (url, seen):
        code, told = command(capsys, groups, "--with", f"judge:{url}", "--out", out)
    assert code == 0 and len(seen) == 36
    rows = read(out)
    assert [row["id"] for row in rows] == list(range(6))
    assert all(
        row["candidates"][1]["score"]
        > row["candidates"][0]["score"]
        > row["candidates"][2]["score"]
        for row in rows
    )
    assert rows[0]["scorer"]["wording_hash"] == PAIRWISE.hash
    assert [len(row) for row in rows[0]["comparisons"]] == [3, 3, 3]
    assert "asked 36 questions (360 tokens); 0 replies were known" in told
    assert "scored 18 candidates of 6 groups" in told


def test_ratings_and_the_key_of_a_server(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    out = tmp_path / "scored.jsonl"
    words = ["--judge-by", "ratings", "--api-key-env", "JUDGE_KEY", "--judge-model", "tiny"]
    with serving(rater) as (url, seen):
        code, _ = command(capsys, groups, "--with", f"judge:{url}/v1", "--out", out, *words)
    assert code == 0 and len(seen) == 18
    assert {body["key"] for body in seen} == {"Bearer secret"}
    # A 0 is no rating, so of the last answer's digits 0 and 1 only the 1 is read.
    assert [one["score"] for one in read(out)[3]["candidates"]] == pytest.approx([1.25, 5.25, 1.0])
    assert read(out)[0]["scorer"]["wording_hash"] == POINTWISE.hash


def test_a_spent_budget_leaves_whole_rows_and_resume_ends_them(groups, tmp_path, capsys):
    out = tmp_path / "scored.jsonl"
    words = [groups, "--out", out]
    with serving(referee) as (url, seen):
        judge = ("--with", f"judge:{url}")
        code, told = command(capsys, *words, *judge, "--judge-calls", "14")
        assert code == 2 and len(seen) == 14
        assert "budget is spent: 14 questions" in told
        assert f"2 groups are in {out}; --resume goes on" in told
        assert [row["id"] for row in read(out)] == [0, 1]
        code, told = command(capsys, *words, *judge)
        assert code == 2 and "needs to be new; found 2 rows; --resume goes on" in told
        with out.open("a") as file:
            file.write('{"prompt": "cut o')  # as a run leaves it that is killed while it writes
        code, told = command(capsys, *words, *judge, "--resume")
        assert code == 0 and len(seen) == 36
        assert "2 replies were known" in told
        assert [row["id"] for row in read(out)] == list(range(6))
        code, _ = command(capsys, *words, *judge, "--resume")
        assert code == 0 and len(seen) == 36


def test_resume_goes_on_only_with_the_same_rows_and_the_same_judge(groups, tmp_path, capsys):
    out = tmp_path / "scored.jsonl"
    with serving(referee) as (url, _):
        words = [groups, "--with", f"judge:{url}", "--out", out]
        command(capsys, *words, "--judge-calls", "14")
        code, told = command(capsys, *words, "--resume", "--judge-by", "ratings")
        assert code == 2 and "scored.jsonl:1: --resume needs rows of the same scorer" in told
        lines = groups.read_text().splitlines(keepends=True)
        groups.write_text("".join([lines[1], lines[0], *lines[2:]]))
        code, told = command(capsys, *words, "--resume")
        assert code == 2 and "scored.jsonl:1: --resume needs the prompts and answers" in told
        assert "groups.jsonl:1" in told
    assert len(read(out)) == 2


def test_a_run_that_is_stopped_has_written_what_it_finished(groups, tmp_path):
    out = tmp_path / "scored.jsonl"

    def slow(body, number):
        time.sleep(0.05)
        return referee(body, number)

    rows = groups.read_text() * 60
    groups.write_text(rows)
    with serving(slow) as (url, _):
        words = [sys.executable, "-m", "melior", "score", str(groups), "--out", str(out)]
        words += ["--with", f"judge:{url}", "--concurrency", "2"]
        running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 143, told
    n = len(out.read_text().splitlines())
    assert n >= 20
    assert f"stopped by SIGTERM; {n} groups are in {out}; --resume goes on" in told


def test_a_local_model_judges(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judge_prompts, "MIN_MASS", 0.0)  # random weights favour no label
    folder = tiny_folder(tmp_path / "tiny")
    tiny_model(max_position_embeddings=4096).save_pretrained(folder)
    out = tmp_path / "scored.jsonl"
    words = [groups, "--with", f"judge:{folder}", "--dtype", "fp32", "--device", "cpu"]
    code, told = command(capsys, *words, "--out", out)
    assert code == 0, told
    assert len(read(out)) == 6
    assert {row["scorer"]["model"] for row in read(out)} == {str(folder)}
    code, told = command(capsys, *words)  # to standard output, all known
    assert code == 0 and "asked 0 questions" in told


def test_implicit_rewards_score_groups(groups, tmp_path, capsys):
    names = [tiny_folder(tmp_path / name) for name in "ab"]
    tiny_model(seed=1).save_pretrained(names[0])
    out = tmp_path / "scored.jsonl"
    words = ["--with", f"implicit:{names[0]},{names[1]}", "--dtype", "fp32", "--device", "cpu"]
    code, told = command(capsys, groups, *words, "--out", out)
    assert code == 0, told
    found = [one["score"] for row in read(out) for one in row["candidates"]]
    assert len(set(found)) == 18
    code, told = command(capsys, groups, "--with", f"implicit:{names[0]}")
    assert code == 2 and "needs two models, POLICY,REFERENCE" in told


def test_nothing_to_judge_is_said(tmp_path, capsys):
    empty = tmp_path / "none.jsonl"
    empty.write_text("")
    with serving(referee) as (url, _):
        words = ["--with", f"judge:{url}", "--out", tmp_path / "out.jsonl"]
        code, told = command(capsys, empty, *words)
    assert code == 2 and "none.jsonl: needs at least one group to score" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorer": "judge:"}, "--with: judge: needs a model behind it; found none"),
        ({"scorer": "juge:x"}, "did you mean 'judge:'"),
        ({"scorer": "judge:a/b", "out": "a.json"}, r"--out must end in .jsonl"),
        ({"scorer": "judge:a/b", "resume": True}, "--resume needs the file to go on with"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        score.Config(**options)


def test_wrong_judge_options_are_refused_at_once(groups, tmp_path, capsys):
    for options, message in (
        ({"judge_calls": -1}, "judge_calls must be at least 0"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY must hold the server's key"),
    ):
        with pytest.raises(ValueError, match=message):
            JudgeOptions(**options)
    code, told = command(capsys, groups, "--with", "judge:smolm2")
    assert code == 2 and "did you mean 'smollm2'" in told
    out = tmp_path / "no" / "out.jsonl"
    code, told = command(capsys, groups, "--with", "judge:smollm2", "--out", out)
    assert code == 2 and "does not exist; make it" in told

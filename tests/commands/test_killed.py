"""Every verb is killed outright in the middle and started again: no row is lost, none is twice."""

import json
import os
import subprocess
import sys
import time

import pytest

from melior.models.heads import load_reward_model, save_reward_model
from melior.options import ModelOptions
from tests.rewards.referee import referee
from tests.sampling.test_server import fine
from tests.servers import serving

N = 700


@pytest.fixture
def groups(tmp_path):
    path = tmp_path / "groups.jsonl"
    rows = [
        {
            "prompt": f"How many of {i}?",
            "candidates": [{"response": f"{n} points", "score": n} for n in (1, i % 7 + 2, 0)],
            "constraints": [{"name": "keyword", "word": str(i % 7 + 2)}],
            "id": i,
        }
        for i in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward_folder(model_folder, tmp_path):
    model = load_reward_model(ModelOptions(model=str(model_folder), dtype="fp32"), trainable=False)
    save_reward_model(model, tmp_path / "rm")
    return tmp_path / "rm"


def started(cache, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "melior", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MELIOR_CACHE": str(cache)},
    )


def killed(cache, out, *words):
    """Run a command until its file has a row; kill it; return how many rows are whole."""
    process = started(cache, *words)
    while not (out.exists() and out.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    return out.read_bytes().count(b"\n")


def finished(cache, *words):
    process = started(cache, *words)
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(path):
    return [one["score"] for row in rows(path) for one in row["candidates"]]


def test_score_by_a_reward_model(groups, reward_folder, tmp_path):
    out, whole = tmp_path / "scored.jsonl", tmp_path / "whole.jsonl"
    words = ["score", groups, "--with", reward_folder, "--dtype", "fp32", "--out"]
    n = killed(tmp_path, out, *words, out)
    assert 0 < n < N
    finished(tmp_path, *words, out, "--resume")
    finished(tmp_path, *words, whole)
    assert [row["id"] for row in rows(out)] == list(range(N))
    assert scores(out) == pytest.approx(scores(whole), abs=1e-5)


def test_score_by_another_model_of_the_same_name_does_not_go_on(groups, reward_folder, tmp_path):
    out = tmp_path / "scored.jsonl"
    words = ["score", groups, "--with", reward_folder, "--dtype", "fp32", "--out", out]
    killed(tmp_path, out, *words)
    before = out.read_bytes()
    model = load_reward_model(ModelOptions(model=str(reward_folder), dtype="fp32"), trainable=False)
    next(model.model.score.parameters()).data.add_(1.0)
    save_reward_model(model, reward_folder)
    process = started(tmp_path, *words, "--resume")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "scored.jsonl:1: --resume needs rows of the same scorer" in said
    assert out.read_bytes() == before


def test_score_by_a_judge(groups, tmp_path):
    out = tmp_path / "scored.jsonl"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(groups.read_text().splitlines(keepends=True)[:60]))

    def slow(body, number):
        time.sleep(0.02)
        return referee(body, number)

    with serving(slow) as (url, seen):
        words = ["score", few, "--with", f"judge:{url}", "--concurrency", "2", "--out", out]
        assert 0 < killed(tmp_path, out, *words) < 60
        finished(tmp_path, *words, "--resume")
        assert [row["id"] for row in rows(out)] == list(range(60))
        # 360 comparisons in two orders; at most those in flight are asked twice.
        questions = [json.dumps(body["messages"]) for body in seen]
        assert len(set(questions)) == 360 and len(questions) <= 360 + 4


def test_rules_go_on_in_a_file_that_was_cut_in_the_middle_of_a_row(groups, tmp_path):
    out, whole = tmp_path / "scored.jsonl", tmp_path / "whole.jsonl"
    finished(tmp_path, "score", groups, "--out", whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:300]) + lines[300][:30])
    finished(tmp_path, "score", groups, "--out", out, "--resume")
    assert out.read_bytes() == whole.read_bytes()


def test_sample_at_a_server(groups, tmp_path):
    out = tmp_path / "drawn.jsonl"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(groups.read_text().splitlines(keepends=True)[:40]))

    def slow(body, number):
        time.sleep(0.02)
        return fine(body, number)

    with serving(slow) as (url, _):
        words = ["sample", "--data", few, "--server", url, "--concurrency", "2", "--out", out]
        assert 0 < killed(tmp_path, out, *words) < 40
        finished(tmp_path, *words, "--resume")
    assert [row["id"] for row in rows(out)] == list(range(40))


def test_select_writes_all_or_nothing(groups, tmp_path):
    """It reads from a pipe that stays open, so that it is in the middle when it is killed."""
    out, whole = tmp_path / "pairs.jsonl", tmp_path / "whole.jsonl"
    words = ["select", "best-and-worst", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "melior", *words, str(out)], stdin=subprocess.PIPE
    )
    process.stdin.write(groups.read_bytes())
    process.stdin.flush()
    while not (parts := list(tmp_path.glob(".pairs.jsonl.*.part"))) or not parts[0].stat().st_size:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not out.exists()
    for path in (out, whole):
        finished(tmp_path, *words, path, groups)
    assert out.read_bytes() == whole.read_bytes()
    assert [row["id"] for row in rows(out)] == list(range(N))


def test_evaluate_reward(groups, reward_folder, tmp_path):
    out = tmp_path / "eval"
    words = ["evaluate", "reward", "--data", groups, "--dtype", "fp32"]
    words += ["--with", "rules", reward_folder, "--out"]
    scored = out / "scored" / f"{tmp_path.name}/rm.jsonl"
    assert 0 < killed(tmp_path, scored, *words, out) < N
    finished(tmp_path, *words, out, "--resume")
    finished(tmp_path, *words, tmp_path / "whole")
    found, whole = (
        json.loads((place / "evaluation.json").read_text())["scorers"]
        for place in (out, tmp_path / "whole")
    )
    assert [row["id"] for row in rows(scored)] == list(range(N))
    assert found[0]["accuracies"] == whole[0]["accuracies"]
    mine, other = (side[1]["accuracies"]["everything"]["accuracy"] for side in (found, whole))
    assert mine == pytest.approx(other, abs=2 / N)

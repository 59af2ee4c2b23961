"""`melior sample` and `melior score` by workers: the bytes of one, whoever is killed on the way."""

import contextlib
import json
import os
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest

from melior.commands import sample, score
from melior.options import JudgeOptions, Sampling, ScoringOptions, WorkerOptions
from melior.rewards.named import KINDS
from tests.commands.test_killed import finished, reward_folder, rows, started
from tests.rewards.referee import referee
from tests.servers import serving

__all__ = ["groups", "reward_folder"]
N = 600


@pytest.fixture
def groups(tmp_path):
    path = tmp_path / "groups.jsonl"
    told = [
        {
            "prompt": f"How many of {i}? " + "Say it. " * (i % 5),
            "candidates": [{"response": f"{n} points"} for n in range(i % 3 + 1)],
            "constraints": [{"name": "keyword", "word": str(i % 3)}],
            "id": i,
        }
        for i in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


def few(groups, n):
    path = groups.with_name("few.jsonl")
    path.write_text("".join(groups.read_text().splitlines(keepends=True)[:n]))
    return path


def children(pid):
    """All processes that a process has begun, and those that they have."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if place.joinpath("stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found += [int(place.name), *children(place.name)]
    return found


def workers(process):
    """Processes that hold a model: forked by the server, or actors of Ray."""
    found = []
    for pid in children(process.pid):
        with contextlib.suppress(OSError):
            place = Path("/proc") / str(pid)
            parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            told = place.joinpath("cmdline").read_bytes()
            above = (Path("/proc") / parent / "cmdline").read_bytes()
            if told.startswith(b"ray::_Place") or b"forkserver import main" in above:
                found.append(pid)
    return found


def killed_in_the_middle(out, process):
    """Kill a worker as soon as there are results; return how many rows there were by then."""
    found = []
    while len(found) < 2:
        assert process.poll() is None, process.communicate()[1]
        found = workers(process)
        time.sleep(0.05)
    while not (out.exists() and out.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    os.kill(found[0], signal.SIGKILL)
    return out.read_bytes().count(b"\n")


def draw_words(model_folder, prompts):
    """Ten chunks of 4 prompts, of 40."""
    words = ["sample", "--model", model_folder, "--prompts", prompts, "--dtype", "fp32"]
    return [*words, "--k", "128", "--max-new-tokens", "8", "--max-tokens", "4000"]


def draw(model_folder, prompts, out, **options):
    sampling = Sampling(k=128, max_new_tokens=8, temperature=0.8)
    config = sample.Config(
        (str(prompts),), str(model_folder), sampling, out=str(out), max_tokens=4000, dtype="fp32",
        **options,
    )  # fmt: skip
    return sample.run(config)


def test_sampling_gives_the_same_bytes_by_any_number_of_processes(model_folder, groups, tmp_path):
    prompts, found = few(groups, 9), []
    for n in (1, 2):
        out = tmp_path / f"{n}.jsonl"
        metrics = draw(model_folder, prompts, out, workers=WorkerOptions(n))
        found.append(out.read_bytes())
        assert metrics["sample/groups"] == 9 and metrics["sample/answers"] == 9 * 128
    assert found[0] == found[1]
    draw(model_folder, prompts, tmp_path / "here.jsonl")
    for mine, other in zip(rows(tmp_path / "here.jsonl"), rows(tmp_path / "1.jsonl"), strict=True):
        texts = [[one["response"] for one in side.pop("candidates")] for side in (mine, other)]
        assert mine == other  # the prompt and its facts
        assert sum(a == b for a, b in zip(*texts, strict=True)) >= 126  # but for rounding


@pytest.mark.slow
def test_sampling_goes_on_to_the_same_bytes_when_a_worker_and_then_all_are_killed(
    model_folder, groups, tmp_path
):
    out, whole = tmp_path / "drawn.jsonl", tmp_path / "whole.jsonl"
    prompts = few(groups, 40)
    words = [*draw_words(model_folder, prompts), "--processes", "2", "--out"]
    finished(tmp_path, *words, whole)
    process = started(tmp_path, *words, out)
    assert 0 < killed_in_the_middle(out, process) < 40
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert out.read_bytes() == whole.read_bytes()
    # Cut in the middle of a row in the middle of a chunk, as a kill of all may leave it.
    lines = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:29]) + lines[29][:99])
    finished(tmp_path, *words, out, "--resume")
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_cluster_gives_the_bytes_of_processes_when_an_actor_is_killed(
    model_folder, groups, tmp_path
):
    out, whole = tmp_path / "drawn.jsonl", tmp_path / "whole.jsonl"
    prompts = few(groups, 40)
    draw(model_folder, prompts, whole, workers=WorkerOptions(1))
    cluster = ["--cluster", "local", "--processes", "2"]
    process = started(tmp_path, *draw_words(model_folder, prompts), *cluster, "--out", out)
    assert 0 < killed_in_the_middle(out, process) < 40
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert out.read_bytes() == whole.read_bytes()


def scored(groups, scorer, out, n=0, **options):
    """Score in float32, as on a GPU or CPU of any kind; return the bytes."""
    config = score.Config(
        str(groups), str(scorer), str(out), workers=WorkerOptions(n),
        scoring=ScoringOptions(dtype="fp32", **options.pop("scoring", {})), **options,
    )  # fmt: skip
    score.run(config)
    return Path(out).read_bytes()


@pytest.mark.parametrize("name", [*KINDS, "implicit", "judge_local", "judging"])
def test_groups_meet_the_same_company_in_a_chunk_as_in_the_file(name):
    """What scorers sort and compute together never reaches over the end of a chunk."""
    assert score.CHUNK % import_module(f"melior.rewards.{name}").CHUNK == 0


def test_scoring_gives_the_same_bytes_here_and_by_processes(groups, reward_folder, tmp_path):
    by = [scored(groups, reward_folder, tmp_path / f"{n}.jsonl", n) for n in (0, 3)]
    assert by[0] == by[1]
    assert [json.loads(line)["id"] for line in by[0].splitlines()] == list(range(N))


@pytest.mark.slow
def test_scoring_goes_on_to_the_same_bytes_when_workers_and_the_driver_are_killed(
    groups, reward_folder, tmp_path
):
    out, whole = tmp_path / "scored.jsonl", tmp_path / "whole.jsonl"
    words = ["score", groups, "--with", reward_folder, "--dtype", "fp32", "--processes", "2"]
    process = started(tmp_path, *words, "--out", out)
    assert 0 < killed_in_the_middle(out, process) < N
    process.kill()
    process.communicate()
    n = out.read_bytes().count(b"\n")
    finished(tmp_path, *words, "--out", out, "--resume")
    assert n < N and out.read_bytes() == scored(groups, reward_folder, whole)


def test_what_workers_have_to_say_is_said(groups, reward_folder, tmp_path, capsys):
    options = {"max_length": 12}
    scored(few(groups, 600), reward_folder, tmp_path / "a.jsonl", 2, scoring=options)
    told = capsys.readouterr().err
    n = sum(
        int(line.split(": ")[-1].split()[0])
        for line in told.splitlines()
        if "lost the start" in line
    )
    scored(few(groups, 600), reward_folder, tmp_path / "b.jsonl", 0, scoring=options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "lost the start" in line]
    assert n == int(line.split()[0]) > 0


@pytest.mark.parametrize("n", [0, 2])
def test_a_wrong_row_is_the_same_sentence_behind_the_same_rows(groups, tmp_path, n):
    lines = groups.read_text().splitlines(keepends=True)
    lines[577] = lines[577].replace("keyword", "no such thing")
    groups.write_text("".join(lines))
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=r"groups.jsonl:578: .*; 577 groups are in .*--resume"):
        scored(groups, "rules", out, n)
    assert [row["id"] for row in rows(out)] == list(range(577))


@pytest.mark.slow
def test_a_judge_works_in_processes(groups, tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path))
    with serving(referee) as (url, _):
        found = [
            scored(few(groups, 300), f"judge:{url}", tmp_path / f"{n}.jsonl", n) for n in (2, 0)
        ]
    assert found[0] == found[1]


def test_an_ensemble_works_in_processes(groups, reward_folder, tmp_path):
    name = f"ensemble:{reward_folder},rules"
    found = [scored(few(groups, 600), name, tmp_path / f"{n}.jsonl", n) for n in (2, 0)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": JudgeOptions(judge_calls=5)}, "--judge-calls and .* are counted in one process"),
        ({"device": "cuda:1"}, "--device must be auto, cpu or cuda"),
    ],
)
def test_what_workers_cannot_share_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        score.Config(scoring=ScoringOptions(**options), workers=WorkerOptions(2))


def test_a_server_needs_no_workers():
    with pytest.raises(ValueError, match=r"hold models of their own; found --server"):
        sample.Config(("p.jsonl",), server="http://localhost:1", workers=WorkerOptions(2))

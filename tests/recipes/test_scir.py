"""SCIR end to end on a tiny model: one round on given pairs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from melior.cli import main
from melior.recipes import scir
from tests.recipes.test_madpo import read, rows, write_pairs
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """A tiny model with room for a question."""
    return save_judge(tmp_path_factory.mktemp("models") / "tiny-judge")


def save_judge(folder):
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return [
        write_pairs(tmp_path / f"{name}.jsonl", start, stop)
        for name, start, stop in (("seed", 0, 12), ("free", 20, 32), ("held", 60, 68))
    ]


def words(model, data, out, *more):
    return ["scir", "--model", str(model), "--data", data[0], "--unlabelled", data[1],
            "--out", str(out), "--learning-rate", "3e-3", "--batch-size", "4", "--n-samples", "1",
            "--dtype", "fp32", "--max-tokens", "16384", *more]  # fmt: skip


def killed(command, metrics, n_lines):
    """Run a command, and kill it as soon as it has written so many lines of metrics."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, **quiet)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and running.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= n_lines:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    running.wait()
    return running.returncode


def training(out):
    """The numbers of all steps, but for the clock's."""
    found = [row for row in rows(out / "metrics.jsonl") if "loss" in row]
    return [{name: value for name, value in row.items() if name != "time"} for row in found]


def same(one, other):
    left, right = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


def test_what_labelled_pairs_say_is_learned_and_both_opinions_are_examined(
    judge_folder, data, tmp_path
):
    out = tmp_path / "run"
    main(
        words(judge_folder, data, out, "--eval-data", data[2], "--epochs", "4", "--eval-steps", "4")
    )
    evaluation, steps = read(out / "evaluation.json"), training(out)
    facts = evaluation["facts"]
    assert facts["right by the implicit reward, before"] == 0.5
    assert facts["pairs on which both agree, before"] == 0
    assert facts["right by the implicit reward, after"] >= 0.9
    assert 0 < facts["pairs on which both agree, after"] <= 1
    assert len(steps) == 12
    assert steps[-1]["loss/seed"] < steps[0]["loss/seed"] / 2
    assert steps[0]["judge/mass"] < steps[-1]["judge/mass"]
    assert steps[0]["implicit/certainty"] < 1e-6 < steps[-1]["implicit/certainty"]
    assert any(row["consistency/kept"] > 0 for row in steps)
    examined = [row for row in rows(out / "metrics.jsonl") if "eval_judge/accuracy" in row]
    assert [row["step"] for row in examined] == [4, 8, 12]
    assert examined[-1]["eval_judge/accuracy"] == facts["right by the judge, after"]
    titles = [one["name"] for one in evaluation["comparisons"]]
    assert "held-out pairs ranked right by the judge" in titles
    assert set(read(out / "data.json")) == {"train", "unlabelled", "held_out"}
    assert (out / "report.html").stat().st_size > 10_000
    assert "2502.08922" in (out / "model" / "README.md").read_text("utf-8")


def test_tiny_runs_twice_to_the_same_bits(judge_folder, data, tmp_path):
    for name in ("a", "b"):
        config = scir.Config.tiny(str(judge_folder), data[0], str(tmp_path / name))
        scir.run(dataclasses.replace(config, unlabelled=(data[1],)))
    assert training(tmp_path / "a") == training(tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow  # three kills of it are in every run, in test_kills.py
def test_kill_9_and_resume_end_in_the_same_bits(judge_folder, data, tmp_path):
    def command(name):
        more = ["--epochs", "2", "--save-steps", "2", "--lora-r", "4", "--labels", "judge",
                "--warmup-share", "0.3"]  # fmt: skip
        return [sys.executable, "-m", "melior", *words(judge_folder, data, tmp_path / name, *more)]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **quiet)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    assert killed(command("cut"), metrics, 3) == -signal.SIGKILL
    subprocess.run([*command("cut"), "--resume"], check=True, **quiet)
    assert training(tmp_path / "whole") == training(tmp_path / "cut")
    assert len(training(tmp_path / "cut")) == 6
    left, right = (
        load_file(tmp_path / name / "model" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_baselines_move_only_what_they_should(judge_folder, data, tmp_path):
    """Filter-only pays no penalty, the self-rewarding model labels every pair, once."""
    found = {}
    for name, more in (
        ("filter", ["--inconsistency-weight", "0"]),
        ("srlm", ["--inconsistency-weight", "0", "--labels", "judge"]),
    ):
        main(words(judge_folder, data, tmp_path / name, "--max-steps", "2", *more))
        found[name] = training(tmp_path / name)
    for rows_ in found.values():
        for row in rows_:
            wanted = row["loss/preference"] + row["loss/seed"]
            assert row["loss"] == pytest.approx(wanted, rel=1e-5)
    assert [row["consistency/kept"] for row in found["srlm"]] == [1.0, 1.0]
    assert found["filter"][0]["consistency/kept"] < 1


def test_patience_ends_a_run_that_can_be_reported_and_leaves_the_warm_up_alone(
    judge_folder, data, tmp_path, capsys
):
    """Nothing is ever kept: in the warm-up that is no reason to stop."""
    idle = ["--patience", "1", "--delta", "0.49", "--warmup-confidence", "0.49"]
    main(words(judge_folder, data, tmp_path / "all", *idle, "--warmup-share", "1"))
    assert [row["consistency/kept"] for row in training(tmp_path / "all")] == [0.0] * 3
    with pytest.raises(SystemExit):
        main(words(judge_folder, data, tmp_path / "some", *idle, "--warmup-share", "0.3"))
    assert "step 2: pairs on which judge and implicit reward agree" in capsys.readouterr().err
    assert len(training(tmp_path / "some")) == 2
    main(["report", str(tmp_path / "some")])
    assert (tmp_path / "some" / "report.html").stat().st_size > 10_000


def test_pairs_that_cannot_be_asked_about_are_counted_and_said(judge_folder, data, tmp_path):
    path = tmp_path / "odd.jsonl"
    odd = rows(tmp_path / "free.jsonl")
    odd[0]["rejected"] = odd[0]["chosen"]
    odd[1]["prompt"] = "0123456789 " * 40 + odd[1]["prompt"]
    path.write_text("".join(json.dumps(row) + "\n" for row in odd), encoding="utf-8")
    out = tmp_path / "run"
    limit = ["--judge-max-length", "800", "--max-steps", "1"]
    main(words(judge_folder, [data[0], str(path)], out, *limit))
    notes = read(out / "run.json")["notes"]
    said = "of the unlabelled pairs, 1 have equal answers and 1 are too long to judge: left out"
    assert said in notes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--judge-max-length", "100"],
            "needs a pair of different answers with a question of at most",
        ),
        (["--lora-r", "4", "--lora-dropout", "0.1"], "lora_dropout must be 0"),
        (["--unlabelled", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--penalty", "kl"], "kl"),
        (["--prompts", "p.jsonl"], "unlabelled or prompts is needed"),
        (["--rounds", "2"], "rounds must be 1 with --unlabelled"),
        (["--chat-template", "plain"], "needs a chat template"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(
    more, said, judge_folder, data, tmp_path, capsys
):
    with pytest.raises(SystemExit) as stopped:
        main(words(judge_folder, data, tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()

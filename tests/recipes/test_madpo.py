"""MADPO end to end on a tiny model: margins made and weighed; gain, noise, kills, mistakes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from melior.cli import main
from melior.objectives.adaptive import Madpo
from melior.recipes import madpo
from melior.training.folder import OWNED

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")
NEW = ("--reward-learning-rate", "1e-2", "--validation-share", "0.2")


def write_pairs(path, start, stop, *, flipped=0.0, margin=None):
    """Pairs whose chosen answer is polite, but for a share drawn at random whose sides swap."""
    dice, rows = random.Random(0), []
    for i in range(start, stop):
        polite = f"thank you, {WORDS[(i + 3) % 10]}"
        rude = f"the {WORDS[(i + 5) % 10]} jumps"
        is_flipped = dice.random() < flipped
        better, worse = (rude, polite) if is_flipped else (polite, rude)
        row = {"prompt": f"what about {WORDS[i % 10]} {i}?", "chosen": better, "rejected": worse}
        row |= {"id": i, "flipped": is_flipped}
        rows.append(row if margin is None else row | {"margin": margin(i, is_flipped)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "train.jsonl", 0, 32), write_pairs(
        tmp_path / "held.jsonl", 40, 60
    )


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(model_folder, data, out, *more):
    return ["madpo", "--model", str(model_folder), "--data", data, "--out", str(out),
            "--learning-rate", "1e-2", "--batch-size", "8", "--n-samples", "2", *more]  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_reward_model_is_trained_and_held_out_pairs_are_ranked_right(
    seed, model_folder, data, tmp_path
):
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--eval-data", data[1], "--epochs", "4",
               "--seed", str(seed), *NEW))  # fmt: skip
    evaluation = read(out / "evaluation.json")
    assert evaluation["comparisons"][0]["after"] >= 0.95
    assert evaluation["facts"]["share of margins below 0"] < 0.1
    scored = rows(out / "with_margins.jsonl")
    assert [row["id"] for row in scored] == list(range(32))
    names = {row["reward_model"]["name"] for row in scored}
    assert names == {str(out / "reward" / "model")}
    assert {"sha256", "temperature"} & set(scored[0]["reward_model"])
    assert all(row["margin"] == row["reward_chosen"] - row["reward_rejected"] for row in scored)
    apart = {row["id"] for row in rows(out / "reward-held-out.jsonl")}
    kept = {row["id"] for row in rows(out / "reward-train.jsonl")}
    assert len(apart) == 6
    assert apart | kept == set(range(32))
    assert not apart & kept
    drawn = read(out / "data.json")["train"]
    found = madpo.weights(Madpo(), [row["margin"] for row in scored])
    assert drawn["weights"] == pytest.approx(sorted(found))
    assert evaluation["facts"]["mean weight of a pair"] == pytest.approx(np.mean(found))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Weight of the pairs" in page
    assert "Margin of the pairs" in page


def test_margins_that_pairs_hold_are_used_as_they_are(model_folder, tmp_path):
    given = write_pairs(tmp_path / "p.jsonl", 0, 16, margin=lambda i, _: 0.5 + i / 8)
    out = tmp_path / "run"
    main(words(model_folder, given, out, "--dtype", "fp32", "--tau-percentile", "50"))
    assert not (out / "with_margins.jsonl").exists()
    facts = read(out / "evaluation.json")["facts"]
    assert facts["tau"] == pytest.approx(np.percentile([0.5 + i / 8 for i in range(16)], 50))
    first = rows(out / "metrics.jsonl")[0]["loss"]
    # All weights times log 2: the policy is its reference at the first step, of half of the pairs.
    found = madpo.weights(Madpo(tau=facts["tau"]), [0.5 + i / 8 for i in range(16)])
    assert min(found) * np.log(2) - 1e-4 <= first <= max(found) * np.log(2) + 1e-4


def test_unit_weights_train_as_dpo_does_to_the_bit(model_folder, tmp_path):
    given = write_pairs(tmp_path / "p.jsonl", 0, 16, margin=lambda i, _: 1.0)
    main(words(model_folder, given, tmp_path / "a", "--c-max", "1", "--dtype", "fp32"))
    main(["dpo", *words(model_folder, given, tmp_path / "b", "--dtype", "fp32")[1:]])
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("a", "b")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_labels_that_the_reward_model_contradicts_are_not_learned(seed, model_folder, tmp_path):
    """Six of ten labels are wrong, and margins know it: DPO learns the rude answer, MADPO not."""
    given = write_pairs(
        tmp_path / "p.jsonl", 0, 60, flipped=0.6, margin=lambda i, wrong: -4.0 if wrong else 4.0
    )
    held = write_pairs(tmp_path / "held.jsonl", 70, 90)
    ranked = {}
    for name in ("dpo", "madpo"):
        more = ["--eval-data", held, "--epochs", "3", "--seed", str(seed), "--allow-lint-errors"]
        main([name, *words(model_folder, given, tmp_path / name, *more)[1:]])
        found = read(tmp_path / name / "evaluation.json")["comparisons"][0]
        ranked[name] = found["after"]
    assert ranked["madpo"] >= ranked["dpo"] + 0.3


def test_cross_fitted_margins_come_from_models_of_other_prompts(model_folder, data, tmp_path):
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--cross-fit", "2", "--dtype", "fp32",
               "--lora-r", "4", "--lora-dropout", "0.1", *NEW))  # fmt: skip
    for row in rows(out / "with_margins.jsonl"):
        fold = row["reward_model"]["name"].split("/")[-2]
        assert row["id"] not in {one["id"] for one in rows(out / f"{fold}-others.jsonl")}
    assert (out / "model" / "adapter_config.json").exists()


def test_calibration_divides_all_rewards_by_one_temperature(model_folder, tmp_path):
    noisy = write_pairs(tmp_path / "noisy.jsonl", 0, 60, flipped=0.2)
    for name, more in (("plain", []), ("scaled", ["--calibrate"])):
        main(words(model_folder, noisy, tmp_path / name, "--max-steps", "1", "--dtype", "fp32",
                   "--n-samples", "0", "--reward-learning-rate", "1e-2",
                   "--validation-share", "0.4", *more))  # fmt: skip
    plain, scaled = (rows(tmp_path / n / "with_margins.jsonl") for n in ("plain", "scaled"))
    temperature = read(tmp_path / "scaled" / "margins.json")["temperature"]
    assert temperature != 1.0
    assert {row["reward_model"]["temperature"] for row in scaled} == {temperature}
    for one, other in zip(plain, scaled, strict=True):
        assert other["margin"] == pytest.approx(one["margin"] / temperature, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("file", "lines", "more"),
    [
        ("reward/metrics.jsonl", 3, []),
        pytest.param("fold-2/metrics.jsonl", 2, ["--cross-fit", "2"], marks=pytest.mark.slow),
        pytest.param("margins.json", 1, [], marks=pytest.mark.slow),
        pytest.param("metrics.jsonl", 3, [], marks=pytest.mark.slow),
    ],
)
def test_kill_9_in_and_between_stages_ends_in_the_same_bits(
    file, lines, more, model_folder, data, tmp_path
):
    def command(name):
        own = ["--epochs", "2", "--save-steps", "2", "--n-samples", "0", *NEW, *more]
        line = words(model_folder, data[0], tmp_path / name, *own)
        return [sys.executable, "-m", "melior", *line]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **quiet)
    running = subprocess.Popen(command("cut"), **quiet)
    watched = tmp_path / "cut" / file
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        if watched.exists() and len(watched.read_text().splitlines()) >= lines:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    running.wait()
    assert running.returncode == -signal.SIGKILL
    subprocess.run([*command("cut"), "--resume"], check=True, **quiet)
    whole, cut = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    margins = [[row["margin"] for row in rows(tmp_path / n / "with_margins.jsonl")]
               for n in ("whole", "cut")]  # fmt: skip
    assert margins[0] == margins[1]


def test_resuming_on_margins_of_other_options_is_refused(model_folder, data, tmp_path, capsys):
    line = words(model_folder, data[0], tmp_path / "run", *NEW, "--n-samples", "0")
    main(line)
    for name in OWNED:  # as if it had been stopped between the stages
        if (tmp_path / "run" / name).exists():
            (tmp_path / "run" / name).replace(tmp_path / name)
    with pytest.raises(SystemExit):
        main([*line, "--resume", "--reward-epochs", "1"])
    assert "reward_epochs was 3.0, is now 1.0" in capsys.readouterr().err


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=50))
def test_weight_facts_are_counts_of_the_weights(margins):
    objective = Madpo(c_max=4, tau=7)
    facts = madpo.weight_facts(objective, margins)
    h = np.array(margins, dtype=np.float32).astype(np.float64)
    c = 0.25 + 3.75 / (1 + 4 * np.exp(np.abs(h) - 7))  # (c_max - 1) / (1 - c_min) is 4
    w = np.where(h > -7, (1 + np.exp(-h)) / (1 + np.exp(-c * h)), 1.0)
    assert facts["mean weight of a pair"] == pytest.approx(w.mean(), rel=1e-4)
    assert facts["share of margins below 0"] == np.mean(np.array(margins) < 0)
    assert facts["share of weights below 0.1"] == pytest.approx(np.mean(w < 0.1), abs=0.021)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--cross-fit", "1"], "cross_fit must be 0, or 2 and more"),
        (["--cross-fit", "33"], "found 32 prompts for 33"),
        (["--reward-model", "nowhere/at/all"], "found no such folder"),
        (["--reward-model", "a/b", "--cross-fit", "2"], "exclude each other"),
        (["--reward-model", "a/b", "--calibrate"], "melior margins --calibrate first"),
        (["--calibrate", "--validation-share", "0"], "calibrate needs pairs held out"),
        (["--tau", "0"], "tau must be above 0"),
        (["--c-max", "0.5"], "c_max must be at least 1"),
        (["--tau-percentile", "101"], "tau_percentile must be at least 0 and at most 100"),
        (["--truncation-mode", "keep_start"], "judge the same answers"),
        (["--reward-epochs", "0"], "reward_epochs must be above 0"),
        (["--resume"], "a run to resume is needed; found none"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(more, said, model_folder, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words(model_folder, data[0], tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_margins_in_the_pairs_leave_nothing_to_calibrate(model_folder, tmp_path, capsys):
    given = write_pairs(tmp_path / "p.jsonl", 0, 16, margin=lambda i, _: 1.0)
    with pytest.raises(SystemExit):
        main(words(model_folder, given, tmp_path / "run", "--calibrate"))
    assert "found pairs that hold margins" in capsys.readouterr().err

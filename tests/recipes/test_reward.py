"""Training a reward model, end to end on a tiny model: gain, best checkpoint, resume, folds."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from melior.cli import main
from melior.recipes import reward
from tests.tiny import tiny_folder

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")


def write_pairs(path, start, stop, *, flipped=0.0):
    """Pairs whose chosen answer is polite, but for a share drawn at random whose sides swap."""
    dice, rows = random.Random(0), []
    for i in range(start, stop):
        polite = f"thank you, {WORDS[(i + 3) % 10]}"
        rude = f"the {WORDS[(i + 5) % 10]} jumps"
        if dice.random() < flipped:
            polite, rude = rude, polite
        prompt = f"what about {WORDS[i % 10]} {i}?"
        rows.append({"prompt": prompt, "chosen": polite, "rejected": rude, "id": i})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "train.jsonl", 0, 40), write_pairs(
        tmp_path / "held.jsonl", 50, 70
    )


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(model_folder, data, out, *more):
    return ["train-reward", "--model", str(model_folder), "--data", data, "--out", str(out),
            "--learning-rate", "1e-2", "--batch-size", "8", *more]  # fmt: skip


def test_tiny_runs_twice_to_the_same_bits(model_folder, data, tmp_path):
    weights, losses = [], []
    for name in ("a", "b"):
        reward.run(reward.Config.tiny(str(model_folder), data[0], str(tmp_path / name)))
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
        found = rows(tmp_path / name / "metrics.jsonl")
        losses.append([row["loss"] for row in found if "loss" in row])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("adapter", [[], ["--lora-r", "4"]])
def test_held_out_pairs_are_ranked_right(seed, adapter, model_folder, data, tmp_path):
    main(command(model_folder, data[0], tmp_path / "run", "--eval-data", data[1], "--epochs", "4",
                 "--seed", str(seed), *adapter))  # fmt: skip
    evaluation = read(tmp_path / "run" / "evaluation.json")
    ranked, loss = evaluation["comparisons"]
    assert ranked["name"] == "held-out pairs ranked right"
    assert ranked["after"] >= 0.95
    assert ranked["n"] == 20
    assert loss["after"] < 0.3
    found = rows(tmp_path / "run" / "metrics.jsonl")
    names = {"loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "grad_norm"}
    assert all(names <= row.keys() for row in found if "loss" in row)
    assert all(row["min_reward"] <= row["mean_reward"] <= row["max_reward"] for row in found
               if "loss" in row)  # fmt: skip
    judged = [row for row in found if "eval_loss" in row]
    assert len(judged) == 4
    assert {f"eval_{name}" for name in names - {"grad_norm"}} <= judged[0].keys()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    samples = rows(tmp_path / "run" / "samples.jsonl")
    assert len(samples) == 8
    assert samples[0]["after"].startswith("chosen:\nthank you")
    assert samples[0]["score_after"] > samples[0]["score_before"]


def test_the_saved_folder_is_judged_and_loads_in_plain_transformers(model_folder, data, tmp_path):
    main(command(model_folder, data[0], tmp_path / "run", "--eval-data", data[1], "--epochs", "3",
                 "--dtype", "fp32"))  # fmt: skip
    folder = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = []
    for row in rows(tmp_path / "held.jsonl"):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]},
                 {"role": "assistant", "content": row[side]}], tokenize=False)
            for side in ("chosen", "rejected")
        ]  # fmt: skip
        asked = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            better, worse = model(asked.input_ids, attention_mask=asked.attention_mask).logits
        right.append(bool(better > worse))
    accuracy = read(tmp_path / "run" / "evaluation.json")["comparisons"][0]["after"]
    assert sum(right) / len(right) == accuracy
    card = (folder / "README.md").read_text(encoding="utf-8")
    for needed in ("text-classification", "reward-model", "2009.01325", "sha256", "pipeline("):
        assert needed in card


def test_training_stops_and_keeps_the_best_step(model_folder, tmp_path):
    """Noise labels and a high rate: soon nothing gets better, and the best is what is saved."""
    noisy = write_pairs(tmp_path / "noisy.jsonl", 0, 60, flipped=0.5)
    main(command(model_folder, noisy, tmp_path / "run", "--epochs", "40", "--patience", "2",
                 "--eval-steps", "3", "--validation-share", "0.3", "--dtype", "fp32",
                 "--lr-scheduler-type", "constant"))  # fmt: skip
    found = rows(tmp_path / "run" / "metrics.jsonl")
    judged = {row["step"]: row["eval_loss"] for row in found if "eval_loss" in row}
    best = min(judged, key=lambda step: judged[step])
    last = max(judged)
    assert last == best + 6 < 200
    evaluation = read(tmp_path / "run" / "evaluation.json")
    assert evaluation["title"].endswith(f"step {best}")
    assert evaluation["comparisons"][1]["after"] == pytest.approx(judged[best], rel=1e-6)
    notes = read(tmp_path / "run" / "run.json")["notes"]
    assert any("18 of 60 rows are held out" in note for note in notes)


def test_a_reward_model_that_comes_in_is_not_made_worse(model_folder, data, tmp_path):
    main(command(model_folder, data[0], tmp_path / "first", "--epochs", "4", "--dtype", "fp32"))
    first = tmp_path / "first" / "model"
    against = write_pairs(tmp_path / "against.jsonl", 0, 16, flipped=1.0)
    main(command(first, against, tmp_path / "second", "--eval-data", data[1], "--epochs", "2",
                 "--dtype", "fp32"))  # fmt: skip
    weights = [load_file(f / "model.safetensors") for f in (first, tmp_path / "second" / "model")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("kill_after", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_kill_9_and_resume_end_in_the_same_bits(kill_after, model_folder, data, tmp_path):
    def words(name):
        more = ["--epochs", "3", "--save-steps", "2", "--eval-steps", "3", "--patience", "2",
                "--lora-r", "4", "--lora-dropout", "0.2"]  # fmt: skip
        return [sys.executable, "-m", "melior", *command(model_folder, data[0], tmp_path / name,
                                                         *more)]  # fmt: skip

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(words("whole"), check=True, **quiet)
    running = subprocess.Popen(words("cut"), **quiet)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= kill_after:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    running.wait()
    assert running.returncode == -signal.SIGKILL
    subprocess.run([*words("cut"), "--resume"], check=True, **quiet)
    whole, cut = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    seen = [
        [(row["step"], row.get("loss"), row.get("eval_loss"))
         for row in rows(tmp_path / n / "metrics.jsonl")] for n in ("whole", "cut")
    ]  # fmt: skip
    assert seen[0] == seen[1]


def test_portions_do_not_change_the_numbers(model_folder, data, tmp_path):
    losses = []
    for budget in ("16", "100000"):
        out = tmp_path / budget
        extras = ["--center-rewards-coefficient", "0.1", "--label-smoothing", "0.1"]
        main(command(model_folder, data[0], out, "--dtype", "fp32", "--max-tokens", budget,
                     *extras))  # fmt: skip
        found = rows(out / "metrics.jsonl")
        losses.append([row["loss"] for row in found if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_cross_fitted_margins_know_nothing_of_their_own_label(model_folder, tmp_path):
    """Labels are coin flips: a model learns its own by heart, and can know nothing of others.

    So margins of unseen pairs agree with half of the labels; of 60, three errors are 0.19.
    """
    noisy = write_pairs(tmp_path / "noisy.jsonl", 0, 60, flipped=0.5)
    main(command(model_folder, noisy, tmp_path / "run", "--epochs", "15", "--folds", "3",
                 "--validation-share", "0", "--n-samples", "0", "--dtype", "fp32"))  # fmt: skip
    main(["margins", noisy, "--reward-model", str(tmp_path / "run" / "model"), "--out",
          str(tmp_path / "seen.jsonl"), "--dtype", "fp32"])  # fmt: skip
    seen, unseen = rows(tmp_path / "seen.jsonl"), rows(tmp_path / "run" / "cross_fitted.jsonl")
    assert [row["id"] for row in seen] == [row["id"] for row in unseen] == list(range(60))
    agree = [sum(row["margin"] > 0 for row in side) / 60 for side in (seen, unseen)]
    assert agree[0] >= 0.9
    assert abs(agree[1] - 0.5) < 0.2
    models = {row["reward_model"]["name"] for row in unseen}
    assert len(models) == 3
    for row in unseen:
        trained = rows(
            tmp_path / "run" / f"{row['reward_model']['name'].split('/')[-2]}-others.jsonl"
        )
        assert row["id"] not in {one["id"] for one in trained}


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_other_families_learn_too(family, data, tmp_path):
    folder = tiny_folder(tmp_path / "lm", family, template=None)
    main(command(folder, data[0], tmp_path / "run", "--eval-data", data[1], "--epochs", "4"))
    assert read(tmp_path / "run" / "evaluation.json")["comparisons"][0]["after"] >= 0.9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--folds", "1"], "folds must be 0, or 2 and more"),
        (["--label-smoothing", "0.5"], "label_smoothing must be at least 0 and below 0.5"),
        (["--validation-share", "1"], "validation_share must be at least 0 and below 1"),
        (["--patience", "-1"], "patience must be at least 0"),
        (["--truncation-mode", "keep_start"], "a reward is read at an answer's end"),
        (["--kl-budget", "5"], "kl_budget is for models that answer"),
        (["--folds", "41", "--max-steps", "1"], "found 40 prompts for 41"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(more, said, model_folder, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command(model_folder, data[0], tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err

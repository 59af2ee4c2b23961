"""Training a pairwise model, end to end on a tiny one: gain, orders, resume, what it refuses."""

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
from melior.data.files import as_group, read_pairs
from melior.models.pairwise import load_pairwise_model
from melior.options import ModelOptions
from melior.recipes import pairwise
from melior.rewards.pairwise import PairwiseScorer
from tests.recipes.test_reward import read, rows, write_pairs


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "train.jsonl", 0, 40), write_pairs(
        tmp_path / "held.jsonl", 50, 70
    )


def command(model_folder, data, out, *more):
    return ["train-pairwise", "--model", str(model_folder), "--data", data, "--out", str(out),
            "--learning-rate", "1e-2", "--batch-size", "8", *more]  # fmt: skip


def test_tiny_runs_twice_to_the_same_bits(model_folder, data, tmp_path):
    weights, losses = [], []
    for name in ("a", "b"):
        pairwise.run(pairwise.Config.tiny(str(model_folder), data[0], str(tmp_path / name)))
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
        found = rows(tmp_path / name / "metrics.jsonl")
        losses.append([row["loss"] for row in found if "loss" in row])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("adapter", [[], ["--lora-r", "4"]])
def test_held_out_pairs_are_ranked_right_in_both_orders(
    seed, adapter, model_folder, data, tmp_path
):
    out = tmp_path / "run"
    main(command(model_folder, data[0], out, "--eval-data", data[1], "--epochs", "8",
                 "--dtype", "fp32", "--seed", str(seed), *adapter))  # fmt: skip
    evaluation = read(out / "evaluation.json")
    ranked, loss, by_order = evaluation["comparisons"]
    assert ranked["name"] == "held-out pairs ranked right"
    assert ranked["after"] >= 0.9
    assert ranked["n"] == 20
    assert loss["after"] < min(0.4, loss["before"])
    assert by_order["name"] == "verdicts that change with the order"
    assert by_order["after"] <= 0.2
    found = rows(out / "metrics.jsonl")
    assert 0 < found[0]["mean_letters"] < found[-2]["mean_letters"] <= 1
    assert any("eval_loss" in row for row in found)
    assert (out / "report.html").stat().st_size > 10_000
    # What the run says of held-out pairs is what the saved folder says of them.
    model = load_pairwise_model(ModelOptions(str(out / "model"), dtype="fp32"), trainable=False)
    groups = [as_group(pair) for pair in read_pairs([data[1]])]
    scored = list(PairwiseScorer(model, max_tokens=2000).groups(groups))
    margins = [group.facts["comparisons"][0][1] for group in scored]
    assert sum(m > 0 for m in margins) / 20 == ranked["after"]
    assert sum(margins) / 20 == pytest.approx(evaluation["facts"]["mean margin"], rel=1e-4)
    orders = [group.facts["orders"] for group in scored]
    assert sum(own[0][1] * own[1][0] > 0 for own in orders) / 20 == by_order["after"]


def test_the_folder_scores_and_is_evaluated_from_the_command_line(model_folder, data, tmp_path):
    main(command(model_folder, data[0], tmp_path / "run", "--epochs", "8", "--dtype", "fp32"))
    folder = str(tmp_path / "run" / "model")
    with open(tmp_path / "groups.jsonl", "w", encoding="utf-8") as file:
        for row in rows(tmp_path / "held.jsonl"):
            answers = [row["rejected"], row["chosen"], row["chosen"] + "!"]
            group = {"prompt": row["prompt"], "candidates": [{"response": a} for a in answers]}
            file.write(json.dumps(group) + "\n")
    main(["score", str(tmp_path / "groups.jsonl"), "--with", folder, "--dtype", "fp32",
          "--out", str(tmp_path / "scored.jsonl")])  # fmt: skip
    scored = rows(tmp_path / "scored.jsonl")
    ranked = [max(row["candidates"], key=lambda one: one["score"]) for row in scored]
    best = [one["response"][0]["content"] for one in ranked]
    assert sum(not one.startswith("the ") for one in best) >= 18
    main(["evaluate", "reward", "--data", data[1], "--with", folder, "--dtype", "fp32",
          "--out", str(tmp_path / "verdict")])  # fmt: skip
    found = read(tmp_path / "verdict" / "evaluation.json")["scorers"][0]
    assert found["accuracies"]["everything"]["accuracy"] >= 0.9
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    for needed in ("2405.07863", "sha256", "[RESPONSE A]", "AutoModelForCausalLM"):
        assert needed in card


def test_each_chosen_answer_stands_in_one_slot_that_the_seed_draws(model_folder, data):
    from melior.stages.data import prepare

    config = pairwise.Config.tiny(str(model_folder), data[0], "none")
    plan = pairwise.plan(config)
    chat = plan.kind.chat(plan.model)
    groups = prepare(
        [data[0]], chat, plan.data, data=plan.kind.data, encode=plan.kind.encode, seed=0
    ).groups
    drawn = [plan.kind.learned(groups, seed) for seed in (0, 0, 1)]
    a, b = (chat.tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    letters = [[one.answers[0].tokens[-1] for one in own] for own in drawn]
    assert letters[0] == letters[1] != letters[2]
    assert 8 <= letters[0].count(a) <= 32
    assert set(letters[0]) == {a, b}
    for group in drawn[0]:
        better, worse = group.answers
        assert better.tokens[:-1] == worse.tokens[:-1]
        text = chat.tokenizer.decode(better.tokens)
        thanks = text.index("thank you")
        assert (thanks < text.index("[RESPONSE B]")) == (better.tokens[-1] == a)


@pytest.mark.slow  # its loop is that of `dpo` and `reward`, killed in every run
@pytest.mark.parametrize("kill_after", [3, 8])
def test_kill_9_and_resume_end_in_the_same_bits(kill_after, model_folder, data, tmp_path):
    def words(name):
        more = ["--epochs", "3", "--save-steps", "2", "--eval-steps", "3", "--patience", "2",
                "--lora-r", "4", "--lora-dropout", "0.2"]  # fmt: skip
        return [sys.executable, "-m", "melior",
                *command(model_folder, data[0], tmp_path / name, *more)]  # fmt: skip

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
        main(command(model_folder, data[0], out, "--dtype", "fp32", "--max-tokens", budget))
        found = rows(out / "metrics.jsonl")
        losses.append([row["loss"] for row in found if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("mode", ["drop", "keep_end"])
def test_long_prompts_are_counted_whether_cut_or_left_out(mode, model_folder, tmp_path):
    path = tmp_path / "long.jsonl"
    write_pairs(path, 0, 16)
    found = rows(path)
    for row in found[:4]:
        row["prompt"] = "the quick brown fox " * 30 + row["prompt"]
    found[5]["chosen"] = "the quick brown fox " * 60
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    out = tmp_path / "run"
    main(command(model_folder, str(path), out, "--max-length", "150", "--truncation-mode", mode,
                 "--max-long-share", "0.5", "--validation-share", "0"))  # fmt: skip
    train = read(out / "data.json")["train"]
    notes = read(out / "run.json").get("notes", [])
    if mode == "drop":
        assert len(train["left_out"]) == 5
    else:
        assert [origin.rpartition(":")[2] for origin in train["left_out"]] == ["6"]
        assert "4 pairs, too long, lost the start of their prompt" in notes


def test_ties_teach_both_letters_alike(model_folder, tmp_path):
    """A pair of which nobody knows the better one pulls the verdict to one half."""
    path = tmp_path / "ties.jsonl"
    write_pairs(path, 0, 24)
    tied = [row | {"chosen_share": 0.5} for row in rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in tied), encoding="utf-8")
    out = tmp_path / "run"
    main(command(model_folder, str(path), out, "--epochs", "8", "--validation-share", "0",
                 "--dtype", "fp32"))  # fmt: skip
    last = [row for row in rows(out / "metrics.jsonl") if "loss" in row][-1]
    assert last["loss"] == pytest.approx(0.693, abs=0.1)
    assert last["mean_letters"] > 0.9


def test_what_cannot_be_compared_is_refused(model_folder, data, tmp_path, capsys):
    lists = tmp_path / "lists.jsonl"
    candidates = [{"response": w, "score": i} for i, w in enumerate(("a", "b", "c"))]
    lists.write_text(json.dumps({"prompt": "x", "candidates": candidates}) + "\n")
    for more, needed in (
        (["--data", str(lists)], "lists.jsonl:1: a pairwise model learns from two answers at a"),
        (["--truncation-mode", "keep_start"], "truncation_mode must be drop or keep_end"),
        (["--kl-budget", "3"], "kl_budget is for models that answer"),
        (["--chat-template", "plain"], "give --chat-template chatml"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command(model_folder, data[0], tmp_path / "run", *more))
        assert stopped.value.code == 2
        assert needed in capsys.readouterr().err
        assert not (tmp_path / "run" / "model").exists()

"""Learning under goals, end to end on a tiny model: control by the goal, what is left, mistakes."""

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
from melior.objectives.relative import Dpo
from melior.options import DataOptions, LoopOptions, ModelOptions
from melior.recipes import reward_augmented
from melior.recipes.reward_augmented import Config
from melior.stages.ratings.relabel import GOAL_FILE, read_goals

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")


def write_rated(path, start, stop, *, has_rules=False):
    """Pairs whose polite answer scores 10 and whose other one scores 1, but for two good losers."""
    rows = []
    for i in range(start, stop):
        row = {
            "prompt": f"{WORDS[i % 10]} {i}?",
            "chosen": f"thank you, {WORDS[(i + 3) % 10]}",
            "rejected": f"the {WORDS[(i + 5) % 10]} jumps",
            "score_chosen": 10,
            "score_rejected": 6 if i < 2 else 1,
        }
        rules = {"constraints": [{"name": "keyword", "word": "thank"}]}
        rows.append(row | (rules if has_rules else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "goal.txt").write_text("{g}\n", encoding="utf-8")
    return write_rated(tmp_path / "train.jsonl", 0, 48), write_rated(
        tmp_path / "held.jsonl", 50, 70
    )


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(model_folder, data, out, *more):
    return ["reward-augmented", "--model", str(model_folder), "--data", data, "--out", str(out),
            "--learning-rate", "1e-2", "--batch-size", "16", "--n-samples", "2", "--n-probes", "2",
            "--save-steps", "4", *more]  # fmt: skip


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_the_goal_decides_which_answer_is_likelier(seed, model_folder, data, tmp_path):
    """Without a goal the start model ranks 1 pair of 5 right; DPO could only rank all one way."""
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--eval-data", data[1], "--epochs", "8",
               "--seed", str(seed), "--goal-template", str(tmp_path / "goal.txt")))  # fmt: skip
    evaluation = read(out / "evaluation.json")
    found = {row["name"]: row for row in evaluation["subsets"]}
    assert found["better answer first, goal 10"]["after"] >= 0.95
    assert found["better answer first, goal 1"]["after"] <= 0.05
    assert found["better answer first, goal 10"]["before"] < 0.5
    last = evaluation["comparisons"][-1]
    assert last["name"] == "held-out pairs ranked right; before: without a goal"
    assert last["after"] == found["better answer first, goal 10"]["after"]
    assert evaluation["facts"]["good rejected answers"] == 2
    assert "log-probability of good rejected answers, change" in evaluation["facts"]
    assert evaluation["title"].endswith("under the top goal")
    said = read(out / "run.json")["notes"][-1]
    assert said == "96 pairs under goals, two for each of 48 pairs; left out 0"
    assert (out / "report.html").stat().st_size > 10_000


def test_what_was_unlearned_is_the_fall_of_good_losers(model_folder, data, tmp_path):
    """Computed again from the two folders, by plain transformers and one pair after another."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--dtype", "fp32", "--n-samples", "0"))
    facts = read(out / "evaluation.json")["facts"]
    told = read_goals(out / "model")
    top = told.text(told.level(10))
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    change = []
    for row in rows(tmp_path / "train.jsonl")[:2]:
        turns = [{"role": "system", "content": top}, {"role": "user", "content": row["prompt"]}]
        begin = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(begin, add_special_tokens=False)["input_ids"]
        said = tokenizer(row["rejected"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        both = []
        for folder in (model_folder, out / "model"):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            with torch.no_grad():
                logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
            picked = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])
            both.append(float(picked.sum()))
        change.append(both[1] - both[0])
    assert facts["log-probability of good rejected answers, change"] == pytest.approx(
        sum(change) / 2, abs=2e-3
    )


def test_answers_under_goals_are_judged_by_rules_where_there_are_some(model_folder, data, tmp_path):
    held = write_rated(tmp_path / "held.jsonl", 50, 70, has_rules=True)
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--eval-data", held, "--probes", "1"))
    evaluation = read(out / "evaluation.json")
    names = [row["name"] for row in evaluation["subsets"]]
    assert names[-4:] == ["better answer first, goal 1", "better answer first, goal 10",
                          "constraints met, goal 1", "constraints met, goal 10"]  # fmt: skip
    assert evaluation["comparisons"][-1]["name"] == "constraints met; before: without a goal"
    assert evaluation["facts"]["tokens per answer, goal 1"] > 0
    assert "constraints met, goal 10" in (out / "report.html").read_text(encoding="utf-8")


def test_held_out_pairs_are_asked_for_the_top_goal_and_nothing_of_their_own(
    model_folder, data, tmp_path
):
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--eval-data", data[1]))
    held = rows(out / "held_out_at_top.jsonl")
    assert len(held) == 20
    assert {row["prompt"][0]["content"].splitlines()[-1] for row in held} == {"Overall score: 10"}
    train = rows(out / "relabelled.jsonl")
    assert len(train) == 96
    assert {row["goal"] for row in train} == {1.0, 6.0, 10.0}


def test_the_folder_tells_how_a_goal_is_asked_for(model_folder, data, tmp_path):
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--lora-r", "2"))
    goals = read_goals(out / "model")
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert goals.text(goals.level(10)) in card
    assert goals.hash in card
    assert "2410.08067" in card
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "say"}\n', encoding="utf-8")
    main(["sample", "--model", str(out / "model"), "--prompts", str(prompts), "--goal", "10",
          "--max-new-tokens", "2", "--out", str(tmp_path / "said.jsonl")])  # fmt: skip
    assert rows(tmp_path / "said.jsonl")[0]["goal"] == 10.0


@pytest.mark.parametrize("name", ["simpo", "ipo", "beta-dpo", "gpo-offline"])
def test_any_loss_of_pairs_learns_from_them(name, model_folder, data, tmp_path):
    out = tmp_path / "run"
    main(words(model_folder, data[0], out, "--objective", name, "--n-samples", "0"))
    assert len(rows(out / "metrics.jsonl")) == 6
    assert (out / "model" / GOAL_FILE).exists()


def test_an_objective_takes_its_own_options(tmp_path):
    groups = ModelOptions("m"), DataOptions(("d",)), LoopOptions(str(tmp_path))
    config = Config(*groups, objective_options=("beta=0.05", "label_smoothing=0.3"))
    assert reward_augmented.objective_of(config) == Dpo(beta=0.05, label_smoothing=0.3)


@pytest.mark.slow  # its loop is that of `dpo` and `reward`, killed in every run
@pytest.mark.parametrize("kill_after", [2, 5])
def test_kill_9_and_resume_end_in_the_same_bits(kill_after, model_folder, data, tmp_path):
    def command(name):
        line = words(model_folder, data[0], tmp_path / name, "--epochs", "2", "--save-steps", "2")
        return [sys.executable, "-m", "melior", *line]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **quiet)
    running = subprocess.Popen(command("cut"), **quiet)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= kill_after:
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
    facts = [read(tmp_path / name / "evaluation.json")["facts"] for name in ("whole", "cut")]
    assert facts[0] == facts[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--objective", "kto"],
            "objective must learn from pairs, as goals make pairs; kto learns",
        ),
        (["--objective", "simp"], "did you mean 'simpo'"),
        (["--objective-options", "beta"], "objective_options must be name=value; found 'beta'"),
        (["--objective-options", "bata=1"], "'bata' is not an option; did you mean 'beta'?"),
        (["--objective-options", "beta=-1"], "beta must be above 0; found -1"),
        (["--truncation-mode", "keep_end"], "the goal stands at the prompt's head"),
        (["--probes", "11"], "probes must be at least 1 and at most 10"),
        (["--good", "0"], "good must be at least 1"),
        (["--n-probes", "-1"], "n_probes must be at least 0"),
        (["--scores", "quality"], "such as 'quality_chosen' and 'quality_rejected'"),
        (["--goal-high", "9"], "must lie from 1 to 9; found 10"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(more, said, model_folder, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words(model_folder, data[0], tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()

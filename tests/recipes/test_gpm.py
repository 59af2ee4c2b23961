"""GPM end to end on a tiny model: circles that no scalar can say, lists, soft labels, resume."""

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

from melior.cli import main
from melior.data.batches import GroupBatches, TokenValues
from melior.data.duels import duels
from melior.losses.general import general_preference, skew_score
from melior.models.general import Geometry, start_general_model
from melior.options import DataOptions, LoopOptions, ModelOptions
from melior.recipes import gpm
from melior.stages.data import prepare

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")
ROUND = ("thank you", "hello there", "how are you")
"""Each beats the next, and the last the first."""


def answers(i):
    return [f"{said}, {WORDS[(i + 3 * place) % 10]}" for place, said in enumerate(ROUND)]


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def circles(path, start, stop):
    rows = [
        {"prompt": f"what about {WORDS[i % 10]} {i}?", "chosen": answers(i)[place],
         "rejected": answers(i)[(place + 1) % 3]}
        for i in range(start, stop) for place in range(3)
    ]  # fmt: skip
    return put(path, random.Random(0).sample(rows, len(rows)))


@pytest.fixture
def data(tmp_path):
    return circles(tmp_path / "train.jsonl", 0, 40), circles(tmp_path / "held.jsonl", 50, 60)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(recipe, model_folder, data, out, *more):
    return [recipe, "--model", str(model_folder), "--data", data, "--out", str(out), "--dtype",
            "fp32", "--learning-rate", "1e-3", "--batch-size", "8", *more]  # fmt: skip


def test_tiny_runs_twice_to_the_same_bits(model_folder, data, tmp_path):
    weights = []
    for name in ("a", "b"):
        gpm.run(gpm.Config.tiny(str(model_folder), data[0], str(tmp_path / name)))
        folder = tmp_path / name / "model"
        gate = load_file(folder / "gate" / "model.safetensors")
        weights.append(load_file(folder / "model.safetensors") | gate)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_circles_are_learned_scored_and_told(model_folder, data, tmp_path, capsys):
    """Of unseen prompts; of a scalar, by no luck, more than two of three links of a circle."""
    held = ["--eval-data", data[1], "--epochs", "12", "--patience", "0", "--seed", "2"]
    right = {}
    for recipe in ("gpm", "train-reward"):
        main(command(recipe, model_folder, data[0], tmp_path / recipe, *held))
        ranked = read(tmp_path / recipe / "evaluation.json")["comparisons"][0]
        assert ranked["n"] == 30
        right[recipe] = ranked["after"]
    assert right["gpm"] >= 0.95
    assert right["train-reward"] <= 0.67
    run = tmp_path / "gpm"
    lists = [
        {"prompt": f"what about {WORDS[i % 10]} {i}?",
         "candidates": [{"response": one, "score": s} for one, s in zip(answers(i), (3, 2, 1),
                                                                        strict=True)]}
        for i in range(50, 60)
    ]  # fmt: skip
    source = put(tmp_path / "lists.jsonl", lists)
    main(["score", source, "--with", str(run / "model"), "--out", str(tmp_path / "scored.jsonl"),
          "--dtype", "fp32"])  # fmt: skip
    for row in rows(tmp_path / "scored.jsonl"):
        logits = torch.tensor(row["comparisons"])
        assert torch.equal(logits, -logits.T)
        assert logits[0, 1] > 0 and logits[1, 2] > 0 and logits[2, 0] > 0
    main(["evaluate", "reward", "--data", source, "--with", str(run / "model"), "--dtype", "fp32",
          "--out", str(tmp_path / "judged")])  # fmt: skip
    assert "10 of 10" in capsys.readouterr().out
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    for needed in ("text-classification", "2410.02197", "melior score", "skew"):
        assert needed in card
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow  # its loop is that of `reward`, killed in every run
@pytest.mark.parametrize("kill_after", [3, 8])
def test_kill_9_and_resume_end_in_the_same_bits(kill_after, model_folder, data, tmp_path):
    def words(name):
        more = ["--epochs", "1", "--save-steps", "2", "--eval-steps", "4", "--dimensions", "2"]
        said = command("gpm", model_folder, data[0], tmp_path / name, *more, "--lora-r", "4")
        return [sys.executable, "-m", "melior", *said]

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
    for file in ("model.safetensors", "gate/model.safetensors"):
        whole, cut = (load_file(tmp_path / name / "model" / file) for name in ("whole", "cut"))
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
    seen = [
        [(row["step"], row.get("loss"), row.get("eval_loss"))
         for row in rows(tmp_path / n / "metrics.jsonl")] for n in ("whole", "cut")
    ]  # fmt: skip
    assert seen[0] == seen[1]


MIXED = [
    {"prompt": "what about the fox?", "chosen": "it jumps", "rejected": "no"},
    {"prompt": "what about the dog?", "chosen": "it is lazy", "rejected": "no", "weight": 2.0},
    {"prompt": "hello", "chosen": "hello there", "rejected": "Paris", "chosen_share": 0.7},
    {"prompt": "hello", "chosen": "the capital", "rejected": "thank you", "chosen_share": 0.2},
    {"prompt": "hello you", "chosen": "hello", "rejected": "the fox", "chosen_share": 0.5},
    {"prompt": "what is the capital of France?",
     "candidates": [{"response": said, "score": score} for said, score in
                    (("Paris", 3), ("a fox", 1), ("the dog", 1), ("it is Paris", 2))]},
]  # fmt: skip


def mixed(folder):
    """Pairs and lists, each in a file of their own."""
    return put(folder / "pairs.jsonl", MIXED[:-1]), put(folder / "lists.jsonl", MIXED[-1:])


@pytest.mark.parametrize("budget", [40, 10**6])
def test_the_objective_is_the_papers_on_answers_read_alone(budget, model_folder, tmp_path):
    """Pairs, weights, soft labels and lists with ties; the equation by hand, in any portions."""
    from melior.stages.reward_models.train import reward_objective

    sources = mixed(tmp_path)
    config = gpm.Config(
        ModelOptions(model=str(model_folder)), DataOptions(data=sources),
        LoopOptions(out=str(tmp_path / "run")), dimensions=4, margin=0.05,
    )  # fmt: skip
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    model = start_general_model(options, Geometry(4), "mean-one", seed=2)
    model.reward.model.double(), model.gate.double()
    groups = prepare(sources, model.chat, config.data, data="comparisons", seed=0).groups
    loader = GroupBatches(
        groups, TokenValues.zeros(groups), batch_size=6, max_tokens=budget, seed=0
    )
    objective = reward_objective(gpm.kind(config), model, [])
    parts = [objective(part) for part in loader.portions(range(6))]
    loss = sum(float(own.detach()) for own, _ in parts)
    accuracy = sum(found["accuracy"] for _, found in parts)

    def point(tokens):
        hidden = model.reward.core.model(input_ids=torch.tensor([list(tokens)])).last_hidden_state
        return hidden[0, -1]

    wanted, right, decided = 0.0, 0.0, 0
    with torch.no_grad():
        for group in groups:
            end = point(group.answers[0].tokens[: group.answers[0].n_prompt])
            z = (model.gate.logits.weight @ end) / 32**0.5
            lam = 2 * z.exp() / z.exp().sum()
            vectors = [model.reward.core.score.weight @ point(one.tokens) for one in group.answers]
            vectors = [vector / vector.norm() for vector in vectors]
            own, ranked = [], []
            for i in range(len(vectors)):
                for j in range(i + 1, len(vectors)):
                    v, u = vectors[i], vectors[j]
                    s = float(lam[0] * (v[0] * u[1] - v[1] * u[0])
                              + lam[1] * (v[2] * u[3] - v[3] * u[2]))  # fmt: skip
                    gap = group.scores[i] - group.scores[j]
                    share = group.share if gap > 0 else 1 - group.share if gap < 0 else 0.5
                    if share < 0.5:
                        s, share = -s, 1 - share
                    asked = 0.05 if share > 0.5 else 0.0  # nothing of a tie
                    x = torch.tensor((s - asked) / 0.1, dtype=torch.float64)
                    win, lose = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
                    own.append(float(-share * win.log() - (1 - share) * lose.log()))
                    ranked += [s > 0] if share > 0.5 else []
            wanted += group.weight * sum(own) / len(own) / 6
            if ranked:
                right, decided = right + sum(ranked) / len(ranked), decided + 1
    assert decided == 5
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert accuracy == pytest.approx(right / 5)


def test_mixed_rows_train_and_are_judged(model_folder, tmp_path):
    pairs, lists = mixed(tmp_path)
    main(command("gpm", model_folder, pairs, tmp_path / "run", "--eval-data", pairs, lists,
                 "--data", pairs, lists, "--allow-lint-errors", "--epochs", "6"))  # fmt: skip
    (ranked, loss) = read(tmp_path / "run" / "evaluation.json")["comparisons"]
    assert ranked["n"] == 5
    assert loss["n"] == 6
    assert loss["after"] < loss["before"]
    samples = rows(tmp_path / "run" / "samples.jsonl")
    assert samples[-1]["after"].startswith("scored 3:\nParis\n\nscored 2:\nit is Paris")


def test_contradictions_are_no_errors_and_pull_scores_to_0(model_folder, tmp_path):
    both = [{"prompt": f"hello {i // 2}", "chosen": ("yes", "no")[i % 2],
             "rejected": ("no", "yes")[i % 2]} for i in range(24)]  # fmt: skip
    source = put(tmp_path / "both.jsonl", both)
    main(command("gpm", model_folder, source, tmp_path / "run", "--epochs", "12",
                 "--validation-share", "0"))  # fmt: skip
    findings = read(tmp_path / "run" / "data.json")["train"]["findings"]
    (said,) = [one for one in findings if one["code"] == "contradictions"]
    assert (said["level"], said["count"]) == ("warning", 12)
    last = rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["loss"] == pytest.approx(0.693, abs=0.03)


def test_beta_falls_where_embeddings_lie_on_one_circle(model_folder, data, tmp_path):
    def config(**changes):
        return gpm.Config(ModelOptions(model="m"), DataOptions(data=("d",)),
                          LoopOptions(out="o"), **changes)  # fmt: skip

    assert [config().beta_at(share) for share in (0.0, 0.3, 1.0)] == [0.1] * 3
    assert [config(dimensions=2, l2=False).beta_at(share) for share in (0.0, 1.0)] == [0.1, 0.1]
    falling = [config(dimensions=2).beta_at(share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert falling == pytest.approx([1.0, 0.1**0.5, 0.1, 0.1])
    assert config(beta_start=0.4).beta_at(0.25) == pytest.approx(0.2)
    main(command("gpm", model_folder, data[0], tmp_path / "run", "--dimensions", "2",
                 "--max-steps", "2", "--validation-share", "0"))  # fmt: skip
    (note,) = read(tmp_path / "run" / "run.json")["notes"]
    assert "wind the wrong way, so beta falls from 1 to 0.1" in note


def test_the_batchs_beta_is_that_of_its_step(model_folder, data, tmp_path):
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    model = start_general_model(options, Geometry(2), "none", seed=2)
    config = gpm.Config(options, DataOptions(data=(data[0],)), LoopOptions(out="o"), dimensions=2,
                        gate="none")  # fmt: skip
    groups = prepare([data[0]], model.chat, config.data, data="comparisons", seed=0).groups[:8]
    loader = GroupBatches(groups, TokenValues.zeros(groups), batch_size=8, max_tokens=10**6, seed=0)
    for step, (batch,) in enumerate(loader.iterate(4)):
        pairs = duels(batch)
        with torch.no_grad():
            found = gpm.kind(config).judged(model, batch, pairs)
            vectors, gate = model.embed(batch.forest, batch.prompts)
        score = skew_score(vectors[pairs.better], vectors[pairs.worse], gate)
        beta = (1.0, 0.1**0.5, 0.1, 0.1)[step]
        wanted = general_preference(score, torch.ones_like(score), beta=beta)
        assert torch.allclose(found.losses, wanted, rtol=1e-5)
        assert torch.allclose(found.margins, score / 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dimensions", "5"], "dimensions must be even, two to a plane; found 5; take 6"),
        (["--beta", "0"], "beta must be above 0"),
        (["--gate", "soft"], "gate"),
        (["--truncation-mode", "keep_start"], "an answer is read at its end"),
        (["--kl-budget", "5"], "kl_budget is for models that answer"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(more, said, model_folder, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command("gpm", model_folder, data[0], tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("share", ["1.2", "-0.1", '"often"'])
def test_a_share_that_is_none_names_its_row(share, model_folder, tmp_path, capsys):
    row = {"prompt": "hello", "chosen": "yes", "rejected": "no", "chosen_share": json.loads(share)}
    source = put(tmp_path / "bad.jsonl", [{**row, "chosen_share": 1.0}, row])
    with pytest.raises(SystemExit):
        main(command("gpm", model_folder, source, tmp_path / "run"))
    assert "bad.jsonl:2: 'chosen_share'" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["gpm", "train-pairwise"])
def test_held_out_rows_that_are_all_ties_end_no_run(recipe, model_folder, data, tmp_path):
    ties = [{"prompt": f"hello {i}", "chosen": "yes", "rejected": "no", "chosen_share": 0.5}
            for i in range(3)]  # fmt: skip
    held = put(tmp_path / "ties.jsonl", ties)
    run = tmp_path / "run"
    main(command(recipe, model_folder, data[0], run, "--eval-data", held, "--max-steps", "1"))
    found = read(run / "evaluation.json")
    assert found["comparisons"][0]["name"] == "log-loss of held-out pairs"
    assert found["facts"] == {}
    assert any("all held-out pairs are ties" in one for one in read(run / "run.json")["notes"])
    (judged,) = [row for row in rows(run / "metrics.jsonl") if "eval_loss" in row]
    assert "eval_accuracy" not in judged
    assert (run / "model" / "README.md").exists()
    assert (run / "report.html").exists()
    codes = [one["code"] for one in read(run / "data.json")["held_out"]["findings"]]
    assert "unread-shares" not in codes  # these recipes read them

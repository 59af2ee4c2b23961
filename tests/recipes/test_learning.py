"""The recipes that learn from pairs, end to end on a tiny model: gain, resume, saved folder."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from melior.cli import main
from melior.recipes import preference
from tests.tiny import tiny_folder, tiny_model

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")


def write_pairs(path, start, stop):
    """Pairs whose chosen answer is always polite: a rule that any model can learn."""
    rows = [
        {
            "prompt": f"what about {WORDS[i % 10]} {i}?",
            "chosen": f"thank you, {WORDS[(i + 3) % 10]}",
            "rejected": f"the {WORDS[(i + 5) % 10]} jumps",
            "subset": "even" if i % 2 else "odd",
        }
        for i in range(start, stop)
    ]
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


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_tiny_runs_twice_to_the_same_bits(name, model_folder, data, tmp_path):
    weights, losses = [], []
    for out in (tmp_path / "a", tmp_path / "b"):
        preference.run(preference.tiny(name, str(model_folder), data[0], str(out)))
        weights.append(load_file(out / "model" / "model.safetensors"))
        losses.append([row["loss"] for row in rows(out / "metrics.jsonl")])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("name", ["dpo", "simpo"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_held_out_pairs_are_ranked_better_than_before(name, seed, model_folder, data, tmp_path):
    main([
        name, "--model", str(model_folder), "--data", data[0], "--eval-data", data[1],
        "--out", str(tmp_path / "run"), "--learning-rate", "1e-2", "--epochs", "4",
        "--batch-size", "8", "--seed", str(seed), "--n-samples", "2",
    ])  # fmt: skip
    evaluation = read(tmp_path / "run" / "evaluation.json")
    ranked = evaluation["comparisons"][0]
    assert ranked["name"] == "held-out pairs ranked right"
    assert ranked["after"] >= 0.95
    assert ranked["n"] == 20
    assert {row["name"] for row in evaluation["subsets"]} == {"even", "odd"}
    assert evaluation["facts"]["KL to the start, nats per answer"] > 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_dpo_starts_at_log_2(model_folder, data, tmp_path):
    """With the policy still the reference, the loss is log 2 whatever the data."""
    preference.run(preference.tiny("dpo", str(model_folder), data[0], str(tmp_path / "run")))
    first = rows(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "lfm2"])
def test_experts_sinks_and_convolutions_learn_too(family, data, tmp_path):
    """On a forest, and where answers are computed one by one."""
    tiny_folder(tmp_path / family, family)
    main([
        "dpo", "--model", str(tmp_path / family), "--data", data[0], "--out", str(tmp_path / "run"),
        "--learning-rate", "1e-2", "--batch-size", "16", "--max-steps", "4", "--n-samples", "1",
    ])  # fmt: skip
    losses = [row["loss"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4) and losses[-1] < 0.6


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_portions_do_not_change_the_numbers(name, model_folder, data, tmp_path):
    """Accumulation is exact, token means included: sft_weight adds one."""
    losses = []
    for budget in ("16", "100000"):
        out = tmp_path / budget
        main([
            name, "--model", str(model_folder), "--data", data[0], "--out", str(out),
            "--learning-rate", "1e-2", "--batch-size", "8", "--dtype", "fp32", "--n-samples", "0",
            "--max-tokens", budget, "--sft-weight", "0.5",
        ])  # fmt: skip
        losses.append([row["loss"] for row in rows(out / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_saved_folder_generates_in_plain_transformers(model_folder, data, tmp_path):
    main([
        "dpo", "--model", str(model_folder), "--data", data[0], "--out", str(tmp_path / "run"),
        "--learning-rate", "1e-2", "--epochs", "8", "--batch-size", "8", "--sft-weight", "1",
    ])  # fmt: skip
    folder = tmp_path / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config._attn_implementation in ("sdpa", "eager")
    turns = [{"role": "user", "content": "what about fox 3?"}]
    asked = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0]
    assert "thank you" in tokenizer.decode(answer)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for needed in ("base_model:", "2305.18290", "beta", "sha256", "train.jsonl"):
        assert needed in card


def test_an_adapter_is_saved_merged_and_gives_the_same_numbers(model_folder, data, tmp_path):
    main([
        "dpo", "--model", str(model_folder), "--data", data[0], "--out", str(tmp_path / "run"),
        "--lora-r", "4", "--learning-rate", "3e-2", "--epochs", "3", "--batch-size", "8",
        "--dtype", "fp32", "--n-samples", "1",
    ])  # fmt: skip
    adapter = tmp_path / "run" / "model"
    assert (adapter / "adapter_model.safetensors").exists()
    assert rows(tmp_path / "run" / "metrics.jsonl")[-1]["rewards/margins"] > 0.5
    main(["merge", str(adapter), "--out", str(tmp_path / "whole"), "--dtype", "fp32"])

    from peft import AutoPeftModelForCausalLM

    asked = torch.tensor([[1, 20, 30, 40]])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(asked).logits
    wrapped = AutoPeftModelForCausalLM.from_pretrained(adapter)(asked).logits
    assert torch.allclose(whole, wrapped, atol=1e-4)
    start = AutoModelForCausalLM.from_pretrained(model_folder)(asked).logits
    assert not torch.allclose(whole, start, atol=1e-2)


def test_resuming_with_other_options_or_data_is_refused(model_folder, data, tmp_path, capsys):
    words = [
        "dpo", "--model", str(model_folder), "--data", data[0], "--out", str(tmp_path / "run"),
        "--dtype", "fp32", "--batch-size", "8", "--n-samples", "0",
    ]  # fmt: skip
    main(words)
    about = (tmp_path / "run" / "data.json").read_bytes()

    def is_refused(words, sentence):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--resume"])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert sentence in said and "set them back, or add --allow-changes" in said
        assert (tmp_path / "run" / "data.json").read_bytes() == about

    is_refused([*words, "--beta", "0.5"], "beta was 0.1, is now 0.5")
    is_refused([*words, "--learning-rate", "1e-3"], "learning_rate was 1e-06, is now 0.001")
    is_refused(["simpo", *words[1:]], "recipe was dpo, is now simpo")
    write_pairs(tmp_path / "train.jsonl", 5, 37)
    is_refused(words, "train data was")
    main([*words, "--learning-rate", "1e-3", "--resume", "--allow-changes"])


def test_a_run_that_finds_the_disk_full_says_so_and_goes_on_to_the_same_bits(
    model_folder, data, tmp_path, capsys
):
    """No file may grow beyond a limit, as on a disk that is full, from the first checkpoint on."""

    def words(name):
        return ["simpo", "--model", str(model_folder), "--data", data[0], "--out",
                str(tmp_path / name), "--learning-rate", "1e-2", "--batch-size", "8",
                "--save-steps", "2", "--n-samples", "0"]  # fmt: skip

    main(words("whole"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            main(words("cut"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "step-000002: a checkpoint must be written; found" in said
    assert "nothing half-written is left" in said and "go on with --resume" in said
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())
    assert read(tmp_path / "cut" / "run.json")["status"] == "failed"
    main([*words("cut"), "--resume"])
    whole, cut = (
        (tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "cut")
    )
    assert whole == cut


@pytest.mark.parametrize("kill_after", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_kill_9_and_resume_end_in_the_same_bits(kill_after, model_folder, data, tmp_path):
    def command(name):
        return [
            sys.executable, "-m", "melior", "simpo", "--model", str(model_folder), "--data",
            data[0], "--out", str(tmp_path / name), "--learning-rate", "1e-2", "--epochs", "3",
            "--batch-size", "8", "--save-steps", "2", "--n-samples", "0", "--lora-r", "4",
            "--lora-dropout", "0.2",
        ]  # fmt: skip

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
    if running.returncode != 0:  # else it was done before it could be killed, which proves nothing
        subprocess.run([*command("cut"), "--resume"], check=True, **quiet)
    whole, cut = (
        load_file(tmp_path / name / "model" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    steps = [
        [row["loss"] for row in rows(tmp_path / n / "metrics.jsonl")] for n in ("whole", "cut")
    ]
    assert steps[0] == steps[1]
    assert running.returncode == -signal.SIGKILL


def test_evaluating_on_the_way_changes_nothing(model_folder, data, tmp_path):
    """Dropout is off while held-out pairs are judged, and draws the same afterwards."""
    for steps in ("0", "1"):
        main([
            "simpo", "--model", str(model_folder), "--data", data[0], "--eval-data", data[1],
            "--out", str(tmp_path / steps), "--learning-rate", "1e-2", "--batch-size", "8",
            "--lora-r", "4", "--lora-dropout", "0.5", "--n-samples", "0", "--eval-steps", steps,
        ])  # fmt: skip
    left, right = (
        load_file(tmp_path / steps / "model" / "adapter_model.safetensors") for steps in ("0", "1")
    )
    assert all(torch.equal(left[name], right[name]) for name in left)
    rewards = [row for row in rows(tmp_path / "1" / "metrics.jsonl") if "eval_loss" in row]
    assert len(rewards) == 4


def test_resuming_on_another_base_model_is_refused(model_folder, data, tmp_path, capsys):
    words = [
        "dpo", "--model", str(model_folder), "--data", data[0], "--out", str(tmp_path / "run"),
        "--dtype", "fp32", "--batch-size", "8", "--n-samples", "0", "--lora-r", "2",
    ]  # fmt: skip
    main(words)
    tiny_model(seed=5).save_pretrained(model_folder)
    with pytest.raises(SystemExit):
        main([*words, "--resume"])
    assert "model was" in capsys.readouterr().err

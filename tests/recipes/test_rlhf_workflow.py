"""RLHF Workflow on a tiny model: the paper's rounds, its best iterate, kills, mistakes."""

import pytest
import torch
from safetensors.torch import load_file

from melior.cli import main
from melior.config import config_to_dict
from melior.recipes import rlhf_workflow
from tests.recipes.test_online import manifests, read, rows, same_weights, write_prompts


def words(model_folder, prompts, out, *more):
    return ["rlhf-workflow", "--model", str(model_folder), "--prompts", prompts, "--out", str(out),
            "--rounds", "2", "--n-prompts", "8", "--n-eval-prompts", "6", "--k", "4",
            "--max-new-tokens", "8", "--batch-size", "4", "--learning-rate", "1e-2",
            "--dtype", "fp32", *more]  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl")


def test_the_defaults_are_the_papers():
    """Sec. 4.1 and the table of conflicts: the paper's, not the scripts'."""
    config = rlhf_workflow.Config(
        rlhf_workflow.ModelOptions(model="m"),
        rlhf_workflow.PromptOptions(("p",)),
        rlhf_workflow.RoundLoop(out="o"),
    )
    found = config_to_dict(config)
    expected = {
        "rounds": 3, "k": 8, "temperatures": [1.0, 0.7], "top_p": 1.0, "beta": 0.1,
        "label_smoothing": 0.0, "epochs": 2.0, "batch_size": 128, "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "reference": "start",
        "history": "new", "warm_start": True, "length_penalty": 0.0, "keep": "best",
        "select": "best-and-worst", "min_margin": 1e-3, "max_length": 2048,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_it_is_online_learning_with_dpo_to_the_bit(model_folder, prompts, tmp_path):
    line = words(model_folder, prompts, tmp_path / "a")
    main(line)
    main(["online", *line[1:], "--out", str(tmp_path / "b"), "--epochs", "2",
          "--warmup-ratio", "0.03", "--max-length", "2048"])  # fmt: skip
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_the_iterate_with_the_best_held_out_reward_is_returned(model_folder, prompts, tmp_path):
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--rounds", "3"))
    means = [one["means"]["reward"] for one in manifests(out)]
    best = means.index(max(means))
    kept = out / f"round-{best}" / "learn" / "model" if best else model_folder
    a, b = (load_file(folder / "model.safetensors") for folder in (out / "model", kept))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    notes = " ".join(read(out / "run.json")["notes"])
    assert (f"of round {best} of 3" if best else "which none improved") in notes


def test_a_price_on_length_shortens_what_is_chosen(model_folder, prompts, tmp_path):
    """W3 on a model's own answers: chosen less rejected, in characters, falls with the price."""
    gaps = []
    for penalty in ("0", "0.01", "1"):
        out = tmp_path / penalty
        main(words(model_folder, prompts, out, "--rounds", "1", "--n-prompts", "16",
                   "--length-penalty", penalty))  # fmt: skip
        pairs = rows(out / "round-1" / "pairs.jsonl")
        sizes = [
            len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"]) for row in pairs
        ]
        gaps.append(sum(sizes) / len(sizes))
    assert gaps[0] >= gaps[1] >= gaps[2]
    assert gaps[2] < 0


def test_lists_are_refused(model_folder, prompts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(words(model_folder, prompts, tmp_path / "run", "--select", "all"))
    assert "select must give pairs" in capsys.readouterr().err

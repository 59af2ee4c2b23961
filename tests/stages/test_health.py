"""Runs are watched from their first step to their last answer; a wrong sign cannot look perfect."""

import json
import math
from functools import partial

import pytest
import torch

from melior.cli import main
from melior.data.batches import GroupBatches, TokenValues
from melior.losses.preference import dpo
from melior.objectives.table import OBJECTIVES, objective_kind
from melior.stages.health import of_data, start_loss
from melior.stages.judge import held_out_answers, held_out_metrics
from melior.stages.method import log_ratio_method
from melior.stages.preference import group_objective
from melior.stages.reference import token_log_probs
from tests.stages.test_preference import model, pairs  # noqa: F401  (fixtures)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_reward_rises_with_the_log_probability(name):
    assert objective_kind(name)().method().direction == 1.0


@pytest.mark.parametrize(("beta", "accuracy"), [(0.5, 1.0), (-0.5, 0.0)])
def test_a_negative_beta_cannot_look_perfect(beta, accuracy, model, pairs):  # noqa: F811
    """The reward's margin is as good as can be with either sign; the accuracy tells them apart."""
    method = log_ratio_method(partial(dpo, beta=beta), beta=beta)
    now = token_log_probs(model, pairs, max_tokens=512)
    # As if training had moved every chosen token up by 0.3 (down, for the wrong sign).
    n_scored = [answer.n_scored for group in pairs for answer in group.answers]
    is_chosen = torch.tensor([1.0, 0.0] * len(pairs)).repeat_interleave(torch.tensor(n_scored))
    shift = math.copysign(0.3, beta) * is_chosen
    reference = TokenValues(now.values - shift, now.lengths)
    (batch,) = GroupBatches(pairs, reference, batch_size=9, max_tokens=9999, seed=0).portions(
        range(9)
    )
    _, metrics = group_objective(model, method)(batch)
    assert metrics["rewards/margins"] > 0.1
    assert metrics["rewards/accuracies"] == accuracy
    held = held_out_metrics(held_out_answers(pairs, now, reference), method, "pairs")
    assert held["eval_rewards/accuracies"] == accuracy


@pytest.mark.parametrize(
    ("name", "loss"),
    [("dpo", math.log(2)), ("ipo", 25.0), ("apo-zero", 0.0), ("f-dpo", math.log(2)),
     ("simpo", None), ("kto", None), ("wpo", None), ("aot", None), ("cpo", None)],
)  # fmt: skip
def test_the_loss_of_a_model_that_is_its_own_reference(name, loss, pairs):  # noqa: F811
    found = start_loss(objective_kind(name)().method(), pairs)
    assert found == (None if loss is None else pytest.approx(loss, abs=1e-9))


def test_a_start_is_only_known_where_all_rows_lose_the_same(pairs):  # noqa: F811
    from dataclasses import replace

    method = objective_kind("dpo")().method()
    assert start_loss(method, [replace(pairs[0], weight=2.0), *pairs[1:]]) is None
    assert start_loss(replace(method, sft_weight=0.1), pairs) is None
    assert start_loss(objective_kind("r-dpo")().method(), pairs) is None


def write_pairs(path, n=40, repeated=0):
    rows = [{"prompt": f"what about {i}?", "chosen": f"thank you, fox {i}",
             "rejected": f"the dog {i} jumps"} for i in range(n - repeated)]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *rows[:repeated]])
    path.write_text(text, encoding="utf-8")
    return str(path)


def trained(folder, data, model_folder, *words, name="dpo"):
    main([
        name, "--model", str(model_folder), "--data", data, "--out", str(folder), "--dtype", "fp32",
        "--batch-size", "8", "--n-samples", "4", *words,
    ])  # fmt: skip
    kept = json.loads((folder / "health.json").read_text(encoding="utf-8"))["findings"]
    return {finding["code"]: finding for finding in kept}


HOT = ("--learning-rate", "3e-2", "--epochs", "12", "--lr-scheduler-type", "constant")


def test_a_run_at_a_rate_far_too_high_is_found_out(model_folder, tmp_path, capsys):
    data = write_pairs(tmp_path / "pairs.jsonl", repeated=8)
    symptoms = trained(tmp_path / "run", data, model_folder, *HOT, "--kl-budget", "0.5")
    assert {"saturation", "kl-budget", "repeated-rows"} <= set(symptoms)
    assert "20% of the rows" in symptoms["repeated-rows"]["text"]
    assert symptoms["saturation"]["last"] == 60
    said = capsys.readouterr()
    notes = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["notes"]
    for finding in symptoms.values():
        start = finding["text"][:20]  # what follows are the numbers of that moment
        assert " ".join(said.err.split()).count(start) == 1
        assert sum(note.startswith(start) for note in notes) == 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="health"' in page and "KL budget" in page and 'class="band"' in page


def test_a_calm_run_is_not_warned_of(model_folder, tmp_path):
    """Its rule is so easy that accuracy saturates: a note, and no more."""
    data = write_pairs(tmp_path / "pairs.jsonl", n=160)
    words = ("--learning-rate", "2e-4", "--epochs", "2")
    symptoms = trained(tmp_path / "run", data, model_folder, *words)
    assert set(symptoms) == {"saturation"}
    assert symptoms["saturation"]["level"] == "note"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What helps" in page


def test_a_resumed_run_finds_what_one_without_a_stop_finds(model_folder, tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = (*HOT, "--warmup-ratio", "0", "--n-samples", "0")
    expected = trained(whole, data, model_folder, *words)
    first = trained(cut, data, model_folder, *words, "--max-steps", "31")
    assert first != expected
    again = trained(cut, data, model_folder, *words, "--resume", "--allow-changes")
    assert again == expected


def test_a_budget_without_answers_to_tell_is_refused(model_folder, tmp_path, capsys):
    data = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(SystemExit):
        trained(tmp_path / "run", data, model_folder, "--kl-budget", "1", "--n-samples", "0")
    assert "kl_budget needs sampled answers to tell; found n_samples 0" in capsys.readouterr().err


def test_rows_that_repeat_are_counted_from_the_data_check():
    from melior.data.lint import Finding

    found = of_data([Finding("note", "duplicates", 3, 0.3, "")], epochs=1.0)
    assert found.code == "repeated-rows"
    assert of_data([Finding("note", "length-bias", 3, 0.9, "")], epochs=1.0) is None

"""Every way to learn trains from the command line, and ranks held-out answers better for it."""

import math

import pytest

from melior.cli import main
from melior.objectives.table import OBJECTIVES
from tests.objectives.conftest import FAMILIES
from tests.objectives.rows import kind_of, metrics, read, train, written

FEW = ("dpo", "simpo", "kto", "tpo", "wpo", "ld-dpo")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_held_out_answers_are_ranked_better_than_before(name, llama, tmp_path):
    run = train(name, tmp_path, llama)
    ranked, by_reward, _ = read(run / "evaluation.json")["comparisons"]
    assert ranked["before"] < 0.65 and ranked["after"] >= 0.95
    assert by_reward["after"] >= 0.85
    steps = metrics(run)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]
    if kind_of(name).data != "answers":  # those have no other to be ranked against in their row
        assert steps[-1]["rewards/accuracies"] > 0.7 > steps[0]["rewards/accuracies"]
    about = read(run / "run.json")
    assert about["paper"] == kind_of(name).paper
    assert about["recipe"] == name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FEW)
def test_every_family_learns(name, family, models, tmp_path):
    run = train(name, tmp_path, models[family], "--max-steps", "8")
    ranked, by_reward, _ = read(run / "evaluation.json")["comparisons"]
    assert ranked["after"] > 0.8 > 0.65 > ranked["before"]
    assert by_reward["after"] > 0.8


@pytest.mark.parametrize("name", ["kto", "bco", "apo-zero-unpaired", "tpo", "plackett-luce"])
def test_pairs_are_read_as_single_answers_and_as_lists_of_two(name, llama, tmp_path):
    run = train(name, tmp_path, llama, kind="pairs")
    assert read(run / "evaluation.json")["comparisons"][0]["after"] >= 0.95
    assert read(run / "data.json")["train"]["rows"] == 24 * (
        1 if kind_of(name).data == "lists" else 2
    )


def test_answers_judged_alone_may_be_judged_on_pairs(llama, tmp_path):
    data = written(tmp_path / "answers.jsonl", "answers", 0, 24)
    apart = written(tmp_path / "held.jsonl", "pairs", 40, 56)
    main([
        "kto", "--model", str(llama), "--data", data, "--eval-data", apart,
        "--out", str(tmp_path / "run"), "--dtype", "fp32", "--learning-rate", "1e-2",
        "--epochs", "4", "--batch-size", "8", "--n-samples", "0", "--eval-steps", "4",
    ])  # fmt: skip
    first = read(tmp_path / "run" / "evaluation.json")["comparisons"][0]
    assert first["name"] == "held-out pairs ranked right"
    assert first["n"] == 16 and first["after"] >= 0.95


def test_adaptive_steps_change_what_is_learned_of_answers_in_steps_alone(llama, tmp_path):
    plain, adaptive = (
        [step["loss"] for step in metrics(train("tpo", tmp_path, llama, *words))]
        for words in (("--no-adaptive-steps",), ())
    )
    assert plain != pytest.approx(adaptive, rel=1e-2)
    plain, adaptive = (
        [step["loss"] for step in metrics(train("tpo", tmp_path, llama, *words, kind="pairs"))]
        for words in (("--no-adaptive-steps",), ())
    )
    assert plain == pytest.approx(adaptive, rel=1e-4)


def test_a_list_of_two_with_bounds_is_a_weighted_dpo(llama, tmp_path):
    """Ranks 1 and 2 weigh 1/ln 2 - 1/ln 3, scores 1 and 0 a gain of 1."""
    tpo = train("tpo", tmp_path, llama, "--score-low", "0", "--score-high", "1", kind="pairs")
    dpo = train("dpo", tmp_path, llama, kind="pairs")
    weight = 1 / math.log(2) - 1 / math.log(3)
    first = [metrics(run)[0]["loss"] for run in (tpo, dpo)]
    assert first[0] == pytest.approx(weight * first[1], rel=1e-6)

"""`melior margins` and `melior score --with FOLDER`: the same rewards, with what they are."""

import json

import pytest
import torch

from melior.cli import main
from melior.commands import margins
from melior.data.files import read_pairs
from melior.models.heads import load_reward_model, save_reward_model
from melior.options import ModelOptions

ANSWERS = ("hello there", "Paris is the capital.", "I am fine, thank you!", "the lazy dog", "fox")


@pytest.fixture
def folder(model_folder, tmp_path):
    """A reward model whose head is large enough for margins on both sides of 0."""
    model = load_reward_model(ModelOptions(model=str(model_folder), dtype="fp32"), trainable=False)
    with torch.no_grad():
        model.core.score.weight.mul_(3)
    save_reward_model(model, tmp_path / "rm")
    return tmp_path / "rm"


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"prompt": f"what about {i}?", "chosen": ANSWERS[i % 5], "rejected": ANSWERS[(i + 2) % 5],
         "id": i, "margin": 9.0}
        for i in range(20)
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(pairs, folder, out, *more):
    main(["margins", str(pairs), "--reward-model", str(folder), "--out", str(out), "--dtype",
          "fp32", *more])  # fmt: skip
    return read(out)


def test_margins_are_stored_with_where_they_come_from(folder, pairs, tmp_path, capsys):
    rows = call(pairs, folder, tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(20))
    model = load_reward_model(ModelOptions(model=str(folder), dtype="fp32"), trainable=False)
    for row in rows:
        assert row["margin"] == row["reward_chosen"] - row["reward_rejected"] != 9.0
        about = {"name": str(folder), **model.identity, "temperature": 1.0}
        assert row["reward_model"] == about
    found = [row["margin"] for row in rows]
    assert [pair.margin for pair in read_pairs(tmp_path / "out.jsonl")] == found
    told = capsys.readouterr().err
    assert "size of the margin |h|" in told
    assert f"in {sum(h < 0 for h in found) / 20:.1%} h < 0" in told
    assert 0 < sum(h < 0 for h in found) < 20


def test_the_rewards_are_those_that_scoring_gives(folder, pairs, tmp_path, capsys):
    rows = call(pairs, folder, tmp_path / "out.jsonl")
    main(["score", str(pairs), "--with", str(folder), "--out", str(tmp_path / "scored.jsonl"),
          "--dtype", "fp32"])  # fmt: skip
    for pair, group in zip(rows, read(tmp_path / "scored.jsonl"), strict=True):
        both = [one["score"] for one in group["candidates"]]
        assert both == pytest.approx([pair["reward_chosen"], pair["reward_rejected"]], abs=1e-5)
    assert "scored 40 candidates of 20 groups" in capsys.readouterr().err


def labelled(rows, path):
    """Label by the reward model's own order, but for a few: margins that are worth something."""
    held = [
        {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
        if (row["margin"] > 0) == (i % 5 > 0)
        else {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        for i, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in held))
    return path


def test_calibration_divides_by_one_temperature(folder, pairs, tmp_path, capsys):
    rows = call(pairs, folder, tmp_path / "plain.jsonl")
    path = labelled(rows, tmp_path / "held.jsonl")
    scaled = call(pairs, folder, tmp_path / "scaled.jsonl", "--calibrate", str(path))
    told = capsys.readouterr().err
    assert "from 20 held-out pairs: their loss falls from" in told
    temperature = scaled[0]["reward_model"]["temperature"]
    assert temperature != 1.0
    for one, other in zip(rows, scaled, strict=True):
        assert other["margin"] == pytest.approx(one["margin"] / temperature, rel=1e-4, abs=1e-6)
        assert other["margin"] == other["reward_chosen"] - other["reward_rejected"]


def test_one_temperature_serves_every_command(folder, pairs, tmp_path, capsys):
    """Evaluation finds it; scores, margins and evaluation itself are divided by it and say so."""
    pairs = labelled(call(pairs, folder, tmp_path / "plain.jsonl"), tmp_path / "held.jsonl")
    words = ["evaluate", "reward", "--data", str(pairs), "--with", str(folder), "--dtype", "fp32"]
    main([*words, "--out", str(tmp_path / "eval")])
    (found,) = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["scorers"]
    temperature = found["calibration"]["temperature"]
    cold = ["--temperature", repr(temperature)]
    out = tmp_path / "scored.jsonl"
    main(["score", str(pairs), "--with", str(folder), "--out", str(out), "--dtype", "fp32", *cold])
    rows = call(pairs, folder, tmp_path / "out.jsonl", *cold)
    fitted = call(pairs, folder, tmp_path / "fitted.jsonl", "--calibrate", str(pairs))
    for pair, other, group in zip(rows, fitted, read(out), strict=True):
        both = [pair["reward_chosen"], pair["reward_rejected"]]
        assert [one["score"] for one in group["candidates"]] == pytest.approx(both, abs=1e-5)
        assert [other["reward_chosen"], other["reward_rejected"]] == pytest.approx(both, rel=1e-3)
        assert group["scorer"]["temperature"] == pair["reward_model"]["temperature"] == temperature
    main([*words, "--out", str(tmp_path / "again"), *cold])
    (again,) = json.loads((tmp_path / "again" / "evaluation.json").read_text())["scorers"]
    assert again["calibration"]["temperature"] == pytest.approx(1.0, rel=1e-3)
    assert again["accuracies"] == found["accuracies"]
    with pytest.raises(SystemExit):
        call(pairs, folder, tmp_path / "two.jsonl", "--calibrate", str(pairs), *cold)
    assert "give it or --temperature; found both" in capsys.readouterr().err


def test_the_spread_counts_every_pair_once():
    found = margins.spread([0.0, -0.5, 1.0, 2.0, -2.0])
    counts = [int(line.split()[-1]) for line in found[1:11]]
    assert counts == [1, 0, 1, 0, 0, 1, 0, 0, 0, 2]
    assert "40.0% h < 0" in found[11]
    assert found[12].endswith("tau: 2")
    assert margins.metrics([1.0, -2.0, 3.0])["margins/p90"] == pytest.approx(2.8)
    assert margins.spread([0.0])[1].endswith(" 1")


def test_a_pair_that_does_not_fit_is_refused_by_name(folder, pairs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(pairs, folder, tmp_path / "out.jsonl", "--max-length", "5")
    assert "pairs.jsonl:1: a margin needs both answers within the 5 tokens" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["margins", "{pairs}", "--reward-model", "nowhere/at/all"], "found no such folder"),
        (["margins", "{pairs}", "--reward-model", "{lm}"], "melior train-reward"),
        (["score", "{pairs}", "--with", "./runs/rm"], "found no such folder"),
        (["score", "{pairs}", "--with", "rule"], "did you mean 'rules'"),
        (["margins", "{empty}", "--reward-model", "{lm}"], "needs at least one pair"),
    ],
)
def test_wrong_names_are_said_in_a_sentence(
    words, said, model_folder, pairs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    names = {"pairs": pairs, "lm": model_folder, "empty": tmp_path / "empty.jsonl"}
    with pytest.raises(SystemExit) as stopped:
        main([word.format(**names) for word in words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err

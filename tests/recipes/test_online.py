"""Rounds of online learning on a tiny model: gain, what they leave, kills, mistakes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from melior.cli import main
from melior.config import config_to_dict
from melior.data.files import read_prompts
from melior.models.loading import load_chat
from melior.options import ModelOptions
from melior.recipes import online

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")
RULES = [{"name": "words", "n": 1, "at": "at most"}, {"name": "no_digits"}, {"name": "lower_case"}]


def write_prompts(path, n=40, rules=RULES):
    rows = [{"prompt": f"about {WORDS[i % 10]} {i}?", "constraints": rules} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl")


def words(model_folder, prompts, out, *more):
    return ["online", "--model", str(model_folder), "--prompts", prompts, "--out", str(out),
            "--rounds", "2", "--n-prompts", "8", "--n-eval-prompts", "6", "--k", "4",
            "--max-new-tokens", "8", "--batch-size", "4", "--learning-rate", "1e-2",
            "--dtype", "fp32", *more]  # fmt: skip


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifests(out):
    return [read(path) for path in sorted(out.glob("round-*/manifest.json"))]


def same_weights(one, other):
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_rounds_leave_all_they_were_made_of(model_folder, prompts, tmp_path):
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--keep", "last"))
    first, *learned = manifests(out)
    assert first["round"] == 0
    asked = [row["prompt"][0]["content"] for n in (0, 1, 2)
             for row in rows(out / f"round-{n}" / "prompts.jsonl")]  # fmt: skip
    assert len(asked) == len(set(asked)) == 6 + 8 + 8
    for number, one in enumerate(learned, 1):
        here = out / f"round-{number}"
        groups = rows(here / "candidates.jsonl")
        assert {len(group["candidates"]) for group in groups} == {4}
        found = [c["facts"]["temperature"] for c in groups[0]["candidates"]]
        assert found == [1.0, 1.0, 0.7, 0.7]
        counts = one["counts"]
        assert counts["prompts"] == 8 == counts["chosen"] + sum(counts["dropped"].values())
        assert counts["chosen"] == len(rows(here / "pairs.jsonl"))
        assert counts["answers"] == 32
        assert len(one["files"]) == 6
        assert not (here / "learn" / "checkpoints").exists()
        assert read(here / "learn" / "run.json")["status"] == "finished"
        assert one["template"]["hash"]
    assert learned[0]["models"]["learned"] == learned[1]["models"]["policy"]
    assert learned[0]["models"]["policy"]["sha256"] == first["models"]["policy"]["sha256"]
    assert same_weights(out, out / "round-2" / "learn")
    evaluation = read(out / "evaluation.json")
    assert [one["name"] for one in evaluation["comparisons"]] == [
        "reward of the scorer", "answer length",
    ]  # fmt: skip
    assert evaluation["facts"]["KL to the start, nats per answer"] > 0
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert f"`{model_folder}`, trained with online" in card
    assert "round-2/pairs.jsonl" in card


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3))])
def test_rewards_rise_over_rounds(seed, model_folder, tmp_path):
    """Random weights learn to answer in small letters: a fifth more of the held-out prompts."""
    prompts = write_prompts(tmp_path / "p.jsonl", 260, [{"name": "lower_case"}])
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--rounds", "3", "--n-prompts", "48", "--k", "8",
               "--n-eval-prompts", "100", "--max-new-tokens", "3", "--batch-size", "8",
               "--epochs", "2", "--seed", str(seed), "--keep", "last"))  # fmt: skip
    means = [one["means"]["reward"] for one in manifests(out)]
    assert means[-1] >= means[0] + 0.2, means
    assert read(out / "evaluation.json")["comparisons"][0]["low"] > 0


def test_the_same_seed_gives_the_same_bits(model_folder, prompts, tmp_path):
    for name in ("a", "b"):
        main(words(model_folder, prompts, tmp_path / name))
    for one, other in zip(manifests(tmp_path / "a"), manifests(tmp_path / "b"), strict=True):
        assert {**one, "cost": 0} == {**other, "cost": 0}


def test_the_reference_stays_at_the_start_or_moves_with_the_rounds(model_folder, prompts, tmp_path):
    """In the second round the reward is relative to it: 0 at the first step where it moves."""
    for name in ("start", "previous"):
        main(words(model_folder, prompts, tmp_path / name, "--reference", name))
    first = {
        name: rows(tmp_path / name / "round-2" / "learn" / "metrics.jsonl")[0]
        for name in ("start", "previous")
    }
    assert first["previous"]["rewards/chosen"] == pytest.approx(0, abs=1e-6)
    assert abs(first["start"]["rewards/chosen"]) > 1e-3
    for name in ("start", "previous"):  # the first round has one start
        assert rows(tmp_path / name / "round-1" / "learn" / "metrics.jsonl")[0][
            "rewards/chosen"
        ] == pytest.approx(0, abs=1e-6)


def test_all_history_is_learned_from_and_a_cold_start_begins_at_the_start(
    model_folder, prompts, tmp_path
):
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--history", "all", "--no-warm-start"))
    data = read(out / "round-2" / "learn" / "data.json")["train"]
    both = [len(rows(out / f"round-{n}" / "pairs.jsonl")) for n in (1, 2)]
    assert [source["rows"] for source in data["sources"]] == both
    assert rows(out / "round-2" / "learn" / "metrics.jsonl")[0]["rewards/chosen"] == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize(
    "more",
    [
        ["--select", "best-and-random", "--objective", "simpo"],
        ["--select", "best-and-second", "--objective", "ipo", "--objective-options", "tau=0.2"],
        ["--select", "random", "--objective", "kto"],
        ["--select", "all", "--objective", "plackett-luce"],
        ["--length-penalty", "0.01", "--lora-r", "2"],
    ],
)
def test_choices_and_objectives_combine(more, model_folder, prompts, tmp_path):
    main(words(model_folder, prompts, tmp_path / "run", *more))
    assert len(manifests(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_a_held_out_scorer_judges_and_agreement_is_told(model_folder, prompts, tmp_path):
    out = tmp_path / "run"
    other = f"implicit:{model_folder},{model_folder}"
    main(words(model_folder, prompts, out, "--judge-with", other))
    judged = read(out / "round-2" / "judged.json")
    assert set(judged["against"]["last"]["wins"]) == {"reward", "judge"}
    assert judged["numbers"]["judge"] == [0.0] * 6  # a model against itself
    assert 0.0 <= judged["agreement"] <= 1.0
    assert judged["parts"] == ""


def test_a_run_that_was_killed_before_its_record_may_begin_anew(model_folder, prompts, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").touch()
    (out / "config.yaml").write_text("rounds: 2\n")
    main(words(model_folder, prompts, out, "--rounds", "1"))
    assert len(manifests(out)) == 2


def test_a_round_without_anything_to_learn_stops_the_run_and_keeps_the_others(
    model_folder, tmp_path, capsys
):
    """Of rules that no answer breaks all scores are equal: the spec's policy collapse."""
    prompts = write_prompts(tmp_path / "p.jsonl", rules=[{"name": "no_commas"}])
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--min-margin", "5"))
    assert read(out / "run.json")["status"] == "finished"
    said = capsys.readouterr().err
    assert "0 of 8 prompts are learned from" in said
    assert "stopped before round 1 could learn" in said
    assert [one["round"] for one in manifests(out)] == [0]
    assert same_weights(out, out)
    assert (out / "report.html").exists()


def test_what_is_counted_as_learned_from_is_learned_from(model_folder, prompts, tmp_path):
    """Random weights write half characters, which are read as more tokens than they were."""
    longest = max(len(tokens) for tokens in prompt_tokens(model_folder, prompts))
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--max-length", str(longest + 8), "--keep", "last"))
    first, *learned = manifests(out)
    assert first["counts"]["left_out"]["too long"] == 0
    assert sum(one["counts"]["too_long"] for one in learned) > 0
    for number, one in enumerate(learned, 1):
        data = read(out / f"round-{number}" / "learn" / "data.json")["train"]
        assert data["rows_used"] == one["counts"]["chosen"]
        assert data["left_out"] == []


def prompt_tokens(model_folder, prompts):
    chat = load_chat(ModelOptions(model=str(model_folder)))
    return [chat.prompt_tokens(group.prompt) for group in read_prompts([prompts])]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rounds", "9"], "9 rounds of 8 prompts and 2 or more held-out ones are needed"),
        (["--k", "3"], "k must be a multiple of the 2 temperatures"),
        (["--with", "nowhere/at/all"], "found no such folder"),
        (["--select", "all"], "select must be all for objectives of lists"),
        (["--objective", "dpoo"], "did you mean 'dpo'?"),
        (["--objective-options", "beta"], "objective_options must be name=value"),
        (["--objective-options", "betta=1"], "did you mean 'beta'?"),
        (["--objective-options", "beta=-1"], "beta must be above 0"),
        (["--stop-on-overoptimisation"], "give --judge-with"),
        (["--max-length", "10"], "too long"),
        (["--resume"], "a run to resume is needed; found none"),
        (["--eval-steps", "10"], "eval_steps must be 0"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(more, said, model_folder, prompts, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words(model_folder, prompts, tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_going_on_with_other_options_is_refused(model_folder, prompts, tmp_path, capsys):
    line = words(model_folder, prompts, tmp_path / "run", "--rounds", "1")
    main(line)
    with pytest.raises(SystemExit):
        main([*line, "--resume", "--k", "6"])
    assert "k was 4, is now 6" in capsys.readouterr().err


def test_going_on_with_other_prompts_is_refused(model_folder, prompts, tmp_path, capsys):
    line = words(model_folder, prompts, tmp_path / "run", "--rounds", "1")
    main(line)
    write_prompts(tmp_path / "prompts.jsonl", 41)
    with pytest.raises(SystemExit):
        main([*line, "--resume"])
    assert "options and data must be as they were; found that prompts was" in (
        capsys.readouterr().err
    )


def test_rounds_of_a_failed_run_are_not_mixed_with_new_ones(
    model_folder, prompts, tmp_path, capsys
):
    line = words(model_folder, prompts, tmp_path / "run", "--rounds", "1")
    main(line)
    record = read(tmp_path / "run" / "run.json") | {"status": "failed"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main([*line, "--seed", "7"])
    assert "a folder without rounds is needed" in capsys.readouterr().err
    main([*line, "--seed", "7", "--overwrite"])
    assert manifests(tmp_path / "run")[1]["seeds"]["learning"] == 8


def test_more_rounds_later_ask_what_no_round_has_asked(model_folder, prompts, tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    main(words(model_folder, prompts, out, "--rounds", "1", "--keep", "last"))
    more = ("--rounds", "2", "--keep", "last")
    main(words(model_folder, prompts, out, *more, "--resume", "--allow-changes"))
    main(words(model_folder, prompts, whole, *more))
    late, at_once = manifests(out), manifests(whole)
    assert [{**one, "cost": 0} for one in late] == [{**one, "cost": 0} for one in at_once]
    ends = [note for note in read(out / "run.json")["notes"] if "the run ends" in note]
    assert ends == ["the run ends with the model of round 2 of 2"]


def test_more_rounds_than_there_are_prompts_for_are_refused_and_leave_the_run(
    model_folder, prompts, tmp_path, capsys
):
    """Without --n-prompts all are asked at once, so that a later round has none of its own."""
    line = words(model_folder, prompts, tmp_path / "run", "--n-prompts", "0")
    main(line)
    was = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for again in (["--resume", "--allow-changes"], ["--overwrite"]):
        with pytest.raises(SystemExit):
            main([*line, "--rounds", "99", *again])
        assert "99 rounds of some prompts" in capsys.readouterr().err
        assert all(path.read_bytes() == content for path, content in was.items())


def test_tiny_is_a_config_like_any_other(model_folder, prompts, tmp_path):
    config = online.Config.tiny(str(model_folder), prompts, str(tmp_path / "run"))
    assert config_to_dict(replace(config, objective_options=("beta=1.0",)))["objective"] == "dpo"
    online.run(config)
    assert len(manifests(tmp_path / "run")) == 3

"""A mixture of objectives, end to end on a tiny model: gain, other programs, resume, refusals."""

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
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from melior.cli import main
from melior.models.aspects import load_aspect_model
from melior.options import ModelOptions
from melior.recipes import armorm
from melior.records import Turn
from tests.tiny import tiny_folder

FACTS = ("Paris is the capital.", "the fox is quick.")
THANKS = ("thank you!", "hello there.")


def answer(dice):
    """Draw an answer that is a fact or not, polite or not, and long or short."""
    true, polite, length = dice.randrange(2), dice.randrange(2), dice.randrange(5)
    said = f"{FACTS[1 - true]} {THANKS[1 - polite]}" + " fine" * (2 * length)
    return said, true, polite, length


def asked(dice, number):
    """Draw a question that wants a fact, or one that wants manners."""
    wants_fact = dice.randrange(2)
    word = "capital" if wants_fact else "hello"
    return f"{word} {number}, {word}?", wants_fact


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_ratings(path, count, *, seed=0, **changes):
    """Answers rated by three objectives, one of them with a liking for length; gaps in two."""
    dice, rows = random.Random(seed), []
    for i in range(count):
        said, true, polite, length = answer(dice)
        ratings = {"fact": 4 * true, "manners": 2 * polite + length / 2, "verbosity": length}
        for name in ("fact", "manners"):
            if dice.random() < 0.3:
                ratings[name] = None
        turns = [{"role": "user", "content": asked(dice, i)[0]},
                 {"role": "assistant", "content": said}]  # fmt: skip
        rows.append({"messages": turns, "row_id": i, **ratings, **changes})
    return write(path, rows)


def write_pairs(path, start, stop, *, seed=0):
    """Pairs whose better answer has what the question wants; the subset names the question."""
    dice, rows = random.Random(seed + start), []
    while len(rows) < stop - start:
        prompt, wants_fact = asked(dice, start + len(rows))
        both = [answer(dice), answer(dice)]
        both.sort(key=lambda one: -one[1 if wants_fact else 2])
        if both[0][1 if wants_fact else 2] == both[1][1 if wants_fact else 2]:
            continue
        rows.append({"prompt": prompt, "chosen": both[0][0], "rejected": both[1][0],
                     "subset": "fact" if wants_fact else "manners"})  # fmt: skip
    return write(path, rows)


@pytest.fixture
def data(tmp_path):
    return (
        write_ratings(tmp_path / "ratings.jsonl", 300),
        write_pairs(tmp_path / "train.jsonl", 0, 200),
        write_pairs(tmp_path / "held.jsonl", 500, 580),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(model_folder, data, out, *more):
    return ["armorm", "--model", str(model_folder), "--ratings", data[0], "--pairs", data[1],
            "--out", str(out), "--dtype", "fp32", "--steps", "60", "--batch-size", "64",
            "--gate-hidden", "32", "--gate-layers", "1", "--logit-scale", "30", "--learning-rate",
            "1e-2", "--eval-steps", "20", "--save-steps", "20", *more]  # fmt: skip


def test_tiny_runs_twice_to_the_same_bits(model_folder, data, tmp_path):
    found = []
    for name in ("a", "b"):
        armorm.run(armorm.Config.tiny(str(model_folder), *data[:2], str(tmp_path / name)))
        model = tmp_path / name / "model"
        parts = (model, model / "gate")
        weights = [load_file(part / "model.safetensors") for part in parts]
        losses = [row["loss"] for row in rows(tmp_path / name / "metrics.jsonl") if "loss" in row]
        found.append((weights, losses, (model / "melior.json").read_text()))
    assert found[0][1:] == found[1][1:]
    assert found[0][1][-1] < found[0][1][0]
    for left, right in zip(found[0][0], found[1][0], strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_gate_beats_a_static_mixture_and_length_goes(seed, model_folder, data, tmp_path):
    main(command(model_folder, data, tmp_path / "run", "--eval-data", data[2], "--seed", str(seed)))
    found = read(tmp_path / "run" / "evaluation.json")
    static, even, loss = found["comparisons"]
    assert static["n"] == 80
    assert static["after"] >= 0.78
    assert static["after"] - static["before"] >= 0.1
    assert even["after"] == static["after"]
    assert loss["after"] < loss["before"]
    assert {row["name"] for row in found["subsets"]} == {"fact", "manners"}
    before, after = (found["facts"][f"Spearman's correlation of scores with length, {state}"]
                     for state in ("verbosity left in", "verbosity taken off"))  # fmt: skip
    assert before > 0.1
    assert after < before - 0.1
    objectives = {row[0]: dict(zip(found["tables"][0]["columns"], row, strict=True))
                  for row in found["tables"][0]["rows"]}  # fmt: skip
    assert {name: row["ratings"] for name, row in objectives.items()} == {
        "fact": 202, "manners": 218, "verbosity": 300}  # fmt: skip
    assert all(row["R2"] > 0.4 for row in objectives.values())
    assert objectives["manners"]["penalty"] > 0.2  # its raters like length
    weights = {row[0]: row[1:] for row in found["tables"][1]["rows"]}
    assert weights["verbosity"] == [0, 0]
    wants = [found["tables"][1]["columns"].index(name) - 1 for name in ("fact", "manners")]
    assert weights["fact"][wants[0]] > weights["fact"][wants[1]] + 0.3
    samples = rows(tmp_path / "run" / "samples.jsonl")
    assert len(samples) == 8
    assert "(weight" in samples[0]["after"]
    assert "Where the gate looks" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_saved_folder_prints_its_ratings_in_plain_transformers(model_folder, data, tmp_path):
    main(command(model_folder, data, tmp_path / "run"))
    folder = tmp_path / "run" / "model"
    model = load_aspect_model(ModelOptions(model=str(folder), dtype="fp32"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert plain.config.id2label == dict(enumerate(model.aspects.names))
    pairs = rows(tmp_path / "train.jsonl")[:6]
    texts, wanted = [], []
    for row in pairs:
        for side in ("chosen", "rejected"):
            turns = [{"role": "user", "content": row["prompt"]},
                     {"role": "assistant", "content": row[side]}]  # fmt: skip
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
            read_turns = (tuple(Turn(**turn) for turn in turns[:1]), (Turn(**turns[1]),))
            (mixed,) = model.mixed([[model.reward.chat.encode(*read_turns)]], max_tokens=4096)
            wanted.append(mixed.rewards[0])
            assert float((mixed.rewards[0] * mixed.coefficients).sum()) == pytest.approx(
                float(mixed.scores[0]), abs=1e-5
            )
            assert float(mixed.weights.sum()) == pytest.approx(
                float(model.gate.log_scale.detach().exp()), rel=1e-5
            )
    for side in ("left", "right"):
        tokenizer.padding_side = side
        asked = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = plain(asked.input_ids, attention_mask=asked.attention_mask).logits.double()
        assert (found - torch.stack(wanted)).abs().max() < 1e-5
    printed = pipeline("text-classification", model=str(folder))(
        texts[0], add_special_tokens=False, top_k=None, function_to_apply="none"
    )
    by_name = {one["label"]: one["score"] for one in printed}
    assert [by_name[name] for name in model.aspects.names] == pytest.approx(
        wanted[0].tolist(), abs=1e-5
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    for needed in ("text-classification", "2406.12845", "sha256", 'function_to_apply="none"'):
        assert needed in card


def test_scores_and_reasons_on_the_command_line(model_folder, data, tmp_path):
    main(command(model_folder, data, tmp_path / "run"))
    folder = tmp_path / "run" / "model"
    main(["score", data[2], "--with", str(folder), "--dtype", "fp32", "--explain", "--out",
          str(tmp_path / "scored.jsonl")])  # fmt: skip
    scored = rows(tmp_path / "scored.jsonl")
    assert len(scored) == 80
    right = 0
    for row in scored:
        both = row["candidates"]
        right += both[0]["score"] > both[1]["score"]
        for one in both:
            why = one["facts"]["explanation"]
            assert {part["objective"] for part in why} == {"fact", "manners", "verbosity"}
            assert {part["objective"]: part["rating"] for part in why} == one["aspects"]
            sizes = [abs(part["contribution"]) for part in why]
            assert sizes == sorted(sizes, reverse=True)
            assert sum(part["contribution"] for part in why) == pytest.approx(
                one["score"], abs=1e-5
            )
    assert right / 80 >= 0.78
    main(["evaluate", "reward", "--with", str(folder), "--data", data[2], "--out",
          str(tmp_path / "eval"), "--dtype", "fp32"])  # fmt: skip
    assert (tmp_path / "eval").is_dir()


@pytest.mark.parametrize("kill_after", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_kill_9_and_resume_end_in_the_same_bits(kill_after, model_folder, data, tmp_path):
    def words(name):
        more = [
            "--steps",
            "60",
            "--save-steps",
            "10",
            "--eval-steps",
            "15",
            "--gate-dropout",
            "0.3",
        ]
        return [sys.executable, "-m", "melior",
                *command(model_folder, data, tmp_path / name, *more)]  # fmt: skip

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(words("whole"), check=True, **quiet)
    kept = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(kept) == 4  # two of ratings, one of pairs, one of those held out
    kept[0].unlink()  # as if it had not been reached
    times = {path: path.stat().st_mtime_ns for path in kept[1:]}
    running = subprocess.Popen(words("cut"), **quiet)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= kill_after:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    running.wait()
    assert running.returncode == -signal.SIGKILL
    subprocess.run([*words("cut"), "--resume"], check=True, **quiet)
    assert sorted((tmp_path / "cache" / "features").iterdir()) == kept
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in times.items())
    for part in ("", "gate"):
        whole, cut = (load_file(tmp_path / name / "model" / part / "model.safetensors")
                      for name in ("whole", "cut"))  # fmt: skip
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
    seen = [
        [
            (row["step"], row.get("loss"), row.get("eval_loss"))
            for row in rows(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert seen[0] == seen[1]


def test_a_reward_model_lends_its_features_too(model_folder, data, tmp_path):
    main(["train-reward", "--model", str(model_folder), "--data", data[1], "--out",
          str(tmp_path / "rm"), "--max-steps", "2", "--dtype", "fp32"])  # fmt: skip
    main(command(tmp_path / "rm" / "model", data, tmp_path / "run", "--eval-data", data[2]))
    own, base = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "rm")
    )
    assert own.keys() == base.keys()
    assert own.pop("score.weight").shape == (3, 32)
    assert all(torch.equal(own[name], base[name]) for name in own)


def test_without_held_out_pairs_the_last_step_is_kept(model_folder, data, tmp_path, capsys):
    main(command(model_folder, data, tmp_path / "run", "--validation-share", "0"))
    found = read(tmp_path / "run" / "evaluation.json")
    assert found["comparisons"] == []
    assert [row[0] for row in found["tables"][0]["rows"]] == ["manners", "verbosity", "fact"]
    assert not any("eval_loss" in row for row in rows(tmp_path / "run" / "metrics.jsonl"))
    with pytest.raises(SystemExit):
        main(command(tmp_path / "run" / "model", data, tmp_path / "again"))
    assert "found one of kind 'aspects'" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_other_families_and_plain_text_serve(family, data, tmp_path):
    folder = tiny_folder(tmp_path / "lm", family, template=None)
    main(command(folder, data, tmp_path / "run", "--eval-data", data[2]))
    assert read(tmp_path / "run" / "evaluation.json")["comparisons"][0]["after"] >= 0.65


def test_sources_keep_their_objectives_and_answers_apart_give_the_correlations(
    model_folder, data, tmp_path
):
    """HelpSteer's and UltraFeedback's columns as they are, and single answers as reference."""
    dice, helpsteer, ultrafeedback, others = random.Random(5), [], [], []
    for number in range(120):
        prompt = asked(dice, number)[0]
        completions = []
        for _ in range(2):
            said, true, polite, length = answer(dice)
            helpsteer.append({"prompt": prompt, "response": said, "helpfulness": 4 * polite,
                              "correctness": 4 * true, "coherence": None, "complexity": 0,
                              "verbosity": length})  # fmt: skip
            rating = {"Rating": str(1 + 4 * polite)} if dice.random() < 0.8 else {"Rating": "N/A"}
            completions.append({"response": said, "annotations": {"helpfulness": rating}})
            others.append({"prompt": f"{prompt} again", "completion": said})
        ultrafeedback.append({"instruction": f"{prompt} now", "completions": completions})
    sources = [write(tmp_path / f"{name}.jsonl", made) for name, made in
               (("h", helpsteer), ("u", ultrafeedback), ("others", others))]  # fmt: skip
    main(command(model_folder, (sources[0], *data[1:]), tmp_path / "run", "--ratings", *sources[:2],
                 "--reference", sources[2]))  # fmt: skip
    found = read(tmp_path / "run" / "data.json")
    objectives = {name: row["ratings"] for name, row in found["ratings"]["objectives"].items()}
    assert "helpsteer-coherence" not in objectives
    assert objectives["helpsteer-helpfulness"] == objectives["helpsteer-verbosity"] == 240
    assert 150 < objectives["ultrafeedback-helpfulness"] < 230
    rated = objectives["ultrafeedback-helpfulness"]  # an answer without a rating teaches nothing
    assert [source["rows"] for source in found["ratings"]["sources"]] == [240, rated]
    assert found["reference"]["rows"] == 240
    notes = " ".join(read(tmp_path / "run" / "run.json")["notes"])
    assert "helpsteer-complexity: all 240 ratings are the same" in notes
    folder = tmp_path / "run" / "model"
    model = load_aspect_model(ModelOptions(model=str(folder), dtype="fp32"))
    both = [one for one in model.aspects.each if one.name.endswith("-helpfulness")]
    assert [(one.scale.start, one.scale.width) for one in both] == [(-0.5, 5), (0.5, 5)]
    penalties = {one.name: one.penalty for one in model.aspects.each}
    assert penalties["helpsteer-complexity"] == 0  # constant: it shares nothing
    assert penalties["helpsteer-verbosity"] == 1


def test_what_ratings_cannot_tell_is_said(model_folder, data, tmp_path):
    """One class, few ratings, verbosity that does not differ: each is learned around, and noted."""
    flat = write_ratings(tmp_path / "flat.jsonl", 300, manners=1, verbosity=2)
    few = rows(tmp_path / "flat.jsonl")
    for number, row in enumerate(few):
        row["clarity"] = number % 3 if number < 40 else None
    write(tmp_path / "flat.jsonl", few)
    main(command(model_folder, (flat, *data[1:]), tmp_path / "run", "--eval-data", data[2]))
    notes = " ".join(read(tmp_path / "run" / "run.json")["notes"])
    for said in ("manners: all 300 ratings are the same", "clarity: 40 ratings are few",
                 "verbosity is the same for all answers"):  # fmt: skip
        assert said in notes
    table = read(tmp_path / "run" / "evaluation.json")["tables"][0]
    alphas = {row[0]: row[table["columns"].index("alpha")] for row in table["rows"]}
    assert alphas["clarity"] >= 1
    explained = {row[0]: row[table["columns"].index("R2")] for row in table["rows"]}
    assert explained["manners"] is None
    assert read(tmp_path / "run" / "model" / "melior.json")["verbosity"] is None


def test_long_prompts_lose_their_start_and_long_answers_their_place(model_folder, data, tmp_path):
    made = rows(tmp_path / "ratings.jsonl")
    made[0]["messages"][0]["content"] = "never mind " * 60 + made[0]["messages"][0]["content"]
    made[1]["messages"][1]["content"] = "fine " * 200
    long = write(tmp_path / "long.jsonl", made)
    more = ["--max-length", "120", "--max-long-share", "0.1"]
    main(command(model_folder, (long, *data[1:]), tmp_path / "drop", *more))
    found = read(tmp_path / "drop" / "data.json")["ratings"]
    assert (len(found["left_out"]), found["cut"]) == (2, 0)
    main(command(model_folder, (long, *data[1:]), tmp_path / "cut", *more, "--truncation-mode",
                 "keep_end"))  # fmt: skip
    found = read(tmp_path / "cut" / "data.json")["ratings"]
    assert (found["left_out"], found["cut"]) == ([f"{long}:2"], 1)


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"fact": float("inf")}, [], "ratings.jsonl:1: 'fact' needs a finite number"),
        (
            {"fact": 1, "manners": 1, "verbosity": 1},
            [],
            "needs an objective with different ratings",
        ),
        ({}, ["--scales", "fact=1:4"], "'fact' must lie from 1 to 4; found 0"),
        ({}, ["--scales", "facts=0:4"], "scales: must be of"),
        ({}, ["--scales", "fact=4"], "scales must be NAME=LOW:HIGH"),
        ({}, ["--verbosity", "length"], "verbosity must be one of"),
        ({}, ["--lora-r", "4"], "lora_r must be 0"),
        ({}, ["--truncation-mode", "keep_start"], "a reward is read at an answer's end"),
        ({}, ["--validation-share", "1"], "validation_share must be at least 0 and below 1"),
        ({}, ["--steps", "0"], "steps must be at least 1"),
        ({}, ["--max-length", "8"], "raise --max-length"),
        ({}, ["--reference", "HELD", "--eval-data", "HELD"], "must have other prompts"),
    ],
)
def test_wrong_input_is_said_in_a_sentence(
    changes, more, said, model_folder, data, tmp_path, capsys
):
    if changes:
        write_ratings(tmp_path / "ratings.jsonl", 60, **changes)
    words = [data[2] if word == "HELD" else word for word in more]
    with pytest.raises(SystemExit) as stopped:
        main(command(model_folder, data, tmp_path / "run", *words))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err

"""The bake-off, end to end on a tiny model: sweeps, runs, tables, report, and every way to stop."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from melior.cli import main
from melior.objectives.bakeoff import named
from melior.objectives.table import MARGIN_WEIGHTED, OBJECTIVES, objective_kind
from tests.recipes.test_learning import write_pairs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    files = [tmp_path / "train.jsonl", tmp_path / "held.jsonl"]
    for file, (start, stop) in zip(files, ((0, 24), (40, 52)), strict=True):
        write_pairs(file, start, stop)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rule = {"constraints": [{"name": "lower_case"}], "margin": 1.0}
        write(file, [row | rule for row in rows])
    return [str(file) for file in files]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def words(model, data, out, *more, objectives="dpo,simpo"):
    return [
        "compare", "--objectives", objectives, "--model", str(model), "--dtype", "fp32",
        "--data", data[0], "--eval-data", data[1], "--out", str(out), "--seeds", "2",
        "--max-steps", "4", "--max-new-tokens", "6", "--n-prompts", "6",
        "--learning-rates", "1e-3", "1e-2", *more,
    ]  # fmt: skip


def table(out):
    with (out / "results.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One bake-off of three objectives, for all tests that only look at it."""
    from tests.tiny import tiny_folder

    folder = tmp_path_factory.mktemp("bakeoff")
    model = tiny_folder(folder / "tiny")
    files = [folder / "train.jsonl", folder / "held.jsonl"]
    write_pairs(files[0], 0, 24)
    write_pairs(files[1], 40, 52)
    given = words(model, [str(f) for f in files], folder / "out", "--jobs", "2",
                  objectives="dpo,simpo,kto")  # fmt: skip
    main(given)
    return folder / "out", given


def test_each_objective_is_swept_and_run_with_every_seed(finished):
    out, _ = finished
    rows = table(out)
    for name, strengths in (("dpo", 1), ("simpo", 1), ("kto", 1)):
        own = [row for row in rows if row["objective"] == name]
        sweeps = [row for row in own if row["stage"] == "sweep"]
        runs = [row for row in own if row["stage"] == "run"]
        assert len(sweeps) == 2 + strengths, "two rates, then another strength"
        assert {row["seed"] for row in runs} == {"42", "43"}
        assert {row["steps"] for row in sweeps} == {"2"} and {r["steps"] for r in runs} == {"4"}
    assert {row["status"] for row in rows} == {"finished"}
    assert len({row["config_hash"] for row in rows}) == len(rows)
    assert all(float(row["peak_mem"]) > 1e7 and float(row["train_s"]) > 0 for row in rows)


def test_the_setting_that_is_run_is_the_one_that_was_best_on_validation(finished):
    out, _ = finished
    for name in ("dpo", "simpo", "kto"):
        own = [row for row in table(out) if row["objective"] == name]
        best = max((r for r in own if r["stage"] == "sweep"), key=lambda r: float(r["accuracy"]))
        for run in (row for row in own if row["stage"] == "run"):
            top = float(best["accuracy"])
            same = [r for r in own if r["stage"] == "sweep" and float(r["accuracy"]) == top]
            taken = (run["learning_rate"], run["strength"])
            assert taken in {(r["learning_rate"], r["strength"]) for r in same}


def test_learning_is_seen_on_held_out_rows(finished):
    out, _ = finished
    runs = [row for row in table(out) if row["stage"] == "run"]
    assert all(float(row["accuracy"]) >= 0.9 for row in runs), "politeness is easily learned"
    assert all(float(row["kl"]) > 0 for row in runs)
    for row in runs:
        found = json.loads((out / "cells" / row["cell_id"] / "judged.json").read_text())
        assert sum(found["numbers"]["accuracy"]) / 12 == pytest.approx(float(row["accuracy"]))


def test_validation_prompts_are_trained_on_by_nobody(finished):
    out, _ = finished

    def prompts(name):
        (file,) = (out / "split").glob(f"*-{name}.jsonl")
        lines = file.read_text(encoding="utf-8").splitlines()
        return {json.dumps(json.loads(line)["prompt"]) for line in lines}

    assert len(prompts("train")) + len(prompts("validation")) == 24
    assert not prompts("train") & prompts("validation")
    for cell in (out / "cells").iterdir():
        sources = json.loads((cell / "data.json").read_text())["train"]["sources"]
        assert [Path(one["path"]).name.endswith("-train.jsonl") for one in sources] == [True]


def test_weights_of_each_objectives_best_run_are_kept_and_no_others(finished):
    out, _ = finished
    kept = [cell.parent.name.split("-")[0] for cell in (out / "cells").glob("*/model")]
    assert sorted(kept) == ["dpo", "kto", "simpo"]
    assert not list((out / "cells").glob("*/checkpoints"))


def test_the_report_and_the_cells_can_be_read(finished, capsys):
    out, _ = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    for part in ("Standings", "Which differences are real", "Settings tried", "Samples"):
        assert f"<h2>{part}</h2>" in page
    main(["report", *map(str, (out / "cells").glob("dpo-*")), "--out", str(out / "two.html")])
    assert "dpo" in (out / "two.html").read_text(encoding="utf-8")


def test_going_on_with_what_is_finished_changes_nothing(finished, capsys):
    out, given = finished
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("*")}
    results = (out / "results.csv").read_bytes()
    main([*given, "--resume"])
    assert {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("*")} == before
    assert (out / "results.csv").read_bytes() == results
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 2
    assert "go on with it by --resume" in capsys.readouterr().err


def test_killed_at_any_moment_it_goes_on_to_the_same_table(model_folder, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(words(model_folder, data, whole))
    command = [sys.executable, "-m", "melior", *words(model_folder, data, killed)]
    for moment in (1, 3):
        more = ["--resume"] if killed.exists() else []
        process = subprocess.Popen([*command, *more], cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_for(lambda n=moment: len(list(killed.glob("cells/*/judged.json"))) >= n)
        process.send_signal(signal.SIGKILL)
        process.wait()
    main(words(model_folder, data, killed, "--resume"))
    own = {"train_s", "wall_s", "peak_mem"}
    left, right = (
        [{k: v for k, v in row.items() if k not in own} for row in table(out)]
        for out in (whole, killed)
    )
    assert left == right


def wait_for(is_so):
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < 120
        time.sleep(0.02)


def test_a_cell_that_fails_is_a_row_and_the_others_go_on(model_folder, data, tmp_path):
    """A rate that makes the weights overflow breaks the cells that use it, and no others."""
    given = words(model_folder, data, tmp_path / "out")
    rates = given.index("--learning-rates")
    given[rates + 1 : rates + 3] = ["1e-2", "1e30"]
    main(given)
    rows = table(tmp_path / "out")
    failed = [row for row in rows if row["status"] == "failed"]
    assert {float(row["learning_rate"]) for row in failed} == {1e30}
    assert len(failed) == 2 and all(row["reason"] for row in failed)
    assert {row["status"] for row in rows if row["stage"] == "run"} == {"finished"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(row["cell_id"] in page for row in failed)


def test_rules_decide_where_every_prompt_has_constraints(model_folder, data, tmp_path):
    main(words(model_folder, data, tmp_path / "out", "--sweep-share", "0", "--seeds", "1"))
    rows = table(tmp_path / "out")
    assert {row["metric"] for row in rows} == {"rules"} and len(rows) == 2
    assert {row["learning_rate"] for row in rows} == {"0.001"}
    assert all(float(row["rules"]) <= 1 for row in rows)


def test_a_grid_varies_data_and_reward_models_for_those_that_read_them(
    model_folder, data, tmp_path
):
    from tests.tiny import tiny_folder

    other = tiny_folder(tmp_path / "start")
    main([
        "train-reward", "--model", str(other), "--data", data[0], "--out", str(tmp_path / "rm"),
        "--max-steps", "2", "--dtype", "fp32",
    ])  # fmt: skip
    noisy = write_pairs(tmp_path / "noisy.jsonl", 0, 20)
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"factors:\n  data: [{data[0]}, {noisy}]\n  objective: [dpo, madpo]\n"
        f"  reward_model: [{tmp_path / 'rm' / 'model'}]\n  prompts: [a.jsonl, b.jsonl]\n"
        "design: full\n",
        encoding="utf-8",
    )
    given = words(model_folder, data, tmp_path / "out", "--grid", str(grid), "--sweep-share", "0",
                  "--seeds", "1")  # fmt: skip
    main(given)
    rows = table(tmp_path / "out")
    assert len(rows) == 4, "prompts change no cell, and dpo reads no reward model"
    assert {row["arm"] for row in rows} == {
        f"{name}-{file}" for name in ("dpo", "madpo") for file in ("train.jsonl", "noisy.jsonl")
    }
    assert {row["reward_model"] for row in rows if row["objective"] == "dpo"} == {""}
    assert "By factor" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*OBJECTIVES, *MARGIN_WEIGHTED])
def test_every_objective_can_be_swept(name):
    """Each value that is tried is a right one, and the default is among them: it is tried first."""
    options = objective_kind(name)()
    for option, values in options.sweep.items():
        assert getattr(options, option) in values and 2 <= len(values) <= 3
        assert {getattr(replace(options, **{option: v}), option) for v in values} == set(values)
    assert len(options.sweep) <= 1
    assert options.reads_margins == options.method().needs_margins


def test_arms_with_files_of_the_same_name_are_told_apart():
    arms = [{"data": f"{folder}/train.jsonl", "objective": "dpo"} for folder in "abc"]
    assert named(arms) == ["dpo-train.jsonl", "dpo-train.jsonl #2", "dpo-train.jsonl #3"]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_models_of_other_families_are_compared_alike(family, data, tmp_path):
    from tests.tiny import tiny_folder

    model = tiny_folder(tmp_path / family, family)
    main(words(model, data, tmp_path / "out", "--sweep-share", "0", "--seeds", "1",
               objectives="ipo,orpo,tpo"))  # fmt: skip
    rows = table(tmp_path / "out")
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert all(float(row["kl"]) > 0 for row in rows)


def test_a_run_beyond_the_kl_budget_is_flagged_and_kept(model_folder, data, tmp_path):
    main(words(model_folder, data, tmp_path / "out", "--sweep-share", "0", "--seeds", "1",
               "--kl-budget", "1e-6"))  # fmt: skip
    rows = table(tmp_path / "out")
    assert {(row["status"], row["over_kl_budget"]) for row in rows} == {("finished", "True")}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Beyond the KL budget in some run: dpo and simpo." in page


@pytest.mark.parametrize(
    ("more", "needed"),
    [
        (["--objectives", "dpo,sinpo"], "did you mean 'simpo'?"),
        (["--objectives", "dpo"], "two or more are needed to compare, such as dpo,simpo"),
        (["--objectives", "dpo,dpo"], "two or more are needed to compare"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--jobs", "0"], "jobs must be at least 1"),
        (["--budget", "100"], "budget and max_steps say the same: give one; found both"),
        (["--sweep-share", "2"], "sweep_share must be at least 0 and at most 1"),
        (["--learning-rates", "0"], "learning_rates must be above 0"),
        (["--metric", "score"], "metric score needs --scorer"),
        (["--scorer", "nothing/here/at/all"], "found no such folder"),
        (["--metric", "rules"], "metric rules needs 'constraints' with every prompt"),
    ],
)
def test_wrong_input_is_said_in_a_sentence(more, needed, model_folder, tmp_path, capsys):
    data = [write_pairs(tmp_path / "a.jsonl", 0, 8), write_pairs(tmp_path / "b.jsonl", 40, 44)]
    assert needed in refused([*words(model_folder, data, tmp_path / "out"), *more], capsys)


def refused(given, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in given])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    return said.strip().splitlines()[-1]


def test_rows_that_an_objective_cannot_read_are_refused(model_folder, tmp_path, capsys):
    held = write_pairs(tmp_path / "held.jsonl", 40, 44)
    answers = [{"response": text, "score": i} for i, text in enumerate(("a", "b", "c"))]
    lists = write(
        tmp_path / "lists.jsonl", [{"prompt": f"p{i}", "candidates": answers} for i in range(4)]
    )
    given = words(model_folder, [lists, held], tmp_path / "out", objectives="dpo,tpo")
    assert "choose pairs with `melior select`" in refused(given, capsys)
    plain = write_pairs(tmp_path / "plain.jsonl", 0, 8)
    given = words(model_folder, [plain, held], tmp_path / "out", objectives="dpo,madpo")
    assert "`melior margins` adds those of a reward model" in refused(given, capsys)
    given = words(model_folder, [plain, plain], tmp_path / "out")
    assert "prompts that are judged on must not be trained on; found 8" in refused(given, capsys)
    small = words(model_folder, [plain, held], tmp_path / "out")
    at = small.index("--max-steps")
    small[at : at + 2] = ["--budget", "10"]
    assert "budget must pay for a batch: dpo computes" in refused(small, capsys)


def test_a_budget_of_tokens_gives_each_objective_its_steps(model_folder, data, tmp_path):
    given = words(model_folder, data, tmp_path / "out", "--sweep-share", "0", "--seeds", "1",
                  objectives="dpo,kto")  # fmt: skip
    at = given.index("--max-steps")
    given[at : at + 2] = ["--budget", "3000"]
    main(given)
    for row in table(tmp_path / "out"):
        steps = [
            json.loads(line)
            for line in (tmp_path / "out" / "cells" / row["cell_id"] / "metrics.jsonl")
            .read_text()
            .splitlines()
        ]
        assert steps[-1]["step"] == int(row["steps"]) > 2
    assert os.path.getsize(tmp_path / "out" / "report.html") > 10_000

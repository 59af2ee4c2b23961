"""`melior plan`: the words of a run, and what it would take."""

import json
import subprocess
import sys

import pytest

from melior import cli
from melior.cli import main
from melior.objectives.table import OBJECTIVES
from tests.objectives.rows import pair


@pytest.fixture
def words(tmp_path, model_folder):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(24)))
    return [
        "--model", str(model_folder), "--data", str(data), "--out", str(tmp_path / "run"),
        "--batch-size", "8", "--device", "cpu",
    ]  # fmt: skip


def planned(capsys, *words):
    main(["plan", *words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_plan_takes_the_words_of_the_run_and_leaves_no_trace(words, tmp_path, capsys):
    apart = tmp_path / "apart.jsonl"
    apart.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(100, 106)))
    found = planned(capsys, "dpo", *words, "--beta", "0.3", "--eval-data", str(apart))
    assert found["command"] == "dpo"
    assert found["fits"]
    assert not found["ways"]
    assert found["memory"]["most"] >= sum(part["amount"] for part in found["memory"]["training"])
    assert found["seconds"] == pytest.approx(sum(part["amount"] for part in found["time"]))
    names = " ".join(part["name"] for part in found["time"])
    for needed in ("starting", "answers", "reference", "held-out", "3 steps", "checkpoints"):
        assert needed in names
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_full_is_no_matter_to_a_plan(words, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert planned(capsys, "simpo", *words)["fits"]


def test_devices_that_are_not_here_are_told(words, capsys):
    found = planned(capsys, "simpo", *words, "--on", "8 x H100", "--share-of-peak", "0.5")
    assert found["machine"]["count"] == 8
    step = found["counts"]["FLOPs of a step"] / (8 * 989e12 * 0.5)
    assert found["seconds"] == pytest.approx(3 * step)
    assert "50% is assumed" in found["notes"][-1]
    assert "nothing was measured" in found["notes"][-1]


def test_what_does_not_fit_says_which_options_would_make_it(words, capsys):
    few = ["--batch-size", "2"]
    all_kept, few_kept = (
        planned(capsys, "simpo", *words, *few, *more, "--on", "1 x 1e12 FLOP/s, 80 GB")["memory"][
            "most"
        ]
        for more in ([], ["--gradient-checkpointing"])
    )
    between = (all_kept + few_kept) / 2 / 1e9
    main(["plan", "simpo", *words, *few, "--on", f"1 x 1e12 FLOP/s, {between:.9f} GB"])
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in said
    assert "--gradient-checkpointing" in said
    assert "the same run up to rounding" in said
    assert "--batch-size does not help" in said


def test_where_nothing_helps_that_is_said(words, capsys):
    few = ["--batch-size", "1"]
    main(["plan", "simpo", *words, *few, "--on", "1 x 1e12 FLOP/s, 0.5 GB"])
    assert "no option makes it fit" in " ".join(capsys.readouterr().out.split())


def test_the_table_adds_up(words, capsys):
    main(["plan", "simpo", *words])
    said = " ".join(capsys.readouterr().out.split())
    for needed in ("AdamW's two moments", "it fits", "steps", "in all", "measured on 2"):
        assert needed in said


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["plan"], "found nothing\n"),
        (["plan", "online"], "needs one of dpo, simpo"),
        (["plan", "simpoo"], "did you mean 'simpo'?"),
        (["plan", "simpo"], "needs"),
        (["plan", "simpo", "--model", "no", "--data", "no.jsonl", "--out", "x"], "model 'no'"),
        (["plan", "simpo", "--model", "{model}", "--data", "no.jsonl", "--out", "x"], "no.jsonl"),
        (["plan", "simpo", "--on", "8 x T1000", "{run}"], "on must be one of A100"),
        (["plan", "simpo", "--share-of-peak", "2", "{run}"], "share_of_peak must be above 0"),
        (["plan", "simpo", "--bata", "2", "{run}"], "--bata is not an option"),
    ],
)
def test_what_is_wrong_is_said_at_once(words, needed, model_folder, tmp_path):
    """In a process of its own; its CPU time counts, as others may be working here."""
    import resource

    run = ["--model", str(model_folder), "--data", "x", "--out", str(tmp_path / "x")]
    filled = []
    for word in words:
        filled += run if word == "{run}" else [word.replace("{model}", str(model_folder))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "melior", *filled], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert needed in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_every_run_of_one_stage_can_be_planned_and_the_list_is_short(capsys):
    assert {name for name in cli.COMMANDS if name.startswith("plan ")} == {
        f"plan {name}" for name in OBJECTIVES
    }
    overview = cli.overview()
    assert overview.count("plan ") == 1
    kind, _ = cli.command("plan kto")
    assert kind is cli.command("plan kto")[0]

"""Two processes that share the work leave what one leaves, and end together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from melior import cli
from melior.cli import COMMANDS, main
from melior.objectives.table import OBJECTIVES
from melior.training import shards
from tests.objectives.rows import kind_of, metrics, read, written
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[2]
FP32 = ("--dtype", "fp32")
RUNS = {
    # Answers and held-out rows, a mean over all tokens of a batch, several portions each.
    "dpo": ("dpo", *FP32, "--n-samples", "2", "--sft-weight", "0.5", "--max-tokens", "90",
            "--eval-steps", "3"),
    # The last batch of an epoch has fewer rows than there are processes; a gradient that is cut.
    "few": ("simpo", *FP32, "--batch-size", "23", "--max-grad-norm", "0.5"),
    "adapter": ("dpo", *FP32, "--lora-r", "4", "--n-samples", "1", "--gradient-checkpointing"),
    # A loss of the batch as a whole, which remembers batches.
    "bco": ("bco", *FP32),
    "bf16": ("simpo", "--learning-rate", "1e-4", "--n-samples", "1"),
}  # fmt: skip


def words(folder: Path, out: Path, name: str, *options: str) -> list[str]:
    kind = kind_of(name).data
    data = written(folder / f"{kind}.jsonl", kind, 0, 24)
    apart = written(folder / f"held-{kind}.jsonl", kind, 40, 56)
    given = {"--learning-rate": "1e-2", "--epochs": "2", "--batch-size": "8", "--n-samples": "0"}
    rest = [word for key, value in given.items() if key not in options for word in (key, value)]
    return [
        name, "--model", str(folder / "model"), "--data", data, "--eval-data", apart,
        "--out", str(out), "--save-steps", "3", "--save-total-limit", "9", *rest, *options,
    ]  # fmt: skip


def start(folder: Path, commands: list[list[str]], n: int = 2, *how: str) -> subprocess.Popen[str]:
    """Begin commands in processes that share the work."""
    file = folder / f"commands-{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps(commands), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launch, "--nproc-per-node", str(n), "-m", "tests.training.sharing", str(file), *how]
    unlike = {"MELIOR_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | unlike, stdout=pipe, stderr=pipe, text=True
    )


def share(folder: Path, commands: list[list[str]], n: int = 2, *how: str) -> None:
    process = start(folder, commands, n, *how)
    _, wrong = process.communicate(timeout=900)
    assert process.returncode == 0, wrong


def sentences(wrong: str) -> list[str]:
    return [line for line in wrong.splitlines() if line.startswith("melior: ")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


def moved_back(run: Path, to: Path) -> Path:
    """A copy of a run as if it had been killed after its third step."""
    shutil.copytree(run, to)
    last = sorted((to / "checkpoints").iterdir())[-1]
    assert last.name != "step-000003"
    shutil.rmtree(last)
    return to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def runs(folder):
    """Each run by one process and by two, one's goes on by two, and a last one they cannot begin.

    All in one start of the two, which takes longer than all that they do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MELIOR_CACHE", str(folder / "alone"))
        tiny_folder(folder / "model")
        for name, options in RUNS.items():
            main(words(folder, folder / f"{name}-1", *options))
    again = moved_back(folder / "dpo-1", folder / "dpo-1-2")
    shared = [words(folder, folder / f"{name}-2", *options) for name, options in RUNS.items()]
    shared.append(words(folder, again, *RUNS["dpo"], "--resume"))
    process = start(folder, [*shared, of_unlike_rows(folder)])
    _, wrong = process.communicate(timeout=400)
    assert process.returncode != 0
    (folder / "wrong.txt").write_text(wrong, encoding="utf-8")
    return folder


def of_unlike_rows(folder: Path) -> list[str]:
    """A run of which the second process reads a broken row 3."""
    rows = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "0.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "1.jsonl").write_text("\n".join([*rows[:2], "{}", *rows[3:]]), encoding="utf-8")
    command = words(folder, folder / "unlike", *RUNS["dpo"])
    command[command.index("--data") + 1] = str(folder / "{place}.jsonl")
    return command


def assert_alike(one: Path, two: Path, *, tolerance: float = 1e-5, but_for: int = 0) -> None:
    """Compare the numbers of all steps, and the final weights but for a few."""
    rows = zip(metrics(one), metrics(two), strict=True)
    for old, new in rows:
        assert old.keys() == new.keys()
        for key in old.keys() - {"time", "num_tokens"}:  # other portions share other prompts
            assert new[key] == pytest.approx(old[key], rel=tolerance, abs=tolerance), key
    before, after = weights(one), weights(two)
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype for key in before)
    apart = torch.cat([(before[key] - after[key]).abs().flatten() for key in before])
    assert (apart > tolerance).sum() <= but_for
    assert apart.max() <= (20 * tolerance if but_for else tolerance)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "bf16"])
def test_two_processes_give_the_numbers_and_weights_of_one(name, runs):
    assert_alike(runs / f"{name}-1", runs / f"{name}-2")


def test_the_first_process_leaves_the_folder_that_one_leaves(runs):
    one, two = runs / "dpo-1", runs / "dpo-2"

    def names(run: Path) -> set[str]:
        return {str(path.relative_to(run)) for path in run.rglob("*") if "step-" not in str(path)}

    assert names(one) == names(two)
    assert read(one / "model" / "config.json") == read(two / "model" / "config.json")
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    facts = [read(run / "evaluation.json")["facts"] for run in (one, two)]
    assert facts[1] == pytest.approx(facts[0], rel=1e-5)
    about = read(two / "run.json")
    assert about["status"] == "finished"
    assert about["command"][:5] == ["torchrun", "--nproc-per-node", "2", "-m", "melior"]


def test_a_checkpoint_of_two_processes_is_that_of_one_without_a_pickle(runs):
    one, two = (runs / f"dpo-{n}" / "checkpoints" / "step-000003" for n in (1, 2))
    assert {path.suffix for path in two.iterdir()} == {".json", ".safetensors"}
    assert len(list(two.glob("*.safetensors"))) == 2
    old, new = shards.read(one, {}), shards.read(two, {})
    assert new.keys() == old.keys() | {"generators/torch/1"}
    for key in old.keys() - {"generators/torch"}:
        assert torch.allclose(old[key], new[key], rtol=1e-5, atol=1e-5), key
    held = (load_file(file) for file in two.glob("*.safetensors"))
    sizes = [sum(value.numel() for key, value in part.items() if "/" in key) for part in held]
    assert max(sizes) < 0.6 * sum(sizes), "each process writes what it holds"


def test_two_processes_go_on_from_the_checkpoint_of_one(runs):
    assert read(runs / "dpo-1-2" / "run.json")["resumed"]
    assert_alike(runs / "dpo-1", runs / "dpo-1-2")


def test_one_process_goes_on_from_the_checkpoint_of_two(runs, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(runs / "cache"))
    again = moved_back(runs / "dpo-2", runs / "dpo-2-1")
    main(words(runs, again, *RUNS["dpo"], "--resume"))
    assert_alike(runs / "dpo-2", again)


def test_the_reference_is_kept_once_and_is_that_of_one_process(runs):
    one, two = (
        {file.name: load_file(file)["tokens"] for file in (runs / place / "reference").iterdir()}
        for place in ("alone", "cache")
    )
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


def test_bf16_has_float32_parts_and_the_numbers_of_one_process_but_for_rounding(runs):
    """bf16 keeps 8 bits: 0.4 % of a number; sums in other portions are rounded otherwise."""
    one, two = runs / "bf16-1", runs / "bf16-2"
    for old, new in zip(metrics(one), metrics(two), strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=0.01)
        assert new["grad_norm"] == pytest.approx(old["grad_norm"], rel=0.05)
    before, after = weights(one), weights(two)
    assert all(after[key].dtype == torch.bfloat16 == before[key].dtype for key in before)
    steps = [run / "checkpoints" / "step-000006" for run in (one, two)]
    old, new = (shards.read(step, {}) for step in steps)
    for key in (key for key in old if key.startswith("step/weight/")):
        assert old[key].dtype == new[key].dtype == torch.float32
        # Six steps of AdamW move a weight by at most 6e-4.
        assert torch.allclose(old[key], new[key], rtol=0, atol=6e-4), key
        assert (old[key] - new[key]).abs().mean() < 3e-5
        assert not torch.equal(new[key], new[key].bfloat16().float()), "more than bf16 is kept"


def test_what_one_process_cannot_read_ends_both_with_one_sentence(runs):
    """It is found when both have met, before there is a run."""
    wrong = (runs / "wrong.txt").read_text(encoding="utf-8")
    (said,) = sentences(wrong)
    assert f"{runs / '1.jsonl'}:3" in said, wrong
    assert "Traceback" not in wrong.split("torch/distributed/elastic")[0]
    assert not (runs / "unlike").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_said_once_and_leaves_the_checkpoint_before(tmp_path):
    tiny_folder(tmp_path / "model")
    command = words(tmp_path, tmp_path / "run", "dpo", *FP32, "--learning-rate", "1e30")
    process = start(tmp_path, [command])
    _, wrong = process.communicate(timeout=400)
    (said,) = sentences(wrong)
    assert "must be finite" in said, wrong
    about = read(tmp_path / "run" / "run.json")
    assert about["status"] == "failed" and "must be finite" in about["reason"]


def test_only_objectives_are_learned_in_several_processes(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in COMMANDS.keys() - OBJECTIVES.keys():
        with pytest.raises(ValueError, match=f"melior {name} runs in one process; found 2"):
            cli._run(name.split())
    with pytest.raises(SystemExit) as shown:  # what a command can is told to anybody
        cli._run(["train-reward", "--help"])
    assert shown.value.code == 0


def interrupted(folder: Path, number: int, place: int, *options: str) -> tuple[str, Path]:
    """Start a run of two processes, send one of them a signal in its midst; say what it said."""
    run = folder / "run"
    process = start(folder, [words(folder, run, *LONG, *options)])
    place_of = folder / f"pid-{place}"
    began = time.monotonic()
    while not (run / "checkpoints" / "step-000006").exists():
        assert process.poll() is None and time.monotonic() - began < 600
        time.sleep(0.02)
    os.kill(int(place_of.read_text()), number)
    return process.communicate(timeout=400)[1], run


LONG = ("dpo", *FP32, "--epochs", "40")


def lasting(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    """The numbers of all steps but their times, and the files of the model."""
    rows = [{key: v for key, v in row.items() if key != "time"} for row in metrics(run)]
    return rows, {file.name: file.read_bytes() for file in (run / "model").glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_a_run_of_which_one_process_is_killed_goes_on_to_the_same_bits(place, tmp_path):
    tiny_folder(tmp_path / "model")
    wrong, run = interrupted(tmp_path, signal.SIGKILL, place)
    (said,) = sentences(wrong)
    assert "another process of this run has ended" in said and "--resume" in said
    assert not (run / "model").exists()
    undisturbed = tmp_path / "undisturbed"
    share(tmp_path, [words(tmp_path, run, *LONG, "--resume")])
    share(tmp_path, [words(tmp_path, undisturbed, *LONG)])
    assert lasting(run) == lasting(undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_process_leaves_one_checkpoint_of_both(tmp_path):
    tiny_folder(tmp_path / "model")
    wrong, run = interrupted(tmp_path, signal.SIGTERM, 1, "--save-steps", "6")
    about, last = read(run / "run.json"), metrics(run)[-1]["step"]
    assert about["status"] == "stopped"
    (said,) = sentences(wrong)
    assert f"stopped after step {last};" in said, wrong
    assert "go on with: torchrun --nproc-per-node 2 -m melior dpo" in said
    assert len(list((run / "checkpoints" / f"step-{last:06d}").glob("*.safetensors"))) == 2
    share(tmp_path, [words(tmp_path, run, *LONG, "--resume")])
    assert [row["step"] for row in metrics(run)] == list(range(1, 121))


@pytest.mark.slow
def test_a_refused_command_is_refused_once(tmp_path):
    process = start(tmp_path, [["merge", "x", "--out", "y"]])
    (said,) = sentences(process.communicate(timeout=400)[1])
    assert "melior merge runs in one process; found 2" in said


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_every_objective_gives_the_numbers_of_one_process(n, tmp_path, monkeypatch):
    """Three processes do not divide any of the model's weights evenly.

    AdamW divides a gradient by its size: one that is nothing but rounding moves its weight, too. Of
    25,760 weights, two of CPO's and one of APO's were further apart, by 1.2e-4 at most.
    """
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "alone"))
    tiny_folder(tmp_path / "model")
    few = (*FP32, "--max-steps", "4")
    for name in OBJECTIVES:
        main(words(tmp_path, tmp_path / f"{name}-1", name, *few))
    commands = [words(tmp_path, tmp_path / f"{name}-{n}", name, *few) for name in OBJECTIVES]
    share(tmp_path, commands, n, "checked")
    for name in OBJECTIVES:
        assert_alike(tmp_path / f"{name}-1", tmp_path / f"{name}-{n}", but_for=3)

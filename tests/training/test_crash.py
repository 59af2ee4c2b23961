"""A run that is killed at any moment goes on to the bits of one that was not."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.crashing_run", str(folder), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(folder: Path, *flags: str) -> str:
    process = start(folder, *flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def stop(process: subprocess.Popen[str], number: int, after: float) -> str:
    """Wait until the run has begun and some seconds more, and send a signal."""
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(number)
    return process.communicate(timeout=120)[1]


def result(folder: Path) -> tuple[list[dict[str, float]], bytes, bytes]:
    """The numbers of all steps but their times, and the last checkpoint."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = folder / "checkpoints" / "step-000040"
    numbers = [{name: v for name, v in row.items() if name != "time"} for row in rows]
    files = (last / "state.safetensors").read_bytes(), (last / "state.json").read_bytes()
    return numbers, *files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(folder)
    return result(folder)


def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path, whole):
    random.seed(time.time_ns())  # other moments in each run of this test: all must be right
    moments = [random.uniform(0.0, 0.3) for _ in range(3)]
    folder = tmp_path / "run"
    stop(start(folder), signal.SIGKILL, moments[0])
    for moment in moments[1:]:
        stop(start(folder, "--resume"), signal.SIGKILL, moment)
    finish(folder, "--resume")
    assert result(folder) == whole, moments


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_to_the_same_bits(tmp_path, whole):
    folder = tmp_path / "run"
    finish(folder)
    (folder / "checkpoints" / "step-000040" / "state.json").write_text("{}")
    said = finish(folder, "--resume")
    assert said.startswith("start 39") and "step-000040: passed over" in said
    assert result(folder) == whole


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_leaves_a_checkpoint_and_a_sentence(number, code, tmp_path, whole):
    folder = tmp_path / "run"
    process = start(folder)
    said = stop(process, number, 0.05)
    assert process.returncode == code
    record = json.loads((folder / "run.json").read_text())
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    assert record["status"] == "stopped"
    assert (folder / "checkpoints" / f"step-{steps:06d}").is_dir()
    assert f"stopped after step {steps}; go on with:" in said and "--resume" in said
    assert finish(folder, "--resume").startswith(f"start {steps}")
    assert result(folder) == whole


@pytest.mark.slow
def test_fifty_kills_of_real_commands_damage_nothing_and_change_no_bit(tmp_path):
    """The benchmark itself, at other moments each time; it fails where a bit is another one."""
    numbers = tmp_path / "kills.json"
    command = [sys.executable, "benchmarks/kills.py", "--kills", "50", "--json", str(numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(numbers.read_text())
    assert sum(one["kills"] for one in found.values()) == 50
    for one in found.values():
        assert one["runs"] >= 1 and one["damaged"] == 0
        assert len(one["places"]) >= 2  # they fell into different moments

"""Processes that work: who is killed is replaced, who fails is heard, none outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from melior.options import WorkerOptions
from melior.workers.deal import dealt
from melior.workers.work import chunked
from tests.training.test_jobs import is_gone
from tests.workers.works import Doubling, cannot_load, dies_loading, numbered

ROOT = Path(__file__).parents[2]


def options(n, **others):
    return WorkerOptions(processes=n, **others)


def doubled(folder, kinds, n, *, size=3):
    """What comes of groups: the doubled numbers, and the error behind them."""
    chunks, found = chunked(numbered(kinds), size), []
    with dealt(options(n), partial(Doubling, folder), chunks, device="cpu") as deal:
        assert deal.about == {"by": 2}
        try:
            found.extend(group.facts["twice"] for group in deal.groups())
        except Exception as error:  # the test looks at it
            return found, error
        assert deal.costs() == {"numbers": len(kinds)}
    return found, None


def pids(folder):
    return {int(path.name.split(".")[0]) for path in folder.glob("*.begun")}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_number_of_processes_does_the_same(tmp_path, n):
    assert doubled(tmp_path, [f"meets {n}"] * 20, n) == ([2 * i for i in range(20)], None)
    assert len(pids(tmp_path)) == n and os.getpid() not in pids(tmp_path)
    shares = {path.read_text() for path in tmp_path.glob("*.begun")}
    assert shares == {str(max(1, torch.get_num_threads() // n))}


def test_no_more_processes_begin_than_there_are_chunks(tmp_path):
    doubled(tmp_path, ["meets 2"] * 4, 8)
    assert len(pids(tmp_path)) == 2


def test_who_is_killed_is_replaced_and_its_chunk_done_by_another(tmp_path):
    kinds = ["fine", "kills once", "fine", "fine", "fine", "lacks memory once", "kills once"] * 2
    assert doubled(tmp_path, kinds, 2) == ([2 * i for i in range(14)], None)
    assert len(pids(tmp_path)) > 2


def test_workers_killed_from_outside_lose_nothing(tmp_path):
    """One of them at work; one idle."""
    done = []
    kinds = ["fine", "fine", "waits", "fine"]
    run = threading.Thread(target=lambda: done.append(doubled(tmp_path, kinds, 2, size=2)))
    run.start()
    until(lambda: len(pids(tmp_path)) == 2 and (tmp_path / "mark2").exists())
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(pids(tmp_path)) >= 3)
    (tmp_path / "go on").touch()
    run.join(60)
    assert done == [([0, 2, 4, 6], None)]


def test_a_chunk_that_always_kills_ends_the_run_behind_what_lies_before_it(tmp_path):
    found, error = doubled(tmp_path, [*["fine"] * 7, "kills", *["fine"] * 9], 2)
    assert found == [0, 2, 4, 6, 8, 10]
    assert isinstance(error, ChildProcessError)
    assert str(error) == (
        "rows 7 to 9, from file:7 on: lost 3 workers, the last one: killed by signal 9"
    )


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("is wrong", ValueError, "file:8: needs sense; found none"),
        ("is odd", ValueError, "TwoWordsError: first second"),
        ("is a mistake", KeyError, "'file:8'"),
    ],
)
def test_an_error_comes_behind_all_that_was_done_before_it(tmp_path, kind, expected, message):
    found, error = doubled(tmp_path, [*["fine"] * 7, kind, *["fine"] * 9], 3)
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert type(error) is expected and str(error) == message
    if expected is KeyError:
        assert "in _happens" in error.__notes__[0]


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (cannot_load, FileNotFoundError, "m/model: no such model"),
        (dies_loading, ChildProcessError, "lost 3 times before it was ready: killed by signal 9"),
    ],
)
def test_who_cannot_load_says_why(load, kind, message):
    chunks = chunked(numbered(["fine"] * 9), 3)
    with (
        dealt(options(2), load, chunks, device="cpu") as deal,
        pytest.raises(kind, match=message),
    ):
        list(deal.groups())


def test_processes_end_with_the_one_that_asked(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.workers.test_processes import doubled\n"
        "doubled(Path(sys.argv[1]), ['waits'] * 4, 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until(lambda: len(list(tmp_path.glob("mark*"))) == 2)
    parent.kill()
    parent.wait()
    for pid in pids(tmp_path):
        (tmp_path / "pid").write_text(str(pid))
        assert is_gone(tmp_path / "pid")


def test_one_gpu_of_several_cannot_be_shared_out():
    with pytest.raises(ValueError, match=r"--device must be auto, cpu or cuda .*; found cuda:1"):
        options(2).check("cuda:1")
    options(0).check("cuda:1")


def until(is_so):
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < 60
        time.sleep(0.01)

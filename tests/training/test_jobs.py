"""Jobs in processes: all are done, failures are told, none outlives the one that asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from melior.training.jobs import in_processes, n_cores

ROOT = Path(__file__).parents[2]


def work(job):
    folder, name, kind = job
    (folder / f"{name}.begun").write_text(f"{os.getpid()} {torch.get_num_threads()}")
    print(f"hello from {name}")
    if kind == "raises":
        raise ValueError("no such thing")
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exits":
        os._exit(3)
    if kind == "sleeps":
        time.sleep(60)
    (folder / f"{name}.done").write_text("")


def log(job):
    return job[0] / "logs" / f"{job[1]}.txt"


def done(folder, kinds, at_once):
    jobs = [(folder, f"job{i}", kind) for i, kind in enumerate(kinds)]
    ended = in_processes(work, jobs, at_once=at_once, log=log)
    return {one.job[1]: one.reason for one in ended}


def test_every_job_ends_and_says_why_it_failed(tmp_path):
    kinds = ["works", "raises", "dies", "exits", "works"]
    reasons = done(tmp_path, kinds, at_once=2)
    assert reasons == {
        "job0": "", "job1": "ValueError: no such thing", "job2": "killed by signal 9",
        "job3": "ended with exit code 3", "job4": "",
    }  # fmt: skip
    assert {p.stem for p in tmp_path.glob("*.done")} == {"job0", "job4"}
    assert "hello from job1" in (tmp_path / "logs" / "job1.txt").read_text()
    assert "Traceback" in (tmp_path / "logs" / "job1.txt").read_text()


def test_processes_differ_and_threads_are_divided(tmp_path):
    done(tmp_path, ["works"] * 2, at_once=2)
    pids, threads = zip(*(p.read_text().split() for p in tmp_path.glob("*.begun")), strict=True)
    assert len({*pids, str(os.getpid())}) == 3
    assert set(threads) == {str(max(1, n_cores() // 2))}


def test_whoever_stops_asking_ends_what_still_runs(tmp_path):
    jobs = [(tmp_path, "short", "works"), (tmp_path, "long", "sleeps")]
    running = in_processes(work, jobs, at_once=2, log=log)
    assert next(running).job[1] == "short"
    while not (tmp_path / "long.begun").exists():
        time.sleep(0.02)
    running.close()
    assert is_gone(tmp_path / "long.begun")


def test_jobs_end_with_the_process_that_asked(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.training.test_jobs import done\n"
        "done(Path(sys.argv[1]), ['sleeps'], 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    began = time.monotonic()
    while not (tmp_path / "job0.begun").exists() or not (tmp_path / "job0.begun").read_text():
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert is_gone(tmp_path / "job0.begun")


def is_gone(file):
    """Wait up to ten seconds for a process to end."""
    pid = int(file.read_text().split()[0])
    for _ in range(500):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.02)
    return False

"""How a benchmark and the workers that it starts take turns: one JSON line in, one JSON line out.

A worker computes only between a line that it received and its answer, so that its CPU time can be
read from outside, and prints nothing else to its standard output. Standard library alone: the
rival's worker imports it too. Linux only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Message = dict[str, Any]


class Line:
    """The worker's end."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to standard error

    def wait(self) -> Message:
        """Wait for the next request; the process ends when nobody is there to ask."""
        text = sys.stdin.readline()
        if not text:
            sys.exit(0)
        return json.loads(text)

    def answer(self, message: Message) -> None:
        """Hand the turn back."""
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()


def serve(make: Callable[[Message], Any], versions: Message) -> None:
    """Make what answers from the first request, then let it do what it is asked, by name."""
    line = Line()
    worker = make(line.wait())
    line.answer(versions)
    while True:
        request = line.wait()
        line.answer(getattr(worker, request["do"])(**request.get("options", {})))


class Worker:
    """The benchmark's end: a process that computes when it is asked, and only then.

    Args:
        side: whose process it is.
        python: that runs it.
        threads: that it may use.
        request: the first line that it is sent.
        kind: of its work, as the name of its file ends.
    """

    def __init__(
        self, side: str, python: Path, threads: int, request: Message, *, kind: str = ""
    ) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
            "TRANSFORMERS_VERBOSITY": "error",
            "TQDM_DISABLE": "1",
            # A thread that waits sleeps: its CPU time then counts work, whatever else is running.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.side = side
        self.process = subprocess.Popen(
            [python, HERE / f"worker_{side}{kind}.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.versions = self.send(request)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, as its standard input ends."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def ask(self, what: str, **options: Any) -> Message:
        """Let it do one thing and wait for the answer."""
        return self.send({"do": what, "options": options})

    def send(self, message: Message) -> Message:
        """Write a line and read the answer."""
        assert self.process.stdin and self.process.stdout
        answer = ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(
                f"{self.side}: its process ended ({self.process.wait()}); see its messages above;"
                " -9 most often means that memory ran out"
            )
        return json.loads(answer)

    def timed(self, what: str, **options: Any) -> Message:
        """Let it do one thing; add the CPU and wall seconds that this took."""
        cpu, wall = self.cpu_seconds(), time.monotonic()
        answer = self.ask(what, **options)
        wall = time.monotonic() - wall
        return {**answer, "cpu": self.cpu_seconds() - cpu, "wall": wall}

    def cpu_seconds(self) -> float:
        """Read user and system time so far, of all its threads and of children that have ended.

        Its own by its clock, whose name the kernel makes of its number (clock_getcpuclockid(3)):
        what `stat` says goes by hundredths of a second.
        """
        own = time.clock_gettime(~self.process.pid << 3 | 2)
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return own + sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        """Let the peak count from here: loading may have needed more than training does."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_gib(self) -> float:
        """Read the most memory that was resident at once."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 2**20

"""Workers that are processes on this machine; threads and GPUs are divided among them."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess

from melior.training.jobs import end_with_parent, how_ended, process_context
from melior.workers.work import Chunk, Done, Event, Load, Lost, Ready, done_by, portable

PATIENCE = 10.0
"""Seconds for a process to end by itself when it has let go of its pipe."""


@dataclass(frozen=True)
class _Running:
    process: BaseProcess
    pipe: connection.Connection


class Processes:
    """Processes that end when this one does.

    Args:
        load: what each does first.
        n: how many there may be.
    """

    def __init__(self, load: Load, n: int) -> None:
        self._load = load
        self._n = n
        self._context = process_context()
        self._running: dict[int, _Running] = {}

    @property
    def n(self) -> int:
        """How many there may be."""
        return self._n

    def begin(self, worker: int) -> None:
        """Start a process, in place of the one that was there."""
        self._end(worker)
        here, there = self._context.Pipe()
        args = self._load, worker, self.n, there
        process = self._context.Process(target=_work, args=args, daemon=True)
        process.start()
        there.close()
        self._running[worker] = _Running(process, here)

    def give(self, worker: int, chunk: Chunk) -> None:
        """Send a chunk; that nobody is there to take it shows as an event."""
        with suppress(OSError):
            self._running[worker].pipe.send(chunk)

    def event(self) -> Event:
        """Wait for what a process says, or for its end."""
        places = {one.pipe: worker for worker, one in self._running.items()}
        ends = {one.process.sentinel: worker for worker, one in self._running.items()}
        ready = connection.wait([*places, *ends])
        worker = next((places | ends)[one] for one in ready)  # type: ignore[index]
        one = self._running[worker]
        with suppress(EOFError, OSError):  # which a process leaves that ends in mid-sentence
            if one.pipe.poll():
                said: Event = one.pipe.recv()
                return said
        one.process.join(PATIENCE)
        self._end(worker)
        return Lost(worker, how_ended(one.process))

    def close(self) -> None:
        """End all of them."""
        for worker in list(self._running):
            self._end(worker)

    def _end(self, worker: int) -> None:
        if one := self._running.pop(worker, None):
            one.process.kill()
            one.process.join()
            one.pipe.close()


def _work(load: Load, worker: int, n: int, pipe: connection.Connection) -> None:
    """Run in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asked, who ends this
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # standard output belongs to the results
    _take_share(worker, n)
    try:
        work = load()
    except Exception as error:  # of every kind: the one who asked is to hear of it
        pipe.send(Done(worker, error=portable(error)))
        return
    pipe.send(Ready(worker, dict(work.about)))
    with suppress(EOFError):
        while True:
            pipe.send(done_by(work, worker, pipe.recv()))


def _take_share(worker: int, n: int) -> None:
    """Take a share of the threads, and the next of the GPUs."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // n))
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = list(map(str, range(torch.cuda.device_count()))) if seen is None else seen.split(",")
    if any(gpus):  # set before anything touches one of them
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]

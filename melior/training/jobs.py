"""Work in processes of its own: side by side, each with its share of the threads and its log.

A process of its own says how much memory its work took at most, and takes nothing with it when it
is killed. It ends when the one that asked for it does.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PRELOADED = ["melior.stages.bakeoff.cell"]
"""Imported once, in a server from which processes are forked before anything is computed."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """A job that has ended, and why it failed; an empty reason where it did not."""

    job: T
    reason: str


@dataclass(frozen=True)
class _Running(Generic[T]):
    job: T
    process: BaseProcess
    said: connection.Connection


def in_processes(
    act: Callable[[T], object], jobs: Sequence[T], *, at_once: int, log: Callable[[T], Path]
) -> Generator[Ended[T], None, None]:
    """Do each job in a process of its own and yield it when it has ended, in that order.

    Closing the generator kills what still runs.

    Args:
        act: what is done; a function of a module, since another process must find it.
        jobs: what it is done to; must be picklable.
        at_once: how many run side by side; the threads are divided among them.
        log: where what a job prints is written.
    """
    context = process_context()
    waiting, running = list(jobs), list[_Running[T]]()
    threads = max(1, n_cores() // min(at_once, max(len(jobs), 1)))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_begin(context, act, waiting.pop(0), threads, log))
            ready = connection.wait([one.process.sentinel for one in running])
            for one in [one for one in running if one.process.sentinel in ready]:
                running.remove(one)
                yield Ended(one.job, _reason(one))
    finally:
        for one in running:
            one.process.kill()
        for one in running:
            one.process.join()


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def n_unasked() -> int:
    """Return how many processes a computation may use that nobody asked to: 1 is this one alone.

    A new process imports the program's main module again, and only of `melior` is it known that
    this does nothing. Processes that `torchrun` started divide the cores; those begun here have
    their share already.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    is_ours = (spec is not None and spec.name == "melior.__main__") or Path(
        file or ""
    ).name == "melior"
    if not is_ours or multiprocessing.parent_process() is not None:
        return 1
    return max(1, n_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def peak_memory() -> int:
    """Return the most bytes that this process has held: the accelerator's where it has one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_context() -> Any:
    """Return how processes begin: forked from a server that has imported what is heavy."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def call_processes() -> None:
    """Let the server that processes are forked from begin to import, while this one goes on."""
    if process_context().get_start_method() == "forkserver":
        forkserver.ensure_running()


def end_with_parent() -> None:
    """End this process when the one that began it has ended; for a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def how_ended(process: BaseProcess) -> str:
    """Say how a process that has ended did so, where it left no word."""
    code = process.exitcode or 0
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _begin(
    context: Any, act: Callable[[T], object], job: T, threads: int, log: Callable[[T], Path]
) -> _Running[T]:
    place = log(job)
    place.parent.mkdir(parents=True, exist_ok=True)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(act, job, threads, place, there))
    process.start()
    there.close()
    return _Running(job, process, here)


def _work(
    act: Callable[[T], object], job: T, threads: int, log: Path, pipe: connection.Connection
) -> None:
    """Run in the new process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(threads)
    try:
        act(job)
    except Exception as error:  # of every kind: one job's failure is a row, not the end of all
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("")


def _reason(one: _Running[Any]) -> str:
    """Return what a process said of its end, or how it ended without a word."""
    one.process.join()
    with suppress(EOFError, OSError):
        if one.said.poll():
            return str(one.said.recv())
    return how_ended(one.process)

"""Chunks dealt out to workers; what they make of them comes back in order, whole and once.

A chunk's results depend on the chunk alone, so who works on it, and how many workers there are,
changes nothing. One whose worker is lost (killed, out of memory, a machine that is gone) is dealt
out again. Needs no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

from melior.options import WorkerOptions
from melior.records import Group
from melior.workers.work import Chunk, Done, Event, Load, Lost, Ready, is_out_of_memory

TRIES = 3
"""So many workers lost by one chunk, or one worker so often before it is ready, are no chance."""
AHEAD = 4
"""Chunks for each worker that are read and not yet given on, at most; bounds the memory."""


@runtime_checkable
class Workers(Protocol):
    """Places for workers, each of which does one thing at a time."""

    @property
    def n(self) -> int:
        """How many there may be."""

    def begin(self, worker: int) -> None:
        """Let a worker load what it needs, in place of the one that was there."""

    def give(self, worker: int, chunk: Chunk) -> None:
        """Give a chunk to a worker that is ready and idle."""

    def event(self) -> Event:
        """Wait for what happens next; a worker that cannot load is done with an error."""

    def close(self) -> None:
        """End all of them."""


class Deal:
    """Chunks that are being dealt out.

    Args:
        workers: as many are begun as there are chunks for.
        chunks: read no further ahead than is of use.
    """

    def __init__(self, workers: Workers, chunks: Iterator[Chunk]) -> None:
        self._workers = workers
        early = list(islice(chunks, workers.n))
        self._unread = chain(early, chunks)
        self._is_read = not early
        self._n_read = 0
        self._idle: list[int] = []
        self._held: dict[int, int] = {}
        """By worker, the number of its chunk."""
        self._open: dict[int, Chunk] = {}
        """By number, chunks that are read and not yet given on, ..."""
        self._again: list[int] = []
        """... those of them that lost their worker, ..."""
        self._done: dict[int, Done] = {}
        """... and those that are done."""
        self._losses: Counter[tuple[str, int]] = Counter()
        self._heard: dict[tuple[int, int], Done] = {}
        """By worker and how often it was begun, the last that it said of itself."""
        self._begun: Counter[int] = Counter()
        self._about: Mapping[str, Any] | None = None
        for worker in range(len(early)):
            self._begin(worker)

    @property
    def about(self) -> Mapping[str, Any]:
        """All that decides the results; waits until a worker is ready.

        Raises:
            ValueError: or whatever else keeps a worker from loading what it needs.
            ChildProcessError: it was lost again and again.
        """
        while self._about is None:
            self._take(self._workers.event())
        return self._about

    def groups(self) -> Iterator[Group]:
        """Yield what is made of each chunk's groups, in order.

        Raises:
            ValueError: or whatever else a worker, or reading, has failed with, behind all that
                lies before it.
            ChildProcessError: a chunk has lost worker after worker.
        """
        number = 0
        while True:
            self._deal_out()
            if number in self._done:
                done = self._done.pop(number)
                yield from done.groups
                if done.error is not None:
                    raise done.error
                del self._open[number]
                number += 1
            elif self._is_read and not self._open:
                return
            else:
                self._take(self._workers.event())

    def remarks(self) -> list[str]:
        """Return what the workers have to say, each of its own share."""
        several = len(self._heard) > 1
        return [
            f"worker {worker + 1}: {line}" if several else line
            for (worker, _), one in sorted(self._heard.items())
            for line in one.remarks
        ]

    def costs(self) -> Counter[str]:
        """Return what all that was done has cost."""
        total: Counter[str] = Counter()
        for one in self._heard.values():
            total.update(one.costs)
        return total

    def _deal_out(self) -> None:
        """Give chunks to those that are idle: the ones that lost their worker first."""
        while self._idle and (number := self._next()) is not None:
            worker = self._idle.pop(0)
            self._held[worker] = number
            self._workers.give(worker, self._open[number])

    def _next(self) -> int | None:
        if self._again:
            self._again.sort()
            return self._again.pop(0)
        if self._is_read or len(self._open) >= AHEAD * self._workers.n:
            return None
        number = self._n_read
        try:
            self._open[number] = next(self._unread)
        except StopIteration:
            self._is_read = True
            return None
        except Exception as error:  # of every kind: what was read before it is given on first
            self._close(number, Done(-1, error=error))
            return None
        self._n_read += 1
        return number

    def _take(self, event: Event) -> None:
        worker = event.worker
        if isinstance(event, Ready):
            self._meet(event)
        elif isinstance(event, Lost):
            self._lose(worker, event.why)
        elif event.error is not None and is_out_of_memory(event.error):
            self._lose(worker, f"out of memory: {event.error}")
        elif worker in self._held:
            self._close(self._held.pop(worker), event)
            self._idle.append(worker)
            self._heard[worker, self._begun[worker]] = replace(event, groups=[])
        elif event.error is not None:
            raise event.error

    def _meet(self, event: Ready) -> None:
        if self._about not in (None, event.about):
            raise ValueError(
                f"worker {event.worker + 1} holds {dict(event.about)}, others hold"
                f" {dict(self._about or {})}: the files of a model must be the same on all machines"
            )
        self._about = event.about
        self._losses["worker", event.worker] = 0
        self._idle.append(event.worker)

    def _lose(self, worker: int, why: str) -> None:
        """Begin a worker anew, and deal out again what it held."""
        number = self._held.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        lost = ("worker", worker) if number is None else ("chunk", number)
        self._losses[lost] += 1
        is_hopeless = self._losses[lost] >= TRIES
        if number is None and is_hopeless:
            raise ChildProcessError(f"a worker was lost {TRIES} times before it was ready: {why}")
        if number is not None and is_hopeless:
            told = f"{self._open[number].where}: lost {TRIES} workers, the last one: {why}"
            self._close(number, Done(worker, error=ChildProcessError(told)))
        elif number is not None:
            self._again.append(number)
        self._begin(worker)

    def _close(self, number: int, done: Done) -> None:
        self._done[number] = done
        if done.error is not None:
            self._is_read = True  # nothing behind an error is given on, so nothing more is begun

    def _begin(self, worker: int) -> None:
        self._begun[worker] += 1
        self._workers.begin(worker)


@contextmanager
def dealt(
    options: WorkerOptions, load: Load, chunks: Iterator[Chunk], *, device: str
) -> Iterator[Deal]:
    """Deal chunks out to processes here or to a cluster, which end with it.

    Args:
        options: to whom.
        load: what each worker does first.
        chunks: at least one.
        device: what is computed on; without `auto` or `cuda` no GPU is asked for.
    """
    workers: Workers
    if options.cluster:
        from melior.workers.cluster import Cluster

        on_gpus = device in ("auto", "cuda")
        workers = Cluster(load, options.cluster, n=options.processes, on_gpus=on_gpus)
    else:
        from melior.workers.processes import Processes

        workers = Processes(load, options.processes)
    try:
        yield Deal(workers, chunks)
    finally:
        workers.close()

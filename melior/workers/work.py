"""What workers are given, what they do, and what is heard of them; needs no torch."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from melior.records import Group


@dataclass(frozen=True)
class Chunk:
    """Groups that lie one behind the other in a file, and the place of the first, from 0."""

    first: int
    groups: tuple[Group, ...]

    @property
    def where(self) -> str:
        """Which rows these are, for whoever has to find them."""
        last = self.first + len(self.groups)
        return f"rows {self.first + 1} to {last}, from {self.groups[0].origin or 'stdin'} on"


@runtime_checkable
class Work(Protocol):
    """What a worker does, once it has loaded what it needs."""

    @property
    def about(self) -> Mapping[str, Any]:
        """All that decides its results; the same for every worker."""

    def groups(self, chunk: Chunk, /) -> Iterable[Group]:
        """Return what is made of each group, in order."""

    def remarks(self) -> list[str]:
        """Say what there is to say of all that was done so far, a sentence each."""

    def costs(self) -> Mapping[str, int]:
        """Count what all that was done so far has cost, where it cost anything but time."""


Load = Callable[[], Work]
"""Made in one process and called in another, so picklable."""


@dataclass(frozen=True)
class Ready:
    """A worker has loaded what it needs."""

    worker: int
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """A worker is through with its chunk, or failed: then what it had done comes with the error."""

    worker: int
    groups: list[Group] = field(default_factory=list)
    error: Exception | None = None
    remarks: list[str] = field(default_factory=list)
    costs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with whatever it was at."""

    worker: int
    why: str


Event = Ready | Done | Lost


def chunked(groups: Iterable[Group], size: int, *, first: int = 0) -> Iterator[Chunk]:
    """Yield groups in chunks, which begin at the multiples of their size.

    Args:
        groups: from the place `first` on.
        size: of a chunk.
        first: a multiple of the size.
    """
    own: list[Group] = []
    wrong: Exception | None = None
    rest = iter(groups)
    while wrong is None:
        try:
            own.extend(islice(rest, size))
        except Exception as error:  # of every kind: the groups before it are good
            wrong = error
        if own:
            yield Chunk(first, tuple(own))
            first += size
        elif wrong is None:
            return
        own = []
    raise wrong


def done_by(work: Work, worker: int, chunk: Chunk) -> Done:
    """Do a chunk, in a worker; a failure comes with what was done before it."""
    groups: list[Group] = []
    error: Exception | None = None
    try:
        for group in work.groups(chunk):
            groups.append(group)
    except Exception as found:  # of every kind: the one who asked is to hear of it
        error = portable(found)
    return Done(worker, groups, error, work.remarks(), dict(work.costs()))


def portable(error: Exception) -> Exception:
    """Return an error that another process can raise, with where it came from as a note."""
    error.add_note(f"in a worker:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of every kind: some errors cannot be made from their own arguments
        kinds = (kind for kind in (ValueError, OSError) if isinstance(error, kind))
        return next(kinds, RuntimeError)(f"{type(error).__name__}: {error}")
    return error


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory was lacking, here or on an accelerator."""
    name = type(error).__name__
    return name in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error)

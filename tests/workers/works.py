"""What workers of tests do: real work with real deaths, each where a group says so."""

import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from melior.records import Group
from melior.workers.work import Chunk


def numbered(kinds):
    """Groups with a number each, and what is to happen to whoever works on them."""
    return [
        Group((), (), {"n": n, "kind": kind}, origin=f"file:{n + 1}")
        for n, kind in enumerate(kinds)
    ]


@dataclass
class Doubling:
    """Doubles numbers; leaves word of each process in a folder."""

    folder: Path
    n_done: int = 0
    about: dict = field(default_factory=lambda: {"by": 2})

    def __post_init__(self) -> None:
        name = f"{os.getpid()}.{threading.get_ident()}.begun"
        (self.folder / name).write_text(str(torch.get_num_threads()))

    def groups(self, chunk: Chunk):
        for group in chunk.groups:
            self._happens(group)
            self.n_done += 1
            yield replace(group, facts=group.facts | {"twice": 2 * group.facts["n"]})

    def remarks(self):
        return [f"{self.n_done} doubled"]

    def costs(self):
        return {"numbers": self.n_done}

    def _happens(self, group: Group) -> None:
        kind, mark = group.facts["kind"], self.folder / f"mark{group.facts['n']}"
        is_first = not mark.exists()
        mark.touch()
        if kind == "kills" or (kind == "kills once" and is_first):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "lacks memory once" and is_first:
            raise MemoryError("no more")
        if kind == "is wrong":
            raise ValueError(f"{group.origin}: needs sense; found none")
        if kind == "is a mistake":
            raise KeyError(group.origin)
        if kind == "is odd":
            raise TwoWordsError("first", "second")
        while kind == "waits" and not (self.folder / "go on").exists():
            time.sleep(0.01)
        n_expected = int(kind.removeprefix("meets ")) if kind.startswith("meets ") else 0
        while len(list(self.folder.glob("*.begun"))) < n_expected:
            time.sleep(0.01)


class TwoWordsError(ValueError):
    """Cannot be made from what it hands on, as some errors of libraries."""

    def __init__(self, one, other):
        super().__init__(f"{one} {other}")


def cannot_load():
    raise FileNotFoundError("m/model: no such model")


def dies_loading():
    os.kill(os.getpid(), signal.SIGKILL)

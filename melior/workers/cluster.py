"""Workers that are Ray actors, wherever a cluster has room for them.

Ray says who is lost; what is done about it is the business of `deal`, which asks nothing of Ray's
own retries.
"""

from __future__ import annotations

import math
import os
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from melior.workers.work import Chunk, Done, Event, Load, Lost, Ready, Work, done_by, portable

HERE = "local"
"""In place of an address: a cluster that is started here, and ends with the run."""
STORE = 2**29
"""Bytes for the objects of such a cluster: chunks on their way, no more."""
PATIENCE = 0.8
"""Seconds until an address that does not answer is taken for a wrong one; Ray takes 27."""


class Cluster:
    """Actors, one for each GPU, or for each machine where there are none.

    Args:
        load: what each does first.
        address: of the cluster; `auto` for the one that this machine belongs to, or `local`.
        n: another number of actors; 0 keeps to the rule.
        on_gpus: use the GPUs that there are.

    Raises:
        ValueError: Ray is not installed.
        ConnectionError: no cluster is there.
    """

    def __init__(self, load: Load, address: str, *, n: int = 0, on_gpus: bool = True) -> None:
        self._ray = _connected(address)
        machines = [one["Resources"] for one in self._ray.nodes() if one["Alive"]]
        gpus = int(sum(one.get("GPU", 0) for one in machines)) if on_gpus else 0
        self._n = n or gpus or len(machines)
        self._share = _share([one.get("CPU", 1) for one in machines], gpus, self._n)
        self._load = self._ray.put(load)
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}
        """By the reference of what it is to say, the worker."""

    @property
    def n(self) -> int:
        """How many there may be; those for which there is no room yet are not ready."""
        return self._n

    def begin(self, worker: int) -> None:
        """Start an actor, in place of the one that was there."""
        self._end(worker)
        actor = self._ray.remote(**self._share)(_Place).remote(worker)
        self._actors[worker] = actor
        self._asked[actor.load.remote(self._load)] = worker

    def give(self, worker: int, chunk: Chunk) -> None:
        """Send a chunk."""
        self._asked[self._actors[worker].do.remote(chunk)] = worker

    def event(self) -> Event:
        """Wait for what an actor says, or for its end."""
        (said,), _ = self._ray.wait(list(self._asked), num_returns=1)
        worker = self._asked.pop(said)
        try:
            event: Event = self._ray.get(said)
        except self._ray.exceptions.RayError as error:
            return Lost(worker, _reason(error))
        return event

    def close(self) -> None:
        """End all of them, and let go of the cluster."""
        for worker in list(self._actors):
            self._end(worker)
        self._ray.shutdown()

    def _end(self, worker: int) -> None:
        if actor := self._actors.pop(worker, None):
            self._asked = {said: by for said, by in self._asked.items() if by != worker}
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)


class _Place:
    """What an actor is; it lives in a process of its own, maybe on another machine."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.work: Work | None = None

    def load(self, load: Load) -> Event:
        """Load what is needed."""
        try:
            self.work = load()
        except Exception as error:  # of every kind: the one who asked is to hear of it
            return Done(self.worker, error=portable(error))
        return Ready(self.worker, dict(self.work.about))

    def do(self, chunk: Chunk) -> Event:
        """Do a chunk."""
        assert self.work is not None
        return done_by(self.work, self.worker, chunk)


def _connected(address: str) -> Any:
    """Return Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address not in (HERE, "auto"):
        _check_answers(address)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(
            "--cluster needs Ray, which is not installed; run pip install 'melior[cluster]'"
        ) from error
    # Whom it has lost Ray prints itself, on standard output, where the results stand; there is no
    # public way to have it silent.
    ray._private.worker._worker_logs_enabled = False
    fresh = {"include_dashboard": False, "object_store_memory": STORE} if address == HERE else {}
    try:
        ray.init(address, logging_level="ERROR", log_to_driver=False, **fresh)
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address, error) from error
    return ray


def _check_answers(address: str) -> None:
    """Raise unless something answers at `host:port` or `ray://host:port`."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if not place.hostname or not place.port:
            raise ValueError("needs HOST:PORT")
        socket.create_connection((place.hostname, place.port), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"--cluster must be the address of a Ray cluster that runs, auto, or {HERE} (starts"
        f" one); found {address}: {error}"
    )


def _share(cpus: list[float], gpus: int, n: int) -> dict[str, float]:
    """Return what each of n actors asks for: as many CPUs as leave room for all, if any do."""
    if gpus:
        return {"num_gpus": 1 / math.ceil(n / gpus), "num_cpus": 1}
    fits = (c for c in range(int(max(cpus)), 1, -1) if sum(own // c for own in cpus) >= n)
    return {"num_cpus": next(fits, 1)}


def _reason(error: Exception) -> str:
    """Return the first lines of what Ray says of an end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"

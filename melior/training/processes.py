"""Who shares the work: the processes that `torchrun` started beside this one, or it alone.

For a process alone everything here is the identity, so that whoever asks needs no branch for it.
Processes that share the work go through the same steps in the same order, and meet at whatever
gathers, sums or hands on; a process that fails ends the others, and the first to fail says why.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from melior.records import Metrics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: the first one may write a large model meanwhile."""
LOST = (
    "another process of this run has ended; what it said stands above, and nothing where it was"
    " killed; go on with --resume"
)


@dataclass
class _World:
    """Where this process stands among those that share the work; alone until `join`."""

    place: int = 0
    count: int = 1


_world = _World()


def place() -> int:
    """Return which of the processes this is, from 0."""
    return _world.place


def count() -> int:
    """Return how many processes share the work."""
    return _world.count


def is_first() -> bool:
    """Say whether this is the process that writes, logs and reports."""
    return _world.place == 0


def expected() -> int:
    """Return how many processes there are to be, as `torchrun` tells each before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def join(device: torch.device) -> None:
    """Meet the processes that torchrun started; without it, or met before, nothing happens.

    Tensors on GPUs travel by NCCL, all else by gloo.

    Raises:
        ValueError: a GPU is named that all processes of this machine would share.
    """
    if count() > 1 or expected() == 1:
        return
    import atexit

    import torch
    import torch.distributed as dist

    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index != own:
        raise ValueError(
            f"device: each process needs a GPU of its own, which auto gives it; found {device} for"
            f" the process {own} of this machine"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _mortal():
        dist.init_process_group(backend, timeout=PATIENCE)
    _world.place, _world.count = dist.get_rank(), dist.get_world_size()
    atexit.register(_part)


@contextmanager
def _mortal() -> Iterator[None]:
    """Let SIGTERM end this process at once: it waits outside Python for others that may be gone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their places."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def meet() -> None:
    """Wait until all processes have come here."""
    gather(None)


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the processes of a machine do one after another what needs much of its memory."""
    if count() == 1:
        yield
        return
    own = int(os.environ.get("LOCAL_RANK", place()))
    last = max(gather(own))
    for _ in range(own):
        meet()
    yield
    for _ in range(own, last + 1):
        meet()


def from_first(compute: Callable[[], T]) -> T:
    """Let the first process compute something for all; what goes wrong goes wrong for all."""
    if count() == 1:
        return compute()
    import torch.distributed as dist

    found: list[Any] = [None, None]
    if is_first():
        try:
            found[0] = compute()
        except (ValueError, OSError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    result: T = found[0]
    return result


def total(values: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if count() == 1:
        return values
    import torch.distributed as dist

    summed = values.detach().cpu().clone()
    dist.all_reduce(summed)
    return summed.to(values.device)


def added(metrics: Metrics) -> Metrics:
    """Return the sums over all processes; what one has not counts as 0."""
    if count() == 1:
        return metrics
    summed: Metrics = {}
    for part in gather(metrics):
        for name, value in part.items():
            summed[name] = summed.get(name, 0.0) + value
    return summed


def turns(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Yield this process's share, and whether it is that: all processes have as many turns.

    Where there is nothing left for a process, it goes along with the last item, which is another's.
    """
    for start in range(0, len(items), count()):
        own = start + place()
        yield items[min(own, len(items) - 1)], own < len(items)


def command(words: Sequence[str]) -> list[str]:
    """Return what the user typed, `torchrun` included."""
    if count() == 1:
        is_module = words[:1] and Path(words[0]).name == "__main__.py"  # python -m melior
        return ["melior", *words[1:]] if is_module else list(words)
    each = os.environ.get("LOCAL_WORLD_SIZE", str(count()))
    nodes = count() // max(1, int(each))
    several = ["--nnodes", str(nodes)] if nodes > 1 else []
    return ["torchrun", *several, "--nproc-per-node", each, "-m", "melior", *words[1:]]


def is_loss(error: BaseException) -> bool:
    """Say whether an error means no more than that another process has ended."""
    if count() == 1:
        return False
    import torch.distributed as dist

    said = str(error).lower()
    words = ("gloo", "nccl", "connection closed", "connection reset", "recvvalue failed")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in said for word in words)
    )


def reason(error: BaseException) -> str:
    """Return why a run fails: what another process said that failed before, or this one's error."""
    own = LOST if is_loss(error) else f"{type(error).__name__}: {error}"
    if count() == 1:
        return own
    _end_undisturbed()
    return _first_failure()[1] or own


def is_first_to_fail(said: str) -> bool:
    """Note why this process ends, and say whether no other has ended before it."""
    if expected() == 1:
        return True
    _failures.append(said)
    _end_undisturbed()
    return _first_failure(said)[0] == os.environ["RANK"]


def leave(code: int) -> NoReturn:
    """End this process; at once where others share the work, as torch would wait for them.

    Raises:
        SystemExit: where there are no others.
    """
    if expected() == 1:
        raise SystemExit(code) from None
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_failures: list[str] = []


def _end_undisturbed() -> None:
    """Let no SIGTERM cut short what this process says: torchrun sends it when one has ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _first_failure(said: str = "") -> tuple[str, str]:
    """Return which process failed first and what it said: this one, if it says and none did before.

    The store at which torchrun lets its processes meet keeps it, whoever ends.
    """
    import torch.distributed as dist

    own = os.environ.get("RANK", "0")
    key = f"melior/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # not in its list of names
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
            wait_for_workers=False, timeout=timedelta(seconds=5),
        )  # fmt: skip
        if said:
            note = store.compare_set(key, "", f"{own} {said}").decode()
        else:
            note = store.get(key).decode() if store.check([key]) else ""
    except (dist.DistError, RuntimeError, KeyError, ValueError):
        note = f"0 {said}"  # where there is no such store, the first one speaks
    where, _, what = note.partition(" ")
    return where, what


def _part() -> None:
    """Leave the others in order; after a failure there is nobody to wait for."""
    import torch.distributed as dist

    if dist.is_initialized() and not _failures:
        dist.destroy_process_group()

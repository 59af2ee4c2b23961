"""The machine that a run is planned for: this one, as it is, or one that is told; no torch."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from melior.checks import one_of

if TYPE_CHECKING:
    import torch

DEVICES = {
    "A100": (312e12, 80e9),
    "A100-40GB": (312e12, 40e9),
    "H100": (989e12, 80e9),
    "H200": (989e12, 141e9),
    "B200": (2250e12, 180e9),
    "L40S": (362e12, 48e9),
    "RTX4090": (165e12, 24e9),
}
"""Declared peak, FLOP/s of dense bfloat16 products, and bytes of memory: from data sheets."""
DRIVER = 10**9
"""Bytes of a GPU that its driver, libraries and communication are taken to need."""
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e\+?\d+)?"
_TOLD = re.compile(
    rf"(?:(?P<count>\d+) *x *)?(?:(?P<flops>{_NUMBER}) *FLOP/s *, *(?P<memory>{_NUMBER}) *GB"
    r"|(?P<name>[\w-]+))"
)


@dataclass(frozen=True)
class Machine:
    """Some devices of one kind."""

    name: str
    count: int
    memory: float
    """Bytes of each, and free where it is this machine."""
    flops: float = 0.0
    """Declared peak of each; 0 where speed is measured."""
    is_cpu: bool = False
    is_here: bool = True
    """Whether speed can be measured."""


def told(text: str) -> Machine:
    """Read a machine such as `8 x H100`, or `8 x 989e12 FLOP/s, 80 GB`.

    Raises:
        ValueError: it is none.
    """
    found = _TOLD.fullmatch(text.strip())
    machine = _machine(found) if found else None
    if machine and all(0 < n < inf for n in (machine.count, machine.memory, machine.flops)):
        return machine
    raise ValueError(
        "on must be a number of devices and their name, such as '8 x H100', or what they have,"
        f" '8 x 989e12 FLOP/s, 80 GB', each finite and above 0; found {text!r}"
    )


def _machine(found: re.Match[str]) -> Machine:
    count = int(found["count"] or 1)
    if not found["name"]:
        memory, flops = float(found["memory"]) * 1e9, float(found["flops"])
        return Machine("told", count, memory, flops, is_here=False)
    name = found["name"].upper()
    one_of("on", name, DEVICES)
    flops, memory = DEVICES[name]
    return Machine(name, count, memory, flops, is_here=False)


def here(device: torch.device) -> Machine:
    """Return this machine, with what is free on the device."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Machine(torch.cuda.get_device_name(device), 1, free)
    return Machine(f"this machine ({device.type})", 1, free_memory(), is_cpu=device.type == "cpu")


def free_memory() -> int:
    """Return how much memory the system would give, this program's own counted as free."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = re.search(r"MemAvailable: +(\d+)", info.read_text(encoding="utf-8"))
    free = int(found[1]) * 1024 if found else 0
    return min([free, *_within_group()]) + resident()


def resident() -> int:
    """Return how much memory this program has now."""
    status = Path("/proc/self/statm")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return int(status.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _within_group(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what a container's own limit leaves, where there is one."""
    try:
        limit, used, stat = (
            (folder / name).read_text(encoding="utf-8").strip()
            for name in ("memory.max", "memory.current", "memory.stat")
        )
    except OSError:
        return []
    files = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)  # given up when asked for
    spare = int(files[1]) if files else 0
    return [int(limit) - int(used) + spare] if limit.isdigit() else []


def running() -> float:
    """Return for how many seconds this program has been running."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.process_time()  # little less: starting is mostly work
    ticks = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")

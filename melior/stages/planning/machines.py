"""The machine that a run is planned for: this one, as it is, or one that is told; no torch."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from melior.options import one_of

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
_TOLD = re.compile(
    r"(?:(?P<count>\d+) *x *)?(?:(?P<flops>[\d.e+]+) *FLOP/s *, *(?P<memory>[\d.]+) *GB"
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

    @property
    def is_here(self) -> bool:
        """Whether speed can be measured."""
        return not self.flops


def told(text: str) -> Machine:
    """Read a machine such as `8 x H100`, or `8 x 989e12 FLOP/s, 80 GB`.

    Raises:
        ValueError: it is none.
    """
    found = _TOLD.fullmatch(text.strip())
    if not found:
        raise ValueError(
            "on must be a number of devices and their name, such as '8 x H100', or what they have,"
            f" '8 x 989e12 FLOP/s, 80 GB'; found {text!r}"
        )
    count = int(found["count"] or 1)
    if not count:
        raise ValueError("on must have at least one device; found 0")
    if found["name"]:
        one_of("on", found["name"].upper(), DEVICES)
        flops, memory = DEVICES[found["name"].upper()]
        return Machine(found["name"].upper(), count, memory, flops)
    return Machine("told", count, float(found["memory"]) * 1e9, float(found["flops"]))


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

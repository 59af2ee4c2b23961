"""What benchmarks against a rival share: its environment, the machine, and a table on a page."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from turns import Message

from melior.training.cache import cache_folder

HERE = Path(__file__).parent
RIVAL_ENV = cache_folder() / "benchmarks" / "trl-1.16.0"
"""Where the rival's environment is made."""


def rival_python(folder: Path) -> Path:
    """Return the Python of the rival's environment, made from its pinned requirements."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", "-r", HERE / "requirements-trl.txt"]
        subprocess.run(install, check=True)
    return python


def fill_in(page: Path, what: str, text: str) -> None:
    """Replace what stands between a page's markers."""
    start = f"<!-- numbers: {what} -->"
    end = "<!-- /numbers -->"
    top, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, bottom = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page}: needs a line {start} and {end} after it; found none")
    page.write_text(f"{top}{start}\n\n{text}\n\n{end}{bottom}", encoding="utf-8")


def machine(threads: int) -> dict[str, Any]:
    """Say what this ran on."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if kind in info]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model[1] if model else platform.processor(),
        "instructions": kinds,
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(memory),
        "load_before": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def describe_machine(found: dict[str, Any]) -> str:
    return (
        f"{found['cpu']}, {found['cores']} cores ({', '.join(found['instructions'])}),"
        f" {found['memory_gib']} GiB, {found['threads']} threads each,"
        f" load {found['load_before']:.1f} before the start"
    )


def describe_versions(found: dict[str, Message]) -> str:
    ours = {"melior": importlib.metadata.version("melior"), **found["melior"]}
    others = [own for side, own in found.items() if side != "melior"]
    return "; ".join(", ".join(f"{k} {v}" for k, v in side.items()) for side in (ours, *others))

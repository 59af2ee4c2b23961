"""What benchmarks against a rival share: options, what they ran on, and a table on a page."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rival import RIVAL_ENV
from turns import Message


def parser(about: str | None, workloads: Iterable[str]) -> argparse.ArgumentParser:
    """Return the options that all benchmarks against a rival have."""
    made = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    made.add_argument("--against", choices=["trl"], default="trl")
    made.add_argument("--workloads", default=",".join(workloads))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    made.add_argument("--json", type=Path, help="write all results to this file")
    made.add_argument(
        "--markdown", type=Path, nargs="+", default=[], help="write the table into these pages"
    )
    made.add_argument(
        "--rival-env",
        type=Path,
        default=RIVAL_ENV,
        help="folder of the rival's environment; made there if it is missing",
    )
    return made


def begin(options: argparse.Namespace) -> Message:
    """Return what the results of any benchmark hold, with no workload measured yet."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(options.threads),
        "seed": options.seed,
        "versions": {},
        "workloads": {},
        "started": time.time(),
    }


def finish(results: Message, options: argparse.Namespace, what: str, table: str) -> Message:
    """Write the results where the options say, and the table between a page's markers."""
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for page in options.markdown:
        fill_in(page, what, table)
    return results


def markdown(rows: Sequence[Sequence[str]], notes: Sequence[str], results: Message) -> str:
    """Return a table, its head first, with notes and what it was taken on below."""
    head, *others = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *others)]
    minutes = (time.time() - results["started"]) / 60
    ran = (
        f"{results['date']}; {describe_machine(results['machine'])};"
        f" {describe_versions(results['versions'])}; {minutes:.0f} minutes."
    )
    return "\n".join([*lines, "", *(f"- {note}" for note in (*notes, ran))])


def fill_in(page: Path, what: str, text: str) -> None:
    """Replace what stands between a page's markers."""
    start = f"<!-- numbers: {what} -->"
    end = "<!-- /numbers -->"
    top, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, bottom = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page}: needs a line {start} and {end} after it; found none")
    page.write_text(f"{top}{start}\n\n{text}\n\n{end}{bottom}", encoding="utf-8")


def machine(threads: int) -> Message:
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


def describe_machine(found: Message) -> str:
    return (
        f"{found['cpu']}, {found['cores']} cores ({', '.join(found['instructions'])}),"
        f" {found['memory_gib']} GiB, {found['threads']} threads each,"
        f" load {found['load_before']:.1f} before the start"
    )


def describe_versions(found: dict[str, Message]) -> str:
    ours = {"melior": importlib.metadata.version("melior"), **found["melior"]}
    sides = (", ".join(f"{k} {v}" for k, v in side.items()) for side in (ours, found["trl"]))
    return "; ".join(sides)

"""The results of a benchmark against a rival: its options, and the table that comes of them."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rival import RIVAL_ENV, describe_machine, describe_versions, fill_in, machine
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

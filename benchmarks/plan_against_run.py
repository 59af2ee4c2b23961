"""What `melior plan` says of a run, against the run: peak memory, and time.

    python benchmarks/plan_against_run.py --markdown docs/plan.md

Each case is planned and then run, with the same words on the command line, on the embedded model
and rows of random words. The truth is what the system says of the run's process (its greatest
resident memory, its CPU time) and what the run wrote down of its steps. Plan and run both count
CPU seconds in place of seconds, so that other work on the machine is in neither. Linux only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rival import describe_machine, fill_in, machine

TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from"
    " or had an they which one you were all her she there would their we him been has when who"
    " will no more if out so up said what its about than into them can only other time new some"
    " could these two may first then do any like my now over such our man me even most made after"
)
WORDS = TEXT.split()
LENGTHS = {
    "short": ((30, 80), (50, 110)),
    "long": ((480, 900), (50, 70)),
    "chat": ((20, 400), (100, 450)),
}
"""In words of random text: of a prompt, and of an answer."""
SHARED = ["--model", "smollm2", "--max-steps", "3", "--n-samples", "2", "--overwrite"]
CASES = {
    "short": ("short", ["--batch-size", "4"]),
    "long": ("long", ["--batch-size", "2"]),
    "long, checkpointing": ("long", ["--batch-size", "2", "--gradient-checkpointing"]),
    "long, LoRA": ("long", ["--batch-size", "2", "--lora-r", "16"]),
}


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    made.add_argument("--json", type=Path, help="write all results to this file")
    made.add_argument("--markdown", type=Path, nargs="+", default=[], help="pages to write into")
    options = made.parse_args(arguments)
    about, found = machine(os.cpu_count() or 1), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            found[name] = compare(Path(folder), *CASES[name])
            print(" | ".join(row(name, found[name])), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for page in options.markdown:
        fill_in(page, "plans", table(found, about))


def compare(folder: Path, lengths: str, more: list[str]) -> dict[str, Any]:
    """Plan a case, and run it."""
    data = folder / f"{lengths}.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in rows(lengths)), encoding="utf-8")
    words = ["simpo", "--data", str(data), "--out", str(folder / "run"), *SHARED, *more]
    before = cpu_seconds()
    planned = json.loads(subprocess.check_output([*MELIOR, "plan", *words, "--json"]))
    between = cpu_seconds()
    process = subprocess.Popen([*MELIOR, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"melior {' '.join(words)} failed with status {status}")
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    times = [json.loads(line)["time"] for line in text.splitlines()]
    steps = next(part["amount"] for part in planned["time"] if part["name"].endswith("steps"))
    return {
        "planned in": between - before,
        "memory": (planned["memory"]["most"], usage.ru_maxrss * 1024),
        "step": (steps / planned["counts"]["steps"], (times[-1] - times[0]) / (len(times) - 1)),
        "run": (planned["seconds"], cpu_seconds() - between),
        "plan": planned,
    }


def cpu_seconds() -> float:
    """Return what all processes that were begun here and have ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


MELIOR = [sys.executable, str(Path(__file__).with_name("cpu_clock.py"))]


def rows(lengths: str, n: int = 64) -> Iterator[dict[str, str]]:
    """Make pairs of random words."""
    draw, (prompt, answer) = random.Random(0), LENGTHS[lengths]

    def text(between: tuple[int, int]) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(*between)))

    for _ in range(n):
        yield {"prompt": text(prompt), "chosen": text(answer), "rejected": text(answer)}


def row(name: str, found: dict[str, Any]) -> list[str]:
    """Return a case's row of the table."""
    cells = [name]
    for key, unit, size in (("memory", "GiB", 2**30), ("step", "CPU-s", 1), ("run", "CPU-s", 1)):
        planned, true = (amount / size for amount in found[key])
        cells += [f"{planned:.2f} {unit}", f"{true:.2f} {unit}", f"**{planned / true - 1:+.0%}**"]
    return [*cells, f"{found['planned in']:.0f} CPU-s"]


def table(found: dict[str, Any], about: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    parts = [[f"{what}, planned", "taken", "off by"] for what in ("peak memory", "a step", "run")]
    head = ["case", *(cell for part in parts for cell in part), "planned in"]
    lines = [head, ["---"] * len(head), *(row(name, one) for name, one in found.items())]
    notes = [
        f"`melior simpo {' '.join(SHARED)}` on 64 rows, and "
        + "; ".join(f"*{name}*: `{' '.join(CASES[name][1])}`" for name in found)
        + ". *Off by* is the plan over the truth, less one. Time is the CPU time of all threads,"
        " in the plan and in the run: other work went on meanwhile. Answers are planned at"
        " their limit, so that their part is at most that; the report is in no plan.",
        f"{datetime.date.today().isoformat()}; {describe_machine(about)}.",
    ]
    return "\n".join(
        [*("| " + " | ".join(line) + " |" for line in lines), "", *(f"- {note}" for note in notes)]
    )


if __name__ == "__main__":
    main()

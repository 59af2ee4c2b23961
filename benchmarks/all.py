"""Every benchmark against TRL, one after another, and how far melior is from its targets.

    make bench

First the numbers: what is not as exact as stated ends the run before anything is timed. Each
benchmark writes its table to the page of performance, and so does this one: the targets, and what
was reached. Each also runs by itself, with options of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import data_preparation
import group_sampling
import policy_pass
import precision
import preference_step
import reward_scoring
from interleaved import ratio
from preference_step import of_peak
from results import begin, finish, markdown, parser
from turns import Message

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"


@dataclass(frozen=True)
class Target:
    """What is to be reached in a row of a benchmark's table."""

    benchmark: str
    workload: str
    about: str
    speed: float
    """Times the rival's, in CPU time."""
    memory: float = 0.0
    """Share of the rival's peak; 0 where none is asked for."""
    of_peak: float = 0.0
    """Share of the bf16 GEMM peak; 0 where none is asked for."""


TARGETS = (
    Target("dpo", "long", "DPO, long prompts", 5, 0.40, 0.40),
    Target("dpo", "ragged", "DPO, ragged", 6, 0.30),
    Target("dpo", "short", "DPO, short", 3, 0.55, 0.30),
    Target("simpo", "long", "SimPO, long prompts", 3, 0.45),
    Target("simpo", "short", "SimPO, short", 1.8, 0.65),
    Target("reward", "long", "reward model, long prompts", 3, 0.5),
    Target("reward", "short", "reward model, short", 2, 0.6),
    Target("groups", "list", "list or group of 8", 6, 0.35),
    Target("groups", "tree", "tree of steps", 6, 0.35),
    Target("sampling", "8", "8 answers to a prompt", 2.5, 1),
    Target("sampling", "32", "32 answers to a prompt", 4, 1),
    Target("rows", "pairs", "data preparation, 100,000 rows", 4, 1),
)
BENCHMARKS: dict[str, Callable[[Sequence[str]], Message]] = {
    "precision": precision.main,
    "dpo": preference_step.main,
    "simpo": preference_step.main,
    "reward": preference_step.main,
    "groups": policy_pass.main,
    "sampling": group_sampling.main,
    "rows": data_preparation.main,
    "scoring": reward_scoring.main,
}
OWN = {
    "simpo": ["--algorithm", "simpo", "--workloads", "long,short"],
    "reward": ["--algorithm", "reward", "--workloads", "long,short"],
    "rows": ["--rows", "100000"],
    "scoring": ["--workloads", "long,short"],
}
"""Options of a benchmark's own."""
WITH_ROUNDS = ("dpo", "simpo", "reward", "groups", "sampling")


def main(arguments: Sequence[str] | None = None) -> Message:
    made = parser(__doc__, BENCHMARKS)
    made.set_defaults(markdown=[PAGE])
    made.add_argument("--rounds", type=int, default=3, help="of what is done in rounds")
    options = made.parse_args(arguments)
    results = begin(options)
    for name in options.workloads.split(","):
        print(f"# {name}", flush=True)
        results["workloads"][name] = found = BENCHMARKS[name](passed(name, options))
        results["versions"] = found["versions"]
    return finish(results, options, "targets", table(results))


def passed(name: str, options: argparse.Namespace) -> list[str]:
    """Return the options of one benchmark."""
    rounds = ["--rounds", str(options.rounds)] if name in WITH_ROUNDS else []
    pages = [*options.markdown, *([README] if name == "dpo" and options.markdown == [PAGE] else [])]
    shared = {"--seed": options.seed, "--threads": options.threads}
    shared |= {"--rival-env": options.rival_env}
    given = [str(part) for option in shared.items() for part in option]
    return [*given, *rounds, *OWN.get(name, []), "--markdown", *map(str, pages)]


def table(results: Message) -> str:
    """Return targets and what was reached as Markdown."""
    head = ["workload", "speed", "reached", "memory", "reached", "of GEMM peak", "reached"]
    rows = [row(target, results) for target in TARGETS if target.benchmark in results["workloads"]]
    notes = [
        "Targets, and what this run reached beside TRL; **bold** where that is as much. *speed* is"
        " the ratio of CPU time, *memory* the share of peak resident memory. In brackets: with"
        " melior's default, a reference that is computed once.",
    ]
    return markdown([head, *rows], notes, results)


def row(target: Target, results: Message) -> list[str]:
    """Return a target's row of the table."""
    found = results["workloads"][target.benchmark]["workloads"][target.workload]
    sides = [side for side in ("melior", "cached") if side in found["steps"]]
    speeds = [ratio(found["steps"], side)[0] for side in sides]
    shares = [found["peak_gib"][side] / found["peak_gib"]["trl"] for side in sides]
    peaks = [of_peak(found, side) for side in sides] if target.of_peak else []
    return [
        target.about,
        *said("{:.2f}x", target.speed, speeds, speeds[0] >= target.speed),
        *said("{:.2f}", target.memory, shares, shares[0] <= target.memory),
        *said("{:.0%}", target.of_peak, peaks, bool(peaks) and peaks[0] >= target.of_peak),
    ]


def said(form: str, target: float, found: Sequence[float], is_enough: bool) -> tuple[str, str]:
    """Return a target and what was reached, bold where that is enough; nothing without one."""
    if not target:
        return "", ""
    first, *cached = (form.format(number) for number in found)
    bold = f"**{first}**" if is_enough else first
    return form.format(target), f"{bold} ({cached[0]})" if cached else bold


if __name__ == "__main__":
    main()

"""Optimizer steps of preference learning, melior's against a rival's: CPU time, memory, numbers.

    python benchmarks/preference_step.py --against trl

For each workload two processes load SmolLM2-135M-Instruct once and take turns, one step each on
the same batch of token ids, so that whatever else the machine does meets both. Like for like: all
weights trained by AdamW on float32 weights, matrix products in bfloat16, no checkpointing, the
reference computed in every step by both. Melior's default, a reference computed once before the
training, is timed after the others have finished. First both compute the loss of a batch in
float32; if they differ, nothing is timed.

The rival lives in an environment of its own, which is made when it is missing. Linux only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rival import RIVAL_ENV, describe_machine, describe_versions, fill_in, machine, rival_python
from turns import Message, Worker
from workloads import WORKLOADS, Pair, batches, describe

from melior.models.embedded import embedded_folder

OPTIONS = {"dpo": {"beta": 0.1}, "simpo": {"beta": 2.0, "gamma": 1.0}}
LEARNING_RATE = 1e-6
TOLERANCE = 1e-4
"""Relative, between two float32 computations of the same loss and log-probabilities."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    rival = rival_python(options.rival_env)
    started = time.monotonic()
    results: dict[str, Any] = {
        "algorithm": options.algorithm,
        "options": OPTIONS[options.algorithm],
        "date": datetime.date.today().isoformat(),
        "machine": machine(options.threads),
        "rounds": options.rounds,
        "seed": options.seed,
        "versions": {},
        "workloads": {},
    }
    for name in options.workloads.split(","):
        results["workloads"][name] = compare(name, options, rival, results["versions"])
        print(summary(name, results["workloads"][name]), flush=True)
    results["minutes"] = (time.monotonic() - started) / 60
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for page in options.markdown:
        of = "" if options.algorithm == "dpo" else f" of {options.algorithm}"
        fill_in(page, f"performance{of}", table(results))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--against", choices=["trl"], default="trl")
    made.add_argument("--algorithm", choices=list(OPTIONS), default="dpo")
    made.add_argument("--workloads", default=",".join(WORKLOADS))
    made.add_argument("--rounds", type=int, default=5)
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


def compare(
    name: str, options: argparse.Namespace, rival: Path, versions: dict[str, Message]
) -> dict[str, Any]:
    """Check the numbers of one workload, then time it."""
    model = embedded_folder()
    # The first batch warms both up and is not counted.
    drawn = batches(name, model, count=options.rounds + 1, seed=options.seed)
    load = {
        "model": str(model),
        "algorithm": options.algorithm,
        "options": OPTIONS[options.algorithm],
        "learning_rate": LEARNING_RATE,
    }
    pythons = {"melior": Path(sys.executable), "trl": rival}
    with ExitStack() as stack:
        request = {**load, "dtype": "fp32", "batches": drawn[:1]}
        exact = {
            side: stack.enter_context(Worker(side, python, options.threads, request))
            for side, python in pythons.items()
        }
        float32 = {side: worker.ask("measure", index=0) for side, worker in exact.items()}
        check(name, float32)
    with ExitStack() as stack:
        request = {**load, "dtype": "bf16", "batches": drawn}
        workers = {
            side: stack.enter_context(Worker(side, python, options.threads, request))
            for side, python in pythons.items()
        }
        versions.update({side: worker.versions for side, worker in workers.items()})
        result = {
            "tokens": mean_tokens(drawn[1:]),
            "float32": float32,
            **take_turns(workers, drawn),
        }
        workers["trl"].close()
        if options.algorithm == "dpo":
            workers["melior"].ask("cache_reference")
            result["steps"]["cached"] = [
                workers["melior"].timed("step", index=index) for index in range(1, len(drawn))
            ]
    return result


def check(name: str, found: dict[str, Message]) -> None:
    """Stop where the two do not compute the same thing."""
    for key, ours in found["melior"].items():
        theirs = found["trl"][key]
        if abs(ours - theirs) > TOLERANCE * max(abs(ours), abs(theirs)):
            raise SystemExit(
                f"{name}: both need the same {key} in float32 before anything is timed;"
                f" found {ours} (melior) and {theirs} (trl)"
            )


def take_turns(workers: dict[str, Worker], drawn: list[list[Pair]]) -> dict[str, Any]:
    """Take one step each on every batch; who goes first changes from round to round."""
    before = {}
    steps: dict[str, list[Message]] = {side: [] for side in workers}
    for worker in workers.values():
        worker.forget_peak()
    for index in range(len(drawn)):
        order = list(workers) if index % 2 else list(reversed(workers))
        for side in order:
            step = workers[side].timed("step", index=index)
            if index:
                steps[side].append(step)
            else:
                before[side] = step  # computed with the weights as loaded
    peaks = {side: worker.peak_gib() for side, worker in workers.items()}
    after = {side: worker.ask("measure", index=0) for side, worker in workers.items()}
    return {"steps": steps, "peak_gib": peaks, "before": before, "after": after}


def mean_tokens(drawn: list[list[Pair]]) -> dict[str, float]:
    """Average the batches' counts."""
    counts = [describe(batch) for batch in drawn]
    return {key: statistics.mean(count[key] for count in counts) for key in counts[0]}


def ratio(steps: dict[str, list[Message]], side: str, key: str = "cpu") -> tuple[float, ...]:
    """Return how many times melior's the rival's time is: of medians, least and most of a round."""
    ours, theirs = ([step[key] for step in steps[who]] for who in (side, "trl"))
    rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(theirs) / statistics.median(ours), min(rounds), max(rounds)


def median(steps: list[Message], key: str) -> float:
    return statistics.median(step[key] for step in steps)


def cells(result: dict[str, Any]) -> list[str]:
    """Return a workload's row of the table."""
    steps, peak = result["steps"], result["peak_gib"]

    def times(side: str) -> str:
        return f"{median(steps[side], 'cpu'):.1f} s ({median(steps[side], 'wall'):.1f})"

    def faster(side: str) -> str:
        middle, least, most = ratio(steps, side)
        return f"**{middle:.2f}x** ({least:.2f} to {most:.2f})"

    cached = [times("cached"), faster("cached")] if "cached" in steps else []
    memory = f"{peak['trl']:.1f} GiB", f"{peak['melior']:.1f} GiB"
    shares = f"{peak['melior'] / peak['trl']:.2f}"
    return [times("trl"), times("melior"), faster("melior"), *cached, *memory, shares]


def summary(name: str, result: dict[str, Any]) -> str:
    """Say a workload's results on the terminal."""
    lines = [
        f"{name}: {WORKLOADS[name][2]}; per batch {count(result['tokens'])}",
        "  " + " | ".join(cells(result)),
        f"  float32, melior to trl: {gaps(result['float32'])}",
        *(
            f"  bfloat16 to float32, {side}: "
            + gaps({side: result["before"][side], "float32": result["float32"]["melior"]})
            for side in ("melior", "trl")
        ),
        f"  bfloat16 after the steps, melior to trl: {gaps(result['after'])}",
    ]
    return "\n".join(lines)


def count(tokens: dict[str, float]) -> str:
    return ", ".join(f"{value:.0f} {key}" for key, value in tokens.items()) + " tokens"


def gaps(found: dict[str, Message]) -> str:
    """Say by how much two sides differ."""
    one, other = found.values()
    return ", ".join(f"{key} differs by {abs(one[key] - other[key]):.2g}" for key in other)


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    has_cache = any("cached" in result["steps"] for result in results["workloads"].values())
    cached = ["melior, reference cached", "faster"] if has_cache else []
    head = ["workload", "TRL", "melior", "faster", *cached]
    head += ["peak, TRL", "peak, melior", "share"]
    rows = [head, ["---"] * len(head)]
    rows += [[name, *cells(result)] for name, result in results["workloads"].items()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [
        f"{results['algorithm'].upper()} {results['options']}, CPU seconds a step (wall seconds in"
        f" brackets), medians of {results['rounds']} rounds; *faster* is the ratio of medians of"
        " CPU time, with the least and most of a single round.",
        *(
            f"{name}: {WORKLOADS[name][2]}; {count(result['tokens'])} per batch; "
            f"loss in bfloat16 after the steps {result['after']['melior']['loss']:.4f} (melior),"
            f" {result['after']['trl']['loss']:.4f} (TRL)."
            for name, result in results["workloads"].items()
        ),
        f"{results['date']}; {describe_machine(results['machine'])};"
        f" {describe_versions(results['versions'])}.",
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


if __name__ == "__main__":
    main()

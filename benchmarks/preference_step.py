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
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interleaved import both, check, faster, gaps, memory, take_turns, times
from results import begin, finish, markdown, parser
from reward_scoring import reward_model
from turns import Message, Worker
from workloads import WORKLOADS, Pair, batches, describe

from melior.models.embedded import embedded_folder

OPTIONS = {"dpo": {"beta": 0.1}, "simpo": {"beta": 2.0, "gamma": 1.0}, "reward": {}}
TITLES = {"dpo": "DPO", "simpo": "SimPO", "reward": "Reward model"}
LEARNING_RATE = 1e-6


def main(arguments: Sequence[str] | None = None) -> Message:
    options = _options(arguments)
    results = begin(options) | {"algorithm": options.algorithm, "rounds": options.rounds}
    for name in options.workloads.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            found = compare(name, options, Path(scratch), results["versions"])
        results["workloads"][name] = found
        print(summary(name, found), flush=True)
    of = "" if options.algorithm == "dpo" else f" of {options.algorithm}"
    return finish(results, options, f"performance{of}", table(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, WORKLOADS)
    made.add_argument("--algorithm", choices=list(OPTIONS), default="dpo")
    made.add_argument("--rounds", type=int, default=5)
    return made.parse_args(arguments)


def compare(
    name: str, options: argparse.Namespace, scratch: Path, versions: dict[str, Message]
) -> dict[str, Any]:
    """Check the numbers of one workload, then time it."""
    # The first batch warms both up and is not counted.
    drawn = batches(name, embedded_folder(), count=options.rounds + 1, seed=options.seed)
    model = embedded_folder()
    if options.algorithm == "reward":
        model = reward_model(scratch / "model", 0, options.seed)
    load = {
        "model": str(model),
        "algorithm": options.algorithm,
        "options": OPTIONS[options.algorithm],
        "learning_rate": LEARNING_RATE,
    }
    with both({**load, "dtype": "fp32", "batches": drawn[:1]}, options) as workers:
        float32 = {side: worker.ask("measure", index=0) for side, worker in workers.items()}
    check(name, float32)
    with both({**load, "dtype": "bf16", "batches": drawn}, options) as workers:
        versions.update({side: worker.versions for side, worker in workers.items()})
        found = take_turns(workers, "step", options.rounds)
        found["after"] = {side: one.ask("measure", index=0) for side, one in workers.items()}
        workers["trl"].close()
        if options.algorithm == "dpo":
            found["steps"]["cached"] = cached(workers["melior"], options.rounds)
            found["peak_gib"]["cached"] = workers["melior"].peak_gib()
        found["limit"] = limit(workers["melior"], options.rounds)
    return {"tokens": mean_tokens(drawn[1:]), "float32": float32, **found}


def cached(worker: Worker, rounds: int) -> list[Message]:
    """Let the reference be computed once, and time the steps that then need none."""
    worker.ask("cache_reference")
    worker.forget_peak()
    return [worker.timed("step", index=index) for index in range(1, rounds + 1)]


def limit(worker: Worker, rounds: int) -> Message:
    """Return what each step needs, and how fast a large bf16 product is; both in FLOPs."""
    products = [worker.timed("multiply") for _ in range(4)][1:]
    return {
        "needed": [worker.ask("needed", index=index) for index in range(1, rounds + 1)],
        "per_cpu_second": max(one["flops"] / one["cpu"] for one in products),
    }


def of_peak(found: dict[str, Any], side: str) -> float:
    """Return which share of the bf16 GEMM peak a side's steps spent on what a step needs.

    What is needed is the same for both: each token once, logits where a token is scored.
    """
    parts = ["policy"] if side == "cached" else ["policy", "reference"]
    each = [
        sum(needed[part] for part in parts) / step["cpu"]
        for needed, step in zip(found["limit"]["needed"], found["steps"][side], strict=True)
    ]
    return statistics.median(each) / found["limit"]["per_cpu_second"]


def mean_tokens(drawn: list[list[Pair]]) -> dict[str, float]:
    """Average the batches' counts."""
    counts = [describe(batch) for batch in drawn]
    return {key: statistics.mean(count[key] for count in counts) for key in counts[0]}


def cells(found: dict[str, Any]) -> list[str]:
    """Return a workload's row of the table."""
    steps, peak = found["steps"], found["peak_gib"]
    own, held, best = [times(steps["melior"]), faster(steps)], memory(peak), "melior"
    if "cached" in steps:
        own += [times(steps["cached"]), faster(steps, "cached")]
        held[-1] += f" ({peak['cached'] / peak['trl']:.2f})"
        best = "cached"
    shares = f"{of_peak(found, best):.0%} ({of_peak(found, 'trl'):.0%})"
    return [times(steps["trl"]), *own, *held, shares]


def summary(name: str, found: dict[str, Any]) -> str:
    """Say a workload's results on the terminal."""
    exact = found["float32"]["melior"]
    lines = [
        f"{name}: {WORKLOADS[name][2]}; per batch {count(found['tokens'])}",
        "  " + " | ".join(cells(found)),
        f"  float32, melior to trl: {gaps(found['float32'])}",
        *(
            f"  bfloat16 to float32, {side}: "
            + gaps({side: {key: found["warm"][side][key] for key in exact}, "float32": exact})
            for side in ("melior", "trl")
        ),
        f"  bfloat16 after the steps, melior to trl: {gaps(found['after'])}",
    ]
    return "\n".join(lines)


def count(tokens: dict[str, float]) -> str:
    return ", ".join(f"{value:.0f} {key}" for key, value in tokens.items()) + " tokens"


def table(results: Message) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    found, algorithm = results["workloads"], results["algorithm"]
    is_cached = algorithm == "dpo"
    cached = ["melior, reference cached", "faster"] if is_cached else []
    head = ["workload", "TRL", "melior", "faster", *cached, "peak, TRL", "peak, melior"]
    head += ["share (cached)" if is_cached else "share", "of GEMM peak (TRL)"]
    said = ", ".join(f"{key} {value:g}" for key, value in OPTIONS[algorithm].items())
    notes = [
        f"{TITLES[algorithm]}{said and f' ({said})'}, CPU seconds a step (wall seconds in"
        f" brackets), medians of {results['rounds']} rounds; *faster* is the ratio of medians of"
        " CPU time, with the least and most of a single round.",
        *(
            f"{name}: {WORKLOADS[name][2]}; {count(one['tokens'])} per batch;"
            f" loss in bfloat16 after the steps {one['after']['melior']['loss']:.4f} (melior),"
            f" {one['after']['trl']['loss']:.4f} (TRL)."
            for name, one in found.items()
        ),
        "*of GEMM peak* is the share of what a large bf16 product reaches on the same threads"
        f" ({peaks(results)}) that went into the FLOPs which a step needs, each token once"
        f"{'; the reference cached' if is_cached else ''}.",
    ]
    rows = [head, *([name, *cells(one)] for name, one in found.items())]
    return markdown(rows, notes, results)


def peaks(results: Message) -> str:
    each = [one["limit"]["per_cpu_second"] / 1e12 for one in results["workloads"].values()]
    return f"{statistics.median(each):.2f} TFLOP a CPU second"


if __name__ == "__main__":
    main()

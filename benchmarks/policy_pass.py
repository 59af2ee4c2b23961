"""Log-probabilities of many answers to one prompt and their gradient, melior's against a rival's.

    python benchmarks/policy_pass.py --against trl

What every loss on a list, a group or a tree of answers costs: each token's log-probability, and the
backward pass of the answers' sums under given weights; no optimizer. The rival's is the policy pass
of TRL's GRPO trainer, which computes all answers as rows of one padded batch. `list` is a prompt
with eight answers, `tree` steps that fork three times on the way to eight leaves. In float32 the
weighted sum and the norm of the gradient must be the same before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from interleaved import both, check, faster, gaps, memory, take_turns, times
from results import begin, finish, markdown, parser
from turns import Message
from workloads import lists, trees

from melior.models.embedded import embedded_folder

WORKLOADS = {
    "list": (partial(lists, k=8), "a prompt of 512 tokens, 8 answers of 64"),
    "tree": (partial(trees, forks=3), "a prompt of 256 tokens, steps of 32 to 96, 8 leaves"),
}
"""How groups are drawn, and how to say it."""


def main(arguments: Sequence[str] | None = None) -> Message:
    made = parser(__doc__, WORKLOADS)
    made.add_argument("--rounds", type=int, default=5)
    options = made.parse_args(arguments)
    results = begin(options) | {"rounds": options.rounds}
    for name in options.workloads.split(","):
        results["workloads"][name] = found = compare(name, options, results["versions"])
        print(f"{name}: {WORKLOADS[name][1]}\n  " + " | ".join(cells(found)), flush=True)
        print(f"  float32, melior to trl: {gaps(found['float32'])}", flush=True)
    return finish(results, options, "performance of groups", table(results))


def compare(name: str, options: argparse.Namespace, versions: dict[str, Message]) -> dict[str, Any]:
    """Check the numbers of one workload, then time it."""
    model = embedded_folder()
    drawn = WORKLOADS[name][0](model, count=options.rounds + 1, seed=options.seed)
    load = {"model": str(model)}
    with both({**load, "dtype": "fp32", "groups": drawn[:1]}, options, kind="_policy") as workers:
        float32 = {side: worker.ask("step", index=0) for side, worker in workers.items()}
    for one in float32.values():
        del one["tokens"]  # which are not the same
    check(name, float32)
    with both({**load, "dtype": "bf16", "groups": drawn}, options, kind="_policy") as workers:
        versions.update({side: worker.versions for side, worker in workers.items()})
        return {**take_turns(workers, "step", options.rounds), "float32": float32}


def cells(found: dict[str, Any]) -> list[str]:
    """Return a workload's row of the table."""
    steps = found["steps"]
    return [
        times(steps["trl"]), times(steps["melior"]), faster(steps), *memory(found["peak_gib"])
    ]  # fmt: skip


def table(results: Message) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    head = ["workload", "TRL", "melior", "faster", "peak, TRL", "peak, melior", "share"]
    found = results["workloads"]
    notes = [
        "CPU seconds for log-probabilities and gradient of a group of answers (wall seconds in"
        f" brackets), medians of {results['rounds']} rounds; *faster* is the ratio of medians of"
        " CPU time, with the least and most of a single round.",
        *(f"{name}: {WORKLOADS[name][1]}; {remark(one)}." for name, one in found.items()),
    ]
    rows = [head, *([name, *cells(one)] for name, one in found.items())]
    return markdown(rows, notes, results)


def remark(found: dict[str, Any]) -> str:
    """Say what was computed, and how far numbers lie apart."""
    tokens = {
        side: statistics.mean(step["tokens"] for step in own)
        for side, own in found["steps"].items()
    }
    exact, warm = found["float32"], found["warm"]
    norm = exact["melior"]["gradient_norm"]
    apart = [f"{warm[side]['gradient_norm'] / norm - 1:+.1%} ({who})"
             for side, who in (("melior", "melior"), ("trl", "TRL"))]  # fmt: skip
    return (
        f"{tokens['trl']:.0f} padded, {tokens['melior']:.0f} computed tokens a group; in float32"
        f" {gaps(exact)}; norm of the bfloat16 gradient to that in float32 {' and '.join(apart)}"
    )


if __name__ == "__main__":
    main()

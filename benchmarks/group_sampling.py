"""Answers drawn from a model, melior's sampler against `generate`: CPU time, memory, tokens.

    python benchmarks/group_sampling.py --against trl

Eight or thirty-two answers to one prompt of 128 tokens, 64 tokens each whatever they say. The
rival's are what TRL calls where it has no server to ask: `generate` of transformers, the prompt
repeated for each answer. Weights in bfloat16 on both sides, temperature 1, nothing cut off. In
float32 the most likely tokens must be the same before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from interleaved import both, faster, memory, ratio, take_turns
from results import begin, finish, markdown, parser
from turns import Message
from workloads import prompts

from melior.models.embedded import embedded_folder

N_PROMPT, N_NEW = 128, 64


def main(arguments: Sequence[str] | None = None) -> Message:
    made = parser(__doc__, ["8", "32"])
    made.add_argument("--rounds", type=int, default=5)
    options = made.parse_args(arguments)
    results = begin(options) | {"rounds": options.rounds}
    for name in options.workloads.split(","):
        results["workloads"][name] = found = compare(int(name), options, results["versions"])
        print(f"{name} answers\n  " + " | ".join(cells(found)), flush=True)
    return finish(results, options, "performance of sampling", table(results))


def compare(k: int, options: argparse.Namespace, versions: dict[str, Message]) -> dict[str, Any]:
    """Check that both find the same tokens the most likely ones, then time them."""
    model = embedded_folder()
    drawn = prompts(model, count=options.rounds + 1, length=N_PROMPT, seed=options.seed)
    load = {"model": str(model), "k": k, "n_new": N_NEW}
    request = {**load, "dtype": "fp32", "torch_dtype": "float32", "prompts": drawn[:1]}
    with both(request, options, kind="_sampling") as workers:
        likeliest = {side: worker.ask("likeliest", index=0) for side, worker in workers.items()}
    if likeliest["melior"] != likeliest["trl"]:
        raise SystemExit(
            f"{k}: both need the same most likely tokens in float32 before anything is timed;"
            f" found {likeliest}"
        )
    request = {**load, "dtype": "bf16", "torch_dtype": "bfloat16", "prompts": drawn}
    with both(request, options, kind="_sampling") as workers:
        versions.update({side: worker.versions for side, worker in workers.items()})
        return {"tokens": k * N_NEW, **take_turns(workers, "step", options.rounds)}


def cells(found: dict[str, Any]) -> list[str]:
    """Return a workload's row of the table."""
    steps = found["steps"]
    rates = [
        f"{found['tokens'] / statistics.median(step['cpu'] for step in steps[side]):.0f}"
        for side in ("trl", "melior")
    ]
    wall, _, _ = ratio(steps, key="wall")
    return [*rates, faster(steps), f"{wall:.2f}x", *memory(found["peak_gib"], digits=2)]


def table(results: Message) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    head = ["answers", "generate", "melior", "faster, CPU", "faster, wall"]
    head += ["peak, generate", "peak, melior", "share"]
    notes = [
        f"Tokens a CPU second, {N_NEW} to each answer behind a prompt of {N_PROMPT}, bf16, medians"
        f" of {results['rounds']} rounds; *faster* is the ratio of medians, with the least and most"
        f" of a single round. In float32 both found the same {N_NEW} most likely tokens.",
    ]
    rows = [head, *([name, *cells(one)] for name, one in results["workloads"].items())]
    return markdown(rows, notes, results)


if __name__ == "__main__":
    main()

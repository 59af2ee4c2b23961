"""Where a step of preference learning spends its time, kind of operation by kind.

    python benchmarks/step_profile.py

The steps are melior's of `preference_step.py`, with the reference computed within them; torch's
own profiler watches. What it adds to each operation it adds to small ones most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from preference_step import LEARNING_RATE, OPTIONS
from results import begin, finish, markdown, parser
from torch.profiler import ProfilerActivity, profile
from turns import Message
from worker_melior import Worker
from workloads import WORKLOADS, batches

from melior.models.embedded import embedded_folder

KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "linear"),
    "attention's kernel": ("_scaled_dot_product_flash_attention_for_cpu",),
    "optimizer": ("_fused_adamw_", "_foreach_copy_", "_foreach_norm", "_foreach_mul_"),
    "copies and casts": ("copy_", "_to_copy", "cat", "clone", "index_select", "index", "gather"),
    "sums by index": ("index_add_", "index_add", "embedding_dense_backward", "scatter_add_"),
}
"""By kind, names of torch's operations; whatever else there is passes over single numbers."""


def main(arguments: Sequence[str] | None = None) -> Message:
    options = parser(__doc__, WORKLOADS).parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = begin(options)
    results["versions"] = {"melior": {"torch": torch.__version__}}
    for name in options.workloads.split(","):
        results["workloads"][name] = found = shares(name, options.seed)
        print(name, " ".join(f"{kind} {share:.0%}" for kind, share in found.items()), flush=True)
    return finish(results, options, "performance by operation", table(results))


def shares(name: str, seed: int) -> dict[str, float]:
    """Return which share of a DPO step's CPU time each kind of operation takes."""
    request = {
        "model": str(embedded_folder()),
        "algorithm": "dpo",
        "options": OPTIONS["dpo"],
        "learning_rate": LEARNING_RATE,
        "dtype": "bf16",
        "batches": batches(name, embedded_folder(), count=3, seed=seed),
    }
    worker = Worker(request)
    worker.step(0)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        worker.step(1)
        worker.step(2)
    kinds = {f"aten::{one}": kind for kind, names in KINDS.items() for one in names}
    times = Counter[str]()
    for one in watched.key_averages():
        times[kinds.get(one.key, "single numbers and the rest")] += one.self_cpu_time_total
    whole = sum(times.values())
    return {kind: times[kind] / whole for kind in (*KINDS, "single numbers and the rest")}


def table(results: Message) -> str:
    """Return the shares as Markdown."""
    kinds = [*KINDS, "single numbers and the rest"]
    rows = [
        [name, *(f"{found[kind]:.0%}" for kind in kinds)]
        for name, found in results["workloads"].items()
    ]
    notes = ["Shares of the time of two DPO steps, the reference within them, by torch's profiler."]
    return markdown([["workload", *kinds], *rows], notes, results)


if __name__ == "__main__":
    main()

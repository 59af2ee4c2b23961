"""Scores of a reward model, melior's against plain padded scoring: CPU time, memory, numbers.

    python benchmarks/reward_scoring.py --against trl

Prompts with eight answers each are scored from their texts. Two processes load the same reward
model, SmolLM2-135M-Instruct under a head drawn at random, and take turns on the same few prompts,
so that whatever else the machine does meets both. The rival sorts by length, and its batch size is
the best of a few on prompts that are not counted. First both score the same prompts in float32; if
they differ, nothing is timed.

1,000 prompts with long contexts are hours for the rival on two cores. So `long` and `short` take a
random subset of such prompts, the same for both; `thousand` takes all of them, but only the first
layers of the model. `--prompts 1000` takes all with the whole model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interleaved import memory
from results import begin, finish, markdown, parser
from rival import rival_python
from turns import Message, Worker
from workloads import GROUPS, groups

from melior.models.embedded import embedded_folder
from melior.models.heads import load_reward_model, save_reward_model
from melior.options import ModelOptions, ScoringOptions

K = 8
TOLERANCE = 1e-4
"""Of a float32 reward, relative to how far rewards are spread."""
BATCH_SIZES = (1, 4, 8, 16)
"""Of the rival; the one that takes the least CPU time is timed."""
TORCH_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
WARM = 2
"""Prompts that do not count: both warm up on them, and the rival's batch size is chosen."""


@dataclass(frozen=True)
class Workload:
    """What is scored."""

    texts: str
    """Which of `workloads.GROUPS`."""
    prompts: int
    block: int
    """Prompts scored before the other's turn."""
    layers: int
    """The first ones of the model; 0 is all."""

    def about(self) -> str:
        """Say what it is."""
        shortest, longest, answer = GROUPS[self.texts]
        depth = f"the first {self.layers} layers" if self.layers else "all layers"
        return (
            f"{self.prompts} prompts of {shortest} to {longest} tokens, {K} answers each of"
            f" {answer // 2} to {answer * 3 // 2}, {depth}"
        )


WORKLOADS = {
    "long": Workload("long", 20, 4, 0),
    "short": Workload("short", 60, 12, 0),
    "thousand": Workload("long", 1000, 200, 1),
}


def main(arguments: Sequence[str] | None = None) -> Message:
    options = _options(arguments)
    rival = rival_python(options.rival_env)
    results = begin(options) | {"dtype": options.dtype, "max_tokens": options.max_tokens}
    for name in options.workloads.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            load = chosen(name, options.prompts)
            found = compare(load, options, rival, Path(scratch), results["versions"])
        results["workloads"][name] = {"about": load.about(), **found}
        print(f"{name}: {load.about()}\n  " + " | ".join(cells(found)), flush=True)
    return finish(results, options, "performance of scoring", table(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, WORKLOADS)
    made.add_argument("--prompts", type=int, default=0, help="instead of each workload's own")
    made.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    made.add_argument(
        "--max-tokens", type=int, default=ScoringOptions().max_tokens, help="of melior"
    )
    return made.parse_args(arguments)


def chosen(name: str, prompts: int) -> Workload:
    """Return a workload, with another number of prompts where that is asked for."""
    own = WORKLOADS[name]
    count = prompts or own.prompts
    return Workload(own.texts, count, max(1, min(own.block, count // 4)), own.layers)


def compare(
    load: Workload,
    options: argparse.Namespace,
    rival: Path,
    scratch: Path,
    versions: dict[str, Message],
) -> dict[str, Any]:
    """Check that both read the same rewards, choose the rival's batch size, and time both."""
    request = prepared(load, scratch, options)
    pythons = {"melior": Path(sys.executable), "trl": rival}

    def started(dtype: str, *sides: str) -> dict[str, Worker]:
        own = {**request, "dtype": dtype, "torch_dtype": TORCH_DTYPES[dtype]}
        return {
            side: stack.enter_context(
                Worker(side, pythons[side], options.threads, own, kind="_scores")
            )
            for side in sides
        }

    with ExitStack() as stack:
        both = started("fp32", *pythons)
        exact = {side: warm(worker, batch_size=4)["rewards"] for side, worker in both.items()}
    check(exact)
    # A process of its own, so that what larger batches needed is in no peak.
    with ExitStack() as stack:
        best, trials = batch_size(started(options.dtype, "trl")["trl"])
    with ExitStack() as stack:
        both = started(options.dtype, *pythons)
        versions.update({side: worker.versions for side, worker in both.items()})
        found = take_turns(both, load, best)
    return {**found, "float32": exact, "batch_size": best, "trials": trials}


def prepared(load: Workload, scratch: Path, options: argparse.Namespace) -> Message:
    """Write the reward model and the prompts, and return where they lie."""
    folder = reward_model(scratch / "model", load.layers, options.seed)
    first = groups(load.texts, folder, count=WARM, k=K, seed=options.seed + 1)
    drawn = groups(load.texts, folder, count=load.prompts, k=K, seed=options.seed)
    rows = scratch / "groups.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in first + drawn), encoding="utf-8")
    return {"model": str(folder), "groups": str(rows), "max_tokens": options.max_tokens}


def reward_model(folder: Path, layers: int, seed: int) -> Path:
    """Save the embedded model under a head drawn at random; its first layers, or all where 0."""
    options = ModelOptions(model=str(embedded_folder()), dtype="bf16", device="cpu")
    model = load_reward_model(options, trainable=False, seed=seed)
    if layers:
        model.core.base_model.layers = model.core.base_model.layers[:layers]
        model.core.config.num_hidden_layers = layers
    save_reward_model(model, folder)
    return folder


def check(found: dict[str, list[float]]) -> None:
    """Stop where the two do not compute the same thing."""
    gap, spread = greatest_gap(*found.values()), statistics.pstdev(found["trl"])
    if not gap <= TOLERANCE * spread:
        raise SystemExit(
            "both need the same rewards in float32 before anything is timed; found a difference of"
            f" {gap:.2g}, where rewards are spread by {spread:.2g}"
        )


def warm(worker: Worker, *, batch_size: int) -> Message:
    """Score the prompts that do not count; add the time."""
    return worker.timed("score", start=0, stop=WARM, batch_size=batch_size)


def take_turns(workers: dict[str, Worker], load: Workload, best: int) -> dict[str, Any]:
    """Score block after block; who goes first changes from block to block."""
    first = {side: warm(worker, batch_size=best)["rewards"] for side, worker in workers.items()}
    for worker in workers.values():
        worker.forget_peak()
    blocks: dict[str, list[Message]] = {side: [] for side in workers}
    starts = range(WARM, WARM + load.prompts, load.block)
    for turn, start in enumerate(starts):
        stop = min(start + load.block, WARM + load.prompts)
        for side in list(workers) if turn % 2 else list(reversed(workers)):
            scored = workers[side].timed("score", start=start, stop=stop, batch_size=best)
            blocks[side].append(scored)
    return {
        "blocks": blocks,
        "warm": first,
        "peak_gib": {side: worker.peak_gib() for side, worker in workers.items()},
    }


def batch_size(worker: Worker) -> tuple[int, dict[int, float]]:
    """Return the rival's best batch size, and the CPU time that each took."""
    worker.ask("score", start=0, stop=1, batch_size=1)
    trials = {size: warm(worker, batch_size=size)["cpu"] for size in BATCH_SIZES}
    return min(trials, key=lambda size: trials[size]), trials


def greatest_gap(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def total(blocks: Sequence[Message], key: str) -> float:
    return sum(block[key] for block in blocks)


def ratios(blocks: dict[str, list[Message]], key: str) -> tuple[float, float, float]:
    """Return how many times melior's time the rival's is: in all, and least and most of a block."""
    each = [b[key] / a[key] for a, b in zip(blocks["melior"], blocks["trl"], strict=True)]
    return total(blocks["trl"], key) / total(blocks["melior"], key), min(each), max(each)


def cells(found: dict[str, Any]) -> list[str]:
    """Return a workload's row of the table."""
    blocks = found["blocks"]
    times = [
        f"{total(blocks[side], 'cpu'):.1f} s ({total(blocks[side], 'wall'):.1f})"
        for side in ("trl", "melior")
    ]
    cpu, least, most = ratios(blocks, "cpu")
    wall, _, _ = ratios(blocks, "wall")
    return [
        str(found["batch_size"]),
        *times,
        f"**{cpu:.2f}x** ({least:.2f} to {most:.2f})",
        f"{wall:.2f}x",
        *memory(found["peak_gib"], digits=2),
    ]


def remark(name: str, found: dict[str, Any]) -> str:
    """Say what was scored and how far numbers lie apart."""
    exact, first, blocks = found["float32"], found["warm"], found["blocks"]
    apart = [
        f"{greatest_gap(first[side], exact[side]):.2g} ({who})"
        for side, who in (("melior", "melior"), ("trl", "plain"))
    ]
    return (
        f"{name}: {found['about']}; {total(blocks['trl'], 'tokens'):.0f} tokens of conversations,"
        f" {total(blocks['trl'], 'padded'):.0f} with padding. Greatest difference of a reward:"
        f" {greatest_gap(*exact.values()):.1g} between the two in float32,"
        f" {' and '.join(apart)} from float32 to the timed dtype, where rewards are spread by"
        f" {statistics.pstdev(exact['melior']):.2g}."
    )


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    head = ["workload", "batch", "plain padded", "melior", "faster, CPU", "faster, wall"]
    head += ["peak, plain", "peak, melior", "share"]
    rows = [head, *([name, *cells(found)] for name, found in results["workloads"].items())]
    notes = [
        f"CPU seconds in all (wall seconds in brackets), {results['dtype']}; *faster* is the ratio"
        " of sums over the workload, with the least and most of a block. *batch* is the rival's"
        f" best of {', '.join(map(str, BATCH_SIZES))}; melior computes {results['max_tokens']}"
        " tokens at once.",
        *(remark(name, found) for name, found in results["workloads"].items()),
    ]
    return markdown(rows, notes, results)


if __name__ == "__main__":
    main()

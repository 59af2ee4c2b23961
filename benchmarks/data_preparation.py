"""Data made ready for training, melior's way against a rival's: CPU time, memory, token ids.

    python benchmarks/data_preparation.py --against trl

From a JSONL file of conversations, each with a chosen and a rejected answer, to token ids. Melior's
is what a run does before any weights are loaded: rows are read, checked as by `melior data check`,
and tokenised. TRL's is what its DPO trainer does to a data set when it is made; it checks nothing.
All ids must be the same, but for one thing: TRL keeps what the chat template writes behind the end
token of an answer, melior ends with it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interleaved import both, faster, median, memory, take_turns, times
from results import begin, finish, markdown, parser
from turns import Message
from workloads import conversations

from melior.models.embedded import embedded_folder


def main(arguments: Sequence[str] | None = None) -> Message:
    made = parser(__doc__, ["pairs"])
    made.add_argument("--rows", type=int, default=10_000)
    made.add_argument("--rounds", type=int, default=1)
    options = made.parse_args(arguments)
    results = begin(options) | {"rounds": options.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(options, Path(scratch), results["versions"])
    results["workloads"]["pairs"] = found
    print(f"{options.rows} rows\n  " + " | ".join(cells(found)), flush=True)
    return finish(results, options, "performance of data preparation", table(results))


def compare(
    options: argparse.Namespace, scratch: Path, versions: dict[str, Message]
) -> dict[str, Any]:
    """Time both, and check that they make the same of every row."""
    counts = [100, *[options.rows] * options.rounds]  # a few rows warm both up
    files = [written(scratch, i, count, options.seed) for i, count in enumerate(counts)]
    request = {"model": str(embedded_folder()), "files": files}
    with both(request, options, kind="_rows") as workers:
        versions.update({side: worker.versions for side, worker in workers.items()})
        found = take_turns(workers, "step", options.rounds)
        digests = {side: worker.ask("digest") for side, worker in workers.items()}
    if digests["melior"] != digests["trl"]:
        raise SystemExit(f"both need the same token ids; found {digests}")
    return {"rows": options.rows, **found}


def written(folder: Path, index: int, count: int, seed: int) -> str:
    """Write rows to a file of their own, so that nothing is known of them, and return its name."""
    path = folder / f"{index}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in conversations(count=count, seed=seed + index):
            file.write(json.dumps(row) + "\n")
    return str(path)


def cells(found: dict[str, Any]) -> list[str]:
    """Return the row of the table."""
    steps = found["steps"]
    rates = [f"{found['rows'] / median(steps[side]):.0f}" for side in ("trl", "melior")]
    each = [times(steps[side]) for side in ("trl", "melior")]
    return [str(found["rows"]), *each, *rates, faster(steps), *memory(found["peak_gib"], digits=2)]


def table(results: Message) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    head = ["rows", "TRL", "melior", "a CPU second, TRL", "melior", "faster"]
    head += ["peak, TRL", "peak, melior", "share"]
    notes = [
        f"CPU seconds (wall seconds in brackets), number of rounds: {results['rounds']}, each on"
        " rows that were never seen; prompts of about 80 and answers of about 120 tokens,"
        " log-normal. All token ids are the same.",
    ]
    return markdown([head, *map(cells, results["workloads"].values())], notes, results)


if __name__ == "__main__":
    main()

"""Trajectories drawn and steps taken on the same grid, by melior and by torchgfn, turn by turn.

    python benchmarks/flow_steps.py --markdown docs/flows.md

Both learn the same objective by the same network (two layers of 256, ReLU, a one-hot cell) from
batches of 16, drawn from the network as it then is, without exploration; all ways back are equally
likely. Both draw without gradients and compute log-probabilities when they learn, as torchgfn's own
benchmark does: keeping those that it draws by costs torchgfn more. Its `debug` is off; torch's
distributions check their arguments, as they do unless told not to (`--unchecked`). The learning
rate is next to nothing, so that both go on drawing trajectories as long as those of a fresh
network: a step costs the same at any rate, and policies that part would not. CPU time of one thread
each for an action drawn, or drawn and learned from; the ratio is that of medians over rounds, with
the least and the most of a round. torchgfn lives in an environment of its own, as it needs numpy
below 2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from results import begin, finish, markdown
from rival import HERE
from turns import Message, Worker

from melior.training.cache import cache_folder

ENVIRONMENT = cache_folder() / "benchmarks" / "torchgfn-2.4.1"
SIDES = ("melior", "torchgfn")


def main() -> None:
    """Measure, and write the table."""
    options = parsed()
    results = begin(options)
    for axes in options.axes:
        for objective in options.objectives:
            name = f"{axes} axes, {objective}"
            results["workloads"][name] = measured(axes, objective, options, results["versions"])
            print(name, {k: v["ratio"] for k, v in results["workloads"][name].items()}, flush=True)
    finish(results, options, "flow steps", table(results))


def parsed() -> argparse.Namespace:
    """Read the options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--axes", type=int, nargs="+", default=[2, 4, 8])
    made.add_argument("--height", type=int, default=8)
    made.add_argument("--objectives", nargs="+", default=["tb", "db", "subtb"])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--count", type=int, default=40, help="batches of a turn")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--unchecked", action="store_true", help="torchgfn's distributions")
    made.add_argument("--json", type=Path)
    made.add_argument("--markdown", type=Path, nargs="+", default=[])
    made.add_argument("--rival-env", type=Path, default=ENVIRONMENT)
    return made.parse_args()


def measured(
    axes: int, objective: str, options: argparse.Namespace, versions: Message
) -> dict[str, Message]:
    """Let both draw and learn, turn by turn."""
    request = {
        "axes": axes, "height": options.height, "objective": objective, "width": 256,
        "batch_size": 16, "seed": options.seed, "checked": not options.unchecked,
    }  # fmt: skip
    pythons = {"melior": Path(sys.executable), "torchgfn": rival(options.rival_env)}
    workers = {
        side: Worker(side, pythons[side], options.threads, request, kind="_flows") for side in SIDES
    }
    try:
        versions |= {side: worker.versions for side, worker in workers.items()}
        return {what: turns(workers, what, options) for what in ("draw", "learn")}
    finally:
        for worker in workers.values():
            worker.close()


def turns(workers: dict[str, Worker], what: str, options: argparse.Namespace) -> Message:
    """Let both do the same; the first turn warms up and does not count."""
    rounds: list[dict[str, float]] = []
    lengths: list[dict[str, int]] = []
    for index in range(options.rounds + 1):
        order = SIDES if index % 2 else SIDES[::-1]
        found = {side: workers[side].timed(what, count=options.count) for side in order}
        rounds.append({side: own["cpu"] / own["actions"] for side, own in found.items()})
        lengths.append({side: own["actions"] for side, own in found.items()})
    rounds, lengths = rounds[1:], lengths[1:]
    ratios = [own["torchgfn"] / own["melior"] for own in rounds]
    middle = {side: statistics.median(own[side] for own in rounds) for side in SIDES}
    return {
        "ratio": middle["torchgfn"] / middle["melior"],
        "least": min(ratios),
        "most": max(ratios),
        "a_second": {side: 1 / seconds for side, seconds in middle.items()},
        "actions_a_batch": {
            side: sum(own[side] for own in lengths) / len(lengths) / options.count for side in SIDES
        },
    }


def table(results: Message) -> str:
    """Return the table and what it was taken on."""
    rows = [["", "melior, actions a second", "torchgfn", "times as many", "least to most"]]
    for name, own in results["workloads"].items():
        for what, word in (("draw", "drawn"), ("learn", "learned")):
            found = own[what]
            speed = found["a_second"]
            rows.append([
                f"{name}, {word}", f"{speed['melior']:,.0f}", f"{speed['torchgfn']:,.0f}",
                f"**{found['ratio']:.1f}**", f"{found['least']:.1f} to {found['most']:.1f}",
            ])  # fmt: skip
    lengths = [
        own["actions_a_batch"][side] / 16
        for workload in results["workloads"].values()
        for own in workload.values()
        for side in SIDES
    ]
    notes = [
        "CPU time of one thread, turn by turn; 16 trajectories a batch, two layers of 256. A"
        f" trajectory has {min(lengths):.1f} to {max(lengths):.1f} actions on either side."
    ]
    return markdown(rows, notes, results)


def rival(folder: Path) -> Path:
    """Return the Python of torchgfn's environment, made from its pinned requirements."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", "-r", HERE / "requirements-torchgfn.txt"]
        subprocess.run(install, check=True)
    return python


if __name__ == "__main__":
    main()

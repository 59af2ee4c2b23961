"""Online against one-shot offline learning: `python benchmarks/online_against_offline.py`.

Both get the same prompts, answers to each, scores and passes over what was chosen; and the same
held-out prompts. Offline draws all answers from the start model at once and learns once. Online
draws a third of them in each of three rounds, from the model as it then is. The answers are
scored by rules that a program can check, and both models are put to one examination at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from melior import ops
from melior.evaluation.compare import Comparison, compare, t_interval
from melior.models.loading import load
from melior.options import ModelOptions
from melior.stages.bakeoff.exam import Exam, Numbers, sit
from melior.training.run import write_json

DATA = Path(__file__).parents[1] / "melior" / "recipes" / "demo_data"
ARMS = ("offline", "online")


@dataclass(frozen=True)
class Setup:
    """What is compared, and where it goes."""

    out: Path
    model: str
    rounds: int
    n_prompts: int
    n_eval: int
    k: int
    eval_k: int
    max_new_tokens: int
    learning_rate: float
    more: tuple[str, ...]
    """Further options of both arms."""

    def command(self, arm: str, seed: int) -> list[str]:
        """Return the command of an arm: the same labels in one round, or in several."""
        rounds = self.rounds if arm == "online" else 1
        folder = self.out / f"{arm}-{seed}"
        resume = ["--resume"] if (folder / "run.json").exists() else []
        return [
            "rlhf-workflow", "--model", self.model, "--prompts", str(DATA / "train_prompts.jsonl"),
            "--eval-prompts", str(DATA / "held_out_prompts.jsonl"), "--out", str(folder),
            "--rounds", str(rounds), "--n-prompts", str(self.n_prompts * self.rounds // rounds),
            "--n-eval-prompts", str(self.n_eval), "--k", str(self.k), "--keep", "last",
            "--max-new-tokens", str(self.max_new_tokens), "--batch-size", "8",
            "--learning-rate", str(self.learning_rate), "--seed", str(seed), *self.more, *resume,
        ]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one arm came to with one seed."""

    numbers: Numbers
    seconds: float
    pairs: int
    kl: float
    """To the start, in nats an answer, on the held-out prompts."""


def main() -> None:
    asked = _arguments()
    setup = Setup(
        Path(asked.out), asked.model, asked.rounds, asked.n_prompts, asked.n_eval, asked.k,
        asked.eval_k, asked.max_new_tokens, asked.learning_rate, tuple(asked.more),
    )  # fmt: skip
    seeds = list(range(asked.seed, asked.seed + asked.seeds))
    start = examined(setup, setup.model, setup.out / "start.json")
    found = {arm: [outcome(setup, arm, seed) for seed in seeds] for arm in ARMS}
    lines = table(setup, start, found, seeds)
    print("\n".join(lines))
    if asked.markdown:
        _put(Path(asked.markdown), "\n".join(lines))


def outcome(setup: Setup, arm: str, seed: int) -> Outcome:
    """Train an arm, unless that is done, and examine it."""
    folder = setup.out / f"{arm}-{seed}"
    if not (folder / "run.json").exists() or _read(folder / "run.json")["status"] != "finished":
        command = [sys.executable, "-m", "melior", *setup.command(arm, seed)]
        print("+", shlex.join(command[2:]), file=sys.stderr)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    exam = examined(setup, str(folder / "model"), setup.out / f"{arm}-{seed}-exam.json")
    rounds = [_read(path) for path in folder.glob("round-*/manifest.json")]
    pairs = sum(one["counts"].get("chosen", 0) for one in rounds)
    kl = max(rounds, key=lambda one: int(one["round"]))["means"]["kl"]
    return Outcome(exam, sum(one["cost"]["seconds"] for one in rounds), pairs, kl)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def examined(setup: Setup, model: str, kept: Path) -> Numbers:
    """Answer the held-out prompts several times, and score the answers."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        exam = Exam(
            prompts=str(DATA / "held_out_prompts.jsonl"), n_prompts=setup.n_eval, k=setup.eval_k,
            max_new_tokens=setup.max_new_tokens, has_rules=True, seed=1,
        )  # fmt: skip
        start = load(ModelOptions(model=setup.model), trainable=False)
        one = start if model == setup.model else load(ModelOptions(model=model), trainable=False)
        write_json(kept, sit(exam, one, start, None).numbers)
    return _read(kept)


def table(
    setup: Setup, start: Numbers, found: dict[str, list[Outcome]], seeds: Sequence[int]
) -> list[str]:
    """Return what came out, as Markdown."""
    lines = [
        "| | constraints met | of each seed | KL | of each seed | tokens | pairs | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| start model | {fmean(start['rules']):.3f} | | 0 | | {fmean(start['length']):.0f} | | |",
    ]
    for arm, own in found.items():
        by_seed = [fmean(one.numbers["rules"]) for one in own]
        lines.append(
            f"| {arm} | {fmean(by_seed):.3f} | {', '.join(f'{value:.3f}' for value in by_seed)} |"
            f" {fmean(one.kl for one in own):.1f} | {', '.join(f'{one.kl:.1f}' for one in own)} |"
            f" {fmean(fmean(one.numbers['length']) for one in own):.0f} |"
            f" {fmean(one.pairs for one in own):.0f} |"
            f" {fmean(one.seconds for one in own) / 60:.1f} |"
        )
    offline, online = (_by_prompt(found[arm]) for arm in ARMS)
    gain = compare(
        offline, online, name="online less offline", generator=ops.generator(0), unit="share"
    )
    differences = [
        fmean(a.numbers["rules"]) - fmean(b.numbers["rules"])
        for a, b in zip(found["online"], found["offline"], strict=True)
    ]
    return [*lines, "", _sentence(gain, differences), "", _about(setup, seeds)]


def _by_prompt(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the mean over seeds of each held-out prompt's score."""
    return [float(x) for x in np.mean([one.numbers["rules"] for one in outcomes], axis=0)]


def _sentence(gain: Comparison, differences: Sequence[float]) -> str:
    """Say who is ahead, which needs both intervals beyond 0: over prompts, and over seeds."""
    over = t_interval(differences, name="seeds")
    lows, highs = [gain.low or 0.0, over.low or 0.0], [gain.high or 0.0, over.high or 0.0]
    word = "is not shown to differ from"
    word = "beats" if min(lows) > 0 else "loses to" if max(highs) < 0 else word
    return (
        f"Online {word} offline: {gain.difference:+.3f} of the constraints ({lows[0]:+.3f} to"
        f" {highs[0]:+.3f} over {gain.n} held-out prompts, means over seeds; p {gain.p_value:.2g};"
        f" {lows[1]:+.3f} to {highs[1]:+.3f} over {over.n} seeds)."
    )


def _about(setup: Setup, seeds: Sequence[int]) -> str:
    n = setup.rounds * setup.n_prompts
    return (
        f"Each arm: {n} prompts, {setup.k} answers to each, {setup.rounds} rounds or one; seeds"
        f" {', '.join(map(str, seeds))}; {setup.n_eval} held-out prompts, answered {setup.eval_k}"
        " times each."
    )


def _put(page: Path, found: str) -> None:
    """Write what was found between the page's marks."""
    begin, end = "<!-- numbers: online -->", "<!-- /numbers -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    tail = rest.partition(end)[2]
    page.write_text(f"{head}{begin}\n\n{found}\n\n{end}{tail}", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/online-against-offline")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n-prompts", type=int, default=100, help="of each round")
    parser.add_argument("--n-eval", type=int, default=100)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--eval-k", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=72)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--markdown", default="", help="a page to write the table into")
    parser.add_argument("more", nargs="*", help="further options of both arms, behind --")
    return parser.parse_args()


if __name__ == "__main__":
    main()

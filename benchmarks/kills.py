"""Runs that are killed at random moments, and go on: `python benchmarks/kills.py`.

`melior simpo` (all weights, float32 masters) and `melior dpo` (a LoRA adapter with dropout) learn
on a small model and save after every step. Each attempt is a process of its own, ended by SIGKILL
at a moment drawn evenly, one in four over all the time that a whole run takes, the others from when
the first step is written down, and gone on with by `--resume`. Attempts are forked from a process
that has imported everything, so that a kill costs no start. A run that comes to its end is held
against one that nobody disturbed, weights and metrics bit by bit, and another one begins, until
there were enough kills.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers.models.auto.tokenization_auto  # noqa: F401  imported once, for all attempts
from rival import describe_machine, fill_in, machine
from transformers import LlamaConfig, LlamaForCausalLM

import melior.report.page
import melior.stages.learn  # noqa: F401  as above
from melior.cli import main
from melior.models.loading import load_chat
from melior.options import ModelOptions
from melior.training.checkpoint import newest

RUNS = {
    "simpo": ("simpo", "--learning-rate", "1e-3"),
    "dpo": ("dpo", "--learning-rate", "1e-2", "--lora-r", "4", "--lora-dropout", "0.1"),
}
COMMON = ("--epochs", "1", "--batch-size", "2", "--save-steps", "1", "--n-samples", "2")
STEPPING = 0.7
"""Of the time of a whole run, about what its steps and its end take."""
PLACES = {
    "metrics.jsonl": "while taking steps", "checkpoints": "while taking steps",
    "evaluation.json": "while judging", "samples.jsonl": "while judging",
    "report.html": "while judging",
}  # fmt: skip
"""What a run was doing whose newest file or folder is this one."""


@dataclass
class Found:
    """What became of the kills of one command."""

    kills: int = 0
    runs: int = 0
    """That came to their end, each in the bits of the run that nobody disturbed."""
    places: Counter[str] = field(default_factory=Counter)
    """What a run was doing when it was killed."""
    damaged: int = 0
    """Checkpoints in their place that were not as they were written."""
    seconds: float = 0.0


def killed(name: str, n_kills: int, place: Path, dice: random.Random) -> Found:
    """Kill a command so many times, at other moments each; see that all its runs end alike."""
    began, found, folder = time.monotonic(), Found(), place / "cut"
    words = (*RUNS[name], *COMMON, "--model", str(place / "model"), "--data",
             str(place / "pairs.jsonl"))  # fmt: skip
    attempt([*words, "--out", str(place / "whole")])
    took, expected = time.monotonic() - began, outcome(place / "whole")
    metrics = folder / "metrics.jsonl"
    while found.kills < n_kills or folder.exists():
        resume = ["--resume"] if (folder / "run.json").exists() else []
        again = [*words, "--out", str(folder), *resume]
        start, after = time.time_ns(), metrics if dice.random() < 0.75 else None
        moment = Moment(dice.uniform(0, took * (1 if after is None else STEPPING)), after)
        if attempt(again, moment if found.kills < n_kills else None):
            if outcome(folder) != expected:
                raise SystemExit(f"{name}: another result after {found.kills} kills")
            found.runs += 1
            shutil.rmtree(folder)
            continue
        found.kills += 1
        found.places[doing(folder, start)] += 1
        found.damaged += newest(folder / "checkpoints")[1].count("passed over")
    shutil.rmtree(place / "whole")
    found.seconds = time.monotonic() - began
    return found


@dataclass(frozen=True)
class Moment:
    """When a run is killed."""

    seconds: float
    after: Path | None
    """From when this file is written to; from the start where there is none."""


def attempt(words: Sequence[str], moment: Moment | None = None) -> bool:
    """Run a command in a process, which is killed at a moment if one is given; say if it ended."""
    said = Path(words[words.index("--out") + 1]).with_suffix(".txt")
    start, deadline = time.time(), math.inf
    child = os.fork()
    if child == 0:
        code: int | str | None = 1
        try:
            for stream in (1, 2):
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            main(list(words))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code if isinstance(code, int) else 1)
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid and os.waitstatus_to_exitcode(status):
            raise SystemExit(f"failed: melior {' '.join(words)}: {said.read_text()[-2000:]}")
        if pid:
            return True
        if moment and deadline == math.inf and _is_written(moment.after, start):
            deadline = time.monotonic() + moment.seconds
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _is_written(path: Path | None, since: float) -> bool:
    if path is None:
        return True
    return path.exists() and path.stat().st_size > 0 and path.stat().st_mtime > since


def outcome(folder: Path) -> tuple[list[bytes], list[dict[str, float]]]:
    """Return what a run leaves: the bytes of its weights, and all its numbers but times."""
    weights = [path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weights, [{k: v for k, v in row.items() if k != "time"} for row in rows]


def doing(folder: Path, since: int) -> str:
    """Say what a run was doing when it was killed, from the newest thing that it left."""
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    new = [path for path, when in times.items() if when >= since]
    path = max(new, key=lambda one: times[one], default=folder)
    if any(part.startswith(".partial") for part in path.parts):
        return "while writing a checkpoint"
    if path.parent.name == "model" or path.name == "model":
        return "while saving the model"
    return PLACES.get(path.name, "while starting or resuming")


def prepare(place: Path) -> None:
    """Write a small random model with the tokenizer of smollm2, and pairs to learn from."""
    tokenizer = load_chat(ModelOptions(model="smollm2")).tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                tie_word_embeddings=True, max_position_embeddings=512,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    sides = ("thank you, it is {}, as I said", "no idea, and why {}?")
    rows = (
        {"prompt": f"What is {i} and {i + 1}?", "chosen": sides[0].format(2 * i + 1),
         "rejected": sides[1].format(i)}
        for i in range(64)
    )  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "pairs.jsonl").write_text(lines, encoding="utf-8")


def markdown(found: dict[str, Found], before: dict[str, object]) -> str:
    """Return a table of all that was found."""
    places = sorted({place for one in found.values() for place in one.places})
    rows = [
        ("", *(f"`melior {name}`" for name in found)),
        ("kills", *(str(one.kills) for one in found.values())),
        *(
            (f"... {place}", *(str(one.places[place]) for one in found.values()))
            for place in places
        ),
        ("damaged checkpoints", *(str(one.damaged) for one in found.values())),
        ("runs that came to their end, in the same bits", *(str(o.runs) for o in found.values())),
        ("seconds", *(f"{one.seconds:.0f}" for one in found.values())),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    return "\n".join([*lines, "", f"- {time.strftime('%Y-%m-%d')}; {describe_machine(before)}."])


def run() -> None:
    """Kill, and write down what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="of the moments")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--markdown", type=Path, nargs="+", default=[], help="pages to write into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before, dice, found = machine(1), random.Random(options.seed), dict[str, Found]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepare(place)
        os.environ["MELIOR_CACHE"] = str(place / "cache")  # nothing of it is left behind
        for i, command in enumerate(RUNS):
            n_kills = (options.kills + i) // len(RUNS)
            found[command] = killed(command, n_kills, place, dice)
    table = markdown(found, before)
    print(table)
    if options.json:
        numbers = {command: vars(one) for command, one in found.items()}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    for page in options.markdown:
        fill_in(page, "kills", table)


if __name__ == "__main__":
    run()

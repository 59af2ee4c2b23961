"""Runs of steps that are killed again and again, and go on: FOLDER N_KILLS COMMAND [OPTIONS].

As `killed_rounds`, for recipes that take steps in one folder. Prints the kills, the whole runs that
were compared, and how often a run went on from a checkpoint.
"""

import json
import random
import re
import shutil
import sys
import time
from pathlib import Path

import torch

import melior.report.terminal
import melior.stages.flows.learn
import melior.stages.flows.rewarded
import melior.stages.flows.turn
import melior.stages.marginals.learn  # noqa: F401  imported once, for all tries
from tests.recipes.killed_rounds import attempt

TIMES = "seconds|times faster"
"""Of the machine, not of the run."""


def outcome(folder):
    """All that a run leaves and that must not depend on kills: bytes of weights, and judgement."""
    weights = {file.name: file.read_bytes() for file in sorted(folder.glob("model/*"))}
    judgement = json.loads((folder / "evaluation.json").read_text())
    facts = {name: v for name, v in judgement["facts"].items() if not re.search(TIMES, name)}
    return weights, {**judgement, "facts": facts}


def has_begun(folder):
    """Whether there is a checkpoint: what is killed before has nothing to go on from."""
    return any(folder.glob("checkpoints/step-*"))


def killed(place, n_kills, words):
    dice = random.Random(time.time_ns())  # other moments each time: all must be right
    began = time.monotonic()
    assert attempt([*words, "--out", str(place / "whole")])
    took, expected = time.monotonic() - began, outcome(place / "whole")
    kills, compared, resumed, folder = 0, 0, 0, place / "cut"
    # Kills that all fall before the first checkpoint would try nothing: then there are more.
    while kills < n_kills or not resumed or folder.exists() or not compared:
        more = ["--resume"] if (folder / "run.json").exists() else []
        resumed += bool(more) and has_begun(folder)
        seconds = dice.uniform(0, took) if kills < n_kills or not resumed else None
        if attempt([*words, "--out", str(folder), *more], seconds):
            assert outcome(folder) == expected, f"another result after {kills} kills"
            compared += 1
            shutil.rmtree(folder)
            continue
        kills += 1
    return {"kills": kills, "compared": compared, "resumed": resumed}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(killed(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))

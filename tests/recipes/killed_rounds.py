"""Rounds that are killed again and again, and go on: FOLDER N_KILLS RECIPE [OPTIONS].

Each try is a process of its own, which is ended by SIGKILL at a random moment; they are forked from
one that has imported everything, so that a kill costs no start. A run that comes to its end is
held against one that nobody disturbed, and another one begins, until there were enough kills.
Prints the kills, the whole runs compared, and how often each file was the newest at a kill.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama  # noqa: F401  imported once, for all tries
from safetensors.torch import load_file

import melior.report.rounds
import melior.stages.internal.rounds
import melior.stages.online.rounds  # noqa: F401  as above
from melior.cli import main


def attempt(words, seconds=None):
    """Run the command in a process that may be killed; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                main(words)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + (seconds if seconds is not None else 600)
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0, f"failed: {words}"
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def outcome(folder):
    """All that a run leaves and that must not depend on kills."""
    manifests = {}
    for path in sorted(folder.glob("round-*/manifest.json")):
        found = json.loads(path.read_text())
        manifests[path.parent.name] = {k: v for k, v in found.items() if k != "cost"}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    weights = load_file(folder / "model" / "model.safetensors")
    return manifests, evaluation, weights


def newest(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_mtime_ns, default=Path("nothing"))
    return path.name if "checkpoints" not in path.parts else "a checkpoint"


def same(one, other):
    weights = zip(sorted(one[2].items()), sorted(other[2].items()), strict=True)
    return one[:2] == other[:2] and all(a == b and torch.equal(x, y) for (a, x), (b, y) in weights)


def killed(place, n_kills, words):
    dice = random.Random(time.time_ns())  # other moments each time: all must be right
    began = time.monotonic()
    assert attempt([*words, "--out", str(place / "whole")])
    took, expected = time.monotonic() - began, outcome(place / "whole")
    kills, compared, moments, folder = 0, 0, Counter(), place / "cut"
    while kills < n_kills or folder.exists() or not compared:
        resume = ["--resume"] if (folder / "run.json").exists() else []
        seconds = dice.uniform(0, took) if kills < n_kills else None
        if attempt([*words, "--out", str(folder), *resume], seconds):
            assert same(outcome(folder), expected), f"another result after {kills} kills"
            compared += 1
            shutil.rmtree(folder)
            continue
        kills += 1
        moments[newest(folder)] += 1
    return {"kills": kills, "compared": compared, "moments": moments}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(killed(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))

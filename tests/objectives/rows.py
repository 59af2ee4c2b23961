"""Comparisons that a tiny model learns in seconds: polite answers are better than others."""

import json
from pathlib import Path

from melior.cli import main
from melior.objectives.objective import Objective
from melior.objectives.table import objective_kind

WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy", "today", "jumps")


def answers(i: int) -> tuple[str, str, str]:
    """A good answer to question `i`, one that is half good, and a bad one."""
    good, bad = f"thank you, {WORDS[(i + 3) % 10]}", f"the {WORDS[(i + 5) % 10]} jumps"
    return good, f"thank the {WORDS[(i + 7) % 10]}", bad


def pair(i: int) -> dict:
    good, _, bad = answers(i)
    return {"prompt": f"what about {WORDS[i % 10]} {i}?", "chosen": good, "rejected": bad,
            "margin": 1.0}  # fmt: skip


def alone(i: int) -> dict:
    good, _, bad = answers(i // 2)
    return {"prompt": f"what about {WORDS[i // 2 % 10]} {i // 2}?",
            "completion": bad if i % 2 else good, "label": not i % 2}  # fmt: skip


def scored(i: int) -> dict:
    """A list of three in steps, the best last, and every fourth time without the half good one."""
    good, half, bad = (f"Step 1: say it.\nStep 2: {said}" for said in answers(i))
    scores = {bad: -40, half: 10, good: 90}
    found = [
        {"response": said.splitlines(), "score": score}
        for said, score in scores.items()
        if said != half or i % 4
    ]
    return {"prompt": f"what about {WORDS[i % 10]} {i}?", "response_list": found}


KINDS = {"pairs": pair, "answers": alone, "lists": scored}


def written(path: Path, kind: str, start: int, stop: int) -> str:
    rows = (KINDS[kind](i) for i in range(start, stop))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def kind_of(name: str) -> type[Objective]:
    return objective_kind(name)


def train(name: str, folder: Path, model: Path, *words: str, kind: str = "") -> Path:
    """Run the command on its kind of rows, held-out ones beside, and return the run's folder."""
    kind = kind or kind_of(name).data
    data = written(folder / f"{kind}.jsonl", kind, 0, 24)
    apart = written(folder / f"held-{kind}.jsonl", kind, 40, 56)
    out = folder / f"run-{len(list(folder.iterdir()))}"
    main([
        name, "--model", str(model), "--data", data, "--eval-data", apart, "--out", str(out),
        "--dtype", "fp32", "--learning-rate", "1e-2", "--epochs", "4", "--batch-size", "8",
        "--n-samples", "0", *words,
    ])  # fmt: skip
    return out


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]

"""Melior's side of `reward_scoring.py`: the scorer of `melior score`, from texts to rewards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from turns import Line, Message

from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.rewards.scalar import load_scorer


def main() -> None:
    line = Line()
    request = line.wait()
    options = ModelOptions(model=request["model"], dtype=request["dtype"], device="cpu")
    scorer = load_scorer(options, max_tokens=request["max_tokens"])
    asked = [group(json.loads(row)) for row in Path(request["groups"]).read_text().splitlines()]
    line.answer({"torch": torch.__version__, "transformers": transformers.__version__})
    while True:
        where = line.wait()["options"]
        scored = scorer.groups(asked[where["start"] : where["stop"]])
        rewards = [one.score for found in scored for one in found.candidates]
        line.answer({"rewards": rewards})


def group(row: Message) -> Group:
    said = tuple(Candidate((Turn("assistant", text),)) for text in row["answers"])
    return Group((Turn("user", row["prompt"]),), said)


if __name__ == "__main__":
    main()

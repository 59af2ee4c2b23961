"""Make pairs that go in circles of real answers: solutions of grade-school problems.

As GPM's paper makes them of rated answers (Zhang et al. 2024, arXiv 2410.02197), each link of a
circle is what another criterion says: A beats B as it is right and B is wrong, B beats C as it is a
fifth shorter, and C beats A as it writes down more of its calculations.

Each circle stands as three pairs in `circles_NAME.jsonl`, and in `lists_NAME.jsonl` as one list
whose scores say what is right, so that `melior evaluate reward` can count what goes round.

Reads `example_model_solutions.jsonl` of github.com/openai/grade-school-math (MIT), which has five
solutions to each problem, one of them a human's; gzip is unpacked. Run as

    python tools/make_circles.py SOLUTIONS OUT --train 8 --held-out 8
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class Solution:
    """What was written, and whether its result is right."""

    text: str
    is_right: bool

    @property
    def calculations(self) -> int:
        """How many calculations it writes down."""
        return self.text.count("<<")


def circle(row: Mapping[str, Any]) -> tuple[Solution, Solution, Solution] | None:
    """Return the shortest three solutions of a problem that go in a circle, if there are any."""
    known = [Solution(row[name]["solution"], row[name]["is_correct"]) for name in MODELS]
    known.append(Solution(row["ground_truth"], True))
    found = [
        (a, b, c)
        for a, b, c in permutations(known, 3)
        if a.is_right and not b.is_right
        and len(b.text) <= 0.8 * len(c.text)
        and c.calculations > a.calculations
    ]  # fmt: skip
    return min(found, key=lambda three: sum(len(one.text) for one in three), default=None)


def pairs(question: str, three: tuple[Solution, ...]) -> Iterator[dict[str, Any]]:
    """Yield the three pairs of a circle."""
    for place, criterion in enumerate(("right", "shorter", "more calculations")):
        better, worse = three[place], three[(place + 1) % 3]
        yield {"prompt": question, "chosen": better.text, "rejected": worse.text,
               "subset": criterion}  # fmt: skip


def as_list(question: str, three: tuple[Solution, ...]) -> dict[str, Any]:
    """Return a circle as a list, scored by what is right."""
    said = [{"response": one.text, "score": float(one.is_right)} for one in three]
    return {"prompt": question, "candidates": said}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("solutions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=8)
    given = parser.parse_args()
    opened = gzip.open if given.solutions.suffix == ".gz" else open
    with opened(given.solutions, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    circles = [(row["question"], three) for row in rows if (three := circle(row))]
    # The shortest, so that a small machine gets through them; which are held out is drawn.
    circles.sort(key=lambda one: len(one[0]) + sum(len(each.text) for each in one[1]))
    kept = circles[: given.train + given.held_out]
    random.Random(0).shuffle(kept)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, own in (("train", kept[: given.train]), ("held_out", kept[given.train :])):
        write(given.out / f"circles_{name}.jsonl", [pair for one in own for pair in pairs(*one)])
        write(given.out / f"lists_{name}.jsonl", [as_list(*one) for one in own])
    print(f"{len(circles)} circles, of which {len(kept)} are written")


if __name__ == "__main__":
    main()

"""Ratings and pairs for `melior armorm`, made of two public files of real answers.

GSM8K's four model solutions to each question (Cobbe et al. 2021, openai/grade-school-math) are
rated by whether their final number is right, the two answers of a harmless pair (Bai et al. 2022,
anthropics/hh-rlhf) by which of them people preferred, and all by their length in fifths. So no
answer has all three ratings, and what a prompt asks for decides which of them counts. Prompts are
divided between ratings, pairs to train on, and pairs to judge on; none stands in two files.

    python benchmarks/rated_answers.py --gsm8k example_model_solutions.jsonl --hh test.jsonl --out .
"""

from __future__ import annotations

import argparse
import json
import random
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from melior.data.files import read_pairs, read_records, turn_rows
from melior.records import text

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
RATED, TRAINED, HELD_OUT = 80, 120, 80
"""Prompts of each data set."""
LONGEST = 500
"""Characters of prompt and answer."""


def main() -> None:
    """Write the three files."""
    asked = argparse.ArgumentParser(description=__doc__)
    for name in ("gsm8k", "hh", "out"):
        asked.add_argument(f"--{name}", required=True)
    given = asked.parse_args()
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    rated: list[list[dict[str, Any]]] = []
    pairs: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for rows in (list(arithmetic(given.gsm8k)), list(harmless(given.hh))):
        random.Random(0).shuffle(rows)
        rated += [row["rated"] for row in rows[:RATED]]
        pairs += [row["pair"] for row in rows[RATED : RATED + TRAINED]]
        held_out += [row["pair"] for row in rows[RATED + TRAINED :][:HELD_OUT]]
    for mixed in (rated, pairs, held_out):  # the first rows of a file are of both data sets
        random.Random(1).shuffle(mixed)
    answers = [answer for own in rated for answer in own]
    in_fifths(answers)
    for name, rows in (("ratings", answers), ("pairs", pairs), ("held_out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{out / name}.jsonl: {len(rows)} rows")


def arithmetic(path: str) -> Iterator[dict[str, Any]]:
    """Yield questions with a right and a wrong solution among the four."""
    for _, row in read_records(path):
        prompt = [{"role": "user", "content": row["question"]}]
        solutions = {row[m]["solution"]: bool(row[m]["is_correct"]) for m in MODELS}
        right = [said for said, is_right in solutions.items() if is_right]
        wrong = [said for said, is_right in solutions.items() if not is_right]
        if not right or not wrong or _is_long(prompt, *solutions):
            continue
        rated = [answer(prompt, said, correct=is_right) for said, is_right in solutions.items()]
        pair = {"prompt": prompt, "chosen": right[0], "rejected": wrong[0], "subset": "arithmetic"}
        yield {"rated": rated, "pair": pair}


def harmless(path: str) -> Iterator[dict[str, Any]]:
    """Yield prompts with the answer that people preferred and the other one, each prompt once."""
    known = set()
    for pair in read_pairs(path):
        prompt, sides = turn_rows(pair.prompt), (text(pair.chosen), text(pair.rejected))
        if pair.prompt in known or len(pair.chosen) != 1 or _is_long(prompt, *sides):
            continue
        known.add(pair.prompt)
        rated = [answer(prompt, said, preferred=not i) for i, said in enumerate(sides)]
        row = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "subset": "harmless"}
        yield {"rated": rated, "pair": row}


def answer(prompt: list[dict[str, Any]], said: str, **ratings: bool) -> dict[str, Any]:
    """Return an answer with its ratings; it has no others."""
    return {"messages": [*prompt, {"role": "assistant", "content": said}], **ratings}


def in_fifths(rows: list[dict[str, Any]]) -> None:
    """Rate each answer by its length: 0 for the shortest fifth of all, 4 for the longest."""
    lengths = [len(row["messages"][-1]["content"].split()) for row in rows]
    cuts = [sorted(lengths)[len(lengths) * i // 5] for i in range(1, 5)]
    for row, length in zip(rows, lengths, strict=True):
        row["verbosity"] = bisect_right(cuts, length)


def _is_long(prompt: list[dict[str, Any]], *answers: str) -> bool:
    asked = sum(len(turn["content"]) for turn in prompt)
    return any(not said.strip() or asked + len(said) > LONGEST for said in answers)


if __name__ == "__main__":
    main()

"""Token ids and texts for the benchmarks: real English text in the shapes of real use.

The text is Python's own manual, which comes with every CPython; prompts are windows of it, chosen
answers go on where the prompt ends, rejected answers come from elsewhere.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Pair = dict[str, list[int]]
"""`prompt_ids`, `chosen_ids`, `rejected_ids`."""
Asked = dict[str, Any]
"""`prompt` and `answers`, as texts."""
Weighed = dict[str, Any]
"""`prompt_ids`, `answers` as token ids, and a number for each answer, `weights`."""


def short(draw: random.Random) -> tuple[int, int, int]:
    return 64, draw.randint(64, 128), draw.randint(64, 128)


def long(draw: random.Random) -> tuple[int, int, int]:
    return draw.randint(512, 1024), 64, 64


def ragged(draw: random.Random) -> tuple[int, int, int]:
    """Log-normal lengths, sigma 1, as those of answers that people and models gave."""

    def length(median: int, sigma: float, most: int) -> int:
        return min(most, max(8, round(median * math.exp(sigma * draw.gauss(0.0, 1.0)))))

    return length(80, 1.0, 224), length(120, 1.0, 416), length(120, 1.0, 416)


WORKLOADS: dict[str, tuple[int, Callable[[random.Random], tuple[int, int, int]], str]] = {
    "short": (4, short, "4 pairs, prompt 64, answers 64 to 128 tokens"),
    "long": (2, long, "2 pairs, prompt 512 to 1024, answers 64 tokens"),
    "ragged": (4, ragged, "4 pairs, log-normal: prompt about 80, answers about 120 tokens"),
}
"""Pairs a batch, lengths of prompt, chosen and rejected answer, and how to say it."""


GROUPS = {"long": (512, 1024, 64), "short": (16, 64, 64)}
"""Least and most tokens of a prompt, and of an answer on average: half to one and a half times."""


def batches(workload: str, model: Path, *, count: int, seed: int) -> list[list[Pair]]:
    """Return batches that depend on the seed, the tokenizer and the Python version alone."""
    _, ids = _manual(model)
    n_pairs, lengths, _ = WORKLOADS[workload]
    draw = random.Random(f"{workload} {seed}")
    return [[_pair(ids, *lengths(draw), draw) for _ in range(n_pairs)] for _ in range(count)]


def groups(workload: str, model: Path, *, count: int, k: int, seed: int) -> list[Asked]:
    """Return prompts with k answers each, the shortest first, as texts.

    The first answer goes on where its prompt ends, the others come from elsewhere.
    """
    tokenizer, ids = _manual(model)
    shortest, longest, answer = GROUPS[workload]
    draw = random.Random(f"{workload} {seed}")

    def window(start: int, length: int) -> str:
        return tokenizer.decode(ids[start : start + length]).strip()

    drawn = []
    for length in sorted(draw.randint(shortest, longest) for _ in range(count)):
        start = draw.randrange(len(ids) - length - 2 * answer)
        places = [start + length, *(draw.randrange(len(ids) - 2 * answer) for _ in range(k - 1))]
        answers = [window(place, draw.randint(answer // 2, answer * 3 // 2)) for place in places]
        drawn.append({"prompt": window(start, length), "answers": answers})
    return drawn


def lists(model: Path, *, count: int, k: int, seed: int) -> list[Weighed]:
    """Return prompts of 512 tokens with k answers of 64 each."""
    _, ids = _manual(model)
    draw = random.Random(f"lists {seed}")
    return [
        _weighed(_window(ids, 512, draw), [_window(ids, 64, draw) for _ in range(k)], draw)
        for _ in range(count)
    ]


def trees(model: Path, *, count: int, forks: int, seed: int) -> list[Weighed]:
    """Return prompts of 256 tokens, each the root of a tree of steps of 32 to 96.

    A first step, and after it so many forks in two: an answer is a path to a leaf.
    """
    _, ids = _manual(model)
    draw = random.Random(f"trees {seed}")

    def paths(left: int) -> list[list[int]]:
        step = _window(ids, draw.randint(32, 96), draw)
        rest = [*paths(left - 1), *paths(left - 1)] if left else [[]]
        return [step + path for path in rest]

    return [_weighed(_window(ids, 256, draw), paths(forks), draw) for _ in range(count)]


def prompts(model: Path, *, count: int, length: int, seed: int) -> list[list[int]]:
    """Return prompts of so many tokens."""
    _, ids = _manual(model)
    draw = random.Random(f"prompts {seed}")
    return [_window(ids, length, draw) for _ in range(count)]


def conversations(*, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield pairs of ragged lengths as rows of a file; four characters stand for a token."""
    text, draw = _text(), random.Random(f"conversations {seed}")

    def said(role: str, length: int) -> list[dict[str, str]]:
        start = draw.randrange(len(text) - 4 * length)
        return [{"role": role, "content": text[start : start + 4 * length].strip()}]

    for _ in range(count):
        prompt, chosen, rejected = ragged(draw)
        answers = {"chosen": said("assistant", chosen), "rejected": said("assistant", rejected)}
        yield {"prompt": said("user", prompt), **answers}


def describe(batch: list[Pair]) -> dict[str, int]:
    """Count a batch's tokens: padded to its longest sequence, and with each prompt once."""
    sides = [
        len(p["prompt_ids"]) + len(p[k]) for p in batch for k in ("chosen_ids", "rejected_ids")
    ]
    return {
        "padded": len(sides) * max(sides),
        "distinct": sum(sides) - sum(len(p["prompt_ids"]) for p in batch),
        "scored": sum(len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in batch),
    }


def _pair(ids: list[int], prompt: int, chosen: int, rejected: int, draw: random.Random) -> Pair:
    start = draw.randrange(len(ids) - prompt - chosen)
    other = draw.randrange(len(ids) - rejected)
    return {
        "prompt_ids": ids[start : start + prompt],
        "chosen_ids": ids[start + prompt : start + prompt + chosen],
        "rejected_ids": ids[other : other + rejected],
    }


def _weighed(prompt: list[int], answers: list[list[int]], draw: random.Random) -> Weighed:
    """Weigh answers by numbers that add up to 0, as centred rewards do."""
    drawn = [draw.gauss(0.0, 1.0) for _ in answers]
    weights = [one - sum(drawn) / len(drawn) for one in drawn]
    return {"prompt_ids": prompt, "answers": answers, "weights": weights}


def _window(ids: list[int], length: int, draw: random.Random) -> list[int]:
    start = draw.randrange(len(ids) - length)
    return ids[start : start + length]


def _manual(model: Path) -> tuple[Any, list[int]]:
    """Return the model's tokenizer and the tokens of Python's manual."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer, tokenizer(_text(), verbose=False).input_ids


def _text() -> str:
    return "\n\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))

"""Rounds of SCIR: the model answers new prompts, pairs of its answers are what it learns from next.

Zhou et al. 2025, arXiv 2502.08922, after Yuan et al. 2024, arXiv 2401.10020 (self-rewarding
language models). The reference of a round is the model at its start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from melior.data.files import read_groups, write_records
from melior.ops import generator
from melior.options import LoopOptions, ModelOptions
from melior.records import Group, Metrics, Pair, text
from melior.stages.internal.learn import ConsistencyPlan, learn_consistently
from melior.stages.online.propose import CANDIDATES, seed_of
from melior.stages.online.rounds import LEARNED, learned

PAIRS = "pairs.jsonl"
"""In a round's folder: unlabelled ones, though their rows say `chosen` and `rejected`."""


def pair_up(here: Path, *, seed: int) -> tuple[int, int]:
    """Write a round's unlabelled pairs, and return how many, and of how many prompts.

    Different answers to a prompt are drawn two by two, each answer once; empty ones are left out,
    and of equal ones all but the first.
    """
    n_pairs, n_prompts = 0, 0

    def pairs() -> Iterator[Pair]:
        nonlocal n_pairs, n_prompts
        for place, group in enumerate(read_groups(here / CANDIDATES)):
            found = disjoint_pairs(group, seed=seed_of(seed, place))
            n_pairs, n_prompts = n_pairs + len(found), n_prompts + bool(found)
            yield from found

    write_records(here / PAIRS, pairs())
    return n_pairs, n_prompts


def disjoint_pairs(group: Group, *, seed: int) -> list[Pair]:
    """Return different answers to a prompt, two by two, as the seed draws them."""
    said = {text(one.response): one for one in reversed(group.candidates)}
    left = [one for content, one in reversed(said.items()) if content.strip()]
    order = torch.randperm(len(left), generator=generator(seed)).tolist()
    drawn = list(pairwise(order))[::2]
    return [Pair(group.prompt, left[a].response, left[b].response) for a, b in drawn]


def learn_round(here: Path, plan: ConsistencyPlan) -> ModelOptions:
    """Learn from a round's pairs, or go on with that, and return what came of it."""

    def learn(loop: LoopOptions) -> None:
        learn_consistently(replace(plan, loop=loop, unlabelled=(str(here / PAIRS),)))

    return learned(here, plan.model, plan.loop, learn)


def told(here: Path, n_pairs: int, n_prompts: int) -> Metrics:
    """Return a round's numbers as a line of the whole run's metrics."""
    found = {"round/pairs": float(n_pairs), "round/prompts": float(n_prompts)}
    facts = json.loads((here / LEARNED / "evaluation.json").read_text(encoding="utf-8"))["facts"]
    return found | {
        f"round/{name.removesuffix(', after').replace(' ', '_')}": value
        for name, value in facts.items()
        if name.endswith(", after")
    }

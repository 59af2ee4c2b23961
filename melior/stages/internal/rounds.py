"""Rounds of SCIR: the model answers new prompts, pairs of its answers are what it learns from next.

Zhou et al. 2025, arXiv 2502.08922, after Yuan et al. 2024, arXiv 2401.10020 (self-rewarding
language models). The reference of a round is the model at its start.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

import torch

from melior.data.files import duel, read_groups, write_records
from melior.ops import generator
from melior.options import LoopOptions, ModelOptions
from melior.records import Group, Metrics, Pair, text
from melior.stages.internal.learn import learn_consistently
from melior.stages.internal.options import ConsistencyPlan
from melior.stages.online.manifest import MANIFEST, write_manifest
from melior.stages.online.propose import CANDIDATES, PROMPTS, seed_of
from melior.stages.online.rounds import LEARNED, learned

PAIRS = "pairs.jsonl"
"""In a round's folder: unlabelled ones, though their rows say `chosen` and `rejected`."""


@dataclass(frozen=True)
class Paired:
    """What became of a round's prompts."""

    prompts: int
    paired: int
    """Of them, those with two different answers or more."""
    pairs: int

    def sentence(self) -> str:
        """Say it."""
        return f"{self.pairs} pairs of different answers to {self.paired} of {self.prompts} prompts"


def seeds_of(seed: int, number: int) -> dict[str, int]:
    """Return the seeds of a round's draws."""
    return {
        "answers": seed_of(seed, number, "answers"),
        "pairs": seed_of(seed, number, "pairs"),
        "learning": seed + number,
    }


def pair_up(here: Path, *, seed: int) -> Paired:
    """Write a round's unlabelled pairs, and return how many, and of how many prompts.

    Different answers to a prompt are drawn two by two, each answer once; empty ones are left out,
    and of equal ones all but the first.
    """
    groups = enumerate(read_groups(here / CANDIDATES))
    found = [disjoint_pairs(group, seed=seed_of(seed, place)) for place, group in groups]
    n = write_records(here / PAIRS, chain.from_iterable(found))
    return Paired(len(found), sum(map(bool, found)), n)


def disjoint_pairs(group: Group, *, seed: int) -> list[Pair]:
    """Return different answers to a prompt, two by two, as the seed draws them."""
    said = {text(one.response): one for one in reversed(group.candidates)}
    left = [one for content, one in reversed(said.items()) if content.strip()]
    order = torch.randperm(len(left), generator=generator(seed)).tolist()
    drawn = list(pairwise(order))[::2]
    return [duel(group, left[a], left[b], margin=0.0) for a, b in drawn]


def learn_round(here: Path, plan: ConsistencyPlan) -> ModelOptions:
    """Learn from a round's pairs, or go on with that, and return what came of it."""

    def learn(loop: LoopOptions) -> None:
        learn_consistently(replace(plan, loop=loop, unlabelled=(str(here / PAIRS),)))

    return learned(here, plan.model, plan.loop, learn)


def close(
    here: Path,
    policies: Sequence[ModelOptions],
    counts: Paired,
    *,
    seeds: Mapping[str, int],
    began: float,
) -> None:
    """Write a round's manifest, last of all, and leave the run of its learning without steps.

    All of it but `cost` is the same whether the round was stopped on its way or not. `policies` are
    what answered in the round, and what it learned; `began` is when it did so in this process.
    """
    if (here / MANIFEST).exists():
        return
    shutil.rmtree(here / LEARNED / "checkpoints", ignore_errors=True)
    write_manifest(
        here, policies, learned=here / LEARNED, files=(PROMPTS, CANDIDATES, PAIRS),
        about={
            "round": int(here.name.removeprefix("round-")),
            "seeds": dict(seeds),
            "counts": asdict(counts),
            "facts": _facts(here),
            "cost": {"seconds": round(time.monotonic() - began, 2)},
        },
    )  # fmt: skip


def told(here: Path, counts: Paired) -> Metrics:
    """Return a round's numbers as a line of the whole run's metrics."""
    found = {"round/pairs": float(counts.pairs), "round/prompts": float(counts.paired)}
    return found | {
        f"round/{name.removesuffix(', after').replace(' ', '_')}": value
        for name, value in _facts(here).items()
        if name.endswith(", after")
    }


def _facts(here: Path) -> dict[str, float]:
    """Return what the judgement of a round's learning tells."""
    found = json.loads((here / LEARNED / "evaluation.json").read_text(encoding="utf-8"))
    return dict(found["facts"])

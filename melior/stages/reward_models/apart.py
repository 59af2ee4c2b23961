"""What an experiment holds apart: prompts to choose settings on, and rows to judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from melior.data.files import content_hash, read_any, read_prompts, write_records
from melior.data.split import shared_prompts, split_by_prompt
from melior.records import Group, Pair


@dataclass(frozen=True)
class Apart:
    """Rows in files: the same ones in all cells of an experiment."""

    comparisons: str
    """Rows that have answers to rank; empty where there are none."""
    prompts: str
    """Prompts to answer."""
    has_rules: bool
    """Every prompt has constraints that a program can check."""


def held_out(sources: Sequence[str], folder: Path) -> Apart:
    """Write what is judged on at the end: the rows that can be ranked, and every prompt once."""
    records = list(read_any(sources))
    known: dict[object, Pair | Group] = {}
    for record in records:
        known.setdefault(record.prompt, record)
    prompts = [Group(record.prompt, (), record.facts) for record in known.values()]
    answered = [one for one in records if isinstance(one, Pair) or one.candidates]
    folder.mkdir(parents=True, exist_ok=True)
    places = folder / "held-out.jsonl", folder / "held-out-prompts.jsonl"
    write_records(places[0], answered)
    write_records(places[1], prompts)
    return Apart(str(places[0]) if answered else "", str(places[1]), have_rules(str(places[1])))


def validation(
    sources: Sequence[str],
    folder: Path,
    judged_on: Apart,
    *,
    share: float,
    seed: int,
    allows_overlap: bool,
) -> tuple[str, str]:
    """Write rows to train on and, by prompt, rows to choose settings on; return both places.

    Raises:
        ValueError: a prompt that is judged on at the end is also trained on.
    """
    records = list(read_any(sources, seed=seed))
    overlap = shared_prompts(records, read_any(judged_on.prompts))
    if overlap and not allows_overlap:
        raise ValueError(
            f"{', '.join(sources)}: prompts that are judged on must not be trained on; found"
            f" {overlap} of them among the rows; take them out, or add --allow-lint-errors"
        )
    kept, apart = split_by_prompt(records, share=share, seed=seed)
    name = content_hash(list(sources))[:8]
    folder.mkdir(parents=True, exist_ok=True)
    places = folder / f"{name}-train.jsonl", folder / f"{name}-validation.jsonl"
    for place, rows in zip(places, (kept, apart), strict=True):
        write_records(place, rows)
    return str(places[0]), str(places[1])


def have_rules(source: str) -> bool:
    """Say whether every prompt of a source has constraints."""
    return all(group.facts.get("constraints") for group in read_prompts(source))


def deciding(metric: str, scorer: str, judged_on: Apart, validations: Sequence[str]) -> str:
    """Return the quantity that decides: the one asked for, or the first that can be measured.

    Answers say more than log-probabilities: a method may rank pairs well and write badly, and
    average log-probability is itself what some methods train (SimPO) and others do not (DPO).

    Raises:
        ValueError: it cannot be measured on these rows.
    """
    rules = judged_on.has_rules and all(map(have_rules, validations))
    can = {"score": bool(scorer), "rules": rules, "accuracy": bool(judged_on.comparisons)}
    if metric != "auto":
        if not can[metric]:
            raise ValueError(f"metric {metric} {_NEEDS[metric]}")
        return metric
    found = [name for name in can if can[name]]
    if not found:
        raise ValueError(
            "eval_data: something to judge by is needed: answers to rank, prompts with"
            " 'constraints', or --scorer, a reward model; found none"
        )
    return found[0]


_NEEDS = {
    "score": "needs --scorer, a reward model; found none",
    "rules": "needs 'constraints' with every prompt, held out or not; found some without",
    "accuracy": "needs held-out rows with answers to rank; found prompts alone",
}

"""Which of a round's answers are learned from, and why the others are not: counted by reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from melior import selection
from melior.data.chat import ChatFormat
from melior.data.examples import Example
from melior.data.files import duel, read_groups, write_groups, write_records
from melior.ops import generator
from melior.records import Candidate, Group, Pair, is_cut_off, text
from melior.rewards.named import COMPARED, unjudged
from melior.stages.data import as_it_was_said
from melior.stages.online.options import ChoiceOptions
from melior.stages.online.propose import CANDIDATES
from melior.training.hooks import counted
from melior.types import Scorer

SCORED, CHOSEN = "scored.jsonl", "pairs.jsonl"
"""In a round's folder."""
Targets = Callable[[Group], Group]
Ranked = tuple[Candidate, float]
"""An answer, and what it was ranked by."""
Shape = Callable[[Group, Ranked, Ranked], Pair | Group]
Fits = Callable[[Group], Sequence[bool]]
"""Of each of a group's answers, whether it is short enough to be learned from."""
EMPTY, UNFINISHED, UNSCORED = "empty answers", "unfinished answers", "missing scores"
LONG = "answers that are too long"
IDENTICAL, EQUAL, CLOSE = "identical answers", "equal scores", "a margin that is a tie"
"""Why a prompt teaches nothing; of the first four, when fewer than two answers are left."""


@dataclass
class Counts:
    """What there was to choose from, and what came of it."""

    prompts: int = 0
    answers: int = 0
    tokens: int = 0
    empty: int = 0
    unfinished: int = 0
    too_long: int = 0
    unscored: int = 0
    """Answers without a score, or with one that is no number."""
    chosen: int = 0
    """Prompts that are learned from."""
    dropped: Counter[str] = field(default_factory=Counter)
    """The other prompts, by reason."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a manifest holds them."""
        return {**vars(self), "dropped": dict(sorted(self.dropped.items()))}

    def sentence(self) -> str:
        """Say how many prompts are learned from, and why the others are not."""
        reasons = ", ".join(f"{n} for {reason}" for reason, n in self.dropped.most_common())
        said = f"{self.chosen} of {self.prompts} prompts are learned from"
        return f"{said}; left out: {reasons}" if reasons else said


def score(here: Path, scorer: Scorer) -> None:
    """Score a round's answers, unless that is done; all or nothing.

    A score that is no number counts as missing.
    """
    if (here / SCORED).exists():
        return
    with counted("groups scored") as progress:
        found = scored(scorer, read_groups(here / CANDIDATES))
        write_groups(here / SCORED, _watched(found, progress))


def scored(scorer: Scorer, groups: Iterator[Group] | Sequence[Group]) -> Iterator[Group]:
    """Yield groups with scores that are finite or None, and nothing of an earlier scorer."""
    return map(_finite, scorer.groups(map(unjudged, groups)))


def within(chat: ChatFormat, max_length: int) -> Fits:
    """Return what tells which answers, as they are learned, are within so many tokens.

    An answer's text may be read as more tokens than it was drawn as.
    """

    def fits(group: Group) -> list[bool]:
        answers = tuple(one.response for one in group.candidates)
        cut_off = tuple(is_cut_off(one.facts) for one in group.candidates)
        example = Example(group.prompt, answers, (), origin=group.origin, cut_off=cut_off)
        return [len(one.tokens) <= max_length for one in as_it_was_said(chat, [example])[0]]

    return fits


def everything_fits(group: Group) -> list[bool]:
    """Leave out no answer for its length."""
    return [True] * len(group.candidates)


def choose(
    here: Path,
    options: ChoiceOptions,
    *,
    seed: int,
    fits: Fits = everything_fits,
    targets: Targets | None = None,
) -> Counts:
    """Write what is learned from one round's scored answers, and return the counts.

    Args:
        here: the round's folder.
        options: which answers are taken.
        seed: of what is drawn.
        fits: which answers are short enough.
        targets: from a scored group to one whose scores are what each answer is to be learned at;
            two answers then go out as a group with these, not as a pair.
    """
    counts = Counts()
    choosing = partial(choice, generator=generator(seed), fits=fits)

    def chosen() -> Iterator[Pair | Group]:
        for group in read_groups(here / SCORED):
            if targets is None:
                found = choosing(group, options, counts)
            else:
                found = choosing(targets(group), options, counts, shape=_two_apart)
            counts.prompts += 1
            if isinstance(found, str):
                counts.dropped[found] += 1
            else:
                counts.chosen += 1
                yield found

    write_records(here / CHOSEN, chosen())
    return counts


def choice(
    group: Group,
    options: ChoiceOptions,
    counts: Counts,
    *,
    generator: torch.Generator,
    shape: Shape | None = None,
    fits: Fits = everything_fits,
) -> Pair | Group | str:
    """Return what is learned from a group's answers, or why nothing is.

    The length penalty is part of what ranks, so of the order in a pair and of its margin, too: the
    released script of RLHF Workflow chooses by it and then orders by the bare score.
    """
    left = _usable(group, options, counts, fits)
    if isinstance(left, str):
        return left
    ranks = [ranking(one, options.length_penalty) for one in left]
    if options.select == "all":
        if max(ranks) - min(ranks) <= options.min_margin:
            return EQUAL if max(ranks) == min(ranks) else CLOSE
        ranked = (replace(one, score=rank) for one, rank in zip(left, ranks, strict=True))
        return replace(group, candidates=tuple(ranked))
    first, second = _two(torch.tensor([ranks], dtype=torch.float64), options.select, generator)
    if second < 0 or ranks[first] == ranks[second]:
        return EQUAL
    if text(left[first].response) == text(left[second].response):
        return IDENTICAL
    if ranks[first] - ranks[second] < options.min_margin:
        return CLOSE
    both = ((left[first], ranks[first]), (left[second], ranks[second]))
    return (shape or _pair)(group, *both)


def ranking(candidate: Candidate, length_penalty: float) -> float:
    """Return what an answer is ranked by: its score, less a price for each of its characters."""
    assert candidate.score is not None
    return candidate.score - length_penalty * len(text(candidate.response))


def _usable(
    group: Group, options: ChoiceOptions, counts: Counts, fits: Fits
) -> list[Candidate] | str:
    """Return the answers that may be chosen, or why there are fewer than two."""
    everything = group.candidates
    counts.answers += len(everything)
    counts.tokens += sum(one.facts.get("n_tokens", 0) for one in everything)
    counts.unfinished += sum(is_cut_off(one.facts) for one in everything)
    said = [one for one in everything if text(one.response).strip()]
    counts.empty += len(everything) - len(said)
    ended = [
        one for one in said
        if not (options.drop_unfinished and is_cut_off(one.facts))
    ]  # fmt: skip
    own = fits(replace(group, candidates=tuple(ended)))
    short = [one for one, is_short in zip(ended, own, strict=True) if is_short]
    counts.too_long += len(ended) - len(short)
    known = [one for one in short if one.score is not None]
    counts.unscored += sum(one.score is None for one in everything)
    steps = ((EMPTY, said), (UNFINISHED, ended), (LONG, short), (UNSCORED, known))
    for reason, left in steps:
        if len(left) < 2:
            return reason
    return IDENTICAL if len({text(one.response) for one in known}) == 1 else known


def _two(ranks: torch.Tensor, select: str, draw: torch.Generator) -> tuple[int, int]:
    """Return the better and the worse of two answers; -1 where there is no second."""
    if select == "best-and-worst":
        pair = selection.best_and_worst(ranks)
    elif select == "best-and-random":
        pair = selection.best_and_random(ranks, generator=draw)
    elif select == "best-and-second":
        pair = selection.best_and_second(ranks)
    else:
        drawn = torch.randperm(ranks.shape[-1], generator=draw)[:2]
        order = ranks[0, drawn].argsort(descending=True, stable=True)
        pair = drawn[order][:1], drawn[order][1:]
    return int(pair[0]), int(pair[1])


def _pair(group: Group, better: Ranked, worse: Ranked) -> Pair:
    """Return two answers as a pair, whose margin is what ranked them."""
    (chosen, high), (rejected, low) = better, worse
    facts = {key: value for key, value in group.facts.items() if key not in COMPARED}
    return duel(replace(group, facts=facts), chosen, rejected, margin=high - low)


def _two_apart(group: Group, better: Ranked, worse: Ranked) -> Group:
    """Return two answers as a group, each with what ranked it."""
    facts = {key: value for key, value in group.facts.items() if key not in COMPARED}
    candidates = tuple(replace(one, score=rank) for one, rank in (better, worse))
    return replace(group, candidates=candidates, facts=facts)


def _finite(group: Group) -> Group:
    if all(one.score is None or math.isfinite(one.score) for one in group.candidates):
        return group
    found = (
        one if one.score is None or math.isfinite(one.score)
        else replace(one, score=None, facts={**one.facts, "score_was": str(one.score)})
        for one in group.candidates
    )  # fmt: skip
    return replace(group, candidates=tuple(found))


def _watched(groups: Iterator[Group], progress: Any) -> Iterator[Group]:
    for done, group in enumerate(groups, 1):
        yield group
        progress(done)

"""Groups scored by a judge, and what to say of how it judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from melior.records import Group
from melior.rewards.judge import (
    BudgetSpentError,
    Comparison,
    Judge,
    Tally,
    Verdict,
    mean_wins,
    pairings,
    sigmoid,
)
from melior.rewards.judge_prompts import PAIRWISE, POINTWISE, Wording

CHUNK = 128
"""Questions, about, that are put together before they are asked."""
WORDINGS = {"pairs": PAIRWISE, "ratings": POINTWISE}
"""By `--judge-by`."""


def judged(judge: Judge, groups: Iterable[Group], *, by: str) -> Iterator[Group]:
    """Yield groups with scores: the mean probability to win over the others, or a rating.

    A group's fact `judge` says who judged, how, and in which words, and holds every comparison's
    verdict. A candidate of which the judge said nothing that can be read has no score.

    Args:
        judge: who judges.
        groups: read some ahead.
        by: `pairs` compares every two candidates, `ratings` rates each by itself.

    Raises:
        BudgetSpentError: behind the last group that is whole.
        ValueError: the judge cannot be reached, or gives no verdicts.
    """
    score = _by_pairs if by == "pairs" else _by_ratings
    for chunk in _chunks(groups, by):
        try:
            found = iter(score(judge, chunk))
        except BudgetSpentError:  # replies so far are known now, so whole groups cost nothing
            found = (one for group in chunk for one in score(judge, [group]))
        yield from found


def remarks(tally: Tally, wording: Wording) -> list[str]:
    """Say what was asked, and how far the verdicts can be relied on."""
    found = [
        f"asked {tally.calls} questions ({tally.tokens} tokens); {tally.known} replies were known;"
        f" wording {wording.name} {wording.hash}"
    ]
    if tally.comparisons:
        share = tally.disagreements / tally.comparisons
        first = tally.first_wins / (2 * tally.comparisons)
        found.append(
            f"the order decided {tally.disagreements} of {tally.comparisons} comparisons"
            f" ({share:.0%}); the answer that was shown first won {first:.0%}"
        )
    if tally.missing:
        reasons = "".join(f"; {n} times: {why}" for why, n in sorted(tally.problems.items()))
        total = tally.verdicts + tally.missing
        found.append(f"{tally.missing} of {total} verdicts are missing{reasons}")
    if len(tally.served) > 1:
        names = ", ".join(sorted(tally.served))
        found.append(f"more than one model answered at the server: {names}")
    return found


def _by_pairs(judge: Judge, groups: Sequence[Group]) -> list[Group]:
    asked = [
        Comparison(group.prompt, *(group.candidates[i].response for i in two))
        for group in groups
        for two in pairings(len(group.candidates))
    ]
    verdicts = iter(judge.compare(asked))
    scored = []
    for group in groups:
        k = len(group.candidates)
        own = [next(verdicts) for _ in pairings(k)]
        about = {**judge.about(PAIRWISE), "verdicts": _rows(k, own)}
        scored.append(_scored(group, mean_wins(k, own), about))
    return scored


def _by_ratings(judge: Judge, groups: Sequence[Group]) -> list[Group]:
    answers = [(group.prompt, one.response) for group in groups for one in group.candidates]
    ratings = iter(judge.rate(answers))
    about = judge.about(POINTWISE)
    return [_scored(group, [next(ratings) for _ in group.candidates], about) for group in groups]


def _scored(group: Group, scores: Sequence[float | None], about: dict[str, Any]) -> Group:
    pairs = zip(group.candidates, scores, strict=True)
    candidates = tuple(replace(one, score=score) for one, score in pairs)
    return replace(group, candidates=candidates, facts={**group.facts, "judge": about})


def _rows(k: int, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return verdicts as they are stored: probabilities, as a logit may be infinite."""
    return [
        {
            "left": left,
            "right": right,
            "win": _share(verdict.logit),
            "orders": [_share(verdict.left_first), _share(verdict.right_first)],
        }
        for (left, right), verdict in zip(pairings(k), verdicts, strict=True)
    ]


def _share(logit: float | None) -> float | None:
    return None if logit is None else sigmoid(logit)


def _chunks(groups: Iterable[Group], by: str) -> Iterator[list[Group]]:
    chunk: list[Group] = []
    questions = 0
    for group in groups:
        chunk.append(group)
        k = len(group.candidates)
        questions += k * (k - 1) if by == "pairs" else k
        if questions >= CHUNK:
            yield chunk
            chunk, questions = [], 0
    if chunk:
        yield chunk

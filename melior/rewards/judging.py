"""A judge as a scorer of groups, and what to say of how it judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from melior.checks import one_of
from melior.records import Group
from melior.rewards.comparisons import logit_facts, mean_wins, pairings
from melior.rewards.judge import (
    BudgetSpentError,
    Comparison,
    Judge,
    Tally,
)
from melior.rewards.judge_prompts import PAIRWISE, POINTWISE, Wording

CHUNK = 128
"""Questions, about, that are put together before they are asked."""
WORDINGS = {"pairs": PAIRWISE, "ratings": POINTWISE}
"""By `--judge-by`."""


class JudgeScorer:
    """A judge that scores groups: by the mean probability to win over the others, or by a rating.

    Of comparisons a group's facts hold `comparisons`, the logits of both orders' mean, and
    `orders`: in row i and column j the logit that i beats j where i is shown first. A candidate of
    which the judge said nothing that can be read has no score.

    Args:
        judge: who judges.
        by: `pairs` compares every two candidates, `ratings` rates each by itself.
    """

    def __init__(self, judge: Judge, *, by: str) -> None:
        one_of("judge_by", by, WORDINGS)
        self.judge = judge
        self.by = by

    @property
    def about(self) -> dict[str, Any]:
        """Who judges, how asked, in which words."""
        return self.judge.about(WORDINGS[self.by])

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with scores; some are read ahead.

        Raises:
            BudgetSpentError: behind the last group that is whole.
            ValueError: the judge cannot be reached, or gives no verdicts.
        """
        score = _by_pairs if self.by == "pairs" else _by_ratings
        for chunk in _chunks(groups, self.by):
            try:
                found = iter(score(self.judge, chunk))
            except BudgetSpentError:  # replies so far are known now, so whole groups cost nothing
                found = (one for group in chunk for one in score(self.judge, [group]))
            yield from found

    def remarks(self) -> list[str]:
        """Say what was asked, and how far the verdicts can be relied on."""
        return remarks(self.judge.tally, WORDINGS[self.by])

    def costs(self) -> dict[str, int]:
        """Count what it has cost so far."""
        tally = self.judge.tally
        failed = {"without a verdict": tally.failed} if tally.failed else {}
        return {"questions": tally.calls, "tokens": tally.tokens, **failed}


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
        Comparison(group.prompt, *(group.candidates[i].response for i in match))
        for group in groups
        for match in pairings(len(group.candidates))
    ]
    verdicts = iter(judge.compare(asked))
    scored = []
    for group in groups:
        k = len(group.candidates)
        own = {match: next(verdicts) for match in pairings(k)}
        scored.append(_scored(group, mean_wins(k, own), logit_facts(k, own)))
    return scored


def _by_ratings(judge: Judge, groups: Sequence[Group]) -> list[Group]:
    answers = [(group.prompt, one.response) for group in groups for one in group.candidates]
    ratings = iter(judge.rate(answers))
    return [_scored(group, [next(ratings) for _ in group.candidates], {}) for group in groups]


def _scored(group: Group, scores: Sequence[float | None], found: Mapping[str, Any]) -> Group:
    pairs = zip(group.candidates, scores, strict=True)
    candidates = tuple(replace(one, score=score) for one, score in pairs)
    return replace(group, candidates=candidates, facts={**group.facts, **found})


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

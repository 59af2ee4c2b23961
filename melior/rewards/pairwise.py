"""Scores of a pairwise preference model: every two answers compared, or a knock-out of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from melior.data.chat import Encoded
from melior.data.forest import size
from melior.data.pairwise import Question
from melior.models.names import KIND_FILE, kind_of
from melior.models.pairwise import KIND, PairwiseModel, letter_logits, load_pairwise_model
from melior.models.trial import refuse_disagreement
from melior.options import ModelOptions
from melior.records import Group, text
from melior.rewards.comparisons import (
    UNKNOWN,
    Match,
    Verdict,
    logit_facts,
    mean_wins,
    pairings,
    sigmoid,
)

CHUNK = 32
"""Groups read, sorted by length and computed together; they come out in their order."""
ALL_PAIRS = 8
"""Candidates up to which every two are compared."""
Scores = list[float | None]


class PairwiseScorer:
    """A pairwise model that scores groups by the mean probability to win over the others.

    Two answers are always asked about in both orders and the two probabilities averaged (Dong et
    al. 2024, arXiv 2405.07863), so a comparison is exactly antisymmetric. Up to `all_pairs`
    candidates every two are compared; more play a knock-out, whose cost is linear (`Contest`).

    A group's facts hold `comparisons`, the logits of the mean of both orders, and `orders`: in row
    i and column j the logit that i beats j where i is shown first.

    Args:
        model: the pairwise model.
        max_tokens: computed at once; what questions begin with alike counts once.
        max_length: of prompt and both answers together; 0 is as long as the model can.
        all_pairs: candidates up to which every two are compared.
    """

    def __init__(
        self,
        model: PairwiseModel,
        *,
        max_tokens: int,
        max_length: int = 0,
        all_pairs: int = ALL_PAIRS,
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.max_length = min(max_length or model.longest, model.longest)
        self.all_pairs = all_pairs
        self.n_compared = 0
        """Comparisons so far, ..."""
        self.n_by_order = 0
        """... and those whose winner depends on the order."""
        self.n_alone = 0
        """Groups so far of one candidate, which there is nothing to compare with."""

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with a score for each candidate, and None where it could not be compared.

        Raises:
            ValueError: a conversation cannot be written, or a logit is not finite.
        """
        rest = iter(groups)
        while chunk := list(islice(rest, CHUNK)):
            contests = [self._contest(group) for group in chunk]
            while due := [(i, match) for i, one in enumerate(contests) for match in one.due()]:
                for (i, match), verdict in zip(due, self._compare(chunk, due), strict=True):
                    contests[i].take(match, verdict)
            for group, contest in zip(chunk, contests, strict=True):
                scored = zip(group.candidates, contest.scores(), strict=True)
                candidates = tuple(replace(one, score=score) for one, score in scored)
                facts = {**group.facts, **logit_facts(len(contest.sizes), contest.verdicts)}
                yield replace(group, candidates=candidates, facts=facts)

    def remarks(self) -> list[str]:
        """Say what was cut, left out or broken up, and how often the order decided."""
        met, found = self.model.comparisons, []
        limit = f"longer than {self.max_length} tokens"
        if self.n_compared:
            share = f"{self.n_by_order / self.n_compared:.0%}"
            found.append(
                f"in {self.n_by_order} of {self.n_compared} comparisons ({share}) each order has"
                " another winner; both are averaged"
            )
        if met.cut:
            found.append(f"{len(met.cut)} comparisons {limit} lost the start of their prompt")
        if met.too_long:
            found.append(
                f"{len(met.too_long)} comparisons of answers that are {limit} by themselves were"
                f" not made (first {met.too_long[0]})"
            )
        if met.n_tags:
            found.append(f"{met.n_tags} comparisons hold the text of a tag, which was broken up")
        if self.n_alone:
            found.append(f"{self.n_alone} groups of one candidate have nothing to compare it with")
        return found

    def _contest(self, group: Group) -> Contest:
        sizes = tuple(len(text(one.response)) for one in group.candidates)
        self.n_alone += len(sizes) == 1
        return Contest(sizes, is_knock_out=len(sizes) > self.all_pairs)

    def _compare(self, chunk: Sequence[Group], due: Sequence[tuple[int, Match]]) -> list[Verdict]:
        """Return a verdict on each match of some groups."""
        orders = self.model.comparisons.both_orders(
            [_question(chunk[i], match) for i, match in due],
            max_length=self.max_length,
            origins=[chunk[i].origin for i, _ in due],
        )
        asked: list[tuple[int, int, Encoded]] = []
        for (i, (left, right)), both in zip(due, orders, strict=True):
            if both.fits:
                asked += [(i, left, _whole(both.left_first)), (i, right, _whole(both.right_first))]
        refuse_disagreement(self.model, ((chunk[i].origin, [one]) for i, _, one in asked))
        logits = iter(self._asked(asked))
        verdicts = [
            Verdict(next(logits), -next(logits)) if both.fits else UNKNOWN for both in orders
        ]
        for (i, _), verdict in zip(due, verdicts, strict=True):
            _check(verdict, chunk[i].origin)
            self.n_compared += verdict is not UNKNOWN
            self.n_by_order += verdict.disagrees
        return verdicts

    def _asked(self, asked: Sequence[tuple[int, int, Encoded]]) -> list[float]:
        """Return the logit that each question is answered by A.

        Args:
            asked: of which group it is, which candidate stands first, and the question itself.
        """
        parts = _together(asked, self.max_tokens)
        questions = [[asked[at][2] for at in part] for part in parts]
        found = letter_logits(self.model, questions, max_tokens=self.max_tokens)
        logits = [0.0] * len(asked)
        for part, own in zip(parts, found, strict=True):
            for at, logit in zip(part, own.tolist(), strict=True):
                logits[at] = logit
        return logits


@dataclass
class Contest:
    """Who is to meet whom among the candidates of one group, and what came of it.

    In a knock-out neighbours meet, the better one goes on, and a tie goes to the earlier one. Its
    matches hang together as a tree, so that there are Bradley-Terry rewards which explain all their
    logits exactly; the probabilities of matches that were not played are those of these rewards.
    """

    sizes: tuple[int, ...]
    """Of the candidates: where two could not be compared, the longer one is out."""
    is_knock_out: bool
    verdicts: dict[Match, Verdict] = field(default_factory=dict)
    """In the order in which they came; the earlier candidate stands on the left."""
    standing: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Let everybody begin."""
        self.standing = list(range(len(self.sizes)))

    def due(self) -> list[Match]:
        """Return the matches to come that need not wait for others."""
        if self.is_knock_out:
            return list(zip(self.standing[::2], self.standing[1::2], strict=False))
        return [] if self.verdicts else pairings(len(self.sizes))

    def take(self, match: Match, verdict: Verdict) -> None:
        """Note what came of a match."""
        self.verdicts[match] = verdict
        if self.is_knock_out:
            self.standing.remove(self._ends(match)[1])

    def scores(self) -> Scores:
        """Return each candidate's mean probability to win over the others; None if there is none.

        Who has only lost a match that could not be made hangs together with nobody.
        """
        k = len(self.sizes)
        if not self.is_knock_out:
            return mean_wins(k, self.verdicts)
        rewards = self._rewards()
        if len(rewards) < 2:
            return [None] * k
        return [
            None if i not in rewards else
            sum(sigmoid(rewards[i] - rewards[j]) for j in rewards if j != i) / (len(rewards) - 1)
            for i in range(k)
        ]  # fmt: skip

    def _rewards(self) -> dict[int, float]:
        """Return the rewards that explain a knock-out; the last one standing has 0."""
        rewards = dict.fromkeys(self.standing, 0.0)
        for match, verdict in reversed(self.verdicts.items()):
            winner, loser = self._ends(match)
            if winner in rewards and verdict.logit is not None:
                rewards[loser] = rewards[winner] - abs(verdict.logit)
        return rewards

    def _ends(self, match: Match) -> tuple[int, int]:
        """Return who goes on, and who is out."""
        left, right = match
        logit = self.verdicts[match].logit
        lead = self.sizes[right] - self.sizes[left] if logit is None else logit
        return (left, right) if lead >= 0 else (right, left)


def load_scorer(options: ModelOptions, *, max_tokens: int, max_length: int = 0) -> PairwiseScorer:
    """Load a trained pairwise model to score with.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is none, or was trained on other words.
    """
    if kind_of(options.model) != KIND:
        raise ValueError(
            f"{options.model}: comparing needs a trained pairwise model, whose folder holds"
            f" {KIND_FILE}; found none; train one with melior train-pairwise"
        )
    model = load_pairwise_model(options, trainable=False)
    return PairwiseScorer(model, max_tokens=max_tokens, max_length=max_length)


def _question(group: Group, match: Match) -> Question:
    left, right = (group.candidates[place].response for place in match)
    return group.prompt, left, right


def _together(asked: Sequence[tuple[int, int, Encoded]], max_tokens: int) -> list[list[int]]:
    """Return which questions are to be computed together: a group's, or those of one first answer.

    All questions of a group begin with its prompt, and those of a first answer go on with it.
    """
    by_group: dict[int, list[int]] = {}
    for at, (i, _, _) in enumerate(asked):
        by_group.setdefault(i, []).append(at)
    parts: list[list[int]] = []
    for own in by_group.values():
        by_first: dict[int, list[int]] = {}
        for at in own:
            by_first.setdefault(asked[at][1], []).append(at)
        is_small = size([asked[at][2] for at in own]) <= max_tokens
        parts += [own] if is_small else by_first.values()
    return parts


def _whole(tokens: tuple[int, ...]) -> Encoded:
    return Encoded(tokens, (False,) * len(tokens), len(tokens))


def _check(verdict: Verdict, origin: str) -> None:
    logits = [one for one in (verdict.left_first, verdict.right_first) if one is not None]
    if not all(map(math.isfinite, logits)):
        raise ValueError(
            f"{origin}: a comparison needs finite logits; found {logits}; the model is broken, or"
            " its numbers outgrow its dtype: try --dtype fp32"
        )

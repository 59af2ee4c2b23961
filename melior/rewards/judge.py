"""A language model as judge: which of two answers is better, or how good is one.

Two answers are always shown in both orders and the two probabilities averaged, as by Dong et al.
2024, arXiv 2405.07863 (the pairwise preference model; Zheng et al. 2023, arXiv 2306.05685, sec. 3.4
name the bias), so a comparison is exactly antisymmetric. A reply without a verdict is missing: it
is counted, and never a number. Every reply is kept under a hash of the judge, its settings and the
whole question, so that nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from melior.checks import in_range
from melior.data.kept import Kept
from melior.records import Turns
from melior.rewards.comparisons import TIE, Verdict
from melior.rewards.judge_prompts import (
    PAIRWISE,
    POINTWISE,
    Wording,
    label_log_probs,
    quoted,
    spoken_label,
    unlisted,
)

PATIENCE = 20
"""Replies in a row, from the first on, without any verdict: then there is no judge here."""
SILENCE = 3
"""Questions in a row that nobody answered: then the server is gone. Fewer are taken for questions
that it cannot bear. Before the first verdict one is enough."""


@dataclass(frozen=True)
class Reply:
    """What a model replied to one question."""

    text: str = ""
    first: Mapping[str, float] = field(default_factory=dict)
    """The likeliest first tokens and their log-probabilities, where they are said."""
    tokens: int = 0
    """Read and written."""
    served: str = ""
    """What the server says answered."""
    problem: str = ""
    """Why there is no reply; asked again another time."""
    is_silence: bool = False
    """The problem is that nobody answered, after all tries."""


@runtime_checkable
class JudgeModel(Protocol):
    """Whatever replies to questions: a server, or a model that is loaded here."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Which model, and how it is asked: all that decides its replies."""

    def replies(self, questions: Iterable[str], labels: Sequence[str]) -> Iterator[Reply]:
        """Yield the replies in order; questions are read no further ahead than is of use.

        Args:
            questions: each is one message of a user.
            labels: the first tokens whose probability is wanted.
        """


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt."""

    prompt: Turns
    left: Turns
    right: Turns


@dataclass(frozen=True)
class Budget:
    """What may be spent; 0 sets no bound."""

    calls: int = 0
    tokens: int = 0
    """Read and written. What is in flight when they are spent still comes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("judge_calls", self.calls, 0)
        in_range("judge_tokens", self.tokens, 0)


class BudgetSpentError(ValueError):
    """The budget ends here; what was replied is kept."""


@dataclass
class Tally:
    """Counts of what was asked and of what came of it."""

    calls: int = 0
    """Questions that were asked, and not known from before."""
    tokens: int = 0
    known: int = 0
    """Questions whose reply was known."""
    verdicts: int = 0
    """Comparisons and ratings with a verdict."""
    missing: int = 0
    """Those without."""
    comparisons: int = 0
    """Of which both orders have a verdict."""
    disagreements: int = 0
    """Comparisons whose winner depends on the order."""
    first_wins: float = 0.0
    """Orders in which the answer that was shown first won; half of one for a tie."""
    problems: dict[str, int] = field(default_factory=dict)
    """Why replies are missing, and how many."""
    served: set[str] = field(default_factory=set)
    """What servers said answered."""

    @property
    def failed(self) -> int:
        """Replies that are no verdict."""
        return sum(self.problems.values())


class Judge:
    """A model with pinned wordings, a memory and a budget.

    Args:
        model: what replies.
        kept: the memory.
        budget: what may be spent.
    """

    def __init__(self, model: JudgeModel, kept: Kept, *, budget: Budget | None = None) -> None:
        self.model = model
        self.kept = kept
        self.budget = budget or Budget()
        self.tally = Tally()
        self.watch: Callable[[], object] = lambda: None
        """Called behind every reply, to show what it has cost so far."""
        self._heard = 0
        self._has_spoken = False
        self._silent = 0

    def about(self, wording: Wording) -> dict[str, Any]:
        """Return what is stored with verdicts: who judged, how asked, in which words."""
        return {**self.model.identity, "wording": wording.name, "wording_hash": wording.hash}

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Return a verdict on each comparison; equal answers tie without a question.

        Raises:
            BudgetSpentError: before all were asked.
            ValueError: the model cannot be reached, or gives no verdicts at all.
        """
        differs = [quoted(one.left) != quoted(one.right) for one in comparisons]
        orders = [
            (one.prompt, *answers)
            for one, is_asked in zip(comparisons, differs, strict=True)
            for answers in ((one.left, one.right), (one.right, one.left))
            if is_asked
        ]
        replies = self._ask([PAIRWISE.ask(*order) for order in orders], PAIRWISE)
        heard = iter([self._logit(reply) for reply in replies])
        verdicts = [_verdict(next(heard), next(heard)) if is_asked else TIE for is_asked in differs]
        for verdict, is_asked in zip(verdicts, differs, strict=True):
            if is_asked:
                self._count(verdict)
        return verdicts

    def rate(self, answers: Sequence[tuple[Turns, Turns]]) -> list[float | None]:
        """Return a rating from 1 to 9 for each prompt with its answer.

        It is the mean over the digits by their probabilities where the model says them (Liu et al.
        2023, arXiv 2303.16634, eq. 1), else the digit it wrote.

        Raises:
            BudgetSpentError: before all were asked.
            ValueError: the model cannot be reached, or gives no verdicts at all.
        """
        heard = self._ask([POINTWISE.ask(*one) for one in answers], POINTWISE)
        ratings = [self._rating(reply) for reply in heard]
        self.tally.verdicts += sum(rating is not None for rating in ratings)
        self.tally.missing += ratings.count(None)
        return ratings

    def _logit(self, reply: Reply) -> float | None:
        """Return the logit that the answer shown first wins."""
        found = label_log_probs(reply.first, PAIRWISE.labels)
        if found:
            a, b = (found.get(label, unlisted(reply.first)) for label in PAIRWISE.labels)
            return a - b
        spoken = spoken_label(reply.text, PAIRWISE.labels)
        return None if spoken is None else math.inf if spoken == PAIRWISE.labels[0] else -math.inf

    def _rating(self, reply: Reply) -> float | None:
        found = label_log_probs(reply.first, POINTWISE.labels)
        if found:
            shares = {int(label): math.exp(log_prob) for label, log_prob in found.items()}
            return sum(digit * share for digit, share in shares.items()) / sum(shares.values())
        spoken = spoken_label(reply.text, POINTWISE.labels)
        return None if spoken is None else float(spoken)

    def _count(self, verdict: Verdict) -> None:
        if verdict.logit is None:
            self.tally.missing += 1
            return
        self.tally.verdicts += 1
        self.tally.comparisons += 1
        self.tally.disagreements += verdict.disagrees
        for logit in (verdict.left_first or 0.0, -(verdict.right_first or 0.0)):
            self.tally.first_wins += (logit > 0) + 0.5 * (logit == 0)

    def _ask(self, questions: Sequence[str], wording: Wording) -> list[Reply]:
        """Return the replies, from memory where they are known."""
        about = self.about(wording)
        keys = [_key(about, question) for question in questions]
        wanted = dict(zip(keys, questions, strict=True))
        found = {key: Reply(**kept) for key in wanted if (kept := self.kept.get(key))}
        self.tally.known += len(found)
        new = {key: question for key, question in wanted.items() if key not in found}
        within = self._within_budget(new.values())
        for key, reply in zip(new, self.model.replies(within, wording.labels), strict=False):
            found[key] = reply
            self.tally.tokens += reply.tokens
            if not reply.problem:
                self.kept.put(key, asdict(reply))
            self._listen(reply, wording)
            self.watch()
        if len(found) < len(wanted):
            raise BudgetSpentError(
                f"the judge's budget is spent: {self.tally.calls} questions and"
                f" {self.tally.tokens} tokens; what it replied is kept"
            )
        return [found[key] for key in keys]

    def _within_budget(self, questions: Iterable[str]) -> Iterator[str]:
        for question in questions:
            calls, tokens = self.budget.calls, self.budget.tokens
            if (calls and self.tally.calls >= calls) or (tokens and self.tally.tokens >= tokens):
                return
            self.tally.calls += 1
            yield question

    def _listen(self, reply: Reply, wording: Wording) -> None:
        """Note what is wrong with a reply, and stop where none was ever right."""
        read = self._logit if wording is PAIRWISE else self._rating
        self._heard += 1
        if reply.served:
            self.tally.served.add(reply.served)
        if read(reply) is not None:
            self._has_spoken, self._silent = True, 0
            return
        self._silent = self._silent + 1 if reply.is_silence else 0
        if self._silent >= (SILENCE if self._has_spoken else 1):
            raise ValueError(reply.problem)
        problem = reply.problem or "the reply is no verdict"
        self.tally.problems[problem] = self.tally.problems.get(problem, 0) + 1
        if self._heard >= PATIENCE and not self._has_spoken:
            found = reply.problem or repr(reply.text[:60] or dict(reply.first))
            raise ValueError(
                f"judge {self.model.identity.get('model')}: needs verdicts such as"
                f" {wording.labels[0]!r}; found none in {self._heard} replies, the last: {found};"
                " take a model that follows instructions, and no template that makes it think first"
            )


def _verdict(first: float | None, second: float | None) -> Verdict:
    """Return the verdict of two replies, each a logit that the answer shown first wins."""
    return Verdict(first, None if second is None else -second)


def _key(about: Mapping[str, Any], question: str) -> str:
    content = json.dumps([about, question], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()

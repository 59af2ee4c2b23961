"""Pairs with questions about them: read, checked and asked about before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from melior.data.batches import TokenGroup
from melior.data.examples import Example, read_examples
from melior.models.loading import n_positions
from melior.ops import generator
from melior.stages.data import Prepared, as_it_was_said, prepare
from melior.stages.internal.opinions import ANSWERS, SelfJudge, with_questions
from melior.stages.internal.options import ConsistencyPlan
from melior.stages.learn import SAMPLE_TOKENS
from melior.training.hooks import counted

CHUNK = 512
"""Pairs about which questions are written at once."""
UNREAD = ("contradictions", "equal-answers", "negative-margins", "zero-weights")
"""What is no error of unlabelled pairs: they are of the label, which is not read, or left out."""


@dataclass(frozen=True)
class Pairs:
    """Pairs with their questions."""

    groups: list[TokenGroup]
    prepared: Prepared
    n_equal: int = 0
    """Pairs left out, whose answers are the same, ..."""
    n_too_long: int = 0
    """... and whose questions are too long."""

    @property
    def plain(self) -> list[TokenGroup]:
        """The pairs without their questions."""
        return [
            replace(one, answers=one.answers[:ANSWERS], scores=one.scores[:ANSWERS])
            for one in self.groups
        ]

    def said_of(self, name: str) -> list[str]:
        """Return a sentence on what was left out, if anything was, and one on each error."""
        reasons = ((self.n_equal, "have equal answers"), (self.n_too_long, "are too long to judge"))
        left = " and ".join(f"{n} {reason}" for n, reason in reasons if n)
        errors = [one for one in self.prepared.findings if one.level == "error"]
        return [
            *([f"of the {name} pairs, {left}: left out"] if left else []),
            *(f"{name} pairs: {one.count} rows ({one.share:.1%}): {one.text}" for one in errors),
        ]


@dataclass(frozen=True)
class Material:
    """All pairs of a round, ready for the model."""

    seed: Pairs
    free: Pairs
    held_out: Pairs | None


def read_material(plan: ConsistencyPlan, judge: SelfJudge) -> Material:
    """Read, check and ask about all pairs of a round.

    Raises:
        ValueError: of the labelled pairs, or of unlabelled ones that somebody can mend, the data
            check finds errors; or nothing can be asked about.
    """
    seed, held_out = read_labelled(plan, judge)
    free = _read(plan, judge, plan.unlabelled, apart=plan.data.eval_data, is_free=True)
    if not plan.has_own_answers:
        free.prepared.refuse_errors(allowed=plan.data.allow_lint_errors)
    return Material(seed, free, held_out)


def read_labelled(plan: ConsistencyPlan, judge: SelfJudge) -> tuple[Pairs, Pairs | None]:
    """Read, check and ask about the labelled pairs, and those held out, if there are any."""
    data = plan.data
    seed = _read(plan, judge, data.data, apart=data.eval_data)
    seed.prepared.refuse_errors(allowed=data.allow_lint_errors)
    return seed, _read(plan, judge, data.eval_data) if data.eval_data else None


def asked(
    judge: SelfJudge,
    prepared: Prepared,
    examples: Iterator[Example],
    *,
    limit: int,
    seed: int,
    is_free: bool,
) -> Pairs:
    """Put to each pair the questions about it.

    Args:
        judge: who is asked.
        prepared: the pairs as tokens.
        examples: the same as text, and others.
        limit: tokens of a question.
        seed: of the order of unlabelled answers.
        is_free: they are unlabelled, so that half of them are exchanged, and equal ones go.
    """
    waiting = {group.origin: group for group in prepared.groups}
    draw, counts = generator(seed), {"equal": 0, "long": 0}
    found: list[TokenGroup] = []
    rows = (one for one in examples if one.origin in waiting)
    while chunk := list(islice(rows, CHUNK)):
        prompts, answers = [one.prompt for one in chunk], [one.answers for one in chunk]
        flips = torch.randint(2, (len(chunk),), generator=draw).tolist()
        questions = judge.questions(prompts, answers)
        for one, both, flip in zip(chunk, questions, flips, strict=True):
            if is_free and one.answers[0] == one.answers[1]:
                counts["equal"] += 1
            elif max(map(len, both)) > limit:
                counts["long"] += 1
            else:
                exchanged = is_free and bool(flip)
                found.append(with_questions(waiting[one.origin], both, is_exchanged=exchanged))
    return Pairs(found, prepared, counts["equal"], counts["long"])


def _read(
    plan: ConsistencyPlan,
    judge: SelfJudge,
    sources: Sequence[str],
    *,
    apart: Sequence[str] = (),
    is_free: bool = False,
) -> Pairs:
    positions, seed = n_positions(plan.model), plan.loop.seed
    limit = min(plan.options.judge_max_length, positions)
    with counted("tokenising pairs") as progress:
        prepared = prepare(
            sources, judge.chat, plan.data, encode=as_it_was_said,
            tolerated=UNREAD if is_free else (), seed=seed, held_out=apart,
            longest_prompt=positions - SAMPLE_TOKENS, on_progress=progress,
        )  # fmt: skip
    prepared.refuse_beyond(positions)
    examples = read_examples("pairs", sources, seed=seed)
    found = asked(judge, prepared, examples, limit=limit, seed=seed, is_free=is_free)
    if not found.groups:
        raise ValueError(
            f"{', '.join(sources)}: needs a pair of different answers with a question of at"
            f" most {limit} tokens; found {found.n_equal} of equal answers and"
            f" {found.n_too_long} that are longer; raise --judge-max-length"
        )
    return found

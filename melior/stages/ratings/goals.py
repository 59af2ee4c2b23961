"""What goals change: pairs and answers under each of them, and good answers that were unlearned.

Everywhere the start model is asked in the same words, so that what the words alone do is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from melior.data.batches import TokenValues, tokenise
from melior.data.chat import Encoded
from melior.data.examples import Example, of_pair
from melior.data.goals import GoalFormat, spelled
from melior.data.ratings import Rated
from melior.evaluation.compare import compare
from melior.models.generation import Completion
from melior.models.language import LanguageModel
from melior.ops import generator
from melior.records import Group, Metrics, Pair
from melior.rewards.rules import score_groups
from melior.sampling.candidates import candidate
from melior.stages.judge import answers, held_out_answers, ranked_right
from melior.stages.method import Answers
from melior.stages.reference import token_log_probs

RANKED = "held-out pairs ranked right"
MET = "constraints met"
Found = dict[str, Any]
"""Parts of a run's `evaluation.json`: its `comparisons`, `subsets` and `facts`."""


@dataclass(frozen=True)
class Asked:
    """Two models to be asked under goals, and with what."""

    start: LanguageModel
    after: LanguageModel
    goals: GoalFormat
    max_length: int
    max_tokens: int
    seed: int


def judge_pairs(asked: Asked, pairs: Sequence[Pair], levels: Sequence[float]) -> Found:
    """Rank held-out pairs by the log-probability of a token, with both models under each goal.

    What decides is the trained model under the top goal against the start model without one. Under
    a low goal the trained model should rank the worse answer first, so shares should rise with the
    goal; neither direction is good in itself.
    """
    draw = generator(asked.seed)

    def ranked(model: LanguageModel, level: float | None) -> dict[str, float]:
        rows = pairs if level is None else [_under(pair, asked.goals, level) for pair in pairs]
        origins, found = _answers(model, rows, asked)
        return dict(zip(origins, ranked_right(found, found.per_token).tolist(), strict=True))

    by_level = {level: (ranked(asked.start, level), ranked(asked.after, level)) for level in levels}
    plain, top = ranked(asked.start, None), by_level[max(levels)][1]
    name = f"{RANKED}; before: without a goal"
    whole = compare(*_common(plain, top), name=name, unit="share", generator=draw)
    rows = [
        _row(f"better answer first, goal {spelled(level)}", *_common(*both), draw=draw)
        for level, both in by_level.items()
    ]
    return {"comparisons": [whole.to_json()], "subsets": rows, "facts": {}}


def judge_answers(
    asked: Asked, prompts: Sequence[Group], levels: Sequence[float], *, max_new_tokens: int
) -> Found:
    """Answer prompts under each goal: how long, and where constraints tell, how well."""
    draw = generator(asked.seed)

    def said(model: LanguageModel, level: float | None) -> list[Completion]:
        turns = [
            one.prompt if level is None else asked.goals.ask(one.prompt, asked.goals.level(level))
            for one in prompts
        ]
        return answers(model, turns, max_new_tokens=max_new_tokens, seed=asked.seed)

    by_level = {level: (said(asked.start, level), said(asked.after, level)) for level in levels}
    plain = said(asked.start, None)
    facts = {"tokens per answer, start model without a goal": _length(plain)} | {
        f"tokens per answer, goal {spelled(level)}": _length(after)
        for level, (_, after) in by_level.items()
    }
    if not all(one.facts.get("constraints") for one in prompts):
        return {"comparisons": [], "subsets": [], "facts": facts}
    met = {level: [_met(prompts, side) for side in both] for level, both in by_level.items()}
    whole = compare(
        _met(prompts, plain), met[max(levels)][1],
        name=f"{MET}; before: without a goal", unit="share", generator=draw,
    )  # fmt: skip
    rows = [_row(f"{MET}, goal {spelled(level)}", *both, draw=draw) for level, both in met.items()]
    return {"comparisons": [whole.to_json()], "subsets": rows, "facts": facts}


def unlearned(asked: Asked, rows: Sequence[Rated]) -> Found:
    """Say how far the log-probability of the rejected answers rose or fell, at the top goal."""
    facts: Metrics = {"good rejected answers": len(rows)}
    if rows:
        pairs = [_under(row.pair, asked.goals, asked.goals.high) for row in rows]
        (_, old), (_, new) = (_answers(one, pairs, asked) for one in (asked.start, asked.after))
        change = (new.policy - old.policy)[:, 1]
        facts["log-probability of good rejected answers, change"] = float(change.mean())
        facts["standard error of that change"] = float(change.std(correction=0) / len(rows) ** 0.5)
    return {"comparisons": [], "subsets": [], "facts": facts}


def _under(pair: Pair, goals: GoalFormat, level: float) -> Pair:
    return replace(pair, prompt=goals.ask(pair.prompt, goals.level(level)))


def _answers(
    model: LanguageModel, pairs: Sequence[Pair], asked: Asked
) -> tuple[list[str], Answers]:
    """Return the log-probabilities of pairs that are not too long, and the pairs' origins."""
    examples = [of_pair(pair) for pair in pairs]
    flat = [(one.prompt, answer, one.origin) for one in examples for answer in one.answers]
    prompts, said, origins = (list(column) for column in zip(*flat, strict=True))
    encoded = iter(model.chat.encode_many(prompts, said, origins=origins))
    rows: Iterator[tuple[Example, list[Encoded], list[list[int]]]] = (
        (one, [next(encoded) for _ in one.answers], [[] for _ in one.answers]) for one in examples
    )
    groups, _ = tokenise(rows, max_length=asked.max_length, truncation_mode="drop")
    values = token_log_probs(model, groups, max_tokens=asked.max_tokens)
    zeros = TokenValues.zeros(groups)
    return [group.origin for group in groups], held_out_answers(groups, values, zeros)


def _common(
    before: Mapping[str, float], after: Mapping[str, float]
) -> tuple[list[float], list[float]]:
    """Return the numbers of rows that both have: under a goal a row may be too long."""
    both = [origin for origin in before if origin in after]
    return [before[origin] for origin in both], [after[origin] for origin in both]


def _row(
    name: str, before: Sequence[float], after: Sequence[float], *, draw: torch.Generator
) -> dict[str, Any]:
    """Return a row of the table of subsets; neither direction is good in itself."""
    found = compare(
        before, after, name=name, unit="share", higher_is_better=None, generator=draw
    ).to_json()
    shown = ("name", "n", "before", "after", "low", "high", "higher_is_better")
    return {key: found[key] for key in shown}


def _met(prompts: Sequence[Group], said: Sequence[Completion]) -> list[float]:
    """Return the share of its constraints that each answer meets."""
    groups = (
        replace(one, candidates=(candidate(answer),))
        for one, answer in zip(prompts, said, strict=True)
    )
    return [float(group.candidates[0].aspects["share_met"]) for group in score_groups(groups)]


def _length(said: Sequence[Completion]) -> float:
    return sum(len(answer.tokens) for answer in said) / len(said)

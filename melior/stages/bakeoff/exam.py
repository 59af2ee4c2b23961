"""One examination for all models, however they were trained: comparisons, and prompts to answer."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from melior.data.batches import TokenGroup, Tokens, TokenValues
from melior.data.examples import Data
from melior.data.files import read_any, read_prompts, turn_rows
from melior.evaluation.preferences import kl_k3
from melior.models.generation import Completion
from melior.models.language import LanguageModel
from melior.models.likelihood import token_log_probs
from melior.ops import generator
from melior.options import DataOptions, ModelOptions, Sampling
from melior.records import Group, Pair, Turns, text
from melior.rewards.rules import score_groups
from melior.sampling.candidates import candidate
from melior.stages.data import as_it_was_said, prepare
from melior.stages.judge import held_out_answers, ranked_right
from melior.stages.method import Method
from melior.stages.reference import reference_log_probs

Numbers = dict[str, list[float]]
"""What was measured: a number for each comparison, or for each prompt."""


@dataclass(frozen=True)
class Exam:
    """What a model is put to."""

    comparisons: str = ""
    """A source of pairs, lists or labelled answers; none where empty."""
    prompts: str = ""
    """A source of prompts to answer; none where empty."""
    n_prompts: int = 100
    k: int = 1
    """Answers to each prompt."""
    max_new_tokens: int = 72
    has_rules: bool = False
    """The prompts' constraints are checked."""
    scorer: str = ""
    """A reward model that scores the answers; none where empty."""
    max_length: int = 1024
    max_tokens: int = 2048
    """Tokens computed at once."""
    seed: int = 0
    """Of the answers' noise."""


@dataclass(frozen=True)
class Sat:
    """What came of it."""

    numbers: Numbers
    samples: list[dict[str, Any]]
    """Prompt and first answer, with the score that decides."""


def sit(exam: Exam, model: LanguageModel, start: LanguageModel, method: Method | None) -> Sat:
    """Put a model to an examination.

    Args:
        exam: what is asked.
        model: what is examined.
        start: what it was trained from, which KL and relative rewards are measured against.
        method: how it was trained; none for the start model itself.
    """
    numbers: Numbers = {}
    if exam.comparisons:
        numbers |= _ranked(exam, model, start, method)
    if not exam.prompts:
        return Sat(numbers, [])
    asked = distinct_prompts(exam.prompts, exam.n_prompts)
    sampling = Sampling(k=exam.k, max_new_tokens=exam.max_new_tokens)
    prompts = [group.prompt for group in asked]
    answers = model.complete(prompts, sampling, generator=generator(exam.seed))
    groups = [
        replace(group, candidates=tuple(map(candidate, drawn)))
        for group, drawn in zip(asked, answers, strict=True)
    ]
    numbers["length"] = [_mean([float(len(one.tokens)) for one in drawn]) for drawn in answers]
    if method is not None:
        numbers["kl"] = kl_by_prompt(start, prompts, answers, max_tokens=exam.max_tokens)
    numbers |= _scored(exam, groups)
    return Sat(numbers, _samples(groups, numbers))


def kind_of(source: str) -> Data | None:
    """Say what the first row of a source holds; None for prompts alone or no row."""
    first = next(read_any(source), None)
    if isinstance(first, Pair):
        return "pairs"
    if first is None or not first.candidates:
        return None
    return "lists" if len(first.candidates) > 1 else "answers"


def distinct_prompts(source: str, n: int) -> list[Group]:
    """Return the first n prompts of a source, each once, without answers."""
    seen: dict[Turns, Group] = {}
    for group in read_prompts(source):
        seen.setdefault(group.prompt, group)
        if len(seen) == n:
            break
    return list(seen.values())


def kl_by_prompt(
    start: LanguageModel,
    prompts: Sequence[Turns],
    answers: Sequence[Sequence[Completion]],
    *,
    max_tokens: int,
) -> list[float]:
    """Estimate of each prompt KL(model || start) in nats an answer, from the model's own answers.

    They are drawn at temperature 1 with nothing cut off, as the estimate demands.
    """
    groups = [_read(start, prompt, drawn) for prompt, drawn in zip(prompts, answers, strict=True)]
    reference = token_log_probs(start, groups, max_tokens=max_tokens)
    found = []
    for i, drawn in enumerate(answers):
        policy = torch.tensor([p for one in drawn for p in one.log_probs], dtype=torch.float64)
        found.append(float(kl_k3(policy, reference.of([i]).double()).sum()) / len(drawn))
    return found


def _ranked(
    exam: Exam, model: LanguageModel, start: LanguageModel, method: Method | None
) -> Numbers:
    """Say of each comparison what share of it is ranked right: by log-probability and by reward."""
    data = kind_of(exam.comparisons) or "pairs"
    options = DataOptions(data=(exam.comparisons,), max_length=exam.max_length)
    groups = prepare(
        options.data, model.chat, options, data=data, encode=as_it_was_said, seed=exam.seed
    ).groups
    policy = token_log_probs(model, groups, max_tokens=exam.max_tokens)
    reference = TokenValues.zeros(groups)
    if method is not None and method.has_reference:
        reference = reference_log_probs(start, groups, max_tokens=exam.max_tokens)
    found = held_out_answers(groups, policy, reference)
    numbers = {"accuracy": ranked_right(found, found.per_token).tolist()}
    if method is not None:
        rewards = method.direction * method.reward(found)
        numbers["reward_accuracy"] = ranked_right(found, rewards).tolist()
    return numbers


def _read(start: LanguageModel, prompt: Turns, drawn: Sequence[Completion]) -> TokenGroup:
    """Return answers as the model wrote them, token by token, for another model to read."""
    asked = list(start.chat.prompt_tokens(prompt))
    sides = tuple(
        Tokens(
            array("i", [*asked, *answer.tokens]),
            bytes(len(asked)) + b"\x01" * len(answer.tokens),
            len(asked),
        )
        for answer in drawn
    )
    return TokenGroup(sides, (0.0,) * len(sides))


def _scored(exam: Exam, groups: Sequence[Group]) -> Numbers:
    """Score the answers by the prompts' constraints, and by a reward model."""
    numbers: Numbers = {}
    if exam.has_rules:
        numbers["rules"] = [
            _mean([float(one.aspects["share_met"]) for one in group.candidates])
            for group in score_groups(groups)
        ]
    if exam.scorer:
        from melior.rewards.scalar import load_scorer

        scorer = load_scorer(ModelOptions(model=exam.scorer), max_tokens=16384)
        numbers["score"] = [
            _mean(
                [_known(one.score, group.origin, scorer.fitting.limit) for one in group.candidates]
            )
            for group in scorer.groups(groups)
        ]
    return numbers


def _known(score: float | None, origin: str, longest: int) -> float:
    if score is None:
        raise ValueError(
            f"{origin}: the scorer reads {longest} tokens at most; found an answer that is longer;"
            " lower --max-new-tokens"
        )
    return score


def _samples(groups: Sequence[Group], numbers: Numbers) -> list[dict[str, Any]]:
    none: list[float | None] = [None] * len(groups)
    scores = numbers.get("score") or numbers.get("rules") or none
    return [
        {
            "prompt": turn_rows(group.prompt),
            "answer": text(group.candidates[0].response),
            "score": score,
            "facts": {key: group.facts[key] for key in ("constraints",) if key in group.facts},
        }
        for group, score in zip(groups, scores, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

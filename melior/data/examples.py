"""What is learned from: pairs, scored lists, or answers that are judged alone; no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, TypeVar

from melior.data.files import as_group, as_pair, read_any, read_groups, read_pairs, weight_of
from melior.data.rows import number
from melior.data.steps import step_starts
from melior.records import Candidate, Group, Pair, Turns, is_cut_off

R = TypeVar("R", Pair, Group, Pair | Group)
Data = Literal["pairs", "answers", "lists", "comparisons"]
"""What rows hold: a better and a worse answer, answers judged alone, scored lists, or each row one
of pair and list."""


@dataclass(frozen=True)
class Example:
    """What is learned from one prompt, whatever record it came from."""

    prompt: Turns
    answers: tuple[Turns, ...]
    """Of a pair, the chosen one first."""
    scores: tuple[float, ...]
    """Of each answer; higher is better. Of an answer that is judged alone: 1 good, 0 bad."""
    steps: tuple[tuple[str, ...], ...] = ()
    """Each answer cut into steps, in lists where the file does so."""
    margin: float = 0.0
    weight: float = 1.0
    subset: str = ""
    origin: str = ""
    share: float = 1.0
    """In which the better one of two answers is preferred, where raters were counted."""
    cut_off: tuple[bool, ...] = ()
    """Which answers were not finished by who gave them; without it, none."""


def read_examples(data: Data, sources: Sequence[str], *, seed: int = 0) -> Iterator[Example]:
    """Yield what rows teach.

    Raises:
        ValueError: a row is not of this kind: a list needs two or more answers, all with scores,
            an answer in steps needs them in its text, and one judged alone needs a label. Or a
            share, where it is not read, says that the rejected answer is the better one.
        FileNotFoundError: a source does not exist.
    """
    return as_examples(data, read_as(data, sources, seed=seed), seed=seed)


def read_as(data: Data, sources: Sequence[str], *, seed: int = 0) -> Iterator[Pair | Group]:
    """Yield the records that rows are, where they are to hold this."""
    if data == "pairs":
        return read_pairs(sources, seed=seed)
    if data == "lists":
        return read_groups(sources, seed=seed)
    return read_any(sources, seed=seed)


def as_examples(data: Data, records: Iterable[Pair | Group], *, seed: int = 0) -> Iterator[Example]:
    """Yield what records teach; see `read_examples`."""
    draw = random.Random(seed)
    if data == "pairs":
        return (of_pair(as_pair(agreed(record))) for record in records)
    if data == "lists":
        return (of_list(as_group(agreed(record)), draw) for record in records)
    if data == "comparisons":
        return (of_comparison(record, draw) for record in records)
    return chain.from_iterable(map(alone, map(agreed, records)))


def of_pair(pair: Pair) -> Example:
    """Return a pair as a group of two."""
    group = as_group(pair)
    answers = tuple(candidate.response for candidate in group.candidates)
    scores = tuple(float(candidate.score or 0.0) for candidate in group.candidates)
    return Example(
        pair.prompt, answers, scores, (), pair.margin, pair.weight, _subset(group), pair.origin,
        cut_off=_cut_off(group.candidates),
    )  # fmt: skip


def of_list(group: Group, draw: random.Random) -> Example:
    """Return a group of scored candidates, shuffled."""
    for place, candidate in enumerate(group.candidates, 1):
        _check_steps(candidate, f"{group.origin}: candidate {place}")
    # Before the first step all are equally likely, and what a ranking loss then takes for their
    # ranks must not be the file's order.
    candidates = draw.sample(group.candidates, len(group.candidates))
    found = [candidate.score for candidate in candidates]
    scores = tuple(score for score in found if score is not None)
    if len(found) < 2 or len(scores) < len(found):
        raise ValueError(
            f"{group.origin}: a list needs two or more candidates, each with a score; found"
            f" {len(found)}, {len(found) - len(scores)} without; score them with `melior score`"
        )
    answers = tuple(candidate.response for candidate in candidates)
    steps = tuple(candidate.steps for candidate in candidates)
    cut = steps if any(steps) else ()
    return Example(
        group.prompt, answers, scores, cut, 0.0, weight_of(group), _subset(group), group.origin,
        cut_off=_cut_off(candidates),
    )  # fmt: skip


def of_comparison(record: Pair | Group, draw: random.Random) -> Example:
    """Return a pair, with the share of its column `chosen_share` where it has one, or a list."""
    if isinstance(record, Group):
        return of_list(record, draw)
    return replace(of_pair(record), share=_share(record))


def _share(record: Pair | Group) -> float:
    """Return in what share raters preferred the chosen answer: 1 where they were not counted."""
    where = f"{record.origin}: 'chosen_share'"
    share = number(record.facts.get("chosen_share"), where)
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{where} must be at least 0 and at most 1; found {share:g}")
    return 1.0 if share is None else share


def agreed(record: R) -> R:
    """Pass on a record whose label holds where shares are not read, a pair as a group too.

    Raises:
        ValueError: most raters preferred the rejected answer, so that the label is upside down.
    """
    if (share := _share(record)) < 0.5:
        raise ValueError(
            f"{record.origin}: 'chosen_share' must be at least 0.5, as only gpm and train-pairwise"
            f" read it; found {share:g}; swap the answers"
        )
    return record


def _cut_off(candidates: Iterable[Candidate]) -> tuple[bool, ...]:
    """Return which answers were stopped before their end, as samplers note it."""
    return tuple(is_cut_off(one.facts) for one in candidates)


def _check_steps(candidate: Candidate, where: str) -> None:
    said = "\n\n".join(turn.content for turn in candidate.response if turn.role == "assistant")
    try:
        step_starts(said, candidate.steps)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def alone(record: Pair | Group) -> Iterator[Example]:
    """Yield each answer of a record by itself, labelled good or bad."""
    group = as_group(record)
    for candidate in group.candidates:
        label = candidate.score
        if isinstance(record, Pair):
            label = float(candidate.response is record.chosen)
        if label not in (0.0, 1.0):
            found = "no score" if label is None else f"the score {label:g}"
            raise ValueError(
                f"{group.origin}: an answer judged alone needs 'label', true or false;"
                f" found {found}"
            )
        yield Example(
            group.prompt, (candidate.response,), (label,), (), 0.0, weight_of(group),
            _subset(group), group.origin, cut_off=_cut_off([candidate]),
        )  # fmt: skip
    if not group.candidates:
        raise ValueError(f"{group.origin}: an answer needs 'completion'; found a prompt alone")


def with_strangers(examples: Iterable[Example]) -> Iterator[Example]:
    """Put beside each answer that of another prompt, whose score is nan: it is read, not judged.

    It is the answer to the next other prompt, and to the first for the last ones.

    Raises:
        ValueError: all prompts are the same.
    """
    waiting: list[Example] = []
    first: Example | None = None
    for example in examples:
        first = first or example
        if waiting and example.prompt != waiting[0].prompt:
            yield from (_beside(one, example) for one in waiting)
            waiting = []
        waiting.append(example)
    if first and waiting and first.prompt == waiting[0].prompt:
        raise ValueError(
            f"{first.origin}: needs answers to two or more prompts; found one prompt, so that no"
            " other's answer can stand beside"
        )
    yield from (_beside(one, first) for one in waiting if first)


def _beside(example: Example, stranger: Example) -> Example:
    answers = (example.answers[0], stranger.answers[0])
    cut_off = (*example.cut_off, *stranger.cut_off)
    return replace(example, answers=answers, scores=(example.scores[0], math.nan), cut_off=cut_off)


def _subset(group: Group) -> str:
    return str(group.facts.get("subset", ""))

"""Rules that score answers without a model: constraints met, and no credit for loops.

A group's facts hold `constraints`, such as `[{"name": "bullets", "n": 3, "at": "exactly"}]`, and
may hold a `topic`. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from melior.records import Candidate, Group, text
from melior.rewards.constraints import CONSTRAINTS, checked, split_words

MAX_REPETITION: Final = 0.5
"""Above it an answer is a loop; ordinary answers, lists too, stay below 0.3."""
LOOP_SCORE: Final = -1.0
"""Of an empty answer or a loop: worse than an answer that meets nothing."""


class RuleScorer:
    """Rules that score groups as they come by.

    Args:
        always: constraints for every group, besides its own.
    """

    def __init__(self, always: Sequence[Mapping[str, Any]] = ()) -> None:
        self.always = always

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with a score for each candidate, as `score_groups` does."""
        return score_groups(groups, always=self.always)

    def remarks(self) -> list[str]:
        """Say nothing: rules score all there is."""
        return []


def constraints_in(text: str) -> list[dict[str, Any]]:
    """Return the constraints that an option lists as JSON; none for an empty one."""
    try:
        given = json.loads(text or "[]")
    except ValueError as error:
        raise ValueError(f"--constraints must be a JSON list; found {text!r} ({error})") from error
    if not isinstance(given, list):
        raise ValueError(f"--constraints must be a JSON list; found {text!r}")
    return [checked(constraint, "--constraints") for constraint in given]


def is_met(answer: str, constraint: Mapping[str, Any]) -> bool:
    """Say whether an answer meets one constraint; an empty one meets none, not even `no_commas`."""
    parameters = {key: value for key, value in constraint.items() if key != "name"}
    return bool(answer.strip()) and CONSTRAINTS[constraint["name"]](answer, **parameters)


def share_met(answer: str, constraints: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the constraints that an answer meets; without constraints, 1."""
    if not constraints:
        return float(bool(answer.strip()))
    return sum(is_met(answer, constraint) for constraint in constraints) / len(constraints)


def repetition(answer: str) -> float:
    """Return the share of stretches of 12 characters that stood in the answer before.

    Case and white space do not matter; 0 for what is shorter, close to 1 for a loop.
    """
    plain = " ".join(answer.casefold().split())
    stretches = [plain[i : i + 12] for i in range(len(plain) - 11)]
    return 1 - len(set(stretches)) / len(stretches) if stretches else 0.0


def is_on_topic(answer: str, topic: str) -> bool:
    """Say whether a word of the topic occurs, by its first letters: a sanity check, no more."""
    words = set(re.findall(r"\w{3,}", topic.casefold())) - {"the", "and", "for"}
    stems = [re.escape(word[: max(3, min(5, len(word) - 1))]) for word in words]
    return any(re.search(rf"(?<!\w){stem}", answer.casefold()) for stem in stems)


def score_groups(
    groups: Iterable[Group], *, always: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Group]:
    """Score each candidate by the share of its group's constraints that it meets.

    An empty answer or a loop (`repetition` above `MAX_REPETITION`) scores `LOOP_SCORE`. The aspects
    hold each constraint's result under its name (a second one of a name as `keyword 2`),
    `share_met`, `length` in words, `repetition`, and `on_topic` where the group has a topic.

    Args:
        groups: what to score; read one at a time.
        always: constraints for every group, besides its own.

    Raises:
        ValueError: where a group has no constraints, or one that is not known.
    """
    for number, group in enumerate(groups, 1):
        origin = group.origin or f"group {number}"
        constraints = [*_constraints(group, origin, is_needed=not always), *always]
        yield replace(
            group,
            candidates=tuple(_scored(it, constraints, group) for it in group.candidates),
        )


def _constraints(group: Group, origin: str, *, is_needed: bool) -> list[dict[str, Any]]:
    given = group.facts.get("constraints", None if is_needed else [])
    if not isinstance(given, list):
        raise ValueError(
            f"{origin}: scoring by rules needs 'constraints', a list such as "
            f"[{{'name': 'bullets', 'n': 3}}]; found {given if given else sorted(group.facts)!r}"
        )
    return [checked(constraint, origin) for constraint in given]


def _scored(
    candidate: Candidate, constraints: Sequence[Mapping[str, Any]], group: Group
) -> Candidate:
    answer = text(candidate.response)
    aspects: dict[str, float] = {}
    for constraint in constraints:
        name = constraint["name"]
        count = sum(key.split()[0] == name for key in aspects) + 1
        aspects[f"{name} {count}" if count > 1 else name] = float(is_met(answer, constraint))
    aspects["share_met"] = share_met(answer, constraints)
    aspects["length"] = float(len(split_words(answer)))
    aspects["repetition"] = repetition(answer)
    if isinstance(group.facts.get("topic"), str):
        aspects["on_topic"] = float(is_on_topic(answer, group.facts["topic"]))
    is_loop = not answer.strip() or aspects["repetition"] > MAX_REPETITION
    score = LOOP_SCORE if is_loop else aspects["share_met"]
    return replace(candidate, score=score, aspects={**candidate.aspects, **aspects})

"""Goals of reward-augmented data: the scale they are told on, and the prompts that tell them.

Zhang et al. 2024, arXiv 2410.08067, sec. 3. Pure: nothing here reads a file or knows a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from melior.data.template import QUESTION, RULES, Writer
from melior.records import Turn, Turns

Ratings = Mapping[str, float]
"""What an answer scores, by attribute; a single score is `OVERALL`."""
Placement = Literal["system", "user_prefix"]
"""Where the goal stands: in the system turn, or before the first user turn's text."""

VERSION: Final = 1
"""Of how goals are written; another one is other bytes, which a trained model does not know."""
OVERALL: Final = "Overall score"
TEMPLATE: Final = (
    "Give a reply of the quality that is asked for below, on a scale from {low} to {high}. Do not"
    " mention the scale or any score in it.\n{name}: {g}"
)
"""The line with `{g}` is written once for each attribute."""


@dataclass(frozen=True)
class Scale:
    """From scores to goals: straight between the points, level beyond them."""

    scores: tuple[float, ...]
    """Rising."""
    goals: tuple[float, ...]

    def __call__(self, score: float) -> float:
        """Return the goal of a score."""
        after = bisect_right(self.scores, score)
        if after in (0, len(self.scores)):
            return self.goals[0 if after == 0 else -1]
        low, high = self.scores[after - 1], self.scores[after]
        slope = (self.goals[after] - self.goals[after - 1]) / (high - low)
        return min(self.goals[after - 1] + (score - low) * slope, self.goals[after])


@dataclass(frozen=True)
class GoalFormat:
    """How goals become a prompt: training and inference have to write the same bytes."""

    template: str
    placement: Placement
    low: float
    high: float
    """The top goal, asked for at inference."""
    scales: Mapping[str, Scale]
    """By attribute, in the order in which they are written."""
    highest: float
    """The highest goal that all attributes had in training."""

    def goal(self, scores: Ratings) -> dict[str, float]:
        """Return the goals that an answer of these scores meets, to one decimal."""
        return {name: round(scale(scores[name]), 1) for name, scale in self.scales.items()}

    def level(self, value: float) -> dict[str, float]:
        """Return the same goal for all attributes.

        Raises:
            ValueError: it is not on the scale.
        """
        if not self.low <= value <= self.high:
            raise ValueError(
                f"a goal must lie from {spelled(self.low)} to {spelled(self.high)}, the scale that"
                f" the model was trained on; found {value:g}"
            )
        return dict.fromkeys(self.scales, round(value, 1))

    def text(self, goal: Ratings) -> str:
        """Return what is written of a goal."""
        lines = []
        for line in self.template.split("\n"):
            told = [(name, spelled(g)) for name, g in goal.items()] if "{g}" in line else [("", "")]
            lines += [line.replace("{name}", name).replace("{g}", g) for name, g in told]
        ends = {"{low}": spelled(self.low), "{high}": spelled(self.high)}
        whole = "\n".join(lines)
        for word, said in ends.items():
            whole = whole.replace(word, said)
        return whole

    def ask(self, prompt: Turns, goal: Ratings) -> Turns:
        """Return a prompt that asks for a goal; what stood in that turn comes after it.

        Raises:
            ValueError: there is no user turn to put it before.
        """
        role = "system" if self.placement == "system" else "user"
        place = next((i for i, turn in enumerate(prompt) if turn.role == role), None)
        if place is None and role == "user":
            roles = ", ".join(turn.role for turn in prompt) or "nobody"
            raise ValueError(f"a goal needs a user turn to stand before; found turns of {roles}")
        if place is None:
            return (Turn("system", self.text(goal)), *prompt)
        told = f"{self.text(goal)}\n\n{prompt[place].content}"
        return (*prompt[:place], replace(prompt[place], content=told), *prompt[place + 1 :])

    def told(self, goal: Ratings) -> float | dict[str, float]:
        """Return a goal, or scores, as files have them: a single one is a number."""
        return goal[OVERALL] if list(goal) == [OVERALL] else dict(goal)

    @property
    def hash(self) -> str:
        """A key of all that goals depend on."""
        own = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(own.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return what `melior_goal.json` holds."""
        return {"version": VERSION, "hash": self.hash, **asdict(self)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any], where: str) -> GoalFormat:
        """Return the format that a file holds.

        Raises:
            ValueError: it is of another version, or not as it was written.
        """
        try:
            own = {key: value for key, value in given.items() if key not in ("version", "hash")}
            scales = {
                name: Scale(tuple(one["scores"]), tuple(one["goals"]))
                for name, one in own.pop("scales").items()
            }
            found = cls(scales=scales, **own)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: needs the format of goals; found {error!r}") from error
        if (given.get("version"), given.get("hash")) != (VERSION, found.hash):
            raise ValueError(
                f"{where}: a model has to be asked in the words it was trained on; found them"
                f" changed, or version {given.get('version')} where {VERSION} is known"
            )
        return found


def spelled(value: float) -> str:
    """Return a number as goals are written: to one decimal, whole ones without it."""
    rounded = round(value, 1) + 0.0  # no -0
    return str(int(rounded)) if rounded == int(rounded) else str(rounded)


def check_template(template: str, *, several: bool, where: str) -> str:
    """Return a template that tells a goal.

    Raises:
        ValueError: it lacks `{g}`, or `{name}` beside it where there are several attributes.
    """
    lines = [line for line in template.split("\n") if "{g}" in line]
    if not lines:
        raise ValueError(f"{where}: a goal template needs {{g}}, the goal; found none")
    if several and not any("{name}" in line for line in lines):
        raise ValueError(
            f"{where}: a goal template for several attributes needs {{name}} in the line of {{g}};"
            f" found {lines[0]!r}"
        )
    return template.rstrip("\n")


def takes_system(writer: Writer) -> bool:
    """Say whether a chat template writes what a system turn says."""
    try:
        return RULES in writer.opened((Turn("system", RULES), Turn("user", QUESTION)))
    except ValueError:
        return False


def fit_scale(
    scores: Sequence[float], kind: str, *, low: float, high: float, name: str = OVERALL
) -> Scale:
    """Return a map of scores to the scale of goals; the scores are those trained on, and no others.

    Args:
        scores: of all answers.
        kind: `none` takes them as they are; `affine` puts the least at `low` and the greatest at
            `high`; `quantile` puts each at its rank, equal ones at their middle.
        low: the lowest goal.
        high: the top goal.
        name: of the attribute.

    Raises:
        ValueError: scores are off the scale that they are taken for, or all equal.
    """
    known = sorted(set(scores))
    if len(known) < 2:
        raise ValueError(
            f"{name}: goals need scores that differ; found {known[0]:g} everywhere; score the"
            " answers by something finer, such as melior score --with REWARD_MODEL"
        )
    if kind == "none":
        off = next((score for score in scores if not low <= score <= high), None)
        if off is not None:
            raise ValueError(
                f"{name}: scores must lie from {spelled(low)} to {spelled(high)}; found {off:g};"
                " map them there with --scale affine or --scale quantile"
            )
        return Scale((low, high), (low, high))
    if kind == "affine":
        return Scale((known[0], known[-1]), (low, high))
    counts, below, middles = Counter(scores), 0, []
    for score in known:
        middles.append(below + counts[score] / 2)
        below += counts[score]
    first, whole = middles[0], middles[-1] - middles[0]
    goals = [low + (high - low) * (middle - first) / whole for middle in middles]
    return Scale(tuple(known), tuple(goals))

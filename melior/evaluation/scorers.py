"""What there is to know of a scorer from labelled answers: right, calibrated, fooled by length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from melior.correlation import spearman
from melior.evaluation.agreement import agreement, cycles, majority
from melior.evaluation.calibration import Bin, calibration_error, fit_temperature, reliability
from melior.evaluation.compare import Array, Comparison, Numbers, compare
from melior.evaluation.preferences import LengthBias, PairScores, length_bias, pair_scores
from melior.evaluation.reward_bench import Accuracies, Item, accuracies, best_share
from melior.evaluation.uncertainty import Sureness, sureness


@dataclass(frozen=True)
class Opinion:
    """What a scorer said of a prompt's answers."""

    scores: tuple[float | None, ...]
    """None where it gave none."""
    comparisons: Array | None = None
    """Of a scorer that compares: `[k k]`, the logits that the row's answer beats the column's; nan
    where that is not known."""
    members: tuple[tuple[float, ...], ...] = ()
    """Of an ensemble: `[m k]`, the scores of each member."""

    @property
    def is_whole(self) -> bool:
        """Whether every answer has a score."""
        return None not in self.scores

    @property
    def known(self) -> list[float]:
        """The scores that there are."""
        return [score for score in self.scores if score is not None]

    def margins(self, item: Item) -> list[float]:
        """Return by how much each better answer beats each worse one: compared, or by scores.

        Where answers are compared, their scores are means over the others, and say less; two that
        are not compared (a verdict is missing, or many answers met in a knock-out) have nan.
        """
        if self.comparisons is not None:
            return [float(self.comparisons[i, j]) for i, j in item.pairs]
        return [self.known[i] - self.known[j] for i, j in item.pairs]


@dataclass(frozen=True)
class Calibration:
    """How far `sigmoid(margin)` may be taken for the chance that the better answer is preferred."""

    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error."""
    temperature: float | None
    """That makes these margins most likely; None where none does."""
    error_at_temperature: float | None
    """Of each half of the pairs at the temperature of the other half."""
    why_not: str
    """Why there is no temperature."""


@dataclass(frozen=True)
class Lengths:
    """What length has to do with the scores."""

    bias: LengthBias
    """Right where the better answer is the shorter, as long, or the longer one."""
    of_scores: float
    """Spearman's correlation of an answer's score with its length."""
    of_margins: float
    """And of a pair's margin with its difference of lengths, within prompts."""


@dataclass(frozen=True)
class Circles:
    """Triples of answers that comparisons rank in a circle."""

    cyclic: int
    decided: int
    """Triples without a tie or a missing comparison."""


@dataclass(frozen=True)
class Findings:
    """All that is said of one scorer."""

    name: str
    n_missing: int
    """Prompts left out everywhere, since an answer of theirs has no score."""
    accuracies: Accuracies
    pairs: PairScores
    """Over all pairs of a better and a worse answer that have a margin."""
    calibration: Calibration
    sureness: tuple[Sureness, ...]
    """Whether it knows which pairs it ranks wrong, by each way to be sure."""
    lengths: Lengths
    answers_per_second: float | None
    """None for scores that came from a file."""
    circles: Circles | None
    """Of a scorer that compares answers two by two."""


@dataclass(frozen=True)
class Between:
    """Two scorers on the prompts that both have scored."""

    first: str
    second: str
    agreement: float
    """Share of pairs ranked alike."""
    correlation: float
    """Spearman's, of the margins."""
    accuracy: Comparison
    """Best answers put first: the second against the first, paired by prompt."""


def findings(
    name: str, items: Sequence[Item], opinions: Sequence[Opinion], *, rate: float | None
) -> Findings:
    """Judge one scorer.

    Args:
        name: what it is called.
        items: labelled prompts.
        opinions: of the answers to each of them.
        rate: answers scored a second; None where the scores were known.

    Raises:
        ValueError: it has scored no prompt wholly, or compared no better answer with a worse one.
    """
    kept = [(item, own) for item, own in zip(items, opinions, strict=True) if own.is_whole]
    if not kept:
        raise ValueError(
            f"{name}: needs a score for every answer of at least one prompt; found"
            f" {len(items)} prompts with answers that have none"
        )
    judged, whole = [item for item, _ in kept], [own for _, own in kept]
    scores, margins = [own.known for own in whole], _margins(judged, whole)
    found = margins[~np.isnan(margins)]
    if not len(found):
        raise ValueError(
            f"{name}: needs a comparison of a better with a worse answer to at least one prompt;"
            f" found none in {len(judged)} prompts; compare every two answers, and see why verdicts"
            " are missing"
        )
    return Findings(
        name,
        len(items) - len(kept),
        accuracies(judged, scores),
        pair_scores(found),
        calibrated(found),
        sureness(found, _members_margins(judged, whole)),
        _lengths(judged, scores, margins),
        answers_per_second=rate,
        circles=circles(own.comparisons for own in opinions if own.comparisons is not None),
    )


def calibrated(found: Numbers) -> Calibration:
    """Bin margins by confidence, fit a temperature, and judge it across halves."""
    h = np.asarray(found, dtype=np.float64)
    bins = reliability(h)
    try:
        temperature, across = fit_temperature(h), _across_halves(h)
    except ValueError as error:
        return Calibration(bins, calibration_error(bins), None, None, str(error))
    return Calibration(bins, calibration_error(bins), temperature, across, "")


def between(
    first: tuple[str, Sequence[Opinion]],
    second: tuple[str, Sequence[Opinion]],
    items: Sequence[Item],
    *,
    generator: torch.Generator,
) -> Between | None:
    """Compare two scorers on what both have scored; None where there is no such prompt."""
    rows = [
        (item, one, two)
        for item, one, two in zip(items, first[1], second[1], strict=True)
        if one.is_whole and two.is_whole
    ]
    if not rows:
        return None
    own, left, right = ([*column] for column in zip(*rows, strict=True))
    both = np.stack([_margins(own, left), _margins(own, right)])
    h, g = both[:, ~np.isnan(both).any(0)]
    correct = [
        [best_share(one.known, item.is_best) for item, one in zip(own, side, strict=True)]
        for side in (left, right)
    ]
    gain = compare(*correct, name="best answer first", unit="share", generator=generator)
    return Between(first[0], second[0], agreement(h, g), _spearman(h, g), gain)


def circles(comparisons: Iterable[Array]) -> Circles | None:
    """Count circles in comparisons of the answers to each prompt; None where no triple is decided.

    Args:
        comparisons: of each prompt, above 0 where the row's answer beats the column's; nan where
            that is not known.
    """
    counts = [cycles(logits) for logits in comparisons]
    cyclic, decided = (sum(column) for column in zip((0, 0), *counts, strict=True))
    return Circles(cyclic, decided) if decided else None


def majority_circles(opinions: Sequence[Sequence[Opinion]]) -> Circles | None:
    """Count circles in the majority of three or more scorers, by their scores.

    What one scorer's scores say, or two together, has none.
    """
    if len(opinions) < 3:
        return None
    known = [own for own in zip(*opinions, strict=True) if all(one.is_whole for one in own)]
    return circles(majority([one.known for one in own]) for own in known)


def _margins(items: Sequence[Item], opinions: Sequence[Opinion]) -> Array:
    """Return the margins of each better and worse answer to each prompt, or nan."""
    return np.array(
        [h for item, own in zip(items, opinions, strict=True) for h in own.margins(item)]
    )


def _members_margins(items: Sequence[Item], opinions: Sequence[Opinion]) -> list[list[float]]:
    """Return the margins of each member of an ensemble; none where some prompt lacks members."""
    sizes = {len(own.members) for own in opinions}
    if len(sizes) > 1:
        return []
    return [
        [row.members[m][i] - row.members[m][j] for item, row in zip(items, opinions, strict=True)
         for i, j in item.pairs]
        for m in range(sizes.pop())
    ]  # fmt: skip


def _across_halves(h: Array) -> float:
    """Return the calibration error of each half at the other half's temperature, together."""
    halves = h[::2], h[1::2]
    cooled = [
        half / fit_temperature(other) for half, other in zip(halves, halves[::-1], strict=True)
    ]
    return calibration_error(reliability(np.concatenate(cooled)))


def _lengths(items: Sequence[Item], scores: Sequence[Sequence[float]], margins: Array) -> Lengths:
    pairs = [(item.lengths[i], item.lengths[j]) for item in items for i, j in item.pairs]
    rows = [(h, *two) for h, two in zip(margins, pairs, strict=True) if not np.isnan(h)]
    known, better, worse = ([*column] for column in zip(*rows, strict=True))
    longer = [a - b for a, b in zip(better, worse, strict=True)]
    flat = [score for own in scores for score in own]
    return Lengths(
        length_bias(known, better, worse),
        _spearman(flat, [length for item in items for length in item.lengths]),
        _spearman(known, longer),
    )


def _spearman(first: Numbers, second: Numbers) -> float:
    left, right = (torch.as_tensor(values, dtype=torch.float64) for values in (first, second))
    return float(spearman(left[:, None], right))

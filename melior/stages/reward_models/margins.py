"""A reward model's margins, stored with the pairs, and how they are spread; no torch to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from melior.data.files import write_pairs
from melior.records import Metrics, Pair

if TYPE_CHECKING:
    from melior.rewards.scalar import ScalarScorer

BINS = 10
WIDTH = 40
"""Of the longest bar."""


def write_margins(
    out: str | Path,
    pairs: Iterable[Pair],
    scorer: ScalarScorer,
    name: str,
    *,
    temperature: float = 1.0,
    leaves_out: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Write pairs with their rewards, margins and the reward model's identity; return the margins.

    Args:
        out: a file, or `-`.
        pairs: what to score.
        scorer: the reward model.
        name: its own, as it is stored.
        temperature: what rewards are divided by.
        leaves_out: pairs that are too long are left out, not refused.
        on_progress: is told how many pairs are done.

    Raises:
        ValueError: an answer is longer than what the reward model reads.
    """
    from melior.rewards.scalar import with_margin

    about = scorer.about(name, temperature=temperature)
    margins: list[float] = []

    def scored() -> Iterator[Pair]:
        for pair, chosen, rejected in rewards(scorer, pairs, leaves_out=leaves_out):
            one = with_margin(pair, chosen / temperature, rejected / temperature, about)
            margins.append(one.margin)
            yield one
            on_progress(len(margins))

    write_pairs(out, scored())
    return margins


def rewards(
    scorer: ScalarScorer, pairs: Iterable[Pair], *, leaves_out: bool = False
) -> Iterator[tuple[Pair, float, float]]:
    """Pass on pairs with both rewards; refuse one that has not, or leave it out."""
    for pair, chosen, rejected in scorer.pairs(pairs):
        if chosen is not None and rejected is not None:
            yield pair, chosen, rejected
        elif not leaves_out:
            raise ValueError(
                f"{pair.origin}: a margin needs both answers within the {scorer.fitting.limit}"
                " tokens that are read; found a longer one; leave the pair out, or raise"
                " --max-length as far as the reward model goes"
            )


def fitted_temperature(margins: Sequence[float]) -> tuple[float, str]:
    """Return the temperature that makes the margins most honest, and a sentence of what it does.

    Args:
        margins: of pairs that the reward model was not trained on.
    """
    from melior.evaluation.calibration import fit_temperature, pair_loss

    temperature = fit_temperature(margins)
    after = pair_loss([margin / temperature for margin in margins])
    return temperature, (
        f"temperature {temperature:.4g}, from {len(margins)} held-out pairs: their loss falls from"
        f" {pair_loss(margins):.4f} to {after:.4f}"
    )


def metrics(margins: Sequence[float]) -> Metrics:
    """Return what MADPO's options are chosen from: its tau is by default the 90th percentile."""
    return {
        "margins/pairs": float(len(margins)),
        "margins/share_negative": sum(margin < 0 for margin in margins) / len(margins),
        "margins/mean": sum(margins) / len(margins),
        "margins/p90": quantile([abs(margin) for margin in margins], 0.9),
    }


def spread(margins: Sequence[float]) -> list[str]:
    """Return the histogram of the sizes of margins, and what else there is to know of them."""
    sizes, found = [abs(margin) for margin in margins], metrics(margins)
    step = max(sizes) / BINS or 1.0
    counts = [0] * BINS
    for size in sizes:
        counts[min(int(size / step), BINS - 1)] += 1
    bars = ["█" * -(-WIDTH * n // max(counts)) for n in counts]
    rows = [
        f"{i * step:8.3g} to {(i + 1) * step:<8.3g} {bars[i]:<{WIDTH}} {counts[i]}"
        for i in range(BINS)
    ]
    return [
        "size of the margin |h|, and how many pairs have it",
        *rows,
        f"{len(margins)} pairs; mean margin {found['margins/mean']:.3g}; in"
        f" {found['margins/share_negative']:.1%} h < 0: the reward model disagrees with the label",
        f"90th percentile of |h|, the suggested tau: {found['margins/p90']:.4g}",
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of numbers, between two of them where it lies there."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])

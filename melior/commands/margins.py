"""`melior margins`: store with each pair what a reward model says of its two answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from melior.options import in_range
from melior.records import Metrics, Pair

if TYPE_CHECKING:
    from melior.rewards.scalar import ScalarScorer

BINS = 10
WIDTH = 40
"""Of the longest bar."""


@dataclass(frozen=True)
class Config:
    """Store a reward model's margins with the pairs, and say how they are spread."""

    file: tyro.conf.Positional[str]
    """Pairs: a file, a folder or a `datasets` name; `name[:split[:rows]][*weight]`."""
    reward_model: str
    """A folder such as `runs/rm/model`, or a name such as `org/model`."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """Where the pairs go, with `margin`, `reward_chosen`, `reward_rejected` and `reward_model`."""
    calibrate: str = ""
    """Pairs that the reward model was not trained on: rewards are divided by the temperature that
    makes its preferences most likely on them."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    max_tokens: int = 16384
    """Tokens computed at once; a prompt counts once for both answers."""
    max_length: int = 0
    """Tokens of prompt and answer that are read, the last ones; 0 is all that the model can."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("max_tokens", self.max_tokens, 16)
        in_range("max_length", self.max_length, 0)


def run(config: Config) -> Metrics:
    """Score, calibrate, write; say on standard error how the margins are spread."""
    from melior.data.files import read_pairs, write_pairs
    from melior.models.names import find

    find(config.reward_model)
    for source in filter(None, (config.file, config.calibrate)):
        if next(read_pairs(source), None) is None:
            raise ValueError(f"{source}: needs at least one pair; found no row")
    from melior.options import ModelOptions
    from melior.rewards.scalar import load_scorer

    options = ModelOptions(model=config.reward_model, dtype=config.dtype, device=config.device)
    scorer = load_scorer(options, max_tokens=config.max_tokens, max_length=config.max_length)
    temperature = _temperature(config.calibrate, scorer) if config.calibrate else 1.0
    about = scorer.about(config.reward_model, temperature=temperature)
    margins: list[float] = []
    write_pairs(config.out, _scored(config.file, scorer, about, margins))
    for line in [*scorer.remarks(), *spread(margins)]:
        print(line, file=sys.stderr)
    return metrics(margins) | {"margins/temperature": temperature}


def metrics(margins: Sequence[float]) -> Metrics:
    """Return what MADPO's options are chosen from: its tau is by default the 90th percentile."""
    sizes = sorted(map(abs, margins))
    return {
        "margins/pairs": float(len(margins)),
        "margins/share_negative": sum(margin < 0 for margin in margins) / len(margins),
        "margins/mean": sum(margins) / len(margins),
        "margins/p90": _quantile(sizes, 0.9),
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


def _temperature(source: str, scorer: ScalarScorer) -> float:
    """Fit the temperature on pairs held out, and say what it changed."""
    from melior.data.files import read_pairs
    from melior.evaluation.calibration import fit_temperature, pair_loss

    margins = [chosen - rejected for _, chosen, rejected in _rewards(scorer, read_pairs(source))]
    temperature = fit_temperature(margins)
    after = pair_loss([margin / temperature for margin in margins])
    print(
        f"temperature {temperature:.4g}, from {len(margins)} held-out pairs: their loss falls from"
        f" {pair_loss(margins):.4f} to {after:.4f}",
        file=sys.stderr,
    )
    return temperature


def _scored(
    source: str, scorer: ScalarScorer, about: dict[str, Any], margins: list[float]
) -> Iterator[Pair]:
    from melior.data.files import read_pairs
    from melior.rewards.scalar import with_margin
    from melior.training.hooks import counted

    with counted("scoring pairs") as progress:
        for pair, chosen, rejected in _rewards(scorer, read_pairs(source)):
            chosen, rejected = (one / about["temperature"] for one in (chosen, rejected))
            scored = with_margin(pair, chosen, rejected, about)
            margins.append(scored.margin)
            yield scored
            progress(len(margins))


def _rewards(scorer: ScalarScorer, pairs: Iterator[Pair]) -> Iterator[tuple[Pair, float, float]]:
    """Pass on pairs with both rewards; refuse one that has not."""
    for pair, chosen, rejected in scorer.pairs(pairs):
        if chosen is None or rejected is None:
            raise ValueError(
                f"{pair.origin}: a margin needs both answers within the {scorer.max_length} tokens"
                " that are read; found a longer one; leave the pair out, or raise --max-length as"
                " far as the reward model goes"
            )
        yield pair, chosen, rejected


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted numbers, between two of them where it lies there."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])

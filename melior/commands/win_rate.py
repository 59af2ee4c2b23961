"""`melior evaluate win-rate`: what a judge's file says of a model against a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from melior.checks import in_range

if TYPE_CHECKING:
    from melior.data.judgements import LeaderboardRow
    from melior.evaluation.compare import Interval
    from melior.evaluation.length_control import Gamed, LengthControlled
    from melior.evaluation.verdicts import Contest
    from melior.evaluation.win_rate import HeadToHead


@dataclass(frozen=True)
class Config:
    """Win rates of AlpacaEval annotations, or of Arena-Hard's or MT-Bench's pair judgments."""

    file: tyro.conf.Positional[str]
    """`annotations.json`, or a judge's JSON lines."""
    gamed: str = ""
    """AlpacaEval's `df_gamed.csv`: holds the weight of length in place and gives the instructions'
    difficulty, as its leaderboard does; without it lengths alone are controlled."""
    confidence: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Draws the resamples of the intervals."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = ""
    """Write the numbers as JSON, or as AlpacaEval's leaderboard where the name ends in .csv."""

    def __post_init__(self) -> None:
        """Check the ranges and the output's name."""
        in_range("confidence", self.confidence, 0, 1, above=True, below=True)
        in_range("seed", self.seed, 0)
        place = Path(self.out)
        if self.out and place.suffix not in (".json", ".csv"):
            raise ValueError(f"out: a name in .json or .csv is needed; found {self.out}")
        if self.out and not place.parent.is_dir():
            raise FileNotFoundError(f"{place}: the folder {str(place.parent)!r} does not exist")


@dataclass(frozen=True)
class Result:
    """A contest and what came of it."""

    contest: Contest
    counts: HeadToHead
    controlled: LengthControlled | None
    why_not: str
    """Why there is no length-controlled win rate."""


def run(config: Config) -> None:
    """Read, count, control for length, print and write."""
    from melior.data.judgements import write_leaderboard
    from melior.evaluation.length_control import NO_GAMED
    from melior.evaluation.verdicts import read_contests, read_gamed
    from melior.training.run import write_json

    contests = read_contests(config.file)
    gamed, difficulty = read_gamed(config.gamed) if config.gamed else (NO_GAMED, {})
    results = [_result(one, gamed, difficulty, config) for one in contests]
    for result in results:
        print("\n".join(_lines(result)))
    if config.out.endswith(".csv"):
        write_leaderboard(config.out, map(_leaderboard_row, results))
    elif config.out:
        write_json(Path(config.out), [_row(result) for result in results])


def _result(
    contest: Contest, gamed: Gamed, difficulty: Mapping[int, float], config: Config
) -> Result:
    from melior.evaluation.length_control import lacks, length_controlled
    from melior.evaluation.win_rate import head_to_head
    from melior.ops import generator

    draw = generator(config.seed)
    counts = head_to_head(
        [one.preference for one in contest.verdicts],
        [one.weight for one in contest.verdicts],
        generator=draw, confidence=config.confidence,
    )  # fmt: skip
    if contest.average_lengths is None:
        return Result(contest, counts, None, "the file holds no answers")
    judged = contest.judged(difficulty)
    if reason := lacks(judged):
        return Result(contest, counts, None, reason)
    found = length_controlled(judged, gamed, generator=draw, confidence=config.confidence)
    return Result(contest, counts, found, "")


def _lines(result: Result) -> Iterator[str]:
    contest, counts, controlled = result.contest, result.counts, result.controlled
    missing = f", {counts.n_missing} missing" if counts.n_missing else ""
    yield f"{contest.model} against {contest.baseline}, judged by {contest.judge}"
    yield (
        f"  {counts.n_total} judged{missing}: {counts.n_wins} won, {counts.n_draws} drawn,"
        f" {counts.n_wins_base} lost"
    )
    yield f"  win rate {_said(counts.win_rate)}"
    if controlled is None:
        yield f"  no length-controlled win rate: {result.why_not}"
        return
    yield f"  length-controlled win rate {_said(controlled.win_rate)}"
    if contest.average_lengths is not None:
        baseline, model = contest.average_lengths
        yield f"  answers of {model:.0f} characters on average, the baseline's of {baseline:.0f}"


def _said(interval: Interval) -> str:
    assert interval.low is not None and interval.high is not None
    return f"{interval.estimate:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _row(result: Result) -> dict[str, Any]:
    contest, counts = result.contest, result.counts
    return {
        "model": contest.model,
        "baseline": contest.baseline,
        "judge": contest.judge,
        **asdict(counts),
        "n_total": counts.n_total,
        "average_lengths": contest.average_lengths,
        "length_controlled": asdict(result.controlled) if result.controlled else result.why_not,
    }


def _leaderboard_row(result: Result) -> LeaderboardRow:
    """Return percentages, under AlpacaEval's names."""
    from melior.data.judgements import LeaderboardRow

    counts, controlled, lengths = result.counts, result.controlled, result.contest.average_lengths
    error = counts.standard_error
    return LeaderboardRow(
        name=result.contest.model,
        win_rate=100 * counts.win_rate.estimate,
        standard_error=None if error is None else 100 * error,
        n_wins=counts.n_wins,
        n_wins_base=counts.n_wins_base,
        n_draws=counts.n_draws,
        n_total=counts.n_total,
        discrete_win_rate=100 * counts.discrete_win_rate,
        mode="community",  # as AlpacaEval calls what its authors have not verified
        avg_length=int(lengths[1]) if lengths else None,
        length_controlled_winrate=100 * controlled.win_rate.estimate if controlled else None,
        lc_standard_error=100 * controlled.standard_error if controlled else None,
    )

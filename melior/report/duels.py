"""What a bake-off says in words: which arm to use, and which differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from melior.evaluation.bakeoff import QUANTITIES, Duel, Outcome, Standing
from melior.report import words


def headline(outcome: Outcome) -> tuple[str, str]:
    """Return the kind of the verdict, as in `words.Verdict`, and its sentence."""
    leaders, arms = outcome.leaders, list(outcome.standings)
    first = arms[0]
    if not outcome.duels:
        return "open", f"Only {first} could be judged"
    if len(leaders) == 1:
        return "better", f"Use {first}: it is ahead of {_all_others(arms)}"
    if len(leaders) == len(arms):
        return "none", f"No difference is shown between {listed(arms)}"
    beaten = [arm for arm in arms if arm not in leaders]
    return "none", f"{listed(leaders)} are not told apart; {first} is ahead of {listed(beaten)}"


def lead(outcome: Outcome) -> str:
    """Say how the first arm stands against the start model, and which others are ahead of it."""
    first, standings = next(iter(outcome.standings.items()))
    said = f"{first} against the start model: {against_start(standings[outcome.metric])}."
    ahead = [arm for arm in list(outcome.standings)[1:] if _is_ahead(outcome, arm)]
    return f"{said} Also ahead of it: {listed(ahead)}." if ahead else said


def against_start(standing: Standing) -> str:
    """Say how an arm's numbers differ from the start model's."""
    found = standing.against_start
    if found is None:
        return words.amount(standing.over_seeds.estimate, QUANTITIES[standing.quantity].unit)
    ends = " to ".join(words.amount(value, found.unit) for value in (found.before, found.after))
    change = words.change(found.difference, found.unit)
    interval = words.interval(found.low, found.high, found.unit)
    return f"{found.name} {ends}, {change} ({interval}), {words.p_value(found.p_value)}"


def sentence(duel: Duel, n_duels: int) -> str:
    """Say of two arms whether one is ahead, and if not, what is missing."""
    found, seeds = duel.comparison, duel.over_seeds
    change = words.change(found.difference, found.unit)
    interval = words.interval(found.low, found.high, found.unit)
    said = f"{found.name} {change} ({interval}), {words.p_value(found.p_value)}"
    if duel.is_real:
        agree = f" and the same sign in all {seeds.n} seeds" if seeds.n > 1 else ""
        return f"{duel.first} is ahead of {duel.second}: {said}{agree}."
    return f"{duel.first} and {duel.second} are not told apart: {said}; {_lacking(duel, n_duels)}."


def of_seeds(duel: Duel) -> str:
    """Say what another seed would change: the interval over seeds of the difference."""
    seeds, unit = duel.over_seeds, duel.comparison.unit
    if seeds.low is None:
        return "a single seed says nothing of others"
    return f"over {seeds.n} seeds {words.interval(seeds.low, seeds.high, unit)}"


def levels(standing: Standing) -> str:
    """Write a mean, and those of the seeds where there are several."""
    unit = QUANTITIES[standing.quantity].unit
    mean = words.amount(standing.over_seeds.estimate, unit)
    if len(standing.by_seed) < 2:
        return mean
    return f"{mean} ({', '.join(words.bare(value, unit) for value in standing.by_seed)})"


def cost(outcome: Outcome, arm: str) -> tuple[str, str]:
    """Return what an arm's runs took: mean time in training, and most memory."""
    runs = [row for row in of_arm(outcome, arm, "run") if row["status"] == "finished"]
    time = words.duration(fmean(row["train_s"] for row in runs))
    return time, f"{max(row['peak_mem'] for row in runs) / 2**30:.1f} GiB"


def of_arm(outcome: Outcome, arm: str, stage: str) -> list[dict[str, Any]]:
    """Return the rows of an arm's cells: `sweep` or `run`."""
    return [dict(r) for r in outcome.rows if r["arm"] == arm and r["stage"] == stage]


def setting(row: dict[str, Any]) -> str:
    """Write a cell's learning rate and strength."""
    return ", ".join(filter(None, (f"rate {row['learning_rate']:g}", row["strength"])))


def listed(names: Sequence[str]) -> str:
    """Write names as a sentence has them: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is_ahead(outcome: Outcome, arm: str) -> bool:
    found = outcome.standings[arm][outcome.metric].against_start
    return found is not None and words.of_comparison(found.to_json()).kind == "better"


def _all_others(arms: Sequence[str]) -> str:
    return {2: arms[1], 3: "both others"}.get(len(arms), f"all {len(arms) - 1} others")


def _lacking(duel: Duel, n_duels: int) -> str:
    found = duel.comparison
    if found.low is None or found.low <= 0:
        return "the interval holds 0"
    if found.p_value > 1 - found.confidence:
        return f"not after Holm's correction for {n_duels} pairs"
    agree, n = duel.n_agreeing, duel.over_seeds.n
    return f"the seeds disagree, {agree} of {n} have this sign"

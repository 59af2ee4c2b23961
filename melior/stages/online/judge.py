"""After each round: the held-out prompts answered again, and held against the start and the last.

Answers are drawn at temperature 1 with nothing cut off, as an estimate of KL demands. A scorer that
gives numbers is read as it is; of one that only compares (it leaves `facts["comparisons"]`) an
answer's level is the probability that it beats the start model's answer to the same prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from melior.data.files import read_groups, read_prompts, turn_rows, write_groups
from melior.evaluation.compare import Comparison, bca_interval, compare
from melior.evaluation.length_control import Judged, lacks, length_controlled
from melior.models.loading import load, load_to_answer
from melior.ops import generator
from melior.options import ModelOptions, Sampling
from melior.records import Group, Metrics, text
from melior.sampling.candidates import candidate
from melior.stages.bakeoff.exam import kl_by_prompt
from melior.stages.online.choose import scored
from melior.stages.online.propose import PROMPTS, seed_of
from melior.training.run import write_json
from melior.types import Scorer

HELD_OUT, JUDGED = "held_out.jsonl", "judged.json"
"""In a round's folder."""
START, LAST = "start", "last"
"""What a round is held against."""
TITLES = {"reward": "reward of the scorer", "judge": "score of the held-out scorer"}

Numbers = Sequence[float | None]
"""One for each held-out prompt; None where there is none."""


@dataclass(frozen=True)
class Panel:
    """Who judges the held-out answers, by the names in `TITLES`, and how they are drawn."""

    start: ModelOptions
    """What the first round started from; it has KL 0 to itself."""
    scorers: Mapping[str, Scorer]
    max_new_tokens: int
    max_tokens: int
    seed: int
    length_penalty: float = 0.0
    """What the answers that are learned from are ranked by takes off for each character."""


@dataclass(frozen=True)
class Opinion:
    """What a scorer holds of several answers to one prompt, the start model's first."""

    scores: tuple[float | None, ...]
    logits: Sequence[Sequence[float | None]] = ()
    """That the row beats the column, of a scorer that compares."""

    def level(self, place: int) -> float | None:
        """Return how good an answer is."""
        return self.win(place, 0) if self.logits else self.scores[place]

    def priced(self, place: int, prices: Sequence[float]) -> float | None:
        """Return how good an answer is, less its price, in the unit of `level`."""
        if self.logits:
            logit = self.logits[place][0]
            return None if logit is None else _sigmoid(logit - prices[place] + prices[0])
        score = self.scores[place]
        return None if score is None else score - prices[place]

    def win(self, place: int, other: int) -> float | None:
        """Return the probability that one answer is better than another; a tie is one half."""
        if self.logits:
            logit = self.logits[place][other]
            return None if logit is None else _sigmoid(logit)
        one, two = self.scores[place], self.scores[other]
        if one is None or two is None:
            return None
        return 0.5 + 0.5 * float(np.sign(one - two))


def judge(here: Path, model: ModelOptions, panel: Panel, number: int) -> dict[str, Any]:
    """Answer the held-out prompts, hold the answers against others', and return what is kept.

    Args:
        here: the round's folder.
        model: what the round has learned.
        panel: who judges, and how answers are drawn: all rounds draw with the same noise.
        number: of the round; 0 is the start model.
    """
    path = here / JUDGED
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    _answer(here, model, panel)
    places = sorted({0, max(0, number - 1), number})
    earlier = [here.parent / f"round-{n}" for n in places[:-1]]
    sides = [list(read_groups(place / HELD_OUT)) for place in (*earlier, here)]
    groups = [_together(one) for one in zip(*sides, strict=True)]
    opinions = {name: _opinions(scorer, groups) for name, scorer in panel.scorers.items()}
    new, last = len(places) - 1, max(0, len(places) - 2)
    numbers = _numbers(opinions, sides[-1], new)
    if panel.length_penalty:
        numbers["ranked"] = _priced(opinions["reward"], sides, panel.length_penalty)
    found: dict[str, Any] = {"round": number, "numbers": numbers, "means": means(numbers)}
    if number:
        found["against"] = {
            START: _against(opinions, sides, new, 0, seed=panel.seed),
            LAST: _against(opinions, sides, new, last, seed=panel.seed),
        }
        found["agreement"] = agreement(opinions, new)
        found["parts"] = parting(found["against"], number)
    write_json(path, found)
    return found


def means(numbers: Mapping[str, Numbers]) -> Metrics:
    """Return the mean of each quantity over the prompts that have it."""
    known = {name: [v for v in values if v is not None] for name, values in numbers.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def parting(against: Mapping[str, Mapping[str, Any]], number: int) -> str:
    """Say where the scorer's reward rises while the held-out scorer's falls beyond its interval.

    That is over-optimisation: what is learned is the scorer's weakness. Empty where it is not so.
    """
    for name in (LAST, START):
        found = {one["name"]: one for one in against[name]["comparisons"]}
        proxy, other = (found.get(TITLES[key]) for key in ("reward", "judge"))
        if not proxy or not other or other["high"] is None:
            continue
        if proxy["difference"] > 0 and other["high"] < 0:
            since = "the start" if name == START else f"round {number - 1}"
            return (
                f"round {number}: since {since} the scorer's reward rose by"
                f" {proxy['difference']:.3g} while the held-out scorer's fell by"
                f" {-other['difference']:.3g} ({-other['high']:.3g} to {-other['low']:.3g}):"
                " the model learns the scorer's weakness, not what is better"
            )
    return ""


def agreement(opinions: Mapping[str, Sequence[Opinion]], new: int) -> float | None:
    """Return in what share of prompts both scorers prefer the same side, new or start.

    Ties of either count half; None where there is one scorer only.
    """
    if len(opinions) < 2:
        return None
    votes = zip(*([one.win(new, 0) for one in own] for own in opinions.values()), strict=True)
    signs = [(np.sign(a - 0.5), np.sign(b - 0.5)) for a, b in votes if None not in (a, b)]
    return float(np.mean([(1 + a * b) / 2 for a, b in signs])) if signs else None


def _answer(here: Path, model: ModelOptions, panel: Panel) -> None:
    """Answer the held-out prompts, unless that is done, and say how far the model has moved."""
    if (here / HELD_OUT).exists():
        return
    prompts = list(read_prompts(here.parent / "round-0" / PROMPTS))
    turns = [group.prompt for group in prompts]
    sampling = Sampling(k=1, max_new_tokens=panel.max_new_tokens)
    noise = generator(seed_of(panel.seed, "held out"))
    drawn = load_to_answer(model).complete(turns, sampling, generator=noise)
    moved = [0.0] * len(prompts)
    if model != panel.start:
        reference = load(panel.start, trainable=False)
        moved = kl_by_prompt(reference, turns, drawn, max_tokens=panel.max_tokens)
    write_groups(
        here / HELD_OUT,
        (
            replace(group, candidates=(candidate(one),), facts={**group.facts, "kl": kl})
            for group, (one,), kl in zip(prompts, drawn, moved, strict=True)
        ),
    )


def _together(sides: Sequence[Group]) -> Group:
    """Put the answers of several models to one prompt beside each other."""
    found = tuple(side.candidates[0] for side in sides)
    return replace(sides[-1], candidates=tuple(replace(one, score=None) for one in found))


def _opinions(scorer: Scorer, groups: Sequence[Group]) -> list[Opinion]:
    return [
        Opinion(tuple(one.score for one in group.candidates), group.facts.get("comparisons", ()))
        for group in scored(scorer, groups)
    ]


def _numbers(
    opinions: Mapping[str, Sequence[Opinion]], side: Sequence[Group], new: int
) -> dict[str, list[float | None]]:
    """Return every quantity of the round's answers, prompt by prompt."""
    facts = [group.candidates[0].facts for group in side]
    return {
        **{name: [one.level(new) for one in own] for name, own in opinions.items()},
        "kl": [float(group.facts["kl"]) for group in side],
        "length": [float(one["n_tokens"]) for one in facts],
        "unfinished": [float(not one["is_finished"]) for one in facts],
    }


def _priced(
    opinions: Sequence[Opinion], sides: Sequence[Sequence[Group]], penalty: float
) -> list[float | None]:
    """Return the round's levels less what its answers' lengths cost, as choosing ranks them."""
    found = []
    for one, answers in zip(opinions, zip(*sides, strict=True), strict=True):
        prices = [penalty * len(text(side.candidates[0].response)) for side in answers]
        found.append(one.priced(len(prices) - 1, prices))
    return found


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, logit)))


def _against(
    opinions: Mapping[str, Sequence[Opinion]],
    sides: Sequence[Sequence[Group]],
    new: int,
    old: int,
    *,
    seed: int,
) -> dict[str, Any]:
    """Compare every quantity, prompt by prompt, and count wins."""
    comparisons, wins = [], {}
    for name, own in opinions.items():
        unit = "share" if own and own[0].logits else ""
        levels = [(one.level(old), one.level(new)) for one in own]
        comparisons += _compared(levels, TITLES[name], unit=unit, seed=seed)
        won = [one.win(new, old) for one in own]
        if any(win is not None for win in won):
            wins[name] = _wins(won, _gaps(sides[old], sides[new]), seed=seed, at_equal=old == 0)
    lengths = [
        tuple(float(side[i].candidates[0].facts["n_tokens"]) for side in (sides[old], sides[new]))
        for i in range(len(sides[new]))
    ]
    comparisons += _compared(
        lengths, "answer length", unit="tokens", seed=seed, higher_is_better=None
    )
    return {"comparisons": [one.to_json() for one in comparisons], "wins": wins}


def _compared(
    pairs: Sequence[tuple[float | None, ...]],
    name: str,
    *,
    unit: str,
    seed: int,
    higher_is_better: bool | None = True,
) -> list[Comparison]:
    """Compare a quantity on the prompts where both sides have it; nothing where they are few."""
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < 2:
        return []
    before, after = ([row[i] for row in known] for i in (0, 1))
    draw = generator(seed)
    return [
        compare(
            before, after,
            name=name, unit=unit, higher_is_better=higher_is_better, generator=draw,
        )
    ]  # fmt: skip


def _wins(won: Numbers, gaps: Sequence[int], *, seed: int, at_equal: bool) -> dict[str, Any]:
    """Count wins, with an interval over prompts, and maybe the rate at equal lengths."""
    known = [(win, gap) for win, gap in zip(won, gaps, strict=True) if win is not None]
    wins = np.array([win for win, _ in known])
    rate = bca_interval(wins, generator=generator(seed))
    found: dict[str, Any] = {
        "wins": int((wins > 0.5).sum()),
        "ties": int((wins == 0.5).sum()),
        "losses": int((wins < 0.5).sum()),
        "win_rate": rate.estimate,
        "low": rate.low,
        "high": rate.high,
    }
    given = Judged(wins, np.array([float(gap) for _, gap in known]), np.zeros(len(known)))
    if at_equal and not lacks(given):
        rate = length_controlled(given, generator=generator(seed)).win_rate
        found["length_controlled"] = {
            "win_rate": rate.estimate, "low": rate.low, "high": rate.high,
        }  # fmt: skip
    return found


def _gaps(old: Sequence[Group], new: Sequence[Group]) -> list[int]:
    """Return characters of the old answers minus those of the new ones."""
    sizes = [[len(text(one.candidates[0].response)) for one in side] for side in (old, new)]
    return [a - b for a, b in zip(*sizes, strict=True)]


def verdict(judged: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's judgement against the start, as in a run's `evaluation.json`."""
    against, mean = judged["against"][START], judged["means"]
    asked, chosen = counts["prompts"], counts["chosen"]
    facts = {
        "KL to the start, nats per answer": mean["kl"],
        "share of prompts that taught nothing": 1 - chosen / asked if asked else 0.0,
        "share of held-out answers cut": mean["unfinished"],
    }
    if judged["agreement"] is not None:
        facts["agreement of scorer and held-out scorer"] = judged["agreement"]
    wins = against["wins"].get("judge") or against["wins"].get("reward") or {}
    return {
        "title": "Held-out prompts: the start model against this round",
        "comparisons": against["comparisons"],
        "win_rate": wins,
        "facts": facts,
    }


def side_by_side(here: Path, judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return held-out answers of start and round, as rows of a run's `samples.jsonl`."""
    start = json.loads((here.parent / "round-0" / JUDGED).read_text(encoding="utf-8"))
    scores = zip(start["numbers"]["reward"], judged["numbers"]["reward"], strict=True)
    sides = (read_groups(here.parent / "round-0" / HELD_OUT), read_groups(here / HELD_OUT))
    return [
        {
            "prompt": turn_rows(new.prompt),
            "before": text(old.candidates[0].response),
            "after": text(new.candidates[0].response),
            "score_before": before,
            "score_after": after,
        }
        for (before, after), old, new in zip(scores, *sides, strict=True)
    ]


def spread(here: Path, judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rewards and lengths of start and round, as rows of a run's `scores.jsonl`."""
    start = json.loads((here.parent / "round-0" / JUDGED).read_text(encoding="utf-8"))
    return [
        {"group": name, "reward": reward, "length": length}
        for name, numbers in (("before", start["numbers"]), ("after", judged["numbers"]))
        for reward, length in zip(numbers["reward"], numbers["length"], strict=True)
    ]

"""Write the demo's prompts from hand-written banks: `python tools/make_demo_prompts.py`.

Every request of a bank is asked twice, each time with one to three constraints that can be met
together. Train and held-out prompts share neither requests nor wordings nor topics. The same
banks give the same files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BANKS = Path(__file__).parent / "demo_banks"
OUT = Path(__file__).parents[1] / "melior" / "recipes" / "demo_data"
ROLES = {
    "shape": ["bullets", "numbered", "sentences", "lines", "json_only", "quoted"],
    "length": ["words"],
    "case": ["lower_case", "capital_words"],
    "marks": ["no_commas", "no_digits", "question", "highlights", "title", "postscript"],
    "wording": ["keyword", "forbidden", "starts_with"],
}
CLASHES = [
    {"numbered", "no_digits"},
    {"title", "starts_with"},
    *({"json_only", other} for other in [*ROLES["marks"], *ROLES["case"], *ROLES["wording"]]),
    *({"lower_case", other} for other in [*ROLES["shape"], *ROLES["length"]]),
    *({"quoted", other} for other in ["title", "postscript"]),
    *({other, "title"} for other in ["bullets", "numbered", "sentences", "lines"]),
    *({other, "postscript"} for other in ["bullets", "numbered", "sentences", "lines"]),
]
"""Pairs of kinds that cannot be met together, or only by reading one with a lawyer's eye."""
COUNTS = ["no", "one", "two", "three", "four", "five", "six"]


def main(out: Path = OUT) -> None:
    """Write both files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, seed in (("train", 1), ("held_out", 2)):
        bank = yaml.safe_load((BANKS / f"{name}.yaml").read_text(encoding="utf-8"))
        rows = [json.dumps(row, ensure_ascii=False) for row in prompts(bank, random.Random(seed))]
        (out / f"{name}_prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def prompts(bank: dict[str, Any], dice: random.Random) -> Iterator[dict[str, Any]]:
    """Yield every request of a bank twice, with different constraints."""
    requests = list(bank["requests"].items()) * 2
    dice.shuffle(requests)
    deck = Deck(bank["constraints"], dice)
    seen = set()
    for topic, request in requests:
        row = prompt(request, deck)
        while row["prompt"] in seen:
            row = prompt(request, deck)
        seen.add(row["prompt"])
        yield {**row, "topic": topic}


def prompt(request: str, deck: Deck) -> dict[str, Any]:
    """Ask a request with constraints from a deck."""
    kinds = deck.kinds(deck.dice.choices([1, 2, 3], weights=[4, 4, 2])[0])
    drawn = [deck.constraint(kind) for kind in kinds]
    said = " ".join(sorted((wording for _, wording in drawn), key=lambda it: "\n" in it))
    is_after = "\n" in said or deck.dice.random() < 0.85  # a form stands at the end
    asked = f"{request} {said}" if is_after else f"{said} {request}"
    if any(wording.islower() for _, wording in drawn):
        asked = asked.lower()  # who writes this types everything so
    return {"prompt": asked, "constraints": [constraint for constraint, _ in drawn]}


class Deck:
    """Kinds, values and wordings, each dealt evenly: shuffled, and again when used up."""

    def __init__(self, bank: dict[str, Any], dice: random.Random) -> None:
        self.bank = bank
        self.dice = dice
        self.piles: dict[str, list[Any]] = {}

    def kinds(self, count: int) -> list[str]:
        """Draw kinds that can be met together, fewer where nothing else fits."""
        weighted = [kind for kind, said in self.bank.items() for _ in range(said.get("share", 1))]
        drawn: list[str] = []
        while len(drawn) < count and any(fits(kind, drawn) for kind in weighted):
            drawn.append(self._deal("kinds", weighted, drawn))
        return drawn

    def constraint(self, kind: str) -> tuple[dict[str, Any], str]:
        """Draw a kind's parameters and a wording of it."""
        wordings = self.bank[kind]["wordings"]
        value = self._deal(kind, self.bank[kind]["values"], [])
        at = value.get("at", next(iter(wordings)))
        wording = self._deal(f"{kind} {at}", wordings[at], [])
        parameters = {**value, **({} if at == "always" else {"at": at})}
        return {"name": kind, **parameters}, wording.format(**slots(parameters))

    def _deal(self, name: str, cards: list[Any], held: list[str]) -> Any:
        pile = self.piles.setdefault(name, [])
        fitting = [card for card in pile if not held or fits(card, held)]
        if not fitting:
            pile += self.dice.sample(cards, len(cards))
            fitting = [card for card in pile if not held or fits(card, held)]
        pile.remove(fitting[0])
        return fitting[0]


def fits(kind: str, others: list[str]) -> bool:
    """Say whether a kind can be met together with others."""
    role = next(kinds for kinds in ROLES.values() if kind in kinds)
    return not any(other in role or {kind, other} in CLASHES for other in others)


def slots(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what the braces of a wording may name."""
    n = parameters.get("n", 1)
    count = COUNTS[n] if n < len(COUNTS) else str(n)
    times = {1: "once", 2: "twice"}.get(n, f"{count} times")
    made = {"count": count, "times": times, "above": n + 1}
    for noun in ("sentence", "passage", "word"):
        plural = noun if n == 1 else f"{noun}s"
        made[f"n_{noun}s"], made[f"count_{noun}s"] = f"{n} {plural}", f"{count} {plural}"
    for key, one in (("words", "word"), ("keys", "key")):
        listed = " and ".join(f"'{item}'" for item in parameters.get(key, []))
        made[f"{key}_quoted"] = f"{one}{'s' * (' and ' in listed)} {listed}"
    # Forms hold no words, so that a copy of one meets nothing.
    made["bullet_form"] = "\n".join(["- ..."] * n)
    made["numbered_form"] = "\n".join(f"{i}. ..." for i in range(1, n + 1))
    made["json_form"] = json.dumps(dict.fromkeys(parameters.get("keys", []), "..."))
    return {**made, **parameters}


if __name__ == "__main__":
    main()

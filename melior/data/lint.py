"""What is wrong with a preference data set, before a single step is trained.

One pass; of each row only hashes and lengths are kept.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import math
import re
import statistics
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from melior.intervals import wilson_interval
from melior.records import CUT_OFF, Group, Pair, Turn, Turns, is_cut_off, text

Level = Literal["error", "warning", "note"]

EXAMPLES = 5
MAXIMA = (256, 512, 1024, 2048, 4096, 8192)
"""Maximum lengths that the truncation table lists."""

_ALWAYS, _NEVER = 0.0, math.inf
_RULES: dict[str, tuple[float, str]] = {
    "lone-surrogates": (_ALWAYS, "half a character (a lone surrogate), which no tokenizer takes"),
    "wrong-answer-role": (0.01, "an answer that does not begin with the assistant"),
    "empty-answers": (0.01, "an empty answer, which teaches to say nothing"),
    "equal-answers": (0.5, "two equal answers, of which nothing can be learned"),
    "empty-prompts": (0.5, "no prompt"),
    "turn-order": (0.5, "somebody speaks twice in a row, or the prompt ends with the assistant"),
    "unknown-roles": (0.5, "a role other than system, developer, user, assistant and tool"),
    "contradictions": (
        0.5,
        "the contrary of an earlier row: the same answers, the other way round",
    ),
    "negative-margins": (0.5, "the chosen answer is scored below the rejected one"),
    "overlap": (0.1, "a held-out row whose prompt is also trained on"),
    "unread-columns": (0.5, "tools, images or chat_template_kwargs, which nothing here reads"),
    "unread-shares": (_NEVER, "a 'chosen_share', which only gpm and train-pairwise read"),
    "damaged-text": (0.5, "text damaged by a wrong encoding, or control characters"),
    "cut-off": (_NEVER, "an answer that was cut off; its end is not learned"),
    "zero-weights": (0.5, "a weight of 0, so that nothing is learned of it"),
    "equal-scores": (0.5, "the same score for all candidates, so that none can be chosen"),
    "no-scores": (_NEVER, "a candidate without a score"),
    "duplicates": (_NEVER, "a repetition of an earlier row"),
}
"""Code: the share of rows from which it is an error, and what such a row holds."""
_UNREAD = ("tools", "images", "chat_template_kwargs")
"""Columns that other trainers hand to the chat template."""
_ROLES = {"system", "developer", "user", "assistant", "tool"}
_MOJIBAKE = re.compile(r"Ã[\x80-\xbf]|Â[\x80-\xbf]|â€|ðŸ|ï»¿|\ufffd")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed, and where."""

    level: Level
    code: str
    count: int
    share: float
    text: str
    examples: tuple[str, ...] = ()
    """Origins of the first rows, as `file:line`."""


@dataclass(frozen=True)
class Truncation:
    """How many rows are longer than a maximum."""

    max_length: int
    rows: int
    share: float


def lint_pairs(pairs: Iterable[Pair], held_out: Iterable[Pair | Group] = ()) -> list[Finding]:
    """Return what is wrong with pairs, worst first; `held_out` is compared with their prompts."""
    return lint_records(pairs, held_out)


def lint_groups(groups: Iterable[Group], held_out: Iterable[Pair | Group] = ()) -> list[Finding]:
    """Return what is wrong with groups of candidates, worst first."""
    return lint_records(groups, held_out)


def lint_records(
    records: Iterable[Pair | Group],
    held_out: Iterable[Pair | Group] = (),
    *,
    tolerated: Collection[str] = (),
) -> list[Finding]:
    """Return what is wrong with pairs and groups of candidates, worst first.

    Args:
        records: what is to be learned from.
        held_out: compared with their prompts.
        tolerated: codes of findings that are no errors, however many rows they are true of.
    """
    lint = Lint(held_out, tolerated=tolerated)
    for record in records:
        lint.look(record)
    return lint.findings()


class Lint:
    """What is wrong with records that pass by, one after another.

    Args:
        held_out: what their prompts are compared with.
        tolerated: codes of findings that are no errors, however many rows they are true of.
    """

    def __init__(
        self, held_out: Iterable[Pair | Group] = (), *, tolerated: Collection[str] = ()
    ) -> None:
        self._tally, self._bias = _Tally(held_out, tolerated), Counter[int]()
        self._seen: dict[int, int] = {}

    def look(self, record: Pair | Group) -> None:
        """Look at a record."""
        if isinstance(record, Pair):
            self._bias[_pair(self._tally, record, self._seen)] += 1
        else:
            _group(self._tally, record, self._seen)

    def findings(self) -> list[Finding]:
        """Return what is wrong with all that passed by, worst first."""
        bias = length_bias(self._bias[1], self._bias[-1])
        return worst_first([*self._tally.findings(), *bias])


def _pair(tally: _Tally, pair: Pair, seen: dict[int, int]) -> int:
    """Look at a pair; say whether the chosen answer is the longer (1) or the shorter one (-1)."""
    tally.row(pair, [pair.chosen, pair.rejected])
    ask, better, worse = (_key(turns) for turns in (pair.prompt, pair.chosen, pair.rejected))
    tally.add("equal-answers", pair.origin, when=better == worse)
    tally.add("negative-margins", pair.origin, when=pair.margin < 0)
    tally.add("zero-weights", pair.origin, when=pair.weight == 0)
    tally.add("cut-off", pair.origin, when=any(is_cut_off(pair.facts, side) for side in CUT_OFF))
    tally.repeated(seen, (ask, better, worse), pair.origin)
    is_both_ways = better != worse and hash((ask, worse, better)) in seen
    tally.add("contradictions", pair.origin, when=is_both_ways)
    long, short = len(text(pair.chosen)), len(text(pair.rejected))
    return (long > short) - (long < short)


def _group(tally: _Tally, group: Group, seen: dict[int, int]) -> None:
    answers = [candidate.response for candidate in group.candidates]
    tally.row(group, answers)
    keys = (_key(group.prompt), *(_key(answer) for answer in answers))
    tally.repeated(seen, keys, group.origin)
    scores = [candidate.score for candidate in group.candidates]
    tally.add("no-scores", group.origin, when=None in scores)
    is_flat = len(scores) > 1 and None not in scores and len(set(scores)) == 1
    tally.add("equal-scores", group.origin, when=is_flat)
    tally.add("zero-weights", group.origin, when=group.facts.get("weight") == 0)
    is_cut = any(is_cut_off(candidate.facts) for candidate in group.candidates)
    tally.add("cut-off", group.origin, when=is_cut)


def lint_lengths(
    lengths: Iterable[tuple[str, int]], *, max_length: int, max_long_share: float
) -> list[Finding]:
    """Return the finding that rows (by origin) have more tokens than the maximum, if any do."""
    kept = [(origin, length > max_length) for origin, length in lengths]
    long = [origin for origin, is_long in kept if is_long]
    if not long:
        return []
    share = len(long) / len(kept)
    said = f"more than {max_length} tokens"
    if share > max_long_share:
        said += f"; up to {max_long_share:.0%} may be: raise max_length or max_long_share"
    level: Level = "error" if share > max_long_share else "warning"
    return [Finding(level, "too-long", len(long), share, said, tuple(long[:EXAMPLES]))]


def truncation_table(lengths: Sequence[int], maxima: Sequence[int] = MAXIMA) -> list[Truncation]:
    """Return for each maximum how many rows, and what share, are longer."""
    longer = [(most, sum(length > most for length in lengths)) for most in maxima]
    return [Truncation(most, rows, rows / max(len(lengths), 1)) for most, rows in longer]


def length_bias(longer: int, shorter: int) -> list[Finding]:
    """Say in what share of the pairs the longer, or the shorter, answer was chosen."""
    unequal = longer + shorter
    if not unequal:
        return []
    most, word = max((longer, "longer"), (shorter, "shorter"))
    low, high = wilson_interval(most, unequal)
    level: Level = "warning" if unequal >= 20 and low > 0.6 else "note"
    said = f"the {word} answer is the chosen one (95 % interval {low:.1%} to {high:.1%})"
    if level == "warning":
        said += "; a model can learn the length in place of the quality"
    return [Finding(level, "length-bias", most, most / unequal, said)]


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Put errors first, and in each level what most rows do."""
    levels = ("error", "warning", "note")
    return sorted(findings, key=lambda one: (levels.index(one.level), -one.share, one.code))


def loose_key(turns: Turns) -> int:
    """Return a hash of what is said, whatever its case and white space."""
    return _hash([" ".join(turn.content.casefold().split()) for turn in turns])


class _Tally:
    """Counts what rows do, and remembers where it was first seen."""

    def __init__(self, held_out: Iterable[Pair | Group], tolerated: Collection[str]) -> None:
        self.rows = 0
        self.tolerated = tolerated
        self.counts = Counter[str]()
        self.examples: dict[str, list[str]] = {}
        self.held_out = Counter(loose_key(record.prompt) for record in held_out)
        self.overlap: set[int] = set()
        self.lengths = {"prompt": _Lengths(), "answer": _Lengths()}

    def add(self, code: str, origin: str, *, when: bool) -> None:
        """Count a row when it does what the code says."""
        if not when:
            return
        self.counts[code] += 1
        kept = self.examples.setdefault(code, [])
        if len(kept) < EXAMPLES:
            kept.append(origin)

    def row(self, record: Pair | Group, answers: Sequence[Turns]) -> None:
        """Look at one row, whatever its kind."""
        prompt, origin = record.prompt, record.origin
        self.rows += 1
        self.add("unread-columns", origin, when=any(record.facts.get(name) for name in _UNREAD))
        self.add("unread-shares", origin, when=record.facts.get("chosen_share") is not None)
        everything = [*prompt, *(turn for answer in answers for turn in answer)]
        said = "\n".join(turn.content for turn in everything)
        self.add("empty-prompts", origin, when=not any(turn.content.strip() for turn in prompt))
        self.add("empty-answers", origin, when=any(_is_empty(answer) for answer in answers))
        is_foreign = any(answer and answer[0].role != "assistant" for answer in answers)
        self.add("wrong-answer-role", origin, when=is_foreign)
        self.add("turn-order", origin, when=not all(_alternate(prompt, a) for a in answers or [()]))
        self.add("unknown-roles", origin, when=not {turn.role for turn in everything} <= _ROLES)
        is_wide = not said.isascii()
        is_torn = is_wide and _SURROGATE.search(said) is not None
        self.add("lone-surrogates", origin, when=is_torn)
        is_damaged = (is_wide and _MOJIBAKE.search(said)) or _CONTROL.search(said)
        self.add("damaged-text", origin, when=bool(is_damaged))
        self.lengths["prompt"].add(len(text(prompt)), origin)
        for answer in answers:
            self.lengths["answer"].add(len(text(answer)), origin)
        if self.held_out and (key := loose_key(prompt)) in self.held_out:
            self.overlap.add(key)
            self.add("overlap", origin, when=True)

    def repeated(self, seen: dict[int, int], keys: tuple[int, ...], origin: str) -> None:
        """Count a row whose keys were seen, unless a mixture only took the same row again."""
        key, place = hash(keys), hash(origin) if origin else self.rows
        self.add("duplicates", origin, when=seen.get(key, place) != place)
        seen.setdefault(key, place)

    def findings(self) -> list[Finding]:
        """Return one finding for each thing that was seen."""
        if not self.rows:
            return [Finding("error", "no-rows", 0, 0.0, "there is not a single row")]
        found = [self._finding(code) for code in self.counts]
        return found + [one for name, part in self.lengths.items() for one in part.findings(name)]

    def _finding(self, code: str) -> Finding:
        limit, said = _RULES[code]
        count, total = self.counts[code], self.rows
        if code == "overlap":
            count = sum(self.held_out[key] for key in self.overlap)
            total = self.held_out.total()
        share = count / total
        is_error = share >= limit and code not in self.tolerated
        level: Level = "error" if is_error else "warning"
        return Finding(level, code, count, share, said, tuple(self.examples[code]))


class _Lengths:
    """Lengths in characters, with the rows at both ends."""

    def __init__(self) -> None:
        self.all = array("I")
        self.longest: list[tuple[int, str]] = []
        self.shortest: list[tuple[int, str]] = []

    def add(self, length: int, origin: str) -> None:
        """Take one length; what is empty has a finding of its own."""
        if not length:
            return
        self.all.append(length)
        for kept, signed in ((self.longest, length), (self.shortest, -length)):
            put = heapq.heappush if len(kept) < EXAMPLES else heapq.heappushpop
            put(kept, (signed, origin))

    def findings(self, name: str) -> list[Finding]:
        """Note lengths more than four robust standard deviations off, on a logarithmic scale."""
        logs = [math.log(length) for length in self.all]
        if len(logs) < 20:
            return []
        middle = statistics.median(logs)
        spread = 1.4826 * statistics.median(abs(log - middle) for log in logs)
        far = 4 * max(spread, 0.2)
        found = []
        for word, sign, kept in (("long", 1, self.longest), ("short", -1, self.shortest)):
            limit = math.exp(middle + sign * far)
            count = sum(sign * length > sign * limit for length in self.all)
            where = [place for signed, place in sorted(kept, reverse=True) if signed > sign * limit]
            said = (
                f"{'over' if sign > 0 else 'under'} {limit:,.0f} characters, "
                f"where the median {name} has {math.exp(middle):,.0f}"
            )
            share = count / len(self.all)
            found.append(Finding("note", f"{word}-{name}s", count, share, said, tuple(where)))
        return [finding for finding in found if finding.count]


def _is_empty(answer: Turns) -> bool:
    return not any(turn.content.strip() or turn.extra for turn in answer)


def _alternate(prompt: Turns, answer: Turns) -> bool:
    """Say whether nobody speaks twice in a row, and the prompt leaves the word to the assistant."""
    roles = [turn.role for turn in (*prompt, *answer)]
    is_twice = any(a == b and a in ("user", "assistant") for a, b in itertools.pairwise(roles))
    return not is_twice and not (prompt and prompt[-1].role == "assistant")


def _key(turns: Turns) -> int:
    """Return a hash of who says what; white space around it does not count."""
    return _hash([turn.role + "\0" + turn.content.strip() + _extra(turn) for turn in turns])


def _extra(turn: Turn) -> str:
    return "\0" + json.dumps(turn.extra, sort_keys=True, default=str) if turn.extra else ""


def _hash(parts: list[str]) -> int:
    data = "\x1e".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())

"""Groups of answers as tokens, in portions under a token budget, in an order that a seed decides.

A group is a prompt with its answers: a pair has two, the chosen one first; an answer that is
judged alone is a group of one; a list has as many as it has.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.chat import Encoded
from melior.data.examples import Example
from melior.data.forest import Forest, plant
from melior.data.portions import even_portions, portions


@dataclass(frozen=True)
class Tokens:
    """One sequence, held in five bytes a token, seven where its answer is cut into steps."""

    tokens: array[int]
    mask: bytes
    n_prompt: int
    steps: array[int] = field(default_factory=lambda: array("H"))
    """Which step each scored token belongs to; nothing where the answer is one step."""

    @classmethod
    def of(cls, encoded: Encoded, rows: slice, steps: Sequence[int] = ()) -> Tokens:
        """Keep a stretch of an encoded sequence, with the steps of all its scored tokens."""
        start = rows.start or 0
        kept = encoded.tokens[rows]
        n_prompt = min(len(kept), encoded.n_prompt - start)
        mask = bytes(encoded.mask[rows])
        return cls(array("i", kept), mask, n_prompt, array("H", steps))

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)

    @cached_property
    def n_scored(self) -> int:
        """Count the scored tokens."""
        return self.mask.count(1)


@dataclass(frozen=True)
class TokenGroup:
    """A prompt's answers, ready for the model."""

    answers: tuple[Tokens, ...]
    scores: tuple[float, ...]
    margin: float = 0.0
    weight: float = 1.0
    subset: str = ""
    origin: str = ""
    share: float = 1.0
    """In which the better one of two answers is preferred."""
    prompt: bytes = b""
    """The prompt's key: a hash of its tokens before any were cut."""

    def __len__(self) -> int:
        """Length of the longest answer with its prompt."""
        return max(map(len, self.answers))


@dataclass
class Lengths:
    """What tokenising a data set showed; `too_long` names the rows that were left out."""

    origins: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    better: list[int] = field(default_factory=list)
    """Of the rows' best answers ..."""
    worse: list[int] = field(default_factory=list)
    """... and of their worst."""
    longest: list[int] = field(default_factory=list)
    """Of each row's longest answer with its prompt."""
    too_long: list[str] = field(default_factory=list)
    n_cut: int = 0

    def add(self, other: Lengths) -> None:
        """Put those of further rows behind these."""
        for name in ("origins", "prompt", "better", "worse", "longest", "too_long"):
            getattr(self, name).extend(getattr(other, name))
        self.n_cut += other.n_cut


def tokenise(
    encoded: Iterable[tuple[Example, Sequence[Encoded], Sequence[Sequence[int]]]],
    *,
    max_length: int,
    truncation_mode: str,
    opening: int = 1,
) -> tuple[list[TokenGroup], Lengths]:
    """Bring groups to at most `max_length` tokens and count what that took.

    Args:
        encoded: each example with its answers as tokens, and the steps of their scored tokens.
        max_length: of prompt and answer together.
        truncation_mode: `drop` leaves longer rows out; `keep_end` cuts the prompt's start, so that
            the longest answer fits; `keep_start` cuts the answers' ends, end token and all. A row
            in which nothing would be left of the prompt or of an answer is left out in any mode.
        opening: tokens of the prompt's end that `keep_end` never cuts; rows that need it cut are
            left out.

    Raises:
        ValueError: answers in steps are to lose their ends.
    """
    groups, lengths = [], Lengths()
    for example, sides, steps in encoded:
        if example.steps and truncation_mode == "keep_start":
            raise ValueError(
                f"{example.origin}: an answer in steps needs its end, which its score is of too;"
                " found truncation_mode keep_start; choose drop or keep_end"
            )
        _note(lengths, example, sides)
        rows = _kept(sides, max_length, truncation_mode, opening)
        if rows is None:
            lengths.too_long.append(example.origin)
            continue
        lengths.n_cut += rows != slice(0, None)
        answers = tuple(Tokens.of(s, rows, k) for s, k in zip(sides, steps, strict=True))
        # What is read beside the answers, such as another order of them, is not judged.
        scores = (*example.scores, *[math.nan] * (len(sides) - len(example.scores)))
        groups.append(
            TokenGroup(
                answers, scores, example.margin, example.weight, example.subset,
                example.origin, example.share, prompt_key(sides[0]),
            )
        )  # fmt: skip
    return groups, lengths


def prompt_key(whole: Encoded) -> bytes:
    """Return a key of a prompt as it was read, the same however it is cut for an answer's sake."""
    return blake2b(array("i", whole.tokens[: whole.n_prompt]).tobytes(), digest_size=16).digest()


def _note(lengths: Lengths, example: Example, sides: Sequence[Encoded]) -> None:
    said = [side.mask.count(True) for side in sides]
    best, worst = ends(example.scores)
    lengths.origins.append(example.origin)
    lengths.prompt.append(sides[0].n_prompt)
    if best >= 0:
        lengths.better.append(said[best])
    if worst >= 0:
        lengths.worse.append(said[worst])
    lengths.longest.append(max(len(side.tokens) for side in sides))


def _kept(sides: Sequence[Encoded], max_length: int, mode: str, opening: int) -> slice | None:
    longest, n_prompt = max(len(side.tokens) for side in sides), sides[0].n_prompt
    if longest <= max_length:
        return slice(0, None)
    if mode == "keep_end" and longest - max_length <= n_prompt - opening:
        return slice(longest - max_length, None)
    if mode == "keep_start" and n_prompt < max_length:
        return slice(0, max_length)
    return None


@dataclass(frozen=True)
class TokenValues:
    """One number for each scored token of a data set, answer after answer in their order."""

    values: Float[Tensor, " m"]
    lengths: tuple[tuple[int, ...], ...]
    """Scored tokens of each answer of each group."""

    @classmethod
    def zeros(cls, groups: Sequence[TokenGroup]) -> TokenValues:
        """Return the values of a reference that says nothing; they take no memory."""
        lengths = scored_lengths(groups)
        n = sum(map(sum, lengths))
        return cls(torch.zeros(1, dtype=torch.float32).expand(n), lengths)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(sum, self.lengths)))

    def of(self, members: Sequence[int]) -> Float[Tensor, " m"]:
        """Return the values of some groups, one after another."""
        parts = [self.values[self._ends[i] - sum(self.lengths[i]) : self._ends[i]] for i in members]
        return torch.cat(parts)


def scored_lengths(groups: Sequence[TokenGroup]) -> tuple[tuple[int, ...], ...]:
    """Count the scored tokens of each answer of each group."""
    return tuple(tuple(answer.n_scored for answer in group.answers) for group in groups)


@dataclass(frozen=True)
class Totals:
    """What is counted over a whole optimizer batch, for its parts to divide by."""

    groups: int
    better: int
    """Groups with a better answer, ..."""
    better_tokens: int
    """... and the scored tokens of these answers."""
    worse: int
    """Groups with a worse answer."""
    ordered: int
    """Groups with answers of different scores, of which one is preferred."""

    @classmethod
    def of(cls, groups: Sequence[TokenGroup]) -> Totals:
        """Count."""
        sides = [ends(group.scores) for group in groups]
        tokens = [
            group.answers[best].n_scored
            for group, (best, _) in zip(groups, sides, strict=True)
            if best >= 0
        ]
        ordered = [min(side) >= 0 and g.scores[side[0]] > g.scores[side[1]] and g.share != 0.5
                   for g, side in zip(groups, sides, strict=True)]  # fmt: skip
        worse = sum(worst >= 0 for _, worst in sides)
        return cls(len(groups), len(tokens), sum(tokens), worse, sum(ordered))


@dataclass(frozen=True)
class GroupBatch:
    """Some groups of an optimizer batch, as one forest; totals are of the whole batch."""

    forest: Forest
    members: Int[Tensor, "n k"]
    """Which sequence of the forest each answer is; -1 where a group has fewer."""
    steps: Int[Tensor, " m"]
    """Which step each scored token belongs to, sequence after sequence."""
    reference: Float[Tensor, " m"]
    """What the start model says of each scored token, in the same order."""
    scores: Float[Tensor, "n k"]
    """Of the answers; 0 where there is none."""
    margins: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    better: Float[Tensor, "n k"]
    """Each answer's share in the batch's average over the better answers, ..."""
    worse: Float[Tensor, "n k"]
    """... and over the worse ones."""
    shares: Float[Tensor, " n"]
    """In which the better one of two answers is preferred."""
    prompts: Int[Tensor, " n"]
    """The row of the forest in which each group's prompt ends, before its first answer."""
    origins: tuple[str, ...]
    totals: Totals
    """Counts over the whole optimizer batch."""
    progress: float = 1.0
    """Share of the run's steps that lie before the batch's; 1 where there is no run."""
    order: tuple[int, ...] = ()
    """Where each group stands in the optimizer batch, as one process would take it."""
    is_idle: bool = False
    """Computed only because other processes have a portion more: it counts for nothing."""


class GroupBatches:
    """All optimizer batches of a run, each a list of portions under the token budget.

    The order depends on the seed alone: `iterate(start)` goes on exactly where a run stopped. Of
    several processes that share the work each takes its own portions of the same batches, and all
    take as many.
    """

    def __init__(
        self,
        groups: Sequence[TokenGroup],
        reference: TokenValues,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not groups:
            raise ValueError("training needs at least one row; found none")
        self.groups = groups
        self.reference = reference
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.process = process
        self.processes = processes
        self.steps_per_epoch = ceil(len(groups) / batch_size)

    def iterate(self, total_steps: int, *, start: int = 0) -> Iterator[list[GroupBatch]]:
        """Yield the batches of steps `start` to `total_steps`."""
        for step in range(start, total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if step == start or batch == 0:
                shuffle = torch.Generator().manual_seed(self.seed + epoch)
                order = torch.randperm(len(self.groups), generator=shuffle).tolist()
            members = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [replace(part, progress=step / total_steps) for part in self.portions(members)]

    def portions(self, members: Sequence[int]) -> list[GroupBatch]:
        """Cut some groups into portions; one group alone may exceed the budget."""
        groups = [self.groups[i] for i in members]
        totals, answers = Totals.of(groups), [group.answers for group in groups]
        parts = portions(answers, self.max_tokens)
        order = {i: place for place, i in enumerate(i for part in parts for i in part)}
        if self.processes > 1:
            parts = even_portions(answers, self.max_tokens, self.processes)[self.process]
        shortest = members[max(order, key=order.__getitem__)]
        return [
            self._batch([members[i] for i in part], totals, tuple(order[i] for i in part))
            if part
            else replace(self._batch([shortest], totals), is_idle=True)
            for part in parts
        ]

    def _batch(
        self, members: Sequence[int], totals: Totals, order: tuple[int, ...] = ()
    ) -> GroupBatch:
        groups = [self.groups[i] for i in members]
        forest, places = plant_groups(groups)
        sides = [_sides(group, totals) for group in groups]
        return GroupBatch(
            forest=forest,
            members=places,
            steps=torch.cat([_steps(answer) for group in groups for answer in group.answers]),
            reference=self.reference.of(members),
            scores=_matrix([group.scores for group in groups]),
            margins=torch.tensor([group.margin for group in groups], dtype=torch.float64),
            weights=torch.tensor([group.weight for group in groups], dtype=torch.float64),
            better=_matrix([better for better, _ in sides]),
            worse=_matrix([worse for _, worse in sides]),
            shares=torch.tensor([group.share for group in groups], dtype=torch.float64),
            prompts=_prompt_ends(groups, forest, places),
            origins=tuple(group.origin for group in groups),
            totals=totals,
            order=order,
        )


def ends(scores: Sequence[float]) -> tuple[int, int]:
    """Return which answers are the best and the worst of a group, the first of equal ones.

    An answer that is judged alone, also beside a stranger's (a score that is nan), is only one of
    the two: good or bad. The other is then -1.
    """
    known = [i for i, score in enumerate(scores) if score == score]
    if len(known) == 1:
        return (known[0], -1) if scores[known[0]] > 0 else (-1, known[0])
    best = max(known, key=lambda i: scores[i])
    return best, min(known, key=lambda i: scores[i])


def _sides(group: TokenGroup, totals: Totals) -> tuple[list[float], list[float]]:
    """Return each answer's share in the averages over better and over worse answers."""
    best, worst = ends(group.scores)
    shares = [[0.0] * len(group.answers) for _ in range(2)]
    for share, place, total in zip(shares, (best, worst), (totals.better, totals.worse),
                                   strict=True):  # fmt: skip
        if place >= 0:
            share[place] = 1 / total
    return shares[0], shares[1]


def _prompt_ends(
    groups: Sequence[TokenGroup], forest: Forest, members: Int[Tensor, "n k"]
) -> Int[Tensor, " n"]:
    firsts = zip(groups, members[:, 0].tolist(), strict=True)
    rows = [forest.row(first, max(0, g.answers[0].n_prompt - 1)) for g, first in firsts]
    return torch.tensor(rows)


def _steps(answer: Tokens) -> Int[Tensor, " m"]:
    if answer.steps:
        return torch.tensor(answer.steps.tolist(), dtype=torch.long)
    return torch.zeros(answer.n_scored, dtype=torch.long)


def _matrix(rows: Sequence[Sequence[float]]) -> Float[Tensor, "n k"]:
    """Return rows of unlike length as a matrix, filled up with zeros."""
    widest = max(map(len, rows))
    filled = [[*row, *[0.0] * (widest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float64)


def plant_groups(groups: Sequence[TokenGroup]) -> tuple[Forest, Int[Tensor, "n k"]]:
    """Return one forest of all answers, and which of its sequences are whose; -1 fills up."""
    forest = plant([answer for group in groups for answer in group.answers])
    counts = [len(group.answers) for group in groups]
    ends = list(accumulate(counts))
    members = torch.full((len(groups), max(counts)), -1)
    for row, (count, end) in enumerate(zip(counts, ends, strict=True)):
        members[row, :count] = torch.arange(end - count, end)
    return forest, members

"""From files of rated answers to tokens and a matrix of ratings, before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.aspects import Range, check_range, named, objectives, parse_ranges, range_of
from melior.data.aspects import read_rated as read
from melior.data.batches import TokenGroup, Tokens, prompt_key
from melior.data.chat import ChatFormat, Encoded
from melior.data.files import read_groups
from melior.data.lint import Finding, lint_lengths
from melior.data.sources import content_hash, parse_source
from melior.losses.aspects import Scale, bin_centres
from melior.models.aspects import opening_length
from melior.options import DataOptions
from melior.records import Group
from melior.rewards.fitting import shortened
from melior.stages.data import CHUNK, Prepared


@dataclass(frozen=True)
class Rated:
    """Rated answers ready for the model, and what is to be said of them."""

    prepared: Prepared
    names: tuple[str, ...]
    """Of the objectives."""
    scales: tuple[Scale, ...]
    ratings: Float[Tensor, "n m"]
    """Of all answers, group by group, on the unit scale; nan where nobody rated."""

    @property
    def prompts(self) -> list[int]:
        """Which prompt each answer is to."""
        found = dict[bytes, int]()
        return [
            found.setdefault(group.prompt, len(found))
            for group in self.prepared.groups
            for _ in group.answers
        ]

    @property
    def is_constant(self) -> list[bool]:
        """Whether all ratings of an objective are the same."""
        columns = (column[~column.isnan()] for column in self.ratings.T)
        return [bool((own == own[:1]).all()) for own in columns]


def prepare_rated(
    sources: Sequence[str], chat: ChatFormat, options: DataOptions, *, scales: Sequence[str]
) -> Rated:
    """Read and tokenise rated answers.

    Args:
        sources: where they lie, with or without a name.
        chat: how conversations become tokens.
        options: which lengths are right.
        scales: `NAME=LOW:HIGH` of objectives whose range their ratings do not show.

    Raises:
        ValueError: a row cannot be read, a rating is off its scale, a scale is of no objective, no
            objective's ratings differ, or all answers are too long.
        FileNotFoundError: a source does not exist.
    """
    groups, given = list(_with_ratings(read(sources))), parse_ranges(scales)
    names = objectives(groups)
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"scales: must be of {', '.join(names)}; found {', '.join(unknown)}")
    ranges = {name: range_of(name, _values(groups, name), given) for name in names}
    for name, found in ranges.items():
        if not math.isfinite(found.high - found.low):
            raise ValueError(
                f"{', '.join(sources)}: {name!r} needs a scale of finite width; found ratings from"
                f" {found.low:g} to {found.high:g}"
            )
    for group in groups:
        check_range(group, ranges)
    places = [named(source)[1] for source in sources]
    prepared, kept = _tokenised(groups, places, chat, options)
    made = tuple(_scale(ranges[name]) for name in names)
    rows = [
        [groups[i].candidates[k].aspects.get(name, math.nan) for name in names] for i, k in kept
    ]
    own = torch.tensor(rows, dtype=torch.float64)
    unit = torch.stack([scale.unit(own[:, j]) for j, scale in enumerate(made)], -1)
    counts = {name: int((~own[:, j].isnan()).sum()) for j, name in enumerate(names)}
    prepared.record["objectives"] = {
        name: {"ratings": counts[name], **asdict(ranges[name])} for name in names
    }
    return Rated(prepared, names, made, unit)


def prepare_reference(
    sources: Sequence[str], chat: ChatFormat, options: DataOptions, *, seed: int
) -> Prepared:
    """Read and tokenise answers that need no ratings: pairs, groups or answers alone."""
    groups = [group for group in read_groups(sources, seed=seed) if group.candidates]
    return _tokenised(groups, sources, chat, options)[0]


def _with_ratings(groups: Iterable[Group]) -> Iterator[Group]:
    """Leave out answers that nobody rated, which teach nothing."""
    for group in groups:
        rated = tuple(one for one in group.candidates if one.aspects)
        if rated:
            yield replace(group, candidates=rated)


def _values(groups: Iterable[Group], name: str) -> list[float]:
    rated = (one.aspects for group in groups for one in group.candidates)
    return [aspects[name] for aspects in rated if name in aspects]


def _scale(found: Range) -> Scale:
    """Return the map to the unit interval: the centres of bins, or the ends to the ends."""
    if found.is_whole:
        return bin_centres(found.low, round(found.high - found.low) + 1)
    return Scale(found.low, found.high - found.low or 1.0)


@dataclass
class _Fitting:
    """Brings answers to their maximum length, and counts what that took."""

    options: DataOptions
    opening: int
    """Tokens of a prompt's end, which are never cut."""
    origins: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Of prompt and answer."""
    left_out: list[str] = field(default_factory=list)
    n_cut: int = 0

    def fit(self, whole: Encoded, origin: str) -> Encoded | None:
        """Return an answer that fits, the start of its prompt cut if need be and allowed."""
        limit = self.options.max_length
        self.origins.append(origin)
        self.lengths.append(len(whole.tokens))
        is_long = len(whole.tokens) > limit
        is_dropped = is_long and self.options.truncation_mode == "drop"
        fitted = None if is_dropped else shortened(whole, limit, self.opening)
        if fitted is None:
            self.left_out.append(origin)
        self.n_cut += is_long and fitted is not None
        return fitted


def _tokenised(
    groups: Sequence[Group], sources: Sequence[str], chat: ChatFormat, options: DataOptions
) -> tuple[Prepared, list[tuple[int, int]]]:
    """Return answers as tokens, and of which group and candidate each is that was kept."""
    fitting, found = _Fitting(options, opening_length(chat)), list[TokenGroup]()
    kept: list[tuple[int, int]] = []
    for i, (group, sides) in enumerate(_encoded(groups, chat)):
        fitted = {k: fitting.fit(side, group.origin) for k, side in enumerate(sides)}
        answers = {k: Tokens.of(one, slice(0, None)) for k, one in fitted.items() if one}
        kept += [(i, k) for k in answers]
        if answers:
            zeros = (0.0,) * len(answers)
            key = prompt_key(sides[0])
            found.append(
                TokenGroup(tuple(answers.values()), zeros, origin=group.origin, prompt=key)
            )
    if not found:
        raise ValueError(
            f"{', '.join(sources)}: needs answers of at most max_length {options.max_length} tokens"
            f" with their prompts; found {len(fitting.lengths)}, the shortest of"
            f" {min(fitting.lengths, default=0)}; raise --max-length"
        )
    record = _record(groups, sources, chat) | {
        "findings": [asdict(finding) for finding in _too_long(fitting)],
        "prompts": len(found),
        "left_out": fitting.left_out,
        "cut": fitting.n_cut,
    }
    prepared = Prepared("answers", found, _too_long(fitting), [], record["sha256"], record)
    return prepared, kept


def _encoded(groups: Sequence[Group], chat: ChatFormat) -> Iterator[tuple[Group, list[Encoded]]]:
    """Yield groups with their answers as tokens, many encoded at once."""
    for start in range(0, len(groups), CHUNK):
        part = groups[start : start + CHUNK]
        rows = [(group, one.response) for group in part for one in group.candidates]
        encoded = iter(
            chat.encode_many(
                [group.prompt for group, _ in rows],
                [response for _, response in rows],
                origins=[group.origin for group, _ in rows],
            )
        )
        for group in part:
            yield group, list(islice(encoded, len(group.candidates)))


def _too_long(fitting: _Fitting) -> list[Finding]:
    options = fitting.options
    return lint_lengths(
        zip(fitting.origins, fitting.lengths, strict=True),
        max_length=options.max_length,
        max_long_share=options.max_long_share,
    )


def _record(groups: Sequence[Group], sources: Sequence[str], chat: ChatFormat) -> dict[str, Any]:
    """Return what is to be said of the data whatever its lengths, as in a run's `data.json`."""
    paths = [parse_source(text).path for text in sources]
    answers = [group.origin for group in groups for _ in group.candidates]

    def count(path: str) -> int:
        """Count the answers of a source: origins begin with its path, or a file's below it."""
        return sum(origin.startswith(str(Path(path).expanduser())) for origin in answers)

    return {
        "rows": len(answers),
        "chat": {"template": chat.name, "hash": chat.hash},
        "sources": [
            {"path": path, "rows": count(path), "sha256": content_hash(text)}
            for path, text in zip(paths, sources, strict=True)
        ],
        "sha256": content_hash(list(sources)),
    }

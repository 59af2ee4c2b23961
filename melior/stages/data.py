"""From preference files to checked, tokenised groups, before any weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from melior.data.batches import TokenGroup
from melior.data.chat import ChatFormat
from melior.data.examples import Data, read_examples
from melior.data.lint import Finding
from melior.data.sources import content_hash
from melior.data.split import split_by_prompt
from melior.options import DataOptions, LoopOptions
from melior.records import Turns
from melior.stages.encoding import CHUNK, Encode, answer_by_answer, as_it_was_said
from melior.stages.reading import Asked, Reading
from melior.training.checkpoint import refuse_changes
from melior.training.jobs import n_unasked
from melior.training.run import write_json

__all__ = [
    "CHUNK",
    "Encode",
    "Prepared",
    "answer_by_answer",
    "as_it_was_said",
    "hold_out",
    "prepare",
    "write_data",
]


@dataclass(frozen=True)
class Prepared:
    """A data set ready for the model, and what is to be said of it."""

    data: Data
    groups: list[TokenGroup]
    findings: list[Finding]
    first_prompts: list[Turns]
    """Of the first rows that are used and leave room for an answer, for samples; each once."""
    sha256: str
    record: dict[str, Any]
    """As in a run's `data.json`."""

    def refuse_errors(self, *, allowed: bool) -> None:
        """Stop at findings that are errors.

        Raises:
            ValueError: naming each, unless they are allowed.
        """
        errors = [finding for finding in self.findings if finding.level == "error"]
        if allowed or not errors:
            return
        said = "; ".join(
            f"{error.count} rows ({error.share:.1%}): {error.text}"
            + (f" (first {error.examples[0]})" if error.examples else "")
            for error in errors
        )
        raise ValueError(f"data: {said}; mend the data, or add --allow-lint-errors")

    def refuse_beyond(self, positions: int) -> None:
        """Stop at rows that the model has no positions for.

        Raises:
            ValueError: naming the first.
        """
        for group in self.groups:
            if len(group) > positions:
                raise ValueError(
                    f"{group.origin}: max_length must be at most the {positions} positions that the"
                    f" model has; found a row of {len(group)} tokens"
                )


def write_data(folder: Path, parts: Mapping[str, Prepared], loop: LoopOptions) -> None:
    """Write what a run learns from into its `data.json`.

    Raises:
        ValueError: it goes on from a checkpoint with other data; the file is as it was.
    """
    path, is_begun = folder / "data.json", any((folder / "checkpoints").glob("step-*"))
    if loop.resume and not loop.allow_changes and is_begun and path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        was = {f"{name} data": part["sha256"] for name, part in known.items()}
        now = {f"{name} data": part.sha256 for name, part in parts.items()}
        refuse_changes(was, now, where=folder)
    write_json(path, {name: part.record for name, part in parts.items()})


def hold_out(
    groups: Sequence[TokenGroup], share: float, *, seed: int
) -> tuple[list[TokenGroup], list[TokenGroup]]:
    """Hold out a share of the prompts with all their rows, where there are two prompts or more."""
    if not share or len({group.prompt for group in groups}) < 2:
        return list(groups), []
    return split_by_prompt(groups, share=share, seed=seed)


def prepare(
    sources: Sequence[str],
    chat: ChatFormat,
    options: DataOptions,
    *,
    data: Data = "pairs",
    has_strangers: bool = False,
    encode: Encode = answer_by_answer,
    tolerated: Collection[str] = (),
    seed: int,
    held_out: Sequence[str] = (),
    longest_prompt: int = 2**31,
    opening: int = 1,
    processes: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Read, check and tokenise what is learned from, or judged on.

    Args:
        sources: where it lies.
        chat: how conversations become tokens.
        options: which lengths are right.
        data: what the rows hold.
        has_strangers: put another prompt's answer beside each.
        encode: how answers become tokens.
        tolerated: codes of findings that are no errors.
        seed: of mixtures.
        held_out: sources whose prompts must not be among these.
        longest_prompt: of those that are put to the model.
        opening: tokens of a prompt's end that are never cut.
        processes: how many make tokens of a large file; what comes out does not depend on it. None
            is as many as may begin unasked: in a program that is not `melior` one, this.
        on_progress: is told how many rows are done.

    Raises:
        ValueError: a row cannot be read, or all are too long.
        FileNotFoundError: a source does not exist.
    """
    asked = Asked(
        tuple(sources), data, options, encode, has_strangers=has_strangers, opening=opening,
        seed=seed, held_out=tuple(held_out), tolerated=tuple(sorted(tolerated)),
    )  # fmt: skip
    sha256 = content_hash(asked.sources)
    several = n_unasked() if processes is None else processes
    groups, findings, record = Reading(chat, asked, sha256, on_progress, several).found()
    short = (group.origin for group in groups if group.answers[0].n_prompt <= longest_prompt)
    first = set(islice(short, 64))
    rows = (one for one in read_examples(data, sources, seed=seed) if one.origin in first)
    prompts = list(dict.fromkeys(row.prompt for row in islice(rows, len(first))))
    return Prepared(data, groups, findings, prompts, sha256, record)

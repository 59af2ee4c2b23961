"""What a round asks and how it is answered: prompts that no other round has, k answers to each.

Answers go to the disk as they are drawn, and a run that was stopped goes on with the same ones.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

from melior.data.chat import ChatFormat
from melior.data.files import read_prompts, write_groups
from melior.data.growing import growing, whole_rows
from melior.models.language import LanguageModel
from melior.models.loading import load
from melior.ops import generator
from melior.options import ModelOptions, Sampling
from melior.records import Candidate, Group, Turns
from melior.sampling.candidates import candidates
from melior.sampling.server import server_candidates
from melior.stages.online.options import PromptOptions, ProposalOptions, ServingOptions
from melior.stages.online.served import prove, refresh, server_of
from melior.training.hooks import counted

PROMPTS, CANDIDATES = "prompts.jsonl", "candidates.jsonl"
"""In a round's folder."""
CHUNK = 32
"""Prompts answered together. A run that was stopped draws its last chunk anew, so that every answer
is computed in the same company as without the stop: up to rounding is not enough for equal bits."""


NOWHERE = ServingOptions()


@dataclass(frozen=True)
class Asked:
    """All that a run will ask."""

    rounds: list[list[Group]]
    held_out: list[Group]
    counts: dict[str, int]
    """Of prompts that were left out, by reason."""


def seed_of(*parts: object) -> int:
    """Return the seed of one draw of a run; different parts give unrelated ones."""
    said = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:7], "big")


def divide(options: PromptOptions, chat: ChatFormat, *, longest: int, seed: int) -> Asked:
    """Draw each round's prompts and the held-out ones: all different, in an order by seed.

    Args:
        options: where prompts lie, and how many are wanted.
        chat: how they become tokens.
        longest: tokens that leave room for an answer; longer prompts are left out.
        seed: of the order.

    Raises:
        ValueError: there are too few.
    """
    counts = {"repeated": 0, "held out": 0, "too long": 0}
    fitting = partial(_fitting, chat=chat, longest=longest, counts=counts)
    held_out = _first(fitting(_distinct(options.eval_prompts, counts)), options.n_eval_prompts)
    apart = {group.prompt for group in held_out}
    everything = _distinct(options.prompts, counts)
    pool = [group for group in everything if group.prompt not in apart]
    counts["held out"] = len(everything) - len(pool)
    random.Random(seed).shuffle(pool)
    rest = fitting(pool)
    if not options.eval_prompts:
        held_out = _first(rest, options.n_eval_prompts)
    wanted = options.rounds * (options.n_prompts or 1)
    left = _first(rest, wanted if options.n_prompts else len(pool))
    if len(left) < wanted or len(held_out) < 2:
        raise ValueError(_too_few(options, len(left), len(held_out), counts))
    return Asked(_shares(left, options.rounds), held_out, counts)


def propose(
    here: Path,
    policies: Sequence[ModelOptions],
    options: ProposalOptions,
    serving: ServingOptions = NOWHERE,
    *,
    seed: int,
) -> None:
    """Answer a round's prompts, as far as that is still to do.

    Args:
        here: the round's folder, which holds the prompts.
        policies: what answered the rounds so far, and last what is to answer this one.
        options: how many answers, and how they are drawn.
        serving: where it is served, if it does not answer here.
        seed: of the round's answers.

    Raises:
        ValueError: the server cannot be reached, has other weights, or refuses; what it answered
            is kept.
    """
    if serving.server:
        _propose_from_server(here, policies, options, serving, seed=seed)
        return
    prompts = list(read_prompts(here / PROMPTS))
    done = _answered(here, len(prompts), CHUNK)
    if done == len(prompts):
        return
    model = load(policies[-1], trainable=False)

    def rest() -> Iterator[Group]:
        for first in range(done, len(prompts), CHUNK):
            own = seed_of(seed, first)
            yield from answers(model, prompts[first : first + CHUNK], options, seed=own)

    _grow(here, rest(), done, len(prompts))


def answers(
    model: LanguageModel, prompts: Sequence[Group], options: ProposalOptions, *, seed: int
) -> Iterator[Group]:
    """Yield each prompt with its answers, those of the first temperature first."""
    shares = [
        candidates(model, prompts, sampling, generator=generator(seed_of(seed, place)))
        for place, sampling in enumerate(options.samplings())
    ]
    return _joined([list(share) for share in shares], options.samplings())


def write_prompts(here: Path, prompts: Iterable[Group]) -> None:
    """Leave a round's prompts in its folder, unless they are there."""
    here.mkdir(parents=True, exist_ok=True)
    if not (here / PROMPTS).exists():
        write_groups(here / PROMPTS, prompts)


def _propose_from_server(
    here: Path,
    policies: Sequence[ModelOptions],
    options: ProposalOptions,
    serving: ServingOptions,
    *,
    seed: int,
) -> None:
    prompts = list(read_prompts(here / PROMPTS))
    done = _answered(here, len(prompts), 1)
    if done == len(prompts):
        return
    refresh(serving, policies[-1])
    server, tolerance = server_of(serving), serving.stale_tolerance
    prove(here, server, prompts, policies[-2:], tolerance=tolerance, seed=seed_of(seed, "proof"))
    shares = [
        server_candidates(server, prompts, sampling, seed=seed_of(seed, place), start=done)
        for place, sampling in enumerate(options.samplings())
    ]
    _grow(here, _joined(shares, options.samplings()), done, len(prompts))


def _answered(here: Path, n_prompts: int, chunk: int) -> int:
    """Return how many prompts have answers that are kept."""
    path = here / CANDIDATES
    n = sum(1 for _ in whole_rows(path)) if path.exists() else 0
    return n if n == n_prompts else n // chunk * chunk


def _grow(here: Path, groups: Iterator[Group], done: int, total: int) -> None:
    with (
        growing(here / CANDIDATES, start=done) as put,
        counted("prompts answered", total) as progress,
    ):
        for n, group in enumerate(groups, done + 1):
            put(group)
            progress(n)


def _joined(shares: Sequence[Iterable[Group]], samplings: Sequence[Sampling]) -> Iterator[Group]:
    for parts in zip(*shares, strict=True):
        both = zip(parts, samplings, strict=True)
        found = [_at(one, how.temperature) for part, how in both for one in part.candidates]
        yield replace(parts[0], candidates=tuple(found))


def _at(candidate: Candidate, temperature: float) -> Candidate:
    return replace(candidate, facts={**candidate.facts, "temperature": temperature})


def _distinct(sources: Sequence[str], counts: dict[str, int]) -> list[Group]:
    """Return the prompts of sources, each once."""
    everything = list(read_prompts(sources)) if sources else []
    found: dict[Turns, Group] = {}
    for group in everything:
        found.setdefault(group.prompt, group)
    counts["repeated"] += len(everything) - len(found)
    return list(found.values())


def _fitting(
    groups: Iterable[Group], chat: ChatFormat, longest: int, counts: dict[str, int]
) -> Iterator[Group]:
    """Yield prompts that leave room for an answer."""
    for group in groups:
        try:
            n = len(chat.prompt_tokens(group.prompt))
        except ValueError as error:
            raise ValueError(f"{group.origin}: {error}") from error
        if n <= longest:
            yield group
        else:
            counts["too long"] += 1


def _shares(groups: Sequence[Group], n: int) -> list[list[Group]]:
    """Divide evenly, without a remainder: the first shares may have one more."""
    ends = [len(groups) * i // n for i in range(n + 1)]
    return [list(groups[a:b]) for a, b in pairwise(ends)]


def _too_few(options: PromptOptions, found: int, held_out: int, counts: Mapping[str, int]) -> str:
    sources = ", ".join((*options.prompts, *options.eval_prompts))
    left_out = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
    return (
        f"{sources}: {options.rounds} rounds of {options.n_prompts or 'some'} prompts and 2 or more"
        f" held-out ones are needed, all different; found {found} and {held_out}"
        + (f" ({left_out})" if left_out else "")
        + "; lower --n-prompts, --rounds or --n-eval-prompts, or give more prompts"
    )


def _first(groups: Iterator[Group], n: int) -> list[Group]:
    return list(islice(groups, n))

"""What a round asks and how it is answered: prompts that no other round has, k answers to each.

Answers go to the disk as they are drawn, and a run that was stopped goes on with the same ones.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path

from melior.data.chat import ChatFormat
from melior.data.files import read_any, read_prompts, write_groups
from melior.data.growing import growing, whole_rows
from melior.data.lint import loose_key
from melior.models.language import LanguageModel
from melior.models.loading import load_to_answer
from melior.ops import generator
from melior.options import ModelOptions, Sampling
from melior.records import Candidate, Group
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
NOTHING: Mapping[int, list[Group]] = {}


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


def divide(
    options: PromptOptions,
    chat: ChatFormat,
    *,
    longest: int,
    seed: int,
    fewest: int = 2,
    apart: Sequence[str] = (),
    earlier: Mapping[int, list[Group]] = NOTHING,
) -> Asked:
    """Draw each round's prompts and the held-out ones: all different, in an order by seed.

    Prompts that differ in case and white space only are one.

    Args:
        options: where prompts lie, and how many are wanted.
        chat: how they become tokens.
        longest: tokens that leave room for an answer; longer prompts are left out.
        seed: of the order.
        fewest: held-out prompts that are needed; with 0 none are set apart.
        apart: other held-out data, whose prompts are left out.
        earlier: what rounds have asked already, by their numbers, 0 for the held-out prompts. They
            keep it, and the others get what is left: just what they would have got at once.

    Raises:
        ValueError: there are too few.
    """
    counts = {"repeated": 0, "held out": 0, "too long": 0}
    fitting = partial(_fitting, chat=chat, longest=longest, counts=counts)
    n_held_out = options.n_eval_prompts if fewest else 0
    held_out = _first(fitting(_distinct(options.eval_prompts, counts)), n_held_out)
    known = {loose_key(one.prompt) for one in (*held_out, *(read_any(apart) if apart else ()))}
    rest = fitting(_others(options.prompts, known, counts, seed=seed))
    if not options.eval_prompts:
        held_out = _first(rest, n_held_out)
    held_out = earlier.get(0, held_out)
    begun = [earlier[n] for n in range(1, options.rounds + 1) if n in earlier]
    n_new = options.rounds - len(begun)
    wanted = n_new * (options.n_prompts or 1)
    left = _first(_unasked(rest, earlier), wanted if options.n_prompts else None)
    if len(left) < wanted or len(held_out) < fewest:
        found = f"{len(left)} and {len(held_out)}" if fewest else str(len(left))
        counts["asked in earlier rounds"] = sum(map(len, begun))
        raise ValueError(_too_few(options, found, counts, fewest=fewest))
    return Asked([*begun, *_shares(left, n_new)], held_out, counts)


def asked_before(out: Path) -> dict[int, list[Group]]:
    """Return what the rounds in a run folder have asked, by their numbers."""
    places = {
        path.parent.name.removeprefix("round-"): path for path in out.glob(f"round-*/{PROMPTS}")
    }
    return {int(n): list(read_prompts(path)) for n, path in places.items() if n.isdecimal()}


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
    model = load_to_answer(policies[-1])

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
    found: dict[int, Group] = {}
    for group in everything:
        found.setdefault(loose_key(group.prompt), group)
    counts["repeated"] += len(everything) - len(found)
    return list(found.values())


def _others(
    sources: Sequence[str], held_out: Collection[int], counts: dict[str, int], *, seed: int
) -> list[Group]:
    """Return the prompts of sources that are not held out, each once, in an order by seed."""
    everything = _distinct(sources, counts)
    found = [group for group in everything if loose_key(group.prompt) not in held_out]
    counts["held out"] = len(everything) - len(found)
    random.Random(seed).shuffle(found)
    return found


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


def _unasked(rest: Iterator[Group], earlier: Mapping[int, list[Group]]) -> Iterator[Group]:
    """Yield what no earlier round has asked.

    Of a run that goes on as it began, those are the first of the rest; they are passed by even if
    nothing is wanted behind them, so that the same prompts are counted as too long.
    """
    asked = {loose_key(group.prompt) for groups in earlier.values() for group in groups}
    passed = _first(rest, sum(len(groups) for number, groups in earlier.items() if number))
    return (one for one in chain(passed, rest) if loose_key(one.prompt) not in asked)


def _shares(groups: Sequence[Group], n: int) -> list[list[Group]]:
    """Divide evenly, without a remainder: the first shares may have one more.

    So the shares behind the first ones are those of what the first ones leave.
    """
    size, more = divmod(len(groups), n or 1)
    ends = [size * i + min(i, more) for i in range(n + 1)]
    return [list(groups[a:b]) for a, b in pairwise(ends)]


def _too_few(options: PromptOptions, found: str, counts: Mapping[str, int], *, fewest: int) -> str:
    sources = ", ".join((*options.prompts, *options.eval_prompts))
    left_out = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
    more = f" and {fewest} or more held-out ones" if fewest else ""
    way_out = "--n-prompts, --rounds or --n-eval-prompts" if fewest else "--n-prompts or --rounds"
    return (
        f"{sources}: {options.rounds} rounds of {options.n_prompts or 'some'} prompts{more} are"
        f" needed, all different; found {found}"
        + (f" ({left_out})" if left_out else "")
        + f"; lower {way_out}, or give more prompts"
    )


def _first(groups: Iterator[Group], n: int | None) -> list[Group]:
    return list(islice(groups, n))

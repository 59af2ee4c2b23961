"""Examples -> groups of tokens, chunk after chunk, by this process or by several."""

from __future__ import annotations

import gc
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

from melior.data.batches import Lengths, TokenGroup, tokenise
from melior.data.chat import ChatFormat, Encoded
from melior.data.examples import Example
from melior.data.steps import token_steps
from melior.options import DataOptions
from melior.training.jobs import call_processes, end_with_parent, process_context

CHUNK = 512
"""Rows tokenised at once."""
MANY = 20_000
"""Rows from which others are called to help; they take seconds to begin, ..."""
ALONE = 30_000
"""... so that this process does so many by itself."""
AHEAD = 3
"""Chunks for each other process that lie ready for it: they bound the memory."""
Encode = Callable[[ChatFormat, Sequence[Example]], list[list[Encoded]]]
"""How the answers of examples become tokens, a list of them for each example."""


def answer_by_answer(chat: ChatFormat, examples: Sequence[Example]) -> list[list[Encoded]]:
    """Encode each answer behind its prompt."""
    prompts = [example.prompt for example in examples for _ in example.answers]
    answers = [answer for example in examples for answer in example.answers]
    origins = [example.origin for example in examples for _ in example.answers]
    encoded = iter(chat.encode_many(prompts, answers, origins=origins))
    return [list(islice(encoded, len(example.answers))) for example in examples]


def as_it_was_said(chat: ChatFormat, examples: Sequence[Example]) -> list[list[Encoded]]:
    """Encode each answer behind its prompt, those that were cut off without an end token.

    Whoever gave them did not end there, and must not learn to, or that it would have been worse.
    """
    found = answer_by_answer(chat, examples)
    for example, sides in zip(examples, found, strict=True):
        for place, is_cut in enumerate(example.cut_off):
            whole = sides[place]
            if is_cut and sum(whole.mask) > 1:
                sides[place] = Encoded(whole.tokens[:-1], whole.mask[:-1], whole.n_prompt)
    return found


KNOWN = (answer_by_answer, as_it_was_said)
"""Ways that depend on nothing but the examples and the chat format."""


@dataclass(frozen=True)
class Work:
    """How examples become groups; see `batches.tokenise`."""

    encode: Encode
    max_length: int
    truncation_mode: str
    opening: int

    @classmethod
    def of(cls, encode: Encode, options: DataOptions, opening: int) -> Work:
        """Take what is asked for from a run's options."""
        return cls(encode, options.max_length, options.truncation_mode, opening)


@dataclass(frozen=True)
class Made:
    """A chunk's groups, their lengths, and what the chat format met on the way."""

    groups: list[TokenGroup]
    lengths: Lengths
    merges: int
    controls: int


def made(
    chat: ChatFormat,
    examples: Iterable[Example],
    work: Work,
    on_progress: Callable[[int], None],
    *,
    processes: int,
) -> tuple[list[TokenGroup], Lengths]:
    """Return the groups of all examples, which do not depend on how many processes make them.

    Args:
        chat: how conversations become tokens; what it counts is counted for all.
        examples: read by this process alone, in their order.
        work: how they become groups.
        on_progress: is told how many rows are done.
        processes: how many make tokens, with this one, once there are more rows than it does alone.

    Raises:
        ValueError: the first row that cannot be encoded, or a process was killed.
    """
    groups, lengths = list[TokenGroup](), Lengths()
    with _young_garbage_only():
        for part in _parts(chat, work, _chunks(examples), processes):
            groups += part.groups
            lengths.add(part.lengths)
            chat.n_boundary_merges += part.merges
            chat.n_control_texts += part.controls
            on_progress(len(lengths.longest))
    return groups, lengths


def _parts(
    chat: ChatFormat, work: Work, chunks: Iterator[list[Example]], processes: int
) -> Iterator[Made]:
    """Yield what each chunk becomes, in their order."""
    if processes > 1:
        yield from (_made(chat, work, chunk) for chunk in islice(chunks, MANY // CHUNK))
        rest = islice(chunks, (ALONE - MANY) // CHUNK)
        for place, chunk in enumerate(rest):
            if not place:
                call_processes()
            yield _made(chat, work, chunk)
        for chunk in islice(chunks, 1):
            yield from _by_several(chat, work, chain([chunk], chunks), processes)
    yield from (_made(chat, work, chunk) for chunk in chunks)


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    rows = iter(examples)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _made(chat: ChatFormat, work: Work, chunk: Sequence[Example]) -> Made:
    """Make groups; what the format counts is left as it was, for whoever takes them to count."""
    met = chat.n_boundary_merges, chat.n_control_texts
    encoded = zip(chunk, work.encode(chat, chunk), strict=True)
    groups, lengths = tokenise(
        ((example, sides, _steps(chat, example, sides)) for example, sides in encoded),
        max_length=work.max_length,
        truncation_mode=work.truncation_mode,
        opening=work.opening,
    )
    merges, controls = chat.n_boundary_merges - met[0], chat.n_control_texts - met[1]
    chat.n_boundary_merges, chat.n_control_texts = met
    return Made(groups, lengths, merges, controls)


Waiting = deque[tuple[str, Future[Made]]]
"""The first row of each chunk that was dealt and not yet taken back, and what becomes of it."""


def _by_several(
    chat: ChatFormat, work: Work, chunks: Iterator[list[Example]], processes: int
) -> Iterator[Made]:
    """Deal chunks, and do here what the others have no room for."""
    waiting, n_others = Waiting(), processes - 1
    pool = ProcessPoolExecutor(n_others, process_context(), _begin, (chat, work))
    try:
        for chunk in _behind(chunks, waiting):
            has_room = sum(not future.done() for _, future in waiting) < AHEAD * n_others
            future = _sent(pool, chunk) if has_room else _here(chat, work, chunk)
            waiting.append((chunk[0].origin, future))
            while waiting and waiting[0][1].done():
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _behind(chunks: Iterator[list[Example]], waiting: Waiting) -> Iterator[list[Example]]:
    """Pass chunks on; before a row that cannot be read, complain of one that cannot be encoded."""
    try:
        yield from chunks
    except (ValueError, OSError):
        for origin, future in waiting:
            _result(origin, future)
        raise


def _sent(pool: ProcessPoolExecutor, chunk: list[Example]) -> Future[Made]:
    try:
        return pool.submit(_there, chunk)
    except BrokenProcessPool as error:  # is told of where its rows are waited for
        return _failed(error)


def _here(chat: ChatFormat, work: Work, chunk: list[Example]) -> Future[Made]:
    done = Future[Made]()
    try:
        done.set_result(_made(chat, work, chunk))
    except ValueError as error:  # is told of when the rows before it are known to be good
        return _failed(error)
    return done


def _failed(error: Exception) -> Future[Made]:
    failed = Future[Made]()
    failed.set_exception(error)
    return failed


def _result(origin: str, future: Future[Made]) -> Made:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"{origin}: a process that made tokens of the rows from here on was killed; most often"
            " memory ran out: make room and start again, or let fewer cores work (taskset)"
        ) from error


_own: list[tuple[ChatFormat, Work]] = []
"""What a process of the pool was begun with."""


def _begin(chat: ChatFormat, work: Work) -> None:
    """Run first in a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asked, who ends this
    threading.Thread(target=end_with_parent, daemon=True).start()
    gc.freeze()
    _own.append((chat, work))


def _there(chunk: list[Example]) -> Made:
    return _made(*_own[0], chunk)


@contextmanager
def _young_garbage_only() -> Iterator[None]:
    """Look for garbage among the youngest objects only: what is kept of rows is none.

    Searching all that has been kept, again and again, took a fifth of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 1 << 30, 1 << 30)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _steps(chat: ChatFormat, example: Example, sides: Sequence[Encoded]) -> list[list[int]]:
    """Return the step of each scored token of each answer; nothing where none is cut."""
    if not example.steps:
        return [[] for _ in sides]
    found = []
    for side, steps in zip(sides, example.steps, strict=True):
        scored = [t for t, is_scored in zip(side.tokens, side.mask, strict=True) if is_scored]
        try:
            found.append(token_steps(chat.pieces(scored), steps))
        except ValueError as error:
            said = "as the chat template writes an answer,"
            raise ValueError(f"{example.origin}: {said} {error}") from error
    return found

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
from melior.training.jobs import end_with_parent, process_context

CHUNK = 512
"""Rows tokenised at once."""
ALONE = 20_000
"""Rows that one process reads by itself: others take seconds to begin."""
AHEAD = 3
"""Chunks for each process that lie ready for it or wait to be taken: they bound the memory."""
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
        processes: how many make tokens, once there are more rows than one does alone.

    Raises:
        ValueError: the first row that cannot be encoded, or a process was killed.
    """
    chunks = _chunks(examples)
    alone = ALONE // CHUNK if processes > 1 else None
    here = (_made(chat, work, chunk) for chunk in islice(chunks, alone))
    there = _by_several(chat, work, chunks, processes) if processes > 1 else ()
    groups, lengths = list[TokenGroup](), Lengths()
    with _young_garbage_only():
        for part in chain(here, there):
            groups += part.groups
            lengths.add(part.lengths)
            on_progress(len(lengths.longest))
    return groups, lengths


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    rows = iter(examples)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _made(chat: ChatFormat, work: Work, chunk: Sequence[Example]) -> Made:
    met = chat.n_boundary_merges, chat.n_control_texts
    encoded = zip(chunk, work.encode(chat, chunk), strict=True)
    groups, lengths = tokenise(
        ((example, sides, _steps(chat, example, sides)) for example, sides in encoded),
        max_length=work.max_length,
        truncation_mode=work.truncation_mode,
        opening=work.opening,
    )
    merges, controls = chat.n_boundary_merges - met[0], chat.n_control_texts - met[1]
    return Made(groups, lengths, merges, controls)


def _by_several(
    chat: ChatFormat, work: Work, chunks: Iterator[list[Example]], processes: int
) -> Iterator[Made]:
    """Deal chunks to processes and yield what they make in the order of the rows."""
    first = next(chunks, None)
    if first is None:
        return
    waiting = deque[tuple[str, Future[Made]]]()
    pool = ProcessPoolExecutor(processes, process_context(), _begin, (chat, work))
    try:
        for chunk in _behind(chain([first], chunks), waiting):
            waiting.append((chunk[0].origin, _sent(pool, chunk)))
            if len(waiting) == AHEAD * processes:
                yield _taken(chat, *waiting.popleft())
        while waiting:
            yield _taken(chat, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _behind(
    chunks: Iterator[list[Example]], waiting: deque[tuple[str, Future[Made]]]
) -> Iterator[list[Example]]:
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
    except BrokenProcessPool as error:  # is told where its rows are waited for
        lost = Future[Made]()
        lost.set_exception(error)
        return lost


def _taken(chat: ChatFormat, origin: str, future: Future[Made]) -> Made:
    part = _result(origin, future)
    chat.n_boundary_merges += part.merges
    chat.n_control_texts += part.controls
    return part


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

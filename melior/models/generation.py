"""Answers drawn from a causal language model: batched, each prompt read once for all its answers.

Rows that have ended leave the batch, and answers to the next prompts take their places. Every
answer has its own noise, drawn in the order of the prompts, so the same generator gives the same
answers whatever shares the batch, up to rounding.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from melior.models.decoding import Decoder, Recomputed, Shared, encode, shares_prompts
from melior.models.next_token import inverse, next_token_log_probs
from melior.options import Sampling

Decode = Callable[[Sequence[int]], str]
"""Tokens to text, without special tokens."""
MAX_TOKENS = 32768
"""Rows times tokens held at once, at most; bounds the memory."""
SMALL = 1 << 25
"""Multiplications of a product within the layers up to which one thread is as fast as another that
sleeps while it waits: waking it takes as long. On two cores, SmolLM2-135M, 48 tokens: 8 rows took
3.4 s in place of 4.9, 32 rows 5.5 in place of 6.1."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    tokens: tuple[int, ...]
    """All that was sampled; what ended the answer, end token or stop string, is included."""
    log_probs: tuple[float, ...]
    """Of each token, under the model's own distribution."""
    sampling_log_probs: tuple[float, ...]
    """Of each token, after temperature, top-k and top-p."""
    text: str
    """Without special tokens, and cut where a stop string begins."""
    is_finished: bool
    """It ended by itself, not at the limit of tokens."""


def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_token_ids: Collection[int],
    decode: Decode,
    generator: torch.Generator,
    max_tokens: int = MAX_TOKENS,
) -> list[list[Completion]]:
    """Draw `sampling.k` answers to each prompt; see `draw`."""
    for number, prompt in enumerate(prompts, 1):
        check_prompt(model, prompt, sampling, f"prompt {number}")
    return list(
        draw(
            model,
            prompts,
            sampling,
            stop_token_ids=stop_token_ids,
            decode=decode,
            generator=generator,
            max_tokens=max_tokens,
        )
    )


def draw(
    model: PreTrainedModel,
    prompts: Iterable[Sequence[int]],
    sampling: Sampling,
    *,
    stop_token_ids: Collection[int],
    decode: Decode,
    generator: torch.Generator,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[list[Completion]]:
    """Yield `sampling.k` answers to each prompt, in the order of the prompts.

    Args:
        model: any transformers causal language model.
        prompts: tokens, at least one each; read only as far ahead as there is room.
        sampling: how to draw.
        stop_token_ids: tokens that end an answer.
        decode: tokens to text.
        generator: advanced by `k * max_new_tokens` numbers for each prompt.
        max_tokens: rows times tokens held at once.

    Raises:
        ValueError: a prompt is empty, or too long for the model.
    """
    ends = _Ends(frozenset(stop_token_ids), sampling.stop, decode)
    waiting = _Waiting(_rows(model, prompts, sampling, generator), sampling, max_tokens)
    batch = _Batch(model, sampling)
    asked: deque[list[_Row]] = deque()
    while batch.rows or waiting:
        with _answering(model):
            new = waiting.admitted(batch.alive, shares_prompts(model))
            batch.admit(new)
            with _threads(model, batch.n_read):
                batch.step(ends)
        for row in new:
            if row.number == 0:
                asked.append([])
            asked[-1].append(row)
        while asked and len(asked[0]) == sampling.k and all(r.is_done for r in asked[0]):
            yield [ends.completion(row) for row in asked.popleft()]


def check_prompt(
    model: PreTrainedModel, prompt: Sequence[int], sampling: Sampling, where: str
) -> None:
    """Check that a prompt has tokens, and that an answer to it fits the model.

    Raises:
        ValueError: beginning with `where`.
    """
    if not prompt:
        raise ValueError(f"{where}: needs at least one token; found none")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and len(prompt) + sampling.max_new_tokens > limit:
        raise ValueError(
            f"{where}: prompt and answer must fit the model's {limit} positions; found "
            f"{len(prompt)} tokens and max_new_tokens {sampling.max_new_tokens}"
        )


@contextmanager
def _answering(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model does not train."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


@contextmanager
def _threads(model: PreTrainedModel, n: int) -> Iterator[None]:
    """Inside, one thread computes what is too small to be shared among threads that sleep."""
    config, before = model.config.get_text_config(), torch.get_num_threads()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    is_small = isinstance(inner, int) and n * config.hidden_size * inner <= SMALL
    do_sleep = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if before == 1 or model.device.type != "cpu" or not (is_small and do_sleep):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(eq=False)
class _Row:
    """One answer on its way."""

    prompt: Sequence[int]
    number: int
    """Of the answer among those to its prompt."""
    noise: list[float]
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sampling_log_probs: list[float] = field(default_factory=list)
    is_finished: bool = False

    @property
    def is_done(self) -> bool:
        """Nothing more is drawn."""
        return self.is_finished or len(self.tokens) == len(self.noise)


def _rows(
    model: PreTrainedModel,
    prompts: Iterable[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
) -> Iterator[_Row]:
    shape = sampling.k, sampling.max_new_tokens
    for place, prompt in enumerate(prompts, 1):
        check_prompt(model, prompt, sampling, f"prompt {place}")
        noise = torch.rand(shape, generator=generator, device=generator.device)
        for number, numbers in enumerate(noise.tolist()):
            yield _Row(prompt, number, numbers)


class _Waiting:
    """Rows that are not in the batch yet."""

    def __init__(self, rows: Iterator[_Row], sampling: Sampling, max_tokens: int) -> None:
        self.rows = rows
        self.next = next(rows, None)
        self.max_new_tokens = sampling.max_new_tokens
        self.max_tokens = max_tokens
        self.n_full = 0

    def __bool__(self) -> bool:
        return self.next is not None

    def admitted(self, alive: Sequence[_Row], can_mix: bool) -> list[_Row]:
        """Take out the rows that now fit; they come by the quarter batch, as to join has a cost.

        Args:
            alive: those in the batch.
            can_mix: rows may join others, and prompts of different lengths go together.
        """
        if alive and (not can_mix or len(alive) > 0.75 * self.n_full):
            return []
        new: list[_Row] = []
        longest = max((len(row.prompt) for row in alive), default=0)
        while self.next is not None:
            length = len(self.next.prompt)
            n = len(alive) + len(new)
            is_full = (n + 1) * (max(longest, length) + self.max_new_tokens) > self.max_tokens
            if n and (is_full or (not can_mix and length != longest)):
                break
            longest = max(longest, length)
            new.append(self.next)
            self.next = next(self.rows, None)
        self.n_full = len(alive) + len(new)
        return new


class _Batch:
    """Rows that are drawn together, with the logits of each one's next token.

    Rows that have ended are carried along until they are worth a new layout.
    """

    def __init__(self, model: PreTrainedModel, sampling: Sampling) -> None:
        self.model = model
        self.sampling = sampling
        self.rows: list[_Row] = []
        self.logits = torch.empty(0)
        self.decoder: Decoder | None = None

    @property
    def n_read(self) -> int:
        """Tokens that the next step reads; from the first of each row where nothing is kept."""
        if isinstance(self.decoder, Recomputed):
            return self.decoder.tokens.numel()
        return len(self.rows)

    @property
    def alive(self) -> list[_Row]:
        """Rows that go on."""
        return [row for row in self.rows if not row.is_done]

    def admit(self, new: Sequence[_Row]) -> None:
        """Read the new rows' prompts, each once, and go on with old and new together."""
        if not new:
            return
        prompts = {id(row.prompt): row.prompt for row in new}
        places = {key: place for place, key in enumerate(prompts)}
        owner = [places[id(row.prompt)] for row in new]
        index = torch.tensor(owner, device=self.model.device)
        logits, decoder = encode(self.model, list(prompts.values()))
        decoder.keep(index)
        self._keep()
        if self.rows and isinstance(self.decoder, Shared) and isinstance(decoder, Shared):
            self.decoder.join(decoder)
            self.logits = torch.cat([self.logits, logits[index]])
        else:
            self.decoder, self.logits = decoder, logits[index]
        self.rows += new

    def step(self, ends: _Ends) -> None:
        """Draw one token for each row, and compute the logits of the next."""
        going = self.alive
        drawn = _sample(self.logits.float(), self.sampling, self.rows)
        for row in going:
            row.is_finished = ends.is_end(row.tokens)
        n_alive = len(self.alive)
        if n_alive <= 0.875 * len(self.rows):
            drawn = drawn[self._keep()]
        if n_alive and self.decoder is not None:
            self.logits = self.decoder.step(drawn)

    def _keep(self) -> Int[Tensor, " n"]:
        """Drop the rows that have ended."""
        going = [at for at, row in enumerate(self.rows) if not row.is_done]
        index = torch.tensor(going, dtype=torch.long, device=self.model.device)
        if 0 < len(going) < len(self.rows) and self.decoder is not None:
            self.decoder.keep(index)
            self.logits = self.logits[index]
        self.rows = [self.rows[at] for at in going]
        return index


@dataclass(frozen=True)
class _Ends:
    """What ends an answer."""

    token_ids: frozenset[int]
    strings: tuple[str, ...]
    decode: Decode

    def is_end(self, tokens: Sequence[int]) -> bool:
        """Say whether the last token ended the answer."""
        if tokens[-1] in self.token_ids:
            return True
        if not self.strings:
            return False
        # A character has up to four bytes, a token at least one; some tokens more for the edges.
        tail = self.decode(tokens[-(4 * max(map(len, self.strings)) + 8) :])
        return any(stop in tail for stop in self.strings)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text before the end."""
        text = self.decode(tokens[:-1] if tokens[-1] in self.token_ids else tokens)
        found = [at for at in map(text.find, self.strings) if at >= 0]
        return text[: min(found)] if found else text

    def completion(self, row: _Row) -> Completion:
        """Return a row that is done."""
        return Completion(
            tokens=tuple(row.tokens),
            log_probs=tuple(row.log_probs),
            sampling_log_probs=tuple(row.sampling_log_probs),
            text=self.text(row.tokens),
            is_finished=row.is_finished,
        )


def _sample(
    logits: Float[Tensor, "n v"], sampling: Sampling, rows: Sequence[_Row]
) -> Int[Tensor, " n"]:
    """Draw each row's next token by inverting its cumulative distribution."""
    model_log_probs = logits.log_softmax(-1)
    if not model_log_probs.amax(-1).isfinite().all():
        raise ValueError(
            "the model's probabilities must be finite; found nan or infinity: its weights are"
            " damaged, or training made them so"
        )
    is_own = (sampling.temperature, sampling.top_k, sampling.top_p) == (1, 0, 1)
    chosen_from = model_log_probs if is_own else next_token_log_probs(logits, sampling)
    noise = [0.0 if row.is_done else row.noise[len(row.tokens)] for row in rows]
    tokens = inverse(chosen_from.exp(), torch.tensor(noise, device=logits.device))[:, None]
    drawn = (
        tokens.tolist(),
        model_log_probs.gather(-1, tokens).tolist(),
        chosen_from.gather(-1, tokens).tolist(),
    )
    for row, (token,), (log_prob,), (sampling_log_prob,) in zip(rows, *drawn, strict=True):
        if not row.is_done:
            row.tokens.append(token)
            row.log_probs.append(log_prob)
            row.sampling_log_probs.append(sampling_log_prob)
    return tokens[:, 0]

"""Answers drawn from a causal language model: batched, each prompt read once for all its answers.

Every answer has its own row of noise, drawn before anything else, so the same generator gives the
same answers however they are divided into portions, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from melior.models.decoding import encode, shares_prompts
from melior.options import Sampling

Decode = Callable[[Sequence[int]], str]
"""Tokens to text, without special tokens."""
MAX_SLOTS = 32768
"""Rows times tokens held at once, at most; bounds the memory."""


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


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_token_ids: Collection[int],
    decode: Decode,
    generator: torch.Generator,
    max_slots: int = MAX_SLOTS,
) -> list[list[Completion]]:
    """Draw `sampling.k` answers to each prompt.

    Args:
        model: any transformers causal language model.
        prompts: tokens, at least one each; lengths may differ.
        sampling: how to draw.
        stop_token_ids: tokens that end an answer.
        decode: tokens to text.
        generator: advanced by `k * max_new_tokens` numbers per prompt, so that two calls with
            a part of the prompts each draw what one call with all of them does.
        max_slots: rows times tokens held at once.

    Raises:
        ValueError: a prompt is empty, or too long for the model.
    """
    _check(model, prompts, sampling)
    shape = (len(prompts) * sampling.k, sampling.max_new_tokens)
    noise = torch.rand(shape, generator=generator, device=generator.device)
    ends = _Ends(frozenset(stop_token_ids), sampling.stop, decode)
    was_training = model.training
    model.eval()
    try:
        answers: dict[int, Completion] = {}
        for rows in _portions(prompts, sampling, max_slots, shares_prompts(model)):
            drawn = _draw(model, prompts, rows, sampling, ends=ends, noise=noise[rows])
            answers.update(zip(rows, drawn, strict=True))
    finally:
        model.train(was_training)
    return [[answers[i * sampling.k + j] for j in range(sampling.k)] for i in range(len(prompts))]


def next_token_log_probs(logits: Float[Tensor, "n v"], sampling: Sampling) -> Float[Tensor, "n v"]:
    """Return the log-probabilities that are sampled from: temperature, then top-k, then top-p.

    Tokens as likely as the last one kept are kept too, so the order of the vocabulary is nothing.
    """
    if sampling.temperature == 0:
        best = torch.full_like(logits, -torch.inf)
        return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    log_probs = (logits / sampling.temperature).log_softmax(-1)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = log_probs.topk(sampling.top_k).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        least = _nucleus(log_probs, sampling.top_p)
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf).log_softmax(-1)
    return log_probs


def _nucleus(log_probs: Float[Tensor, "n v"], top_p: float) -> Float[Tensor, "n 1"]:
    """Return the least log-probability among the fewest tokens that reach `top_p` together."""
    size = log_probs.shape[-1]
    n = min(128, size)  # sorting the whole vocabulary is rarely needed, and slow
    while True:
        values = log_probs.topk(n).values
        reached = values.exp().cumsum(-1)
        if n == size or bool((reached[:, -1] >= top_p).all()):
            last = (reached < top_p).sum(-1, keepdim=True).clamp(max=n - 1)
            return values.gather(-1, last)
        n = min(n * 8, size)


def _check(model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i + 1}: needs at least one token; found none")
        if limit is not None and len(prompt) + sampling.max_new_tokens > limit:
            raise ValueError(
                f"prompt {i + 1}: prompt and answer must fit the model's {limit} positions; found "
                f"{len(prompt)} tokens and max_new_tokens {sampling.max_new_tokens}"
            )


def _portions(
    prompts: Sequence[Sequence[int]], sampling: Sampling, max_slots: int, is_mixed: bool
) -> Iterator[list[int]]:
    """Divide the rows (prompt times k, plus sample) so that each portion fits, like with like."""
    rows: list[int] = []
    longest = 0
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        is_odd = bool(rows) and not is_mixed and len(prompts[i]) != longest
        for j in range(sampling.k):
            is_full = (len(rows) + 1) * (longest + sampling.max_new_tokens) > max_slots
            if rows and (is_full or is_odd):
                yield rows
                rows, is_odd = [], False
            longest = longest if rows else len(prompts[i])
            rows.append(i * sampling.k + j)
    if rows:
        yield rows


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


@dataclass
class _Row:
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sampling_log_probs: list[float] = field(default_factory=list)
    is_finished: bool = False


def _draw(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    sampling: Sampling,
    *,
    ends: _Ends,
    noise: Float[Tensor, "n t"],
) -> list[Completion]:
    """Draw one portion: a row leaves when it has ended."""
    asked = list(dict.fromkeys(number // sampling.k for number in numbers))
    place = {prompt: at for at, prompt in enumerate(asked)}
    owner = torch.tensor([place[number // sampling.k] for number in numbers], device=model.device)
    noise = noise.to(model.device)
    logits, decoder = encode(model, [prompts[i] for i in asked])
    logits = logits[owner]
    decoder.keep(owner)
    rows = [_Row() for _ in numbers]
    alive = list(range(len(rows)))
    for step in range(sampling.max_new_tokens):
        tokens = _sample(logits.float(), sampling, noise[alive, step], [rows[i] for i in alive])
        going = []
        for at, i in enumerate(alive):
            rows[i].is_finished = ends.is_end(rows[i].tokens)
            if not rows[i].is_finished:
                going.append(at)
        if not going or step + 1 == sampling.max_new_tokens:
            break
        if len(going) < len(alive):
            alive = [alive[at] for at in going]
            kept = torch.tensor(going, device=model.device)
            tokens = tokens[kept]
            decoder.keep(kept)
        logits = decoder.step(tokens)
    return [
        Completion(
            tokens=tuple(row.tokens),
            log_probs=tuple(row.log_probs),
            sampling_log_probs=tuple(row.sampling_log_probs),
            text=ends.text(row.tokens),
            is_finished=row.is_finished,
        )
        for row in rows
    ]


def _sample(
    logits: Float[Tensor, "n v"],
    sampling: Sampling,
    noise: Float[Tensor, " n"],
    rows: Sequence[_Row],
) -> Int[Tensor, " n"]:
    """Draw each row's next token by inverting its cumulative distribution."""
    chosen_from = next_token_log_probs(logits, sampling)
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    reached = chosen_from.exp().cumsum(-1, dtype=wide)
    total = reached[:, -1]
    # Below the total, so that a token of probability zero is never drawn.
    goal = torch.minimum(noise.to(wide) * total, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(reached, goal[:, None], right=True)
    own = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
    drawn = (tokens.tolist(), own.tolist(), chosen_from.gather(-1, tokens).tolist())
    for row, (token,), (log_prob,), (sampling_log_prob,) in zip(rows, *drawn, strict=True):
        row.tokens.append(token)
        row.log_probs.append(log_prob)
        row.sampling_log_probs.append(sampling_log_prob)
    return tokens[:, 0]

"""One more token for many rows at once; a prompt's keys and values stand once for all its rows.

`Shared` holds them so, and each row's own keys and values in a buffer that grows; it attends
through `AttentionInterface` in unmodified transformers models. A trial on first sight of a model
finds out whether that gives its plain logits; any other model is decoded by its own cache
(`Cached`), or without one (`Recomputed`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

NAME = "melior_decode"
"""Under which transformers knows this attention."""
GROWTH = 64
"""Tokens by which the rows' buffers grow."""


@runtime_checkable
class Decoder(Protocol):
    """Rows of text, each of which grows by one token a step."""

    def step(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Append a token to each row; return the logits of the next."""

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with these rows, in this order; one may be named several times."""


def encode(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "n v"], Decoder]:
    """Read prompts; return the logits of each one's next token, and a row for each.

    Their lengths may differ only where `shares_prompts` is true of the model.
    """
    if shares_prompts(model):
        return _encode_shared(model, prompts)
    tokens = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    output = model(tokens, use_cache=True, **_only(model, 1))
    cache = getattr(output, "past_key_values", None)
    is_usable = isinstance(cache, Cache)
    return output.logits[:, -1], Cached(model, cache) if is_usable else Recomputed(model, tokens)


_verdicts: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def shares_prompts(model: PreTrainedModel) -> bool:
    """Say whether `Shared` gives the model's plain logits, by a trial on first sight."""
    if model not in _verdicts:
        _verdicts[model] = _trial(model)
    return _verdicts[model]


class UnsupportedError(Exception):
    """The model's layers want what `Shared` does not do."""


class Shared:
    """Rows that read their prompt's keys and values from one place; others may join them."""

    def __init__(self, model: PreTrainedModel, cache: Cache, lengths: Int[Tensor, " p"]) -> None:
        self.model = model
        self.layers = [
            _Layer(filled, lengths.tolist(), is_sliding)
            for filled, is_sliding in zip(cache.layers, _sliding(model), strict=True)
        ]
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.last = (limit or 2**62) - 1
        self.lengths = lengths
        self.said = torch.zeros_like(lengths)
        self.owner = torch.arange(len(lengths), device=lengths.device)
        self._arrange()

    def step(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Append a token to each row; return the logits of the next."""
        # A row that has ended may be carried along past the model's last position.
        positions = (self.lengths[self.owner] + self.said)[:, None].clamp_max(self.last)
        self.said = self.said + 1
        self.end = int(self.said.max())
        self.is_level = bool((self.said == self.end).all())
        self.hidden: dict[int | None, Tensor | None] = {}
        self.n_calls = 0
        with _attention(self.model, NAME):
            output = self.model(
                tokens[:, None], position_ids=positions, use_cache=False, decode=self
            )
        if self.n_calls != len(self.layers):
            raise UnsupportedError(f"{self.n_calls} of {len(self.layers)} layers came here")
        return output.logits[:, -1]

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with these rows, in this order; prompts without rows are dropped."""
        prompts, self.owner = self.owner[rows].unique(return_inverse=True)
        self.said = self.said[rows]
        is_same = len(prompts) == len(self.lengths)
        self.lengths = self.lengths[prompts]
        for layer in self.layers:
            layer.keep(rows, None if is_same else prompts, int(self.lengths.max()))
        self._arrange()

    def join(self, others: Shared) -> None:
        """Take in rows that have said nothing yet, behind those that are here."""
        self.owner = torch.cat([self.owner, others.owner + len(self.lengths)])
        self.lengths = torch.cat([self.lengths, others.lengths])
        self.said = torch.cat([self.said, others.said])
        for layer, other in zip(self.layers, others.layers, strict=True):
            layer.join(other, len(others.owner))
        self._arrange()

    def _arrange(self) -> None:
        """Lay the rows out in a table with a line for each prompt, which is thus read once."""
        n, device = len(self.owner), self.owner.device
        counts = self.owner.bincount()
        order = self.owner.argsort(stable=True)
        start = (counts.cumsum(0) - counts)[self.owner[order]]
        column = torch.empty_like(order)
        column[order] = torch.arange(n, device=device) - start
        width = int(counts.max())
        self.cell = self.owner * width + column
        self.table = torch.zeros(len(counts) * width, dtype=torch.long, device=device)
        self.table[self.cell] = torch.arange(n, device=device)
        self.table = self.table.view(len(counts), width)
        # One prompt's answers, or as many to each in their order, lie so already.
        self.is_table = bool((counts == width).all() and (self.cell[1:] > self.cell[:-1]).all())

    def append(self, layer: _Layer, key: Tensor, value: Tensor) -> None:
        """Add a token to each row of a layer."""
        layer.grow(self.end)
        if self.is_level:
            layer.keys[:, :, self.end - 1], layer.values[:, :, self.end - 1] = key, value
        else:
            rows, slots = torch.arange(len(self.said), device=key.device), self.said - 1
            layer.keys[rows, :, slots], layer.values[rows, :, slots] = key, value

    def attend(
        self,
        layer: _Layer,
        query: Float[Tensor, "n g r e"],
        scale: float,
        window: int | None,
        cap: float | None,
    ) -> Float[Tensor, "n g r e2"]:
        """Attend to each row's prompt and own tokens; r queries share a head's keys."""
        r, split = query.shape[2], layer.prompt_keys.shape[2]
        left = self._to_rows(self._to_table(query) @ layer.prompt_keys.transpose(-1, -2), r)
        # The whole buffer, room included: a product with a part of it would copy that part first.
        right = (query @ layer.keys.transpose(-1, -2))[..., : self.end]
        scores = torch.cat([left, right], -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        if window not in self.hidden:
            self.hidden[window] = self._hidden(split, window)
        hidden = self.hidden[window]
        if hidden is not None:
            scores = scores.masked_fill_(hidden[:, None, None], -torch.inf)
        share = scores.softmax(-1).to(query.dtype)
        seen = self._to_rows(self._to_table(share[..., :split]) @ layer.prompt_values, r)
        return seen + share[..., split:] @ layer.values[:, :, : self.end]

    def _hidden(self, split: int, window: int | None) -> Bool[Tensor, "n t"] | None:
        """Say which places a row's last token does not see; None where it sees all."""
        slots = torch.arange(split + self.end, device=self.said.device)
        first = split - self.lengths[self.owner]
        last = split + self.said - 1
        if window is not None:
            first = torch.maximum(first, last + 1 - window)
        hidden = (slots < first[:, None]) | (slots > last[:, None])
        return hidden if bool(hidden.any()) else None

    def _to_table(self, rows: Float[Tensor, "n g r x"]) -> Float[Tensor, "p g mr x"]:
        p, m = self.table.shape
        table = rows.view(p, m, *rows.shape[1:]) if self.is_table else rows[self.table]
        return table.transpose(1, 2).flatten(2, 3)

    def _to_rows(self, table: Float[Tensor, "p g mr x"], r: int) -> Float[Tensor, "n g r x"]:
        rows = table.unflatten(2, (-1, r)).transpose(1, 2).flatten(0, 1)
        return rows if self.is_table else rows[self.cell]


class _Layer:
    """The keys and values of one layer: those of the prompts, and those of the rows.

    Prompts are padded on the left, so that all end at one place. Padding is zero, not what lies
    about in memory: no weight falls on it, but zero times nan is nan.
    """

    def __init__(self, filled: DynamicLayer, lengths: list[int], is_sliding: bool) -> None:
        self.is_sliding = is_sliding
        self.prompt_keys = _to_the_right(filled.keys, lengths)
        self.prompt_values = _to_the_right(filled.values, lengths)
        self.keys = self.prompt_keys[:, :, :0]
        self.values = self.prompt_values[:, :, :0]

    def grow(self, end: int) -> None:
        """Make room for so many tokens in each row."""
        if end > self.keys.shape[2]:
            self.keys = F.pad(self.keys, (0, 0, 0, GROWTH))
            self.values = F.pad(self.values, (0, 0, 0, GROWTH))

    def keep(self, rows: Tensor, prompts: Tensor | None, longest: int) -> None:
        """Go on with these rows, and with these prompts where some are left out."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        if prompts is not None:
            start = self.prompt_keys.shape[2] - longest
            self.prompt_keys = self.prompt_keys[prompts, :, start:]
            self.prompt_values = self.prompt_values[prompts, :, start:]

    def join(self, other: _Layer, n: int) -> None:
        """Put others' prompts behind the own, and room for their rows."""
        self.prompt_keys = _stacked(self.prompt_keys, other.prompt_keys)
        self.prompt_values = _stacked(self.prompt_values, other.prompt_values)
        self.keys = F.pad(self.keys, (0, 0, 0, 0, 0, 0, 0, n))
        self.values = F.pad(self.values, (0, 0, 0, 0, 0, 0, 0, n))


def _stacked(above: Float[Tensor, "p g t e"], below: Float[Tensor, "q g u e"]) -> Tensor:
    longest = max(above.shape[2], below.shape[2])
    return torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in (above, below)])


def _to_the_right(states: Float[Tensor, "p g t e"], lengths: list[int]) -> Tensor:
    """Move padding from the end to the start, so that all prompts end at one place."""
    if min(lengths) == max(lengths):
        return states
    moved = torch.zeros_like(states)
    for i, length in enumerate(lengths):
        moved[i, :, states.shape[2] - length :] = states[i, :, :length]
    return moved


class Cached:
    """Rows in the model's own cache; their prompts are of one length."""

    def __init__(self, model: PreTrainedModel, cache: Cache) -> None:
        self.model = model
        self.cache = cache

    def step(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Append a token to each row; return the logits of the next."""
        output = self.model(tokens[:, None], past_key_values=self.cache, use_cache=True)
        return output.logits[:, -1]

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with these rows, in this order."""
        self.cache.reorder_cache(rows)


class Recomputed:
    """Rows read again from their first token at every step; their prompts are of one length."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        self.model = model
        self.tokens = tokens

    def step(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Append a token to each row; return the logits of the next."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)
        return self.model(self.tokens, use_cache=False, **_only(self.model, 1)).logits[:, -1]

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with these rows, in this order."""
        self.tokens = self.tokens[rows]


def _attend(
    module: nn.Module,
    query: Float[Tensor, "n h 1 e"],
    key: Float[Tensor, "n g 1 e"],
    value: Float[Tensor, "n g 1 e2"],
    attention_mask: Tensor | None = None,
    decode: Shared | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend in a model that a `Shared` steps; registered with transformers."""
    index = getattr(module, "layer_idx", None)
    unknown = [name for name in ("s_aux", "position_bias") if options.get(name) is not None]
    if decode is None or index is None or index >= len(decode.layers) or unknown:
        raise UnsupportedError(f"layer {index}, options {unknown}")
    layer = decode.layers[index]
    if layer.is_sliding and sliding_window is None:
        raise UnsupportedError("a window of an unknown kind")
    decode.n_calls += 1
    decode.append(layer, key[:, :, 0], value[:, :, 0])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    n, g = key.shape[:2]
    out = decode.attend(
        layer, query.view(n, g, -1, query.shape[-1]), scale, sliding_window, softcap
    )
    return out.reshape(n, 1, query.shape[1], -1), None


AttentionInterface.register(NAME, _attend)


def _sliding(model: PreTrainedModel) -> list[bool]:
    """Say of each layer whether it has a window, where all are of the kinds that are known."""
    layers = DynamicCache(config=model.config).layers
    unknown = {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer}
    if unknown:
        raise UnsupportedError(f"layers that are {unknown}")
    return [bool(layer.is_sliding) for layer in layers]


def _encode_shared(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> tuple[Tensor, Shared]:
    """Read prompts padded on the right, where causal attention needs no mask."""
    lengths = [len(prompt) for prompt in prompts]
    padded = [[*prompt, *[prompt[-1]] * (max(lengths) - len(prompt))] for prompt in prompts]
    ends = torch.tensor(lengths, device=model.device)
    last, which = ends.sub(1).unique(return_inverse=True)
    cache = DynamicCache()
    output = model(
        torch.tensor(padded, device=model.device),
        past_key_values=cache,
        use_cache=True,
        **_only(model, last),
    )
    logits = output.logits if output.logits.shape[1] == len(last) else output.logits[:, last]
    return logits[torch.arange(len(prompts)), which], Shared(model, cache, ends)


def _trial(model: PreTrainedModel) -> bool:
    """Compare `Shared` with a plain forward pass, four steps on prompts of two lengths."""
    size = model.config.get_text_config().vocab_size
    text = [size * (i + 2) // 16 for i in range(12)]
    try:
        _sliding(model)
        _, decoder = _encode_shared(model, [text[:-4], text[2:-4]])
        steps = [torch.tensor([token, token], device=model.device) for token in text[-4:]]
        found = torch.stack([decoder.step(tokens) for tokens in steps], 1)
    except (UnsupportedError, ValueError, TypeError, AttributeError):
        return False
    expected = torch.stack(
        [
            model(torch.tensor([plain], device=model.device), use_cache=False).logits[0, -4:]
            for plain in (text, text[2:])
        ]
    )
    # Rounding alone stays below at most places (single ones may be ill-conditioned); a wrong
    # position, or a layer that was left out, goes beyond nearly everywhere.
    tolerance = max(1e-3, 16 * torch.finfo(expected.dtype).eps)
    distance = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
    return bool(distance.median() <= tolerance)


def _only(model: PreTrainedModel, positions: Tensor | int) -> dict[str, Tensor | int]:
    """Return the option that spares the logits of other positions, where the model has it."""
    names = inspect.signature(model.forward).parameters
    return {"logits_to_keep": positions} if "logits_to_keep" in names else {}


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [config._attn_implementation for config in configs.values()]
    model.config._attn_implementation = name
    try:
        yield
    finally:
        for config, old in zip(configs.values(), before, strict=True):
            config._attn_implementation = old

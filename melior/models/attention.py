"""Exact causal attention over a token forest, plugged into unmodified transformers models.

`blocks` cuts a forest's attention into rectangles: within each segment a causal one, and for each
segment with descendants a full one of all their rows (contiguous, see `data/forest.py`) against
the segment's keys. A row's rectangles cover its path from the root exactly once. On a CPU each
rectangle is one call of the library's flash kernel, and rectangles are merged per row by their
log-sum-exp: `out = sum_i exp(lse_i - lse) out_i`. The backward pass cuts the forest into `tiles`,
a few rows with their whole path, and makes their probabilities again from the log-sum-exp.
Elsewhere, and where a layer has a sliding window that a path outgrows or caps its logits, each
segment attends to its path with an explicit mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from melior.data.forest import Forest, Segment

NAME = "melior_forest"
"""Under which transformers knows this attention."""

_HARMLESS = {"is_causal", "output_attentions", "output_hidden_states", "past_key_values",
             "position_ids", "use_cache"}  # fmt: skip
"""What layers hand on to their attention from a call of ours, and what changes nothing of it."""

TILE_ROWS = 128
"""Rows that the backward pass takes at once: fewer waste less above the diagonal."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Block:
    """Rows `q_start:q_stop` attend to keys `k_start:k_stop`."""

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    is_causal: bool
    is_first: bool
    """No earlier rectangle holds these rows: their segment, or the one above, is a root."""


@dataclass(frozen=True)
class Tile:
    """Rows `start:stop` of one segment, and all that they attend to."""

    start: int
    stop: int
    keys: tuple[slice, ...]
    """Their path; the last ends with the rows themselves, causally."""


class Layout:
    """What the attention layers need to know of a forest; counts how often they asked.

    Args:
        forest: to attend along.
        on_cpu: use the CPU's flash kernel where tensors lie on one; a rehearsal of what another
            device does goes without.
    """

    def __init__(self, forest: Forest, *, on_cpu: bool = True) -> None:
        self.on_cpu = on_cpu
        self.segments = forest.segments
        self.positions = forest.positions
        self.n_calls = 0
        self.longest = int(forest.positions.max()) + 1
        self.blocks = blocks(forest.segments)
        self.tiles = tiles(forest.segments)

    def path(self, segment: Segment) -> list[Segment]:
        """Return the segments from the root to this one."""
        chain = [segment]
        while chain[0].parent >= 0:
            chain.insert(0, self.segments[chain[0].parent])
        return chain


def tiles(segments: tuple[Segment, ...]) -> tuple[Tile, ...]:
    """Cut the segments into tiles."""
    found = []
    for part in segments:
        above: list[slice] = []
        parent = part.parent
        while parent >= 0:
            above.insert(0, slice(segments[parent].start, segments[parent].stop))
            parent = segments[parent].parent
        for start in range(part.start, part.stop, TILE_ROWS):
            stop = min(start + TILE_ROWS, part.stop)
            found.append(Tile(start, stop, (*above, slice(part.start, stop))))
    return tuple(found)


def blocks(segments: tuple[Segment, ...]) -> tuple[Block, ...]:
    """Return the rectangles of a forest; none is empty."""
    found = []
    for part in segments:
        is_root = part.parent < 0
        found.append(Block(part.start, part.stop, part.start, part.stop, True, is_root))
        if part.end > part.stop:
            found.append(Block(part.stop, part.end, part.start, part.stop, False, is_root))
    return tuple(found)


def register() -> None:
    """Make the attention known to transformers, once."""
    if NAME not in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def attend(
    module: nn.Module,
    query: Float[Tensor, "b h t e"],
    key: Float[Tensor, "b g t2 e"],
    value: Float[Tensor, "b g t2 e"],
    attention_mask: Tensor | None = None,
    forest: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "b t h e"], None]:
    """Attend along the paths of a forest, or as usual where the model was not given one.

    Raises:
        TypeError: a layer asks for what a forest's has not, such as sinks, a bias or chosen keys.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # turned by positions in float32
    if forest is None:
        return _plain(
            module, query, key, value, attention_mask, dropout, scaling, softcap, **options
        )
    unknown = [k for k, v in options.items() if v is not None and k not in _HARMLESS]
    if unknown:
        raise TypeError(f"its attention has {', '.join(unknown)}")
    forest.n_calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_windowed = sliding_window is not None and forest.longest > sliding_window
    window = sliding_window if is_windowed else None
    has_flash = forest.on_cpu and query.device.type == "cpu"
    if window is None and softcap is None and has_flash:
        out = _ForestFlash.apply(  # type: ignore[no-untyped-call]  # of torch
            query, key, value, forest, scale
        )
    else:
        key, value = _per_head(query, key, value)
        out = _masked(query, key, value, forest, scale, window, softcap)
    return out.transpose(1, 2), None


def _per_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat grouped keys and values, so that each query head has its own."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' own SDPA does, or with capped logits, which it leaves out."""
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if mask is None:  # SDPA's masks leave a purely causal one to the kernel
        t, keys = query.shape[2], key.shape[2]
        mask = torch.ones(t, keys, dtype=torch.bool, device=query.device).tril(keys - t)
    key, value = _per_head(query, key, value)
    return _capped(query, key, value, mask, scale, softcap).transpose(1, 2), None


class _ForestFlash(torch.autograd.Function):
    """The rectangles of a forest through the CPU's flash kernel, merged by log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        """Attend; `[1 h t e]` each, keys and values with a divisor of the queries' heads."""
        # Rows before heads, as the next layer reads them: what it keeps is then this, no copy.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        out = out.transpose(1, 2)
        lse_type = torch.float64 if query.dtype == torch.float64 else torch.float32
        total = torch.empty(query.shape[:3], dtype=lse_type)
        for part in layout.blocks:
            rows, keys = slice(part.q_start, part.q_stop), slice(part.k_start, part.k_stop)
            piece, lse = _flash(
                query[:, :, rows], key[:, :, keys], value[:, :, keys],
                0.0, part.is_causal, scale=scale,
            )  # fmt: skip
            if part.is_first:
                out[:, :, rows], total[:, :, rows] = piece, lse
                continue
            merged = torch.logaddexp(total[:, :, rows], lse)
            old = torch.exp(total[:, :, rows] - merged).unsqueeze(-1)
            new = torch.exp(lse - merged).unsqueeze(-1)
            out[:, :, rows] = (out[:, :, rows] * old).add_(piece * new)
            total[:, :, rows] = merged
        ctx.save_for_backward(query, key, value, out, total)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Compute each tile's probabilities again from the log-sum-exp, by matrix products.

        In bfloat16 a logit keeps few digits, but those of `logit - log-sum-exp`, which a product
        adds up in float32 before it rounds, are few only where the probability is small. What the
        log-sum-exp itself loses is a factor of a row's probabilities, `rest`.
        """
        query, key, value, out, total = ctx.saved_tensors
        q, k, v, d, o = (x[0] for x in (query, key, value, grad, out))
        shift = total[0].to(query.dtype)
        rest = torch.exp(shift - total[0])
        d_wide = d.to(rest.dtype)
        delta = (d_wide * o).sum(-1) * rest
        d = (d_wide * rest.unsqueeze(-1)).to(query.dtype)
        # Query heads of a group become rows, so that its keys and values are never repeated.
        heads = (key.shape[1], query.shape[1] // key.shape[1])
        rows = [x.unflatten(0, heads) for x in (q, d, shift, delta.to(query.dtype))]
        grads = (
            torch.empty_like(rows[0]),
            torch.zeros_like(k, dtype=rest.dtype),
            torch.zeros_like(v, dtype=rest.dtype),
        )
        for tile in ctx.layout.tiles:
            _add_gradients(tile, rows, (k, v), grads, scale=ctx.scale)
        dq, dk, dv = (x.reshape(1, -1, *x.shape[-2:]).to(query.dtype) for x in grads)
        return dq, dk, dv, None, None


def _add_gradients(
    tile: Tile,
    of_rows: Sequence[Tensor],
    of_keys: Sequence[Tensor],
    grads: tuple[Tensor, Tensor, Tensor],
    *,
    scale: float,
) -> None:
    """Add what the rows of a tile give: `[g r t e]` for queries, `[g t e]` for keys and values."""
    length = tile.stop - tile.start
    q, d, shift, delta = (x[:, :, tile.start : tile.stop].flatten(1, 2) for x in of_rows)
    k, v = (_along(tile.keys, x) for x in of_keys)
    p = torch.baddbmm(-shift.unsqueeze(-1), q, k.mT, alpha=scale).exp_()
    p.unflatten(1, (-1, length))[..., -length:].tril_()
    slope = torch.baddbmm(-delta.unsqueeze(-1), d, v.mT).mul_(p)
    shares = (torch.bmm(slope, k), torch.bmm(slope.mT, q), torch.bmm(p.mT, d))
    grads[0][:, :, tile.start : tile.stop] = shares[0].mul_(scale).unflatten(1, (-1, length))
    widths = [part.stop - part.start for part in tile.keys]
    for whole, share, factor in ((grads[1], shares[1], scale), (grads[2], shares[2], 1.0)):
        for part, piece in zip(tile.keys, share.split(widths, 1), strict=True):
            whole[:, part].add_(piece, alpha=factor)


def _along(keys: tuple[slice, ...], tensor: Tensor) -> Tensor:
    return tensor[:, keys[0]] if len(keys) == 1 else torch.cat([tensor[:, x] for x in keys], 1)


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Let each segment attend to its path under an explicit mask: any device, window or cap."""
    positions = forest.positions.to(query.device)
    pieces = []
    for part in forest.segments:
        rows = torch.cat([torch.arange(p.start, p.stop) for p in forest.path(part)])
        rows = rows.to(query.device)
        gap = positions[part.start : part.stop, None] - positions[None, rows]
        mask = (gap >= 0) if window is None else (gap >= 0) & (gap < window)
        own = query[:, :, part.start : part.stop]
        if softcap is None:
            piece = F.scaled_dot_product_attention(
                own, key[:, :, rows], value[:, :, rows], attn_mask=mask, scale=scale
            )
        else:
            piece = _capped(own, key[:, :, rows], value[:, :, rows], mask, scale, softcap)
        pieces.append(piece)
    return torch.cat(pieces, 2)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """Attention whose logits are capped (Gemma 2, arXiv 2408.00118, sec. 2)."""
    logits = softcap * torch.tanh(query @ key.mT * (scale / softcap))
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(-1, dtype=wide).to(value.dtype) @ value

"""The output layer only where a token is scored, in chunks, and again in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CHUNK_BYTES = 64 * 2**20
"""Of float32 logits that exist at once."""


@dataclass(frozen=True)
class OutputLayer:
    """A causal LM's map from hidden states to logits, as its config describes it."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float = 0.0
    """Logits are `softcap * tanh(logits / softcap)`; 0 leaves them."""

    def log_probs(
        self, hidden: Float[Tensor, "s d"], targets: Int[Tensor, " s"]
    ) -> Float[Tensor, " s"]:
        """Return each target's log-probability, in float32 or wider."""
        weight = self.linear.weight
        bias = self.linear.bias
        if bias is None:  # the neutral one
            bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return _ScoredTokens.apply(  # type: ignore[no-untyped-call]  # of torch
            hidden, weight, bias, targets, self.scale, self.softcap
        )


def output_layer(model: nn.Module) -> OutputLayer:
    """Read the output layer of a transformers causal LM.

    Raises:
        ValueError: it has none, or a kind that this module does not know.
    """
    linear = model.get_output_embeddings()  # type: ignore[operator]  # of PreTrainedModel
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{type(model).__name__}: needs a linear output layer; found {linear!r}")
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)  # Gemma 2
    return OutputLayer(linear, scale, softcap)


class _ScoredTokens(torch.autograd.Function):
    """Log-probabilities of targets, keeping one log-sum-exp a row instead of its logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        scale: float,
        softcap: float,
    ) -> Tensor:
        """Compute chunk by chunk."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.empty(len(targets), dtype=wide, device=hidden.device)
        total = torch.empty_like(out)
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], weight, bias, scale, softcap)
            total[rows] = logits.logsumexp(-1)
            out[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) - total[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, total)
        ctx.scale, ctx.softcap = scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute each chunk's logits: d log p / d logits = onehot - softmax."""
        hidden, weight, bias, targets, total = ctx.saved_tensors
        wants_weight, wants_bias = ctx.needs_input_grad[1:3]
        grad_hidden = torch.empty_like(hidden)
        # Chunks add up in float32, so that their number does not change the sum.
        grad_weight = torch.zeros_like(weight, dtype=total.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=total.dtype) if wants_bias else None
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], weight, bias, ctx.scale, ctx.softcap)
            slope = torch.exp(logits - total[rows, None]).mul_(-grad[rows, None])
            slope.scatter_add_(1, targets[rows, None], grad[rows, None])
            if ctx.softcap:
                slope *= 1 - (logits / ctx.softcap) ** 2
            slope = (slope * ctx.scale if ctx.scale != 1.0 else slope).to(weight.dtype)
            grad_hidden[rows] = slope @ weight
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, scale: float, softcap: float) -> Tensor:
    logits = torch.addmm(bias, hidden, weight.T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits = logits * scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

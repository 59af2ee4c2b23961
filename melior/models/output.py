"""The output layer only where a token is scored, in chunks, and again in the backward pass.

A chunk is a stretch of the vocabulary with all rows, so that the weight's gradient is written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from melior.models.precision import bfloat16_products, wide_product

CHUNK_BYTES = 8 * 2**20
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

    @torch.no_grad()
    def log_collision(self, hidden: Float[Tensor, "s d"]) -> Float[Tensor, " s"]:
        """Return the log-probability that two draws in a row's place agree: `log sum_v p(v)^2`."""
        weight, bias = self.linear.weight, self.linear.bias
        if bias is None:
            bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        once, twice = (
            torch.full((len(hidden),), -torch.inf, dtype=wide, device=hidden.device)
            for _ in range(2)
        )
        with bfloat16_products(weight.dtype):
            for words in _chunks(len(hidden), weight.shape[0]):
                logits = _logits(hidden, weight[words], bias[words], self.scale, self.softcap)
                once = torch.logaddexp(once, logits.logsumexp(-1))
                twice = torch.logaddexp(twice, (2 * logits).logsumexp(-1))
        return twice - 2 * once


def output_layer(model: nn.Module) -> OutputLayer:
    """Read the output layer of a transformers causal LM.

    Raises:
        ValueError: it has none, or a kind that this module does not know.
    """
    linear = model.get_output_embeddings()  # type: ignore[operator]  # of PreTrainedModel
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{type(model).__name__}: needs a linear output layer; found {linear!r}")
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]  # as above

    def number(name: str, neutral: float) -> float:
        return float(getattr(config, name, None) or neutral)

    scale = number("logit_scale", 1.0) * number("lm_head_multiplier", 1.0)  # Cohere, Falcon H1
    scale /= number("logits_scaling", 1.0)  # Granite
    softcap = number("final_logit_softcapping", 0.0) or number("logits_soft_cap", 0.0)  # Gemmas
    return OutputLayer(linear, scale, softcap)


@torch.no_grad()
def refuse_other_logits(model: PreTrainedModel, layer: OutputLayer) -> None:
    """Check on a few words that a model's own logits are those of its output layer.

    Raises:
        ValueError: they are not, so that its log-probabilities would be others than the model's.
    """
    vocabulary = layer.linear.weight.shape[0]
    tokens = torch.tensor([[(301 + 37 * i) % vocabulary for i in range(8)]], device=model.device)
    theirs = model(input_ids=tokens, use_cache=False).logits[0].float()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    weight, bias = layer.linear.weight, layer.linear.bias
    ours = _logits(hidden, weight, 0.0 if bias is None else bias, layer.scale, layer.softcap)
    distance = float((ours - theirs).norm() / theirs.norm())
    if theirs.isfinite().all() and not distance < (0.05 if model.dtype == torch.bfloat16 else 1e-3):
        raise ValueError(
            f"{type(model).__name__}: its logits must be its output layer's, scaled or capped as"
            f" its config says; found a relative difference of {distance:.2g}; models of this kind"
            " cannot be used"
        )


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
        """Run through the vocabulary, chunk by chunk, with all rows."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.full((len(targets),), -torch.inf, dtype=wide, device=hidden.device)
        own = torch.zeros_like(total)
        with bfloat16_products(weight.dtype):
            for words in _chunks(len(targets), weight.shape[0]):
                logits = _logits(hidden, weight[words], bias[words], scale, softcap)
                is_here, columns = _here(targets, words)
                own = torch.where(is_here, logits.gather(1, columns)[:, 0], own)
                most = logits.amax(-1)
                part = logits.sub_(most[:, None]).exp_().sum(-1).log_() + most
                total = torch.logaddexp(total, part)
        ctx.save_for_backward(hidden, weight, bias, targets, total)
        ctx.scale, ctx.softcap = scale, softcap
        return own - total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute each chunk's logits: d log p / d logits = onehot - softmax."""
        hidden, weight, bias, targets, total = ctx.saved_tensors
        wants_weight, wants_bias = ctx.needs_input_grad[1:3]
        grad_hidden = torch.zeros_like(hidden, dtype=total.dtype)
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        with bfloat16_products(weight.dtype):
            for words in _chunks(len(targets), weight.shape[0]):
                logits = _logits(hidden, weight[words], bias[words], ctx.scale, ctx.softcap)
                bend = 1 - (logits / ctx.softcap) ** 2 if ctx.softcap else None
                slope = logits.sub_(total[:, None]).exp_().mul_(-grad[:, None])
                is_here, columns = _here(targets, words)
                slope.scatter_add_(1, columns, torch.where(is_here, grad, 0.0)[:, None])
                if bend is not None:
                    slope *= bend
                if ctx.scale != 1.0:
                    slope *= ctx.scale
                grad_hidden += wide_product(slope, weight[words])
                slope = slope.to(weight.dtype)
                if grad_weight is not None:
                    torch.mm(slope.T, hidden.to(weight.dtype), out=grad_weight[words])
                if grad_bias is not None:
                    grad_bias[words] = slope.sum(0)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | float, scale: float, softcap: float
) -> Tensor:
    logits = wide_product(hidden, weight.T).add_(bias)
    if scale != 1.0:
        logits *= scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _here(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Say which rows have their target among these words, and where; no GPU is waited for."""
    is_here = (targets >= words.start) & (targets < words.stop)
    return is_here, (targets - words.start).clamp(0, words.stop - words.start - 1)[:, None]


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_BYTES // (4 * max(1, rows)))
    return [slice(i, min(i + step, vocabulary)) for i in range(0, vocabulary, step)]

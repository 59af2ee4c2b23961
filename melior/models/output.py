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
        hidden, weight = self.factors(hidden)
        return _ScoredTokens.apply(  # type: ignore[no-untyped-call]  # of torch
            hidden, weight, targets, self.scale, self.softcap
        )

    @torch.no_grad()
    def log_collision(self, hidden: Float[Tensor, "s d"]) -> Float[Tensor, " s"]:
        """Return the log-probability that two draws in a row's place agree: `log sum_v p(v)^2`."""
        hidden, weight = self.factors(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        once, twice = (
            torch.full((len(hidden),), -torch.inf, dtype=wide, device=hidden.device)
            for _ in range(2)
        )
        with bfloat16_products(weight.dtype):
            for words in _chunks(len(hidden), weight.shape[0]):
                logits = _logits(hidden, weight[words], self.scale, self.softcap)
                once = torch.logaddexp(once, logits.logsumexp(-1))
                twice = torch.logaddexp(twice, (2 * logits).logsumexp(-1))
        return twice - 2 * once

    def factors(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is multiplied, in the weight's dtype; a bias is a weight of a constant."""
        weight, bias = self.linear.weight, self.linear.bias
        hidden = hidden.to(weight.dtype)
        if bias is None:
            return hidden, weight
        constant = hidden.new_ones(len(hidden), 1)
        return torch.cat([hidden, constant], 1), torch.cat([weight, bias[:, None]], 1)


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
    ours = _logits(*layer.factors(hidden), layer.scale, layer.softcap)
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
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float
    ) -> Tensor:
        """Run through the vocabulary, chunk by chunk, with all rows."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.full((len(targets),), -torch.inf, dtype=wide, device=hidden.device)
        own = torch.zeros_like(total)
        with bfloat16_products(weight.dtype):
            for words in _chunks(len(targets), weight.shape[0]):
                logits = _logits(hidden, weight[words], scale, softcap)
                is_here, columns = _here(targets, words)
                own = torch.where(is_here, logits.gather(1, columns)[:, 0], own)
                most = logits.amax(-1)
                part = logits.sub_(most[:, None]).exp_().sum(-1).log_() + most
                total = torch.logaddexp(total, part)
        ctx.save_for_backward(hidden, weight, targets, total, own - total)
        ctx.scale, ctx.softcap = scale, softcap
        return own - total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute each chunk's probabilities: d log p / d logits = onehot - softmax.

        The products of this pass are rounded to bfloat16 where the weight is. Probabilities stand
        that, as what is rounded is `logit - log-sum-exp`, small where a word is probable; the log-
        sum-exp's own rounding is a factor of its row, `rest`, which is made good in the end.
        """
        hidden, weight, targets, total, log_probs = ctx.saved_tensors
        shift = total if ctx.softcap else total.to(weight.dtype)
        rest = torch.exp(shift - total)
        factor = (-ctx.scale * rest * grad)[:, None]
        scaled = (hidden * factor).to(weight.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=total.dtype)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        own = (torch.expm1(log_probs) / rest).to(total.dtype if ctx.softcap else weight.dtype)
        for words in _chunks(len(targets), weight.shape[0]):
            slope, bend = _probabilities(hidden, weight[words], shift, ctx.scale, ctx.softcap)
            is_here, columns = _here(targets, words)
            # Of a likely word, `probability - 1` would lose in the difference what it has.
            slope.scatter_(
                1, columns, torch.where(is_here, own, slope.gather(1, columns)[:, 0])[:, None]
            )
            slope = (slope if bend is None else slope.mul_(bend)).to(weight.dtype)
            grad_hidden += slope @ weight[words]
            if grad_weight is not None:
                torch.mm(slope.T, scaled, out=grad_weight[words])
        return grad_hidden.mul_(factor).to(hidden.dtype), grad_weight, None, None, None


def _logits(hidden: Tensor, weight: Tensor, scale: float, softcap: float) -> Tensor:
    logits = wide_product(hidden, weight.T)
    if scale != 1.0:
        logits *= scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _probabilities(
    hidden: Tensor, weight: Tensor, shift: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """Return `exp(logits - shift)` and, of capped logits, their slope under the cap."""
    if not softcap:
        return torch.addmm(-shift[:, None], hidden, weight.T, alpha=scale).exp_(), None
    with bfloat16_products(weight.dtype):
        logits = _logits(hidden, weight, scale, softcap)
    bend = 1 - (logits / softcap) ** 2
    return logits.sub_(shift[:, None]).exp_(), bend


def _here(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Say which rows have their target among these words, and where; no GPU is waited for."""
    is_here = (targets >= words.start) & (targets < words.stop)
    return is_here, (targets - words.start).clamp(0, words.stop - words.start - 1)[:, None]


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_BYTES // (4 * max(1, rows)))
    return [slice(i, min(i + step, vocabulary)) for i in range(0, vocabulary, step)]

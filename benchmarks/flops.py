"""What a training step needs of multiplications and additions, each token computed once.

Two for each weight that multiplies a token and four for its gradients (Kaplan et al. 2020, arXiv
2001.08361, sec. 2.1), as many for each token that attention looks at, and the logits of scored
tokens, which are made once more in the backward pass, as no implementation here keeps them.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from melior.data.forest import Forest


def needed(model: PreTrainedModel, forest: Forest, *, has_logits: bool) -> dict[str, float]:
    """Return the FLOPs of the forward and of the backward pass over a forest."""
    config = model.config
    weights = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    looked_at = float((forest.positions + 1).sum())
    layers = 2 * weights * len(forest.tokens) + 4 * width * looked_at
    logits = 2 * config.hidden_size * config.vocab_size * len(forest.scored) * has_logits
    return {"forward": layers + logits, "backward": 2 * layers + 3 * logits}

"""How many multiplications and additions a model takes, by arithmetic alone.

Counted is what is computed, recomputation included: two for each weight that multiplies a token
(the 2N of Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1), as much again for the gradient of what
came in, as much again for a weight's own. Norms and other element-wise work are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from melior.models.language import core


@dataclass(frozen=True)
class Shape:
    """What of a model decides its FLOPs."""

    layer_weights: int
    """That multiply each token, in all layers; of experts, those that a token is sent to."""
    trained: int
    """Of these, how many are trained."""
    attended: int
    """Query heads times their width, added up over the layers."""
    width: int
    vocabulary: int
    trains_head: bool

    def layers(self, tokens: float, pairs: float) -> float:
        """Return the FLOPs of the layers' forward pass.

        Args:
            tokens: that are computed.
            pairs: of a token and one that it attends to, itself included.
        """
        return 2 * self.layer_weights * tokens + 4 * self.attended * pairs

    def layers_back(self, tokens: float, pairs: float) -> float:
        """Return those of their backward pass, which makes the attention's probabilities again."""
        both = self.layer_weights + self.trained
        return 2 * both * tokens + 10 * self.attended * pairs

    def head(self, scored: float) -> float:
        """Return the FLOPs of the output layer, where a token is scored."""
        return 2 * self.width * self.vocabulary * scored

    def head_back(self, scored: float) -> float:
        """Return those of its backward pass, which makes the logits again."""
        return (3 if self.trains_head else 2) * self.head(scored)


def shape_of(model: nn.Module) -> Shape:
    """Read the shape of a transformers or peft model, with weights or without."""
    inner = core(model)
    config = inner.config.get_text_config()
    head = inner.get_output_embeddings()
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    embedding = inner.get_input_embeddings()
    apart = {id(embedding.weight), id(head.weight)}
    shares = {
        id(weight): _share(weight, config)
        for weight in model.parameters()
        if weight.ndim >= 2 and id(weight) not in apart and not _is_table(inner, weight)
    }
    weights = {id(weight): weight for weight in model.parameters() if id(weight) in shares}
    each = {key: round(weights[key].numel() * share) for key, share in shares.items()}
    return Shape(
        layer_weights=sum(each.values()),
        trained=sum(n for key, n in each.items() if weights[key].requires_grad),
        attended=heads * width * int(config.num_hidden_layers),
        width=head.weight.shape[1],
        vocabulary=head.weight.shape[0],
        trains_head=head.weight.requires_grad,
    )


def _share(weight: nn.Parameter, config: PreTrainedConfig) -> float:
    """Return what share of a weight a token meets: of stacked experts, those it is sent to."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if weight.ndim == 3 and experts and chosen and weight.shape[0] == experts:
        return chosen / experts
    return 1.0


def _is_table(model: nn.Module, weight: nn.Parameter) -> bool:
    """Say whether a weight is looked up, such as learned positions, and multiplies nothing."""
    tables = (one.weight for one in model.modules() if isinstance(one, nn.Embedding))
    return any(weight is table for table in tables)

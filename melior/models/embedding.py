"""PreferenceHead: preference embeddings of answers, and the gate of their planes (GPM)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from melior.losses.general import mean_one_gate
from melior.models.parts import load_part, save_part
from melior.options import in_range, one_of

GATES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean-one": mean_one_gate,
    "sum-one": lambda logits, _: logits.softmax(-1),
    "none": lambda logits, _: torch.ones_like(logits),
}
"""From logits of the planes, and the width of what they are linear in, to what each plane counts:
the form of the authors' later training code, that of their released models, and no gate."""


@dataclass(frozen=True)
class EmbeddingOptions:
    """What a PreferenceHead is made from."""

    features: int
    """Width of the hidden states."""
    dimensions: int = 6
    """Of an embedding, two to a plane; 6 and 8 in the paper. With 2, a length of 1 and the paper's
    beta of 0.1, training can wind the wrong way round a circle and stay there."""
    is_normalised: bool = True
    """Whether embeddings have the length 1."""
    gate: str = "mean-one"
    """How planes are scaled by the prompt: `mean-one`, `sum-one` or `none`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("features", self.features, 1)
        in_range("dimensions", self.dimensions, 2)
        if self.dimensions % 2:
            raise ValueError(f"dimensions must be even, two to a plane; found {self.dimensions}")
        one_of("gate", self.gate, tuple(GATES))


class PreferenceHead(nn.Module):
    """Two linear layers without bias, drawn with the deviation `1 / (d + 1)` of the released code.

    Zhang et al. 2024, arXiv 2410.02197, sec. 4: the embedding of an answer is read at its last
    token, the gate at the last token of the prompt. `melior.losses.general` makes scores of both.
    """

    def __init__(self, options: EmbeddingOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        width, planes = options.features, options.dimensions // 2
        draw = torch.Generator().manual_seed(seed)
        self.embedding = _layer(width, options.dimensions, draw)
        self.planes = _layer(width, planes, draw).requires_grad_(options.gate != "none")

    def forward(self, answers: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """Return the embeddings of answers, in the head's own precision."""
        vectors = self.embedding(answers.to(self.embedding.weight.dtype))
        # The bound is the paper's; padding that slipped in has the length 0.
        return F.normalize(vectors, dim=-1, eps=1e-6) if self.options.is_normalised else vectors

    def gate(self, prompts: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Return how much each plane counts for each prompt."""
        logits = self.planes(prompts.to(self.planes.weight.dtype))
        return GATES[self.options.gate](logits, self.options.features)

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.options), folder)

    @classmethod
    def load(cls, folder: Path) -> PreferenceHead:
        """Read what `save` wrote."""
        return load_part(cls, lambda said: cls(EmbeddingOptions(**said), seed=0), folder)


def _layer(width: int, out: int, draw: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, width, out, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, 1 / (width + 1), generator=draw)
    return layer

"""Preferences that may go in circles: scores of pairs of embeddings, and what they are learned by.

Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197 (GPM). An answer is embedded once, as `p` points
in the plane, `d = 2 p` numbers `a_1 b_1 a_2 b_2 ...`. How much one beats another is what the two
span: `s(i > j) = sum over planes of lambda (a_i b_j - b_i a_j)`. Swapping the answers changes its
sign to the bit, and an answer against itself gives 0. Scores are differences of products: give
embeddings in float32 or wider.

The sign is that of the paper's `<R v_i, v_j>` and of the released code, and makes `v = [r, c]`
Bradley and Terry's `c (r_i - r_j)`; the paper's other form, `v_i^T R v_j`, is its negative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def skew_score(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], gate: Float[Tensor, "n p"]
) -> Float[Tensor, " n"]:
    """By how much the first answer of each pair beats the second.

    arXiv 2410.02197, sec. 4: `sum over l of lambda_l (a_i b_j - b_i a_j)`. With embeddings of
    length 1 it lies within the largest `lambda` of 0.

    Args:
        first: embeddings, `d = 2 p`.
        second: those of the rivals.
        gate: what each plane counts for the prompt, at least 0; ones where there is no gate. The
            same for both orders of a pair, or they no longer are each other's negative.
    """
    (a, b), (other_a, other_b) = (_planes(side) for side in (first, second))
    return (gate * (a * other_b - b * other_a)).sum(-1)


def skew_scores(
    embeddings: Float[Tensor, "n k d"], gate: Float[Tensor, "n p"]
) -> Float[Tensor, "n k k"]:
    """By how much each answer (row) beats each other one (column): all pairs by one product.

    arXiv 2410.02197, sec. 4: `k` answers are embedded, not `k (k - 1)` pairs.
    """
    a, b = _planes(embeddings)
    half = (gate[:, None, :] * a) @ b.transpose(-1, -2)
    return half - half.transpose(-1, -2)


def mean_one_gate(logits: Float[Tensor, "n p"], width: int) -> Float[Tensor, "n p"]:
    """Scales of the planes whose mean is 1: `p softmax(z / sqrt(d))`.

    What the authors' later training code means; as it stands there, it names what does not exist.

    Args:
        logits: linear in the hidden state of the prompt's last token.
        width: of that hidden state, `d`.
    """
    return logits.shape[-1] * (logits / width**0.5).softmax(-1)


def general_preference(
    score: Float[Tensor, " n"],
    share: Float[Tensor, " n"],
    *,
    beta: float,
    margin: float = 0.0,
) -> Float[Tensor, " n"]:
    """Cross-entropy of how often the first answer is preferred.

    arXiv 2410.02197, sec. 4: `-p log sigmoid(s / beta) - (1 - p) log sigmoid(-s / beta)`, least
    where `sigmoid(s / beta) = p`. The paper's beta is 0.1. With a `margin` m, of the released code,
    `s - m` takes the place of `s`: `s + m` where the second is preferred, and `s` itself at a
    half, where no answer is asked to win.

    Args:
        score: of `skew_score`; it carries the gradient.
        share: in which the first answer is preferred, 0 to 1; ones for plain pairs.
        beta: temperature, above 0.
        margin: by how much the preferred one is asked to win.
    """
    logit = (score - margin * (share - 0.5).sign()) / beta
    return -share * F.logsigmoid(logit) - (1 - share) * F.logsigmoid(-logit)


def fit_embedding(scores: Float[Tensor, "k k"]) -> Float[Tensor, "k d"]:
    """Return embeddings whose scores are a given antisymmetric matrix, in `k // 2` planes.

    arXiv 2410.02197, theorem on expressiveness, through the eigenvectors of a Hermitian matrix in
    place of a real Schur form: `i S = sum of mu u u^*` over pairs `+-mu`, and with `u = x + i y`
    this is `S_jk = sum over mu > 0 of 2 mu (y_j x_k - x_j y_k)`. Of probabilities P give
    `beta log(P / (1 - P))`.
    """
    values, vectors = torch.linalg.eigh(1j * scores)
    planes = len(scores) // 2  # the largest eigenvalues, of which none is below 0 but by rounding
    size = (2 * values[len(scores) - planes :]).clamp(min=0).sqrt()
    upper = vectors[:, len(scores) - planes :]
    return (size[:, None] * torch.stack([upper.imag, upper.real], -1)).flatten(1)


def _planes(embeddings: Float[Tensor, "*n d"]) -> tuple[Tensor, Tensor]:
    """Return the first and the second coordinate in each plane."""
    a, b = embeddings.unflatten(-1, (-1, 2)).unbind(-1)
    return a, b

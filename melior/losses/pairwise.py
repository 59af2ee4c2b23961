"""What a pairwise preference model learns by, and how its two orders become one comparison.

Dong et al. 2024, arXiv 2405.07863 (RLHF Workflow): a language model reads a prompt and two answers
and says a letter, `A` where the first is better, else `B`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def letter_cross_entropy(
    log_probs: Float[Tensor, "n 2"], share: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross-entropy of the letter: `-s log p(one) - (1 - s) log p(other)`.

    arXiv 2405.07863: next-token prediction of the letter, and of nothing else. The
    probabilities are those among all tokens, so that it also pulls what is said towards the
    letters. Least where `p(one) = s` and `p(other) = 1 - s`.

    Args:
        log_probs: of the letter of one answer and of that of the other, among all tokens.
        share: in which the one is preferred, 0 to 1; one half for a tie.
    """
    return -(share * log_probs[:, 0] + (1 - share) * log_probs[:, 1])


def both_orders(
    left_first: Float[Tensor, "*n"], right_first: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Logit of the mean of the probabilities of both orders, that the left answer wins.

    arXiv 2405.07863: `P = (P1 + P2) / 2`. Exactly the negative with the answers exchanged, and 0
    for an answer against itself.

    Args:
        left_first: logit that the left answer wins where it stands in slot A, ...
        right_first: ... and where it stands in slot B.
    """
    wins = torch.logaddexp(F.logsigmoid(left_first), F.logsigmoid(right_first))
    return wins - torch.logaddexp(F.logsigmoid(-left_first), F.logsigmoid(-right_first))

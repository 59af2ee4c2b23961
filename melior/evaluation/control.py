"""Returns on the scale of a task's references, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from melior.data.control_files import Reference
from melior.evaluation.compare import Interval, student_quantile, t_interval


def normalised(returns: Float[np.ndarray, " n"], reference: Reference) -> Float[np.ndarray, " n"]:
    """Return scores: 0 for random actions, 100 for the reference's expert, and beyond.

    Fu et al. 2020 (D4RL), arXiv 2004.07219.
    """
    return 100 * (returns - reference.random) / (reference.expert - reference.random)


def score_of_seeds(returns: Sequence[Float[np.ndarray, " n"]], reference: Reference) -> Interval:
    """Return the mean score with Student's interval over seeds, each the mean of its episodes.

    Episodes of one policy are no repetitions of its training: only seeds are counted.
    """
    scores = [float(normalised(own, reference).mean()) for own in returns]
    return t_interval(np.array(scores), name="scores")


def gain(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " m"], *, confidence: float = 0.95
) -> Interval:
    """Return how much higher the returns of one policy are than another's, with Welch's interval.

    Welch 1947; degrees of freedom by Satterthwaite 1946, rounded down. Of two policies as they are:
    it says nothing of what training again would give.
    """
    estimate, n = float(after.mean() - before.mean()), len(before) + len(after)
    if min(len(before), len(after)) < 2:
        return Interval(estimate, None, None, confidence, n)
    errors = np.array([own.var(ddof=1) / len(own) for own in (before, after)])
    total = float(errors.sum())
    if not total:
        return Interval(estimate, estimate, estimate, confidence, n)
    parts = errors**2 / (np.array([len(before), len(after)]) - 1)
    freedom = max(1, int(total**2 / parts.sum()))
    half = student_quantile(confidence, freedom) * total**0.5
    return Interval(estimate, estimate - half, estimate + half, confidence, n)

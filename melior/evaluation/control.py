"""Returns on the scale of a task's references, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from melior.data.control_files import Reference
from melior.evaluation.compare import Interval, t_interval


def normalised(returns: Float[np.ndarray, " n"], reference: Reference) -> Float[np.ndarray, " n"]:
    """Return scores: 0 for random actions, 100 for the reference's expert, and beyond.

    Fu et al. 2020 (D4RL), arXiv 2004.07219, sec. 4.
    """
    return 100 * (returns - reference.random) / (reference.expert - reference.random)


def score_of_seeds(returns: Sequence[Float[np.ndarray, " n"]], reference: Reference) -> Interval:
    """Return the mean score with Student's interval over seeds, each the mean of its episodes.

    Episodes of one policy are no repetitions of its training: only seeds are counted.
    """
    scores = [float(normalised(own, reference).mean()) for own in returns]
    return t_interval(np.array(scores), name="scores")

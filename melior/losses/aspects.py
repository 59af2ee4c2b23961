"""Rewards by several objectives and their mixture: regression, decorrelation, and the gated score.

Wang, Xiong, Xie, Zhao, Zhang 2024, arXiv 2406.12845 (ArmoRM). `m` are the objectives, such as
helpfulness and verbosity. A rating that is missing is nan. First a linear model of each objective
is fitted to the ratings that there are; then its rewards lose what they share with verbosity; then
a gate, which sees the prompt alone, says how they are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.correlation import pearson, spearman
from melior.losses.reward import bradley_terry
from melior.types import Pairwise

ALPHAS = tuple(10.0**power for power in range(-4, 5))
"""Strengths of the ridge that are tried; of the authors' released code."""
LEAST_RATINGS, LEAST_ALPHA = 50, 1.0
"""Fewer ratings of one objective say too little to trust a weak ridge: its strength is then 1 or
more."""
BLOCK = 4096
"""Rows that are held in float64 at once."""
PENALTIES = (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, *(i / 20 for i in range(4, 31)))
"""Shares of verbosity that are tried; the released code stops at 0.95, which can be too little."""

Correlation = Callable[[Tensor, Tensor], Tensor]
"""From columns `[n m]` and one more `[n]` to one number a column."""


@dataclass(frozen=True)
class Scale:
    """A linear map between an objective's own ratings and the unit interval."""

    start: float
    width: float

    def unit(self, ratings: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Bring ratings to the unit interval."""
        return (ratings - self.start) / self.width

    def ratings(self, unit: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Bring them back."""
        return unit * self.width + self.start


def bin_centres(low: float, levels: int) -> Scale:
    """Return the scale of whole ratings: `(rating - low + 1/2) / levels`, the centres of its bins.

    So that 0 to 4 become 0.1, 0.3, ..., 0.9: the inverse of what ArmoRM's model card prints.
    """
    return Scale(start=low - 0.5, width=float(levels))


@dataclass(frozen=True)
class Regression:
    """Linear models of the objectives, and how they were chosen."""

    weights: Float[Tensor, "m d"]
    counts: Float[Tensor, " m"]
    """Ratings of each."""
    alphas: Float[Tensor, " m"]
    errors: Float[Tensor, " m"]
    """Mean squared error on the held-out ratings of each."""
    explained: Float[Tensor, " m"]
    """R2 on them: 1 less the error over their variance; nan where they are all the same."""
    correlations: Float[Tensor, " m"]
    """Pearson's with them; 0 where they are all the same."""

    def rewards(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return what the models say of answers."""
        return torch.cat([rows.to(self.weights) @ self.weights.T for rows in features.split(BLOCK)])


def masked_ridge(
    features: Float[Tensor, "n d"],
    ratings: Float[Tensor, "n m"],
    *,
    names: Sequence[str],
    generator: torch.Generator,
    prompts: Sequence[int] = (),
    alphas: Sequence[float] = ALPHAS,
    held_out: float = 0.2,
) -> Regression:
    """Fit a ridge regression without intercept to the ratings of each objective, in float64.

    arXiv 2406.12845, sec. 3.1, with the penalty of the released code: `sum over the rated i of
    (w_j . h_i - r_ij)^2 + alpha_j |w_j|^2`. It separates: each objective has its own closed form
    and its own `alpha`, the one with the least error on ratings held out (of equal ones the
    largest). The weights are those of the ratings that were not held out, as in the released code.
    That one holds out single answers; here all answers to a prompt are on one side.

    Of the features only a block is held in float64 at once.

    Args:
        features: of answers; one of them should be constant, or rewards cannot have a mean.
        ratings: on the unit scale; nan where there is none.
        names: of the objectives, for what is said of them.
        generator: draws which ratings are held out.
        prompts: which prompt each answer is to; none where each has its own.
        alphas: strengths to choose from, above 0.
        held_out: share of each objective's ratings that choose.

    Raises:
        ValueError: an objective without ratings, or with those of a single prompt.
    """
    if not all(rows.isfinite().all() for rows in features.split(BLOCK)):
        raise ValueError("features must be finite; found nan or inf")
    owners = torch.tensor(list(prompts) or list(range(len(features))))
    ranks = torch.randperm(int(owners.max()) + 1, generator=generator).argsort()
    order = ranks[owners].argsort(stable=True)
    fits = []
    for place, name in enumerate(names):
        own = ratings[:, place].double()
        rows = order[~own[order].isnan()]
        n_fitted = _n_fitted(own[rows], owners[rows], name, held_out)
        tried = _trusted(alphas, len(rows))
        weights, *measured = _chosen_ridge(
            features, own, alphas=tried, fitted=rows[:n_fitted], kept=rows[n_fitted:]
        )
        fits.append((weights, len(rows), *measured))
    found, *columns = zip(*fits, strict=True)
    return Regression(
        torch.stack(found), *(torch.tensor(own, dtype=torch.float64) for own in columns)
    )


def normal_equations(
    features: Float[Tensor, "n d"], ratings: Float[Tensor, " n"], rows: Int[Tensor, " r"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    """Return `H^T H` and `H^T r` of some rows, added up in float64 a block at a time."""
    width = features.shape[1]
    products = features.new_zeros(width, width, dtype=torch.float64)
    sums = features.new_zeros(width, dtype=torch.float64)
    for block in rows.split(BLOCK):
        design = features[block].double()
        products.addmm_(design.T, design)
        sums.addmv_(design.T, ratings[block])
    return products, sums


def ridge(
    products: Float[Tensor, "d d"], sums: Float[Tensor, " d"], alpha: float
) -> Float[Tensor, " d"]:
    """Return `(H^T H + alpha I)^-1 H^T r`, the least of `|H w - r|^2 + alpha |w|^2`.

    Args:
        products: `H^T H`.
        sums: `H^T r`.
        alpha: the penalty.
    """
    factor = torch.linalg.cholesky(products + alpha * torch.eye(len(sums)).to(products))
    return torch.cholesky_solve(sums[:, None], factor)[:, 0]


def _trusted(alphas: Sequence[float], n_ratings: int) -> list[float]:
    """Return the strengths that so many ratings may choose from."""
    strong = sorted(alpha for alpha in alphas if alpha >= LEAST_ALPHA)
    return strong if n_ratings < LEAST_RATINGS and strong else sorted(alphas)


def _n_fitted(
    ratings: Float[Tensor, " n"], prompts: Int[Tensor, " n"], name: str, held_out: float
) -> int:
    """Return how many of an objective's ratings are fitted to; the rest is held out."""
    if not len(ratings):
        raise ValueError(f"{name}: at least 2 ratings are needed; found none")
    if not ratings.isfinite().all():
        raise ValueError(f"{name}: ratings must be finite, or nan where missing; found inf")
    firsts = (1 + (prompts[1:] != prompts[:-1]).nonzero()[:, 0]).tolist()
    if not firsts:
        raise ValueError(
            f"{name}: ratings of at least 2 prompts are needed, as some are held out; found"
            f" {len(ratings)} of one"
        )
    wanted = len(ratings) - max(1, round(held_out * len(ratings)))
    return next((first for first in firsts if first >= wanted), firsts[-1])


def _chosen_ridge(
    features: Float[Tensor, "n d"],
    ratings: Float[Tensor, " n"],
    *,
    alphas: Sequence[float],
    fitted: Int[Tensor, " f"],
    kept: Int[Tensor, " r"],
) -> tuple[Float[Tensor, " d"], float, float, float, float]:
    """Return weights, their alpha, and error, R2 and correlation on the rows held out."""
    equations = normal_equations(features, ratings, fitted)
    fits = torch.stack([ridge(*equations, alpha) for alpha in alphas])
    said = torch.cat([features[rows].double() @ fits.T for rows in kept.split(BLOCK)])
    held = ratings[kept]
    errors = (said - held[:, None]).square().mean(0).tolist()
    place = min(range(len(fits)), key=lambda i: (errors[i], -alphas[i]))
    variance = float(held.var(correction=0))
    explained = 1 - errors[place] / variance if variance else math.nan
    correlation = float(pearson(said[:, [place]], held))
    return fits[place], alphas[place], errors[place], explained, correlation


@dataclass(frozen=True)
class Decorrelation:
    """How much of the reward for verbosity each objective loses."""

    penalties: Float[Tensor, " m"]
    reached: Bool[Tensor, " m"]
    """Whether what is left keeps to the target; where no penalty did, it is 1."""
    verbosity: int
    """The place of the objective that is taken off the others."""

    @property
    def transform(self) -> Float[Tensor, "m m"]:
        """The matrix `T` of `r' = r T`: the identity less the penalties in verbosity's row."""
        whole = torch.diag(torch.ones_like(self.penalties))
        whole[self.verbosity] -= self.penalties
        return whole


def decorrelation(
    rewards: Float[Tensor, "n m"],
    verbosity: int,
    *,
    target: float = 0.03,
    correlation: Correlation = spearman,
    grid: Sequence[float] = PENALTIES,
) -> Decorrelation:
    """Find the least penalties that leave no objective correlated with verbosity.

    arXiv 2406.12845, sec. 3.2: `r'_j = r_j - lambda_j r_v` with the least `lambda_j` for which
    the correlation of `r'_j` and `r_v` is at most `target` (the paper: 0; the released code 0.03,
    on a grid). Only a positive correlation is taken away. Verbosity's own penalty is 1, so that
    `r'_v` is 0. A constant objective correlates with nothing and keeps its reward.

    Args:
        rewards: of many answers, chosen and rejected alike, of prompts that judge nothing later.
        verbosity: the place of that objective.
        target: the highest correlation that may be left.
        correlation: `spearman`, the authors' and the default, or `pearson`.
        grid: rising penalties to choose from.

    Raises:
        ValueError: all answers are equally verbose, so that there is nothing to go by.
    """
    verbose = rewards[:, verbosity]
    if verbose.amin() == verbose.amax():
        raise ValueError(f"rewards for verbosity must differ; found {verbose[0]:g} everywhere")
    penalties = torch.ones_like(rewards[0])
    is_open = torch.ones_like(penalties, dtype=torch.bool)
    is_open[verbosity] = False
    for penalty in grid:
        left = correlation(rewards - penalty * verbose[:, None], verbose)
        is_met = is_open & (left <= target)
        penalties = penalties.masked_fill(is_met, penalty)
        is_open = is_open & ~is_met
    return Decorrelation(penalties, ~is_open, verbosity)


def gated_score(
    rewards: Float[Tensor, "n m"], gate: Float[Tensor, "n m"], transform: Float[Tensor, "m m"]
) -> Float[Tensor, " n"]:
    """The score of an answer: its decorrelated rewards, mixed as its prompt asks.

    arXiv 2406.12845, sec. 3.2: `g(x)^T r'` with `r' = r T`.

    Args:
        rewards: of the answer, by objective.
        gate: of its prompt, by objective.
        transform: of `Decorrelation`; the identity leaves rewards as they are.
    """
    return (rewards @ transform * gate).sum(-1)


def coefficients(
    gate: Float[Tensor, "n m"], transform: Float[Tensor, "m m"]
) -> Float[Tensor, "n m"]:
    """What each raw reward counts in the score: `T g`, so that `sum of r c` is the score.

    Verbosity's is negative wherever the gate looks at an objective that was penalised.
    """
    return gate @ transform.T


def static_mixture(
    chosen: Float[Tensor, "n m"],
    rejected: Float[Tensor, "n m"],
    allowed: Bool[Tensor, " m"],
    *,
    weights: Float[Tensor, " n"],
) -> Float[Tensor, " m"]:
    """The best mixture that is the same for every prompt: what a gate is held against.

    A gate without a prompt, `s softmax(z)`, by the likelihood of the pairs, found by L-BFGS in
    float64. The scale stays within `e^10`, as pairs that one objective ranks right have no end.

    Args:
        chosen: decorrelated rewards of better answers.
        rejected: of worse ones.
        allowed: which objectives may have weight.
        weights: of the pairs, as the gate's training counts them.
    """
    gap = (chosen - rejected).detach().double()
    counts = weights.detach().to(gap) / weights.sum().clamp(min=1e-30)  # all may be 0
    free = torch.zeros(gap.shape[1] + 1, dtype=torch.float64, device=gap.device)
    free.requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=500, line_search_fn="strong_wolfe")

    def mixture() -> Tensor:
        shares = free[:-1].masked_fill(~allowed.to(free.device), -torch.inf).softmax(-1)
        return shares * (10 * (free[-1] / 10).tanh()).exp()

    def closure() -> Tensor:
        optimizer.zero_grad()
        zeros = torch.zeros_like(gap[:, 0])
        losses = bradley_terry(Pairwise(gap @ mixture(), zeros))
        loss = (counts * losses).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return mixture().detach()


def gated_bradley_terry(
    chosen: Float[Tensor, "n m"],
    rejected: Float[Tensor, "n m"],
    gate: Float[Tensor, "n m"],
    transform: Float[Tensor, "m m"],
) -> Float[Tensor, " n"]:
    """Bradley-Terry's loss of the gated scores of two answers to one prompt.

    arXiv 2406.12845, sec. 3.2. There is one gate to a pair, as there is one prompt: the released
    training code keeps it twice and takes the softmax over the two copies, which makes every weight
    one half and teaches nothing.
    """
    sides = (gated_score(side, gate, transform) for side in (chosen, rejected))
    return bradley_terry(Pairwise(*sides))

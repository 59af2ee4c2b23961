"""Cross-fitting: each pair's margin by a reward model that was not trained on its prompt.

Margins on a reward model's own training pairs are too good: it has seen their labels, and one that
knows them by heart contradicts none. MADPO's weights (Rho 2025, arXiv 2510.05342) hang on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from melior.data.files import read_pairs, write_pairs
from melior.models.heads import RewardModel
from melior.options import DataOptions, LoopOptions, ModelOptions
from melior.records import Pair
from melior.rewards.scalar import ScalarScorer, load_scorer, with_margin
from melior.stages.reward_models.train import RewardPlan, train_reward

CROSS_FITTED = "cross_fitted.jsonl"


def cross_fit(
    plan: Callable[[DataOptions, LoopOptions], RewardPlan[RewardModel]],
    model: ModelOptions,
    data: DataOptions,
    loop: LoopOptions,
    *,
    folds: int,
) -> Path:
    """Train a reward model for each fold of the prompts on all others, and let it score its fold.

    Each is a run of its own, in `fold-1`, `fold-2`, ... of the run's folder. Rewards of different
    folds have scales and zeros of their own; only margins are to be compared.

    Args:
        plan: makes the plan of a run from its data and its folder.
        model: how the reward models are held when they score.
        data: whose training pairs are scored; held-out data is left out.
        loop: of the whole.
        folds: at least 2, and at most as many as there are prompts.

    Returns:
        The file of the pairs with their margins, in their order, but for those that are too long.
    """
    pairs, places = in_folds(data, loop, folds)
    scored: dict[int, Pair] = {}
    for fold in range(folds):
        folder = Path(loop.out) / f"fold-{fold + 1}"
        others = folder.with_name(f"{folder.name}-others.jsonl")
        members = [i for i, place in enumerate(places) if place == fold]
        write_pairs(others, (pair for i, pair in enumerate(pairs) if places[i] != fold))
        has_begun = (folder / "run.json").exists()
        own = replace(loop, out=str(folder), resume=loop.resume and has_begun)
        train_reward(plan(replace(data, data=(str(others),), eval_data=()), own))
        held = ModelOptions(
            model=str(folder / "model"), dtype=model.dtype, device=model.device,
            padded=model.padded,
        )  # fmt: skip
        scorer = load_scorer(held, max_tokens=loop.max_tokens, max_length=data.max_length)
        found = _scored(scorer, held.model, [pairs[i] for i in members])
        scored |= {i: pair for i, pair in zip(members, found, strict=True) if pair}
    place = Path(loop.out) / CROSS_FITTED
    write_pairs(place, (scored[i] for i in sorted(scored)))
    return place


def in_folds(data: DataOptions, loop: LoopOptions, folds: int) -> tuple[list[Pair], list[int]]:
    """Return the pairs, and the fold of each: those of one prompt share theirs.

    Raises:
        ValueError: there are fewer prompts than folds.
    """
    pairs = list(read_pairs(data.data, seed=loop.seed))
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    if len(prompts) < folds:
        raise ValueError(
            f"folds: each needs a prompt of its own; found {len(prompts)} prompts for {folds}"
        )
    draw = torch.Generator().manual_seed(loop.seed)
    order = torch.randperm(len(prompts), generator=draw).tolist()
    fold = {prompts[i]: place % folds for place, i in enumerate(order)}
    return pairs, [fold[pair.prompt] for pair in pairs]


def _scored(scorer: ScalarScorer, name: str, pairs: Sequence[Pair]) -> Iterator[Pair | None]:
    """Yield pairs with their margins, None for one that is too long."""
    about = scorer.about(name)
    for pair, chosen, rejected in scorer.pairs(pairs):
        if chosen is None or rejected is None:
            yield None
        else:
            yield with_margin(pair, chosen, rejected, about)

"""Scorers by the name of what they stand on: one loader for every kind of reward model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from melior.models.names import kind_of
from melior.options import ModelOptions, one_of

if TYPE_CHECKING:
    from melior.types import Scorer

KINDS: Final = ("scalar", "aspects", "general", "pairwise")
"""Of reward models, as their folders name them; each has a module here with a `load_scorer`."""


def load_reward_scorer(options: ModelOptions, *, max_tokens: int, max_length: int = 0) -> Scorer:
    """Load a trained reward model of whatever kind its folder holds.

    Args:
        options: which model, and how it is held.
        max_tokens: computed at once; a prompt counts once for all its answers.
        max_length: of prompt and answer together; 0 is as long as the model can.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no reward model, or of a kind that is not known.
    """
    kind = kind_of(options.model)  # before anything heavy is imported
    one_of(f"{options.model}: the kind of a reward model", kind, KINDS)
    module = import_module(f"melior.rewards.{kind}")
    scorer: Scorer = module.load_scorer(options, max_tokens=max_tokens, max_length=max_length)
    return scorer

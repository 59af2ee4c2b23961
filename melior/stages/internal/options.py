"""Options of learning from what a model's own judges agree on, checked when built; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from melior.checks import in_range
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.online.options import ProposalOptions

JudgeName = Literal["judge", "implicit"]


@dataclass(frozen=True)
class ConsistencyOptions:
    """How the model's internal reward models are read, held together, and learned from."""

    beta: float = 0.1
    """Of DPO, and of the implicit reward."""
    implicit: Literal["sum", "mean"] = "sum"
    """The implicit reward's log-ratio, summed over an answer's tokens or averaged, which forgets
    length; averages want a beta near 2."""
    labels: Literal["agreed", "judge"] = "agreed"
    """Learn from pairs on which both agree at that step, or from all as the start model's judge
    labels them (a baseline, with inconsistency_weight 0)."""
    penalty: Literal["js", "symmetric-kl", "squared", "pseudo-label"] = "js"
    """What inconsistency costs: Jensen-Shannon divergence with `gamma` times the mean entropy, or
    one of its rivals."""
    gamma: float = 0.3
    """Weight of doubt in `js`: 0 asks for agreement alone, 1 for one entropy of the mean."""
    inconsistency_weight: float = 1.0
    """Of the penalty on all unlabelled pairs; 0 leaves only the choice of agreed pairs."""
    seed_weight: float = 1.0
    """Of the loss on labelled pairs. With 0 nothing holds agreement to the truth: a control."""
    seed_ratio: float = 0.25
    """Labelled pairs in a step for each unlabelled one."""
    delta: float = 0.0
    """How far from one half both must be to agree."""
    focus: bool = False
    """Weigh the penalty of a pair by how sure both are together."""
    frozen: tuple[JudgeName, ...] = ()
    """Which of them the penalty takes as a teacher, and does not move."""
    warmup_share: float = 0.05
    """Share of the steps that learn from the judge alone, without penalty: at first the implicit
    reward is one half everywhere, and would pull the judge there."""
    warmup_confidence: float = 0.2
    """How far from one half the judge must be in these steps."""
    judge_max_length: int = 2048
    """Tokens of a question to the judge; pairs with longer ones are left out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("gamma", self.gamma, 0)
        in_range("inconsistency_weight", self.inconsistency_weight, 0)
        in_range("seed_weight", self.seed_weight, 0)
        in_range("seed_ratio", self.seed_ratio, 0, above=True)
        in_range("delta", self.delta, 0, 0.5, below=True)
        in_range("warmup_share", self.warmup_share, 0, 1)
        in_range("warmup_confidence", self.warmup_confidence, 0, 0.5, below=True)
        in_range("judge_max_length", self.judge_max_length, 64)
        if len(set(self.frozen)) == 2 and self.inconsistency_weight:
            raise ValueError(
                "frozen: the penalty must have one left to move; found both; give"
                " --inconsistency-weight 0 to leave it out"
            )


@dataclass(frozen=True)
class StopOptions:
    """What ends a run before its last step."""

    patience: int = 200
    """Steps in a row, after the warm-up, in which less than 1 % of the pairs are agreed on."""
    stop_on_shortcut: bool = False
    """Stop where both agree on nearly all pairs though the order decides the judge's verdicts, in
    place of a warning."""

    def __post_init__(self) -> None:
        """Check the range."""
        in_range("patience", self.patience, 1)


@dataclass(frozen=True)
class SelfProposal(ProposalOptions):
    """How the model answers the prompts that it is to learn from, as self-rewarding models do."""

    k: Annotated[int, tyro.conf.arg(aliases=["--num-generations"])] = 4
    """Answers to each prompt, the same number at each temperature."""
    temperatures: tuple[float, ...] = (0.7,)
    top_p: float = 0.9


@dataclass(frozen=True)
class ConsistencyPlan:
    """All that a round needs to know, as values."""

    recipe: str
    paper: str
    options: ConsistencyOptions
    stops: StopOptions
    unlabelled: tuple[str, ...]
    """Where unlabelled pairs lie; which answer is called chosen is not read."""
    model: ModelOptions
    data: DataOptions
    """The labelled pairs, and those held out."""
    optim: OptimConfig
    loop: LoopOptions
    config: object
    """The recipe's dataclass, to be written down."""
    has_own_answers: bool = False
    """The unlabelled pairs are the model's own answers, which nobody can mend: what the data check
    finds in them is said, and stops nothing."""

"""The one table of names: what each way to learn from comparisons is called. Imports nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from melior.objectives.objective import Objective

# Name: (module here, class, what it does).
OBJECTIVES = {
    "dpo": ("relative", "Dpo", "learn from pairs with DPO"),
    "simpo": ("reference_free", "Simpo", "learn from pairs with SimPO"),
    "robust-dpo": ("relative", "RobustDpo", "DPO for labels flipped at a known rate"),
    "ipo": ("relative", "Ipo", "a target for the margin of summed log-ratios"),
    "ipo-mean": ("relative", "IpoMean", "the same of log-ratios averaged over tokens"),
    "hinge": ("relative", "Hinge", "a hinge on DPO's margin"),
    "r-dpo": ("relative", "RDpo", "DPO under a price on length"),
    "beta-dpo": ("adaptive", "BetaDpo", "DPO with a beta for each batch, and a filter"),
    "beta-dpo-clamped": ("adaptive", "BetaDpoClamped", "the same as its released code has it"),
    "wpo": ("adaptive", "Wpo", "DPO weighted by what the model would write"),
    "ld-dpo": ("adaptive", "LdDpo", "DPO in which longer answers' ends count less"),
    "exo": ("relative", "Exo", "reverse KL to the label's choice"),
    "nca": ("relative", "Nca", "noise contrastive alignment"),
    "sppo": ("relative", "Sppo", "self-play preference optimisation, on stored pairs"),
    "aot": ("relative", "Aot", "optimal transport between a batch's margins"),
    "apo-zero": ("relative", "ApoZero", "anchored: chosen up, rejected down"),
    "apo-down": ("relative", "ApoDown", "anchored: both down, rejected further"),
    "discopop": ("relative", "Discopop", "log-ratio modulated loss"),
    "dpop": ("relative", "Dpop", "DPO-positive: chosen answers must not fall"),
    "f-dpo": ("relative", "FDpo", "DPO under another divergence"),
    "gpo-offline": ("relative", "GpoOffline", "log-ratios regressed on stored margins"),
    "slic": ("reference_free", "Slic", "sequence likelihood calibration"),
    "rrhf": ("reference_free", "Rrhf", "rank by average log-probability"),
    "cpo": ("reference_free", "Cpo", "contrastive preference optimisation"),
    "orpo": ("reference_free", "Orpo", "likelihood and odds ratio in one"),
    "kto": ("alone", "Kto", "answers judged alone: Kahneman-Tversky"),
    "bco": ("alone", "Bco", "answers judged alone: a binary classifier"),
    "apo-zero-unpaired": ("alone", "ApoZeroUnpaired", "answers judged alone, anchored"),
    "tpo": ("lists", "Tpo", "rank whole lists, and trees of steps"),
    "plackett-luce": ("lists", "PlackettLuce", "likelihood of a list's order (ListMLE)"),
    "list-softmax": ("lists", "ListSoftmax", "cross-entropy of a list's scores"),
    "all-pairs-dpo": ("lists", "AllPairsDpo", "DPO on all pairs of a list"),
    "best-worst-dpo": ("lists", "BestWorstDpo", "DPO on a list's best against its worst"),
}
"""Every command that trains on comparisons in one stage, and every name in `melior compare`."""

MARGIN_WEIGHTED = {"madpo": ("adaptive", "Madpo", "DPO weighted by a reward model's margins")}
"""Whose command does more: it makes the margins first."""


def objective_kind(name: str) -> type[Objective]:
    """Return the options of an objective.

    Raises:
        ValueError: there is none of this name.
    """
    from melior.checks import one_of

    known = OBJECTIVES | MARGIN_WEIGHTED
    one_of("objective", name, known)
    module, kind, _ = known[name]
    return getattr(import_module(f"melior.objectives.{module}"), kind)

"""Each command's loss reads the right numbers: sums where sums are meant, averages, lengths, steps.

Two groups are made by hand, token by token. What a loss should read of them is counted here with
plain loops, and given to the pure function whose equation `tests/losses` checks.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from melior.losses import listwise, preference, reference_free, unpaired, weights
from melior.objectives.table import MARGIN_WEIGHTED, OBJECTIVES
from melior.stages.method import Answers
from melior.types import Pairwise
from tests.objectives.rows import kind_of

WIDE = torch.float64
# Of each answer its tokens' log-probabilities, of different lengths; of each group its answers.
POLICY = [[[-1.0, -0.5, -1.25], [-0.8, -0.75]], [[-0.3], [-0.9, -1.1, -0.2, -0.4]]]
REFERENCE = [[[-1.5, -0.25, -0.5], [-1.0, -0.5]], [[-0.7], [-1.2, -0.6, -0.3, -0.1]]]
COLLISION = [[[-0.9, -0.8, -0.7], [-1.5, -0.2]], [[-0.1], [-0.2, -0.3, -0.6, -0.5]]]
MARGINS = [3.0, -1.0]
SCORES = {"pairs": [[1.0, 0.0], [1.0, 0.0]], "lists": [[2.0, 7.0], [5.0, 4.0]],
          "answers": [[1.0, math.nan], [0.0, math.nan]]}  # fmt: skip


def flat(nested) -> torch.Tensor:
    return torch.tensor([v for group in nested for one in group for v in one], dtype=WIDE)


def answers(data: str) -> Answers:
    places = [2 * g + a for g in range(2) for a in range(2) for _ in POLICY[g][a]]
    return Answers(
        tokens=flat(POLICY).requires_grad_(),
        reference_tokens=flat(REFERENCE),
        places=torch.tensor(places),
        steps=torch.zeros(len(places), dtype=torch.long),
        scores=torch.tensor(SCORES[data]).double(),
        margins=torch.tensor(MARGINS).double(),
        is_there=torch.ones(2, 2, dtype=torch.bool),
        extras={"collision": flat(COLLISION), "states": torch.ones(len(places), 3).double()},
    )


def reduced(nested, over) -> torch.Tensor:
    return torch.tensor([[float(over(one)) for one in group] for group in nested], dtype=WIDE)


def sides(values: torch.Tensor) -> Pairwise:
    return Pairwise(values[:, 0], values[:, 1])


@dataclass(frozen=True)
class Counted:
    """What a loss may be given, counted by hand."""

    policy = sides(reduced(POLICY, sum))
    reference = sides(reduced(REFERENCE, sum))
    mean = sides(reduced(POLICY, np.mean))
    reference_mean = sides(reduced(REFERENCE, np.mean))
    collision = sides(reduced(COLLISION, np.mean))
    lengths = sides(reduced(POLICY, len))
    ratio = reduced(POLICY, sum) - reduced(REFERENCE, sum)
    half = Pairwise(torch.tensor([1.5, -0.5]).double(), torch.tensor([-1.5, 0.5]).double())
    """A pair's own average preference over itself and the other."""
    good = torch.tensor([True, False])
    scores = torch.tensor(SCORES["lists"]).double()
    mask = torch.ones(2, 2, dtype=torch.bool)


C = Counted()
BOTH = (C.policy, C.reference)


def common(nested) -> Pairwise:
    """Sums over as many tokens as the shorter answer has."""
    shorter = [min(map(len, group)) for group in nested]
    kept = [[one[:n] for one in group] for group, n in zip(nested, shorter, strict=True)]
    return sides(reduced(kept, sum))


def ld(nested) -> Pairwise:
    return weights.length_desensitized(sides(reduced(nested, sum)), common(nested), alpha=0.5)


def beta_dpo() -> torch.Tensor:
    gap = 0.1 * (C.ratio[:, 0] - C.ratio[:, 1])
    start = weights.GapState(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    return weights.beta_dpo(*BOTH, weights.adaptive_beta(gap, start, beta=0.1, alpha=0.6))


def beta_dpo_clamped() -> torch.Tensor:
    gap = C.ratio[:, 0] - C.ratio[:, 1]
    start = weights.GapState(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    seen = weights.tracked_gap(start, gap, momentum=0.9)
    return weights.beta_dpo(*BOTH, weights.clamped_adaptive_beta(gap, seen, beta=0.1, alpha=0.6))


def kto() -> torch.Tensor:
    point = torch.tensor(max(0.0, float(C.ratio[:, 1].mean()))).double()
    return unpaired.kto(C.ratio[:, 0], C.good, point, beta=0.1)


WANTED = {
    "dpo": lambda: preference.dpo(*BOTH, beta=0.1),
    "simpo": lambda: reference_free.simpo(C.mean, beta=2.0, gamma=1.0),
    "robust-dpo": lambda: preference.robust_dpo(*BOTH, beta=0.1, label_smoothing=0.1),
    "ipo": lambda: preference.ipo(*BOTH, tau=0.1),
    "ipo-mean": lambda: preference.ipo(C.mean, C.reference_mean, tau=0.1),
    "hinge": lambda: preference.hinge(*BOTH, beta=0.1),
    "r-dpo": lambda: preference.r_dpo(*BOTH, C.lengths, beta=0.1, alpha=0.05),
    "beta-dpo": beta_dpo,
    "beta-dpo-clamped": beta_dpo_clamped,
    "wpo": lambda: weights.wpo_weight(C.mean, C.collision) * preference.dpo(*BOTH, beta=0.1),
    "ld-dpo": lambda: preference.dpo(ld(POLICY), ld(REFERENCE), beta=0.1),
    "exo": lambda: preference.exo(*BOTH, beta=0.1, label_smoothing=1e-3),
    "nca": lambda: preference.nca(*BOTH, beta=0.1),
    "sppo": lambda: preference.sppo_hard(*BOTH, beta=1e-3),
    "aot": lambda: preference.aot(*BOTH, beta=0.1, label_smoothing=0.0),
    "apo-zero": lambda: preference.apo_zero(*BOTH, beta=0.1),
    "apo-down": lambda: preference.apo_down(*BOTH, beta=0.1),
    "discopop": lambda: preference.discopop(*BOTH, beta=0.1, tau=0.05),
    "dpop": lambda: preference.dpop(*BOTH, beta=0.1, lam=50.0),
    "f-dpo": lambda: preference.f_dpo(*BOTH, beta=0.1, slope=preference.jensen_shannon),
    "gpo-offline": lambda: preference.gpo(*BOTH, C.half, beta=0.1),
    "slic": lambda: reference_free.slic(C.policy, delta=1.0),
    "rrhf": lambda: reference_free.rrhf(C.mean),
    "cpo": lambda: reference_free.cpo(C.policy, beta=0.1, label_smoothing=0.0),
    "orpo": lambda: reference_free.orpo(C.mean, lam=0.1),
    "kto": kto,
    "bco": lambda: unpaired.bco(C.ratio[:, 0], C.good, torch.tensor(0.0).double(), beta=0.1),
    "apo-zero-unpaired": lambda: unpaired.apo_zero_unpaired(C.ratio[:, 0], C.good, beta=0.1),
    "tpo": lambda: listwise.lambda_rank(
        0.1 * C.ratio, listwise.per_list_scores(C.scores, C.mask), C.mask
    ),
    "plackett-luce": lambda: listwise.plackett_luce(0.1 * C.ratio, C.scores, C.mask),
    "list-softmax": lambda: listwise.softmax_cross_entropy(0.1 * C.ratio, C.scores, C.mask),
    "all-pairs-dpo": lambda: listwise.all_pairs(0.1 * C.ratio, C.scores, C.mask),
    "best-worst-dpo": lambda: listwise.best_against_worst(0.1 * C.ratio, C.scores, C.mask),
    "madpo": lambda: weights.madpo(
        *BOTH,
        weights.madpo_weight(torch.tensor(MARGINS).double(), c_max=2.0, tau=7.0, lam=1.0),
        beta=0.1,
    ),
}
KEEP_ALL = {"beta-dpo": {"keep": 1.0}, "beta-dpo-clamped": {"keep": 1.0}}
"""Without the filter's draw, which `test_memory` looks at."""


@pytest.mark.parametrize("name", [*OBJECTIVES, *MARGIN_WEIGHTED])
def test_the_loss_reads_the_right_numbers(name):
    kind = kind_of(name)
    found = kind(**KEEP_ALL.get(name, {})).method().loss(answers(kind.data))
    torch.testing.assert_close(found.detach(), WANTED[name](), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [*OBJECTIVES, *MARGIN_WEIGHTED])
def test_the_gradient_reaches_the_tokens_and_no_further(name):
    """A loss may read margins, scores and states; it teaches none of them."""
    kind = kind_of(name)
    given = answers(kind.data)
    others = [given.scores, given.margins, *given.extras.values()]
    for other in others:
        other.requires_grad_()
    kind().method().loss(given).sum().backward()
    assert given.tokens.grad.isfinite().all() and given.tokens.grad.abs().sum() > 0
    assert all(other.grad is None or not other.grad.any() for other in others)


REWARDS = {
    "simpo": 2.0 * reduced(POLICY, np.mean),
    "ipo-mean": 0.1 * (reduced(POLICY, np.mean) - reduced(REFERENCE, np.mean)),
    "slic": reduced(POLICY, sum),
    "cpo": 0.1 * reduced(POLICY, sum),
    "rrhf": reduced(POLICY, np.mean),
    "sppo": 1e-3 * C.ratio,
    "orpo": reduced(POLICY, lambda one: np.mean(one) - math.log(1 - math.exp(np.mean(one)))),
    "ld-dpo": 0.1 * torch.stack([ld(POLICY).chosen - ld(REFERENCE).chosen,
                                 ld(POLICY).rejected - ld(REFERENCE).rejected], -1),
    "f-dpo": 0.1 * (math.log(2) + C.ratio - (1 + C.ratio.exp()).log()),
}  # fmt: skip
"""Where it is not `beta` times the summed log-ratio."""


@pytest.mark.parametrize("name", [*OBJECTIVES, *MARGIN_WEIGHTED])
def test_the_reward_is_what_the_loss_compares(name):
    kind = kind_of(name)
    method = kind().method()
    wanted = REWARDS.get(name, 0.1 * C.ratio)
    torch.testing.assert_close(method.reward(answers(kind.data)).detach(), wanted)
    assert method.direction == 1


def test_other_forms_of_a_command_are_other_functions():
    given = answers("pairs")
    hinged = kind_of("simpo")(loss_type="hinge").method().loss(given).detach()
    torch.testing.assert_close(hinged, reference_free.simpo_hinge(C.mean, beta=2.0, gamma=1.0))
    for divergence in ("forward_kl", "reverse_kl"):
        slope = getattr(preference, divergence)
        found = kind_of("f-dpo")(divergence=divergence).method().loss(given).detach()
        torch.testing.assert_close(found, preference.f_dpo(*BOTH, beta=0.1, slope=slope))
    lists = answers("lists")
    bounded = kind_of("tpo")(score_low=-10, score_high=10).method().loss(lists).detach()
    scores = listwise.global_scores(C.scores, low=-10, high=10)
    torch.testing.assert_close(bounded, listwise.lambda_rank(0.1 * C.ratio, scores, C.mask))

"""Symptoms: each detector finds one thing that goes wrong in learning from preferences.

The rule that it goes by, with its bounds, stands in its docstring; `health.change` says when a
curve rises or falls beyond its noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from melior.training.health import (
    FEWEST,
    SURE,
    Curve,
    Detector,
    Finding,
    Row,
    change,
    curve,
    mean,
    since,
)

START_TOLERANCE = 0.05
"""Nats of loss; bf16 computes the same log-probability twice to within about a tenth of that."""
FALL, STEEP_FALL = 0.1, 0.5
"""Nats a token by which chosen answers may become less likely: e^-0.1 is 10 % less a token."""
SATURATED, FLAT_MARGIN = 0.99, 10.0
"""Accuracy from which there is nothing left to rank; margin at which sigmoid leaves a gradient
of 5e-5."""
CLIPPED_SHARE, CLIPPED_BY = 0.9, 30.0
"""Adam makes up for clipping that is always the same, and a norm of 10 is usual for SimPO."""
NO_MARGIN = 0.1
"""Nats; a rise of less is no gain, where the noise lets one say so much."""
LENGTH_LINK = 0.5
"""Correlation of margin and length difference."""
REMEDIES = frozenset({"beta", "sft_weight"})
"""Options that a remedy may name and that not every objective has."""


@dataclass(frozen=True)
class Setting:
    """What the numbers of a run are held against."""

    total_steps: int
    max_grad_norm: float
    start_loss: float | None = None
    """The loss of a model that is its own reference; None without a reference."""
    options: frozenset[str] = REMEDIES
    """Those of them that the run has, for only they can help."""


def remedy(options: frozenset[str], *advice: str) -> str:
    """Join what helps, less what names an option that the run does not have."""
    missing = {f"--{name.replace('_', '-')}" for name in REMEDIES - options}
    kept = [one for one in advice if missing.isdisjoint(one.split())]
    return ", or ".join(part for part in (", ".join(kept[:-1]), kept[-1]) if part)


def detectors(setting: Setting) -> tuple[Detector, ...]:
    """Return all that watch a run step by step."""
    return (
        lambda rows: wrong_start(rows, setting.start_loss),
        lambda rows: no_gain(rows, setting.total_steps),
        lambda rows: always_clipped(rows, setting.max_grad_norm),
        constant_rewards,
        no_gradient,
        wrong_way,
        lambda rows: displacement(rows, setting.options),
        saturation,
        lambda rows: exploding_margin(rows, setting.options),
        length_reward,
        overfit,
    )


def wrong_start(rows: Sequence[Row], start_loss: float | None) -> Finding | None:
    """Find a first loss that is not the loss of a model which is its own reference.

    Rule: at step 1 they differ by more than 0.05. Log 2 for DPO; whatever the data, since the
    policy still is the reference.
    """
    first = next((row for row in rows if row["step"] == 1 and "loss" in row), None)
    if start_loss is None or first is None:
        return None
    if abs(first["loss"] - start_loss) <= START_TOLERANCE:
        return None
    return Finding(
        "wrong-start", "warning",
        f"the first loss is {first['loss']:.4g}, but that of a model which is its own reference is"
        f" {start_loss:.4g}: model and reference differ before anything is learned",
        "run once with --dtype fp32: if the loss then starts right, it was rounding; if not, delete"
        " the kept references: the folder reference in $MELIOR_CACHE, or in ~/.cache/melior",
        1, 1, ("loss",),
    )  # fmt: skip


def no_gain(rows: Sequence[Row], total_steps: int) -> Finding | None:
    """Find a run that ends without having learned to tell chosen from rejected.

    Rule: at the last step, neither did the reward margin rise nor the loss fall beyond noise, and
    the margin's rise plus three standard errors is below 0.1: it is known to be next to nothing.
    """
    margin, loss = (change(curve(rows, key)) for key in ("rewards/margins", "loss"))
    if margin is None or loss is None or rows[-1]["step"] < total_steps:
        return None
    most = margin.after - margin.before + SURE * margin.error
    if margin.rises or loss.falls or most >= NO_MARGIN:
        return None
    return Finding(
        "no-gain", "warning",
        f"nothing was learned beyond noise: the margin went from {margin.before:.3g} to"
        f" {margin.after:.3g}, the loss from {loss.before:.3g} to {loss.after:.3g}",
        "raise --learning-rate tenfold, or --epochs; melior data show prints what is scored",
        1, total_steps, ("rewards/margins", "loss"),
    )  # fmt: skip


def always_clipped(rows: Sequence[Row], max_grad_norm: float) -> Finding | None:
    """Find gradients that are cut down in nearly every step, and by much.

    Rule: in nine of ten of the last 20 steps or more, the norm is above 30 times the maximum.
    """
    norms = curve(rows, "grad_norm")
    window = max(FEWEST, len(norms) // 5)
    late = norms[-window:]
    beyond = [norm for _, norm in late if norm > CLIPPED_BY * max_grad_norm]
    if len(norms) < FEWEST or len(beyond) < CLIPPED_SHARE * len(late):
        return None
    middle = statistics.median(norm for _, norm in late)
    return Finding(
        "always-clipped", "note",
        f"gradients are always clipped: of the last {len(late)} steps, {len(beyond)} had a norm"
        f" above {CLIPPED_BY * max_grad_norm:g} (median {middle:.3g}, --max-grad-norm"
        f" {max_grad_norm:g}), so that batches of strong and of weak signal count alike",
        f"raise --max-grad-norm to about {middle:.2g}, or lower --learning-rate if the norm grows",
        late[0][0], late[-1][0], ("grad_norm",),
    )  # fmt: skip


def constant_rewards(rows: Sequence[Row]) -> Finding | None:
    """Find rewards that are the same whatever the answers.

    Rule: over the last 20 steps, chosen and rejected rewards keep one value each to 1e-5 of it.
    """
    sides = [curve(rows, f"rewards/{side}")[-FEWEST:] for side in ("chosen", "rejected")]
    if any(
        len(side) < FEWEST or _spread(side) > 1e-5 * max(1.0, abs(side[0][1])) for side in sides
    ):
        return None
    (first, value), (last, _) = sides[0][0], sides[0][-1]
    return Finding(
        "constant-rewards", "warning",
        f"rewards do not move: {value:.4g} for chosen and {sides[1][0][1]:.4g} for rejected"
        f" answers in every step from {first} to {last}",
        "the weights stay as they are: check --learning-rate, --warmup-ratio and, with an adapter,"
        " --lora-target-modules",
        first, last, ("rewards/chosen", "rewards/rejected"),
    )  # fmt: skip


def no_gradient(rows: Sequence[Row]) -> Finding | None:
    """Find a loss that has nothing left to say to the weights.

    Rule: the gradient's norm is below 1e-6 in each of the last 20 steps.
    """
    late = curve(rows, "grad_norm")[-FEWEST:]
    if len(late) < FEWEST or max(norm for _, norm in late) >= 1e-6:
        return None
    return Finding(
        "no-gradient", "warning",
        f"the gradient is gone: its norm was below 1e-6 in every step from {late[0][0]} to"
        f" {late[-1][0]}, so that only weight decay moves the weights",
        "melior data check finds equal answers; a margin far beyond 10 calls for a lower"
        " --learning-rate or fewer --epochs",
        late[0][0], late[-1][0], ("grad_norm",),
    )  # fmt: skip


def wrong_way(rows: Sequence[Row]) -> Finding | None:
    """Find a reward that praises what the model unlearns: a sign is wrong.

    Rule: the reward margin rises beyond noise, while the margin of log-probabilities falls beyond
    noise, both summed and averaged over tokens.
    """
    sides = "logps/chosen", "logps/rejected", "lengths/chosen", "lengths/rejected"
    full = [row for row in rows if all(row.get(key) is not None for key in sides)]
    steps = [int(row["step"]) for row in full]
    total = [row["logps/chosen"] - row["logps/rejected"] for row in full]
    each = [
        row["logps/chosen"] / max(1.0, row["lengths/chosen"])
        - row["logps/rejected"] / max(1.0, row["lengths/rejected"])
        for row in full
    ]
    curves = (
        curve(rows, "rewards/margins"),
        *(list(zip(steps, v, strict=True)) for v in (total, each)),
    )
    reward, summed, averaged = map(change, curves)
    if not (reward and summed and averaged):
        return None
    if not (reward.rises and summed.falls and averaged.falls):
        return None
    return Finding(
        "wrong-way", "warning",
        f"the reward's margin rose from {reward.before:.3g} to {reward.after:.3g} while chosen"
        " answers became less likely next to rejected ones (margin of log-probabilities"
        f" {summed.before:.3g} to {summed.after:.3g}): the model learns the labels upside down",
        "check the sign of the loss and of its beta, and the columns with melior data show",
        steps[0], steps[-1], ("rewards/margins", "logps/chosen", "logps/rejected"),
    )  # fmt: skip


def displacement(rows: Sequence[Row], options: frozenset[str]) -> Finding | None:
    """Find chosen answers that become less likely while the margin grows.

    Razin et al. 2024, arXiv 2410.08847: likelihood displacement. Rule: the margin rises; the
    chosen answers' reward falls, which is the surer sign where it is relative to a reference; and
    their log-probability a token falls by more than 0.1 (from 0.5 on: a warning). All beyond noise.
    """
    points = curve(rows, "logps/chosen", per="lengths/chosen")
    level = change(points)
    margin, reward = (change(curve(rows, f"rewards/{name}")) for name in ("margins", "chosen"))
    if level is None or margin is None or reward is None:
        return None
    if not (margin.rises and reward.falls and level.falls):
        return None
    fall = level.before - level.after
    if fall <= FALL:
        return None
    first = since(points, lambda mean: mean < level.before - FALL, level.window)
    return Finding(
        "displacement", "warning" if fall > STEEP_FALL else "note",
        f"chosen answers, too, become less likely: {level.before:.3g} to {level.after:.3g} nats a"
        f" token, while the margin went from {margin.before:.3g} to {margin.after:.3g}; the"
        " probability goes to other answers",
        remedy(
            options, "lower --learning-rate", "raise --beta",
            "hold the chosen answers with --sft-weight 0.1",
        ),
        first, points[-1][0], ("logps/chosen", "rewards/margins"),
    )  # fmt: skip


def saturation(rows: Sequence[Row]) -> Finding | None:
    """Find training pairs that are all ranked right, so that only the margins grow.

    Rule: accuracy averages 99 % or more over the last fifth of the steps, of at least 20.
    """
    points = curve(rows, "rewards/accuracies")
    window = max(FEWEST, len(points) // 5)
    late = points[-window:]
    if len(points) < FEWEST or mean(late) < SATURATED:
        return None
    first = since(points, lambda mean: mean >= SATURATED, 5)
    return Finding(
        "saturation", "note",
        f"accuracy is saturated: {mean(late):.1%} of the training pairs are ranked right over the"
        f" last {len(late)} steps; what is still learned is mostly to be surer",
        f"judge on --eval-data with --eval-steps, and stop near --max-steps {max(1, first)}; if it"
        " came within an epoch, melior data check may show an easy rule such as length",
        first, late[-1][0], ("rewards/accuracies",),
    )  # fmt: skip


def exploding_margin(rows: Sequence[Row], options: frozenset[str]) -> Finding | None:
    """Find margins that grow on where the loss has long been satisfied.

    Rule: the margin's last window is more than 10 above the run's first, where the logistic loss
    has a slope of 5e-5, and above the window in the middle of the run beyond noise. Above the
    first, since rewards that are plain log-probabilities differ by length from the start.
    """
    points = curve(rows, "rewards/margins")
    whole, late = change(points), change(points[len(points) // 2 :])
    if whole is None or late is None or not late.rises:
        return None
    limit = whole.before + FLAT_MARGIN
    if late.after <= limit:
        return None
    first = since(points, lambda mean: mean > limit, 5)
    return Finding(
        "exploding-margin", "warning",
        f"the reward margin explodes: {late.before:.3g} in the middle, {late.after:.3g} now, where"
        " the loss hardly has a slope any more; the model runs away from its start",
        remedy(
            options, "lower --learning-rate", "train fewer --epochs",
            "raise --beta to hold it to the start",
        ),
        first, points[-1][0], ("rewards/margins",),
    )  # fmt: skip


def length_reward(rows: Sequence[Row]) -> Finding | None:
    """Find a reward that goes by length.

    Rule: over the second half of the steps, 20 at least, the batches' margin and difference in
    length correlate, and the 95 % interval (Fisher's z) lies beyond 0.5 on one side.
    """
    keys = ("rewards/margins", "lengths/chosen", "lengths/rejected")
    full = [row for row in rows if all(key in row for key in keys)]
    late = full[len(full) // 2 :]
    lengths = [row["lengths/chosen"] - row["lengths/rejected"] for row in late]
    margins = [row["rewards/margins"] for row in late]
    if len(late) < FEWEST or _flat(lengths) or _flat(margins):
        return None
    r = statistics.correlation(lengths, margins)
    bound = math.tanh(math.atanh(min(abs(r), 1 - 1e-12)) - 1.96 / math.sqrt(len(late) - 3))
    if bound <= LENGTH_LINK:
        return None
    kind, other = ("longer", "shorter") if r > 0 else ("shorter", "longer")
    return Finding(
        "length-reward", "note",
        f"the reward goes by length: over {len(late)} steps, margin and difference in length"
        f" correlate by {r:.2f}, so that {kind} answers pay",
        f"add pairs whose {other} answer is chosen, or use a loss that divides or corrects by"
        " length: melior simpo, melior r-dpo, melior ld-dpo",
        int(late[0]["step"]), int(late[-1]["step"]), ("rewards/margins", "lengths/chosen"),
    )  # fmt: skip


def overfit(rows: Sequence[Row]) -> Finding | None:
    """Find a held-out loss that has turned up again while the training loss falls.

    Rule: of at least three evaluations, the last is a tenth above the lowest, and the one before
    is above it too; the training loss falls beyond noise.
    """
    held, loss = curve(rows, "eval_loss"), change(curve(rows, "loss"))
    if len(held) < 3 or loss is None or not loss.falls:
        return None
    best, lowest = min(held, key=lambda point: point[1])
    now = held[-1][1]
    if now <= lowest + 0.1 * abs(lowest) or held[-2][1] <= lowest:
        return None
    return Finding(
        "overfit", "warning",
        f"the held-out loss turned: {lowest:.3g} at step {best}, {now:.3g} now, while the training"
        f" loss went from {loss.before:.3g} to {loss.after:.3g}",
        f"stop at --max-steps {best}, or lower --learning-rate",
        best, held[-1][0], ("loss",),
    )  # fmt: skip


def _spread(points: Curve) -> float:
    values = [value for _, value in points]
    return max(values) - min(values)


def _flat(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= 1e-12

"""TRL's losses by their commands here; where the maths differs, it is refused or named."""

from __future__ import annotations

from collections.abc import Mapping

from melior.checks import one_of
from melior.commands.trl.given import Given, Translation

DPO_LOSSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sigmoid": ("dpo", {"beta": "beta"}),
    "hinge": ("hinge", {"beta": "beta"}),
    "ipo": ("ipo-mean", {"beta": "tau"}),
    "exo_pair": ("exo", {"beta": "beta", "label_smoothing": "label_smoothing"}),
    "nca_pair": ("nca", {"beta": "beta"}),
    "robust": ("robust-dpo", {"beta": "beta", "label_smoothing": "label_smoothing"}),
    "sppo_hard": ("sppo", {"beta": "beta"}),
    "aot": ("aot", {"beta": "beta", "label_smoothing": "label_smoothing"}),
    "apo_zero": ("apo-zero", {"beta": "beta"}),
    "apo_down": ("apo-down", {"beta": "beta"}),
    "discopop": ("discopop", {"beta": "beta", "discopop_tau": "tau"}),
}
"""TRL's loss type, our command, and its options by ours."""
DIVERGENCES = {
    "forward_kl": "forward_kl",
    "js_divergence": "jensen_shannon",
    "alpha_divergence": "alpha",
}


_CONSTANT = "TRL's loss is higher by a constant for each good answer, which has no gradient"
_DPO_KEYS = ("beta", "discopop_tau", "f_alpha_divergence_coef", "f_divergence_type",
             "label_smoothing", "ld_alpha", "use_weighting")  # fmt: skip


def dpo(given: Given, out: Translation, parts: int) -> None:
    """Say the losses of `DPOTrainer`."""
    given.taken |= set(_DPO_KEYS)
    named, weights = given.take("loss_type"), given.take("loss_weights")
    kinds = [named] if isinstance(named, str) else list(named)
    shares = dict(zip(kinds, weights or [1.0] * len(kinds), strict=False))
    sft = float(shares.pop("sft", 0.0))
    if len(shares) != 1 or len(weights or kinds) != len(kinds) or 1 not in shares.values():
        out.refused.append(
            f"loss_type: {', '.join(kinds)}: here it is one loss of weight 1, and sft of any weight"
            " beside it"
        )
        return
    (kind,) = shares
    if kind not in DPO_LOSSES:
        out.refused.append(
            f"loss_type: {kind}: no command here is this loss; {', '.join(DPO_LOSSES)} have one"
        )
        return
    out.command, names = DPO_LOSSES[kind]
    out.options |= {ours: given.number(theirs) for theirs, ours in names.items()}
    if "label_smoothing" not in names and given.number("label_smoothing"):
        out.remarks.append(
            f"TRL {kind} ignores label_smoothing, so it is left out; for conservative DPO add"
            " label_smoothing to melior dpo"
        )
    _variants(given, out, kind)
    if sft and out.command == "wpo":
        out.refused.append("use_weighting: TRL weighs sft by it too; leave sft out")
    if sft:
        out.options |= {"sft_weight": sft, "nll_reduction": "mean_token"}
        _by_parts(out, parts, "the average over the chosen answers' tokens")
    if kind == "aot":
        _by_parts(out, parts, "the sorted margins")
    if kind == "sppo_hard":
        out.differences["half-sppo"] = "TRL's SPPO loss is twice ours, and so are its gradients"
    if kind.startswith("apo"):
        out.remarks.append(_CONSTANT)


def _variants(given: Given, out: Translation, kind: str) -> None:
    """Turn the flags that make another method of `sigmoid` into its command."""
    alpha, divergence = given.take("ld_alpha"), given.take("f_divergence_type")
    is_weighted, order = given.take("use_weighting"), given.take("f_alpha_divergence_coef")
    asked = {
        "ld_alpha": alpha is not None,
        "f_divergence_type": divergence != "reverse_kl",
        "use_weighting": bool(is_weighted),
    }
    changed = [key for key, is_set in asked.items() if is_set]
    if len(changed) > 1 or (changed and (kind != "sigmoid")):
        out.refused.append(f"{' and '.join(changed)}: here only alone, and with loss_type sigmoid")
    elif changed == ["ld_alpha"]:
        out.command = "ld-dpo"
        out.options["alpha"] = given.number("ld_alpha")
    elif changed == ["f_divergence_type"]:
        out.command = "f-dpo"
        one_of("f_divergence_type", str(divergence), DIVERGENCES)
        out.options["divergence"] = DIVERGENCES[divergence]
        if divergence == "alpha_divergence":  # (u^(a - 1) - 1) / (a - 1) there
            out.options["alpha"] = 1.0 - float(order)
    elif changed == ["use_weighting"]:
        out.command = "wpo"


def cpo(given: Given, out: Translation, parts: int) -> None:
    """Say the losses of `CPOTrainer`."""
    given.taken |= {"beta", "label_smoothing"}
    kind, weight = given.take("loss_type"), given.number("cpo_alpha")
    gamma = given.number("simpo_gamma")
    if kind not in ("sigmoid", "simpo") or given.number("alpha"):
        out.refused.append(
            f"loss_type: {kind}, alpha: {given.number('alpha'):g}: no command here is this loss;"
            " sigmoid and simpo with alpha: 0 have one"
        )
        return
    out.command = {"sigmoid": "cpo", "simpo": "simpo"}[kind]
    out.options |= {"beta": given.number("beta"), "sft_weight": weight,
                    "label_smoothing": given.number("label_smoothing"),
                    "nll_reduction": "mean_token"}  # fmt: skip
    if kind == "simpo":
        out.options["gamma"] = gamma
    if kind == "simpo" and weight:
        out.remarks.append(
            f"cpo_alpha {weight:g}{'' if 'cpo_alpha' in given.values else ' (by default)'} adds the"
            " chosen answers' likelihood to SimPO; the paper has none: sft_weight: 0"
        )
    if weight:
        _by_parts(out, parts, "the average over the chosen answers' tokens")


def orpo(given: Given, out: Translation, parts: int) -> None:
    """Say the loss of `ORPOTrainer`, whose `beta` is the paper's lambda."""
    out.command = "orpo"
    out.options |= {"lam": given.number("beta"), "sft_weight": 1.0, "nll_reduction": "mean_token"}
    out.differences["orpo-prompts"] = (
        "TRL averages ORPO's likelihood over the tokens of prompt and answer; the paper and melior"
        " over the answer's"
    )
    _by_parts(out, parts, "the average over the chosen answers' tokens")


def kto(given: Given, out: Translation, parts: int) -> None:
    """Say the losses of `KTOTrainer`."""
    kind = given.take("loss_type")
    commands = {"kto": "kto", "apo_zero_unpaired": "apo-zero-unpaired"}
    one_of("loss_type", str(kind), commands)
    out.command = commands[kind]
    keys = ("beta", "desirable_weight", "undesirable_weight")
    out.options |= {key: given.number(key) for key in keys}
    if kind == "apo_zero_unpaired":
        out.remarks.append(_CONSTANT)
    else:
        _by_parts(out, parts, "the reference point")


def _by_parts(out: Translation, parts: int, what: str) -> None:
    """Note what TRL computes in each part of a batch and we over all of it."""
    if parts > 1:
        out.differences["micro-batches"] = (
            f"TRL takes {what} in each of {parts} micro-batches, melior over the whole batch"
        )

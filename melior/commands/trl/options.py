"""The options of a run that TRL's trainers share, one group after the other."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from melior.commands.trl import losses
from melior.commands.trl.given import Given, Translation, defaults
from melior.records import Facts


def translate(values: Facts, trainer: str, *, processes: int) -> Translation:
    """Say a config of one of TRL's trainers in our words.

    Args:
        values: the options that the YAML file names.
        trainer: whose config it is: `dpo`, `cpo`, `orpo` or `kto`.
        processes: in how many it ran (its world size), since a batch is per process.

    Raises:
        ValueError: a value is of another type than TRL's.
    """
    given, out = Given(values, defaults(trainer)), Translation()
    _model(given, out)
    _adapter(given, out)
    _data(given, out)
    _lengths(given, out)
    parts = _batch(given, out, processes)
    objective = {"dpo": losses.dpo, "cpo": losses.cpo, "orpo": losses.orpo, "kto": losses.kto}[
        trainer
    ]
    objective(given, out, parts)
    _optimizer(given, out)
    _loop(given, out)
    _the_rest(given, out, trainer)
    return out


def _model(given: Given, out: Translation) -> None:
    name = given.take("model_name_or_path")
    if name is None:
        out.refused.append("model_name_or_path: must be given; found none")
    out.options |= {"model": name, "revision": given.take("model_revision"),
                    "trust_remote_code": given.take("trust_remote_code")}  # fmt: skip
    dtype, fp16, bf16 = (given.take(key) for key in ("dtype", "fp16", "bf16"))
    if dtype != "float32" or fp16:
        what = f"dtype: {dtype}" if dtype != "float32" else "fp16: true"
        out.refused.append(
            f"{what}: here a model trained in 16 bits keeps fp32 master weights, and those bits are"
            " bfloat16; TRL's dtype: float32 with bf16: true (mixed precision) is what comes near"
        )
    out.options["dtype"] = "fp32" if bf16 is False else "bf16"
    if given.take("use_cpu"):
        out.options["device"] = "cpu"


def _adapter(given: Given, out: Translation) -> None:
    keys = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora")
    rank, alpha, dropout, modules, is_stabilised = (given.take(key) for key in keys)
    if not given.take("use_peft"):
        out.options["lora_r"] = 0
        out.idle += [key for key in keys if key in given.values]
        return
    if modules is None:
        out.refused.append(
            "lora_target_modules: TRL leaves the choice to PEFT, which makes it by the model's"
            " type; name the modules, or all-linear"
        )
    listed = [modules] if isinstance(modules, str) else list(modules or ())
    # PEFT's rank-stabilised scale is alpha / sqrt(r), the plain one alpha / r.
    scale = float(alpha) * (math.sqrt(float(rank)) if is_stabilised else 1.0)
    out.options |= {"lora_r": rank, "lora_alpha": scale, "lora_dropout": dropout,
                    "lora_target_modules": [] if listed == ["all-linear"] else listed}  # fmt: skip


def _data(given: Given, out: Translation) -> None:
    mixture, name = given.take("datasets"), given.take("dataset_name")
    split, test = given.take("dataset_train_split"), given.take("dataset_test_split")
    if given.take("dataset_config") is not None:
        out.refused.append(
            "dataset_config: a source here is name[:split]; download the configuration's files"
            " and name them"
        )
    if mixture:
        out.options["data"] = [_part(part, out) for part in mixture]
    elif name is None:
        out.refused.append("dataset_name: must be given; found none")
    else:
        out.options["data"] = [f"{name}:{split}"]
    when = given.take("eval_strategy")
    if when in ("no", False):
        given.taken.add("eval_steps")
        return
    if name is None or mixture:
        out.refused.append("eval_strategy: held-out rows of a mixture; name them as a source")
    out.options |= {"eval_data": [f"{name}:{test}"], "eval_steps": _eval_steps(given, out, when)}


def _part(part: Facts, out: Translation) -> str:
    """Return a part of a mixture as a source."""
    wrong = sorted(key for key, value in part.items()
                   if key not in ("path", "split", "columns") and value is not None)  # fmt: skip
    if wrong or "path" not in part:
        out.refused.append(
            f"datasets: a part needs path and may have split; found {', '.join(wrong) or 'no path'}"
            "; name files instead of data_files, and a share as name:split*share"
        )
    return f"{part.get('path')}:{part.get('split', 'train')}"


def _eval_steps(given: Given, out: Translation, when: object) -> int:
    """Return the steps between evaluations; TRL's default are those between two logs."""
    own = given.take("eval_steps")
    steps = given.number("logging_steps") if own is None else given.number("eval_steps")
    if when != "steps" or steps < 1 or steps != int(steps):
        out.refused.append(
            f"eval_strategy: {when}: evaluations come every so many steps here; say eval_strategy:"
            " steps and a whole eval_steps"
        )
    return max(1, int(steps))


def _lengths(given: Given, out: Translation) -> None:
    longest = given.values.get("max_length", given.defaults["max_length"])
    given.taken.add("max_length")
    if longest is None:
        out.refused.append("max_length: null: a maximum is needed here; give the model's own")
    mode = given.take("truncation_mode") if "truncation_mode" in given.defaults else "keep_start"
    if mode != "keep_start":
        out.refused.append(
            f"truncation_mode: {mode}: TRL cuts each answer's row by itself, here a pair loses the"
            " same stretch of its prompt; say keep_start, or raise max_length beyond all rows"
        )
    # TRL trains on what is left of long rows, however many they are.
    out.options |= {"max_length": longest, "truncation_mode": "keep_start", "max_long_share": 1.0}


def _batch(given: Given, out: Translation, processes: int) -> int:
    """Write the batch and return the parts in which TRL computes it."""
    each = given.whole("per_device_train_batch_size")
    parts = given.whole("gradient_accumulation_steps") * processes
    if given.values.get("num_processes") == processes:
        given.taken.add("num_processes")
    out.options["batch_size"] = each * parts
    return parts


def _optimizer(given: Given, out: Translation) -> None:
    keys = ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")
    out.options |= {key: given.number(key) for key in keys}
    if out.options["weight_decay"]:
        out.refused.append(
            f"weight_decay: {out.options['weight_decay']:g}: TRL spares biases and norms, here"
            " every trained weight decays; say 0"
        )
    clip = given.number("max_grad_norm")
    out.options["max_grad_norm"] = clip or 1e9  # 0 is no clipping there
    optimizer = given.take("optim")
    if optimizer not in ("adamw_torch", "adamw_torch_fused"):
        out.refused.append(f"optim: {optimizer}: here it is AdamW; say adamw_torch")
    _schedule(given, out)


def _schedule(given: Given, out: Translation) -> None:
    kind, warmup = given.take("lr_scheduler_type"), given.number("warmup_steps")
    names = {"linear": "linear", "cosine": "cosine", "constant": "constant",
             "constant_with_warmup": "constant"}  # fmt: skip
    if kind not in names:
        out.refused.append(f"lr_scheduler_type: {kind}: here it is one of {', '.join(names)}")
        return
    if kind == "constant":
        warmup = 0.0  # TRL's constant schedule knows no warm-up
    if warmup >= 1:
        steps = given.whole("max_steps")
        if steps <= 0:
            out.refused.append(
                f"warmup_steps: {warmup:g}: a warm-up is a share of the steps here; give a share"
                " below 1, as TRL takes it too, or max_steps"
            )
        warmup = warmup / max(steps, warmup)
    out.options |= {"lr_scheduler_type": names[kind], "warmup_ratio": warmup}
    if warmup:
        out.differences["warm-up"] = (
            "TRL's warm-up of w steps begins at a rate of 0 and reaches the peak at step w + 1;"
            " melior's begins at peak / (w + 1), so that no step is lost"
        )


def _loop(given: Given, out: Translation) -> None:
    steps = given.whole("max_steps")
    out.options |= {
        "out": given.take("output_dir") or "trainer_output",
        "epochs": given.number("num_train_epochs"),
        "max_steps": max(0, steps),
        "gradient_checkpointing": given.take("gradient_checkpointing"),
        "seed": given.whole("seed"),
    }
    if given.take("data_seed") not in (None, out.options["seed"]):
        out.refused.append("data_seed: one seed decides all here; leave it out")
    how, every = given.take("save_strategy"), given.number("save_steps")
    if how not in ("no", "steps") or every != int(every):
        out.refused.append(f"save_strategy: {how}: say steps and a whole save_steps, or no")
    out.options["save_steps"] = int(every) if how == "steps" else 0
    limit = given.take("save_total_limit")
    if limit is not None:
        out.options["save_total_limit"] = limit
    elif how == "steps":
        out.remarks.append("TRL keeps every checkpoint, melior the newest two: save_total_limit")
    _trackers(given, out)


def _trackers(given: Given, out: Translation) -> None:
    asked = given.take("report_to")
    names = [asked] if isinstance(asked, str) else list(asked)
    known = ("tensorboard", "trackio", "wandb")
    wrong = [name for name in names if name not in (*known, "none")]
    if wrong:
        out.refused.append(
            f"report_to: {', '.join(map(str, wrong))}: here it is one or more of {', '.join(known)}"
        )
    out.options["report_to"] = [name for name in names if name in known]


_IDLE = (
    "activation_", "attn_implementation", "bf16_full_eval", "dataloader_", "dataset_num_proc",
    "ddp_", "disable_tqdm", "do_", "eval_accumulation_steps", "eval_do_concat", "eval_on_start",
    "full_determinism", "generate_during_eval", "gradient_checkpointing_kwargs",
    "greater_is_better", "hub_", "ignore_", "include_", "liger_kernel_config", "local_rank", "log_",
    "logging_", "max_completion_length", "metric_for_best_model", "pad_to_", "padding_",
    "per_device_eval_batch_size", "precompute_ref_", "project", "push_to_hub",
    "ref_model_mixup_alpha", "ref_model_sync_steps", "remove_unused_columns", "run_name",
    "save_on_each", "save_only_model", "skip_memory_metrics", "tf32", "torch_compile",
    "torch_empty_cache_steps", "trackio_", "use_cache", "use_liger_kernel",
)  # fmt: skip
"""Beginnings of options that change how fast, where, or with what words TRL runs."""
_NOT_IDLE = frozenset({"dataloader_drop_last"})
_REASONS = {
    "dataloader_drop_last": "the last rows of an epoch are a smaller batch here; say false",
    "accelerate_config": "melior trains on one device; leave it out",
    "deepspeed": "melior trains on one device; leave it out where the model fits",
    "disable_dropout": "the base model's dropout is always off here; say true",
    "env": "set the variables where melior runs",
    "fsdp": "melior trains on one device; leave it out where the model fits",
    "label_smoothing_factor": "it smooths tokens, not preferences; say 0",
    "load_best_model_at_end": "the last weights are kept here; say false",
    "load_in_4bit": "weights are whole here; say false",
    "load_in_8bit": "weights are whole here; say false",
    "model_init_kwargs": "say what it holds as options of their own: model_revision, dtype",
    "num_processes": "it is not what --world-size says; make them agree",
    "resume_from_checkpoint": "checkpoints of TRL cannot be gone on with here; leave it out",
    "sync_ref_model": "the reference is the start model, always; say false",
    "warmup_ratio": "TRL 1.16 does not know it; it takes a share as warmup_steps below 1",
}


def _the_rest(given: Given, out: Translation, trainer: str) -> None:
    """Sort what no part looked at: without effect here, or refused."""
    out.idle += [key for key in given.values if key not in given.taken and _is_idle(key, given)]
    for key in given.left():
        if _is_idle(key, given):
            continue
        near = _near(key, given.defaults)
        unknown = f"TRL 1.16's {trainer} trainer does not know it{near}; leave it out"
        known = "nothing here does that; say TRL's default or leave it out"
        reason = _REASONS.get(key) or (known if key in given.defaults else unknown)
        out.refused.append(f"{key}: {given.values[key]}: {reason}")
    if given.defaults["train_sampling_strategy"] == "sequential":
        out.remarks.append("TRL's KTO takes rows in the file's order; melior shuffles by the seed")


def _is_idle(key: str, given: Given) -> bool:
    is_idle = key in given.defaults and key.startswith(_IDLE) and key not in _NOT_IDLE
    return is_idle or given.is_default(key)


def _near(word: str, known: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {found[0]}?" if found else ""

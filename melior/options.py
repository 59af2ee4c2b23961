"""Options that several commands share, checked when built; no torch, so errors come at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from melior.checks import in_range, known_device


@dataclass(frozen=True)
class ModelOptions:
    """The model that is trained, and how it is held."""

    model: Annotated[str, tyro.conf.arg(aliases=["--model-name-or-path"])]
    """A local folder, a name such as `org/model`, or `smollm2` (embedded)."""
    revision: Annotated[str, tyro.conf.arg(aliases=["--model-revision"])] = "main"
    """Branch, tag or commit of a model that is fetched by name."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """bf16 keeps fp32 master weights beside the bf16 ones."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    chat_template: str = "auto"
    """`auto` (the tokenizer's own; where it has none, plain text), `plain`, `chatml`, or a file."""
    lora_r: int = 0
    """Rank of the LoRA adapter; 0 trains all weights."""
    lora_alpha: float = 0.0
    """Scale of the adapter; 0 means twice the rank."""
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ()
    """Names of the layers that get an adapter; none means every linear layer but the output."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    padded: bool = False
    """Compute each answer in a row of its own, and its prompt with it: slower, for a model that is
    found not to fit the forest of shared prompts."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        known_device(self.device)
        in_range("lora_r", self.lora_r, 0)
        in_range("lora_alpha", self.lora_alpha, 0)
        in_range("lora_dropout", self.lora_dropout, 0, 1, below=True)
        if not self.lora_r and (self.lora_alpha or self.lora_dropout or self.lora_target_modules):
            raise ValueError("lora_r must be above 0 where other lora options are given; found 0")


@dataclass(frozen=True)
class DataOptions:
    """The preferences to learn from, and those held out."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--dataset-name", "--pairs"])]
    """Files, folders or `datasets` names; each `name[:split[:rows]][*weight]`."""
    eval_data: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--eval-dataset-name"])] = ()
    """Held-out preferences, judged before and after."""
    max_length: int = 1024
    """Tokens of prompt and answer together."""
    truncation_mode: Literal["drop", "keep_end", "keep_start"] = "drop"
    """Longer rows are left out, or lose the prompt's start (`keep_end`) or the answer's end."""
    max_long_share: float = 0.05
    """Share of rows that may be too long before this is an error."""
    allow_lint_errors: bool = False
    """Train although the data check found errors; they stay in the report."""
    n_samples: int = 8
    """Prompts answered before and after, side by side in the report."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if "-" in (*self.data, *self.eval_data):
            raise ValueError("data must lie in files, as it is read several times; found - (stdin)")
        in_range("max_length", self.max_length, 2)
        in_range("max_long_share", self.max_long_share, 0, 1)
        in_range("n_samples", self.n_samples, 0)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    learning_rate: float = 5e-7
    """Peak, after the warm-up."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.1
    """Share of the steps over which the rate rises from 0."""
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("warmup_ratio", self.warmup_ratio, 0, 1)
        in_range("weight_decay", self.weight_decay, 0)
        in_range("adam_beta1", self.adam_beta1, 0, 1, below=True)
        in_range("adam_beta2", self.adam_beta2, 0, 1, below=True)
        in_range("adam_epsilon", self.adam_epsilon, 0, above=True)
        in_range("max_grad_norm", self.max_grad_norm, 0, above=True)


@dataclass(frozen=True)
class LoopOptions:
    """How long to train, in what portions, and what to leave behind."""

    out: Annotated[str, tyro.conf.arg(aliases=["--output-dir"])]
    """The run folder."""
    epochs: Annotated[float, tyro.conf.arg(aliases=["--num-train-epochs"])] = 1.0
    max_steps: int = 0
    """Stop after so many optimizer steps; 0 means the epochs decide."""
    batch_size: int = 32
    """Examples per optimizer step, however many portions they are computed in."""
    max_tokens: int = 2048
    """Tokens computed at once; shared prefixes count once. Bounds the memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    save_steps: int = 50
    """Steps between checkpoints; 0 keeps only the end."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    eval_steps: int = 0
    """Steps between evaluations on the held-out data; 0 judges only before and after."""
    kl_budget: float = 0.0
    """Nats an answer that the model may end away from its start without a warning; 0 sets none."""
    seed: int = 42
    resume: Annotated[bool, tyro.conf.arg(aliases=["--resume-from-checkpoint"])] = False
    """Go on from the newest whole checkpoint in the run folder."""
    allow_changes: bool = False
    """Resume although data or options are not those of the checkpoint."""
    overwrite: bool = False
    """Replace a run folder that already holds a run."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = field(default=())
    """Trackers, besides the JSON lines in the run folder."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("epochs", self.epochs, 0, above=True)
        in_range("max_steps", self.max_steps, 0)
        in_range("batch_size", self.batch_size, 1)
        in_range("max_tokens", self.max_tokens, 16)
        in_range("save_steps", self.save_steps, 0)
        in_range("save_total_limit", self.save_total_limit, 1)
        in_range("eval_steps", self.eval_steps, 0)
        in_range("kl_budget", self.kl_budget, 0)
        in_range("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn from a model."""

    k: Annotated[int, tyro.conf.arg(aliases=["--num-generations"])] = 1
    """Answers per prompt."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["--max-completion-length"])] = 256
    stop: tuple[str, ...] = ()
    """Strings that end an answer; they are cut off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("k", self.k, 1)
        in_range("temperature", self.temperature, 0)
        in_range("top_p", self.top_p, 0, 1, above=True)
        in_range("top_k", self.top_k, 0)
        in_range("max_new_tokens", self.max_new_tokens, 1)


@dataclass(frozen=True)
class WorkerOptions:
    """Who does the work, where one process is not enough."""

    processes: int = 0
    """Deal the rows out, in chunks, to so many processes, each with a model of its own and its
    share of the threads and GPUs; 0 works on them here, one behind the other."""
    cluster: str = ""
    """Deal them out over a Ray cluster: its address, such as `10.0.0.1:6379`; `auto`, the one that
    this machine belongs to; or `local`, a new one here. It has a worker for each GPU, or for each
    machine where there are none; `--processes` sets another number. Needs the extra `cluster`."""

    def __post_init__(self) -> None:
        """Check the range."""
        in_range("processes", self.processes, 0)

    @property
    def is_used(self) -> bool:
        """Say whether others work than this process."""
        return bool(self.processes or self.cluster)

    def check(self, device: str) -> None:
        """Check that these workers can take what is to be computed on.

        Raises:
            ValueError: it is one GPU of several.
        """
        if self.is_used and device.startswith("cuda:"):
            raise ValueError(
                f"--device must be auto, cpu or cuda where workers share the GPUs; found {device}"
            )


@dataclass(frozen=True)
class GoalOptions:
    """How rated pairs become pairs under goals."""

    scores: str = "auto"
    """Columns of the two scores, by their stem: `overall_score` is `overall_score_chosen` and
    `overall_score_rejected`, numbers or objects of several attributes; `auto` looks for them. Of
    groups of two candidates it is their score, or `aspects`."""
    scale: Literal["none", "affine", "quantile"] = "none"
    """How scores become goals: as they are, stretched to the scale, or by their ranks. What this
    takes of the data is that of the pairs trained on, and is stored."""
    goal_low: float = 1.0
    goal_high: float = 10.0
    """The top goal, which is asked for at inference."""
    min_gap: float = 0.0
    """Leave out pairs whose goals are closer than this."""
    trust: Literal["label", "score"] = "label"
    """Where scores contradict the label: leave the pair out, or swap it first."""
    placement: Literal["auto", "system", "user_prefix"] = "auto"
    """Where the goal stands; `auto` is the system turn where the chat template writes one."""
    goal_template: str = ""
    """A text file with `{g}` in the line of a goal, and `{name}` where there are several."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("goal_low", self.goal_low)
        in_range("goal_high", self.goal_high, self.goal_low, above=True)
        in_range("min_gap", self.min_gap, 0)


@dataclass(frozen=True)
class JudgeOptions:
    """How a language model judges, and what that may cost."""

    judge_by: Literal["pairs", "ratings"] = "pairs"
    """Compare every two answers of a group (the score is the mean probability to win), or give each
    a rating from 1 to 9."""
    judge_model: str = ""
    """The model's name at a server; empty where it serves one only."""
    judge_calls: int = 0
    """Questions that may be put to the judge; 0 sets no bound. A known reply costs nothing."""
    judge_tokens: int = 0
    """Tokens that the judge may read and write; 0 sets no bound."""
    api_key_env: str = ""
    """Environment variable that holds a server's key."""
    concurrency: int = 8
    """Questions in flight at a server."""
    timeout: float = 600.0
    """Seconds to wait for a server's reply."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is a key."""
        in_range("judge_calls", self.judge_calls, 0)
        in_range("judge_tokens", self.judge_tokens, 0)
        in_range("concurrency", self.concurrency, 1)
        in_range("timeout", self.timeout, 0, above=True)
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(
                f"--api-key-env: {self.api_key_env} must hold the server's key; found nothing in it"
            )


@dataclass(frozen=True)
class EnsembleOptions:
    """How several scorers score as one."""

    ensemble_by: Literal["mean", "median", "worst", "mean_minus_std", "mean_minus_variance"] = (
        "mean"
    )
    """Of an ensemble: its members' mean, their median, what the strictest says, or the mean less
    what they lie apart."""
    ensemble_coefficient: float = 1.0
    """Of `mean_minus_std` and `mean_minus_variance`: how much what they lie apart counts."""
    ensemble_scale: Literal["raw", "centred", "standardised"] = "raw"
    """Of an ensemble: scores as they are, less each member's mean over the prompt's answers, or at
    a standard deviation of 1, too. Reward models trained apart differ by constants of the prompt:
    centre them where `worst` or what lies apart counts."""

    def __post_init__(self) -> None:
        """Check the range."""
        in_range("ensemble_coefficient", self.ensemble_coefficient, 0)


@dataclass(frozen=True)
class ScoringOptions:
    """How a scorer is held and run, whatever it is; each reads of these what it needs."""

    constraints: str = ""
    """For `rules`: constraints for every group besides its own, as a JSON list such as
    `[{"name": "words", "n": 50, "at": "at most"}]`."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """How a model is held."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    padded: bool = False
    """Compute each answer in a row of its own, for a model that does not fit shared prompts."""
    chat_template: str = "auto"
    """Of implicit rewards or a judge that is loaded here: `auto`, `plain`, `chatml`, or a file."""
    max_tokens: int = 4096
    """Tokens that a model computes at once; a prompt counts once for all its answers. On a CPU more
    take memory and save no time; on a GPU they may."""
    max_length: int = 0
    """Tokens of prompt and answer that a reward model reads, the last ones; 0 is all it can.
    Longer answers have no implicit reward."""
    temperature: float = 1.0
    """Scores are divided by it (of a scorer that compares, the comparisons), so that `sigmoid` of
    the difference of two is the chance that the first is preferred; `melior evaluate reward` finds
    it on labelled pairs."""
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    ensemble: EnsembleOptions = field(default_factory=EnsembleOptions)

    def __post_init__(self) -> None:
        """Check the ranges."""
        known_device(self.device)
        in_range("temperature", self.temperature, 0, above=True)
        in_range("max_tokens", self.max_tokens, 16)
        in_range("max_length", self.max_length, 0)

    def model(self, name: str, *, chat_template: str = "auto") -> ModelOptions:
        """Return the options of one model that is loaded to score."""
        return ModelOptions(
            model=name, dtype=self.dtype, device=self.device, chat_template=chat_template,
            padded=self.padded,
        )  # fmt: skip

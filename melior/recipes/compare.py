"""The bake-off: objectives tuned, trained and judged alike, and a sentence on which one to use."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from melior.checks import in_range, one_of
from melior.config import read_config
from melior.data.examples import read_examples
from melior.data.files import read_any, read_pairs
from melior.evaluation.grid import Grid, Setting, Value, read_alone, unlike
from melior.models.names import check_named, find
from melior.objectives.table import objective_kind
from melior.options import ModelOptions
from melior.training.folder import check_folder

if TYPE_CHECKING:
    from melior.objectives.bakeoff import Plan

PAPER = "after Ivison et al. 2024, arXiv 2406.09279"
FACTORS = ("data", "objective", "reward_model", "prompts", "seed")
"""Of the grid. `prompts` are those that a method samples answers to while it learns."""
SEVERAL = "\n"
"""Between the sources of one value of `data`."""
OWN = ("cells", "start", "split", "logs", "results.csv", "results.parquet")
"""What a bake-off leaves besides what every run does."""


@dataclass(frozen=True)
class Rows:
    """What is learned from, and what is judged on."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--dataset-name"])] = ()
    """Pairs, lists or labelled answers; each source `name[:split[:rows]][*weight]`."""
    eval_data: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--eval-dataset-name"])] = ()
    """Held-out rows: comparisons to rank, and prompts to answer; or prompts alone."""
    max_length: int = 1024
    """Tokens of prompt and answer together; longer rows are left out."""
    allow_lint_errors: bool = False
    """Train although the data check found errors."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("max_length", self.max_length, 2)
        if "-" in (*self.data, *self.eval_data):
            raise ValueError("data must lie in files, as it is read several times; found - (stdin)")


@dataclass(frozen=True)
class Tuning:
    """How each objective's settings are chosen, on prompts held apart from the training data."""

    learning_rates: tuple[float, ...] = (3e-5, 1e-4)
    """Tried for every objective at its default strength; then other strengths at the best rate.
    These suit some hundred million weights; models of 7 billion want 3e-7 to 1e-6."""
    sweep_share: float = 0.5
    """Share of the budget that a tried setting trains for; 0 tries nothing and takes the first
    rate with the objective's defaults."""
    validation_share: float = 0.2
    """Share of the training prompts held apart to choose on; nothing is trained on them."""
    validation_k: int = 2
    """Answers to each of them, where answers decide."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.learning_rates:
            raise ValueError("learning_rates: at least one is needed; found none")
        for rate in self.learning_rates:
            in_range("learning_rates", rate, 0, above=True)
        in_range("sweep_share", self.sweep_share, 0, 1)
        in_range("validation_share", self.validation_share, 0, 1, above=True, below=True)
        in_range("validation_k", self.validation_k, 1)


@dataclass(frozen=True)
class Judging:
    """What decides, in the sweeps and between the objectives."""

    metric: Literal["auto", "score", "rules", "accuracy"] = "auto"
    """`score`: a reward model's of sampled answers; `rules`: constraints that they meet;
    `accuracy`: comparisons ranked right by average log-probability; `auto`: the first there is."""
    scorer: str = ""
    """A reward model that scores sampled answers: a folder or `owner/model`."""
    n_prompts: int = 100
    """Prompts answered, at most, on either side of the split."""
    max_new_tokens: int = 72
    """Of an answer; they are drawn at temperature 1, as the KL demands."""
    kl_budget: float = 0.0
    """Nats an answer beyond which a cell is flagged; 0 flags none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("n_prompts", self.n_prompts, 1)
        in_range("max_new_tokens", self.max_new_tokens, 1)
        in_range("kl_budget", self.kl_budget, 0)
        if self.metric == "score" and not self.scorer:
            raise ValueError("metric score needs --scorer, a reward model; found none")


@dataclass(frozen=True)
class Config:
    """Train objectives under one budget, each with its own small sweep, and judge them alike."""

    model: ModelOptions
    rows: Rows
    out: Annotated[str, tyro.conf.arg(aliases=["--output-dir"])]
    """The folder of the bake-off; each cell is a run folder in it."""
    objectives: str = ""
    """Names separated by commas, such as `dpo,simpo,ipo`; or the grid's."""
    grid: str = ""
    """A YAML file with `factors` (data, objective, reward_model, seed) and a `design`."""
    reward_model: str = ""
    """Whose margins weigh the pairs where an objective needs them; else the data's own."""
    seeds: int = 3
    """Runs of each objective at its chosen setting."""
    seed: int = 42
    """The first; the others count up from it."""
    budget: int = 0
    """Tokens that each cell computes in training, a shared prefix once; 0 takes one pass over
    the rows as the first objective reads them."""
    max_steps: int = 0
    """Optimizer steps of each cell, instead of a budget."""
    batch_size: int = 8
    max_tokens: int = 2048
    """Tokens computed at once; bounds the memory."""
    jobs: int = 1
    """Cells trained side by side; the threads are divided among them."""
    keep_models: bool = False
    """Keep the weights of every cell, not only each objective's best."""
    tuning: Tuning = Tuning()
    judging: Judging = Judging()
    resume: bool = False
    """Go on, or add objectives and seeds: finished cells are kept."""
    overwrite: bool = False
    """Replace the bake-off that the folder holds."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("seeds", self.seeds, 1, 1000)
        in_range("seed", self.seed, 0, 2**31)
        in_range("budget", self.budget, 0)
        in_range("max_steps", self.max_steps, 0)
        in_range("batch_size", self.batch_size, 1)
        in_range("max_tokens", self.max_tokens, 16)
        in_range("jobs", self.jobs, 1, 256)
        if self.budget and self.max_steps:
            raise ValueError("budget and max_steps say the same: give one; found both")


def run(config: Config) -> Path:
    """Split, tune, train and judge every cell, and write the tables and the report."""
    settings = _settings(config)
    _check(config, settings)
    from melior.objectives.bakeoff import Experiment
    from melior.report.bakeoff import present
    from melior.training.run import Run

    place = Path(config.out)
    if config.overwrite:
        _delete(place)
    with Run.create(
        place, "compare", config, sys.argv, paper=PAPER,
        resume=config.resume, overwrite=config.overwrite, allow_changes=True,
    ) as record:  # fmt: skip
        for name in _unread(config, settings):
            record.note(f"{name}: no objective here reads it, so that it changes no cell")
        experiment = Experiment(_plan(config), settings, record.note)
        experiment.tune()
        present(experiment.compare(), place)
    return place / "report.html"


def _settings(config: Config) -> list[dict[str, Value]]:
    """Return the cells' settings, seeds included, each once."""
    given: dict[str, Any] = read_config(config.grid) if config.grid else {}
    for key in given:
        one_of(f"{config.grid}: an entry", key, ("factors", "design"))
    factors = given.get("factors", {})
    if not isinstance(factors, dict):
        raise ValueError(f"{config.grid}: factors must be a mapping of lists; found {factors!r}")
    for key in factors:
        one_of(f"{config.grid}: a factor", key, FACTORS)
    named = [name.strip() for name in config.objectives.split(",") if name.strip()]
    whole: dict[str, Sequence[Value]] = {
        "data": _values(config, factors, "data") or [SEVERAL.join(config.rows.data)],
        "objective": _values(config, factors, "objective") or named,
        "reward_model": _values(config, factors, "reward_model") or [config.reward_model],
        "prompts": _values(config, factors, "prompts") or [""],
        "seed": _values(config, factors, "seed")
        or list(range(config.seed, config.seed + config.seeds)),
    }
    design = given.get("design", "full")
    one_of(f"{config.grid}: design", str(design), ("full", "one_at_a_time"))
    for name in whole["objective"]:
        objective_kind(str(name))
    return read_alone(Grid(whole, design).settings(), _reads)


def _unread(config: Config, settings: Sequence[Setting]) -> list[str]:
    """Return the factors that the grid's file varies and that no cell reads."""
    given = read_config(config.grid).get("factors", {}) if config.grid else {}
    return [name for name in given if not any(setting[name] != "" for setting in settings)]


def _values(config: Config, factors: Mapping[str, Any], name: str) -> list[Value]:
    """Return a factor's values, each once, as the grid's file has them."""
    given = factors.get(name, [])
    values = given if isinstance(given, list) else [given]
    wanted = int if name == "seed" else str
    for value in values:
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(
                f"{config.grid}: {name} must be a list of {wanted.__name__}; found {value!r}"
            )
    return list(dict.fromkeys(values))


def _reads(setting: Setting) -> frozenset[str]:
    """Say which factors change a cell: margins only where the loss reads them."""
    needs_margins = objective_kind(str(setting["objective"])).reads_margins
    return frozenset({"data", "objective", "seed", *(["reward_model"] if needs_margins else [])})


def _check(config: Config, settings: Sequence[Setting]) -> None:
    """Look at everything that can be known to be wrong before torch is loaded."""
    arms = unlike({key: s[key] for key in FACTORS if key != "seed"} for s in settings)
    if len(arms) < 2:
        found = arms[0]["objective"] if arms else "none"
        raise ValueError(
            f"objectives: two or more are needed to compare, such as dpo,simpo; found {found}"
        )
    check_folder(Path(config.out), resume=config.resume, overwrite=config.overwrite)
    _spare(config, arms)
    check_named(config.model)
    for model in {str(s["reward_model"]) for s in settings} | {config.judging.scorer}:
        if model:
            find(model)
    if not config.rows.eval_data:
        raise ValueError("eval_data: held-out rows are needed to judge on; found none")
    for source in config.rows.eval_data:
        if next(read_any(source), None) is None:
            raise ValueError(f"{source}: needs at least one row; found no row")
    for setting in arms:
        if not setting["data"]:
            raise ValueError("data: at least one source is needed; found none")
        _look(setting)


def _spare(config: Config, arms: Sequence[Setting]) -> None:
    """Refuse to delete, with an old bake-off, what the new one is to read."""
    names = [source for arm in arms for source in str(arm["data"]).split(SEVERAL)]
    out = Path(config.out).resolve()
    for name in (*names, *config.rows.eval_data, config.model.model, config.reward_model):
        if config.overwrite and out in Path(name).resolve().parents:
            raise ValueError(
                f"{config.out}: --overwrite would delete {name}, which this bake-off reads;"
                " choose another folder"
            )


def _look(setting: Setting) -> None:
    """Read the first row as the objective needs it."""
    name = str(setting["objective"])
    kind = objective_kind(name)
    sources = str(setting["data"]).split(SEVERAL)
    for source in sources:
        if next(read_examples(kind.data, [source]), None) is None:
            raise ValueError(f"{source}: needs at least one row; found no row")
    if kind.reads_margins and not setting["reward_model"]:
        pairs = read_pairs(sources)
        if not any(pair.margin for pair in pairs):
            raise ValueError(
                f"{', '.join(sources)}: {name} needs a 'margin' in its rows; found none but 0;"
                " `melior margins` adds those of a reward model, or give --reward-model"
            )


def _plan(config: Config) -> Plan:
    from melior.objectives.arms import Training
    from melior.objectives.bakeoff import Plan
    from melior.stages.bakeoff.exam import Exam

    tuning, judging, rows = config.tuning, config.judging, config.rows
    return Plan(
        training=Training(
            Path(config.out), config.model, rows.max_length, rows.allow_lint_errors,
            config.batch_size, config.max_tokens,
        ),
        exam=Exam(
            n_prompts=judging.n_prompts, max_new_tokens=judging.max_new_tokens,
            scorer=judging.scorer, max_length=rows.max_length, max_tokens=config.max_tokens,
            seed=config.seed,
        ),
        eval_data=rows.eval_data,
        budget=config.budget,
        max_steps=config.max_steps,
        learning_rates=tuning.learning_rates,
        sweep_share=tuning.sweep_share,
        validation_share=tuning.validation_share,
        validation_k=tuning.validation_k,
        metric=judging.metric,
        kl_budget=judging.kl_budget,
        jobs=config.jobs,
        keep_models=config.keep_models,
    )  # fmt: skip


def _delete(place: Path) -> None:
    """Delete what an earlier bake-off left, and nothing else."""
    for name in OWN:
        path = place / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

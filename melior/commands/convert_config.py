"""`melior convert-config`: a config of TRL's, as a config of ours."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from melior.checks import in_range
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig

if TYPE_CHECKING:
    from melior.commands.trl.given import Translation


Difference = Literal["half-sppo", "micro-batches", "orpo-prompts", "warm-up"]


@dataclass(frozen=True)
class Config:
    """Turn a YAML config of TRL 1.16 into one of ours, or say why that cannot be done exactly.

    Every option that bears on the result is written out, TRL's own defaults too. What cannot be
    said is refused, each key with its reason and the way out.
    """

    source: tyro.conf.Positional[Path]
    """The YAML file that TRL ran with."""
    to: Annotated[Path, tyro.conf.arg(aliases=["--out"])]
    """The YAML file to write."""
    trainer: Literal["dpo", "cpo", "orpo", "kto"]
    """Whose config it is; SimPO is a loss type of the CPO trainer."""
    world_size: int
    """Processes that TRL ran in: its batch is per process."""
    accept: tuple[Difference, ...] = ()
    """Differences to put up with, by the names that the refusal gives them."""
    overwrite: bool = False
    """Replace a file that is there."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("world_size", self.world_size, 1)


def run(config: Config) -> None:
    """Translate, check, write, and print the command that takes the file."""
    from melior.commands.trl.options import translate
    from melior.config import read_config

    if config.to.exists() and not config.overwrite:
        raise FileExistsError(f"{config.to}: is there already; give --overwrite to replace it")
    values = read_config(config.source)
    try:
        found = translate(values, config.trainer, processes=config.world_size)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from error
    _refuse(config, found)
    _check(config, found)
    config.to.write_text(_text(config, found), encoding="utf-8")
    print(f"melior {found.command} --config {config.to}")


def _refuse(config: Config, found: Translation) -> None:
    """Stop at what cannot be said, and at differences that are not accepted."""
    open_ = {code: text for code, text in found.differences.items() if code not in config.accept}
    said = [*found.refused, *(f"{text}: --accept {code}" for code, text in open_.items())]
    if said:
        raise ValueError(f"{config.source}: cannot be said exactly: " + " | ".join(said))


def _check(config: Config, found: Translation) -> None:
    """Build the config that the command will build, so that what is out of range is refused."""
    from melior.config import config_from_dict
    from melior.objectives.table import objective_kind

    groups = {"model": ModelOptions, "data": DataOptions, "loop": LoopOptions,
              "optim": OptimConfig, "objective": objective_kind(found.command)}  # fmt: skip
    kind = make_dataclass("Made", list(groups.items()), frozen=True)
    config_from_dict(kind, found.options, where=str(config.source))


def _text(config: Config, found: Translation) -> str:
    import yaml

    kept = [text for code, text in found.differences.items() if code in config.accept]
    head = [
        f"melior {found.command} --config {config.to}",
        f"From {config.source.name}, a config of TRL 1.16's {config.trainer} trainer, world size"
        f" {config.world_size}. What it did not name has TRL's default. Rows come in other order.",
        *(f"Accepted: {text}." for text in kept),
        *(f"Note: {text}." for text in found.remarks),
    ]
    if found.idle:
        head.append(f"Left out, since nothing here depends on it: {', '.join(found.idle)}.")
    comments = "".join(f"# {line}\n" for line in head)
    options = {name: value for name, value in found.options.items() if value is not None}
    return comments + yaml.safe_dump(options, sort_keys=False, allow_unicode=True)

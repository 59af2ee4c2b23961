"""`melior merge`: fold an adapter into its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Config:
    """Fold an adapter into its base model and save an ordinary folder."""

    adapter: tyro.conf.Positional[Path]
    """The adapter's folder."""
    out: Annotated[Path, tyro.conf.arg(aliases=["--output-dir"])]
    """The folder to write; new or empty."""
    dtype: Literal["bf16", "fp32"] = "bf16"


def run(config: Config) -> Path:
    """Merge and save; return the folder."""
    from melior.models.names import adapter_base

    if not adapter_base(config.adapter):
        raise ValueError(f"{config.adapter}: needs an adapter (adapter_config.json); found none")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise FileExistsError(f"{config.out}: needs to be a new or empty folder; found files")
    from melior.models.loading import merge

    merge(config.adapter, config.out, dtype=config.dtype)
    return config.out

"""Where numbers go besides the run folder: TensorBoard, trackio, Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from melior.records import Metrics


@runtime_checkable
class Tracker(Protocol):
    """Receives the numbers of each step."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is pending."""


def open_trackers(
    names: Iterable[str], folder: Path, config: Mapping[str, Any], *, start: int = 0
) -> list[Tracker]:
    """Open trackers for a run that goes on after the step `start`.

    Raises:
        ValueError: a package is not installed.
    """
    opened: list[Tracker] = []
    for name in names:
        package = _package(name)
        if name == "tensorboard":
            opened.append(_TensorBoard(package.SummaryWriter, folder, config, start))
        else:
            opened.append(_Service(package, folder, config, start))
    return opened


def check_installed(names: Iterable[str]) -> None:
    """Check that the trackers are installed, before anything slow is done or imported.

    Raises:
        ValueError: a package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(_absent(name))


class _TensorBoard:
    def __init__(
        self, writer: Callable[..., Any], folder: Path, config: Mapping[str, Any], start: int
    ) -> None:
        self._writer = writer(str(folder / "tensorboard"), purge_step=start + 1)
        self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()), 0)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Service:
    """Trackio and Weights & Biases, which share an interface."""

    def __init__(self, package: Any, folder: Path, config: Mapping[str, Any], start: int) -> None:
        self._package = package
        package.init(
            project="melior",
            name=folder.resolve().name,
            config=dict(config),
            resume="allow" if start else "never",
            **({"dir": str(folder)} if package.__name__ == "wandb" else {}),
        )

    def log(self, step: int, metrics: Metrics) -> None:
        self._package.log(metrics, step=step)

    def close(self) -> None:
        self._package.finish()


def _package(name: str) -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise ValueError(_absent(name)) from error


def _absent(name: str) -> str:
    return (
        f"report_to: the package {name} is needed; found it not installed; "
        "pip install 'melior[track]'"
    )

"""Write `docs/commands.md` from the configs of all commands: `python tools/make_commands_page.py`.

Names, defaults and sentences are those of the dataclasses, as on the command line itself.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from melior.cli import COMMANDS, PLANS, command
from melior.commands.plan import PlanConfig, PlanOptions
from melior.objectives.objective import ChosenLikelihood
from melior.options import (
    DataOptions,
    EnsembleOptions,
    GoalOptions,
    JudgeOptions,
    LoopOptions,
    ModelOptions,
    OptimConfig,
    Sampling,
    WorkerOptions,
)
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.stages.marginals.options import MarginalOptions
from melior.training.options import StepOptions

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
SHARED = (ModelOptions, DataOptions, LoopOptions, OptimConfig, Sampling, GoalOptions,
          JudgeOptions, EnsembleOptions, WorkerOptions, ChosenLikelihood, LogOptions,
          TrainOptions, NetworkOptions, StepOptions, FlowOptions, RewardOptions,
          MarginalOptions)  # fmt: skip
POSITIONAL = get_args(Positional[str])[1]
HEAD = """# Commands

`melior COMMAND --help` prints the same on the terminal; `python -m melior` is the same program.

- An option may be written with hyphens or underscores (`--max-length`, `--max_length`).
- `--config FILE.yaml` takes options from a file, each under its own name; a flag overrides it.
  A run folder's `config.yaml` is such a file.
- Names that TRL's users know are accepted as second names.
- An option that is unknown, of another type or out of range is refused before anything is loaded,
  in one sentence.

| Exit code | Meaning |
|---|---|
| 0 | done |
| 1 | `data check` found errors, or the program broke (with a traceback: please report it) |
| 2 | the input is wrong: an option, a file, a row, a model |
| 130, 143 | stopped by Ctrl-C or SIGTERM; a run whose steps had begun has saved |
| 141 | whoever read the output stopped reading |

[Shared options](#shared-options) stand at the end of this page.
"""


def main(place: Path = PAGE) -> None:
    """Write the page."""
    place.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page's text."""
    names = {PLANS if name.startswith("plan ") else name: None for name in COMMANDS}
    parts = [_plan() if name == PLANS else _command(name) for name in names]
    return "\n".join([HEAD, *parts, "## Shared options\n", *map(_shared, SHARED)])


def _plan() -> str:
    """Return the section of all plans: their options, besides those of the run."""
    lines = [f"## melior {PLANS}\n", f"{inspect.getdoc(PlanConfig)}\n"]
    said = "COMMAND is one of "
    names = [name.removeprefix("plan ") for name in COMMANDS if name.startswith("plan ")]
    lines.append(f"{said}{', '.join(f'`{name}`' for name in names)}, with all of its options.\n")
    return "\n".join([*lines, _table(PlanOptions, fields(PlanOptions))])


def _command(name: str) -> str:
    kind, _ = command(name)
    lines = [f"## melior {name}\n", f"{inspect.getdoc(kind)}\n"]
    hints = get_type_hints(kind, include_extras=True)
    groups = [field for field in fields(kind) if is_dataclass(_bare(hints[field.name])[0])]
    own = [field for field in fields(kind) if field not in groups]
    tables = [_table(kind, own)] if own else []
    shared = [(field, _bare(hints[field.name])[0]) for field in groups]
    for field, group in [pair for pair in shared if pair[1] not in SHARED]:
        table, nested = _own(group)
        tables.append(table)
        shared.remove((field, group))
        shared += nested
    lines += tables or [_table(kind, own)]
    if shared:
        lines.append("And these shared options:\n")
        lines += [_group(field, group) for field, group in shared]
        lines.append("")
    return "\n".join(lines)


def _own(kind: type) -> tuple[str, list[tuple[Field[Any], type]]]:
    """Return the table of an objective's options, and the shared groups among them."""
    hints = get_type_hints(kind, include_extras=True)
    kinds = [(field, _bare(hints[field.name])[0]) for field in fields(kind)]
    nested = [pair for pair in kinds if pair[1] in SHARED]
    return _table(kind, [field for field, group in kinds if group not in SHARED]), nested


def _group(field: Field[Any], kind: type) -> str:
    anchor = f"[{_title(kind).lower()}](#{_title(kind).lower()})"
    if field.default is MISSING and field.default_factory is MISSING:
        return f"- {anchor}"
    value = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    changed = [
        f"{_flag(f.name)} {_value(getattr(value, f.name))}"
        for f in fields(kind)
        if getattr(value, f.name) != f.default and f.default_factory is MISSING
    ]
    return f"- {anchor}" + (f", here with the defaults `{' '.join(changed)}`" if changed else "")


def _title(kind: type) -> str:
    named = {OptimConfig: "Optimizer", ChosenLikelihood: "Likelihood"}
    return named.get(kind, kind.__name__.removesuffix("Options"))


def _shared(kind: type) -> str:
    return f"### {_title(kind)}\n\n{inspect.getdoc(kind)}\n\n{_table(kind, fields(kind))}"


def _table(kind: type, shown: Any) -> str:
    hints = get_type_hints(kind, include_extras=True)
    said = _sentences(kind)
    rows = ["| Option | Default | |", "|---|---|---|"]
    for field in shown:
        own, extras = _bare(hints[field.name])
        names = [field.name.upper()] if POSITIONAL in extras else [_flag(field.name)]
        names += [alias for e in extras for alias in getattr(e, "aliases", None) or ()]
        cells = ", ".join(f"`{name}`" for name in names), _default(field), said.get(field.name, "")
        choices = _choices(own)
        text = " ".join(part for part in (choices, cells[2]) if part).replace("|", "\\|")
        rows.append(f"| {cells[0]} | {cells[1]} | {text} |")
    return "\n".join(rows) + "\n"


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def _choices(kind: Any) -> str:
    found = [c for part in (kind, *get_args(kind)) if get_origin(part) is Literal
             for c in get_args(part)]  # fmt: skip
    return "One of " + ", ".join(f"`{choice}`" for choice in found) + "." if found else ""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(field: Field[Any]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "needed"
    value = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    return f"`{_value(value)}`" if value not in ((), "", None) else ""


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentences(kind: type) -> dict[str, str]:
    """Return the sentence under each field."""
    said: dict[str, str] = {}
    for own in reversed(kind.__mro__):
        if is_dataclass(own) and own.__name__ in inspect.getsource(inspect.getmodule(own) or own):
            (body,) = ast.parse(inspect.getsource(own)).body
            assert isinstance(body, ast.ClassDef)
            said |= _documented(body)
    return said


def _documented(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
            yield node.target.id, " ".join(str(after.value.value).split())  # type: ignore[union-attr]


if __name__ == "__main__":
    main()

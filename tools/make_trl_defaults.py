"""Freeze the options of TRL's trainers and their defaults, for `melior convert-config`.

Run inside an environment made from `benchmarks/requirements-trl.txt`, not in melior's:
`python tools/make_trl_defaults.py`. It writes `melior/commands/trl/defaults.json`.
"""

import json
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import trl
from trl.experimental.cpo import CPOConfig
from trl.experimental.orpo import ORPOConfig
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

FILE = Path(__file__).parents[1] / "melior" / "commands" / "trl" / "defaults.json"
TRAINERS = {"dpo": trl.DPOConfig, "cpo": CPOConfig, "orpo": ORPOConfig, "kto": trl.KTOConfig}
SHARED = (ScriptArguments, trl.ModelConfig, DatasetMixtureConfig)


def main() -> None:
    """Write the table: what all trainers share, and what each has of its own."""
    tables = {name: defaults(kind, *SHARED) for name, kind in TRAINERS.items()}
    first, *others = tables.values()
    shared = {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }
    own = {
        name: {key: value for key, value in sorted(table.items()) if key not in shared}
        for name, table in tables.items()
    }
    content = {
        "package": "trl",
        "version": trl.__version__,
        "script": "tools/make_trl_defaults.py",
        "shared": dict(sorted(shared.items())),
        **own,
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def defaults(*kinds: type) -> dict[str, object]:
    """Return the default of each option, as JSON has it."""
    found = {}
    for kind in kinds:
        for field in fields(kind):
            if not field.init:
                continue
            made = (
                field.default_factory() if field.default_factory is not MISSING else field.default
            )
            found[field.name] = plain(None if made is MISSING else made)
    return found


def plain(value: object) -> object:
    """Return a default as JSON; words for what is an enumeration."""
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


if __name__ == "__main__":
    main()

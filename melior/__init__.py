"""melior learns what is better: candidates proposed, scored, chosen, learned from, judged."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

# Loaded at first use, so that `melior --help` does not wait for torch.
_PUBLIC = {
    "Candidate": "melior.records",
    "Group": "melior.records",
    "LanguageModel": "melior.models.language",
    "Pair": "melior.records",
    "Pairwise": "melior.types",
    "Turn": "melior.records",
    "dpo": "melior.losses.preference",
    "read_groups": "melior.data.files",
    "read_pairs": "melior.data.files",
    "simpo": "melior.losses.reference_free",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name from its room at first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'melior' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

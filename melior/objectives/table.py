"""The one table of names: what each way to learn from comparisons is called."""

from __future__ import annotations

from melior.objectives import reference_free, relative
from melior.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": relative.Dpo,
    "simpo": reference_free.Simpo,
}
"""Every command that trains on comparisons in one stage, and every name in `melior compare`."""

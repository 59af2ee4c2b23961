"""The environment in which the rival of the benchmarks lives, made when it is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from melior.training.cache import cache_folder

HERE = Path(__file__).parent
RIVAL_ENV = cache_folder() / "benchmarks" / "trl-1.16.0"
"""Where the rival's environment is made."""


def rival_python(folder: Path) -> Path:
    """Return the Python of the rival's environment, made from its pinned requirements."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", "-r", HERE / "requirements-trl.txt"]
        subprocess.run(install, check=True)
    return python

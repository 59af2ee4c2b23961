"""What a user brings in a Python file and names on the command line, `FILE.py:NAME`; no torch."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from melior.checks import one_of


def check_name(option: str, value: str, known: Iterable[str]) -> None:
    """Check that a name is known, or is one of a file that is there.

    Raises:
        ValueError: the name is neither.
        FileNotFoundError: there is no such file.
    """
    file, colon, name = value.rpartition(":")
    if not colon:
        one_of(option, value, (*known, "FILE.py:NAME"))
    elif not name.isidentifier():
        raise ValueError(f"{option} must name something in a file, FILE.py:NAME; found {value!r}")
    elif not Path(file).is_file():
        raise FileNotFoundError(f"{option}: a file is needed; found none at {file}")


def contents(*names: str | Path) -> dict[str, dict[str, str]]:
    """Return what a run must go on with: a hash of each file, also of the file in `FILE.py:NAME`.

    Names that are no file's, such as those of what is built in, have none.
    """
    files = [str(name).rpartition(":")[0] or str(name) for name in names]
    hashes = {
        file: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
        for file in files
        if Path(file).is_file()
    }
    return {"files": hashes}


def own(name: str) -> object:
    """Return what stands under a name in a file: `FILE.py:NAME`.

    Raises:
        ValueError: there is no such name in the file.
    """
    file, _, wanted = name.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: a Python file is needed; found another kind")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, wanted):
        known = ", ".join(key for key in vars(module) if not key.startswith("_"))
        raise ValueError(f"{file}: {wanted} is needed in it; found {known}")
    found: object = getattr(module, wanted)
    return found

"""Runs commands one after another in processes that share the work: FILE, of a list of their words.

Started by torchrun. `{place}` in a word becomes the process's place; each leaves its own number in
`pid-PLACE` beside the file, to be killed by.
"""

import json
import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("melior", "tests.checked")

from melior.cli import main  # noqa: E402


def run(file: Path) -> None:
    place = os.environ["RANK"]
    (file.parent / f"pid-{place}").write_text(str(os.getpid()))
    for words in json.loads(file.read_text(encoding="utf-8")):
        sys.argv = ["melior", *(word.replace("{place}", place) for word in words)]
        main()


if __name__ == "__main__":
    run(Path(sys.argv[1]))

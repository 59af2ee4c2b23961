"""Runs commands one after another in processes that share the work: FILE, of a list of their words.

Started by torchrun. `{place}` in a word becomes the process's place; each leaves its own number in
`pid-PLACE` beside the file, to be killed by. With `checked` behind FILE, shapes are checked.
"""

import json
import os
import sys
from pathlib import Path


def run(file: Path) -> None:
    from melior.cli import main

    place = os.environ["RANK"]
    (file.parent / f"pid-{place}").write_text(str(os.getpid()))
    for words in json.loads(file.read_text(encoding="utf-8")):
        sys.argv = ["melior", *(word.replace("{place}", place) for word in words)]
        main()


if __name__ == "__main__":
    if sys.argv[2:] == ["checked"]:
        from jaxtyping import install_import_hook

        install_import_hook("melior", "tests.checked")
    run(Path(sys.argv[1]))

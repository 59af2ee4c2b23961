"""Freeze RewardBench's section scores and its score of ties, for `test_reward_bench.py`.

Run with a folder that holds the unpacked wheel of `rewardbench` 0.1.4, where numpy is installed:
`python tests/peers/make_rewardbench.py FOLDER`. It writes `rewardbench.json` beside itself. Of the
package only its constants and three functions are run, as they stand there, since the module around
them imports half a dozen others that they do not need.
"""

import ast
import json
import math
import random
import runpy
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HERE = Path(__file__).parent
FUNCTIONS = ("calculate_scores_per_section", "sample_stats", "process_single_model")


def main(folder: Path) -> None:
    assert (folder / "rewardbench-0.1.4.dist-info").is_dir(), folder
    constants = runpy.run_path(str(folder / "rewardbench" / "constants.py"))
    functions = taken(folder / "rewardbench" / "utils.py")
    draw = random.Random(0)
    content = {
        "package": "rewardbench",
        "version": "0.1.4",
        "script": "tests/peers/make_rewardbench.py",
        "cases": [sections(constants, functions, share, draw) for share in (1.0, 0.6)],
        "ties": [ties(functions, step, draw) for step in (0.0, 0.5, 1.0)],
    }
    (HERE / "rewardbench.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def taken(file: Path) -> dict:
    """Compile three functions of a module by themselves."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    kept = [node for node in body if getattr(node, "name", "") in FUNCTIONS]
    dataset = SimpleNamespace(from_dict=lambda columns: columns)
    space: dict = {"np": np, "math": math, "defaultdict": defaultdict, "Dataset": dataset}
    exec(compile(ast.Module(kept, []), file.name, "exec"), space)
    return space


def sections(constants: dict, functions: dict, share: float, draw: random.Random) -> dict:
    counts, mapping = constants["EXAMPLE_COUNTS"], constants["SUBSET_MAPPING"]
    metrics = {name: draw.random() for name in counts if draw.random() <= share}
    scores = functions["calculate_scores_per_section"](counts, mapping, metrics)
    return {"subsets": metrics, "sections": scores}


def ties(functions: dict, step: float, draw: random.Random) -> dict:
    """Score prompts of both kinds; rounded to a step, some right answers score the same."""

    def score(mean: float) -> float:
        value = draw.gauss(mean, 1)
        return round(value / step) * step if step else value

    rows = [
        {
            "id": f"{kind}:{number}",
            "num_correct": right,
            "scores": [score(1.5) for _ in range(right)] + [score(-1) for _ in range(3)],
        }
        for number in range(25)
        for kind, right in (("ref", 1), ("tied", 2 + number % 3))
        if (kind, number) not in (("ref", 7), ("tied", 9))
    ]
    _, found = functions["process_single_model"](rows)
    return {"rows": rows, "score": float(found)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The world of a run on its page: drawn where there is one, left out where there is none."""

import json
import re
from pathlib import Path

from melior.report.control import section
from melior.report.load import read_run


def run_with(folder: Path, world: object) -> Path:
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"world": world}), "utf-8")
    return folder


WORLD = {
    "errors": {"the log's own actions": {"any candidate": [0.1, 0.4], "the elites' mean": [0.1]}},
    "reward": {"places": [-1.0, 1.0], "rewards": [[0.4, 1.0], [0.7, 0.4]]},
}


def test_errors_and_reward_are_drawn(tmp_path):
    page = section([read_run(run_with(tmp_path / "a", WORLD))])
    assert page is not None
    assert "Error of the world, by the log&#x27;s own actions" in page
    assert "any candidate from 0.1 to 0.4" in page
    squares = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*fill-opacity="([\d.]+)"', page)
    assert len(squares) == 4
    darkest = max(squares, key=lambda square: float(square[2]))
    assert float(darkest[0]) > 100  # to the right, and in the row at the bottom
    assert float(darkest[1]) > 100
    assert "from 0.4 (blank) to 1 (full)" in page


def test_a_run_without_a_world_has_no_such_section(tmp_path):
    for name, world in (("a", {}), ("b", {"errors": {}, "reward": {}}), ("c", None), ("d", [1])):
        assert section([read_run(run_with(tmp_path / name, world))]) is None


def test_damaged_numbers_are_left_out(tmp_path):
    wrong = {"errors": {"x": {"a": "no"}}, "reward": {"places": [0, 1], "rewards": [[1], [2, 3]]}}
    assert section([read_run(run_with(tmp_path / "a", wrong))]) is None

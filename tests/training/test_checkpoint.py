import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from melior.training.checkpoint import (
    Checkpoints,
    Generators,
    differences,
    newest,
    refuse_changes,
    save,
)

ABOUT = {"config": {"beta": 2.0, "data": ["a.jsonl"], "save_steps": 50}, "data": "12ab"}


class Part:
    """Something with a state."""

    def __init__(self, **values: Tensor | float | str) -> None:
        self.values = dict(values)

    def state(self) -> dict[str, Tensor | int | float | str]:
        return dict(self.values)

    def load_state(self, state: dict[str, Tensor | int | float | str]) -> None:
        self.values = dict(state)


def filled(folder: Path, steps: list[int], keep: int = 9) -> None:
    for step in steps:
        save(folder, step, {"part": Part(x=torch.full((5,), step))}, about=ABOUT, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_to_the_same_bits(tmp_path):
    values = {
        "bf16/w.x": torch.randn(3, 4).bfloat16(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "transposed": torch.randn(3, 4, dtype=torch.float64).t(),
        "number": 0.1 + 0.2,
        "count": 2**60,
        "word": "naïve",
        "scalar": torch.tensor(1.0),
    }
    save(tmp_path, 3, {"a": Part(**values), "b": Part(n=1)}, about=ABOUT, keep=1)
    back, other = Part(), Part()
    checkpoint, note = newest(tmp_path)
    assert checkpoint is not None and (checkpoint.step, note) == (3, "")
    assert checkpoint.about == ABOUT
    checkpoint.load({"a": back, "b": other})
    assert other.values == {"n": 1}
    assert back.values.keys() == values.keys()
    for name, value in values.items():
        found = back.values[name]
        if isinstance(value, Tensor):
            assert found.dtype == value.dtype and torch.equal(found, value)
        else:
            assert found == value


def test_no_file_is_a_pickle(tmp_path):
    filled(tmp_path, [1])
    assert names(tmp_path / "step-000001") == ["manifest.json", "state.json", "state.safetensors"]


def test_the_last_few_are_kept_and_nothing_else_is_left(tmp_path):
    filled(tmp_path, [5, 10, 15, 20], keep=2)
    assert names(tmp_path) == ["step-000015", "step-000020"]
    (tmp_path / ".partial-step-000025").mkdir()
    filled(tmp_path, [1_000_000], keep=2)
    assert names(tmp_path) == ["step-000020", "step-1000000"]
    # Resumed at an earlier step, the run gives up what came after.
    filled(tmp_path, [30], keep=2)
    assert names(tmp_path) == ["step-000020", "step-000030"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "state.safetensors"),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text('{"files": '),
        lambda folder: [file.unlink() for file in folder.iterdir()],
    ],
    ids=["bit", "empty", "lost", "no manifest", "list", "dict", "half", "bare"],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    filled(tmp_path, [10, 20])
    damage(tmp_path / "step-000020")
    checkpoint, note = newest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 10
    assert "step-000020: passed over, since it is damaged" in note
    damage(tmp_path / "step-000010")
    checkpoint, note = newest(tmp_path)
    assert checkpoint is None
    assert note.count("passed over") == 2


def test_there_may_be_no_checkpoint(tmp_path):
    assert newest(tmp_path / "none") == (None, "")
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-000001").write_text("a file")
    assert newest(tmp_path) == (None, "")
    assert Checkpoints(tmp_path, {}, about={}).restore() == (0, "")


FULL = """
import resource, sys, torch
from pathlib import Path
from melior.training.checkpoint import save
class Part:
    def __init__(self, rows): self.rows = rows
    def state(self): return {"x": torch.zeros(self.rows)}
    def load_state(self, state): ...
folder = Path(sys.argv[1])
save(folder, 1, {"p": Part(10)}, about={}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save(folder, 2, {"p": Part(100_000)}, about={}, keep=1)
except OSError as error:
    print(error)
"""


def test_where_the_disk_is_full_nothing_half_written_is_left(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "step-000002: a checkpoint must be written; found" in said
    assert "File too large" in said and "older checkpoints are whole" in said
    assert names(tmp_path) == ["step-000001"]
    assert newest(tmp_path)[0].step == 1


def test_a_checkpoint_of_other_parts_is_refused(tmp_path):
    filled(tmp_path, [1])
    checkpoint, _ = newest(tmp_path)
    with pytest.raises(ValueError, match=r"\['actor'\] are needed; found \['part'\]"):
        checkpoint.load({"actor": Part()})


def test_generators_go_on_where_they_were(tmp_path):
    own = torch.Generator().manual_seed(7)
    torch.rand(3, generator=own)
    parts = {"random": Generators({"sampling": own})}
    save(tmp_path, 1, parts, about={}, keep=1)
    expected = torch.rand(4, generator=own), torch.rand(4)
    own.manual_seed(0)
    newest(tmp_path)[0].load(parts)
    assert torch.equal(torch.rand(4, generator=own), expected[0])
    assert torch.equal(torch.rand(4), expected[1])


def test_differences_are_sentences_and_free_options_are_none():
    now = {"config": {"beta": 2.5, "data": ("a.jsonl",), "save_steps": 1, "gamma": 1}, "data": "3"}
    assert differences(ABOUT, now) == [
        "beta was 2.0, is now 2.5",
        "gamma was not given, is now 1",
        "data was 12ab, is now 3",
    ]
    assert differences(ABOUT, json.loads(json.dumps(ABOUT))) == []


def test_resuming_with_other_options_is_refused_unless_allowed(tmp_path):
    part = Part(x=torch.ones(2))
    Checkpoints(tmp_path, {"part": part}, about={"loss": "dpo", "beta": 0.1}).save(4)
    changed = Checkpoints(tmp_path, {"part": Part()}, about={"loss": "simpo", "beta": 0.1})
    with pytest.raises(ValueError) as caught:
        changed.restore()
    assert "step-000004: to resume, options and data must be as they were" in str(caught.value)
    assert "loss was dpo, is now simpo; set them back, or add --allow-changes" in str(caught.value)
    assert changed.restore(allow_changes=True) == (4, "")
    with pytest.raises(ValueError, match="total_steps was 3, is now 4"):
        refuse_changes({"total_steps": 3}, {"total_steps": 4}, where=tmp_path)


def test_a_step_is_saved_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"part": Part(x=torch.ones(2))}, about={})
    checkpoints.save(2)
    before = (tmp_path / "step-000002").stat().st_ino
    checkpoints.save(2)
    assert (tmp_path / "step-000002").stat().st_ino == before
    # Another run, resumed before it, replaces it.
    Checkpoints(tmp_path, {"part": Part(x=torch.zeros(2))}, about={}).save(2)
    part = Part()
    newest(tmp_path)[0].load({"part": part})
    assert torch.equal(part.values["x"], torch.zeros(2))

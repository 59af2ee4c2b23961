import importlib.machinery
import json
import os
import resource
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from melior.config import config_from_dict, read_config
from melior.options import LoopOptions, OptimConfig
from melior.training import processes
from melior.training.folder import check_folder
from melior.training.loop import Interrupted
from melior.training.run import Run, last_metrics, write_json, write_json_lines


@dataclass(frozen=True)
class Config:
    loop: LoopOptions
    optim: OptimConfig = field(default_factory=OptimConfig)
    beta: float = 2.0


COMMAND = ["melior", "simpo", "--out", "a b", "--overwrite"]


def begin(folder: Path, config: Config | None = None, **choices: object) -> Run:
    config = config or Config(LoopOptions(str(folder)))
    return Run.create(folder, "simpo", config, COMMAND, paper="arXiv 2405.14734", **choices)


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_what_it_is_and_how_it_ended(tmp_path):
    folder = tmp_path / "runs" / "a"
    with begin(folder) as run:
        assert record(folder)["status"] == "running"
        run.append(1, {"loss": 0.5})
    found = record(folder)
    assert (found["status"], found["recipe"], found["command"]) == ("finished", "simpo", COMMAND)
    assert found["started"] <= found["finished"]
    assert found["versions"].keys() == {"melior", "python", "torch", "transformers"}
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_the_config_can_be_given_back(tmp_path):
    config = Config(LoopOptions(str(tmp_path), overwrite=True, max_steps=3), OptimConfig(1e-7))
    begin(tmp_path, config, overwrite=True).finish("finished")
    back = config_from_dict(Config, read_config(tmp_path / "config.yaml"))
    # How the run was begun is not part of what it is.
    assert back == replace(config, loop=replace(config.loop, overwrite=False))


def test_failures_and_interruptions_are_noted(tmp_path):
    with pytest.raises(RuntimeError), begin(tmp_path / "a"):
        raise RuntimeError("out of luck")
    assert record(tmp_path / "a")["reason"] == "RuntimeError: out of luck"
    assert record(tmp_path / "a")["status"] == "failed"
    with pytest.raises(Interrupted) as caught, begin(tmp_path / "b"):
        raise Interrupted(7, 2)
    assert str(caught.value) == (
        "SIGINT: stopped after step 7; go on with: melior simpo --out 'a b' --resume"
    )
    assert caught.value.exit_code == 130
    assert record(tmp_path / "b")["status"] == "stopped"
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "c"):
        raise KeyboardInterrupt
    assert record(tmp_path / "c")["status"] == "stopped"


def test_over_several_machines_torchrun_is_started_as_before(tmp_path, monkeypatch):
    """What it was told of where they meet is known to none of its processes."""
    monkeypatch.setattr(processes._world, "count", 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    one = processes.command(COMMAND)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    several = processes.command(COMMAND)
    monkeypatch.undo()
    with begin(tmp_path) as run:
        run.record["command"] = one
        assert run.resume_command == (
            "torchrun --nproc-per-node 4 -m melior simpo --out 'a b' --resume"
        )
        run.record["command"] = several
        assert run.resume_command == "torchrun on every machine, started as before, with --resume"


def test_a_folder_with_a_run_is_refused_with_ways_out(tmp_path):
    begin(tmp_path).finish("finished")
    with pytest.raises(ValueError, match=r"go on with it by --resume, replace it by --overwrite"):
        begin(tmp_path)
    with pytest.raises(ValueError, match="exclude each other"):
        begin(tmp_path, resume=True, overwrite=True)
    with pytest.raises(ValueError, match="a run to resume is needed; found none"):
        begin(tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a folder is needed for the run; found a file"):
        begin(tmp_path / "file")
    assert not (tmp_path / "new").exists()


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    run = begin(tmp_path)
    run.append(1, {"loss": 0.5})
    run.finish("finished")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    begin(tmp_path, overwrite=True).finish("finished")
    assert rows(tmp_path) == []
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_of_no_run_is_never_deleted(tmp_path, overwrite):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="folder without model is needed"):
        begin(tmp_path, overwrite=overwrite)
    assert (tmp_path / "model").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_told_at_once(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="closed to writing"):
        check_folder(tmp_path / "a" / "b", resume=False, overwrite=False)


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    run = begin(tmp_path)
    for step in range(1, 6):
        run.append(step, {"loss": 1 / step})
        run.append(step, {"eval_loss": 2 / step})
    run.finish("stopped")
    before = rows(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    again = begin(tmp_path, resume=True)
    again.rewind(3)
    assert rows(tmp_path) == before[:6]
    again.append(4, {"loss": 0.25})
    assert {k: v for k, v in rows(tmp_path)[6].items() if k != "time"} == {"step": 4, "loss": 0.25}
    assert rows(tmp_path)[6]["time"] >= before[5]["time"]
    assert len(record(tmp_path)["resumed"]) == 1
    again.rewind(0)
    assert rows(tmp_path) == []
    again.finish("finished")


def test_resuming_with_other_options_is_refused_before_anything_is_written(tmp_path):
    begin(tmp_path).finish("stopped")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    config = Config(LoopOptions(str(tmp_path), save_steps=1), beta=2.5)
    with pytest.raises(ValueError, match=r"beta was 2\.0, is now 2\.5"):
        begin(tmp_path, config, resume=True)
    with pytest.raises(ValueError, match="recipe was simpo, is now dpo"):
        Run.create(tmp_path, "dpo", Config(LoopOptions(str(tmp_path))), COMMAND, resume=True)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    begin(tmp_path, config, resume=True, allow_changes=True).finish("finished")
    begin(tmp_path, replace(config, loop=LoopOptions("b")), resume=True).finish("stopped")


def test_a_damaged_record_is_named(tmp_path):
    begin(tmp_path).finish("stopped")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: JSON is needed; .*use --overwrite"):
        begin(tmp_path, resume=True)
    begin(tmp_path, overwrite=True).finish("finished")


def test_numbers_that_json_has_not_are_null(tmp_path):
    with begin(tmp_path) as run:
        run.append(1, {"eval_x": float("nan")})
    assert rows(tmp_path)[0]["eval_x"] is None


def test_json_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"ü": 1})
    for wrong in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(file, wrong)
    assert json.loads(file.read_text()) == {"ü": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_tracker_says_which_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is needed; .* pip install 'melior\[track\]'"):
        begin(tmp_path / "a", report_to=["wandb"])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("fails_at", ["log", "finish"])
def test_a_tracker_that_fails_ends_no_run(tmp_path, monkeypatch, fails_at):
    said = []

    def act(name, *values):
        said.append((name, *values))
        if name == fails_at:
            raise ConnectionResetError("its server is gone")

    service = types.ModuleType("trackio")
    service.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    service.init = lambda **options: act("init")
    service.log = lambda metrics, step: act("log", step)
    service.finish = lambda: act("finish")
    monkeypatch.setitem(sys.modules, "trackio", service)
    with begin(tmp_path, report_to=["trackio"]) as run:
        for step in (1, 2):
            run.append(step, {"loss": 0.5})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    assert "its server is gone" in record["notes"][0]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    asked = [("log", 1)] if fails_at == "log" else [("log", 1), ("log", 2), ("finish",)]
    assert said == [("init",), *asked]


@pytest.mark.filterwarnings("ignore:::tensorboard")
def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with begin(tmp_path, report_to=["tensorboard"]) as run:
        for step in (1, 2, 3):
            run.append(step, {"loss": 1 / step})
    with begin(tmp_path, report_to=["tensorboard"], resume=True) as run:
        run.rewind(2)
        run.append(3, {"loss": 9.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_notes_and_last_numbers_can_be_read_back(tmp_path):
    with begin(tmp_path) as run:
        assert last_metrics(run.folder) == {}
        run.append(1, {"loss": 0.5})
        run.append(2, {"loss": 0.25})
        run.append(2, {"eval_loss": 0.75})
        run.note("a checkpoint was passed over")
        found = last_metrics(run.folder)
    assert (found["step"], found["loss"]) == (2, 0.25)
    assert record(tmp_path)["notes"] == ["a checkpoint was passed over"]


def test_json_lines_are_one_object_each(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [{"ü": "a\nb"}, {"x": 1}])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"ü": "a\nb"}, {"x": 1}]


def test_a_disk_that_fills_at_a_line_of_numbers_is_told_and_the_run_has_failed(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(OSError, match=r"metrics\.jsonl: the numbers of step \d+ must be .*--resume"),
        begin(tmp_path) as run,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        try:
            for step in range(1, 1000):
                run.append(step, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record(tmp_path)["status"] == "failed" and "make room" in record(tmp_path)["reason"]


def test_a_module_is_gone_on_with_by_its_command():
    assert processes.command(["/x/melior/__main__.py", "dpo"]) == ["melior", "dpo"]
    assert processes.command(["/x/bin/melior", "dpo"]) == ["/x/bin/melior", "dpo"]

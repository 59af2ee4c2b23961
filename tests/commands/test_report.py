"""`melior report` writes the page where it says, prints the verdict, and refuses in a sentence."""

import re
import subprocess
import sys

import pytest
import tyro

from melior.commands import report
from tests.report import runs


def test_the_page_lies_in_the_run_folder_and_the_verdict_is_printed(tmp_path, capsys):
    folder = runs.finished(tmp_path / "a")
    report.run(tyro.cli(report.Config, args=[str(folder)]))
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert "Better by 21 points (15 to 27), n = 100" in printed
    assert "41 won, 50 tied, 9 lost; win rate 66% (56 to 74)" in printed
    assert "Warnings of the data check: Equal answers." in printed
    assert f"Report: {folder / 'report.html'}" in printed


def test_several_runs_go_to_the_file_that_is_named(tmp_path, capsys, monkeypatch):
    a, b = runs.finished(tmp_path / "x" / "a"), runs.failed(tmp_path / "y" / "a")
    config = tyro.cli(
        report.Config, args=[str(a), str(b), "--out", str(tmp_path / "new" / "p.html")]
    )
    report.run(config)
    assert "2 runs side by side" in (tmp_path / "new" / "p.html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "x/a · finished" in printed
    assert "y/a · failed" in printed
    assert "Failed after 37 steps" in printed
    monkeypatch.chdir(tmp_path)
    report.run(report.Config((str(a), str(b))))
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("make", [runs.failed, runs.running, runs.bare])
def test_a_run_without_judgement_is_reported_too(tmp_path, capsys, make):
    report.run(report.Config((str(make(tmp_path / "r")),)))
    assert (tmp_path / "r" / "report.html").exists()
    words = {"failed": "the loss is nan", "running": "1 damaged line", "bare": "run.json could not"}
    assert words[make.__name__] in " ".join(capsys.readouterr().out.split())


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="nowhere: a run folder is needed; found nothing"):
        report.run(report.Config((str(tmp_path / "nowhere"),)))
    with pytest.raises(FileNotFoundError, match=r"holds run\.json, .*; found notes\.txt; give"):
        report.run(report.Config((str(tmp_path),)))
    with pytest.raises(FileNotFoundError, match="needed; found a file"):
        report.run(report.Config((str(tmp_path / "notes.txt"),)))
    with pytest.raises(ValueError, match="at least one run folder"):
        report.Config(())
    with pytest.raises(ValueError, match=re.escape(f"found a folder: {tmp_path}")):
        report.Config(("a",), out=str(tmp_path))
    with pytest.raises(ValueError, match="found a device: /dev/null"):
        report.Config(("a",), out="/dev/null")


def test_no_torch_is_loaded_for_a_report(tmp_path):
    folder = runs.running(tmp_path / "r")
    code = (
        "import sys; from melior.commands import report;"
        f"report.run(report.Config(({str(folder)!r},))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

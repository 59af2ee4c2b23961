"""What went wrong stands in the report with its remedy, and marks the curves that show it."""

import json
import re

from melior.report import health
from melior.report.load import read_run
from melior.report.page import page, worth_a_look
from tests.report import runs


def test_findings_stand_on_the_page_with_steps_and_remedy(tmp_path):
    whole = page([read_run(runs.finished(tmp_path / "r"))])
    part = re.search(r'<section id="health">.*?</section>', whole).group()
    for said in (
        "<b>Displacement</b>: chosen answers, too, become less likely",
        "steps 60 to 180",
        "lower --learning-rate, or --sft-weight 0.1",
        "<b>Wrong start</b>",
        "<small>step 1</small>",
    ):
        assert said in part, said
    assert part.index("Displacement") < part.index("Wrong start")
    assert '<a href="#health">Health</a>' in whole


def test_only_the_curves_that_show_a_finding_are_marked(tmp_path):
    run = read_run(runs.finished(tmp_path / "r"))
    whole = page([run])
    charts = re.findall(r'<figure class="chart".*?</figure>', whole)
    marked = [re.search(r"<b>(.*?)</b>", chart).group(1) for chart in charts if "band" in chart]
    assert marked == ["Loss", "Log-probability"]
    (chart,) = [chart for chart in charts if "<b>Log-probability</b>" in chart]
    assert "Displacement from step 60" in chart
    assert [band.name for band in health.bands(run, ["logps/chosen", "other"])] == ["Displacement"]
    assert health.bands(run, ["grad_norm"]) == []


def test_a_mark_lies_inside_its_chart(tmp_path):
    folder = runs.finished(tmp_path / "r", steps=40)
    for first, last in ((60, 180), (1, 40), (40, 40), (1, 1)):
        row = runs.HEALTH[0] | {"first": first, "last": last}
        runs.write(folder / "health.json", {"findings": [row]})
        (rect,) = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)"', page([read_run(folder)]))
        assert 46 <= float(rect[0]) <= float(rect[0]) + float(rect[1]) <= 352.001


def test_warnings_are_worth_a_look_and_notes_are_not(tmp_path):
    remarks = worth_a_look(read_run(runs.finished(tmp_path / "r")))
    (said,) = [remark for remark in remarks if "less likely" in remark]
    assert said.startswith("Chosen answers, too,")
    assert said.endswith("What helps: lower --learning-rate, or --sft-weight 0.1.")
    assert not any("0.78" in remark for remark in remarks)


def test_a_calm_run_says_so_and_an_unwatched_one_says_nothing(tmp_path):
    calm = runs.finished(tmp_path / "r", "dpo")
    assert health.CALM in page([read_run(calm)])
    (calm / "health.json").unlink()
    assert 'id="health"' not in page([read_run(calm)])


def test_runs_side_by_side_keep_their_findings_apart(tmp_path):
    made = [runs.finished(tmp_path / "a"), runs.finished(tmp_path / "b", "dpo")]
    whole = page([read_run(folder) for folder in made])
    part = re.search(r'<section id="health">.*?</section>', whole).group()
    assert part.count("<h3>") == 2 and part.count(health.CALM) == 1
    assert 'class="band"' not in whole


def test_a_remark_is_text_and_never_markup(tmp_path):
    folder = runs.finished(tmp_path / "r")
    rows = [dict.fromkeys(runs.HEALTH[0], runs.HOSTILE) | {"level": "warning"}]
    (folder / "health.json").write_text(json.dumps({"findings": rows}), encoding="utf-8")
    assert "<script>window" not in page([read_run(folder)])

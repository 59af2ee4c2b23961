"""The page of a run of several rounds: what is there is shown, what is not is left out."""

import json

import pytest

from melior.report import rounds
from melior.report.load import read_run
from tests.report import runs

NAMES = ("reward of the scorer", "score of the held-out scorer", "answer length")


def wins(rate):
    return {"wins": 6, "ties": 0, "losses": 4, "win_rate": rate, "low": rate - 0.1,
            "high": rate + 0.1, "length_controlled": {"win_rate": rate - 0.02}}  # fmt: skip


def made(root, n=3, *, with_judge=True, parts=""):
    """A run folder as `melior online` leaves it, around runs with curves and samples."""
    whole = runs.finished(root / "online", "rlhf-workflow", gain=0.1, n=20)
    for number in range(n + 1):
        here = whole / f"round-{number}"
        here.mkdir()
        if number:
            runs.finished(here / "learn", "rlhf-workflow", gain=0.05 * number, n=20)
        level = 0.3 + 0.05 * number
        numbers = {"reward": [level - 0.1, level + 0.1], "kl": [number * 0.5] * 2,
                   "length": [40.0 + number] * 2}  # fmt: skip
        numbers |= {"judge": [level - 0.2, level]} if with_judge else {}
        against = {"comparisons": [], "wins": {"reward": wins(0.5 + 0.05 * number)}}
        judged = {"round": number, "numbers": numbers,
                  "means": {name: sum(v) / 2 for name, v in numbers.items()}}  # fmt: skip
        if number:
            judged |= {"against": {"start": against, "last": against},
                       "agreement": 0.7, "parts": parts}  # fmt: skip
        (here / "judged.json").write_text(json.dumps(judged))
        counts = {"prompts": 10, "chosen": 10 - number, "dropped": {"equal scores": number}}
        manifest = {"round": number, "counts": counts if number else {}, "cost": {"seconds": 61.0}}
        (here / "manifest.json").write_text(json.dumps(manifest))
    return whole


def shown(folder):
    return rounds.page(read_run(folder), rounds.read_rounds(folder))


def test_every_round_has_its_line_and_its_curves(tmp_path):
    folder = made(tmp_path)
    assert rounds.has_rounds(folder)
    assert [one.number for one in rounds.read_rounds(folder)] == [0, 1, 2, 3]
    page = shown(folder)
    for said in ("round\N{NO-BREAK SPACE}3", "65% (55 to 75); at equal lengths 63%", "7 prompts",
                 "30%", "1 min 1 s", "Reward of the scorer over rounds: ",
                 "Win rate over rounds: ", "Gain since the start over rounds: ",
                 "Prompts that taught nothing over rounds", "3 rounds · 30 prompts",
                 "They do not part"):  # fmt: skip
        assert said in page, said


def test_where_scorers_part_is_said(tmp_path):
    page = shown(made(tmp_path, parts="round 2: since round 1 the scorer's reward rose"))
    assert "Round 2: since round 1 the scorer" in page
    assert "They do not part" not in page


def test_one_scorer_has_nothing_to_part_from(tmp_path):
    page = shown(made(tmp_path, with_judge=False))
    assert "Scorer and held-out scorer" not in page
    assert "round\N{NO-BREAK SPACE}3" in page


@pytest.mark.parametrize("lost", ["manifest.json", "judged.json"])
def test_what_is_damaged_is_left_out(lost, tmp_path):
    folder = made(tmp_path)
    (folder / "round-2" / lost).write_text('{"half')
    found = rounds.read_rounds(folder)
    assert [one.number for one in found] == ([0, 1, 3] if lost == "judged.json" else [0, 1, 2, 3])
    assert "round\N{NO-BREAK SPACE}3" in shown(folder)


def test_a_run_that_has_only_begun_has_a_page(tmp_path, capsys):
    folder = made(tmp_path, 0)
    rounds.present(folder)
    assert "Report: " in capsys.readouterr().out
    assert "Rounds" in (folder / "report.html").read_text(encoding="utf-8")

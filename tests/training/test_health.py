"""What goes wrong in a run is found, with its numbers; what goes well is left in peace."""

import json
import math
import random
import re
from pathlib import Path

import pytest

from melior.training import final_symptoms, symptoms
from melior.training.final_symptoms import answer_lengths, over_budget, repeated_rows
from melior.training.health import Health, change, curve, since
from melior.training.run import Run, read_rows
from melior.training.symptoms import Setting, detectors

CURVES = Path(__file__).parent / "curves"
SETTING = Setting(total_steps=200, max_grad_norm=1.0, start_loss=math.log(2))
FALLING = {"logps/chosen": -200.0, "logps/rejected": -260.0, "rewards/chosen": -5.0}
SICK = FALLING | {"logps/chosen": -300.0, "logps/rejected": -400.0, "rewards/margins": 40.0}


def run_of(steps=200, seed=0, noise=1.0, **goals):
    """Rows of a DPO run: each metric goes from its start to its goal, with a batch's noise."""
    ends = {
        "loss": (math.log(2), 0.5, 0.03),
        "rewards/chosen": (0.0, 0.1, 0.03),
        "rewards/rejected": (0.0, -0.4, 0.05),
        "rewards/margins": (0.0, 0.5, 0.06),
        "rewards/accuracies": (0.5, 0.72, 0.08),
        "logps/chosen": (-150.0, -149.0, 12.0),
        "logps/rejected": (-150.0, -154.0, 12.0),
        "lengths/chosen": (100.0, 100.0, 8.0),
        "lengths/rejected": (100.0, 100.0, 8.0),
        "grad_norm": (3.0, 3.0, 0.8),
    }
    draw, rows = random.Random(seed), []
    for step in range(1, steps + 1):
        done = (step - 1) / (steps - 1)
        row = {"step": step}
        for key, (start, goal, spread) in ends.items():
            goal = goals.get(key, goal)
            row[key] = start + (goal - start) * done + draw.gauss(0, spread * noise) * (step > 1)
        row["rewards/accuracies"] = min(1.0, row["rewards/accuracies"])
        row["grad_norm"] = abs(row["grad_norm"])
        rows.append(row)
    return rows


def found(rows, setting=SETTING):
    results = (watch(rows) for watch in detectors(setting))
    return {finding.code: finding for finding in results if finding}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("steps", [30, 200])
def test_a_healthy_run_is_left_in_peace_however_often_it_is_looked_at(seed, steps):
    rows = run_of(steps=steps, seed=seed)
    setting = Setting(steps, SETTING.max_grad_norm, SETTING.start_loss)
    for look in range(1, 21):
        assert found(rows[: steps * look // 20], setting) == {}


@pytest.mark.parametrize("steps", [0, 1, 19])
def test_a_run_that_is_too_short_for_a_trend_is_left_in_peace(steps):
    rows = run_of(steps=30, **{"logps/chosen": -400.0})[:steps]
    assert found(rows, Setting(200, 1.0)) == {}


def test_noise_alone_is_seldom_a_change():
    """At most 8 of 1000 in one direction, by Student's t; 2000 curves leave room for chance."""
    draw, rises = random.Random(1), 0
    for _ in range(2000):
        points = [(step, draw.gauss(0, 1)) for step in range(40)]
        rises += change(points).rises
    assert rises <= 2 * 0.0085 * 2000


@pytest.mark.parametrize(
    ("code", "goals"),
    [
        ("displacement", FALLING | {"logps/chosen": -190.0}),
        ("saturation", {"rewards/accuracies": 1.6}),
        ("exploding-margin", {"rewards/margins": 40.0}),
        ("no-gain", {"rewards/margins": 0.0, "loss": 0.6931}),
        ("always-clipped", {"grad_norm": 300.0}),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_each_symptom_is_found_alone_and_says_where(code, goals, seed):
    rows = run_of(seed=seed, **goals)
    symptom = found(rows)
    assert set(symptom) == {code}
    finding = symptom[code]
    assert 1 <= finding.first <= finding.last == 200
    assert finding.curves and all(key in rows[0] for key in finding.curves)
    assert any(character.isdigit() for character in finding.text)


def test_displacement_is_a_note_first_and_a_warning_where_it_is_steep():
    goals = FALLING | {"logps/rejected": -400.0}
    mild, steep = (
        found(run_of(**goals | {"logps/chosen": end}))["displacement"] for end in (-180.0, -260.0)
    )
    assert (mild.level, steep.level) == ("note", "warning")
    # The mild fall of 0.3 a token is past 0.1 after about a third of the run.
    assert 20 < steep.first < mild.first < 110
    assert "--sft-weight" in steep.remedy


def test_a_fall_of_the_batches_mean_alone_is_no_displacement():
    """By chance, later batches may hold answers that were unlikely from the start."""
    goals = FALLING | {"rewards/chosen": 0.1}
    assert "displacement" not in found(run_of(**goals))


def test_chosen_answers_that_fall_without_a_margin_are_not_displaced():
    goals = FALLING | {"logps/rejected": -200.0, "rewards/margins": 0.0}
    assert "displacement" not in found(run_of(**goals))


def test_longer_answers_late_in_the_data_are_no_displacement():
    """Sums fall with length alone; what counts is a token's log-probability."""
    rows = run_of(**FALLING | {"logps/chosen": -225.0, "lengths/chosen": 150.0})
    assert "displacement" not in found(rows)


def test_a_first_loss_that_is_not_log_2_is_found_at_once():
    rows = run_of(steps=200)
    rows[0]["loss"] = 0.78
    finding = found(rows[:1])["wrong-start"]
    assert "0.78" in finding.text and "0.6931" in finding.text
    assert (finding.first, finding.last) == (1, 1)
    assert found(rows[:1], Setting(200, 1.0, start_loss=None)) == {}
    rows[0]["loss"] = 0.70
    assert found(rows[:1]) == {}


def test_a_sign_error_is_found_though_the_margin_looks_perfect():
    """beta = -0.1: the reward's margin rises as the log-ratio's falls."""
    rows = run_of(**{"logps/chosen": -200.0, "logps/rejected": -140.0})
    assert found(rows)["wrong-way"].level == "warning"
    for row in rows:
        row["rewards/margins"] *= -1
    assert "wrong-way" not in found(rows)


def test_rewards_and_gradients_that_stand_still_are_found():
    rows = run_of()
    for row in rows:
        row |= {"rewards/chosen": 0.25, "rewards/rejected": 0.25, "grad_norm": 1e-8}
    symptom = found(rows)
    assert {"constant-rewards", "no-gradient"} <= set(symptom)
    rows[-1]["rewards/chosen"] = 0.3
    rows[-1]["grad_norm"] = 0.1
    assert not {"constant-rewards", "no-gradient"} & set(found(rows))


def test_noise_that_could_hide_a_gain_is_not_called_none():
    rows = run_of(noise=4.0, **{"rewards/margins": 0.0, "loss": 0.6931})
    assert "no-gain" not in found(rows)


def test_no_gain_is_only_said_at_the_end():
    rows = run_of(**{"rewards/margins": 0.0, "loss": 0.6931})
    assert "no-gain" not in found(rows[:150])


def test_a_held_out_loss_that_turns_up_is_found_with_the_step_to_stop_at():
    def with_evaluations(*losses):
        rows = run_of()
        for place, loss in enumerate(losses, 1):
            rows.append({"step": 40 * place, "eval_loss": loss})
        return rows

    finding = found(with_evaluations(0.69, 0.6, 0.66, 0.72))["overfit"]
    assert finding.first == 80 and "--max-steps 80" in finding.remedy
    for calm in ((0.69, 0.6), (0.69, 0.6, 0.59, 0.58), (0.69, 0.6, 0.61, 0.62), (0.69, 0.68, 0.6)):
        assert "overfit" not in found(with_evaluations(*calm))


@pytest.mark.parametrize(("sign", "kind"), [(1, "longer"), (-1, "shorter")])
def test_a_reward_that_goes_by_length_is_found(sign, kind):
    rows = run_of()
    for row in rows:
        row["rewards/margins"] += sign * 0.02 * (row["lengths/chosen"] - row["lengths/rejected"])
    assert f"{kind} answers pay" in found(rows)["length-reward"].text


def test_one_length_for_all_answers_is_no_link():
    rows = run_of()
    for row in rows:
        row |= {"lengths/chosen": 100.0, "lengths/rejected": 90.0}
    assert "length-reward" not in found(rows)


def test_a_budget_of_kl_is_a_warning_only_where_the_estimate_is_sure():
    assert over_budget(4.0, 0.1, 5.0) is None
    assert over_budget(99.0, 0.1, 0.0) is None
    assert over_budget(6.0, 0.4, 5.0).level == "warning"
    assert over_budget(6.0, 0.6, 5.0).level == "note"
    assert over_budget(6.0, None, 5.0).level == "note"


def test_only_options_that_the_run_has_are_advised():
    every = symptoms.remedy(
        symptoms.REMEDIES, "lower --learning-rate", "raise --beta", "--sft-weight 0.1"
    )
    assert every == "lower --learning-rate, raise --beta, or --sft-weight 0.1"
    few = symptoms.remedy(frozenset({"sft_weight"}), "lower --learning-rate", "raise --beta")
    assert few == "lower --learning-rate"


def test_rewards_that_differ_by_length_from_the_start_do_not_explode():
    rows = [{"step": n, "rewards/margins": 40.0 + 0.01 * n} for n in range(1, 101)]
    assert symptoms.exploding_margin(rows, symptoms.REMEDIES) is None
    rows = [{"step": n, "rewards/margins": 40.0 + 0.3 * n} for n in range(1, 101)]
    assert symptoms.exploding_margin(rows, symptoms.REMEDIES).code == "exploding-margin"


def test_answers_that_leave_the_datas_length_are_found():
    before, data = [40, 44, 38, 42, 39, 41, 45, 40], [35, 45, 40]
    grown = answer_lengths(before, [2 * n for n in before], data)
    assert "grew from 41.1 to 82.2 tokens" in grown.text and "have 40" in grown.text
    assert "shrank" in answer_lengths(before, [n // 3 for n in before], data).text
    assert answer_lengths(before, [2 * n for n in before], [90, 100]) is None
    assert answer_lengths(before, [n + 3 for n in before], data) is None
    assert answer_lengths([], [], data) is None
    scattered = [10, 160, 12, 200, 9, 150, 8, 300]
    assert answer_lengths(before, scattered, data) is None


def test_rows_that_repeat_are_found_from_a_tenth_on():
    assert repeated_rows(0.09, 1) is None
    assert "30% of the rows" in repeated_rows(0.3, 2).text


@pytest.mark.parametrize("steps", [20, 21, 40, 400])
def test_windows_are_a_tenth_and_at_least_five(steps):
    points = [(step, float(step)) for step in range(1, steps + 1)]
    got = change(points)
    assert got.window == max(5, steps // 10)
    assert got.before == (1 + got.window) / 2
    assert got.after == steps - (got.window - 1) / 2
    assert got.rises and not got.falls


def test_since_is_where_a_trailing_mean_begins_to_hold_for_good():
    points = [(10 * i, float(v)) for i, v in enumerate([5, 0, 0, 0, 5, 5, 5, 5])]
    assert since(points, lambda mean: mean > 4, 1) == 40
    assert since(points, lambda mean: mean > 4, 2) == 50
    assert since(points, lambda mean: mean > 9, 2) == 70


def test_curves_skip_rows_without_the_metric_and_without_a_divisor():
    rows = [{"step": 1, "a": 4.0, "b": 2.0}, {"step": 1, "eval_a": 1.0}, {"step": 2, "a": 1.0},
            {"step": 3, "a": 1.0, "b": 0.0}]  # fmt: skip
    assert curve(rows, "a") == [(1, 4.0), (2, 1.0), (3, 1.0)]
    assert curve(rows, "a", per="b") == [(1, 2.0)]


def watched(folder, rows, said, past=()):
    watch = detectors(SETTING)
    health = Health(folder, watch, total_steps=200, note=said.append, past=past)
    for row in rows:
        health(row["step"], {key: value for key, value in row.items() if key != "step"})
    return json.loads((folder / "health.json").read_text(encoding="utf-8"))["findings"]


def test_the_hook_says_each_finding_once_and_keeps_its_last_state(tmp_path):
    said = []
    rows = run_of(**SICK)
    kept = watched(tmp_path, rows, said)
    assert len(said) == len({sentence[:20] for sentence in said}) == len(kept) == 2
    assert all("; what helps: " in sentence for sentence in said)
    assert [finding["last"] for finding in kept] == [200, 200]


def test_a_healthy_run_leaves_an_empty_list(tmp_path):
    assert watched(tmp_path, run_of(), []) == []


@pytest.mark.parametrize("cut", [1, 57, 150, 200])
def test_a_resumed_run_finds_what_one_without_a_stop_finds(tmp_path, cut):
    rows = run_of(**SICK)
    (tmp_path / "whole").mkdir()
    whole = watched(tmp_path / "whole", rows, [])
    assert watched(tmp_path, rows[cut:], [], past=rows[:cut]) == whole


def test_a_resumed_run_does_not_repeat_its_notes(tmp_path):
    from tests.training.test_run import begin, record

    with begin(tmp_path) as run:
        run.note("chosen answers fall")
        run.note("chosen answers fall")
        run.append(1, {"loss": 0.5})
        run.append(2, {"loss": float("nan")})
        assert isinstance(run, Run)
    assert record(tmp_path)["notes"] == ["chosen answers fall"]
    assert [row.get("loss") for row in read_rows(tmp_path)] == [0.5, None]


def real(name):
    """Rows of a real run, and what they are held against; the file says which command made them."""
    content = json.loads((CURVES / f"{name}.json").read_text(encoding="utf-8"))
    rows = content["rows"]
    return rows, Setting(len(rows), SETTING.max_grad_norm, content["start_loss"])


def test_the_demos_own_run_is_left_in_peace():
    """The training of `melior demo --fast`: batches of 8, as noisy as they come."""
    rows, setting = real("demo_fast")
    for look in range(1, len(rows) + 1):
        assert found(rows[:look], setting) == {}


def test_a_real_run_at_a_rate_far_too_high_is_found_out_early():
    """DPO at 200 times its usual rate: a third of the way it is known, with two thirds to save."""
    rows, setting = real("dpo_hot")
    early = found(rows[:21], setting)
    assert set(early) == {"displacement"}
    assert early["displacement"].level == "warning"
    assert "-1.56 to -2.7 nats a token" in early["displacement"].text
    assert set(found(rows[:48], setting)) == {"displacement", "exploding-margin"}


def test_the_page_names_every_symptom():
    text = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")
    rules = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    rooms = (symptoms, final_symptoms)
    source = "".join(Path(room.__file__).read_text(encoding="utf-8") for room in rooms)
    assert rules >= set(re.findall(r'^        "([a-z]+(?:-[a-z]+)*)", ', source, re.MULTILINE))
    assert {"displacement", "kl-budget", "repeated-rows", "wrong-start"} <= rules

"""What a bake-off says: no more than was shown, and what is missing where nothing is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from melior.evaluation.bakeoff import Outcome, outcome
from melior.evaluation.compare import Interval
from melior.report import bakeoff, charts, duels

N, SEEDS = 80, (1, 2, 3)


def numbers(shift, seed):
    draw = np.random.default_rng(seed)
    met = np.clip(np.random.default_rng(0).uniform(0.2, 0.4, N) + shift, 0, 1)
    noise = draw.normal(scale=0.02, size=N)
    return {"rules": (met + noise).tolist(), "kl": draw.uniform(1, 2, N).tolist(),
            "length": draw.uniform(5, 9, N).tolist()}  # fmt: skip


def row(arm, seed, **changes):
    return {
        "cell_id": f"{arm}-{seed}", "stage": "run", "arm": arm, "seed": seed,
        "learning_rate": 3e-5, "strength": "beta 0.1", "steps": 9, "rules": 0.3, "kl": 1.5,
        "train_s": 60.0 * seed, "wall_s": 100.0, "peak_mem": 2**31, "status": "finished",
        "reason": "", "over_kl_budget": False,
    } | changes  # fmt: skip


def made(shifts, **changes) -> Outcome:
    arms = {
        name: {s: numbers(shift, 10 * i + s) for s in SEEDS}
        for i, (name, shift) in enumerate(shifts.items(), 1)
    }
    start = {key: values for key, values in numbers(0.0, 999).items() if key != "kl"}
    rows = [row(arm, seed) for arm in shifts for seed in SEEDS] + changes.pop("rows", [])
    draw = torch.Generator().manual_seed(0)
    return outcome("rules", rows, start, arms, factors=[], folders={}, generator=draw, **changes)


def test_a_clear_winner_is_named():
    found = made({"dpo": 0.0, "simpo": 0.2, "ipo": 0.05})
    assert duels.headline(found) == ("better", "Use simpo: it is ahead of both others")
    assert "simpo against the start model: constraints met 30% to 50%" in duels.lead(found)
    assert duels.lead(found).endswith("Also ahead of it: ipo.")
    said = [duels.sentence(duel, 3) for duel in found.duels]
    assert said[0].startswith("simpo is ahead of ipo: constraints met +15 points")
    assert all("same sign in all 3 seeds" in one for one in said)


def test_arms_that_are_alike_are_not_told_apart():
    found = made({"dpo": 0.0, "simpo": 0.0})
    kind, said = duels.headline(found)
    assert kind == "none" and said.startswith("No difference is shown between")
    assert "are not told apart" in duels.sentence(found.duels[0], 1)
    assert "the interval holds 0" in duels.sentence(found.duels[0], 1)


def test_leaders_that_are_alike_are_named_together():
    found = made({"dpo": 0.2, "simpo": 0.2, "ipo": 0.0})
    _, said = duels.headline(found)
    first, second = sorted(["dpo", "simpo"], key=list(found.standings).index)
    assert said == f"{first} and {second} are not told apart; {first} is ahead of ipo"


def test_what_is_missing_to_a_difference_is_said():
    (duel,) = made({"dpo": 0.0, "simpo": 0.2}).duels
    assert duel.is_real
    uncorrected = replace(duel, comparison=replace(duel.comparison, p_value=0.2))
    assert "not after Holm's correction for 6 pairs" in duels.sentence(uncorrected, 6)
    turned = replace(duel, n_agreeing=2)
    assert "the seeds disagree, 2 of 3 have this sign" in duels.sentence(turned, 6)
    alone = replace(duel, over_seeds=Interval(0.2, None, None, 0.95, 1), n_agreeing=1)
    assert duels.of_seeds(alone) == "a single seed says nothing of others"
    assert "same sign" not in duels.sentence(alone, 6), "one seed agrees with nobody"


def test_failed_cells_and_those_that_moved_too_far_are_remarked():
    rows = [row("dpo", 9, status="failed", reason="killed by signal 9", cell_id="dpo-9-abc"),
            row("simpo", 9, over_kl_budget=True)]  # fmt: skip
    found = made({"dpo": 0.0, "simpo": 0.2}, rows=rows)
    assert bakeoff._remarks(found) == [
        "dpo-9-abc failed: killed by signal 9", "Beyond the KL budget in some run: simpo.",
    ]  # fmt: skip


def test_time_is_the_mean_and_memory_the_most_of_finished_runs():
    rows = [row("dpo", 9, status="failed", train_s=None, peak_mem=None)]
    found = made({"dpo": 0.0, "simpo": 0.2}, rows=rows)
    assert duels.cost(found, "dpo") == ("2 min 0 s", "2.0 GiB")


def test_the_plane_says_what_it_shows():
    cloud = charts.Cloud("dpo", [(1.0, 0.2), (3.0, 0.4)], 0, (2.0, 0.3))
    drawn = charts.plane("Met against KL", [cloud], x=(0, 4), y=(0, 1), as_percent=True, level=0.1)
    assert 'aria-label="Met against KL: dpo at 2, 30%."' in drawn
    assert drawn.count('class="ring"') == 2 and 'class="level"' in drawn


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_names_are_listed_as_sentences_have_them(names):
    assert duels.listed(names) == {1: "a", 2: "a and b", 3: "a, b and c"}[len(names)]

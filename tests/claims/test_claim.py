"""Bounds, rules and verdicts; the page says what was measured; every claim runs small."""

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from melior import cli
from melior.claims import (
    armorm,
    gpm,
    gpo,
    madpo,
    mam,
    morec,
    ocgfn,
    reward_augmented,
    rlhf_workflow,
    scir,
    simpo,
    tpo,
)
from melior.claims.claim import (
    Aside,
    Claim,
    Cloud,
    Dots,
    Rule,
    Scatter,
    Table,
    above,
    at_least,
    at_most,
    best_of,
    difference,
    judge,
    reproduce,
    within,
)
from melior.claims.worlds import drawn_batches, fitted
from melior.commands.reproduce import CLAIMS, Config, run
from melior.report.claims import lines, page, write_page

ALL = (
    simpo.CLAIM,
    tpo.CLAIM,
    madpo.CLAIM,
    reward_augmented.CLAIM,
    armorm.CLAIM,
    gpm.CLAIM,
    gpo.CLAIM,
    rlhf_workflow.CLAIM,
    scir.CLAIM,
    morec.CLAIM,
    ocgfn.CLAIM,
    mam.CLAIM,
)

TIMED = ("speed",)
"""Quantities that are read off a clock, and so differ from one run to the next."""


def made_up(seeds, steps) -> dict:
    """Two arms that differ by one half and a little, whatever the seed."""
    base = np.array([float(seed % 7) for seed in seeds])
    points = {"true": base[:, None] + [0.0, 1.0, 2.0], "said": base[:, None] + [0.25, 1.25, 2.25]}
    return {
        "a": {"x": base, "y": base**2 + steps},
        "b": {"x": base + 0.5, "y": base},
        "each": points,
    }


SMALL = Claim(
    name="made-up",
    title="One half",
    paper="Nobody 1900",
    claimed="b is more than a.",
    world="Two arms.",
    limits="Made up.",
    measure=made_up,
    steps=1,
    rules=(
        Rule("x: b minus a", difference("b", "a", "x"), at_least(0.5), in_every_seed=True),
        Rule("x: a minus b", difference("a", "b", "x"), above(0.0)),
    ),
    asides=(Aside("y: the best of a and b", best_of(("a", "b"), "y")),),
    tables=(Table("Arms", ("a", "b"), ("x", "y")),),
    pictures=(
        Dots("x", "The x", ("a", "b"), "x", "a"),
        Dots("gain", "The gain", ("b",), "x", against="a"),
        Scatter("plane", "The plane", {"both": ("a", "b"), "one": ("b",)}, "x", "y"),
        Cloud("cloud", "The cloud", "each", "true", "said"),
    ),
)


@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        (at_least(0.5), [False, True, True]),
        (at_most(0.5), [True, True, False]),
        (above(0.5), [False, False, True]),
        (within(0.5), [True, True, False]),
    ],
)
def test_bounds(bound, kept):
    assert bound.holds(np.array([0.25, 0.5, 0.75])).tolist() == kept


def test_a_rule_for_every_seed_breaks_in_one_and_a_rule_for_the_mean_does_not():
    measured = {"a": {"x": np.array([1.0, 1.0, -0.1])}}
    in_every = Rule("x", lambda found: found["a"]["x"], above(0.0), in_every_seed=True)
    found = judge(in_every, measured)
    assert (found.holds, found.n_kept) == (False, 2)
    assert judge(dataclasses.replace(in_every, in_every_seed=False), measured).holds


def test_the_interval_of_a_finding_is_students():
    measured = {"a": {"x": np.array([1.0, 2.0, 3.0])}}
    found = judge(Rule("x", lambda f: f["a"]["x"], above(0.0)), measured).interval
    half = 4.302653 / np.sqrt(3)  # t of 2 degrees of freedom, deviation 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_a_broken_rule_breaks_the_claim_and_is_said():
    outcome = reproduce(SMALL, [3, 4])
    assert not outcome.holds
    assert outcome.verdict == "The claim does not hold in this small world: 1 of 2 rules are kept."
    said = list(lines(outcome))
    assert said[-1] == outcome.verdict
    assert any(
        "kept" in line and "x: b minus a: at least 0.5 in every seed" in line for line in said
    )
    assert any("BROKEN" in line and "measured -0.500 (-0.500 to -0.500)" in line for line in said)


def test_a_claim_whose_rules_are_kept_holds():
    outcome = reproduce(dataclasses.replace(SMALL, rules=SMALL.rules[:1]), [3, 4])
    assert outcome.holds
    assert outcome.verdict.startswith("The claim holds")


def test_the_page_says_what_was_measured_and_its_pictures_are_there(tmp_path):
    outcome = reproduce(SMALL, [3, 4, 5], steps=2)
    place = write_page(outcome, tmp_path / "new")
    text = place.read_text("utf-8")
    assert text == page(outcome)
    assert "`melior reproduce made-up --seeds 3 --first-seed 3 --out docs/claims`" in text
    assert (
        "| x: a minus b | above 0 on average | -0.500 (-0.500 to -0.500) | -0.5, -0.5, -0.5 |"
        in text
    )
    assert "| b | 4.500 (2.016 to 6.984) | 4.000 (1.516 to 6.484) |" in text
    assert "| y: the best of a and b | 18.667 (-1.258 to 38.591) | 11, 18, 27 |" in text
    for name in ("made-up-x.svg", "made-up-gain.svg", "made-up-plane.svg", "made-up-cloud.svg"):
        assert f"]({name})" in text
        root = ET.fromstring((place.parent / name).read_text("utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title.text.endswith(".")
    gain = (place.parent / "made-up-gain.svg").read_text("utf-8")
    assert "The gain: b 0.5." in gain
    cloud = (place.parent / "made-up-cloud.svg").read_text("utf-8")
    assert "The cloud: 9 points, on average 0.25 apart." in cloud
    assert cloud.count("<circle") == 9


def test_a_single_seed_has_no_interval():
    outcome = reproduce(SMALL, [3])
    assert "measured -0.500\n" in "\n".join([*lines(outcome), ""])
    assert "| b | 3.500 | 3.000 |" in page(outcome)


def test_seeds_side_by_side_learn_what_each_would_alone():
    start = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    target = torch.tensor([[[1.0, 2.0]], [[-4.0, 0.0]], [[100.0, -1.0]]], dtype=torch.float64)

    def loss_to(goal):
        return lambda parameters, _: ((parameters[:, None] - goal) ** 2).sum(-1)

    together = fitted(start, loss_to(target), steps=20, learning_rate=0.1)
    for seed in range(3):
        one = slice(seed, seed + 1)
        alone = fitted(start[one], loss_to(target[one]), steps=20, learning_rate=0.1)
        assert torch.equal(together[one], alone)


def test_batches_are_those_of_the_seed_whoever_stands_beside_it():
    both = drawn_batches([7, 8], 5, batch_size=4, n=[10, 3])
    assert torch.equal(both[:, 1:], drawn_batches([8], 5, batch_size=4, n=[3]))
    assert both[:, 0].max() < 10
    assert both[:, 1].max() < 3


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: claim.name)
def test_every_claim_runs_small_and_a_seed_does_not_depend_on_its_neighbours(claim, tmp_path):
    both = reproduce(claim, [100, 101], steps=2)
    alone = reproduce(claim, [101], steps=2)
    for arm, quantities in alone.measured.items():
        for name, values in quantities.items():
            assert values.shape[0] == 1
            assert np.isfinite(values).all(), (arm, name)
            if name not in TIMED:
                again = both.measured[arm][name][1]
                assert np.allclose(again, values[0], rtol=1e-9, atol=1e-9), (arm, name)
    text = write_page(both, tmp_path).read_text("utf-8")
    for finding in both.findings:
        assert finding.rule.sentence in text
    assert max(map(len, text.splitlines())) < 2000


def test_the_command_knows_every_claim():
    assert tuple(sorted(CLAIMS)) == tuple(sorted(claim.name for claim in ALL))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["simp"], f"name must be one of {', '.join(CLAIMS)}; found 'simp'"),
        (["tpo", "--seeds", "0"], "seeds must be at least 1"),
        (["tpo", "--first-seed", "-1"], "first_seed must be at least 0"),
        (["tpo", "--out", __file__], "out: a folder is needed; found a file"),
    ],
)
def test_a_wrong_option_gets_its_sentence(options, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        cli._parse("reproduce", options)


def test_the_command_prints_the_verdict_and_writes_the_page(tmp_path, capsys, monkeypatch):
    short = dataclasses.replace(reward_augmented.CLAIM, steps=2)
    monkeypatch.setattr(reward_augmented, "CLAIM", short)
    place = run(Config("reward-augmented", seeds=1, out=str(tmp_path)))
    printed = capsys.readouterr().out
    assert place == tmp_path / "reward-augmented.md"
    assert "Seeds 100:" in printed
    assert printed.splitlines()[-1].startswith("The claim ")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".md", ".svg", ".svg", ".svg"]

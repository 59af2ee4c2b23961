"""`melior mam`: from an energy or from rows to marginals, and what a wrong input is told."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from melior import cli
from melior.losses.marginal import ensemble
from melior.models.marginal_saved import load_marginals, start_marginals
from melior.recipes.mam import Config, run
from melior.sampling.marginal import log_likelihood
from melior.stages.marginals.judge import Exam
from melior.stages.marginals.learn import ALPHA, ORDERS, QUERIES, SCALED, off
from melior.stages.marginals.options import MarginalOptions
from melior.stages.marginals.world import load_world

SMALL = ("--width", "16", "--blocks", "1", "--batch-size", "16", "--save-steps", "3",
         "--eval-steps", "4")  # fmt: skip
OWN = """
import torch

up = lambda rows: (rows == 2).sum(-1).float()
never = lambda rows: torch.full((len(rows),), -torch.inf)
strange = lambda rows: torch.full((len(rows),), torch.nan)
flat = lambda rows: rows.float()
number = 3
batches = []


def late(rows):
    # Of batches of 16 the first four are MaM's, the others a rival's.
    batches.extend([rows] * (len(rows) == 16))
    return never(rows) if len(batches) > 4 else up(rows)


def judged(rows):
    # A thousand are drawn to judge by.
    return never(rows) if len(rows) == 1000 else up(rows)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with targets of one's own, rows, and a network that learned a little."""
    folder = tmp_path_factory.mktemp("mam")
    (folder / "own.py").write_text(OWN)
    lines = [f"{'ab' * (i % 3 + 1)}{'c' * (i % 2)}" for i in range(60)]
    (folder / "rows.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "rows.npy", np.arange(240).reshape(60, 4) % 3)
    np.save(folder / "zeros.npy", np.zeros((9, 4), dtype=int))
    np.save(folder / "reals.npy", np.ones((9, 4)))
    np.save(folder / "far.npy", np.array([[0, 1], [1, 5_000_000_000]]))
    (folder / "same.txt").write_text("abc\n" * 30)
    (folder / "alone.txt").write_text("aaa\naaa\n")
    (folder / "empty.txt").write_text("\n")
    run(Config.tiny(str(folder / "a")))
    return folder


def said(capsys, *words):
    """What a command that must fail says."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, words)))
    assert end.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_an_energy_leaves_a_whole_run(place):
    found = json.loads((place / "a" / "evaluation.json").read_text())
    facts = found["facts"]
    assert {"divergence", "distance", "pearson", "spearman", "self consistency error",
            "sum over all rows", "times faster than one order"} <= facts.keys()  # fmt: skip
    assert found["title"].endswith("held against exact")
    assert [one["kind"] for one in found["pictures"]] == ["against", "images"]
    assert "Log-marginals" in (place / "a" / "report.html").read_text()


@pytest.mark.parametrize("file", ["rows.txt", "rows.npy"])
def test_rows_are_learned_in_two_stages(file, place, tmp_path):
    cli.main(["mam", "--data", str(place / file), *SMALL, "--steps", "10", "--rivals", "arm",
              "--out", str(tmp_path / "b")])  # fmt: skip
    found = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    facts = found["facts"]
    assert "bits a position" in facts
    # The logarithm of a mean is no less than the mean of logarithms.
    of_one, of_five = (
        facts[f"negative log-likelihood, {orders}"] for orders in ("one order", "5 orders")
    )
    assert of_five < of_one
    own = load_marginals(tmp_path / "b" / "model")
    held_out = load_world(
        MarginalOptions(data=str(place / file)), seed=42, validation_share=0.1
    ).held_out
    ahead = torch.arange(own.length).expand(len(held_out), -1)
    nats = -log_likelihood(own.rivals["arm"], held_out, ahead).mean().item()
    name = "negative log-likelihood, arm, taught one position a reading"
    assert facts[name] == pytest.approx(nats)
    rows = [json.loads(x) for x in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert ["nll" in row for row in steps] == [True] * 7 + [False] * 3
    about = json.loads((tmp_path / "b" / "model" / "config.json").read_text())
    assert about["alphabet"] == (["\n", "a", "b", "c"] if file == "rows.txt" else [])


@pytest.mark.parametrize("source", [{"target": "ising", "side": 5}, {"data": "rows.txt"}])
def test_before_and_after_are_asked_the_same_of_what_was_learned(source, place, tmp_path):
    """Where rows cannot be listed, the conditionals that are held against are the final ones."""
    tiny, folder = Config.tiny(str(tmp_path / "d")), tmp_path / "d"
    if "data" in source:
        source = {"data": str(place / source["data"])}
    config = replace(tiny, source=MarginalOptions(**source))
    run(config)
    found = load_marginals(folder / "model")
    seed = config.loop.seed
    world = load_world(config.source, seed=seed, validation_share=config.validation_share)
    exam = Exam.of(found, world, n_queries=QUERIES, n_orders=ORDERS, seed=seed + 1)
    said = json.loads((folder / "evaluation.json").read_text())
    [comparison] = said["comparisons"]
    wanted = ensemble(
        torch.stack([log_likelihood(found.conditionals, exam.queries, own) for own in exam.order])
    )
    for moment, own in (("before", start_marginals(found.about, seed=seed)), ("after", found)):
        apart = own.marginals.normalised(exam.queries).double() - wanted
        assert comparison[moment] == pytest.approx(apart.abs().mean().item())
    assert comparison["after"] == pytest.approx(said["facts"]["marginal error"])


@pytest.mark.parametrize(
    ("total", "weighs", "said"),
    [
        (1.2, ALPHA, f"add up to 1.2; train longer{ALPHA}"),
        (math.nan, "", "add up to nan; train longer"),
        (0.9, ALPHA, ""),
    ],
)
def test_marginals_that_do_not_add_up_are_told(total, weighs, said):
    found = off({SCALED[0]: total}, weighs=weighs)
    assert found.endswith(said) and bool(found) == bool(said)


@pytest.mark.parametrize("what", ["--data", "--target"])
def test_a_run_goes_on_with_the_same_file_alone(what, place, tmp_path, capsys):
    rows, own = tmp_path / "rows.txt", tmp_path / "own.py"
    rows.write_text((place / "rows.txt").read_text())
    own.write_text(OWN)
    source = ("--data", rows) if what == "--data" else ("--target", f"{own}:up", "--length", "3")
    words = ("mam", *source, *SMALL, "--steps", "4", "--out", tmp_path / "run")
    cli.main(list(map(str, words)))
    cli.main(list(map(str, (*words, "--resume"))))
    for file in (rows, own):
        file.write_text(file.read_text() + "\n")
    changed = rows if what == "--data" else own
    assert f"found that {changed} was " in said(capsys, *words, "--resume")


@pytest.mark.parametrize("pull", ["centred", "squared"])
def test_every_pull_runs_to_the_same_bits(pull, tmp_path):
    for name in ("one", "other"):
        cli.main(["mam", "--target", "ising", "--side", "3", *SMALL, "--steps", "3", "--pull", pull,
                  "--out", str(tmp_path / name)])  # fmt: skip
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_molecules_are_drawn_as_text_again(tmp_path, capsys):
    pytest.importorskip("rdkit")
    (tmp_path / "rows.smi").write_text("CCl\nCCBr\nc1cc[nH]c1\n" * 20)
    words = ("--data", str(tmp_path / "rows.smi"))
    cli.main(["mam", *words, "--tokens", "smiles", *SMALL, "--steps", "4", "--out",
              str(tmp_path / "m")])  # fmt: skip
    cli.main(["evaluate", "marginal", "--model", str(tmp_path / "m" / "model"), *words])
    assert "Share of molecules among 1000" in capsys.readouterr().out
    found = json.loads((tmp_path / "m" / "evaluation.json").read_text())
    assert 0 <= found["facts"]["share of molecules among 1000"] < 1
    [table] = found["tables"]
    texts = [row[0] for row in table["rows"]]
    assert len(texts) == 16 and any(text.startswith(("Cl", "Br", "[nH]")) for text in texts)
    assert "Rows that are drawn" in (tmp_path / "m" / "report.html").read_text()


def test_rows_of_selfies_are_counted(tmp_path):
    (tmp_path / "rows.txt").write_text("[C][=O]\n[C][C][N]\n" * 20)
    words = ("--data", str(tmp_path / "rows.txt"), "--tokens", "selfies")
    cli.main(["mam", *words, *SMALL, "--steps", "4", "--out", str(tmp_path / "s")])
    found = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    texts = [row[0] for row in found["tables"][0]["rows"]]
    assert any("↵" in text for text in texts)
    assert 0 < found["facts"]["share of SELFIES among 1000"] < 1


def test_images_are_drawn_beside_held_out_ones_of_their_shape_alone(tmp_path, capsys):
    np.save(tmp_path / "images.npy", np.arange(60 * 6).reshape(60, 2, 3) % 5 // 2)
    cli.main(["mam", "--data", str(tmp_path / "images.npy"), *SMALL, "--steps", "4", "--out",
              str(tmp_path / "i")])  # fmt: skip
    found = json.loads((tmp_path / "i" / "evaluation.json").read_text())
    assert found["tables"] == []
    _, held_out, drawn, found_means, truth = found["pictures"]
    assert [own["kind"] for own in (held_out, drawn, found_means, truth)] == ["images"] * 2 + [
        "map"
    ] * 2
    assert np.shape(drawn["images"]) == (16, 2, 3) and np.shape(found_means["cells"]) == (2, 3)
    assert np.max(held_out["images"]) == 2 and np.min(drawn["images"]) == 0
    assert found_means["high"] == truth["high"] == 2  # one scale, or what differs looks alike
    np.save(tmp_path / "turned.npy", np.arange(60 * 6).reshape(60, 3, 2) % 5 // 2)
    words = ("--model", tmp_path / "i" / "model", "--data", tmp_path / "turned.npy")
    sentence = "images of 2 x 3 are needed, as the network's; found images of 3 x 2"
    assert sentence in said(capsys, "evaluate", "marginal", *words)


def test_rivals_stand_beside_an_energy_and_are_asked_again(tmp_path, capsys):
    words = ("--target", "ising", "--side", "3")
    cli.main(["mam", *words, *SMALL, "--steps", "4", "--rivals", "arm", "arm-mc",
              "--out", str(tmp_path / "r")])  # fmt: skip
    shown = capsys.readouterr().err
    assert "rival arm: step 4/4" in shown and "rival arm-mc: step 4/4" in shown
    cli.main(["evaluate", "marginal", "--model", str(tmp_path / "r" / "model"), *words, "--out",
              str(tmp_path / "e")])  # fmt: skip
    ran, asked = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["facts"] for name in "re"
    )
    own = load_marginals(tmp_path / "r" / "model")
    assert list(own.rivals) == ["arm", "arm-mc"]
    assert ran["divergence, arm"] != ran["divergence, arm-mc"]
    for name in own.rivals:
        assert asked[f"divergence, {name}"] == pytest.approx(ran[f"divergence, {name}"])
        by_samples = ran[f"KL of what is drawn, by samples, {name}"]
        error = ran[f"its standard error, {name}"]
        assert abs(by_samples - ran[f"divergence, {name}"]) < 5 * error


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("late", "rival arm, once MaM was learned and saved: target:"),
     ("judged", "target:")],
)  # fmt: skip
def test_a_target_that_fails_late_is_told_and_leaves_what_was_learned(
    name, beginning, tmp_path, capsys
):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    words = ("--target", f"{own}:{name}", "--length", "3", *SMALL, "--steps", "4")
    sentence = said(capsys, "mam", *words, "--rivals", "arm", "--out", tmp_path / "l")
    need = " finite log-densities are needed; found -inf of ["
    assert beginning + need in sentence
    kept = load_marginals(tmp_path / "l" / "model")
    assert list(kept.rivals) == (["arm"] if name == "judged" else [])


def test_a_target_of_ones_own_and_its_exact_marginals(place, tmp_path):
    cli.main(["mam", "--target", f"{place / 'own.py'}:up", "--length", "4", *SMALL, "--steps", "4",
              "--out", str(tmp_path / "c")])  # fmt: skip
    facts = json.loads((tmp_path / "c" / "evaluation.json").read_text())["facts"]
    assert facts["divergence"] >= 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "mam learns a --target or --data; found neither"),
        (("--target", "ising", "--data", "D/rows.txt"), "found both"),
        (("--target", "isnig"), "target must be one of ising, FILE.py:NAME"),
        (("--target", "D/own.py:up"), "length must be given for a target of one's own"),
        (("--target", "D/own.py:never", "--length", "3"), "found -inf of [1, 1, 1]; give what"),
        (("--target", "D/own.py:strange", "--length", "3"), "found nan of [1, 1, 1]"),
        (("--target", "D/own.py:flat", "--length", "3"), "one log-density a row is needed"),
        (("--target", "D/own.py:number", "--length", "3"), "a function of rows is needed; found 3"),
        (("--target", "ising", "--side", "2"), "side must be at least 3"),
        (("--target", "ising", "--values", "1"), "values must be at least 2"),
        (("--data", "D/rows.txt", "--rivals", "arm-mc"), "rivals: arm-mc guesses how far rows are"),
        (("--target", "ising", "--length", "9"), "--length is not read with --target ising"),
        (
            ("--target", "D/own.py:up", "--length", "3", "--field", "0"),
            "--field is not read without --target ising: leave it out; found 0.0",
        ),
        (("--data", "D/rows.txt", "--side", "5"), "--side is not read without --target ising"),
        (("--data", "D/rows.txt", "--values", "5"), "--values is not read with --data"),
        (("--data", "D/rows.txt", "--alpha", "8"), "--alpha is not read with --data"),
        (
            ("--target", "ising", "--likelihood-share", "0"),
            "--likelihood-share is not read with --target: leave it out",
        ),
        (
            ("--target", "ising", "--pull", "squared", "--clip", "3"),
            "--clip is not read with --pull squared",
        ),
        (("--target", "ising", "--tokens", "smiles"), "--tokens is not read with --target: leave"),
        (
            ("--data", "D/rows.npy", "--tokens", "smiles"),
            "--tokens is not read with an array (.npy): leave it out",
        ),
        (("--data", "D/rows.npy", "--length", "4"), "--length is not read with an array (.npy)"),
        (("--data", "D/rows.txt", "--tokens", "selfies"), "rows.txt:1: SELFIES are needed, a row"),
        (("--data", "D/none.txt"), "a file is needed; found none at"),
        (("--data", "D/empty.txt"), "a row a line is needed; found none"),
        (("--data", "D/alone.txt"), "at least two values are needed, or there is nothing"),
        (("--data", "D/zeros.npy"), "at least two values are needed, or there is nothing"),
        (("--data", "D/reals.npy"), "rows and columns of integers from 0 are needed"),
        (("--data", "D/far.npy"), "values below 65536 are needed, as a network says a number of"),
        (("--data", "D/same.txt"), "rows that differ are needed; found the same in all 30"),
        (
            ("--target", "ising", "--side", "3", "--learning-rate", "1e9", "--steps", "9"),
            "the network's probabilities must be finite; found nan or infinity",
        ),
    ],
    ids=str,
)
def test_wrong_options_get_their_sentences(words, sentence, place, tmp_path, capsys):
    words = [word.replace("D/", f"{place}/") for word in words]
    assert sentence in said(capsys, "mam", *words, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists() or "probabilities" in sentence  # known by then alone


@pytest.mark.parametrize(("learned", "asked"), [("rows.txt", "rows.npy"), ("rows.npy", "rows.txt")])
def test_rows_of_another_kind_than_were_learned_are_refused(
    learned, asked, place, tmp_path, capsys
):
    cli.main(["mam", "--data", str(place / learned), *SMALL, "--steps", "4", "--out",
              str(tmp_path / "b")])  # fmt: skip
    capsys.readouterr()
    words = ("--model", tmp_path / "b" / "model", "--data", place / asked)
    assert "is needed, as the network knows" in said(
        capsys, "evaluate", "marginal", *words, "--out", tmp_path / "e"
    )


def test_evaluating_says_what_the_run_said(place, tmp_path, capsys):
    words = ("--model", place / "a" / "model", "--target", "ising", "--side", "3")
    cli.main(["evaluate", "marginal", *map(str, words), "--out", str(tmp_path / "e")])
    assert "Self consistency error" in capsys.readouterr().out
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())["facts"]
    page = (tmp_path / "e" / "report.html").read_text()
    assert "Judged: 200 parts of rows, held against exact" in page
    assert "Log-marginals: one reading over exact, on average" in page  # the picture
    whole = json.loads((place / "a" / "evaluation.json").read_text())["facts"]
    for name in ("divergence", "distance", "sum over all rows"):  # of all rows, not of queries
        assert found[name] == pytest.approx(whole[name])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--target", "ising"), "rows of 9 positions and 2 values are needed, as the network's"),
        (("--data", "D/rows.npy"), "rows of 9 values up to 2 are needed"),
        (
            ("--data", "D/rows.txt", "--length", "4"),
            "--length is not read beside --data, as the network knows it: leave it out; found 4",
        ),
        (("--model", "D", "--target", "ising"), "a folder of `melior mam` is needed"),
        (("--target", "ising", "--out", "D/a"), "out: a folder without a run is needed"),
        (("--target", "ising", "--out", "D/own.py"), "out: a folder is needed; found a file"),
    ],
    ids=str,
)
def test_evaluating_something_else_gets_its_sentence(words, sentence, place, capsys):
    words = [word.replace("D", str(place)) for word in words]
    model = [] if "--model" in words else ["--model", place / "a" / "model"]
    assert sentence in said(capsys, "evaluate", "marginal", *model, *words)

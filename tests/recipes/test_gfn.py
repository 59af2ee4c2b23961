"""`melior gfn`: every balance runs, rivals stand beside it, wrong inputs get their sentences."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from melior import cli, ops
from melior.envs.flow_graph import enumerated
from melior.recipes.gfn import Config, run
from melior.stages.flows.named import load_environment, load_reward
from melior.stages.flows.rivals import back_and_forth

SMALL = ("--height", "3", "--width", "16", "--batch-size", "8", "--save-steps", "3",
         "--eval-steps", "4")  # fmt: skip


def test_the_environment_of_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "flows.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "leaps.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    cli.main(["gfn", "--env", "leaps.py:leaps", "--reward", "leaps.py:even_places", *SMALL[2:],
              "--steps", "2", "--out", "a"])  # fmt: skip
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert found["facts"]["modes"] == 11


def said(capsys, *words):
    """What a command that must fail says."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, words)))
    assert end.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_run_stands_beside_its_rivals(tmp_path):
    run(Config.tiny(str(tmp_path / "a")))
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    (table,) = found["tables"]
    assert [row[0] for row in table["rows"]] == ["flows, untrained", "flows", "mcmc", "dqn"]
    assert None not in [row[table["columns"].index("total variation")] for row in table["rows"]]
    curves = next(one for one in found["pictures"] if one["kind"] == "lines")["lines"]
    assert set(curves) == {"flows", "mcmc", "dqn"}
    for points in curves.values():
        assert points[-1][0] == 8 * 8  # as many looks at the reward
        assert all(a[1] <= b[1] for a, b in itertools.pairwise(points))
    assert "Modes built" in (tmp_path / "a" / "report.html").read_text()


def test_what_chains_draw_is_where_they_were_in_the_later_half(tmp_path):
    config = Config.tiny(str(tmp_path / "a"))
    run(replace(config, rivals=("mcmc",)))
    [table] = json.loads((tmp_path / "a" / "evaluation.json").read_text())["tables"]
    env, loop = load_environment(config.flow), config.loop
    log_reward, graph = load_reward(config.reward, config.flow), enumerated(env)
    walked = back_and_forth(
        env, log_reward, chains=loop.batch_size, longest=4, generator=ops.generator(loop.seed + 5)
    )
    later = torch.cat(list(itertools.islice(walked, loop.steps // 2, loop.steps)))
    cells = [tuple(cell) for cell in later.tolist()]
    shares = torch.tensor([cells.count(tuple(own)) / len(cells) for own in graph.states.tolist()])
    apart = (shares - log_reward(graph.states).softmax(0)).abs().sum().item() / 2
    column = table["columns"].index("total variation")
    assert table["rows"][-1][column] == pytest.approx(apart, abs=1e-6)
    assert "of mcmc counted over the later half" in table["note"]


@pytest.mark.parametrize("objective", ["tb", "fm", "fl-db"])
def test_rivals_get_as_many_looks_as_the_flows_took(objective, tmp_path):
    """By a reward of one's own, which writes down of how many objects it is asked."""
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n"
        "def log_reward(objects):\n"
        f"    with Path({str(tmp_path / 'asked')!r}).open('a') as file:\n"
        "        print(len(objects), file=file)\n"
        "    return -objects.sum(-1).float()\n"
    )
    words = ("--reward", f"{tmp_path / 'own.py'}:log_reward", *SMALL, "--objective", objective)
    cli.main(["gfn", *words, "--rivals", "mcmc", "dqn", "--steps", "3", "--out",
              str(tmp_path / "a")])  # fmt: skip
    asked = [int(n) for n in (tmp_path / "asked").read_text().split()]
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    looks = found["facts"]["looks at the reward"]
    assert looks == 3 * 8 if objective == "tb" else looks > 3 * 8
    asked = [n for n in asked if n not in (9, 1000)]  # all cells, and what is drawn to judge by
    n_batches = -(-looks // 8)
    rival = [8] * n_batches + [8 * n_batches]  # and what it is judged by
    assert sum(asked[: -2 * len(rival)]) == looks and asked[-2 * len(rival) :] == rival * 2
    lines = found["pictures"][0]["lines"]
    assert lines["flows"][-1][0] == looks
    assert lines["mcmc"][-1][0] == lines["dqn"][-1][0] == 8 * n_batches


def test_q_learning_reads_a_reward_whatever_its_factor(tmp_path):
    """Of a reward beyond what `exp` can hold, and of one whose `exp` is 0."""
    rows = []
    for by in (0, 200, 1000, -200):
        own = tmp_path / f"by{by}.py"
        own.write_text(f"log_reward = lambda objects: {by} - objects.sum(-1).float()")
        cli.main(["gfn", "--reward", f"{own}:log_reward", *SMALL, "--rivals", "dqn", "--steps", "5",
                  "--out", str(tmp_path / str(by))])  # fmt: skip
        (table,) = json.loads((tmp_path / str(by) / "evaluation.json").read_text())["tables"]
        rows.append(table["rows"][-1][table["columns"].index("total variation")])
    assert rows == rows[:1] * 4


def test_q_learning_reads_a_reward_whose_best_is_not_known(tmp_path):
    """It is held against the best it built: flows may have reached none of the reward's modes."""
    (tmp_path / "own.py").write_text("log_reward = lambda objects: 200 - objects.sum(-1).float()")
    grid = ("--reward", f"{tmp_path / 'own.py'}:log_reward", "--height", "150")
    bits = ("--env", "strings", "--length", "12", "--reward", "modes", "--sharpness", "200")
    for name, words in {"grid": grid, "bits": bits}.items():
        cli.main(["gfn", *words, *SMALL[2:], "--rivals", "dqn", "--steps", "2",
                  "--out", str(tmp_path / name)])  # fmt: skip
        (table,) = json.loads((tmp_path / name / "evaluation.json").read_text())["tables"]
        dqn = dict(zip(table["columns"], table["rows"][-1], strict=True))
        assert dqn[""] == "dqn" and math.isfinite(dqn["log top reward"])


def test_without_a_step_there_is_nothing_to_hold_rivals_against(tmp_path):
    cli.main(["gfn", "--env", "strings", "--length", "3", "--reward", "site", *SMALL[2:],
              "--steps", "0", "--rivals", "mcmc", "dqn", "--out", str(tmp_path / "a")])  # fmt: skip
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert [row[0] for row in found["tables"][0]["rows"]] == ["flows, untrained", "flows"]


@pytest.mark.parametrize("env", ["strings", "fillings"])
def test_strings_are_judged_by_what_is_complete(env, tmp_path):
    """DNA of 3 letters, all of which are listed."""
    cli.main(["gfn", "--env", env, "--length", "3", "--reward", "site", *SMALL[2:], "--steps", "2",
              "--out", str(tmp_path / "a")])  # fmt: skip
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert found["comparisons"][0]["is_exact"]


@pytest.mark.parametrize("objective", ["tb", "db", "subtb", "fl-db", "fm"])
def test_every_balance_runs_to_the_same_bits(objective, tmp_path):
    for name in ("one", "other"):
        cli.main(["gfn", "--reward", "corners", *SMALL, "--steps", "3", "--objective", objective,
                  "--out", str(tmp_path / name)])  # fmt: skip
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--env", "strings", "--reward", "corners"), "reward corners is for grid; found strings"),
        (("--env", "strings", "--reward", "site", "--letters", "3"), "letters must be 4; found 3"),
        (("--env", "strings", "--reward", "modes", "--length", "3"), "a multiple of 8; found 3"),
        (("--reward", "sparse", "--axes", "3"), "a grid of 2 axes; found 3"),
        (
            ("--env", "strings", "--reward", "site", "--objective", "fl-db", "--length", "2"),
            "objective fl-db asks for the reward of every state",
        ),
        (("--reward", "corners", "--objective", "xyz"), "xyz"),
        (
            ("--reward", "corners", "--lamda", "0.5"),
            "--lamda is not read without --objective subtb: leave it out; found 0.5",
        ),
        (
            ("--reward", "corners", "--objective", "fm", "--learned-backward"),
            "--learned-backward is not read with --objective fm",
        ),
        (("--reward", "corners", "--length", "9"), "--length is not read with --env grid"),
        (
            ("--env", "strings", "--height", "9", "--reward", "site"),
            "--height is not read with --env strings",
        ),
        (("--reward", "corners", "--sharpness", "9"), "--sharpness is not read with --reward"),
        (("--reward", "sparse", "--reward-seed", "9"), "--reward-seed is not read with --reward"),
    ],
    ids=str,
)
def test_wrong_options_get_their_sentences(words, sentence, tmp_path, capsys):
    assert sentence in said(capsys, "gfn", *words, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_built_in_reward_is_not_for_an_environment_of_ones_own(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from melior.envs.flow import HyperGrid\nenv = HyperGrid(1, 21)"
    )
    words = ("--env", f"{tmp_path / 'own.py'}:env", "--reward", "corners", "--out", tmp_path / "x")
    assert "reward corners is for grid; found" in said(capsys, "gfn", *words)

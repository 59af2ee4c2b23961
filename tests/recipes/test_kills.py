"""Every recipe of rounds, killed at random moments, ends in what it would have ended in."""

import json
import subprocess
import sys

import pytest

from tests.recipes.test_madpo import write_pairs
from tests.recipes.test_online import write_prompts
from tests.recipes.test_scir import save_judge

JUDGED = ("--n-prompts", "8", "--n-eval-prompts", "6", "--k", "4", "--learning-rate", "1e-2")
"""Of recipes whose rounds are judged on held-out prompts."""
CASES = {
    "online": ("online", *JUDGED),
    "online-history": ("online", *JUDGED, "--history", "all", "--judge-with", "implicit:M,M"),
    "rlhf-workflow": ("rlhf-workflow", *JUDGED, "--lora-r", "2"),
    "gpo": ("gpo", *JUDGED, "--average"),
    "scir": ("scir", "--data", "seed.jsonl", "--eval-data", "held.jsonl", "--n-prompts", "4",
             "--max-tokens", "16384", "--learning-rate", "3e-3", "--n-samples", "1"),
}  # fmt: skip
"""Two rounds each; M is the model."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model that can be its own judge, prompts, and labelled pairs."""
    folder = tmp_path_factory.mktemp("kills")
    save_judge(folder / "model")
    write_prompts(folder / "prompts.jsonl")
    write_pairs(folder / "seed.jsonl", 0, 8)
    write_pairs(folder / "held.jsonl", 60, 64)
    return folder


def killed(place, out, name, n_kills):
    """What `killed_rounds` says; it holds every run that came to its end against a whole one."""
    model, (recipe, *more) = str(place / "model"), CASES[name]
    here = {"M,M": f"{model},{model}", "seed.jsonl": str(place / "seed.jsonl"),
            "held.jsonl": str(place / "held.jsonl")}  # fmt: skip
    for short, whole in here.items():
        more = [word.replace(short, whole) for word in more]
    command = [
        sys.executable, "-m", "tests.recipes.killed_rounds", str(out), str(n_kills), recipe,
        "--model", model, "--prompts", str(place / "prompts.jsonl"), "--rounds", "2",
        "--max-new-tokens", "8", "--batch-size", "4", "--dtype", "fp32", "--save-steps", "1", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_three_kills_end_in_the_same_weights_and_manifests(name, place, tmp_path):
    found = killed(place, tmp_path, name, 3)
    assert found["kills"] == 3
    assert found["compared"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_thirty_kills_end_in_the_same_weights_and_manifests(name, place, tmp_path):
    found = killed(place, tmp_path, name, 30)
    assert found["kills"] == 30
    assert len(found["moments"]) >= 5  # they fell into different stages

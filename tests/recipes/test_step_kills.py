"""Every recipe that makes its data on the way, killed at random moments, ends in the same bits."""

import json
import subprocess
import sys

import pytest

from melior.recipes.ocgfn import PretrainConfig, pretrain

SMALL = ("--batch-size", "8", "--save-steps", "3", "--eval-steps", "4", "--steps", "60")
CASES = {
    "gfn": ("gfn", "--reward", "corners", "--height", "3", "--width", "16", "--rivals", "mcmc",
            "dqn"),
    "ocgfn-curious": ("ocgfn", "pretrain", "--height", "3", "--width", "16"),
    "ocgfn-backward": ("ocgfn", "pretrain", "--height", "3", "--width", "16", "--explorer",
                       "backward"),
    "ocgfn-finetune": ("ocgfn", "finetune", "--model", "PLACE/a/model", "--reward", "sparse",
                       "--width", "16"),
    "mam-energy": ("mam", "--target", "ising", "--side", "3", "--width", "16", "--blocks", "1"),
    "mam-rows": ("mam", "--data", "PLACE/rows.txt", "--width", "16", "--blocks", "1", "--rivals",
                 "arm"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network that was pre-trained a little, and rows."""
    folder = tmp_path_factory.mktemp("kills")
    pretrain(PretrainConfig.tiny(str(folder / "a")))
    lines = [f"{'ab' * (i % 3 + 1)}{'c' * (i % 2)}" for i in range(60)]
    (folder / "rows.txt").write_text("\n".join(lines) + "\n")
    return folder


def killed(place, out, name, n_kills):
    """Let `killed_steps` kill; it holds every run that came to its end against a whole one."""
    words = [word.replace("PLACE", str(place)) for word in CASES[name]]
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.killed_steps", str(out), str(n_kills), *words,
         *SMALL],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= n_kills and found["compared"] >= 1 and found["resumed"] >= 1


@pytest.mark.parametrize("name", CASES)
def test_three_kills_end_in_the_same_bits(name, place, tmp_path):
    killed(place, tmp_path, name, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_thirty_kills_end_in_the_same_bits(name, place, tmp_path):
    killed(place, tmp_path, name, 30)

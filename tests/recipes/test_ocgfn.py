"""`melior ocgfn`: from nothing to a sampler of a reward, and what a wrong input is told."""

import json

import pytest
import torch

from melior import cli
from melior.recipes.ocgfn import FinetuneConfig, PretrainConfig, finetune, pretrain

SMALL = ("--height", "3", "--width", "16", "--batch-size", "8", "--save-steps", "3",
         "--eval-steps", "4")  # fmt: skip

LEAPS = '''
import torch
from torch.nn.functional import one_hot


class Leaps:
    """From 0 by one or two cells to at most `far`."""

    n_actions, start = 2, torch.zeros(1, dtype=torch.long)

    def __init__(self, far, back=0):
        self.far, self.back, self.longest = far, back, far + 1

    def allowed(self, states):
        leaps = states + torch.tensor([1, 2]) <= self.far
        return torch.cat([leaps, torch.ones_like(states, dtype=torch.bool)], -1)

    def undoable(self, states):
        return states - torch.tensor([1, 2]) >= self.back

    def step(self, states, actions):
        return states + actions[:, None] + 1

    def undo(self, states, actions):
        return states - actions[:, None] - 1

    def features(self, states):
        return one_hot(states[:, 0], self.far + 1).float()


short, stuck, torn = Leaps(4), Leaps(0), Leaps(4, back=1)
near = lambda objects: -objects[:, 0].float()
nothing = lambda objects: torch.full((len(objects),), -torch.inf)
wrong = lambda objects: torch.full((len(objects),), torch.nan)
half = lambda objects: torch.where(objects[:, 0] > 1, 0.0, -torch.inf)
flat = lambda objects: objects.float()
number = 3
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a file of one's own, and a network that was pre-trained a little."""
    folder = tmp_path_factory.mktemp("ocgfn")
    (folder / "own.py").write_text(LEAPS)
    pretrain(PretrainConfig.tiny(str(folder / "a")))
    return folder


def said(capsys, *words):
    """What a command that must fail says."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, words)))
    assert end.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_pretraining_leaves_a_whole_run(place):
    found = json.loads((place / "a" / "evaluation.json").read_text())
    assert found["comparisons"][0]["name"] == "success at what is asked for"
    assert found["facts"]["share of all objects"] > 0
    assert [one["kind"] for one in found["pictures"]] == ["map", "map"]
    page = (place / "a" / "report.html").read_text()
    assert "Pictures" in page and "Success, cell by cell" in page
    rows = [json.loads(line) for line in (place / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {"eval_success", "eval_spread", "eval_out_of_reach"} <= rows[0].keys()
    assert rows[-1]["step"] == 8


def test_finetuning_holds_all_ways_against_the_truth(place, tmp_path):
    finetune(FinetuneConfig.tiny(str(place / "a" / "model"), str(tmp_path / "b")))
    found = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    (table,) = found["tables"]
    assert "total variation" in table["columns"]
    assert [row[0] for row in table["rows"]] == [
        "sum over outcomes",
        "the same, what is out of reach masked",
        "predictor, untrained",
        "predictor",
    ]
    assert found["comparisons"][0]["is_exact"]
    maps = [one for one in found["pictures"] if one["kind"] == "map"]
    for drawn in maps:
        assert torch.tensor(drawn["cells"]).sum() == pytest.approx(1)


def test_outcomes_of_strings_may_be_spelled(place, tmp_path, capsys):
    words = ("--env", "strings", "--length", "3", "--steps", "4", *SMALL[2:])
    cli.main(["ocgfn", "pretrain", *words, "--out", str(tmp_path / "a")])
    cli.main(["ocgfn", "finetune", "--model", str(tmp_path / "a" / "model"), "--reward", "site",
              "--spelled", "--steps", "4", *SMALL[2:], "--out", str(tmp_path / "b")])  # fmt: skip
    found = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert [row[0] for row in found["tables"][0]["rows"]][-1] == "predictor"
    notes = json.loads((tmp_path / "b" / "run.json").read_text())["notes"]
    assert any("spells outcomes of its own" in note for note in notes)
    capsys.readouterr()
    grid = ("--model", place / "a" / "model", "--reward", "corners", "--spelled")
    sentence = "--spelled is for strings, which have one length; found grid"
    assert sentence in said(capsys, "ocgfn", "finetune", *grid, "--out", tmp_path / "c")


def test_a_wrong_reward_of_what_is_first_spelled_gets_its_sentence(tmp_path, capsys):
    """Of 2**16 strings a few were seen while the network learned; only others have no number."""
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "seen = set()\n"
        "def log_reward(objects):\n"
        "    if not seen:  # the first to be asked of are those that were seen\n"
        "        seen.update(map(tuple, objects.tolist()))\n"
        "    is_known = torch.tensor([tuple(row) in seen for row in objects.tolist()])\n"
        "    return torch.where(is_known, 0.0, torch.nan)\n"
    )
    words = ("--env", "strings", "--length", "16", "--letters", "2", *SMALL[2:], "--steps", "2")
    cli.main(["ocgfn", "pretrain", *words, "--out", str(tmp_path / "a")])
    sentence = "a finite log-reward, or -inf for none, is needed; found nan of ["
    assert sentence in said(
        capsys, "ocgfn", "finetune", "--model", tmp_path / "a" / "model", "--spelled", "--reward",
        f"{tmp_path / 'own.py'}:log_reward", *SMALL[2:], "--out", tmp_path / "b",
    )  # fmt: skip


def test_some_outcomes_stand_for_all_where_there_are_many(place, tmp_path):
    words = ("--model", str(place / "a" / "model"), "--reward", "corners", "--steps", "0")
    cli.main(["ocgfn", "finetune", *words, "--most-outcomes", "2", "--out", str(tmp_path / "b")])
    notes = json.loads((tmp_path / "b" / "run.json").read_text())["notes"]
    assert any("2 outcomes, drawn evenly, stand for all" in note for note in notes)


def test_what_has_changed_between_a_stop_and_resuming_is_named(place, tmp_path, capsys):
    """The network, an environment and a reward of one's own: none may be another than it was."""
    own, model = tmp_path / "own.py", tmp_path / "a" / "model"
    own.write_text(LEAPS)
    words = (*SMALL[2:], "--steps", "3")
    pre = ("ocgfn", "pretrain", "--env", f"{own}:short", *words, "--out", str(tmp_path / "a"))
    turn = ("ocgfn", "finetune", "--model", str(model), "--reward", f"{own}:half", *words,
            "--out", str(tmp_path / "b"))  # fmt: skip
    learn = ("gfn", "--env", f"{own}:short", "--reward", f"{own}:near", *words,
             "--out", str(tmp_path / "c"))  # fmt: skip
    for command in (pre, turn, learn):
        cli.main([*command])
        cli.main([*command, "--resume"])
    own.write_text(LEAPS + "# another line\n")
    for command in (pre, turn, learn):
        assert f"found that {own} was " in said(capsys, *command, "--resume")
    own.write_text(LEAPS)
    cli.main([*pre[:-1], str(tmp_path / "other"), "--seed", "7"])
    (tmp_path / "other" / "model" / "model.safetensors").rename(model / "model.safetensors")
    assert "model.safetensors was " in said(capsys, *turn, "--resume")


@pytest.mark.parametrize("explorer", ["curious", "wander", "backward"])
def test_the_same_seed_leaves_the_same_bits(explorer, tmp_path):
    for name in ("one", "other"):
        cli.main(["ocgfn", "pretrain", *SMALL, "--steps", "3", "--explorer", explorer,
                  "--out", str(tmp_path / name)])  # fmt: skip
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_an_environment_and_a_reward_of_ones_own(place, tmp_path):
    own = place / "own.py"
    cli.main(["ocgfn", "pretrain", "--env", f"{own}:short", *SMALL[2:], "--steps", "4",
              "--out", str(tmp_path / "a")])  # fmt: skip
    cli.main(["ocgfn", "finetune", "--model", str(tmp_path / "a" / "model"), *SMALL[2:],
              "--reward", f"{own}:half", "--steps", "4", "--out", str(tmp_path / "b")])  # fmt: skip
    found = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert found["facts"]["outcomes worth something that were seen"] <= 3
    assert "spread" in [one["kind"] for one in found["pictures"]]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torn", "an action that is allowed must be undoable where it leads"),
        ("stuck", "at least two objects are needed, or there is nothing to choose; found 1"),
        ("number", "an environment needs allowed, features"),
        ("nowhere", "nowhere is needed in it; found"),
        ("Leaps", "an environment is needed; found its class; add a line such as 'env = Leaps()'"),
    ],
)
def test_a_wrong_environment_gets_its_sentence(name, sentence, place, tmp_path, capsys):
    words = ("--env", f"{place / 'own.py'}:{name}", "--out", tmp_path / "a")
    assert sentence in said(capsys, "ocgfn", "pretrain", *words)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "something must be worth building; found a reward of 0 everywhere"),
        ("wrong", "a finite log-reward, or -inf for none, is needed; found nan of [0, 0]"),
        ("flat", "a tensor of one log-reward an object is needed, 9 here; found (9, 2)"),
        ("number", "a function of objects is needed; found 3"),
        ("Leaps", "a function of objects is needed; found <class"),
    ],
)
def test_a_wrong_reward_gets_its_sentence(name, sentence, place, tmp_path, capsys):
    words = ("--model", place / "a" / "model", "--reward", f"{place / 'own.py'}:{name}")
    assert sentence in said(capsys, "ocgfn", "finetune", *words, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("pretrain", "--env", "gird"), "env must be one of grid, strings, growing, fillings"),
        (("pretrain", "--env", "no.py:x"), "a file is needed; found none at no.py"),
        (("pretrain", "--height", "1"), "height must be at least 2"),
        (("pretrain", "--epsilon", "0"), "epsilon must be above 0"),
        (("finetune", "--model", "M", "--reward", "site"), "reward site is for strings"),
        (("finetune", "--model", "no", "--reward", "corners"), "a folder of `melior ocgfn"),
        (("pretrain", "--axes", "9", "--explorer", "backward"), "found too many states"),
    ],
    ids=str,
)
def test_wrong_options_get_their_sentences(words, sentence, place, tmp_path, capsys):
    words = [str(place / "a" / "model") if word == "M" else word for word in words]
    assert sentence in said(capsys, "ocgfn", *words, "--out", tmp_path / "x")


def test_outcomes_are_built_by_name(place, tmp_path, capsys):
    out = tmp_path / "built.jsonl"
    cli.main(["ocgfn", "build", "--model", str(place / "a" / "model"), "--outcomes", "2,0", "1 1",
              "--n", "5", "--out", str(out)])  # fmt: skip
    said_of = capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["outcome"] for row in rows] == [[2, 0], [1, 1]]
    assert all(len(row["built"]) == 5 for row in rows)
    assert f"2,0: built in {rows[0]['success']:.0%} of 5 tries" in said_of


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ("3,0", "outcome 3,0: one that can be built is needed; found that no way leads there"),
        ("9,9", "outcome 9,9: one that can be built is needed; found that no way leads there"),
        ("-1,0", "outcome -1,0: one that can be built is needed"),
        ("1", "outcome '1': 2 whole numbers are needed, such as 1,1; found 1 words"),
        ("a,b", "2 whole numbers are needed"),
    ],
)
def test_outcomes_out_of_reach_get_their_sentence(outcome, sentence, place, capsys):
    model = place / "a" / "model"
    assert sentence in said(capsys, "ocgfn", "build", "--model", model, f"--outcomes={outcome}")

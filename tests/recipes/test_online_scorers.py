"""Every kind of scorer ranks the answers of online rounds, and another one keeps watch."""

import json
import math

import pytest

from melior.cli import main
from tests.recipes.test_online import WORDS, manifests, read, rows, words, write_prompts
from tests.rewards.referee import shown, with_log_probs
from tests.servers import serving


def write_pairs(path):
    """Pairs whose chosen answer is polite."""
    found = [
        {
            "prompt": f"what about {WORDS[i % 10]} {i}?",
            "chosen": f"thank you, {WORDS[(i + 3) % 10]}",
            "rejected": f"the {WORDS[(i + 5) % 10]} jumps",
        }
        for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(path)


def trained(command, model_folder, place):
    """The folder of a reward model that took two steps."""
    main([command, "--model", str(model_folder), "--data", write_pairs(place / "pairs.jsonl"),
          "--out", str(place / command), "--max-steps", "2", "--batch-size", "8",
          "--n-samples", "0", "--dtype", "fp32"])  # fmt: skip
    return str(place / command / "model")


def shorter(body, number):
    """A judge at a server, who likes the shorter answer."""
    first, second = (len(text) for text in shown(body))
    gap = (second - first) / 4
    a, b = (-math.log1p(math.exp(-sign * gap)) for sign in (1, -1))
    return with_log_probs("A" if gap > 0 else "B", A=a, B=b)


@pytest.fixture
def place_of(model_folder, tmp_path, monkeypatch):
    """Return what to name behind --with, by the kind of scorer."""
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    with serving(shorter) as (url, _):
        known = {
            "judge": f"judge:{url}",
            "implicit": f"implicit:{model_folder},{model_folder}",
        }
        yield lambda kind: known.get(kind) or trained(kind, model_folder, tmp_path)


@pytest.mark.parametrize("kind", ["train-reward", "gpm", "judge", "implicit"])
def test_any_scorer_ranks_the_answers(kind, place_of, model_folder, tmp_path):
    prompts, out = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "run"
    scorer = place_of(kind)
    # The start model against itself ranks nothing: its run ends in the first round.
    main(words(model_folder, prompts, out, "--with", scorer, "--rounds", "1", "--min-margin", "0"))
    scored = rows(out / "round-1" / "scored.jsonl")
    scores = [one["score"] for group in scored for one in group["candidates"]]
    assert all(isinstance(score, float) for score in scores)
    if kind == "implicit":
        assert len(manifests(out)) == 1
        return
    assert len(manifests(out)) == 2
    compares = kind in ("gpm", "judge")
    assert all(("comparisons" in group) == compares for group in scored)
    pairs = rows(out / "round-1" / "pairs.jsonl")
    assert not any("comparisons" in pair for pair in pairs)
    judged = read(out / "round-1" / "judged.json")
    if compares:  # a level is the chance to beat the start's answer, which has one half
        assert all(0 <= value <= 1 for value in judged["numbers"]["reward"])
        assert read(out / "round-0" / "judged.json")["means"]["reward"] == 0.5
        assert judged["against"]["start"]["comparisons"][0]["unit"] == "share"


def test_gpo_takes_a_general_preference_model_at_its_word(model_folder, tmp_path):
    prompts, out = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "run"
    scorer = trained("gpm", model_folder, tmp_path)
    main(["gpo", *words(model_folder, prompts, out, "--with", scorer, "--rounds", "1",
                        "--beta", "0.1")[1:]])  # fmt: skip
    groups = {str(row["prompt"]): row for row in rows(out / "round-1" / "scored.jsonl")}
    for row in rows(out / "round-1" / "pairs.jsonl"):
        means = [sum(own) / 4 for own in groups[str(row["prompt"])]["comparisons"]]
        better, worse = (one["score"] for one in row["candidates"])
        assert (better, worse) == (pytest.approx(max(means)), pytest.approx(min(means)))


@pytest.mark.slow
def test_a_scorer_and_a_held_out_one_that_part_are_told_and_stop_the_run(
    model_folder, tmp_path, capsys
):
    """The held-out scorer likes what the rules' model unlearns: start over trained."""
    prompts = write_prompts(tmp_path / "p.jsonl", 260, [{"name": "lower_case"}])
    more = ["--rounds", "3", "--n-prompts", "48", "--k", "8", "--n-eval-prompts", "100",
            "--max-new-tokens", "3", "--batch-size", "8", "--epochs", "2"]  # fmt: skip
    main(words(model_folder, prompts, tmp_path / "first", *more, "--keep", "last"))
    capsys.readouterr()
    against = f"implicit:{model_folder},{tmp_path / 'first' / 'model'}"
    for name, extra in (("warned", []), ("stopped", ["--stop-on-overoptimisation"])):
        out = tmp_path / name
        main(words(model_folder, prompts, out, *more, "--judge-with", against, *extra))
        said = capsys.readouterr().err
        assert "the model learns the scorer's weakness" in said
        assert read(out / "run.json")["status"] == "finished"
        assert ("stopped there" in said) == bool(extra)
        parted = [one["round"] for one in manifests(out) if one["parts"]]
        assert len(manifests(out)) - 1 == (parted[0] if extra else 3)
        page = (out / "report.html").read_text(encoding="utf-8")
        assert "the model learns the scorer" in page

import io
import json
import math
import subprocess
import sys

import pytest

from melior.commands import score, select
from melior.options import ScoringOptions


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def group(*scores, **facts):
    candidates = [{"response": f"answer {i}", "score": x} for i, x in enumerate(scores)]
    return {"prompt": "Say it.", "candidates": candidates, **facts}


def said(row):
    return [one["response"][0]["content"] for one in row["candidates"]]


def test_rules_score_groups_in_a_file(tmp_path, capsys):
    row = {
        "prompt": "Say it.",
        "candidates": [{"response": "So it is"}, {"response": "So, it is"}],
        "constraints": [{"name": "no_commas"}],
        "id": 7,
    }
    out = tmp_path / "scored.jsonl"
    metrics = score.run(score.Config(write(tmp_path / "g.jsonl", [row]), out=str(out)))
    (scored,) = read(out)
    assert [one["score"] for one in scored["candidates"]] == [1.0, 0.0]
    assert scored["candidates"][0]["aspects"]["no_commas"] == 1.0
    assert scored["id"] == 7
    assert scored["scorer"] == {"name": "rules"}
    assert metrics["score/mean"] == 0.5
    assert "2 candidates of 1 groups" in capsys.readouterr().err


def test_what_an_earlier_scorer_left_is_not_taken_for_the_new_ones(tmp_path):
    """Here two answers a judge compared, and an ensemble scored, are scored by rules."""
    row = group(0.2, 0.9, comparisons=[[0, -3], [3, 0]], orders=7, id=7)
    row["candidates"][0] |= {"response": "a, b", "ensemble": {"spread": 1}, "explanation": {}}
    out = tmp_path / "scored.jsonl"
    options = ScoringOptions(constraints='[{"name": "no_commas"}]', temperature=2.0)
    score.run(score.Config(write(tmp_path / "g.jsonl", [row]), out=str(out), scoring=options))
    (scored,) = read(out)
    assert [one["score"] for one in scored["candidates"]] == [0.0, 0.5]
    assert set(scored) == {"prompt", "candidates", "id", "scorer"}
    assert not {"ensemble", "explanation"} & set(scored["candidates"][0])


@pytest.mark.parametrize("other", [{"constraints": [{"name": "no_commas"}]}, {"topic": "foxes"}])
def test_going_on_needs_the_constraints_and_the_topic_of_before(tmp_path, other):
    row = group(None, None, constraints=[{"name": "words", "n": 2, "at": "exactly"}])
    out = tmp_path / "scored.jsonl"
    options = {"out": str(out), "resume": True}
    score.run(score.Config(write(tmp_path / "g.jsonl", [row]), **options))
    score.run(score.Config(write(tmp_path / "g.jsonl", [row, row]), **options))
    assert len(read(out)) == 2
    with pytest.raises(ValueError, match=r"scored\.jsonl:1: --resume needs .* constraints"):
        score.run(score.Config(write(tmp_path / "g.jsonl", [row | other] * 3), **options))


def test_a_chat_template_is_refused_by_rules(tmp_path):
    options = ScoringOptions(constraints='[{"name": "no_commas"}]', chat_template="chatml")
    path = write(tmp_path / "g.jsonl", [group(None)])
    with pytest.raises(ValueError, match=r"--chat-template needs a judge .*; found rules"):
        score.run(score.Config(path, out=str(tmp_path / "s.jsonl"), scoring=options))


def test_score_and_select_join_in_a_pipe(tmp_path):
    row = {"prompt": "Say it.", "candidates": [{"response": "a, b"}, {"response": "a b"}]}
    script = (
        "import sys; from melior.commands import score, select;"
        "from melior.options import ScoringOptions;"
        'options = ScoringOptions(constraints=\'[{"name": "no_commas"}]\');'
        "score.run(score.Config(scoring=options)) if sys.argv[1] == 's'"
        " else select.best_and_worst(select.BestAndWorstConfig());"
        "assert sys.argv[1] != 's' or 'torch' not in sys.modules"  # rules begin at once
    )
    text = json.dumps(row) + "\n"
    for step in "sp":
        done = subprocess.run(
            [sys.executable, "-c", script, step], input=text, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        text = done.stdout
    (pair,) = map(json.loads, text.splitlines())
    assert pair["chosen"][0]["content"] == "a b"
    assert pair["margin"] == 1.0


def test_scoring_nothing_is_refused_and_writes_nothing(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    out = tmp_path / "scored.jsonl"
    with pytest.raises(ValueError, match=r"none\.jsonl: needs at least one group to score"):
        score.run(score.Config(str(tmp_path / "none.jsonl"), out=str(out)))
    assert not out.exists()


def test_wrong_options_are_refused_at_once():
    with pytest.raises(ValueError, match=r"--with must be .* did you mean 'rules'"):
        score.Config(scorer="rule")
    with pytest.raises(ValueError, match="--constraints must be a JSON list"):
        score.Config(scoring=ScoringOptions(constraints="{"))
    with pytest.raises(ValueError, match=r"--constraints.*did you mean 'bullets'"):
        score.Config(scoring=ScoringOptions(constraints='[{"name": "bulets", "n": 3}]'))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        select.BoltzmannConfig(temperature=0)
    with pytest.raises(ValueError, match="m must be at least 1"):
        select.TopConfig(m=0)
    with pytest.raises(ValueError, match="min_margin"):
        select.BestAndWorstConfig(min_margin=math.nan)


def test_an_unknown_constraint_is_named_with_file_and_line(tmp_path):
    path = write(tmp_path / "g.jsonl", [group(None, constraints=[{"name": "bulets", "n": 3}])])
    out = tmp_path / "scored.jsonl"
    with pytest.raises(ValueError, match=r"g\.jsonl:1.*did you mean 'bullets'"):
        score.run(score.Config(path, out=str(out)))
    assert not out.exists()


def test_best_and_worst_make_pairs_and_the_rest_is_counted(tmp_path, capsys):
    rows = [
        group(0.2, 1.0, None, 0.0, topic="sea"),
        group(0.5, 0.5),
        group(None, 0.5),
        group(0.5, 0.4),
    ]
    out = tmp_path / "pairs.jsonl"
    metrics = select.best_and_worst(
        select.BestAndWorstConfig(write(tmp_path / "g.jsonl", rows), str(out), min_margin=0.2)
    )
    (pair,) = read(out)
    assert pair["chosen"][0]["content"] == "answer 1"
    assert pair["rejected"][0]["content"] == "answer 3"
    assert (pair["margin"], pair["topic"]) == (1.0, "sea")
    assert metrics == {"select/pairs": 1.0, "select/left_out": 3.0}
    told = capsys.readouterr().err
    assert "wrote 1 pairs; left out 3 groups" in told
    for reason in (select.EQUAL, select.UNSCORED, select.CLOSE):
        assert f"1 {reason}" in told


def test_best_and_random_rejects_what_scores_less(tmp_path):
    path = write(tmp_path / "g.jsonl", [group(1.0, 0.0, 0.5, 1.0)] * 40)
    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for out in outs:
        select.best_and_random(select.BestAndRandomConfig(path, str(out), seed=1))
    rows = read(outs[0])
    assert rows == read(outs[1])
    assert {row["chosen"][0]["content"] for row in rows} == {"answer 0"}
    assert {row["rejected"][0]["content"] for row in rows} == {"answer 1", "answer 2"}


def test_top_and_boltzmann_keep_groups(tmp_path):
    path = write(tmp_path / "g.jsonl", [group(0.0, 1.0, None, 0.5), group(None)])
    out = tmp_path / "kept.jsonl"
    metrics = select.top(select.TopConfig(path, str(out), m=2))
    assert [said(row) for row in read(out)] == [["answer 1", "answer 3"]]
    assert metrics == {"select/groups": 1.0, "select/left_out": 1.0}
    select.boltzmann(select.BoltzmannConfig(path, str(out), m=3, temperature=1e-6))
    assert [said(row) for row in read(out)] == [["answer 1", "answer 3", "answer 0"]]


@pytest.mark.parametrize("rows", [[group(None, None)], [group(1.0, 1.0)]])
def test_choosing_from_nothing_says_the_way_out(tmp_path, rows):
    path = write(tmp_path / "g.jsonl", rows)
    out = tmp_path / "pairs.jsonl"
    with pytest.raises(ValueError, match=r"g\.jsonl: choosing needs groups.*melior score"):
        select.best_and_worst(select.BestAndWorstConfig(path, str(out)))
    assert not out.exists()


def test_standard_input_is_read(tmp_path, monkeypatch):
    class Stdin:
        buffer = io.BytesIO((json.dumps(group(1.0, 0.0)) + "\n").encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    out = tmp_path / "pairs.jsonl"
    select.best_and_worst(select.BestAndWorstConfig(out=str(out)))
    assert len(read(out)) == 1

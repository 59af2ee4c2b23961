"""Answers and judgments as the files of AlpacaEval, Arena-Hard and MT-Bench, by command line."""

import json
from pathlib import Path

import pytest

from melior.cli import main
from melior.data.answers import markdown_counts
from melior.data.judgements import (
    Annotation,
    ArenaAnswer,
    ArenaJudgement,
    BenchAnswer,
    BenchPair,
    ModelOutput,
    read,
)
from tests.rewards.referee import referee
from tests.sampling.test_server import fine
from tests.servers import serving

OURS, BASE = (3, 1, 2, 2), (1, 3, 2, 9)
"""Points of the answers to each prompt."""


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def answered(path, points, **facts):
    return put(path, [
        {"prompt": f"Ask {i}?", "candidates": [{"response": f"{n} points"}], "id": f"u{i}",
         "question_id": 81 + i, "dataset": "d", "category": "c", **facts}
        for i, n in enumerate(points)
    ])  # fmt: skip


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Both models' answers, compared by a judge at a server."""
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    ours, base = (answered(tmp_path / f"{name}.jsonl", points)
                  for name, points in (("ours", OURS), ("base", BASE)))  # fmt: skip
    both, out = str(tmp_path / "both.jsonl"), str(tmp_path / "judged.jsonl")
    main(["data", "convert", ours, both, "--against", base, "--generator", "ours"])
    with serving(referee) as (url, _):
        main(["score", both, "--with", f"judge:{url}", "--out", out])
    return out


def test_answers_go_out_to_alpaca_eval_and_come_back(tmp_path):
    ours, out = answered(tmp_path / "ours.jsonl", OURS), str(tmp_path / "model_outputs.json")
    main(["data", "convert", ours, out, "--to", "alpaca-eval", "--generator", "ours"])
    found = list(read(ModelOutput, out))
    assert found[0] == ModelOutput("d", "Ask 0?", "3 points", "ours")
    assert isinstance(json.loads(Path(out).read_text("utf-8")), list)
    back = str(tmp_path / "back.jsonl")
    main(["data", "convert", out, back])
    assert rows(back)[2]["prompt"] == [{"role": "user", "content": "Ask 2?"}]
    again = str(tmp_path / "again.json")
    main(["data", "convert", back, again, "--to", "alpaca-eval"])
    assert list(read(ModelOutput, again)) == found


def test_answers_go_out_to_arena_hard_and_come_back(tmp_path):
    ours, out = answered(tmp_path / "ours.jsonl", OURS), str(tmp_path / "ours_arena.jsonl")
    main(["data", "convert", ours, out, "--to", "arena-hard", "--generator", "ours"])
    first, *_ = found = list(read(ArenaAnswer, out))
    assert (first.uid, first.model, first.answer) == ("u0", "ours", "3 points")
    assert first.metadata["token_len"] == 2
    back, again = str(tmp_path / "back.jsonl"), str(tmp_path / "again.jsonl")
    main(["data", "convert", out, back])
    main(["data", "convert", back, again, "--to", "arena-hard"])
    assert list(read(ArenaAnswer, again)) == found


def test_both_turns_of_mt_bench_are_asked_and_written(tmp_path):
    questions = put(tmp_path / "question.jsonl", [
        {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]},
        {"question_id": 82, "category": "math", "turns": ["Three?"]},
    ])  # fmt: skip
    one, asked, two, out = (str(tmp_path / f"{name}.jsonl") for name in ("1", "next", "2", "out"))
    with serving(fine) as (url, seen):
        main(["sample", "--data", questions, "--server", url, "--out", one])
        main(["data", "convert", one, asked, "--to", "next-turn"])
        main(["sample", "--data", asked, "--server", url, "--out", two])
    assert [turn["content"] for turn in seen[-1]["messages"]] == ["One?", "One? 0", "Two?"]
    main(["data", "convert", two, out, "--to", "mt-bench", "--generator", "ours"])
    (found,) = read(BenchAnswer, out)
    assert (found.question_id, found.model_id) == (81, "ours")
    assert found.choices[0].turns == ("One? 0", "One? 0")


def test_a_judges_verdicts_become_alpaca_eval_annotations_and_a_win_rate(judged, tmp_path, capsys):
    out = str(tmp_path / "annotations.json")
    main(["data", "convert", judged, out, "--to", "alpaca-eval"])
    found = list(read(Annotation, out))
    assert {(one.generator_1, one.generator_2, one.annotator) for one in found} == {
        ("baseline", "ours", "tiny")
    }
    assert (found[0].output_1, found[0].output_2) == ("1 points", "3 points")
    assert [1 + one["candidates"][1]["score"] for one in rows(judged)] == pytest.approx(
        [one.preference for one in found]
    )
    main(["evaluate", "win-rate", out])
    told = capsys.readouterr().out
    assert "ours against baseline, judged by tiny" in told
    assert "4 judged: 1 won, 1 drawn, 2 lost" in told


def test_the_same_verdicts_become_the_other_benchmarks_judgments(judged, tmp_path, capsys):
    arena, bench = str(tmp_path / "arena.jsonl"), str(tmp_path / "bench.jsonl")
    main(["data", "convert", judged, arena, "--to", "arena-hard"])
    games = [[game.score for game in one.games] for one in read(ArenaJudgement, arena)]
    # The answer that is shown second is favoured: of equal answers it wins both games.
    assert games == [["B>A", "A>B"], ["A>B", "B>A"], ["A=B", "A=B"], ["A>B", "B>A"]]
    main(["data", "convert", judged, bench, "--to", "mt-bench"])
    winners = [(one.g1_winner, one.g2_winner) for one in read(BenchPair, bench)]
    assert winners == [("model_1",) * 2, ("model_2",) * 2, ("tie",) * 2, ("model_2",) * 2]
    for file in (arena, bench):
        capsys.readouterr()
        main(["evaluate", "win-rate", file])
        assert "4 judged: 1 won, 1 drawn, 2 lost" in capsys.readouterr().out


def test_a_missing_verdict_stays_missing(tmp_path, capsys):
    group = {"prompt": "a", "question_id": 1, "comparisons": [[0, None], [None, 0]],
             "orders": [[None, 0.5], [None, None]],
             "candidates": [{"response": "x", "generator": "base"},
                            {"response": "y", "generator": "ours"}]}  # fmt: skip
    whole = group | {"comparisons": [[0, 1], [-1, 0]], "orders": [[None, 1], [-1, None]]}
    data = put(tmp_path / "judged.jsonl", [group, whole])
    for kind, name in (
        ("alpaca-eval", "a.json"),
        ("arena-hard", "b.jsonl"),
        ("mt-bench", "c.jsonl"),
    ):
        out = str(tmp_path / name)
        main(["data", "convert", data, out, "--to", kind])
        capsys.readouterr()
        main(["evaluate", "win-rate", out])
        assert "1 judged, 1 missing: 0 won, 0 drawn, 1 lost" in capsys.readouterr().out


def test_markdown_is_counted_outside_of_code():
    text = "# A\n\n## B\n- x\n* y\n1. z\n**bold** and __too__\n```\n# code\n- no\n```"
    assert markdown_counts(text) == {
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 1, "unordered": 2},
        "bold_count": {"**": 1, "__": 1},
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out.jsonl", "--to", "alpaca-eval"], "a name in .json is needed for alpaca-eval"),
        (["out.json", "--to", "mt-bench"], "a name in .jsonl is needed for mt-bench"),
        (["out.json", "--to", "alpaca-eval"], "needs to know who answered"),
        (["out.jsonl", "--against", "other.jsonl"], "needs an answer of the baseline"),
        (["out.jsonl", "--to", "next-turn"], "needs 'turns', a list; found None"),
        (["out.jsonl", "--to", "mt"], "invalid choice 'mt'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    ours = answered(tmp_path / "ours.jsonl", OURS)
    put(tmp_path / "other.jsonl", [{"prompt": "Other?", "candidates": ["x"]}])
    with pytest.raises(SystemExit):
        main(["data", "convert", ours, *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / words[0]).exists()


def test_a_judgment_in_both_orders_needs_both_and_an_answer_needs_to_be_one(tmp_path, capsys):
    both = [{"response": "x", "generator": "a", "score": 1}, {"response": "y", "generator": "b"}]
    cases = [
        ([{"prompt": "p", "candidates": both}], "arena-hard", "needs 'orders', as a judge stores"),
        ([{"prompt": "p", "candidates": [*both, both[0]]}], "arena-hard", "found 3; choose with"),
        ([{"prompt": "p", "candidates": both[:1]}], "mt-bench", "needs 'question_id', a whole"),
        ([{"prompt": "p", "uid": "1", "candidates": both[:1]},
          {"prompt": "q", "uid": "2", "orders": [[None, 1], [1, None]], "candidates": both}],
         "arena-hard", "found both, 1 and 2 to a prompt"),
    ]  # fmt: skip
    for given, kind, said in cases:
        data = put(tmp_path / "g.jsonl", given)
        with pytest.raises(SystemExit):
            main(["data", "convert", data, str(tmp_path / "out.jsonl"), "--to", kind])
        assert said in capsys.readouterr().err

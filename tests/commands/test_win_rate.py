"""`melior evaluate win-rate` on the three tools' files, and on what is wrong with them."""

import json
from pathlib import Path

import pytest

from melior import cli
from melior.data.judgements import ArenaJudgement, BenchPair, BenchScore, read_leaderboard
from melior.evaluation.verdicts import read_contests
from tests.data.test_judgements import ANNOTATION, GAME, ROWS, put

PEER = json.loads((Path(__file__).parents[1] / "peers" / "alpaca_eval.json").read_text("utf-8"))
WORLD = PEER["worlds"][0]


def annotations(world=WORLD):
    return [
        {**ANNOTATION, "instruction": f"say {i}", "output_1": "a" * one, "output_2": "b" * two,
         "preference": preference}
        for i, ((one, two), preference) in enumerate(
            zip(world["lengths"], world["preferences"], strict=True)
        )
    ]  # fmt: skip


def put_list(path, rows):
    path.write_text(json.dumps(rows), "utf-8")
    return str(path)


def put_gamed(path, world=WORLD):
    n = len(world["lengths"])
    lines = [f"m,{i % n},{','.join(map(str, row))},False\n" for i, row in enumerate(world["gamed"])]
    head = "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    path.write_text(head + "".join(lines), "utf-8")
    return str(path)


def test_annotations_give_alpaca_evals_leaderboard_row(tmp_path, capsys):
    file = put_list(tmp_path / "annotations.json", annotations())
    out = tmp_path / "leaderboard.csv"
    cli.main(["evaluate", "win-rate", file, "--gamed", put_gamed(tmp_path / "df_gamed.csv"),
              "--out", str(out)])  # fmt: skip
    (row,) = read_leaderboard(out)
    peer = WORLD["fits"]["length_controlled_v1"]["exact"]
    for name, value in peer.items():
        assert getattr(row, name) == pytest.approx(value, abs=1e-6), name
    said = capsys.readouterr().out
    assert "ours against base, judged by weighted_alpaca_eval" in said
    assert f"length-controlled win rate {peer['length_controlled_winrate']:.1f}% (" in said


def test_missing_judgements_are_counted_and_change_nothing_else(tmp_path, capsys):
    rows = annotations()
    gap = {**rows[0], "preference": None, "output_2": "a much longer answer" * 50}
    for name, own in (("a", rows), ("b", [*rows, gap, gap])):
        file = put_list(tmp_path / f"{name}.json", own)
        cli.main(["evaluate", "win-rate", file, "--out", str(tmp_path / f"{name}_out.json")])
    (full,), (gappy,) = (json.loads((tmp_path / f"{n}_out.json").read_text()) for n in "ab")
    assert (full.pop("n_missing"), gappy.pop("n_missing")) == (0, 2)
    full.pop("average_lengths"), gappy.pop("average_lengths")
    assert full == gappy
    assert "40 judged, 2 missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "preference", "weight"),
    [
        (("B>>A", "A>>B"), 1.0, 6),
        (("A>B", "A>B"), 0.5, 2),
        (("A=B", "A>>B"), (0.5 + 3) / 4, 4),
        (("B<<A", "B=A"), 0.5 / 4, 4),
        (("A<B", "B<A"), 1.0, 2),
    ],
)
def test_games_of_arena_hard_count_as_its_own_table_does(tmp_path, labels, preference, weight):
    row = {**ROWS[ArenaJudgement], "games": [{**GAME, "score": label} for label in labels]}
    (contest,) = read_contests(str(put(tmp_path / "j.jsonl", [row])))
    (verdict,) = contest.verdicts
    assert (verdict.preference, verdict.weight) == (preference, weight)


def test_a_game_without_verdict_leaves_the_question_out(tmp_path, capsys):
    good = {**ROWS[ArenaJudgement], "games": [{**GAME, "score": s} for s in ("A>B", "B>A")]}
    rows = [good, ROWS[ArenaJudgement], {**good, "games": [None, GAME]}]
    cli.main(["evaluate", "win-rate", str(put(tmp_path / "j.jsonl", rows))])
    said = capsys.readouterr().out
    assert "1 judged, 2 missing: 0 won, 0 drawn, 1 lost" in said
    assert "no length-controlled win rate: the file holds no answers" in said


def test_pairs_of_mt_bench_are_won_where_both_orders_agree(tmp_path):
    winners = [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "model_2"),
               ("model_2", "model_2"), ("error", "model_1")]  # fmt: skip
    rows = [{**ROWS[BenchPair], "g1_winner": a, "g2_winner": b} for a, b in winners]
    (contest,) = read_contests(str(put(tmp_path / "p.jsonl", rows)))
    assert [one.preference for one in contest.verdicts] == [1.0, 0.5, 0.5, 0.0, None]
    assert (contest.model, contest.baseline, contest.judge) == ("ours", "base", "j")


def test_several_models_in_a_file_stand_apart(tmp_path, capsys):
    rows = annotations() + [{**row, "generator_2": "other"} for row in annotations()[:5]]
    cli.main(["evaluate", "win-rate", put_list(tmp_path / "a.json", rows)])
    said = capsys.readouterr().out
    assert said.index("ours against base") < said.index("other against base")
    assert "no length-controlled win rate: needs at least 10 judged answers; found 5" in said


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([], [], "needs at least one judgement; found none"),
        ([{"a": 1}], [], "needs 'preference' (AlpacaEval)"),
        ([ROWS[BenchScore]], [], "single scores make no win rate"),
        ([{**ANNOTATION, "preference": None}], [], "win rate: needs at least one judgement; found"),
        ([{**ANNOTATION, "generator_1": "ours"}], [], "another one as baseline; found ours"),
        ([{**ANNOTATION, "preference": 7}], [], "a.jsonl:1: 'preference' must lie from 1 to 2"),
        ([{**ROWS[ArenaJudgement], "games": [{**GAME, "score": "A>>>B"}] * 2}], [],
         "a.jsonl:1: 'score' must be a label such as A>>B or null; found 'A>>>B'"),
        ([{**ROWS[ArenaJudgement], "games": [GAME]}], [], "'games' needs two"),
        ([{**ROWS[BenchPair], "g1_winner": "A"}], [], "a winner must be model_1, model_2, tie or"),
        ([ANNOTATION], ["--out", "x.txt"], "a name in .json or .csv is needed"),
        ([ANNOTATION], ["--out", "no/x.csv"], "the folder 'no' does not exist"),
        ([ANNOTATION], ["--confidence", "1"], "confidence must be above 0 and below 1; found 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, rows, options, said):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "win-rate", "a.jsonl", *options])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_gamed_judgements_must_be_of_the_same_instructions(tmp_path, capsys):
    file = put_list(tmp_path / "a.json", annotations()[:-1])
    gamed = put_gamed(tmp_path / "g.csv")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "win-rate", file, "--gamed", gamed])
    assert "each of the 40 instructions whose difficulty is given" in capsys.readouterr().err
    (tmp_path / "g.csv").write_text("index,preference\n0,1\n", "utf-8")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "win-rate", file, "--gamed", gamed])
    assert "g.csv:2: a gamed judgement needs 'std_delta_len'" in capsys.readouterr().err

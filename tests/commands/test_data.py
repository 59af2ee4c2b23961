"""`melior data`: findings and exit codes, statistics, and rows of other tools as ours."""

import json
import subprocess
import sys

import pytest

from melior.commands.data import (
    CheckConfig,
    ConvertConfig,
    StatsConfig,
    check,
    convert,
    histogram,
    stats,
)
from melior.data.files import read_groups, read_pairs

GOOD = [
    {"prompt": f"question {i}", "chosen": f"answer {i} is right", "rejected": f"{i} is wrong"}
    for i in range(30)
]


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_check_of_good_data_says_so(tmp_path, capsys):
    path = put(tmp_path / "a.jsonl", GOOD)
    check(CheckConfig((path,)))
    said = capsys.readouterr().out
    assert "30 pairs" in said and "errors: 0" in said and "length-bias" in said


def test_check_ends_with_1_and_names_the_rows(tmp_path, capsys):
    same = {"prompt": "p", "chosen": "x", "rejected": "x"}
    path = put(tmp_path / "a.jsonl", [same, same])
    with pytest.raises(SystemExit) as caught:
        check(CheckConfig((path,)))
    assert caught.value.code == 1
    said = capsys.readouterr().out
    assert "equal-answers" in said and "a.jsonl:1, 2" in said and "100.0%" in said


def test_check_of_an_empty_file_is_an_error(tmp_path, capsys):
    path = put(tmp_path / "a.jsonl", [])
    with pytest.raises(SystemExit):
        check(CheckConfig((path,)))
    assert "not a single row" in capsys.readouterr().out


def test_check_compares_with_held_out_data(tmp_path, capsys):
    path = put(tmp_path / "a.jsonl", GOOD)
    held_out = put(tmp_path / "b.jsonl", [{"prompt": "Question 3"}])
    with pytest.raises(SystemExit):
        check(CheckConfig((path,), held_out=(held_out,)))
    assert "overlap" in capsys.readouterr().out


def test_check_of_groups(tmp_path, capsys):
    rows = [{"prompt": f"p{i}", "completion": "fine", "label": True} for i in range(3)]
    check(CheckConfig((put(tmp_path / "a.jsonl", rows),)))
    assert "3 groups" in capsys.readouterr().out


def test_check_with_a_model_counts_tokens(tmp_path, model_folder, capsys):
    rows = [*GOOD, {"prompt": "long", "chosen": "word " * 400, "rejected": "no"}]
    path = put(tmp_path / "a.jsonl", rows)
    check(CheckConfig((path,), model=str(model_folder), max_length=300))
    said = capsys.readouterr().out
    assert "more than 300 tokens" in said and "a.jsonl:31" in said
    assert "max length" in said and "8,192" in said
    with pytest.raises(SystemExit):
        check(CheckConfig((path,), model=str(model_folder), max_length=300, max_long_share=0.0))


def test_rows_that_the_template_refuses_are_errors_not_a_crash(tmp_path, model_folder, capsys):
    wrong = {"prompt": "p", "chosen": "yes", "rejected": [{"role": "user", "content": "no"}]}
    path = put(tmp_path / "a.jsonl", [*GOOD, wrong])
    with pytest.raises(SystemExit):
        check(CheckConfig((path,), model=str(model_folder)))
    said = capsys.readouterr().out
    assert "refused" in said and "a.jsonl:31" in said


def test_stats_show_lengths_roles_subsets_and_bias(tmp_path, model_folder, capsys):
    rows = [row | {"subset": "math" if i % 3 else "[chat]"} for i, row in enumerate(GOOD)]
    stats(StatsConfig((put(tmp_path / "a.jsonl", rows),), model=str(model_folder)))
    said = capsys.readouterr().out
    for word in ("30 pairs", "sha256", "chosen, characters", "rejected, tokens", "[chat]", "math"):
        assert word in said
    assert "100.0%: the longer answer is the chosen one" in said


def test_stats_of_groups_show_scores_and_aspects(tmp_path, capsys):
    row = {"prompt": "p", "candidates": [{"response": "a", "score": 1, "aspects": {"safety": 3}}]}
    stats(StatsConfig((put(tmp_path / "a.jsonl", [row] * 3),)))
    said = capsys.readouterr().out
    assert "score" in said and "safety" in said and "candidates" in said


def test_stats_of_nothing(tmp_path, capsys):
    stats(StatsConfig((put(tmp_path / "a.jsonl", []),)))
    assert "no rows" in capsys.readouterr().out


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1, 10, 100, 1000], [-3.0, 2.0]])
def test_a_histogram_has_its_width_and_a_full_block(values):
    drawn = histogram(values, bins=12)
    assert len(drawn) == 12 and "█" in drawn
    assert set(drawn) <= set(" ▁▂▃▄▅▆▇█")
    assert sum(block != " " for block in drawn) == len(set(values))


def test_convert_pairs_and_groups(tmp_path, capsys):
    alpaca = put(tmp_path / "a.jsonl", [{"instruction": "p", "chosen": "c", "rejected": "r"}])
    convert(ConvertConfig(alpaca, str(tmp_path / "out.jsonl"), family="alpaca"))
    assert "1 pair ->" in capsys.readouterr().out
    assert list(read_pairs(tmp_path / "out.jsonl")) == list(read_pairs(alpaca))
    rated = {"instruction": "p", "completions": [{"response": "a", "overall_score": 3.0}]}
    feedback = put(tmp_path / "b.jsonl", [rated])
    convert(ConvertConfig(feedback, str(tmp_path / "groups.jsonl.gz")))
    assert list(read_groups(tmp_path / "groups.jsonl.gz")) == list(read_groups(feedback))


def test_convert_replaces_only_when_told(tmp_path):
    path = put(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(ConvertConfig(path, path))
    convert(ConvertConfig(path, path, overwrite=True))
    assert len(list(read_pairs(path))) == len(GOOD)


def test_convert_of_nothing_is_refused(tmp_path):
    path = put(tmp_path / "a.jsonl", [])
    with pytest.raises(ValueError, match="needs at least one row"):
        convert(ConvertConfig(path, str(tmp_path / "b.jsonl")))
    assert not (tmp_path / "b.jsonl").exists()


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="needs at least one file"):
        CheckConfig(())
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        CheckConfig(("a",), max_length=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "check", "FILE", "--model", "nowhere"], "found no such folder"),
        (["data", "stats", "FILE", "--model", "MODEL", "--chat-template", "no"], "no such file"),
        (["data", "show", "FILE", "--model", "nowhere"], "found no such folder"),
        (["data", "show", "FILE", "--model", "MODEL", "--start", "9"], "needs at least 9 rows"),
        (["sample", "--prompts", "FILE", "--model", "nowhere"], "found no such folder"),
        (["merge", "MODEL", "--out", "FILE"], "needs an adapter"),
    ],
)
def test_what_is_not_there_is_told_without_waiting_for_torch(tmp_path, words, said):
    path = put(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    (tmp_path / "config.json").write_text("{}")
    words = [{"FILE": path, "MODEL": str(tmp_path)}.get(word, word) for word in words]
    code = (
        f"import sys\nfrom melior.cli import main\ntry: main({words!r})\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_bad_data_is_told_without_waiting_for_torch(tmp_path):
    path = put(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "c", "reject": "r"}])
    code = (
        "import sys\n"
        "from melior.commands.data import CheckConfig, check\n"
        "try:\n"
        f"    check(CheckConfig(({path!r},)))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, heavy = done.stdout.splitlines()
    assert "needs 'rejected'" in said and "did you mean 'reject'" in said
    assert heavy == "[]"


def test_the_command_line_takes_from(tmp_path, monkeypatch):
    from melior.cli import main

    path = put(tmp_path / "a.jsonl", [{"instruction": "p", "chosen": "c", "rejected": "r"}])
    out = str(tmp_path / "b.jsonl")
    monkeypatch.setattr(sys, "argv", ["melior", "data", "convert", path, out, "--from", "alpaca"])
    main()
    assert len(list(read_pairs(out))) == 1

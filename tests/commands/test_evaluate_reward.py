"""`melior evaluate reward`: a real reward model, rules and scored files, on pairs and lists."""

import json

import pytest

from melior.cli import main
from melior.commands.evaluate_reward import label, reward_bench_words
from melior.data.files import read_pairs
from melior.models.heads import load_reward_model, save_reward_model
from melior.options import ModelOptions
from melior.rewards.scalar import load_scorer
from tests.report.test_browser import CHROMIUM
from tests.rewards.referee import referee
from tests.servers import serving

SUBSETS = ("alpacaeval-easy", "mt-bench-hard", "donotanswer", "hep-cpp")
COMMAS = '[{"name": "no_commas"}]'


@pytest.mark.parametrize(
    ("scorer", "name"),
    [
        ("rules", "rules"),
        ("/tmp/runs/rm/model", "rm/model"),
        ("rm", "rm"),
        ("org/model", "org/model"),
        ("scored:a/b/c.jsonl", "b/c.jsonl"),
        ("scored:../c.jsonl", "c.jsonl"),
        ("implicit:runs/a/model,smollm2", "a/model,smollm2"),
        ("judge:http://localhost:8000/v1", "localhost:8000/v1"),
    ],
)
def test_a_scorer_is_called_by_the_end_of_its_path(scorer, name):
    assert label(scorer) == name


@pytest.fixture
def data(tmp_path):
    """Twelve pairs, of which the rule `no_commas` ranks two in three right and ties the rest."""
    rows = [
        {"prompt": f"what about {i}?", "chosen": f"it is so {i}",
         "rejected": "well, no, it is not" if i % 3 else "no", "subset": SUBSETS[i % 4], "id": i}
        for i in range(12)
    ]  # fmt: skip
    return put(tmp_path / "data.jsonl", rows)


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def evaluate(data, out, *options):
    main(["evaluate", "reward", "--data", data, "--out", str(out), *options])
    return json.loads((out / "evaluation.json").read_text("utf-8"))


def test_rules_are_judged_and_reward_benchs_files_written(data, tmp_path, capsys):
    out = tmp_path / "eval"
    (found,) = evaluate(data, out, "--with", "rules", "--constraints", COMMAS)["scorers"]
    assert found["accuracies"]["everything"]["accuracy"] == pytest.approx((8 + 4 / 2) / 12)
    results = json.loads((out / "eval-set" / "rules.json").read_text("utf-8"))
    assert set(results) == {"model", "model_type", "chat_template", *SUBSETS}
    assert results["hep-cpp"] == pytest.approx((2 + 1 / 2) / 3)
    scores = json.loads((out / "eval-set-scores" / "rules.json").read_text("utf-8"))
    assert set(scores) == {
        "model", "model_type", "chat_template", "id", "subset", "scores_chosen", "scores_rejected",
        "results", "text_chosen", "text_rejected",
    }  # fmt: skip
    assert scores["id"] == list(range(12))
    assert scores["results"] == [0.5 if i % 3 == 0 else 1.0 for i in range(12)]
    assert scores["text_chosen"][4] == "what about 4?\n\nit is so 4"
    said = capsys.readouterr().out
    assert "rules: best answer first in 83.3% (55.2% to 95.3%), n = 12" in said
    assert "Chat Hard: " in said and "mean of the sections: " in said


def test_a_reward_model_is_judged_by_its_own_rewards(data, tmp_path, model_folder):
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    folder = tmp_path / "runs" / "rm"
    folder.parent.mkdir()
    save_reward_model(load_reward_model(options, trainable=False), folder)
    evaluate(data, tmp_path / "eval", "--with", str(folder), "--dtype", "fp32")
    written = json.loads((tmp_path / "eval/eval-set-scores/runs/rm.json").read_text("utf-8"))
    scorer = load_scorer(ModelOptions(model=str(folder), dtype="fp32"), max_tokens=4096)
    rewards = [(chosen, rejected) for _, chosen, rejected in scorer.pairs(read_pairs(data))]
    for i, (chosen, rejected) in enumerate(rewards):
        assert written["scores_chosen"][i] == pytest.approx(chosen, abs=1e-5)
        assert written["scores_rejected"][i] == pytest.approx(rejected, abs=1e-5)


def test_what_was_scored_before_is_judged_as_if_scored_now(data, tmp_path):
    scored = str(tmp_path / "scored.jsonl")
    main(["score", data, "--constraints", COMMAS, "--out", scored])
    found = evaluate(data, tmp_path / "eval", "--with", "rules", f"scored:{scored}",
                     "--constraints", COMMAS)  # fmt: skip
    now, before = found["scorers"]
    assert now["accuracies"] == before["accuracies"]
    (between,) = found["between"]
    assert between["agreement"] == 1.0
    assert between["accuracy"]["difference"] == 0.0


def test_lists_with_ties_are_judged_as_reward_bench_2_does(tmp_path):
    rows = [
        {"prompt": f"say {i}", "chosen": ["it is"], "rejected": ["a, b", "c, d", "so"],
         "subset": "Focus", "id": str(i)}
        for i in range(2)
    ] + [
        {"prompt": "say", "chosen": ["so", "it"][: 1 + (kind == "tied")], "rejected": ["a, b"],
         "subset": "Ties", "id": f"{kind}:1"}
        for kind in ("ref", "tied")
    ]  # fmt: skip
    out = tmp_path / "eval"
    (found,) = evaluate(
        put(tmp_path / "lists.jsonl", rows), out, "--with", "rules", "--constraints", COMMAS
    )["scorers"]
    assert found["accuracies"]["subsets"]["Focus"]["accuracy"] == 0.5  # tied with one of three
    assert found["accuracies"]["subsets"]["Ties"]["accuracy"] == pytest.approx(1.0)
    scores = json.loads((out / "eval-set-scores" / "rules.json").read_text("utf-8"))
    assert scores["scores_rejected"][0] == [0.0, 0.0, 1.0]


def test_a_majority_that_goes_round_in_circles_is_told(tmp_path, capsys):
    row = {"prompt": "say", "candidates": [{"response": x, "score": s} for x, s in
                                           (("a", 3), ("b", 2), ("c", 1))]}  # fmt: skip
    data = put(tmp_path / "lists.jsonl", [row])
    scorers = []
    for place, opinion in enumerate(((3, 2, 1), (1, 3, 2), (2, 1, 3))):
        candidates = [{"response": x, "score": s} for x, s in zip("abc", opinion, strict=True)]
        file = put(tmp_path / f"s{place}.jsonl", [{"prompt": "say", "candidates": candidates}])
        scorers.append(f"scored:{file}")
    found = evaluate(data, tmp_path / "eval", "--with", *scorers)
    assert found["majority_circles"] == {"cyclic": 1, "decided": 1}
    assert "the majority ranks 1 of 1 decided triple of answers in a circle" in (
        capsys.readouterr().out
    )


def test_a_judge_whose_comparisons_go_round_in_circles_is_told(tmp_path, capsys):
    """As `melior score --with judge:...` stores its verdicts with each group."""
    answers = [{"response": x, "score": s} for x, s in (("a", 3), ("b", 2), ("c", 1))]
    data = put(tmp_path / "lists.jsonl", [{"prompt": f"say {i}", "candidates": answers}
                                          for i in range(2)])  # fmt: skip
    rows = []
    for place, last in enumerate((-2.0, 1.0)):
        logits = [[0, 1.5, last], [-1.5, 0, 0.7], [-last, -0.7, 0]]
        candidates = [{"response": x, "score": 0.5} for x in "abc"]
        rows.append({"prompt": f"say {place}", "candidates": candidates, "comparisons": logits})
    judged = put(tmp_path / "judged.jsonl", rows)
    (found,) = evaluate(data, tmp_path / "eval", "--with", f"scored:{judged}")["scorers"]
    assert found["circles"] == {"cyclic": 1, "decided": 2}
    said = "comparisons rank 1 of 2 decided triples of answers in a circle"
    assert f"its {said}" in capsys.readouterr().out
    assert said in (tmp_path / "eval" / "report.html").read_text("utf-8")
    for wrong in ([[0, 1], [-1, 0]], [[0, 1, 1], [1, 0, 1], [1, 1, 0]], "x"):
        rows[1]["comparisons"] = wrong
        put(tmp_path / "judged.jsonl", rows)
        with pytest.raises(SystemExit):
            evaluate(data, tmp_path / "eval", "--with", f"scored:{judged}")
        said = "judged.jsonl:2: 'comparisons' needs 3 rows of 3 numbers or null, each the negative"
        assert said in capsys.readouterr().err


def test_a_judge_that_went_before_is_not_taken_for_the_scorer(tmp_path, model_folder):
    """A scalar reward model finds the same of rows that hold another's comparisons."""
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    save_reward_model(load_reward_model(options, trainable=False), tmp_path / "rm")
    answers = [{"response": "so", "score": 1}, {"response": "a, b", "score": 0}]
    rows = [{"prompt": f"say {i}", "candidates": answers} for i in range(3)]
    judged = [{**row, "comparisons": [[0, -2.0], [2.0, 0]]} for row in rows]
    bare, other = (
        evaluate(put(tmp_path / f"{name}.jsonl", own), tmp_path / name,
                 "--with", str(tmp_path / "rm"), "--dtype", "fp32")["scorers"][0]["pairs"]
        for name, own in (("bare", rows), ("judged", judged))
    )  # fmt: skip
    assert bare["margin"] not in (2.0, -2.0)
    assert bare == other


@pytest.mark.parametrize("scores", [{"a": 1, "b": None}, {"a": 1}, {"a": "x", "b": 2}])
def test_members_of_an_ensemble_that_say_no_number_are_named(tmp_path, capsys, scores):
    answers = [{"response": x, "score": s, "ensemble": {"scores": {"a": 1, "b": 2}}}
               for x, s in (("a", 2), ("b", 1))]  # fmt: skip
    data = put(tmp_path / "lists.jsonl", [{"prompt": "say", "candidates": answers}])
    answers[1]["ensemble"] = {"scores": scores}
    scored = put(tmp_path / "s.jsonl", [{"prompt": "say", "candidates": answers}])
    with pytest.raises(SystemExit):
        evaluate(data, tmp_path / "eval", "--with", f"scored:{scored}")
    assert "s.jsonl:1: 'ensemble' needs a number of each member" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ensemble", ("Custom Classifier", "none")),
        ("aspects", ("Custom Classifier", "tokenizer")),
        ("general", ("Custom Classifier", "tokenizer")),
        ("pairwise", ("Custom Classifier", "tokenizer")),
        ("scalar", ("Seq. Classifier", "tokenizer")),
        ("rules", ("Custom Classifier", "none")),
        ("implicit", ("DPO", "tokenizer")),
    ],
)
def test_reward_bench_is_told_in_its_words_what_a_scorer_is(tmp_path, kind, said):
    named = {"rules": "rules", "ensemble": "ensemble:rules,a/b", "implicit": "implicit:a/b,c/d"}
    (tmp_path / "config.json").write_text("{}")
    if kind not in named and kind != "scalar":
        (tmp_path / "melior.json").write_text(json.dumps({"kind": kind}))
    assert tuple(reward_bench_words(named.get(kind, str(tmp_path))).values()) == said


def test_a_judge_is_asked_and_goes_on_where_its_budget_ended(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    answers = [{"response": f"{n} points", "score": n} for n in (1, 3, 2)]
    data = put(tmp_path / "lists.jsonl", [{"prompt": f"say {i}", "candidates": answers}
                                          for i in range(4)])  # fmt: skip
    out = tmp_path / "eval"
    with serving(referee) as (url, seen):
        judge = ["--with", f"judge:{url}"]
        with pytest.raises(SystemExit):
            evaluate(data, out, *judge, "--judge-calls", "14")
        assert "budget is spent" in (told := capsys.readouterr().err)
        assert "2 groups are in" in told and "--resume goes on" in told
        (found,) = evaluate(data, out, *judge, "--resume")["scorers"]
        assert len(seen) == 24
    assert found["accuracies"]["everything"]["accuracy"] == 1.0
    assert found["circles"] == {"cyclic": 0, "decided": 4}
    assert found["pairs"]["n"] == 12


def test_answers_without_a_score_and_rows_without_a_better_one_are_counted(tmp_path, capsys):
    rows = [{"prompt": f"say {i}", "candidates": [{"response": "a", "score": 1},
             {"response": "b", "score": int(i == 2)}]} for i in range(3)]  # fmt: skip
    data = put(tmp_path / "lists.jsonl", rows)
    rows[0]["candidates"][1]["score"] = None
    rows[1]["candidates"][1]["score"] = -2
    (found,) = evaluate(
        data, tmp_path / "eval", "--with", f"scored:{put(tmp_path / 's.jsonl', rows)}"
    )["scorers"]
    assert found["n_missing"] == 1
    assert found["accuracies"]["everything"]["n"] == 1
    told = capsys.readouterr()
    assert "1 prompts whose answers are all labelled alike are left out" in told.err
    assert "left out: 1 prompt with an answer not scored" in told.out


def test_pairs_are_labelled_as_most_raters_preferred(tmp_path, capsys):
    row = {"chosen": "a", "rejected": "b"}
    shares = [{"prompt": f"say {i}", "chosen_share": s, **row} for i, s in enumerate((0.9, 0.5))]
    scored = [{"prompt": f"say {i}", "candidates": [{"response": "a", "score": 1},
               {"response": "b", "score": 0}]} for i in range(2)]  # fmt: skip
    given = ("--with", f"scored:{put(tmp_path / 's.jsonl', scored)}")
    (found,) = evaluate(put(tmp_path / "ties.jsonl", shares), tmp_path / "eval", *given)["scorers"]
    assert found["accuracies"]["everything"]["n"] == 1
    assert "1 prompts whose answers are all labelled alike are left out" in capsys.readouterr().err
    turned = put(tmp_path / "turned.jsonl", [shares[0] | {"chosen_share": 0.2}])
    with pytest.raises(SystemExit):
        evaluate(turned, tmp_path / "other", *given)
    assert "turned.jsonl:1: 'chosen_share' must be at least 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--with", "rule"], "--with must be one of"),
        (["--with", "rules", "rules"], "each scorer is needed once; found 'rules' again"),
        (["--with", "rules"], "scoring by rules needs 'constraints'"),
        (["--with", "rules", "scored:no.jsonl"], "no.jsonl: no such file or folder"),
        (["--with", "scored:other.jsonl"], "needs the same prompts and answers as the data"),
        (["--with", "rules", "./no/such"], "model './no/such': needs a folder"),
        (["--with", "rules", "--chat-template", "chatml"], "--chat-template needs a judge"),
        (["--with", "rules", "--seed", "-1"], "seed must be at least 0; found -1"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(data, tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "other.jsonl", [{"prompt": "x", "candidates": [{"response": "y", "score": 1}]}])
    with pytest.raises(SystemExit) as stopped:
        evaluate(data, tmp_path / "eval", *options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_data_without_labels_and_folders_of_runs_are_refused(tmp_path, capsys):
    answers = [{"response": "a"}, {"response": "b"}]
    for row, said in (
        ({"prompt": "x", "candidates": answers}, "g.jsonl:1: needs labels"),
        ({"prompt": "x", "candidates": [{**a, "score": 1} for a in answers]}, "found none among 1"),
    ):
        with pytest.raises(SystemExit):
            evaluate(put(tmp_path / "g.jsonl", [row]), tmp_path / "eval", "--with", "rules")
        assert said in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(SystemExit):
        evaluate("x", tmp_path / "run", "--with", "rules")
    assert "a folder without a run is needed" in capsys.readouterr().err


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}")
def test_the_page_fetches_nothing_and_shows_its_pictures(data, tmp_path):
    from playwright.sync_api import sync_playwright

    evaluate(data, tmp_path / "eval", "--with", "rules", "--constraints", COMMAS)
    asked, broken = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto((tmp_path / "eval" / "report.html").as_uri())
        widths = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
        title = page.inner_text("h1")
        browser.close()
    assert len(widths) == 4 and all(widths)
    assert title == "rules puts the best answer first in 83.3% of prompts"
    assert not broken
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]

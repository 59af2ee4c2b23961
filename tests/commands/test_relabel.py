"""`melior relabel reward-augmented`, `melior sample --goal`: what is written, what is refused."""

import json

import pytest

from melior.cli import main
from melior.data.files import read_pairs
from melior.data.goals import GoalFormat
from melior.stages.ratings.relabel import GOAL_FILE, read_goals
from tests.tiny import tiny_folder

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(i, **more):
    return {
        "prompt": f"what is {i}?",
        "chosen": f"it is {i}",
        "rejected": "no fox",
        "id": i,
        **more,
    }


@pytest.fixture
def pairs(tmp_path):
    return written(
        tmp_path / "pairs.jsonl",
        [row(i, score_chosen=8 + i % 2, score_rejected=2 + i % 3) for i in range(12)],
    )


def relabel(pairs, out, *more):
    main(["relabel", "reward-augmented", str(pairs), "--out", str(out), *map(str, more)])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def refused(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert "Traceback" not in said
        return said.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("placement", ["system", "user_prefix"])
def test_the_twin_has_chosen_what_was_rejected(placement, pairs, tmp_path, capsys):
    originals = list(read_pairs(pairs))
    rows = relabel(pairs, tmp_path / "doubled.jsonl", "--placement", placement)
    assert len(rows) == 2 * len(originals)
    for original, kept, twin in zip(originals, rows[::2], rows[1::2], strict=True):
        assert kept["chosen"][0]["content"] == original.chosen[0].content
        assert twin["chosen"][0]["content"] == original.rejected[0].content
        assert twin["rejected"][0]["content"] == original.chosen[0].content
        assert kept["goal"] == kept["score_chosen"] == twin["score_rejected"]
        assert twin["goal"] == twin["score_chosen"] == kept["score_rejected"]
        assert (kept["goal_source"], twin["goal_source"]) == ("chosen", "rejected")
        assert kept["pair_id"] == twin["pair_id"]
        assert kept["id"] == twin["id"] == original.facts["id"]
        first = kept["prompt"][0]
        assert first["role"] == ("system" if placement == "system" else "user")
        assert f"Overall score: {kept['goal']:g}" in first["content"]
    assert len({one["pair_id"] for one in rows}) == 12
    assert "24 pairs under goals, two for each of 12 pairs; left out 0" in capsys.readouterr().err
    assert all(pair.margin > 0 for pair in read_pairs(tmp_path / "doubled.jsonl"))


@pytest.mark.parametrize(("template", "role"), [(None, "user"), (NO_SYSTEM, "user")])
def test_without_a_system_role_the_goal_goes_to_the_user(template, role, pairs, tmp_path):
    model = tiny_folder(tmp_path / "model", template=template)
    rows = relabel(pairs, tmp_path / "doubled.jsonl", "--model", model)
    assert {one["prompt"][0]["role"] for one in rows} == {role}


def test_with_a_system_role_it_goes_there(model_folder, pairs, tmp_path):
    rows = relabel(pairs, tmp_path / "doubled.jsonl", "--model", model_folder)
    assert {one["prompt"][0]["role"] for one in rows} == {"system"}


def test_a_scale_is_stored_beside_the_pairs(pairs, tmp_path):
    out = tmp_path / "doubled.jsonl"
    rows = relabel(pairs, out, "--placement", "system", "--scale", "affine")
    assert {one["goal"] for one in rows} == {1.0, 2.3, 3.6, 8.7, 10.0}
    kept = json.loads((tmp_path / "doubled.goal.json").read_text(encoding="utf-8"))
    goals = GoalFormat.from_json(kept, "doubled.goal.json")
    assert goals.goal({"Overall score": 9.0}) == {"Overall score": 10.0}
    assert goals.goal({"Overall score": 2.0}) == {"Overall score": 1.0}
    assert kept["hash"] == goals.hash


def test_several_attributes_have_a_line_each(tmp_path):
    given = [
        row(i, fine_grain_score_chosen={"help": 9, "truth": 5 + i % 2},
            fine_grain_score_rejected={"help": 3, "truth": 2}) for i in range(4)
    ]  # fmt: skip
    given[3]["fine_grain_score_rejected"]["truth"] = "N/A"
    pairs = written(tmp_path / "pairs.jsonl", given)
    rows = relabel(pairs, tmp_path / "doubled.jsonl", "--placement", "user_prefix")
    assert len(rows) == 6
    assert rows[0]["goal"] == {"help": 9.0, "truth": 5.0}
    assert "\nhelp: 9\ntruth: 5\n\nwhat is 0?" in rows[0]["prompt"][0]["content"]
    assert rows[1]["fine_grain_score_chosen"] == {"help": 3, "truth": 2}


def test_groups_of_two_scored_answers_are_rated_pairs(pairs, tmp_path):
    groups = [
        {"prompt": "say", "candidates": [{"response": "no", "score": 3.0},
                                         {"response": "yes", "score": 7.5}]},
        {"prompt": "so", "candidates": [{"response": "no", "score": 2.0},
                                        {"response": "yes", "score": 2.0}]},
    ]  # fmt: skip
    file = written(tmp_path / "groups.jsonl", groups)
    rows = relabel(file, tmp_path / "doubled.jsonl", "--placement", "system")
    assert [one["goal"] for one in rows] == [7.5, 3.0]
    assert rows[0]["chosen"][0]["content"] == "yes"


def test_what_select_chose_is_rated(tmp_path):
    candidates = [{"response": f"answer {i}", "score": 1.0 + i} for i in range(4)]
    file = written(tmp_path / "groups.jsonl", [{"prompt": "say", "candidates": candidates}])
    chosen = tmp_path / "pairs.jsonl"
    main(["select", "best-and-worst", str(file), "--out", str(chosen)])
    rows = relabel(chosen, tmp_path / "doubled.jsonl", "--placement", "system")
    assert [one["goal"] for one in rows] == [4.0, 1.0]


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([row(0)], [], "pairs.jsonl:1: relabelling needs a score of both answers"),
        (
            [row(0, score_chosen=9, score_rejected=1), row(1, score_chosen=9)],
            [],
            "pairs.jsonl:2: 'score_rejected' needs a score of each answer; found none",
        ),
        ([row(0, score_chosen=5, score_rejected=5)] * 2, [], "found 5 everywhere"),
        (
            [row(i, score_chosen=5 + i, score_rejected=5 + i) for i in range(2)],
            [],
            "found 2 whose two goals are equal",
        ),
        ([row(0, score_chosen=0.9, score_rejected=0.1)], [], "--scale affine"),
        (
            [row(0, ratings_chosen={"a": 9}, ratings_rejected={"a": 1}),
             row(1, ratings_chosen={"b": 9}, ratings_rejected={"a": 1})],
            [],
            "pairs.jsonl:2: every pair needs the attributes of the first, a; found b",
        ),
        ([row(0, score_chosen=9, score_rejected=1)], ["--goal-high", "1"], "goal_high must be"),
        ([row(0, score_chosen=9, score_rejected=1)], ["--min-gap", "-1"], "min_gap must be"),
        ([row(0, score_chosen=9, score_rejected=1)], ["--goal-template", "no"], "found no file"),
        ([], [], "needs at least one pair; found no row"),
    ],
)  # fmt: skip
def test_wrong_pairs_and_options_are_said_in_a_sentence(rows, more, said, refused, tmp_path):
    pairs = written(tmp_path / "pairs.jsonl", rows)
    out = tmp_path / "out.jsonl"
    line = ("relabel", "reward-augmented", pairs, "--out", out, "--placement", "system", *more)
    assert said in refused(*line)
    assert not out.exists()


def test_where_goals_can_stand_has_to_be_known(refused, pairs, tmp_path):
    words = ("relabel", "reward-augmented", pairs, "--out", tmp_path / "out.jsonl")
    assert "placement auto needs --model" in refused(*words)
    model = tiny_folder(tmp_path / "model", template=NO_SYSTEM)
    said = refused(*words, "--placement", "system", "--model", model)
    assert "placement system needs a chat template that writes system turns" in said
    assert "found - (stdin)" in refused("relabel", "reward-augmented", "-", *words[3:])


def test_pairs_under_goals_are_not_cut_at_their_start(refused, model_folder, pairs, tmp_path):
    out = tmp_path / "doubled.jsonl"
    relabel(pairs, out, "--placement", "system")
    said = refused("dpo", "--model", model_folder, "--data", out, "--out", tmp_path / "run",
                   "--truncation-mode", "keep_end")  # fmt: skip
    assert "pairs under goals, which stand at the prompt's start" in said


@pytest.fixture
def goal_model(model_folder, pairs, tmp_path):
    """A model's folder as if it had been trained on these pairs."""
    relabel(pairs, tmp_path / "doubled.jsonl", "--model", model_folder)
    (tmp_path / "doubled.goal.json").replace(model_folder / GOAL_FILE)
    return model_folder


def sampled(model, prompts, out, *more):
    main(["sample", "--model", str(model), "--prompts", str(prompts), "--out", str(out),
          "--max-new-tokens", "4", "--dtype", "fp32", "--temperature", "0", *more])  # fmt: skip
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_answers_under_a_goal_are_those_to_the_prompt_with_it(goal_model, tmp_path, capsys):
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(3)])
    rows = sampled(goal_model, prompts, tmp_path / "a.jsonl", "--goal", "9.5")
    assert [one["prompt"][0]["content"] for one in rows] == ["say 0", "say 1", "say 2"]
    assert {one["goal"] for one in rows} == {9.5}
    assert "beyond the highest in training, 9" in capsys.readouterr().err
    goals = read_goals(goal_model)
    told = [
        {"prompt": [{"role": "system", "content": goals.text(goals.level(9.5))},
                    {"role": "user", "content": f"say {i}"}]}
        for i in range(3)
    ]  # fmt: skip
    same = sampled(goal_model, written(tmp_path / "told.jsonl", told), tmp_path / "b.jsonl")
    plain = sampled(goal_model, prompts, tmp_path / "c.jsonl")
    answers = [[one["candidates"] for one in side] for side in (rows, same, plain)]
    assert answers[0] == answers[1] != answers[2]


def test_sampling_goes_on_under_the_same_goal_only(goal_model, refused, tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(3)])
    whole = sampled(goal_model, prompts, tmp_path / "a.jsonl", "--goal", "8")
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(lines[:1]))
    words = ["sample", "--model", goal_model, "--prompts", prompts, "--out", tmp_path / "b.jsonl",
             "--max-new-tokens", "4", "--resume"]  # fmt: skip
    assert "under the goal 3" in refused(*words, "--goal", "3")
    again = sampled(goal_model, prompts, tmp_path / "b.jsonl", "--goal", "8", "--resume")
    said = [[one["candidates"][0]["response"] for one in side] for side in (again, whole)]
    assert said[0] == said[1]
    assert [one["goal"] for one in again] == [8.0] * 3


def test_a_goal_needs_a_model_that_knows_goals(model_folder, goal_model, refused, tmp_path):
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": "say"}])
    words = ["sample", "--prompts", prompts, "--model"]
    assert "a goal must lie from 1 to 10" in refused(*words, goal_model, "--goal", "11")
    plain = tiny_folder(tmp_path / "plain")
    said = refused(*words, plain, "--goal", "10")
    assert f"a goal needs a model that was trained on goals, with {GOAL_FILE}" in said
    file = goal_model / GOAL_FILE
    file.write_text(file.read_text(encoding="utf-8").replace("quality", "kind"), encoding="utf-8")
    assert "asked in the words it was trained on" in refused(*words, goal_model, "--goal", "10")

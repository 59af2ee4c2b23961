"""The demo on a tiny model: every verb leaves its file, and a stopped one goes on."""

import json
from dataclasses import replace

from melior.recipes import demo


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spread(group, index):
    """Give a tiny model's answers, which all meet nothing, something to choose from."""
    for place, candidate in enumerate(group["candidates"]):
        text = "Yes it is good, and green" if place % 2 else "Yes it is good and green"
        candidate["response"] = [{"role": "assistant", "content": f"{text} {index}?"}]
    return group


def test_all_five_verbs_leave_their_files(model_folder, tmp_path):
    out = tmp_path / "run"
    config = demo.Config.tiny(str(model_folder), str(out))
    try:
        demo.run(config)
    except ValueError as error:  # random weights: nothing to choose from, or no readable letters
        assert any(said in str(error) for said in ("answers score differently", "wrong encoding"))
    groups = [spread(group, i) for i, group in enumerate(rows(out / "candidates.jsonl"))]
    assert len(groups) == config.n_prompts
    assert all(len(group["candidates"]) == config.sampling.k for group in groups)
    for group in groups:
        group["constraints"] = [{"name": "no_commas"}, {"name": "question"}]
    lines = "".join(json.dumps(group) + "\n" for group in groups)
    (out / "candidates.jsonl").write_text(lines, encoding="utf-8")
    (out / "run.json").unlink(missing_ok=True)
    for left in ("scored.jsonl", "pairs.jsonl", "config.yaml", "data.json", "metrics.jsonl"):
        (out / left).unlink(missing_ok=True)

    demo.run(replace(config, resume=True))
    assert len(rows(out / "scored.jsonl")) == config.n_prompts
    pairs = rows(out / "pairs.jsonl")
    assert len(pairs) == config.n_prompts
    assert all("," not in pair["chosen"][0]["content"] for pair in pairs)
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["comparisons"][0]["name"] == "constraints met"
    assert evaluation["comparisons"][0]["n"] == config.n_held_out
    assert len(rows(out / "samples.jsonl")) == config.n_held_out
    assert (out / "report.html").exists()

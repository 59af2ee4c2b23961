"""The demo's prompts: well-formed, possible to answer, and held out in truth."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

import melior
from melior.data.files import read_prompts
from melior.records import text
from melior.rewards import rules
from melior.rewards.constraints import checked

FOLDER = Path(melior.__file__).parent / "recipes" / "demo_data"
TOOLS = Path(melior.__file__).parents[1] / "tools"
NAMES = ("train", "held_out")
POOL = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
MAX_SHARED = 0.02
"""Of the held-out prompts' runs of four words, the share that any training prompt has, too."""


def rows(name):
    lines = (FOLDER / f"{name}_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def grams(prompt, n=4):
    words = re.findall(r"\w+", prompt.casefold())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def witness(constraints):
    """Build an answer that meets all constraints, by the plainest means."""
    asked = {constraint["name"]: constraint for constraint in constraints}
    if "json_only" in asked:
        return json.dumps(dict.fromkeys(asked["json_only"]["keys"], "alpha"))
    shapes = [kind for kind in ("bullets", "numbered", "sentences", "lines") if kind in asked]
    shapes += ["paragraphs"] * ("paragraphs" in asked)
    count = asked[shapes[0]]["n"] if shapes else 1
    parts = POOL[3 : 3 + count]
    words = POOL[:3]
    words += [asked.get("keyword", {}).get("word", "")] * asked.get("keyword", {}).get("n", 1)
    words += [f"*{word}*" for word in POOL[-asked.get("highlights", {}).get("n", 0) or 99 :]]
    if "capital_words" in asked:
        words += ["KAPPA"] * asked["capital_words"]["n"]
    opening = asked.get("starts_with", {}).get("phrase", "")
    parts[0] = f"{parts[0]} {' '.join(words)}"
    parts[-1] += f" {asked.get('ends_with', {}).get('phrase', '')}"
    parts[-1] = parts[-1].strip() + ("?" if "question" in asked else ".")
    answer = {
        "bullets": "\n".join(f"- {part}" for part in parts),
        "numbered": "\n".join(f"{i}. {part}" for i, part in enumerate(parts, 1)),
        "sentences": ". ".join(parts),
        "paragraphs": "\n***\n".join(parts),
    }.get(shapes[0] if shapes else "", "\n".join(parts))
    gap = "\n" if {"bullets", "numbered"} & set(shapes) else " "
    answer = "<<tau>>\n" * ("title" in asked) + f"{opening}{gap}{answer}".strip()
    answer += "\nP.S. phi" * ("postscript" in asked)
    answer = f'"{answer}"' if "quoted" in asked else answer
    answer = answer.lower() if "lower_case" in asked else answer
    return answer.upper() if "upper_case" in asked else answer


@pytest.mark.parametrize(("name", "low", "high"), [("train", 290, 320), ("held_out", 100, 100)])
def test_prompts_are_read_and_their_constraints_are_known(name, low, high):
    groups = list(read_prompts(FOLDER / f"{name}_prompts.jsonl"))
    assert low <= len(groups) <= high
    assert len({group.prompt for group in groups}) == len(groups)
    for group in groups:
        assert 1 <= len(group.facts["constraints"]) <= 3
        for constraint in group.facts["constraints"]:
            checked(constraint, group.origin)
        assert rules.is_on_topic(text(group.prompt), group.facts["topic"])


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_can_be_answered(name):
    for row in rows(name):
        answer = witness(row["constraints"])
        failed = [c for c in row["constraints"] if not rules.is_met(answer, c)]
        assert not failed, (row, answer)


def test_no_plain_sentence_meets_everything():
    plain = "Well, this is 1 answer, which is rather ordinary. It has 2 sentences."
    met = [rules.share_met(plain, row["constraints"]) for row in rows("held_out")]
    assert sum(met) / len(met) < 0.4


def test_held_out_prompts_share_neither_topics_nor_wording_with_training():
    train, held_out = rows("train"), rows("held_out")
    assert not {row["topic"] for row in train} & {row["topic"] for row in held_out}
    known = {gram for row in train for gram in grams(row["prompt"])}
    asked = [gram for row in held_out for gram in grams(row["prompt"])]
    shared = [gram for gram in asked if gram in known]
    assert len(shared) / len(asked) < MAX_SHARED, shared


def test_the_kinds_of_constraints_are_those_of_training_with_values_never_trained():
    kinds, values = {}, {}
    for name in NAMES:
        constraints = [c for row in rows(name) for c in row["constraints"]]
        kinds[name] = {c["name"] for c in constraints}
        values[name] = {json.dumps(c, sort_keys=True) for c in constraints}
    assert kinds["train"] == kinds["held_out"]
    assert len(values["held_out"] - values["train"]) >= 20


def test_banks_share_no_wording_and_no_request_opening():
    banks = [yaml.safe_load((TOOLS / "demo_banks" / f"{n}.yaml").read_text()) for n in NAMES]
    wordings, openings = [], []
    for bank in banks:
        said = [kind["wordings"] for kind in bank["constraints"].values()]
        wordings.append({text for texts in said for group in texts.values() for text in group})
        openings.append({tuple(r.split()[:3]) for r in bank["requests"].values()})
    assert not wordings[0] & wordings[1]
    assert not openings[0] & openings[1]


def test_the_script_writes_these_very_files(tmp_path):
    script = runpy.run_path(str(TOOLS / "make_demo_prompts.py"))
    script["main"](tmp_path)
    for name in NAMES:
        file = f"{name}_prompts.jsonl"
        assert (tmp_path / file).read_bytes() == (FOLDER / file).read_bytes()

"""What goes wrong with reward models and what they score: said in a sentence, or done right."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from melior.cli import main
from melior.models.heads import load_reward_model, save_reward_model
from melior.options import ModelOptions
from tests.tiny import CHATML, tiny_folder, tiny_model, tiny_tokenizer

GOOD = [
    {"prompt": f"say {i}", "chosen": f"the number is {i}", "rejected": f"no {i} fox"}
    for i in range(12)
]
QUICK = ("--dtype", "fp32", "--n-samples", "0", "--max-steps", "1", "--validation-share", "0")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("bad") / "lm")


@pytest.fixture(scope="module")
def rm(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "rm"
    options = ModelOptions(model=str(lm), dtype="fp32")
    save_reward_model(load_reward_model(options, trainable=False), folder)
    return folder


@pytest.fixture
def put(tmp_path):
    """Write rows to a file; one that is a text stands as it is."""

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def call(capsys):
    """Run a command; return its last line on standard error, and check its code."""

    def run(*words, code=2):
        try:
            main([str(word) for word in words])
        except SystemExit as stopped:
            assert stopped.code == code
        else:
            assert code == 0
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said.strip().splitlines()[-1]

    return run


def scored(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [[one["score"] for one in row["candidates"]] for row in rows]


def groups(*answers):
    return {"prompt": "say", "candidates": [{"response": one} for one in answers]}


@pytest.mark.parametrize(
    ("rows", "needed"),
    [
        ([], "needs at least one row; found no row"),
        ([row | {"rejected": row["chosen"]} for row in GOOD], "two equal answers"),
        ([{"prompt": "a", "completion": "b", "label": True}] * 8, "found 1 candidates"),
        ([{"prompt": "a", "candidates": [{"response": x, "score": 1} for x in "bc"]}],
         "two candidates with different scores; found 2 candidates with the scores [1.0, 1.0]"),
        ([{**GOOD[0], "margin": "much"}], "rows.jsonl:1: 'margin' needs a finite number"),
        (['{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}'],
         "rows.jsonl:1: 'margin' needs a finite number; found the number nan"),
        ([row | {"prompt": "word " * 900} for row in GOOD], "all 12 rows are longer than"),
    ],
)  # fmt: skip
def test_labels_of_which_nothing_can_be_learned_are_refused(lm, put, call, tmp_path, rows, needed):
    command = ("train-reward", "--model", lm, "--data", put(*rows), "--out", tmp_path / "run")
    assert needed in call(*command, *QUICK)


@pytest.mark.parametrize("command", ["score", "evaluate", "margins"])
def test_a_file_without_rows_is_refused(rm, put, call, tmp_path, command):
    words = {
        "score": ("score", put(), "--with", rm),
        "evaluate": ("evaluate", "reward", "--data", put(), "--with", rm, "--out", tmp_path / "o"),
        "margins": ("margins", put(), "--reward-model", rm),
    }
    said = call(*words[command])
    assert "rows.jsonl: needs" in said
    assert "found no" in said


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_no_whole_model_is_named(rm, put, call, tmp_path, lacks):
    shutil.copytree(rm, tmp_path / "part")
    (tmp_path / "part" / lacks).unlink()
    said = call("score", put(groups("a")), "--with", tmp_path / "part")
    assert str(tmp_path / "part") in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_one_sentence(rm, put, call, tmp_path, name):
    shutil.copytree(rm, tmp_path / "part")
    file = tmp_path / "part" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = call("score", put(groups("a")), "--with", tmp_path / "part")
    assert "cannot be loaded as a reward model" in said


@pytest.mark.parametrize("command", ["score", "evaluate", "margins"])
def test_a_language_model_does_not_score(lm, put, call, tmp_path, command):
    data = put(*GOOD)
    words = {
        "score": ("score", data, "--with", lm),
        "evaluate": ("evaluate", "reward", "--data", data, "--with", lm, "--out", tmp_path / "out"),
        "margins": ("margins", data, "--reward-model", lm),
    }
    assert "found a language model, without a head; train one with" in call(*words[command])


@pytest.mark.parametrize("command", ["sample", "dpo", "simpo", "judge", "implicit"])
def test_a_reward_model_does_not_speak(rm, lm, put, call, tmp_path, command):
    """transformers would load it, with an output layer drawn at random where it has none."""
    data, out = put(*GOOD), tmp_path / "out"
    train = ("--model", rm, "--data", data, "--out", out, *QUICK[:4])
    words = {
        "sample": ("sample", "--prompts", data, "--model", rm, "--out", tmp_path / "s.jsonl"),
        "dpo": ("dpo", *train),
        "simpo": ("simpo", *train, "--lora-r", "2"),
        "judge": ("score", data, "--with", f"judge:{rm}"),
        "implicit": ("score", data, "--with", f"implicit:{lm},{rm}"),
    }
    said = call(*words[command])
    assert "a language model is needed; found a reward model (LlamaForSequence" in said


def test_a_language_model_that_lacks_weights_is_refused(call, put, tmp_path):
    folder = tiny_folder(tmp_path / "qwen", "qwen3")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = call("sample", "--prompts", put(*GOOD), "--model", folder, "--out", tmp_path / "s.jsonl")
    assert "needs all its weights; found none for lm_head.weight" in said


def test_every_script_is_learned_from_and_scored(lm, put, call, tmp_path):
    rows = [
        {
            "prompt": f"😀 {i} مرحبا 你好 \u200d",
            "chosen": f"e\u0301 🇦🇹 {i}",
            "rejected": f"\u202e {i}",
        }
        for i in range(12)
    ]
    data, out = put(*rows), tmp_path / "scored.jsonl"
    call("train-reward", "--model", lm, "--data", data, "--out", tmp_path / "run", *QUICK, code=0)
    model = tmp_path / "run" / "model"
    call("score", data, "--with", model, "--out", out, "--dtype", "fp32", code=0)
    assert all(len(set(own)) == 2 for own in scored(out))
    written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    said = [[one["response"][0]["content"] for one in row["candidates"]] for row in written]
    assert said == [[row["chosen"], row["rejected"]] for row in rows]
    half = '{"prompt": "a", "candidates": [{"response": "c\\ud83d"}]}'
    assert "rows.jsonl:1: contents need to be text; found half" in call(
        "score", put(half), "--with", model
    )


def test_no_answer_one_answer_equal_answers_and_a_thousand(rm, put, call, tmp_path):
    rows = [groups(), groups("a fox"), groups("a fox", "dog", "a fox", ""),
            groups(*(f"fox {i % 500}" for i in range(1000)))]  # fmt: skip
    out, words = tmp_path / "scored.jsonl", ("--dtype", "fp32", "--max-tokens", "512")
    said = call("score", put(*rows), "--with", rm, "--out", out, *words, code=0)
    assert "scored 1005 candidates of 4 groups" in said
    none, one, equal, many = scored(out)
    assert (len(none), len(one), len(many)) == (0, 1, 1000)
    assert equal[0] == pytest.approx(equal[2], abs=1e-5)
    assert equal[0] == pytest.approx(one[0], abs=1e-5)
    assert many[:500] == pytest.approx(many[500:], abs=1e-5)
    assert len({round(score, 3) for score in many[:500]}) > 100


def test_what_is_too_long_loses_its_start_or_its_score_and_is_counted(rm, put, call, tmp_path):
    data = put(groups("a"), {"prompt": "word " * 900, "candidates": [{"response": "a"},
               {"response": "word " * 900}]})  # fmt: skip
    out = tmp_path / "scored.jsonl"
    call("score", data, "--with", rm, "--out", out, "--dtype", "fp32", code=0)
    short, long = scored(out)
    assert long[0] is not None and long[1] is None
    assert short[0] is not None


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_tokenizer_without_padding_or_template_serves_all_the_way(template, put, call, tmp_path):
    """Trained and scored by melior, read by a pipeline that knows nothing of it."""
    tiny_model().save_pretrained(tmp_path / "lm")
    tokenizer = tiny_tokenizer(template)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "lm")
    data, out = put(*GOOD), tmp_path / "scored.jsonl"
    run = ("--model", tmp_path / "lm", "--data", data, "--out", tmp_path / "run")
    call("train-reward", *run, *QUICK, code=0)
    folder = tmp_path / "run" / "model"
    call("score", data, "--with", folder, "--out", out, "--dtype", "fp32", code=0)
    found = [score for own in scored(out) for score in own]
    read = pipeline("text-classification", model=str(folder), device="cpu")
    piped = read(texts(read.tokenizer), add_special_tokens=False, batch_size=5)
    assert [row["score"] for row in piped] == pytest.approx(found, abs=2e-5)
    assert rewardbench(folder) == pytest.approx(found, abs=2e-5)


def texts(tokenizer):
    """As a stranger writes conversations: with the saved tokenizer alone."""
    sides = [(row["prompt"], row[side]) for row in GOOD for side in ("chosen", "rejected")]
    if tokenizer.chat_template is None:
        return [ask + said + tokenizer.eos_token for ask, said in sides]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ask}, {"role": "assistant", "content": said}],
            tokenize=False,
        )
        for ask, said in sides
    ]


def rewardbench(folder):
    """Read rewards as RewardBench 0.1.4 does, its steps one by one.

    Its `rewardbench.py` loads `AutoModelForSequenceClassification`, pads on the left and does not
    cut; where the config names no padding token it takes the end token. Its `RewardBenchPipeline`
    tokenises with the tokenizer's own special tokens, masks the first of two beginnings, and takes
    the logits. (It moves all to `cuda`, which is left out here.)
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    assert model.config.pad_token_id is not None and tokenizer.pad_token_id is not None
    found = []
    for batch in (texts(tokenizer)[i : i + 8] for i in range(0, 24, 8)):
        rows = tokenizer(batch, truncation=False, padding=True, return_tensors="pt")
        ids, mask = rows["input_ids"], rows["attention_mask"]
        if tokenizer.bos_token:
            first = mask.argmax(1)
            second = (first + 1).clamp(max=ids.shape[1] - 1)
            row = torch.arange(len(ids))
            is_twice = (ids[row, first] == tokenizer.bos_token_id) & (
                ids[row, second] == tokenizer.bos_token_id
            )
            mask[row[is_twice], first[is_twice]] = 0
        with torch.no_grad():
            found += model.eval()(**rows).logits.flatten().tolist()
    return found


@pytest.mark.parametrize(
    ("recipe", "kind", "needed"),
    [
        ("train-reward", "general", "a reward model of one number"),
        ("train-reward", "aspects", "a reward model of one number"),
        ("gpm", "aspects", "what melior gpm saved"),
        ("margins", "general", "melior score --with reads it"),
        ("margins", "aspects", "melior score --with reads it"),
    ],
)
def test_a_reward_model_of_another_kind_is_named(recipe, kind, needed, lm, put, call, tmp_path):
    other = shutil.copytree(lm, tmp_path / "other")
    (other / "melior.json").write_text(json.dumps({"kind": kind}), encoding="utf-8")
    data, out = put(*GOOD), tmp_path / "out"
    words = ["--model", other, "--data", data, *QUICK]
    if recipe == "margins":
        words = [data, "--reward-model", other]
    said = call(recipe, *words, "--out", out)
    assert f"found one of kind '{kind}'" in said
    assert needed in said

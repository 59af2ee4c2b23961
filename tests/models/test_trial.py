"""A run's first rows, computed both ways: what fits passes unseen, what does not is told."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from melior.cli import main
from melior.data.chat import ChatFormat
from melior.models import attention, trial
from melior.models.language import LanguageModel
from melior.models.trial import N_TOKENS, refuse_disagreement
from melior.objectives.table import objective_kind
from melior.options import DataOptions, JudgeOptions, LoopOptions, ModelOptions, OptimConfig
from melior.rewards.judge_models import load_judge_model
from melior.stages.learn import Plan, learn
from tests.models.test_forest_attention import Marked
from tests.tiny import EXPERTS, FAMILIES, PADDED, SMALL, tiny_model, tiny_tokenizer

FAR = 16
"""Tokens that the broken model looks back: further than the tree that is tried at loading."""


class FarConfig(LlamaConfig):
    model_type = "far_llama"


class FarModel(LlamaModel):
    """Adds to each token what the row holds so many tokens before, as a long convolution does.

    Alone, a sequence finds its own tokens there; in a forest, its neighbour's.
    """

    config_class = FarConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers[0].register_forward_hook(
            lambda _, __, hidden: hidden + 0.5 * pad(hidden, (0, 0, FAR, 0))[:, :-FAR]
        )


class FarLlama(LlamaForCausalLM):
    config_class = FarConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = FarModel(config)


class FarClassifier(LlamaForSequenceClassification):
    config_class = FarConfig


AutoConfig.register("far_llama", FarConfig)
AutoModel.register(FarConfig, FarModel)
AutoModelForCausalLM.register(FarConfig, FarLlama)
AutoModelForSequenceClassification.register(FarConfig, FarClassifier)


@pytest.fixture
def broken(tmp_path):
    """A folder with a model that mixes answers beyond what a glance at loading finds."""
    folder = tmp_path / "broken"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FarLlama(FarConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {
            "prompt": f"what is the capital of France, and why {i}?" + " hello there" * (i % 3),
            "chosen": f"thank you, Paris {i} is the capital, and the quick brown fox jumps",
            "rejected": f"the lazy dog {i} is fine, and jumps over the quick brown fox",
        }
        for i in range(8)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(n_prompt, n_answer):
    """Two prompts with two answers each, all of them different."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for name in ("a", "b"):
        prompt = torch.randint(3, 300, (n_prompt,), generator=draw).tolist()
        ends = torch.randint(3, 300, (2, n_answer), generator=draw).tolist()
        sides = [Marked((*prompt, *end), (False,) * (n_prompt + n_answer)) for end in ends]
        found.append((name, sides))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES | EXPERTS | PADDED)
def test_every_family_passes_and_is_left_as_it_was(monkeypatch, family, dtype):
    monkeypatch.setattr(trial, "SLACK", 2.0)  # half of what is allowed
    model = LanguageModel(tiny_model(family, dtype), ChatFormat(tiny_tokenizer()))
    before = torch.get_rng_state(), model.core.config._attn_implementation
    refuse_disagreement(model, rows(30, 12))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert model.core.config._attn_implementation == before[1]
    assert bool(model.padded_because) == (family in PADDED)
    assert not model.core.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("n_prompt", [30, 3 * N_TOKENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_answers_far_apart_is_found(dtype, n_prompt):
    torch.manual_seed(0)
    model = FarLlama(FarConfig(**SMALL | {"max_position_embeddings": 2048})).to(dtype).eval()
    language = LanguageModel(model, ChatFormat(tiny_tokenizer()))
    assert language.padded_because == ""  # the tree at loading is too small to show it
    with pytest.raises(ValueError) as caught:
        refuse_disagreement(language, [("long", rows(n_prompt + 9, 40)[0][1]), *rows(n_prompt, 40)])
    said = str(caught.value)
    assert re.match(
        "[ab]: a prompt that is computed once for its answers must give what each", said
    )
    assert re.search(
        r"of the answer that differ by 0\.\d+ of their length, where rounding expl", said
    )
    assert "FarLlama does not fit: add --padded" in said
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    "words",
    [
        ["simpo", "--lora-r", "2"],
        ["train-reward", "--validation-share", "0"],
        ["train-pairwise", "--validation-share", "0"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_on_such_a_model_stops_before_its_first_step(words, broken, pairs, tmp_path, capsys):
    words = [*words, "--model", str(broken), "--data", str(pairs), "--out", str(tmp_path / "run"),
             "--max-steps", "1", "--batch-size", "2", "--n-samples", "0"]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"pairs\.jsonl:\d: a prompt that is computed once", said)
    assert "FarLlama" in said or "FarClassifier" in said
    assert "does not fit: add --padded" in said
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
    main([*words, "--padded", "--overwrite"])
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 1
    assert "under padding: as --padded asks" in (tmp_path / "run" / "run.json").read_text()


def test_a_scorer_of_such_a_kind_stops_before_its_first_score(broken, pairs, tmp_path, capsys):
    main(["train-reward", "--model", str(broken), "--data", str(pairs), "--max-steps", "1",
          "--out", str(tmp_path / "rm"), "--validation-share", "0", "--padded"])  # fmt: skip
    words = ["margins", str(pairs), "--reward-model", str(tmp_path / "rm" / "model"), "--out",
             str(tmp_path / "scored.jsonl")]  # fmt: skip
    with pytest.raises(SystemExit):
        main(words)
    assert "FarClassifier does not fit: add --padded" in capsys.readouterr().err
    main([*words, "--padded"])
    assert len((tmp_path / "scored.jsonl").read_text().splitlines()) == 8


def test_a_judge_of_such_a_kind_stops_before_its_first_verdict(broken):
    held = ModelOptions(model="", dtype="fp32", device="cpu")
    judge, padded = (
        load_judge_model(str(broken), one, JudgeOptions(), max_tokens=10**6)
        for one in (held, replace(held, padded=True))
    )
    question = "which is better? " * 4 + "the quick brown fox jumps over the lazy dog"
    with pytest.raises(ValueError, match=r"the judge's question: a prompt that is.*FarLlama"):
        list(judge.replies([question], ("A", "B")))
    assert list(padded.replies([question], ("A", "B")))


def test_a_reference_of_such_a_kind_stops_before_the_first_step(
    broken, pairs, model_folder, tmp_path
):
    kind = objective_kind("dpo")()
    parts = (
        ModelOptions(model=str(model_folder), dtype="fp32", device="cpu"),
        DataOptions(data=(str(pairs),), n_samples=0), OptimConfig(),
        LoopOptions(out=str(tmp_path / "run"), max_steps=1),
    )  # fmt: skip
    plan = Plan("dpo", kind.paper, kind.method(), *parts, kind, reference=str(broken))
    with pytest.raises(ValueError, match=r"pairs\.jsonl:\d: a prompt that is computed.*FarLlama"):
        learn(plan)

"""Reward models: the same numbers in plain transformers, whatever family, batch and tokenizer."""

import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from melior.data.chat import Encoded
from melior.data.forest import plant
from melior.models.heads import (
    load_reward_model,
    outputs_of,
    reward_chat,
    rewards_of,
    save_reward_model,
)
from melior.options import ModelOptions
from melior.records import Turn
from tests.tiny import CHATML, tiny_folder, tiny_model, tiny_tokenizer

SAID = [
    ("what about the fox?", ("it jumps", "the quick brown fox jumps over the lazy dog", "no")),
    ("hello", ("hello there, how are you today?", "hello there, how are you not?")),
    ("what is the capital of France?", ("Paris", "Paris is the capital.", "I am fine " * 6)),
]


def loaded(folder, *, trainable=False, seed=0, labels=("reward",), **options):
    options = {"dtype": "fp32", "device": "cpu"} | options
    return load_reward_model(
        ModelOptions(model=str(folder), **options), trainable=trainable, seed=seed, labels=labels
    )


def encoded(model, said=SAID) -> list[list[Encoded]]:
    return [
        [model.chat.encode((Turn("user", ask),), (Turn("assistant", one),)) for one in answers]
        for ask, answers in said
    ]


def ours(model, max_tokens=10**6):
    return torch.cat(rewards_of(model, encoded(model), max_tokens=max_tokens))


def texts(tokenizer):
    """As a stranger writes conversations: with the saved tokenizer alone."""
    turns = [
        [{"role": "user", "content": ask}, {"role": "assistant", "content": one}]
        for ask, answers in SAID
        for one in answers
    ]
    if tokenizer.chat_template is None:
        return [ask["content"] + said["content"] + tokenizer.eos_token for ask, said in turns]
    return [tokenizer.apply_chat_template(one, tokenize=False) for one in turns]


def plain(folder, padding_side="right"):
    """Rewards by transformers alone, one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    rows = tokenizer(texts(tokenizer), add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(
            input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]
        ).logits.squeeze(-1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral", "gemma2"])
def test_plain_transformers_gives_the_same_rewards(family, tmp_path):
    model = loaded(tiny_folder(tmp_path / "lm", family))
    assert model.padded_because == ""
    found = ours(model)
    assert found.std() > 0.1
    save_reward_model(model, tmp_path / "rm")
    assert torch.allclose(found.float(), plain(tmp_path / "rm"), atol=2e-5)
    read = pipeline("text-classification", model=str(tmp_path / "rm"), device="cpu")
    piped = read(texts(read.tokenizer), add_special_tokens=False, batch_size=3)
    assert {row["label"] for row in piped} == {"reward"}
    assert [row["score"] for row in piped] == pytest.approx(found.tolist(), abs=2e-5)
    again = loaded(tmp_path / "rm")
    assert not again.is_fresh
    assert torch.equal(found, ours(again))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_of_several_numbers_gives_them_by_name(family, tmp_path):
    labels = ("helpful", "honest", "short")
    model = loaded(tiny_folder(tmp_path / "lm", family), labels=labels)
    found = torch.cat(outputs_of(model, encoded(model), max_tokens=60))
    assert found.shape == (8, 3)
    save_reward_model(model, tmp_path / "rm")
    assert torch.allclose(found.float(), plain(tmp_path / "rm"), atol=2e-5)
    read = pipeline("text-classification", model=str(tmp_path / "rm"), device="cpu", top_k=None)
    piped = read(texts(read.tokenizer), add_special_tokens=False)
    named = [{row["label"]: row["score"] for row in own} for own in piped]
    for own, numbers in zip(named, found.tolist(), strict=True):
        assert [own[label] for label in labels] == pytest.approx(numbers, abs=2e-5)
    again = loaded(tmp_path / "rm", labels=labels)
    assert torch.equal(found, torch.cat(outputs_of(again, encoded(again), max_tokens=60)))
    with pytest.raises(ValueError, match="cannot be loaded as a reward model"):
        loaded(tmp_path / "rm")


def test_hidden_states_are_those_that_the_head_reads(model_folder):
    model = loaded(model_folder)
    forest = plant([answer for group in encoded(model) for answer in group])
    with torch.no_grad():
        hidden = model.hidden(forest, forest.last)
        assert hidden.shape == (8, 32)
        assert torch.equal(model.read(hidden).squeeze(-1), model.rewards(forest))


def test_left_padding_gives_the_same_rewards(tmp_path):
    """Where positions are counted from the mask, as rotary families may be: distances matter."""
    model = loaded(tiny_folder(tmp_path / "lm"))
    save_reward_model(model, tmp_path / "rm")
    assert torch.allclose(ours(model).float(), plain(tmp_path / "rm", "left"), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forest_and_padding_agree_in_value_and_gradient(family, tmp_path):
    model = loaded(tiny_folder(tmp_path / "lm", family), trainable=True)
    model.model.double()
    weights = torch.linspace(-1, 1, 8, dtype=torch.float64)
    forest = plant([answer for group in encoded(model) for answer in group])
    assert len(forest.tokens) < sum(len(forest.rows(i)) for i in range(forest.n))
    found = []
    for reason in ("", "to compare"):
        model.padded_because = reason
        model.model.zero_grad()
        rewards = model.rewards(forest)
        (weights * rewards).sum().backward()
        grads = [p.grad.flatten() for p in model.model.parameters() if p.grad is not None]
        found.append((rewards.detach(), torch.cat(grads)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-9, atol=1e-10)
    assert (found[0][1] - found[1][1]).norm() < 1e-6 * found[1][1].norm()  # norms are float32


@pytest.mark.parametrize("max_tokens", [16, 60, 10**6])
def test_rewards_do_not_depend_on_who_is_scored_beside(max_tokens, model_folder):
    model = loaded(model_folder)
    groups = encoded(model)
    counts: list[int] = []
    found = rewards_of(model, groups, max_tokens=max_tokens, on_progress=counts.append)
    assert counts[-1] == len(groups)
    assert [len(group) for group in found] == [3, 2, 3]
    for group, own in zip(groups, found, strict=True):
        for answer, reward in zip(group, own, strict=True):
            (alone,) = rewards_of(model, [[answer]], max_tokens=16)
            assert float(alone) == pytest.approx(float(reward), abs=1e-5)


def test_a_group_of_any_size_stays_within_the_tokens(model_folder, monkeypatch):
    """Of 1,000 answers to one prompt, repeated ones among them; as many come back, in order."""
    model = loaded(model_folder)
    said = [f"{'fox ' * (i % 7)}{i % 400}" for i in range(1000)]
    (group,) = encoded(model, [("what about the fox?", said)])
    sizes, hidden = [], model.hidden
    monkeypatch.setattr(
        model,
        "hidden",
        lambda forest, rows: sizes.append(len(forest.tokens)) or hidden(forest, rows),
    )
    counts: list[int] = []
    (found,) = rewards_of(model, [group], max_tokens=300, on_progress=counts.append)
    assert max(sizes) <= 300
    assert (len(found), counts[-1]) == (1000, 1)
    for i in (0, 1, 399, 400, 999):
        (alone,) = rewards_of(model, [[group[i]]], max_tokens=300)
        assert float(alone) == pytest.approx(float(found[i]), abs=1e-5)


def test_rows_that_are_scored_have_few_lengths(model_folder, monkeypatch):
    """Each length costs a process memory that it keeps."""
    model = loaded(model_folder)
    said = [(f"{'what about the fox? ' * (55 + i)}{i}", ("yes", "no")) for i in range(40)]
    lengths, hidden = [], model.hidden
    monkeypatch.setattr(
        model,
        "hidden",
        lambda forest, rows: lengths.append(len(forest.tokens)) or hidden(forest, rows),
    )
    rewards_of(model, encoded(model, said), max_tokens=1024)
    assert len(lengths) == 40 and min(lengths) > 512
    assert all(length % 16 == 0 for length in lengths)


def test_a_group_without_answers_has_no_rewards(model_folder):
    model = loaded(model_folder)
    groups = [[], *encoded(model)[:1], []]
    assert [len(one) for one in rewards_of(model, groups, max_tokens=100)] == [0, 3, 0]


@pytest.mark.parametrize("template", [CHATML, None])
def test_padding_that_ends_answers_is_replaced(template, tmp_path):
    """With pad = end, transformers would read before the end token, and the folder would lie."""
    tiny_model().save_pretrained(tmp_path / "lm")
    tokenizer = tiny_tokenizer(template)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "lm")
    model = loaded(tmp_path / "lm")
    save_reward_model(model, tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert config["pad_token_id"] not in model.chat.stop_token_ids
    assert config["vocab_size"] == 320
    assert torch.allclose(ours(model).float(), plain(tmp_path / "rm"), atol=2e-5)


def test_a_tokenizer_of_one_special_token_gets_another(tmp_path):
    """Like GPT-2's: one token that begins, ends and pads."""
    tiny_model("gpt2", vocab_size=318).save_pretrained(tmp_path / "lm")
    tokenizer = json.loads(tiny_tokenizer(None).backend_tokenizer.to_str())
    words = [w for w in tokenizer["model"]["vocab"] if w not in ("<|im_start|>", "<|im_end|>")]
    tokenizer["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:1]
    tiny_tokenizer(None).save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = tmp_path / "lm" / "tokenizer_config.json"
    known = json.loads(settings.read_text()) | {"pad_token": None, "added_tokens_decoder": {}}
    settings.write_text(json.dumps(known))
    model = loaded(tmp_path / "lm")
    assert model.chat.tokenizer.pad_token == "[PAD]"
    assert model.core.get_input_embeddings().weight.shape[0] == 319
    assert not model.core.get_input_embeddings().weight[318].any()
    save_reward_model(model, tmp_path / "rm")
    assert torch.allclose(ours(model).float(), plain(tmp_path / "rm"), atol=2e-5)
    assert torch.equal(ours(model), ours(loaded(tmp_path / "rm")))


def test_the_saved_template_stops_after_the_end_token_and_opens_as_before(model_folder, tmp_path):
    model = loaded(model_folder)
    save_reward_model(model, tmp_path / "rm")
    before, after = (AutoTokenizer.from_pretrained(f) for f in (model_folder, tmp_path / "rm"))
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    old, new = (t.apply_chat_template(turns, tokenize=False) for t in (before, after))
    assert old == new + "\n"
    assert new.endswith("<|im_end|>")
    opened = [
        t.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        for t in (before, after)
    ]
    assert opened[0] == opened[1]
    options = ModelOptions(model=str(tmp_path / "rm"))
    assert reward_chat(options).hash == model.chat.hash


def test_a_fresh_head_is_small_random_and_seeded(tmp_path):
    folder = tiny_folder(tmp_path / "lm")
    heads = [loaded(folder, seed=seed).core.score.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    wide = torch.cat([loaded(folder, seed=s).core.score.weight.flatten() for s in range(40)])
    # 1280 draws: the standard deviation is known to 2 %; 8 % is four of its errors.
    assert float(wide.std()) * math.sqrt(33) == pytest.approx(1.0, abs=0.08)
    state = torch.get_rng_state()
    loaded(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_an_adapter_is_folded_into_the_folder(model_folder, tmp_path):
    start = loaded(model_folder, seed=3)
    model = loaded(model_folder, trainable=True, seed=3, lora_r=4)
    names = model.trainable()
    assert any("score" in name for name in names)
    assert all("lora_" in name or "score" in name for name in names)
    assert torch.allclose(ours(start), ours(model), atol=1e-6)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if "lora_B" in name or "score" in name:
                weight.add_(0.1)
    moved = ours(model)
    assert not torch.allclose(moved, ours(start), atol=1e-2)
    save_reward_model(model, tmp_path / "rm")
    assert torch.allclose(moved.float(), plain(tmp_path / "rm"), atol=2e-4)
    assert torch.allclose(moved, ours(model), atol=2e-4)


def test_bfloat16_keeps_masters_and_a_float32_head(model_folder, tmp_path):
    model = loaded(model_folder, trainable=True, dtype="bf16")
    weights = model.trainable()
    head = weights.pop("score.weight")
    assert head.dtype == torch.float32
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert set(model.masters) <= set(weights)
    assert len(model.masters) > 10
    found = ours(model)
    save_reward_model(model, tmp_path / "rm")
    again = loaded(tmp_path / "rm", dtype="bf16")
    assert torch.equal(found, ours(again))
    spread = float(found.std())
    assert torch.allclose(found, ours(loaded(tmp_path / "rm")), atol=0.2 * spread)


def test_what_cannot_be_a_reward_model_is_refused(model_folder, tmp_path):
    config = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=3)
    config.save_pretrained(tmp_path / "three")
    tiny_tokenizer().save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="cannot be loaded as a reward model"):
        loaded(tmp_path / "three")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(model_folder)})
    )
    with pytest.raises(ValueError, match="found an adapter; run melior merge first"):
        loaded(adapter)


def test_the_identity_is_that_of_weights_and_chat(model_folder, tmp_path):
    first, again, other = (loaded(model_folder, seed=seed).identity for seed in (0, 0, 1))
    assert first == again != other
    tiny_tokenizer(CHATML.replace("\n", " ")).save_pretrained(model_folder)
    moved = loaded(model_folder).identity
    assert moved != first
    assert moved["weights"] == first["weights"] != other["weights"]

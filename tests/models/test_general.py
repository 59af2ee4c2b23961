"""Embeddings of answers: as plain transformers reads them, one gate a prompt, one pass each."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from melior.data.forest import plant, size
from melior.models.general import (
    Geometry,
    embedded,
    load_general_model,
    start_general_model,
)
from melior.options import ModelOptions
from melior.records import Turn
from tests.tiny import tiny_folder

SIX = Geometry()
SAID = [
    ("what about the fox?", ("it jumps", "the quick brown fox jumps over the lazy dog", "no")),
    ("hello", ("hello there, how are you today?", "hello there, how are you not?")),
]


def started(folder, geometry=SIX, form="mean-one", *, seed=3, **options):
    options = {"dtype": "fp32", "device": "cpu"} | options
    return start_general_model(ModelOptions(model=str(folder), **options), geometry, form,
                               seed=seed)  # fmt: skip


def loaded(folder, **options):
    return load_general_model(ModelOptions(model=str(folder), **({"dtype": "fp32"} | options)))


def encoded(model, said=SAID):
    return [
        [model.chat.encode((Turn("user", ask),), (Turn("assistant", one),)) for one in answers]
        for ask, answers in said
    ]


def scores(model, groups=None, max_tokens=10**6):
    found = embedded(model, groups or encoded(model), max_tokens=max_tokens)
    return [own.scores for own in found]


def stranger(folder):
    """Scores by transformers, safetensors and JSON alone: what other programs make of it."""
    from safetensors.torch import load_file

    said = json.loads((folder / "melior.json").read_text())
    gate = json.loads((folder / "gate" / "config.json").read_text())
    weight = load_file(folder / "gate" / "model.safetensors")["logits.weight"]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert gate["form"] == "mean-one"
    found = []
    for ask, answers in SAID:
        turn = [{"role": "user", "content": ask}]
        opened = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(opened, add_special_tokens=False, return_tensors="pt")
        vectors = []
        with torch.no_grad():
            hidden = model.base_model(**asked).last_hidden_state[0, -1]
            for one in answers:
                text = tokenizer.apply_chat_template(
                    [*turn, {"role": "assistant", "content": one}], tokenize=False
                )
                row = tokenizer(text, add_special_tokens=False, return_tensors="pt")
                vectors.append(model(**row).logits[0].double())
        logits = (weight @ hidden).double() / len(hidden) ** 0.5
        planes = len(logits) * logits.exp() / logits.exp().sum()
        if said["is_normalised"]:
            vectors = [vector / vector.norm() for vector in vectors]
        pairs = [[sum(planes[p] * (i[2 * p] * j[2 * p + 1] - i[2 * p + 1] * j[2 * p])
                      for p in range(len(planes))) for j in vectors] for i in vectors]  # fmt: skip
        found.append(torch.tensor(pairs))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_plain_transformers_gives_the_same_scores(family, is_normalised, tmp_path):
    model = started(tiny_folder(tmp_path / "lm", family), Geometry(4, is_normalised, 0.5))
    found = scores(model)
    assert float(found[0].abs().max()) > (1e-3 if is_normalised else 1e-7)
    model.save(tmp_path / "gpm")
    for own, other in zip(found, stranger(tmp_path / "gpm"), strict=True):
        assert torch.allclose(own.float(), other.float(), atol=1e-5)
    again = loaded(tmp_path / "gpm")
    assert again.geometry == model.geometry
    assert all(torch.equal(*both) for both in zip(found, scores(again), strict=True))
    labels = json.loads((tmp_path / "gpm" / "config.json").read_text())["id2label"]
    assert list(labels.values()) == ["a0", "b0", "a1", "b1"]


@pytest.mark.parametrize("max_tokens", [16, 60])
def test_company_changes_nothing_and_scores_are_antisymmetric(max_tokens, model_folder):
    model = started(model_folder)
    whole, parts = scores(model), scores(model, max_tokens=max_tokens)
    for own, other in zip(whole, parts, strict=True):
        assert torch.equal(own, -own.T)
        assert torch.allclose(own, other, atol=1e-5)
    turned = scores(model, [group[::-1] for group in encoded(model)])
    for own, other in zip(whole, turned, strict=True):
        assert torch.allclose(own, other.flip(0, 1), atol=1e-6)


def test_the_gate_is_read_where_the_prompt_ends(model_folder):
    """Also behind several turns, and whatever answer follows it."""
    model = started(model_folder)
    turns = (Turn("user", "hello"), Turn("assistant", "hello there"), Turn("user", "and you?"))
    answers = [model.chat.encode(turns, (Turn("assistant", one),)) for one in ("fine", "no fox")]
    (found,) = embedded(model, [answers], max_tokens=1000)
    tokens = torch.tensor([model.chat.prompt_tokens(turns)])
    with torch.no_grad():
        hidden = model.reward.core.base_model(input_ids=tokens).last_hidden_state[:, -1]
        assert torch.allclose(found.gate.float(), model.gate(hidden)[0], atol=1e-5)


def test_a_group_of_any_size_stays_within_the_tokens(model_folder, monkeypatch):
    model = started(model_folder)
    (group,) = encoded(model, [("what about the fox?", [f"fox {i}" for i in range(60)])])
    (whole,) = embedded(model, [group], max_tokens=10**6)
    sizes, embed = [], model.embed
    monkeypatch.setattr(
        model, "embed", lambda forest, ends: sizes.append(len(forest.tokens)) or embed(forest, ends)
    )
    (found,) = embedded(model, [group], max_tokens=100)
    assert max(sizes) <= 100
    assert torch.allclose(found.vectors, whole.vectors, atol=1e-5)
    assert torch.allclose(found.gate, whole.gate, atol=1e-5)


def test_every_answer_is_read_once(model_folder, monkeypatch):
    """The encoder reads the prompt once and each answer once: linear in how many there are."""
    model = started(model_folder)
    read = []
    hidden = model.reward.hidden
    monkeypatch.setattr(
        model.reward, "hidden",
        lambda forest, rows: read.append(len(forest.tokens)) or hidden(forest, rows),
    )  # fmt: skip
    ask = "what about the quick brown fox that jumps over the lazy dog?"
    counts = {}
    for k in (2, 4, 8, 16):
        read.clear()
        answers = tuple(f"{'abcdefghijklmnop'[i]} fox" for i in range(k))
        (group,) = encoded(model, [(ask, answers)])
        embedded(model, [group], max_tokens=size(group))  # with no room to fill the row up
        counts[k] = sum(read)
        prompt = group[0].n_prompt
        assert counts[k] == prompt + sum(len(one.tokens) - prompt for one in group)
    assert counts[16] - counts[8] == 2 * (counts[8] - counts[4]) == 4 * (counts[4] - counts[2])


def test_a_fresh_start_is_seeded_and_all_parts_learn(model_folder):
    first, again, other = (started(model_folder, seed=seed) for seed in (0, 0, 1))
    assert first.start_hash == again.start_hash != other.start_hash
    assert first.identity == again.identity != other.identity
    names = first.trainable()
    assert {"score.weight", "gate.logits.weight"} < names.keys()
    adapter = started(model_folder, lora_r=2).trainable()
    assert all("lora_" in name or "score" in name or "gate" in name for name in adapter)
    assert "gate.logits.weight" not in started(model_folder, form="none").trainable()
    forest = plant([answer for group in encoded(first) for answer in group])
    vectors, gate = first.embed(forest, forest.last[:2])
    assert vectors.dtype == gate.dtype == torch.float32
    (vectors.sum() + gate[:, 0].sum()).backward()
    assert all(names[name].grad.abs().max() > 0 for name in ("score.weight", "gate.logits.weight"))


def test_bfloat16_keeps_head_gate_and_scores_in_float32(model_folder, tmp_path):
    model = started(model_folder, dtype="bf16")
    kept = model.trainable()
    assert {kept[name].dtype for name in ("score.weight", "gate.logits.weight")} == {torch.float32}
    found = scores(model)
    model.save(tmp_path / "gpm")
    assert all(torch.equal(*both) for both in
               zip(found, scores(loaded(tmp_path / "gpm", dtype="bf16")), strict=True))  # fmt: skip


def test_what_does_not_belong_together_is_refused(model_folder, tmp_path):
    started(model_folder, Geometry(4)).save(tmp_path / "gpm")
    with pytest.raises(ValueError, match="going on needs the geometry"):
        started(tmp_path / "gpm", Geometry(6))
    file = tmp_path / "gpm" / "melior.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "dimensions": 5}))
    with pytest.raises(ValueError, match="dimensions must be even"):
        loaded(tmp_path / "gpm")
    file.write_text(json.dumps({"kind": "general"}))
    with pytest.raises(ValueError, match="needs 'dimensions'"):
        loaded(tmp_path / "gpm")
    file.write_text(json.dumps(said))
    gate = tmp_path / "gpm" / "gate" / "config.json"
    gate.write_text(json.dumps({**json.loads(gate.read_text()), "planes": 3}))
    with pytest.raises(ValueError, match="options and weights of one PlaneGate"):
        loaded(tmp_path / "gpm")


@pytest.mark.parametrize(
    ("name", "value"),
    [("dimensions", 6.0), ("dimensions", True), ("is_normalised", "false"), ("is_normalised", 1),
     ("beta", "0.1"), ("beta", True)],
)  # fmt: skip
def test_a_geometry_of_other_types_is_refused(name, value, model_folder, tmp_path):
    started(model_folder).save(tmp_path / "gpm")
    file = tmp_path / "gpm" / "melior.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=rf"melior\.json: needs .*{name} {value!r}"):
        loaded(tmp_path / "gpm")

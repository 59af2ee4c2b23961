"""The objective of pairs: exact accumulation, the reference and its cache, adapters."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from melior.data.batches import GroupBatches, TokenValues, tokenise
from melior.data.examples import of_pair
from melior.losses.preference import dpo
from melior.losses.reference_free import simpo
from melior.models.loading import load
from melior.options import ModelOptions
from melior.records import Pair, Turn
from melior.stages.method import Method, log_ratio_method, pairwise, per_token_method
from melior.stages.preference import couple, coupled_objective, group_objective
from melior.stages.reference import reference_log_probs, token_log_probs

METHODS = {
    "dpo": log_ratio_method(partial(dpo, beta=0.5), beta=0.5, sft_weight=0.3),
    "simpo": per_token_method(partial(simpo, beta=2.0, gamma=1.0), beta=2.0, sft_weight=0.3),
}


@pytest.fixture
def model(model_folder):
    found = load(ModelOptions(model=str(model_folder), dtype="fp32"), trainable=True)
    found.model.double()
    return found


@pytest.fixture
def pairs(model):
    rows = []
    for i in range(9):
        prompt = (Turn("user", f"what about {i}" + " fox" * i),)
        chosen, rejected = (Turn("assistant", w * (1 + i % 3)) for w in ("hello ", "dog "))
        pair = Pair(prompt, (chosen,), (rejected,), origin=f"f:{i}")
        sides = [model.chat.encode(prompt, side) for side in (pair.chosen, pair.rejected)]
        rows.append((of_pair(pair), sides, [[], []]))
    return tokenise(rows, max_length=512, truncation_mode="drop")[0]


def gradient(model, method, pairs, reference, budget):
    loader = GroupBatches(pairs, reference, batch_size=9, max_tokens=budget, seed=0)
    objective, loss, metrics = group_objective(model, method), 0.0, {}
    model.model.zero_grad()
    for part in loader.portions(range(9)):
        value, found = objective(part)
        value.backward()
        loss += float(value.detach())
        metrics = {name: metrics.get(name, 0.0) + number for name, number in found.items()}
    grads = [p.grad.flatten() for p in model.model.parameters()]
    return loss, metrics, torch.cat(grads)


@pytest.mark.parametrize("name", METHODS)
def test_portions_add_up_to_the_whole_batch(name, model, pairs):
    """Loss, gradient and metrics, in float64; the NLL term is a mean over the batch's tokens."""
    method, reference = METHODS[name], token_log_probs(model, pairs, max_tokens=10**6)
    whole = gradient(model, method, pairs, reference, 10**6)
    parts = gradient(model, method, pairs, reference, 40)
    assert whole[0] == pytest.approx(parts[0], rel=1e-9)
    # Each token counts once in a forest, and more portions share fewer prefixes.
    whole[1].pop("num_tokens"), parts[1].pop("num_tokens")
    assert whole[1] == pytest.approx(parts[1], rel=1e-7, abs=1e-9)
    assert (whole[2] - parts[2]).norm() < 1e-9 * whole[2].norm()


def test_the_objective_is_the_papers_on_plain_log_probabilities(model, pairs):
    """DPO's loss and its gradient, from each sequence alone through the whole model."""
    method = log_ratio_method(partial(dpo, beta=0.5), beta=0.5)
    drawn = torch.Generator().manual_seed(0)
    zeros = TokenValues.zeros(pairs)
    said = -torch.rand(len(zeros.values), generator=drawn, dtype=torch.float64)
    reference = replace(zeros, values=said)
    loss, _, found = gradient(model, method, pairs, reference, 200)

    def total(side):
        ids = torch.tensor([list(side.tokens)])
        log_probs = model.core(input_ids=ids).logits[0, :-1].log_softmax(-1)
        said = log_probs.gather(-1, ids[0, 1:, None]).squeeze(-1)
        return said[torch.tensor(list(side.mask), dtype=torch.bool)[1:]].sum()

    model.model.zero_grad()
    wanted = 0.0
    for place, pair in enumerate(pairs):
        ref_w, ref_l = (
            side.sum() for side in reference.of([place]).split(reference.lengths[place])
        )
        delta = (total(pair.answers[0]) - ref_w) - (total(pair.answers[1]) - ref_l)
        wanted = wanted - torch.log(1 / (1 + torch.exp(-0.5 * delta))) / 9
    wanted.backward()
    right = torch.cat([p.grad.flatten() for p in model.model.parameters()])
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert (found - right).norm() < 1e-5 * right.norm()


def test_the_reference_is_computed_once_and_found_again(
    model, model_folder, pairs, tmp_path, monkeypatch
):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    calls = []
    first = reference_log_probs(model, pairs, max_tokens=200, on_progress=calls.append)
    assert len(calls) > 2
    again: list[int] = []
    second = reference_log_probs(model, pairs, max_tokens=200, on_progress=again.append)
    assert again == [9]
    assert torch.equal(first.values, second.values)
    # Other weights are another reference, and so are other options of the same weights.
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    other = load(options, trainable=True)
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.5)
    moved = reference_log_probs(other, pairs, max_tokens=200)
    assert not torch.allclose(first.values.float(), moved.values)
    config = model_folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["rope_parameters"]["rope_theta"] = 50.0
    config.write_text(json.dumps(settings), encoding="utf-8")
    turned = reference_log_probs(load(options, trainable=True), pairs, max_tokens=200)
    assert not torch.allclose(first.values.float(), turned.values, atol=1e-3)


def test_a_damaged_cache_is_computed_anew(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    first = reference_log_probs(model, pairs, max_tokens=200)
    (file,) = (tmp_path / "cache" / "reference").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(first.values, reference_log_probs(model, pairs, max_tokens=200).values)


def test_an_adapters_reference_is_the_model_without_it(model_folder, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    bare = load(ModelOptions(model=str(model_folder), dtype="fp32"), trainable=False)
    wanted = token_log_probs(bare, pairs, max_tokens=10**6)
    options = ModelOptions(model=str(model_folder), dtype="fp32", lora_r=4)
    adapted = load(options, trainable=True)
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    found = reference_log_probs(adapted, pairs, max_tokens=10**6)
    assert torch.allclose(found.values, wanted.values, atol=1e-4)
    moved = token_log_probs(adapted, pairs, max_tokens=10**6)
    assert not torch.allclose(moved.values, wanted.values, atol=1e-1)


def test_no_reference_is_a_reference_of_zeros(pairs):
    nothing = TokenValues.zeros(pairs)
    assert nothing.values.shape == (sum(a.n_scored for pair in pairs for a in pair.answers),)
    assert not nothing.values.any()
    assert nothing.values.untyped_storage().nbytes() == 4


def whole_batch_loss(answers):
    """A loss that couples: each pair's margin against the batch's average margin."""
    margin = pairwise(answers.log_ratio).margin
    return torch.nn.functional.softplus(margin.mean() - 2 * margin) + 0.1 * margin.mean() ** 2


def test_a_coupled_loss_accumulates_as_if_its_batch_were_one(model, pairs):
    method = Method(whole_batch_loss, lambda a: a.log_ratio, True, sft_weight=0.2, is_coupled=True)
    reference = token_log_probs(model, pairs, max_tokens=10**6)
    reference = replace(reference, values=reference.values * 1.1)
    loader = GroupBatches(pairs, reference, batch_size=9, max_tokens=10**6, seed=0)
    (whole,) = loader.portions(range(9))
    model.model.zero_grad()
    value, metrics = group_objective(model, method)(whole)
    value.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.model.parameters()])
    loader.max_tokens = 60
    portions = loader.portions(range(9))
    assert len(portions) > 2
    split, objective = couple(model, method), coupled_objective(model, method)
    model.model.zero_grad()
    loss, found = 0.0, {}
    for part in split(portions):
        share, own = objective(part)
        share.backward()
        loss += float(share.detach())
        found = {name: found.get(name, 0.0) + number for name, number in own.items()}
    grads = torch.cat([p.grad.flatten() for p in model.model.parameters()])
    assert loss == pytest.approx(float(value.detach()), rel=1e-9)
    assert (grads - wanted).norm() < 1e-9 * wanted.norm()
    metrics.pop("num_tokens"), found.pop("num_tokens")
    assert found == pytest.approx(metrics, rel=1e-7, abs=1e-9)


def test_a_whole_model_cannot_be_its_own_reference_later(model):
    with pytest.raises(ValueError, match="before training"), model.reference():
        pass

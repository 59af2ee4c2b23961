"""What a plan is told from: states, caches, portions, machines and ways, against counted truth."""

from dataclasses import replace

import pytest
import torch

from melior.models.decoding import Shared, encode
from melior.models.loading import load
from melior.objectives.table import objective_kind
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.learn import Plan
from melior.stages.planning.clock import Clock, depth
from melior.stages.planning.fullest import memory
from melior.stages.planning.machines import DEVICES, Machine, free_memory, resident, running, told
from melior.stages.planning.memory import KERNELS, States, cache_bytes, gathered, states, total
from melior.stages.planning.subject import Subject
from melior.stages.planning.ways import ways
from melior.stages.planning.work import learning_flops, reading_flops
from melior.training.loop import descend
from tests.models.test_rehearsal import config_of, forest_of
from tests.objectives.rows import pair
from tests.tiny import FAMILIES, tiny_folder

PLENTY = Machine("plenty", 1, 1e12, is_cpu=True)


@pytest.fixture
def plan(tmp_path, model_folder):
    """Return a function that plans a run on a tiny model, some options changed."""
    import json

    data = tmp_path / "pairs.jsonl"
    rows = [pair(i) | {"prompt": f"what about {i}?" + " fox" * (3 * (i % 9))} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(machine=PLENTY, *, name="dpo", model=(), **loop):
        kind = objective_kind(name)()
        return Subject.of(
            Plan(
                name, kind.paper, kind.method(),
                ModelOptions(**{"model": str(model_folder), "device": "cpu"} | dict(model)),
                DataOptions(data=(str(data),)), OptimConfig(),
                LoopOptions(**{"out": str(tmp_path / "run"), "batch_size": 8} | loop), None,
            ),
            machine,
        )  # fmt: skip

    return made


@pytest.mark.parametrize(("dtype", "lora_r"), [("bf16", 0), ("fp32", 0), ("bf16", 4), ("fp32", 4)])
def test_states_are_those_of_the_step(plan, dtype, lora_r):
    """The truth: all tensors that a real step has after it has moved."""
    subject = plan(model={"dtype": dtype, "lora_r": lora_r})
    model = load(subject.plan.model, trainable=True)

    def objective(forest):
        return -model.log_probs(forest).mean(), {}

    step = descend(
        objective, model.trainable(), OptimConfig(), total_steps=2, masters=model.masters
    )
    step([forest_of(1)])
    kept = {name: value for name, value in step.state().items() if isinstance(value, torch.Tensor)}
    found = states(subject.model)
    assert found.weights == sum(one.nbytes for one in model.model.parameters())
    moments = sum(one.nbytes for name, one in kept.items() if name.startswith("exp_avg"))
    assert found.moments == moments
    masters = sum(one.nbytes for name, one in kept.items() if name.startswith("weight/"))
    is_rounded = dtype == "bf16" and not lora_r
    assert found.masters == (masters if is_rounded else 0)
    assert found.gradients == masters
    wide = sum(4 * one.numel() for one in model.core.parameters())
    assert found.original == (found.weights if lora_r else wide)  # as it is held, or to be learned


def test_processes_share_what_stays():
    whole = States(weights=200, masters=400, moments=800, gradients=400, original=400)
    assert whole.shard(4) == States(0, 100, 200, 100, 400)  # rounded weights are not kept
    adapted = States(weights=200, masters=0, moments=16, gradients=8, original=400)
    assert adapted.shard(4) == States(50, 0, 4, 2, 400)
    assert whole.shard(1) == whole


def test_what_fsdp_gathers_is_two_blocks_the_root_and_their_gradients(plan):
    subject = plan(model={"dtype": "bf16"})
    block = sum(2 * one.numel() for one in subject.model.model.layers[0].parameters())
    root = sum(2 * one.numel() for one in subject.model.parameters()) - 2 * block
    assert gathered(subject.model) == 2 * block + root + 3 * block + root
    adapted = plan(model={"dtype": "bf16", "lora_r": 4}).model
    assert gathered(adapted) < gathered(subject.model) + root


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_cached_keys_and_values_are_those_of_sampling(tmp_path, family):
    options = ModelOptions(model=str(tiny_folder(tmp_path / family, family)), dtype="fp32")
    model = load(options, trainable=False)
    prompts = [list(range(3, 3 + n)) for n in (5, 9, 17)]
    with torch.no_grad():
        _, decoder = encode(model.core, prompts)
        decoder.step(torch.tensor([4, 5, 6]))
    assert isinstance(decoder, Shared)
    tensors = [
        tensor
        for layer in decoder.layers
        for tensor in (layer.prompt_keys, layer.prompt_values, layer.keys, layer.values)
    ]
    logits = 3 * 4 * 3 * 320
    found = cache_bytes(model.core.config, [5, 9, 17], 20, 4) - logits
    assert found == sum(one.nbytes for one in tensors)
    assert cache_bytes(model.core.config, [], 20, 4) == 0


def test_portions_are_those_of_the_run(plan):
    subject = plan(epochs=2, max_tokens=200)
    work = subject.work
    assert work.steps == len(work.batches) == 10
    groups = subject.train.groups
    assert work.a_step([1.0] * 10) == 1.0
    assert all(portion.tokens == len(portion.forest.tokens) for portion in work.portions)
    scored = sum(answer.n_scored for group in groups for answer in group.answers)
    assert sum(portion.scored for portion in work.portions) <= 2 * scored
    assert work.largest.tokens == max(portion.tokens for portion in work.portions)
    one = work.largest
    assert one.pairs == sum(position + 1 for position in one.forest.positions.tolist())
    assert sum(one.tokens for one in work.passed) <= sum(one.tokens for one in work.portions)
    assert work.passed_share == 1


def test_a_long_run_is_told_from_some_of_its_steps(plan):
    few, many = plan(epochs=10).work, plan(epochs=200).work
    assert many.steps == 20 * few.steps == 1000
    assert len(many.batches) == 64
    both = [work.a_step([one.tokens for one in work.portions]) for work in (few, many)]
    assert both[1] == pytest.approx(both[0], rel=0.05)


def test_recomputation_and_coupling_cost_a_forward_pass_more(plan):
    subject = plan()
    shape, portion = subject.shape, subject.work.largest
    plain, again, coupled = (
        learning_flops(shape, portion, checkpointing=checkpointing, is_coupled=is_coupled)
        for checkpointing, is_coupled in ((False, False), (True, False), (False, True))
    )
    assert again - plain == pytest.approx(shape.layers(portion.tokens, portion.pairs))
    assert coupled - plain == pytest.approx(reading_flops(shape, portion))


def test_padding_is_counted_where_a_model_needs_it(plan):
    subject = replace(plan(), is_padded=True)
    forest = subject.work.largest.forest
    longest = max(len(forest.rows(i)) for i in range(forest.n))
    assert subject.work.largest.tokens == forest.n * longest


@pytest.mark.parametrize(("checkpointing", "lora_r"), [(False, 0), (True, 0), (False, 4)])
def test_all_layers_are_as_many_times_the_measured_ones(plan, checkpointing, lora_r):
    subject = plan(model={"lora_r": lora_r})
    options = subject.plan.model
    timer = Clock(options, subject.config, subject.chat, OptimConfig(), checkpointing=checkpointing)
    assert timer.depth == depth(subject.config) == 2
    (found,) = timer.learning([subject.work.largest.forest])
    assert min(found.layers, found.head, found.layers_back, found.head_back) > 0
    assert (found.embedding_back > 0) == (lora_r == 0)
    assert sum(vars(found).values()) < 30
    read, inside, beside = timer.sampling(subject.prompts[:3])
    assert read > 0
    assert inside >= 0 <= beside


@pytest.fixture
def tight(plan):
    """A run on a machine that has four fifths of what it takes, beyond what no option changes."""
    subject = replace(plan(max_tokens=4096, batch_size=4), base=0)
    most = memory(subject, subject.plan.model, subject.plan.loop, subject.work.largest).most
    return replace(subject, machine=replace(PLENTY, memory=KERNELS + 0.8 * (most - KERNELS))), most


def test_what_would_make_it_fit_fits_and_the_cheapest_comes_first(tight, plan):
    subject, most = tight
    ranked = ways(subject, most)
    assert ranked
    assert all(way.memory <= subject.machine.memory for way in ranked)
    assert [way.is_same for way in ranked] == sorted([way.is_same for way in ranked], reverse=True)
    same = [way.slower for way in ranked if way.is_same]
    assert same == sorted(same)
    # The line through two portions, against the run that is proposed.
    (way,) = [one for one in ranked if one.options.startswith("--max-tokens")]
    budget = int(way.options.split()[1])
    other = replace(plan(max_tokens=budget, batch_size=4), base=0)
    found = memory(other, other.plan.model, other.plan.loop, other.work.largest).most
    assert 0.7 * way.memory < found <= 1.05 * way.memory


def test_a_machine_is_told_by_its_name_or_by_what_it_has():
    assert told("8 x H100") == Machine("H100", 8, 80e9, 989e12, is_here=False)
    assert told("a100-40gb").memory == 40e9
    named = Machine("told", 64, 80e9, 989e12, is_here=False)
    assert told("64x989e12 FLOP/s, 80 GB") == told("64 x 9.89e+14 FLOP/s,80.0GB") == named
    for wrong in ("8 x H1000", "many"):
        with pytest.raises(ValueError, match="on must be one of"):
            told(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "0 x H100", "8 x", "8 x 1e15 FLOP/s", "8 x 0 FLOP/s, 80 GB", "1.2.3 FLOP/s, 80 GB",
        "8 x 1e999 FLOP/s, 80 GB", "1e15 FLOP/s, 0 GB", "1e15 FLOP/s, 8.0.0 GB",
        "1e15 FLOP/s, 1e300 GB", "e FLOP/s, 80 GB",
    ],
)  # fmt: skip
def test_a_machine_that_is_none_is_refused_in_one_sentence(wrong):
    with pytest.raises(ValueError, match=r"on must be a number of .* finite and above 0; found '"):
        told(wrong)
    assert all(flops > 1e14 and size > 1e10 for flops, size in DEVICES.values())


def test_this_program_is_seen():
    assert 50e6 < resident() < free_memory()
    assert 0 < running() < 24 * 3600


def test_several_devices_share_states_but_not_activations(plan):
    one, eight = (
        memory(subject, subject.plan.model, subject.plan.loop, subject.work.largest)
        for subject in (plan(told("1 x H100")), plan(told("8 x H100")))
    )
    parts = [{part.name: part.amount for part in found.training} for found in (one, eight)]
    assert parts[1]["float32 masters"] == parts[0]["float32 masters"] // 8
    assert "weights" not in parts[1]
    assert parts[1]["kept for the backward pass"] == parts[0]["kept for the backward pass"]
    assert set(parts[1]) - set(parts[0]) == {"gathered from others for a moment"}
    assert total(one.training) == one.most


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_every_family_are_counted(tmp_path, family):
    folder = tiny_folder(tmp_path / family, family)
    options = ModelOptions(model=str(folder), dtype="bf16")
    model = load(options, trainable=True).model
    assert states(model).weights == 2 * sum(one.numel() for one in model.parameters())
    assert states(model).moments == 4 * states(model).weights
    assert config_of(family).num_hidden_layers == 2

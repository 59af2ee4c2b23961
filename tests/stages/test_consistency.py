"""SCIR's parts: what is read is what plain passes say, portions are exact, who votes, who moves."""

import math
from dataclasses import replace

import pytest
import torch

from melior.data.batches import GroupBatches, TokenValues, tokenise
from melior.data.examples import of_pair
from melior.losses.consistency import family_shares, inconsistency
from melior.models.loading import load
from melior.options import ModelOptions
from melior.records import Pair, Turn
from melior.stages.internal.consistency import (
    Portion,
    choose,
    consistent_objective,
    free_loss,
    is_warm_up,
    measure,
    n_warm_up_steps,
    penalty_of,
    sides_of,
)
from melior.stages.internal.judge import at_start, opinions, parted, see, shortcut
from melior.stages.internal.opinions import Seen, SelfJudge, read, with_questions
from melior.stages.internal.options import ConsistencyOptions, StopOptions
from melior.stages.internal.watch import Patience, stops_of
from melior.training.health import Health
from melior.types import Pairwise
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer

PLAIN = ConsistencyOptions(warmup_share=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-judge"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    found = load(ModelOptions(model=str(folder), dtype="fp32"), trainable=True)
    found.model.double()
    return found


@pytest.fixture(scope="module")
def judge(model):
    return SelfJudge(model.chat)


def pair(i):
    prompt = (Turn("user", f"what about {i}" + " fox" * i),)
    sides = ((Turn("assistant", word * (1 + i % 2)),) for word in ("hello ", "dog "))
    return Pair(prompt, *sides, origin=f"f:{i}")


@pytest.fixture(scope="module")
def groups(model, judge):
    made = [pair(i) for i in range(5)]
    rows = [
        (of_pair(one), [model.chat.encode(one.prompt, side) for side in (one.chosen, one.rejected)],
         [[], []]) for one in made
    ]  # fmt: skip
    plain = tokenise(rows, max_length=512, truncation_mode="drop")[0]
    asked = judge.questions([p.prompt for p in made], [(p.chosen, p.rejected) for p in made])
    return [with_questions(group, both) for group, both in zip(plain, asked, strict=True)]


def drawn_reference(groups):
    zeros = TokenValues.zeros(groups)
    draw = torch.Generator().manual_seed(0)
    return replace(zeros, values=-3 * torch.rand(len(zeros.values), generator=draw).double())


def alone(model, tokens):
    with torch.no_grad():
        return model.core(torch.tensor([list(tokens)])).logits[0].log_softmax(-1)


def test_what_is_read_is_what_each_sequence_says_by_itself(model, judge, groups):
    reference = drawn_reference(groups)
    seen = see(model, groups, reference, judge.labels, max_tokens=3000)
    one, two = judge.labels
    for row, group in enumerate(groups):
        for side, answer in zip(("chosen", "rejected"), group.answers[:2], strict=True):
            table = alone(model, answer.tokens)
            said = [float(table[t - 1, token]) for t, token in enumerate(answer.tokens)
                    if answer.mask[t]]  # fmt: skip
            assert getattr(seen.policy, side)[row].item() == pytest.approx(sum(said), rel=1e-9)
            assert getattr(seen.lengths, side)[row] == len(said)
        for order, question in enumerate(group.answers[2:]):
            last = alone(model, question.tokens)[-1]
            found = seen.labels[row, order].tolist()
            assert found == pytest.approx([float(last[one]), float(last[two])], rel=1e-9)
    ends = [sum(sum(n) for n in reference.lengths[:row]) for row in range(len(groups))]
    n = reference.lengths[2][0]
    given = float(reference.values[ends[2] : ends[2] + n].sum())
    assert seen.reference.chosen[2].item() == pytest.approx(given, rel=1e-12)


def test_a_question_shows_its_answers_in_its_order_and_ends_before_the_label(judge, groups):
    one = pair(2)
    both = judge.questions([one.prompt], [(one.chosen, one.rejected)])[0]
    texts = [judge.chat.tokenizer.decode(list(own.tokens)) for own in both]
    for text, (first, second) in zip(texts, (("hello", "dog"), ("dog", "hello")), strict=True):
        assert text.index("BEGIN REPLY 1") < text.index(f"| {first}") < text.index("BEGIN REPLY 2")
        assert text.index("BEGIN REPLY 2") < text.index(f"| {second}")
        assert text.endswith("<|im_start|>assistant\n")
    labels = judge.chat.tokenizer.convert_ids_to_tokens(list(judge.labels))
    assert labels == ["1", "2"]
    assert not any(any(own.mask) for own in groups[0].answers[2:])


def test_which_answer_a_file_calls_chosen_cannot_be_read(judge, groups):
    """A row with its sides swapped, exchanged, is the row itself."""
    one, group = pair(2), groups[2]
    swapped = replace(group, answers=group.answers[1::-1])
    both = judge.questions([one.prompt], [(one.rejected, one.chosen)])[0]
    assert with_questions(swapped, both, is_exchanged=True).answers == group.answers


def test_exchanged_answers_exchange_every_verdict(model, judge, groups):
    turned = [replace(g, answers=(*g.answers[1::-1], *g.answers[:1:-1])) for g in groups]
    there, back = (
        see(model, own, TokenValues.zeros(own), judge.labels, max_tokens=3000).wins(
            beta=0.1, implicit="sum"
        )
        for own in (groups, turned)
    )
    assert torch.allclose(there + back, torch.ones_like(there), atol=1e-12)
    assert (there - 0.5).abs().min() > 1e-6


def test_a_model_without_chat_template_or_with_labels_of_two_tokens_is_no_judge(tmp_path):
    folder = tiny_folder(tmp_path / "plain", template=None)
    plain = load(ModelOptions(model=str(folder), dtype="fp32"), trainable=False)
    with pytest.raises(ValueError, match="needs a chat template"):
        SelfJudge(plain.chat)


# Who votes, and what is learned


def seen_of(orders, margins, lengths=(3.0, 2.0)) -> Seen:
    """What judges with these logits, in both orders, and these log-ratios would say."""
    n = len(margins)
    both = torch.tensor(orders, dtype=torch.float64)
    zeros = torch.zeros(n, dtype=torch.float64)
    labels = torch.stack([both[:, 0], zeros, zeros, both[:, 1]], -1).view(n, 2, 2).log_softmax(-1)
    ratio = torch.tensor(margins, dtype=torch.float64)
    sizes = Pairwise(*(torch.full((n,), own, dtype=torch.float64) for own in lengths))
    return Seen(Pairwise(ratio, zeros), Pairwise(zeros, zeros), sizes, labels.requires_grad_())


SEEN = seen_of(
    [(2.0, 2.0), (2.0, 2.0), (-1.0, -1.0), (3.0, -3.0), (2.0, 2.0), (0.1, 0.1)],
    [5.0, -5.0, -5.0, 5.0, 1e-4, 5.0],
)


def test_the_judges_probability_is_the_mean_of_both_orders():
    seen = seen_of([(2.0, 0.5)], [0.0])
    wanted = (
        1 / (1 + torch.tensor(-2.0).double().exp()) + torch.tensor(0.5).double().sigmoid()
    ) / 2
    assert seen.judge.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert seen.orders[0].tolist() == pytest.approx([2.0, 0.5])


@pytest.mark.parametrize(
    ("options", "is_warm_up", "wanted"),
    [
        (PLAIN, False, [1, 0, -1, 0, 1, 1]),  # an implicit reward that stands still has no vote
        (replace(PLAIN, delta=0.1), False, [1, 0, -1, 0, 1, 0]),
        (PLAIN, True, [1, 1, -1, 0, 1, 0]),  # the judge alone, where it is sure
        (replace(PLAIN, labels="judge"), False, [-1, 1, 1, 0, 1, -1]),
    ],
)
def test_labels_are_those_that_all_voters_agree_on(options, is_warm_up, wanted):
    given = torch.tensor([-1.0, 2.0, 3.0, 0.0, 1.0, -0.5]).double()
    assert sides_of(SEEN, given, options, is_warm_up=is_warm_up).tolist() == wanted


def test_averaged_log_ratios_forget_length():
    seen = seen_of([(1.0, 1.0)], [6.0], lengths=(3.0, 2.0))
    assert seen.log_ratio("sum").margin.tolist() == [6.0]
    assert seen.log_ratio("mean").margin.tolist() == [2.0]


def test_the_loss_of_unlabelled_pairs_is_dpo_on_kept_ones_and_the_penalty_on_all(
    model, judge, groups
):
    """Against the formula, pair by pair, in plain numbers."""
    batches = GroupBatches(groups, drawn_reference(groups), batch_size=5, max_tokens=10**6, seed=0)
    (batch,) = batches.portions(range(5))
    seen = read(model, batch, judge.labels)
    sides = torch.tensor([1, -1, 0, 0, 1])
    loss, metrics = free_loss(seen, Portion(batch, False, sides, 3), PLAIN)
    margins = seen.log_ratio("sum").margin.tolist()
    kept = [0.1 * side * m for side, m in zip(sides.tolist(), margins, strict=True) if side]
    preference = sum(math.log1p(math.exp(-m)) for m in kept) / 3
    wins = seen.wins(beta=0.1, implicit="sum").detach()
    penalty = inconsistency(wins, family_shares(("a", "b")), gamma=0.3).mean().item()
    assert metrics["loss/preference"] == pytest.approx(preference, rel=1e-9)
    assert metrics["loss/penalty"] == pytest.approx(penalty, rel=1e-9)
    assert loss.item() == pytest.approx(preference + penalty, rel=1e-9)


def test_a_step_without_agreement_has_no_preference_and_a_finite_gradient(model, judge, groups):
    batches = GroupBatches(
        groups, TokenValues.zeros(groups), batch_size=5, max_tokens=10**6, seed=0
    )
    (batch,) = batches.portions(range(5))
    seen = read(model, batch, judge.labels)
    sides = torch.zeros(5, dtype=torch.long)
    loss, metrics = free_loss(seen, Portion(batch, False, sides, 0), PLAIN)
    assert metrics["loss/preference"] == 0
    slopes = torch.autograd.grad(loss, list(model.model.parameters()))
    assert all(slope.isfinite().all() for slope in slopes)


def total_gradient(model, judge, groups, options, budget):
    free = GroupBatches(groups, drawn_reference(groups), batch_size=5, max_tokens=budget, seed=0)
    seed = GroupBatches(groups[:2], drawn_reference(groups[:2]), batch_size=2, max_tokens=budget,
                        seed=0)  # fmt: skip
    step = [*(Portion(one, False) for one in free.portions(range(5))),
            *(Portion(one, True) for one in seed.portions(range(2)))]  # fmt: skip
    chosen = choose(model, judge.labels, options)(step)
    objective = consistent_objective(model, judge.labels, options)
    model.model.zero_grad()
    loss, metrics = 0.0, {}
    for part in chosen:
        value, found = objective(part)
        value.backward()
        loss += value.item()
        metrics = {name: metrics.get(name, 0.0) + found.get(name, 0.0) for name in metrics | found}
    slopes = torch.cat([p.grad.flatten() for p in model.model.parameters()])
    return len(step), loss, metrics, slopes


@pytest.mark.parametrize("penalty", ["js", "symmetric-kl", "squared", "pseudo-label"])
def test_portions_add_up_to_the_whole_step(penalty, model, judge, groups):
    options = replace(PLAIN, penalty=penalty, focus=penalty == "squared")
    few, whole, metrics, slopes = total_gradient(model, judge, groups, options, 10**6)
    many, parts, by_parts, slopes_by_parts = total_gradient(model, judge, groups, options, 16)
    assert (few, many) == (2, 7)
    assert whole == pytest.approx(parts, rel=1e-9)
    metrics.pop("num_tokens"), by_parts.pop("num_tokens")
    assert metrics == pytest.approx(by_parts, rel=1e-7, abs=1e-9)
    assert (slopes - slopes_by_parts).norm() < 1e-8 * slopes.norm()
    assert 0 < metrics["consistency/kept"] < 1


def test_in_warm_up_there_is_no_penalty(model, judge, groups):
    batches = GroupBatches(groups, drawn_reference(groups), batch_size=5, max_tokens=10**6, seed=0)
    options = ConsistencyOptions(warmup_share=0.5)
    first, later = (next(batches.iterate(2, start=start))[0] for start in (0, 1))
    for batch, has_penalty in ((first, False), (later, True)):
        seen = read(model, batch, judge.labels)
        loss, metrics = free_loss(
            seen, Portion(batch, False, torch.ones(5, dtype=torch.long), 5), options
        )
        wanted = metrics["loss/preference"] + has_penalty * metrics["loss/penalty"]
        assert loss.item() == pytest.approx(wanted, rel=1e-12)
        assert metrics["loss/penalty"] > 0


def test_a_frozen_judge_is_a_teacher_and_a_free_one_is_moved():
    seen = seen_of([(1.0, 0.5), (-2.0, 1.0)], [4.0, 3.0])
    free, taught = (
        torch.autograd.grad(penalty_of(seen, own).sum(), seen.labels)[0]
        for own in (PLAIN, replace(PLAIN, frozen=("judge",)))
    )
    assert free.abs().amin() > 0
    assert taught.abs().amax() == 0


def test_both_frozen_leave_nothing_to_move():
    with pytest.raises(ValueError, match="one left to move"):
        ConsistencyOptions(frozen=("judge", "implicit"))


def test_a_labelled_pair_asks_the_judge_for_the_chosen_answer_in_either_place():
    seen = seen_of([(1.0, 0.5)], [0.0])
    first, second = (torch.tensor(own).double().sigmoid().log() for own in (1.0, 0.5))
    assert seen.judged_right().item() == pytest.approx(-float(first + second) / 2, rel=1e-12)


# What is measured


def test_agreement_flips_and_places_are_counted():
    found = measure(SEEN, torch.tensor([1, 0, -1, 0, 1, 1]), PLAIN)
    # A tie is no agreement: the judge's two orders of pair 4 cancel out.
    assert found["consistency/agreement"] == pytest.approx(4 / 6)
    assert found["consistency/kept"] == pytest.approx(4 / 6)
    assert found["judge/flips"] == pytest.approx(1 / 6)
    first = [torch.tensor(x).sigmoid().item() for row in
             [(2.0, -2.0)] * 3 + [(-1.0, 1.0), (3.0, 3.0), (0.1, -0.1)] for x in row]  # fmt: skip
    assert found["judge/shown_first"] == pytest.approx(sum(first) / 12, abs=1e-6)
    assert found["judge/mass"] == pytest.approx(1)


def test_what_follows_length_is_seen():
    seen = replace(SEEN, lengths=Pairwise(SEEN.policy.chosen, torch.zeros(6).double()))
    assert measure(seen, torch.zeros(6, dtype=torch.long), PLAIN)["consistency/length"] > 0.4
    assert measure(SEEN, torch.zeros(6, dtype=torch.long), PLAIN)["consistency/length"] == 0


def test_accuracy_and_agreement_are_told_apart():
    told = opinions(SEEN, PLAIN).numbers()
    assert told["judge/accuracy"] == pytest.approx(4.5 / 6)
    assert told["implicit/accuracy"] == pytest.approx(4 / 6)
    assert told["consistency/agreement"] == pytest.approx(4 / 6)
    assert told["agreed/accuracy"] == pytest.approx(3 / 4)
    start = opinions(at_start(SEEN), PLAIN).numbers()
    assert start["implicit/accuracy"] == 0.5
    assert start["consistency/agreement"] == 0


def many(orders, margin, n=40):
    return opinions(seen_of([orders] * n, [margin] * n), PLAIN)


def test_agreement_on_the_same_mistake_is_a_finding():
    before, wrong = many((1.0, 1.0), -1.0), many((-1.0, -1.0), -1.0)
    found = parted(before, wrong, seed=0)
    # By the mean of .73 and .48 the start is right on every pair.
    assert found is not None
    assert found.code == "agreement-without-accuracy"
    assert parted(before, many((1.0, 1.0), 1.0), seed=0) is None
    assert parted(wrong, before, seed=0) is None


def step_row(step, **changes):
    row = {"step": step, "consistency/kept": 0.99, "consistency/agreement": 0.99,
           "judge/flips": 0.1, "judge/shown_first": 0.5}  # fmt: skip
    return row | changes


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ({}, False),
        ({"judge/flips": 0.6}, True),
        ({"judge/shown_first": 0.95}, True),
        ({"judge/flips": 0.6, "consistency/agreement": 0.8}, False),
    ],
)
def test_agreement_of_a_judge_that_the_order_decides_is_a_shortcut(changes, is_found):
    rows = [step_row(i, **changes) for i in range(1, 25)]
    assert (shortcut(rows) is not None) == is_found
    assert shortcut(rows[:10]) is None


def test_a_run_stops_at_a_shortcut_where_that_is_asked_for(tmp_path):
    said = []
    health = Health(tmp_path, (shortcut,), total_steps=24, note=said.append)
    going_on, stopping = (
        stops_of(StopOptions(stop_on_shortcut=asked), health, [], n_warm_up=0)
        for asked in (False, True)
    )
    for step in range(1, 21):
        row = step_row(step, **{"judge/flips": 0.6})
        health(step, row)
        for hook in (*going_on, *(stopping if step < 20 else ())):
            hook(step, row)
    (stop,) = stopping[len(going_on) :]
    with pytest.raises(ValueError, match=r"step 20: both agree on 99% .* as --stop-on-shortcut"):
        stop(20, {})
    assert len(said) == 1


def test_a_run_that_agrees_on_nothing_stops_also_when_resumed():
    idle, busy = {"consistency/kept": 0.0}, {"consistency/kept": 0.5}
    patience = Patience(3, [], n_warm_up=0)
    for step, row in enumerate([idle, idle, busy, idle, idle, {"eval_x": 1.0}], 1):
        patience(step, row)
    with pytest.raises(ValueError, match="step 7: pairs on which judge and implicit reward agree"):
        patience(7, idle)
    past = [{"step": step, **row} for step, row in enumerate([busy, idle, idle], 1)]
    with pytest.raises(ValueError, match="last 3 steps"):
        Patience(3, past, n_warm_up=0)(4, idle)


def test_patience_begins_after_the_warm_up():
    idle = {"consistency/kept": 0.0}
    patience = Patience(2, [{"step": 1, **idle}, {"step": 2, **idle}], n_warm_up=4)
    for step in (3, 4, 5):
        patience(step, idle)
    with pytest.raises(ValueError, match="last 2 steps"):
        patience(6, idle)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("labels", ["agreed", "judge"])
def test_warm_up_steps_are_those_that_learn_from_the_judge_alone(share, labels, groups):
    options = ConsistencyOptions(warmup_share=share, labels=labels)
    batches = GroupBatches(
        groups, TokenValues.zeros(groups), batch_size=5, max_tokens=10**6, seed=0
    )
    for total in (1, 3, 20):
        found = [is_warm_up(parts[0], options) for parts in batches.iterate(total)]
        n = n_warm_up_steps(total, options)
        assert found == [True] * n + [False] * (total - n)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"delta": 0.5}, "delta must be at least 0 and below 0.5"),
        ({"seed_ratio": 0.0}, "seed_ratio must be above 0"),
        ({"warmup_share": 2.0}, "warmup_share must be at least 0 and at most 1"),
    ],
)
def test_ranges_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        ConsistencyOptions(**options)


def test_patience_is_at_least_one_step():
    with pytest.raises(ValueError, match="patience must be at least 1"):
        StopOptions(patience=0)

"""A pairwise model as a scorer: exact laws of comparisons, the knock-out, and the saved folder."""

import json
import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from melior.data.forest import size
from melior.data.pairwise import question
from melior.models.pairwise import load_pairwise_model, save_pairwise_model
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.rewards.comparisons import Verdict, sigmoid
from melior.rewards.named import load_reward_scorer
from melior.rewards.pairwise import Contest, PairwiseScorer
from tests.tiny import tiny_folder

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "thanks",
    "you",
]


def said(content, role="assistant"):
    return (Turn(role, content),)


def group(answers, asked="what does the quick brown fox jump over today?"):
    return Group(said(asked, "user"), tuple(Candidate(said(a)) for a in answers), origin="x:1")


def answers(k, *, words=6, seed=0):
    dice = random.Random(seed)
    return [f"{i} " + " ".join(dice.choices(WORDS, k=words)) for i in range(k)]


@pytest.fixture
def model(model_folder):
    return load_pairwise_model(ModelOptions(str(model_folder), dtype="fp32"), trainable=False)


def scored(model, groups, *, max_tokens=4096, **options):
    scorer = PairwiseScorer(model, max_tokens=max_tokens, **options)
    return list(scorer.groups(groups)), scorer


@pytest.mark.parametrize("lora_r", [0, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_plain_transformers_reads_the_same_probability(lora_r, family, tmp_path):
    options = ModelOptions(str(tiny_folder(tmp_path / "tiny", family)), dtype="fp32", lora_r=lora_r)
    model = load_pairwise_model(options, trainable=True, seed=1)
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.trainable().items():  # so that an adapter changes something
        if "lora_B" in name:
            weight.data.normal_(0, 0.1, generator=draw)
    one, two = answers(2)
    before = scored(model, [group([one, two])])[0][0].facts["orders"]
    save_pairwise_model(model, tmp_path / "saved")
    after = scored(model, [group([one, two])])[0][0].facts["orders"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = group([one, two]).prompt
    turns = [{"role": "user", "content": question(asked, said(one), said(two))}]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        logits = plain(**inputs).logits[0, -1]
    a, b = tokenizer.convert_tokens_to_ids(["A", "B"])
    first = float(torch.softmax(logits[[a, b]], -1)[0])
    assert sigmoid(after[0][1]) == pytest.approx(first, abs=1e-5)
    assert sigmoid(before[0][1]) == pytest.approx(first, abs=1e-5)
    about = json.loads((tmp_path / "saved" / "melior.json").read_text())
    assert about == {"kind": "pairwise", "template": "rlhf-workflow", "hash": "82dd003fa0c542cf"}


def test_comparisons_are_exactly_antisymmetric_and_scores_their_mean_wins(model):
    (found,), scorer = scored(model, [group(answers(5))])
    logits, orders = found.facts["comparisons"], found.facts["orders"]
    for i in range(5):
        for j in range(5):
            assert logits[i][j] == -logits[j][i]
            if i != j:
                win = (sigmoid(orders[i][j]) + sigmoid(-orders[j][i])) / 2
                assert sigmoid(logits[i][j]) == pytest.approx(win, abs=1e-12)
        wins = [sigmoid(logits[i][j]) for j in range(5) if j != i]
        assert found.candidates[i].score == pytest.approx(sum(wins) / 4, abs=1e-12)
    assert scorer.n_compared == 10


@pytest.mark.parametrize("all_pairs", [8, 2])
def test_equal_answers_tie_exactly(all_pairs, model):
    (found,), _ = scored(model, [group(["a fox"] * 4)], all_pairs=all_pairs)
    assert [one.score for one in found.candidates] == [0.5] * 4
    known = [one for row in found.facts["comparisons"] for one in row if one is not None]
    assert set(known) == {0.0}


def test_the_order_of_candidates_only_orders_the_scores(model):
    own = answers(4)
    (found,), _ = scored(model, [group(own)])
    (other,), _ = scored(model, [group(own[::-1])])
    scores = [one.score for one in found.candidates]
    assert [one.score for one in other.candidates][::-1] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("max_tokens", [16, 300, 100_000])
def test_what_is_computed_beside_a_group_changes_nothing(max_tokens, model):
    groups = [group(answers(k, seed=k), asked=f"why {k}?") for k in (2, 3, 1, 6, 11)]
    together, _ = scored(model, groups, max_tokens=max_tokens)
    for own, found in zip(groups, together, strict=True):
        (alone,), _ = scored(model, [own])
        for one, two in zip(alone.candidates, found.candidates, strict=True):
            assert (one.score is None and two.score is None) or one.score == pytest.approx(
                two.score, abs=1e-5
            )


def test_the_prompt_and_the_first_answer_are_computed_once(model):
    own = [said(one) for one in answers(4, words=30)]
    prompt = said("the quick brown fox " * 10, "user")
    orders = model.comparisons.both_orders(
        [(prompt, own[0], other) for other in own[1:]], max_length=2000
    )

    class Asked:
        def __init__(self, tokens):
            self.tokens, self.mask = tokens, [False] * len(tokens)

    tokens = [both.left_first for both in orders]
    begin = len(model.comparisons.chat.prompt_tokens(said(question(prompt, own[0], ()), "user")))
    shared = sum(map(len, tokens)) - size([Asked(own) for own in tokens])
    assert shared >= 2 * (begin - 20)  # the question's end and the opened turn are not shared


def test_a_knock_out_makes_one_comparison_less_than_there_are_candidates(model):
    (found,), scorer = scored(model, [group(answers(11))], all_pairs=4)
    assert scorer.n_compared == 10
    logits = found.facts["comparisons"]
    known = [(i, j) for i in range(11) for j in range(i) if logits[i][j] is not None]
    assert len(known) == 10
    best = max(range(11), key=lambda i: found.candidates[i].score)
    assert all(logits[best][j] >= 0 for j in range(11) if logits[best][j] is not None)


@pytest.mark.parametrize("k", [3, 5, 8, 13])
def test_a_knock_out_of_bradley_terry_logits_finds_all_mean_wins(k):
    dice = random.Random(k)
    rewards = [dice.gauss(0, 2) for _ in range(k)]
    contest = Contest((1,) * k, is_knock_out=True)
    rounds = 0
    while due := contest.due():
        rounds += 1
        for i, j in due:
            logit = rewards[i] - rewards[j]
            contest.take((i, j), Verdict(logit, logit))
    assert rounds == math.ceil(math.log2(k))
    assert len(contest.verdicts) == k - 1
    wins = [
        sum(sigmoid(own - other) for j, other in enumerate(rewards) if j != i) / (k - 1)
        for i, own in enumerate(rewards)
    ]
    assert contest.scores() == pytest.approx(wins, rel=1e-9)


def test_answers_that_cannot_be_compared_have_no_score_and_do_not_spoil_the_others(model):
    own = [*answers(3), "the quick brown fox " * 60]
    for all_pairs in (8, 2):
        (found, single), scorer = scored(
            model, [group(own), group(["alone"])], max_length=200, all_pairs=all_pairs
        )
        assert [one.score is None for one in found.candidates] == [False] * 3 + [True]
        assert single.candidates[0].score is None
        assert found.facts["comparisons"][3][:3] == [None] * 3
        said_of = "; ".join(scorer.remarks())
        assert "longer than 200 tokens by themselves were not made (first x:1)" in said_of
        assert "1 groups of one candidate" in said_of


def test_long_prompts_are_cut_and_counted(model):
    (found,), scorer = scored(
        model, [group(answers(2), asked="the quick brown fox " * 60)], max_length=200
    )
    assert all(one.score is not None for one in found.candidates)
    assert "1 comparisons longer than 200 tokens lost the start" in "; ".join(scorer.remarks())


def test_folders_are_loaded_by_what_they_say(model, model_folder, tmp_path):
    save_pairwise_model(model, tmp_path / "saved")
    options = ModelOptions(str(tmp_path / "saved"), dtype="fp32")
    scorer = load_reward_scorer(options, max_tokens=1000)
    assert isinstance(scorer, PairwiseScorer)
    path = tmp_path / "saved" / "melior.json"
    path.write_text(json.dumps({"kind": "pairwise", "hash": "other"}))
    with pytest.raises(ValueError, match=r"in the words it was trained on.*found 'other'"):
        load_reward_scorer(options, max_tokens=1000)
    path.write_text(json.dumps({"kind": "general"}))
    with pytest.raises(ValueError, match="found a reward model of kind 'general'"):
        load_pairwise_model(options, trainable=True)

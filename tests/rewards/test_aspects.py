"""Scores of a mixture: by order, in any company, cut where they must be, with reasons if asked."""

from dataclasses import replace

import pytest
import torch

from melior.commands import score
from melior.data.chat import Encoded
from melior.data.files import write_groups
from melior.losses.aspects import Scale, bin_centres
from melior.models.aspects import Aspect, AspectModel, Aspects, set_head
from melior.models.gate import AspectGate, GateOptions
from melior.models.heads import load_reward_model
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.rewards import aspects
from melior.rewards.aspects import AspectScorer, explaining, load_scorer
from melior.rewards.fitting import shortened
from melior.rewards.named import load_reward_scorer


@pytest.fixture
def folder(model_folder, tmp_path):
    reward = load_reward_model(ModelOptions(model=str(model_folder), dtype="fp32"), trainable=False)

    both = Aspects(
        (Aspect("wit", bin_centres(1, 5), 0.2), Aspect("verbosity", Scale(0.0, 1.0), 1.0)), 1
    )
    set_head(reward, torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), both.names)
    gate = AspectGate(GateOptions(32, 2, hidden=8, layers=1, temperature=0.1), seed=0)
    AspectModel(reward, gate, both).save(tmp_path / "mixture")
    return tmp_path / "mixture"


def scorer(folder, **options) -> AspectScorer:
    held = ModelOptions(model=str(folder), dtype="fp32")
    return load_scorer(held, **({"max_tokens": 10**6} | options))


def group(number, *answers) -> Group:
    asked = (Turn("user", f"what about {number} foxes?"),)
    said = tuple(Candidate((Turn("assistant", one),), facts={"id": i}) for i, one in
                 enumerate(answers))  # fmt: skip
    return Group(asked, said, origin=f"f:{number}")


GROUPS = [
    group(1, "hello", "Paris is the capital."),
    group(2, *(f"thank you {'fox ' * i}" for i in range(5))),
    group(3),
    group(4, "hello"),
]


def scores(groups):
    return [[one.score for one in group.candidates] for group in groups]


@pytest.mark.parametrize(("chunk", "budget"), [(1, 16), (2, 80), (256, 10**6)])
def test_order_and_company_change_nothing(folder, monkeypatch, chunk, budget):
    whole = scores(scorer(folder).groups(GROUPS))
    assert [len(row) for row in whole] == [2, 5, 0, 1]
    monkeypatch.setattr(aspects, "CHUNK", chunk)
    found = scores(reversed(list(scorer(folder, max_tokens=budget).groups(reversed(GROUPS)))))
    for left, right in zip(whole, found, strict=True):
        assert left == pytest.approx(right, abs=1e-4)


def test_going_on_with_reasons_where_there_were_none_is_refused(folder, tmp_path):
    write_groups(tmp_path / "g.jsonl", GROUPS[:1])
    config = score.Config(
        str(tmp_path / "g.jsonl"), str(folder), str(tmp_path / "scored.jsonl"), resume=True
    )
    score.run(config)
    score.run(config)
    with pytest.raises(ValueError, match=r"--resume needs rows of the same scorer, .*'explains'"):
        score.run(replace(config, explain=True))


def test_ratings_stand_on_the_scales_of_the_raters_and_reasons_only_if_asked(folder):
    (plain,) = scorer(folder).groups(GROUPS[:1])
    assert all(one.facts == {"id": i} for i, one in enumerate(plain.candidates))
    (told,) = explaining(scorer(folder)).groups(GROUPS[:1])
    for one, same in zip(told.candidates, plain.candidates, strict=True):
        assert one.score == same.score
        why = one.facts["explanation"]
        assert sum(row["contribution"] for row in why) == pytest.approx(one.score, abs=1e-9)
        assert {row["objective"]: row["rating"] for row in why} == one.aspects == same.aspects
        rows = {row["objective"]: row for row in why}
        unit = rows["wit"]["contribution"] / rows["wit"]["weight"]
        assert one.aspects["wit"] == pytest.approx(5 * unit + 0.5)


def test_a_long_prompt_loses_its_start_and_a_long_answer_its_score(folder):
    ask = (Turn("user", "never mind " * 20 + "what about the fox?"),)
    said = [(Turn("assistant", "hello"),), (Turn("assistant", "fox " * 60),)]
    long = Group(ask, tuple(map(Candidate, said)), origin="f:7")
    alone = Group(ask, (Candidate(said[1], 3.0),), origin="f:8")
    short = scorer(folder, max_length=40)
    first, second = short.groups([long, alone])
    assert first.candidates[0].score is not None
    assert first.candidates[1].score is None
    assert first.candidates[1].aspects == {}
    assert second.candidates[0].score is None
    assert short.remarks() == [
        "1 conversations longer than 40 tokens lost the start of their prompt",
        "2 answers longer than 40 tokens by themselves have no score (first f:7)",
    ]
    tokens = short.model.reward.chat.encode(ask, said[0])
    kept = tokens.tokens[-40:]
    with torch.no_grad():
        logits = short.model.reward.core.base_model(input_ids=torch.tensor([kept]))
        wanted = short.model.reward.read(logits.last_hidden_state[0, -1:])[0]
    ratings = short.model.aspects.ratings(wanted)
    assert first.candidates[0].aspects == pytest.approx(ratings, abs=1e-4)


def test_the_folder_is_known_by_its_kind(folder):
    held = ModelOptions(model=str(folder), dtype="fp32")
    assert isinstance(load_reward_scorer(held, max_tokens=64), AspectScorer)


def test_a_prompt_loses_its_start_never_its_end():
    whole = Encoded(tuple(range(20)), (False,) * 12 + (True,) * 8, 12)
    assert shortened(whole, 20, 5) == whole
    cut = shortened(whole, 13, 5)
    assert (cut.tokens[0], cut.n_prompt, len(cut.tokens)) == (7, 5, 13)
    assert sum(cut.mask) == 8
    assert shortened(whole, 12, 5) is None

"""GPO in rounds: targets from comparisons, the loss that is regressed, gain, and all iterates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from melior.cli import main
from melior.recipes.gpo import Gpo, compared
from melior.records import Candidate, Group, Turn
from melior.rewards.comparisons import Verdict, logit_facts
from melior.rewards.pairwise import Contest
from melior.stages.method import Answers
from tests.recipes.test_online import manifests, read, rows, same_weights, write_prompts

LOGITS = st.lists(st.floats(-9, 9), min_size=6, max_size=6)


def group(scores, **facts):
    candidates = tuple(Candidate((Turn("assistant", str(i)),), s) for i, s in enumerate(scores))
    return Group((Turn("user", "?"),), candidates, facts)


def skew(upper):
    """An antisymmetric 4 x 4 matrix."""
    matrix = np.zeros((4, 4))
    matrix[np.triu_indices(4, 1)] = upper
    return matrix - matrix.T


@given(LOGITS, st.floats(0.5, 20))
def test_targets_are_mean_scores_against_all_answers(upper, scale):
    matrix = skew(upper)
    one = group([0.0] * 4, comparisons=matrix.tolist())
    found = [c.score for c in Gpo(score_scale=scale).targets(one).candidates]
    assert found == pytest.approx([scale * matrix[i].sum() / 4 for i in range(4)], abs=1e-9)
    assert sum(found) == pytest.approx(0, abs=1e-9)  # what one wins another loses
    wins = [c.score for c in Gpo(target="win-rate").targets(one).candidates]
    expected = 1 / (1 + np.exp(-matrix))
    assert wins == pytest.approx([expected[i].mean() - 0.5 for i in range(4)], abs=1e-9)


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=5))
def test_a_scorer_of_numbers_is_compared_by_their_differences(scores):
    found = [c.score for c in Gpo().targets(group(scores)).candidates]
    assert found == pytest.approx([s - sum(scores) / len(scores) for s in scores], abs=1e-9)


def test_what_is_not_known_is_left_out():
    some = [[0.0, 1.0, None], [-1.0, 0.0, None], [None, None, 0.0]]
    found = [c.score for c in Gpo().targets(group([1, 2, 3], comparisons=some)).candidates]
    assert found == [0.5, -0.5, None]
    assert compared(group([1.0, None])) == [[0.0, None], [None, None]]


@given(LOGITS, st.floats(0, 0.1))
def test_a_price_on_length_moves_targets_about_zero(upper, penalty):
    matrix = skew(upper)
    one = group([0.0] * 4, comparisons=matrix.tolist())
    candidates = [
        replace(c, response=(Turn("assistant", "x" * 5**i),)) for i, c in enumerate(one.candidates)
    ]
    priced = Gpo().targets(replace(one, candidates=tuple(candidates)), length_penalty=penalty)
    found = [c.score for c in priced.candidates]
    sizes = [5**i for i in range(4)]
    mean = sum(sizes) / 4
    expected = [matrix[i].sum() / 4 - penalty * (n - mean) for i, n in enumerate(sizes)]
    assert found == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(-4, 4), min_size=9, max_size=9))
def test_a_knock_out_gives_the_targets_of_its_rewards(rewards):
    contest = Contest((1,) * 9, is_knock_out=True)
    while due := contest.due():
        for i, j in due:
            contest.take((i, j), Verdict(rewards[i] - rewards[j], rewards[i] - rewards[j]))
    facts = logit_facts(9, contest.verdicts)
    assert any(None in row for row in facts["comparisons"])
    found = [c.score for c in Gpo().targets(group([0.0] * 9, **facts)).candidates]
    assert found == pytest.approx([r - sum(rewards) / 9 for r in rewards], abs=1e-9)


def answers(log_ratio, lengths, scores):
    """Lists of two whose tokens share the log-ratio evenly."""
    n = len(log_ratio)
    counts = [count for row in lengths for count in row]
    flat = [value for row in log_ratio for value in row]
    tokens = [v / c for v, c in zip(flat, counts, strict=True) for _ in range(c)]
    return Answers(
        tokens=torch.tensor(tokens, dtype=torch.float64) - 1.0,
        reference_tokens=-torch.ones(len(tokens), dtype=torch.float64),
        places=torch.arange(2 * n).repeat_interleave(torch.tensor(counts)),
        steps=torch.zeros(len(tokens), dtype=torch.long),
        scores=torch.tensor(scores, dtype=torch.float64),
        margins=torch.zeros(n, dtype=torch.float64),
        is_there=torch.ones(n, 2, dtype=torch.bool),
    )


@pytest.mark.parametrize("power", [0.0, 1.0, 0.5])
def test_the_loss_is_equation_5_3_on_two_answers(power):
    """1/2 [(Delta_w - clip(s_w/beta))^2 + ...], Delta over |y|^gamma for LN-GPO, in NumPy."""
    dice = np.random.default_rng(0)
    ratio, scores = dice.normal(size=(5, 2)) * 3, dice.normal(size=(5, 2)) * 4
    lengths = dice.integers(1, 6, size=(5, 2))
    method = Gpo(beta=0.5, target_limit=6.0, length_power=power).method()
    found = method.loss(answers(ratio.tolist(), lengths.tolist(), scores.tolist()))
    delta = ratio / lengths.astype(float) ** power
    target = np.clip(scores / 0.5, -6.0, 6.0)
    expected = 0.5 * ((delta - target) ** 2).sum(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert (np.abs(scores / 0.5) > 6).any()
    assert method.direction == 1.0


def words(model_folder, prompts, out, *more):
    return ["gpo", "--model", str(model_folder), "--prompts", prompts, "--out", str(out),
            "--rounds", "2", "--n-prompts", "8", "--n-eval-prompts", "6", "--k", "4",
            "--max-new-tokens", "8", "--batch-size", "4", "--learning-rate", "1e-2",
            "--beta", "0.1", "--dtype", "fp32", *more]  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("target", "beta"), [("score", "0.5"), pytest.param("win-rate", "0.1", marks=pytest.mark.slow)]
)
def test_rewards_rise_over_rounds(target, beta, model_folder, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", 260, [{"name": "lower_case"}])
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--rounds", "3", "--n-prompts", "48", "--k", "8",
               "--n-eval-prompts", "100", "--max-new-tokens", "3", "--batch-size", "8",
               "--epochs", "2", "--temperatures", "1.0", "--top-p", "1", "--beta", beta,
               "--target", target))  # fmt: skip
    means = [one["means"]["reward"] for one in manifests(out)]
    assert means[-1] >= means[0] + 0.15, means


def test_two_answers_go_out_with_what_they_are_regressed_on(model_folder, prompts, tmp_path):
    out = tmp_path / "run"
    main(words(model_folder, prompts, out, "--average"))
    for row in rows(out / "round-2" / "pairs.jsonl"):
        better, worse = (one["score"] for one in row["candidates"])
        assert better > 0 > worse  # against their own mean
    metrics = rows(out / "round-2" / "learn" / "metrics.jsonl")[0]
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=1e-6)  # the round's own start
    assert same_weights(out, out / "round-2" / "learn")
    mean, *iterates = (
        load_file(place / "model" / "model.safetensors")
        for place in (out / "average", out / "round-1" / "learn", out / "round-2" / "learn")
    )
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (iterates[0][name] + iterates[1][name]) / 2)
    facts = read(out / "evaluation.json")["facts"]
    iterates = [one["means"]["reward"] for one in manifests(out)]
    assert facts["reward of the mixture of all iterates"] == pytest.approx(sum(iterates) / 3)
    assert facts["reward of the last round"] == iterates[-1]
    assert "reward of the mixture of all iterates" in (out / "report.html").read_text("utf-8")
    assert math.isfinite(facts["reward of the mean of all weights"])


def test_the_mean_of_all_weights_is_that_of_further_rounds_too(model_folder, prompts, tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    main(words(model_folder, prompts, out, "--average", "--rounds", "1"))
    main(words(model_folder, prompts, out, "--average", "--resume", "--allow-changes"))
    main(words(model_folder, prompts, whole, "--average"))
    late, at_once = (load_file(one / "average" / "model" / "model.safetensors")
                     for one in (out, whole))  # fmt: skip
    assert all(torch.equal(late[name], at_once[name]) for name in at_once)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reference", "start"], "gpo needs reference previous"),
        (["--history", "all"], "found previous, all and True"),
        (["--select", "all"], "gpo regresses two"),
        (["--target-limit", "0"], "target_limit must be above 0"),
        (["--length-power", "-1"], "length_power must be at least 0"),
    ],
)
def test_wrong_options_are_said_in_a_sentence(more, said, model_folder, prompts, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words(model_folder, prompts, tmp_path / "run", *more))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err

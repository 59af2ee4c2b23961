"""What looks at a whole batch gives the same numbers in portions, and goes on to the same bits."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from melior.objectives.table import OBJECTIVES
from melior.stages.method import Answers
from tests.objectives.rows import kind_of, metrics, train

COUPLED = [name for name in OBJECTIVES if kind_of(name)().method().is_coupled]
REMEMBERING = [name for name in OBJECTIVES if kind_of(name)().method().memory]
IN_STEPS = ("tpo",)


def test_these_look_at_whole_batches():
    assert set(COUPLED) == {"aot", "beta-dpo", "beta-dpo-clamped", "bco", "kto"}
    assert set(REMEMBERING) == {"beta-dpo", "beta-dpo-clamped", "bco"}


@pytest.mark.parametrize("name", [*COUPLED, *IN_STEPS])
def test_portions_change_no_number(name, llama, tmp_path):
    """The budget of tokens decides how a batch is computed, not what of it is learned."""
    small, large = (
        metrics(train(name, tmp_path, llama, "--max-tokens", budget)) for budget in ("60", "100000")
    )
    assert all(step["num_tokens"] > 180 for step in small)  # at least four portions each
    for left, right in zip(small, large, strict=True):
        for key in left.keys() - {"time", "num_tokens"}:
            assert left[key] == pytest.approx(right[key], rel=2e-3, abs=2e-4), key


@pytest.mark.parametrize("name", ["beta-dpo", "bco"])
def test_a_resumed_run_remembers(name, llama, tmp_path):
    """Cut off after 5 of 12 steps, a run ends in the same bits as one that was not."""
    whole = train(name, tmp_path, llama, "--save-steps", "5")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (late,) = cut.glob("checkpoints/*12")
    shutil.rmtree(late)
    (at_ten,) = cut.glob("checkpoints/*10")
    kept = load_file(at_ten / "state.safetensors")
    assert {"beta-dpo": "mean", "bco": "shift"}[name] in {key.split("/")[-1] for key in kept}
    words = ("--save-steps", "5", "--out", str(cut), "--resume")
    train(name, tmp_path, llama, *words)
    left, right = (load_file(run / "model" / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(left[key], right[key]) for key in left)
    for a, b in zip(metrics(whole), metrics(cut), strict=True):
        assert {**a, "time": 0} == {**b, "time": 0}


def test_the_seed_of_the_run_decides_what_the_filter_draws(llama, tmp_path):
    def dice(seed: str) -> torch.Tensor:
        run = train("beta-dpo", tmp_path, llama, "--seed", seed, "--max-steps", "1")
        (state,) = run.glob("checkpoints/*/state.safetensors")
        return load_file(state)["method/generator"]

    first, other = dice("1"), dice("2")
    assert torch.equal(first, dice("1"))
    assert not torch.equal(first, other)


def answers(margins: list[float]) -> Answers:
    """Pairs whose log-ratios differ by these margins, one token an answer."""
    n = len(margins)
    tokens = torch.tensor([[margin - 1, -1.0] for margin in margins], dtype=torch.float64).flatten()
    return Answers(
        tokens=tokens, reference_tokens=torch.full_like(tokens, -1.0),
        places=torch.arange(2 * n), steps=torch.zeros(2 * n, dtype=torch.long),
        scores=torch.tensor([[1.0, 0.0]] * n, dtype=torch.float64),
        margins=torch.zeros(n, dtype=torch.float64), is_there=torch.ones(n, 2, dtype=torch.bool),
    )  # fmt: skip


def test_beta_dpo_filters_and_adapts_by_what_it_saw_before():
    """By the paper's formulas: the state of before the batch, gaps times beta, all of its pairs."""
    method = kind_of("beta-dpo")(beta=0.5, alpha=0.6, keep=0.5, momentum=0.9).method()
    mean, std = 0.0, 1.0
    for margins in ([1.0, 2.0, 3.0, -4.0], [5.0, 0.0, 1.0, 1.0]):
        gaps = 0.5 * torch.tensor(margins, dtype=torch.float64)
        beta = 0.5 * (1 + 0.6 * (float(gaps.mean()) - mean))
        batch = answers(margins)
        losses = method.loss(batch)
        wanted = torch.nn.functional.softplus(-beta * torch.tensor(margins, dtype=torch.float64))
        kept = losses != 0
        assert int(kept.sum()) == 2
        torch.testing.assert_close(losses[kept], 2 * wanted[kept])
        said = method.remember(batch)
        mean = 0.9 * mean + 0.1 * float(gaps.mean())
        std = 0.9 * std + 0.1 * float(gaps.std(correction=0))
        assert said == pytest.approx({"beta": beta, "gap": mean})
        assert float(method.memory.values["std"]) == pytest.approx(std)


def test_the_released_beta_dpo_has_seen_the_batch_and_reads_what_it_kept():
    method = kind_of("beta-dpo-clamped")(beta=0.5, alpha=0.6, keep=0.5, momentum=0.9).method()
    margins = torch.tensor([1.0, 2.0, 3.0, -4.0], dtype=torch.float64)
    batch = answers(margins.tolist())
    losses = method.loss(batch)
    kept = losses != 0
    seen = 0.1 * float(margins.mean())
    beta = max(1e-3, 0.5 * (1 + 0.6 * (float(margins[kept].mean()) - seen)))
    assert method.remember(batch) == pytest.approx({"beta": beta, "gap": seen})
    wanted = torch.nn.functional.softplus(-beta * margins)
    torch.testing.assert_close(losses[kept], 2 * wanted[kept])


def test_bco_shifts_by_what_it_saw_before():
    method = kind_of("bco")(beta=0.5, decay=0.9).method()
    batch = answers([4.0, -2.0])
    good = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    first = method.loss(Answers(**{**vars(batch), "scores": good.expand(2, 2)}))
    wanted = torch.nn.functional.softplus(torch.tensor([-2.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(first, wanted)
    said = method.remember(Answers(**{**vars(batch), "scores": good.expand(2, 2)}))
    assert said == pytest.approx({"shift": 0.1 * (2.0 - 1.0) / 2})


def test_a_new_run_remembers_nothing_of_the_last():
    kind = kind_of("bco")()
    used = kind.method()
    used.remember(answers([4.0, -2.0]))
    assert float(kind.method().memory.values["shift"]) == 0

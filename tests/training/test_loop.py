import itertools
import math
import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from melior.options import OptimConfig
from melior.training.loop import (
    Interrupted,
    NonFiniteError,
    descend,
    fit,
    scheduled_rate,
)

FLAT = OptimConfig(
    learning_rate=1e-2, lr_scheduler_type="constant", warmup_ratio=0.0, max_grad_norm=1e9
)


@dataclass(frozen=True)
class Part:
    """Rows of a padded batch, with the number of tokens in the whole batch."""

    x: torch.Tensor
    mask: torch.Tensor
    tokens: float
    origins: tuple[str, ...] = ()


def network(seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def token_mean(model):
    def objective(part):
        loss = (model(part.x).squeeze(-1).square() * part.mask).sum() / part.tokens
        return loss, {"share": float(part.mask.sum()) / part.tokens}

    return objective


def batch(seed=0, rows=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 7, 3, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, 7, generator=generator) < 0.6
    return Part(x, mask, float(mask.sum()), tuple(f"f.jsonl:{i + 1}" for i in range(rows)))


def cut(whole, *, at):
    edges = [0, *at, len(whole.x)]
    return [
        Part(whole.x[a:b], whole.mask[a:b], whole.tokens, whole.origins[a:b])
        for a, b in itertools.pairwise(edges)
    ]


def weights(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@given(at=st.lists(st.integers(1, 11), unique=True, max_size=4).map(sorted))
def test_accumulated_parts_equal_the_whole_batch(at):
    whole, results = batch(), []
    for parts in ([whole], cut(whole, at=at)):
        model = network()
        step = descend(token_mean(model), dict(model.named_parameters()), FLAT, total_steps=3)
        metrics = [step(parts) for _ in range(3)]
        results.append((metrics, weights(model)))
    (one, weights_one), (many, weights_many) = results
    assert torch.allclose(weights_one, weights_many, rtol=0, atol=1e-12)
    for left, right in zip(one, many, strict=True):
        assert left == pytest.approx(right, rel=1e-12, abs=1e-12)
        assert left["share"] == pytest.approx(1.0)


def test_a_step_is_that_of_adamw():
    config = replace(FLAT, weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="linear")
    mine, theirs = network(), network()
    step = descend(token_mean(mine), dict(mine.named_parameters()), config, total_steps=5)
    adamw = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    for index in range(5):
        part = batch(seed=index)
        metrics = step([part])
        adamw.param_groups[0]["lr"] = 1e-2 * (1 - index / 5)
        adamw.zero_grad()
        token_mean(theirs)(part)[0].backward()
        adamw.step()
        assert metrics["learning_rate"] == pytest.approx(1e-2 * (1 - index / 5), rel=1e-12)
        assert torch.allclose(weights(mine), weights(theirs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "decay"),
    [
        ("constant", lambda share: 1.0),
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: 0.5 + 0.5 * math.cos(math.pi * share)),
    ],
)
def test_schedule_rises_to_the_peak_and_falls(kind, decay):
    config = OptimConfig(learning_rate=2.0, lr_scheduler_type=kind, warmup_ratio=0.1)
    rates = [scheduled_rate(config, step, 30) for step in range(31)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.5])
    assert rates[3:] == pytest.approx([2.0 * decay(i / 27) for i in range(28)], abs=1e-12)


@given(
    total=st.integers(1, 50),
    ratio=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_no_step_is_wasted_and_none_is_above_the_peak(total, ratio, kind):
    config = OptimConfig(learning_rate=1.0, lr_scheduler_type=kind, warmup_ratio=ratio)
    rates = [scheduled_rate(config, step, total) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)


def test_gradients_are_clipped_to_the_norm():
    vector = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    # With beta1 = beta2 = 0 and a large epsilon, Adam's update is the gradient over epsilon.
    config = replace(FLAT, learning_rate=1.0, adam_beta1=0.0, adam_beta2=0.0, adam_epsilon=1e9)
    for limit, length in ((1.0, 1.0), (5.0, 5.0), (9.0, 5.0)):
        with torch.no_grad():
            vector.zero_()
        step = descend(
            lambda part: ((vector * part).sum(), {}),
            {"vector": vector},
            replace(config, max_grad_norm=limit),
            total_steps=1,
        )
        assert step([slope])["grad_norm"] == pytest.approx(5.0)
        assert vector.detach().norm() * 1e9 == pytest.approx(length, rel=1e-5)


def test_updates_far_below_the_step_of_bf16_add_up():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    config = replace(FLAT, learning_rate=1e-4)  # the spacing of bf16 near 1 is 4e-3 to 8e-3
    step = descend(lambda sign: ((weight * sign).sum(), {}), {"w": weight}, config, total_steps=200)
    step([1.0])
    assert (weight == 1).all()
    for _ in range(199):
        step([1.0])
    assert torch.allclose(weight.float(), torch.full((4,), 0.98), atol=4e-3)
    master = step.state()["weight/w"]
    assert master.dtype == torch.float32
    assert torch.allclose(master, torch.full((4,), 0.98), atol=1e-4)


def test_masters_start_from_the_originals_that_are_given():
    original = torch.tensor([1.001, 2.002])
    weight = nn.Parameter(original.to(torch.bfloat16))
    step = descend(
        lambda _: (weight.sum() * 0, {}),
        {"w": weight},
        FLAT,
        total_steps=1,
        masters={"w": original},
    )
    assert torch.equal(step.state()["weight/w"], original)
    step([None])
    assert torch.equal(weight.detach(), original.to(torch.bfloat16))


def test_masters_of_another_shape_are_refused():
    weight = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"shape \(2,\) is needed; found \(3,\)"):
        descend(
            lambda _: (weight.sum(), {}),
            {"w": weight},
            FLAT,
            total_steps=1,
            masters={"w": torch.zeros(3)},
        )


def test_gradients_of_rounded_parameters_are_summed_in_fp32():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    # In bf16, 256 + 1 is 256: a sum there would stay at 256.
    parts = [256.0, *[1.0] * 100]
    step = descend(lambda part: ((weight * part).sum(), {}), {"w": weight}, FLAT, total_steps=1)
    assert step(parts)["grad_norm"] == pytest.approx(356.0)


def test_fp32_parameters_have_no_copies_and_gradients_are_freed():
    model = network(dtype=torch.float32)
    step = descend(
        lambda _: (sum(p.sum() for p in model.parameters()), {}),
        dict(model.named_parameters()),
        FLAT,
        total_steps=1,
    )
    step([None])
    state = step.state()
    for name, parameter in model.named_parameters():
        assert state[f"weight/{name}"].data_ptr() == parameter.data_ptr()
        assert parameter.grad is None


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    step = descend(token_mean(model), dict(model.named_parameters()), FLAT, total_steps=1)
    step([batch()])
    assert torch.equal(before, model[0].weight)
    with pytest.raises(ValueError, match="found none"):
        descend(token_mean(model), dict(model[0].named_parameters()), FLAT, total_steps=1)


def test_two_steps_make_an_actor_and_critic():
    """Gradients that flow through the critic into the actor leave the critic alone."""
    actor, critic = network(1), network(2)
    head = nn.Linear(1, 3).double()

    def actor_loss(part):
        return -critic(head(actor(part.x))).mean(), {}

    improve = descend(actor_loss, dict(actor.named_parameters()), FLAT, total_steps=3)
    judge = descend(token_mean(critic), dict(critic.named_parameters()), FLAT, total_steps=3)

    def step(parts):
        return judge(parts) | {f"actor/{k}": v for k, v in improve(parts).items()}

    alone = network(2)
    only_judge = descend(token_mean(alone), dict(alone.named_parameters()), FLAT, total_steps=3)
    fit(step, [[batch(0)], [batch(1)]])
    fit(only_judge, [[batch(0)], [batch(1)]])
    assert torch.equal(weights(critic), weights(alone))
    assert all(p.grad is None for p in (*critic.parameters(), *head.parameters()))


def test_state_goes_on_to_the_same_bits():
    config, runs = OptimConfig(learning_rate=1e-2), []
    for dtype in (torch.float32, torch.bfloat16):
        model = network(dtype=dtype)
        parts = [replace(batch(i), x=batch(i).x.to(dtype)) for i in range(6)]
        step = descend(token_mean(model), dict(model.named_parameters()), config, total_steps=6)
        fit(step, [[part] for part in parts])

        other = network(dtype=dtype)
        first = descend(token_mean(other), dict(other.named_parameters()), config, total_steps=6)
        fit(first, [[part] for part in parts[:3]])
        third = network(seed=9, dtype=dtype)
        second = descend(token_mean(third), dict(third.named_parameters()), config, total_steps=6)
        second.load_state(first.state())
        fit(second, [[part] for part in parts[3:]], start=3)
        runs.append(torch.equal(weights(model), weights(third)))
        assert not torch.equal(weights(model), weights(other))
    assert runs == [True, True]


def test_a_state_of_other_parameters_is_refused():
    small, other = network(), nn.Linear(3, 1).double()
    step = descend(token_mean(small), dict(small.named_parameters()), FLAT, total_steps=1)
    state = descend(token_mean(other), dict(other.named_parameters()), FLAT, total_steps=1).state()
    with pytest.raises(ValueError, match="same names and shapes are needed"):
        step.load_state(state)


def stop_at(objective, parts):
    """The message and whether weights and moments are as before."""
    model = network()
    step = descend(objective(model), dict(model.named_parameters()), FLAT, total_steps=9)
    step([batch(1)])
    before = {k: v.clone() for k, v in step.state().items() if isinstance(v, torch.Tensor)}
    with pytest.raises(NonFiniteError) as caught:
        step(parts)
    after = step.state()
    assert after["steps"] == 1
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(p.grad is None for p in model.parameters())
    return str(caught.value)


def poisoned(parts, *, part):
    x = parts[part].x.clone()
    x[0, 0, 0] = math.nan
    mask = parts[part].mask.clone()
    mask[0, 0] = True
    return [*parts[:part], replace(parts[part], x=x, mask=mask), *parts[part + 1 :]]


def test_a_loss_that_is_not_finite_stops_and_names_its_rows():
    parts = poisoned(cut(batch(), at=[4, 6]), part=1)
    message = stop_at(token_mean, parts)
    assert message.startswith("step 2: loss must be finite; found nan in f.jsonl:5, f.jsonl:6;")
    assert "weights are as before this step" in message


def test_a_metric_that_is_not_finite_stops():
    def objective(model):
        def with_metric(part):
            loss, _ = token_mean(model)(part)
            is_bad = part.origins and part.origins[0] == "f.jsonl:7"
            return loss, {"kl": math.inf if is_bad else 0.0}

        return with_metric

    parts = [replace(part, tokens=part.tokens) for part in cut(batch(), at=[6])]
    message = stop_at(objective, parts)
    assert message.startswith("step 2: kl must be finite; found inf in f.jsonl:7, f.jsonl:8,")


class SquareRoot(torch.autograd.Function):
    """The square root of nothing: a finite value with a gradient that is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def test_a_gradient_that_is_not_finite_stops_and_names_its_rows():
    def objective(model):
        def with_bad_gradient(part):
            loss, metrics = token_mean(model)(part)
            is_bad = part.origins[0] == "f.jsonl:5"
            return SquareRoot.apply(loss) if is_bad else loss, metrics

        return with_bad_gradient

    with torch.no_grad():
        parts = [replace(p, origins=p.origins) for p in cut(batch(), at=[4, 6])]
    message = stop_at(objective, parts)
    assert message.startswith(
        "step 2: gradient norm must be finite; found nan in f.jsonl:5, f.jsonl:6;"
    )


def test_many_rows_are_counted():
    message = stop_at(token_mean, poisoned([batch()], part=0))
    assert "f.jsonl:8 and 4 more;" in message


def test_fit_calls_hooks_in_order_and_returns_the_last_metrics():
    seen = []
    hooks = [lambda n, m: seen.append(("a", n, m["x"])), lambda n, m: seen.append(("b", n, m["x"]))]
    last = fit(lambda parts: {"x": parts[0]}, [[1.0], [2.0]], hooks=hooks, start=4)
    assert seen == [("a", 5, 1.0), ("b", 5, 1.0), ("a", 6, 2.0), ("b", 6, 2.0)]
    assert last == {"x": 2.0}
    assert fit(lambda parts: {}, []) == {}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_finishes_the_step_saves_and_stops(number, code):
    done, saved = [], []

    def step(parts):
        if parts[0] == 2:
            os.kill(os.getpid(), number)
        done.append(parts[0])
        return {}

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 2") as caught:
        fit(step, [[1], [2], [3]], save=saved.append)
    assert (done, saved) == ([1, 2], [2])
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == before


def test_a_second_signal_stops_at_once():
    saved = []

    def step(parts):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(step, [[1]], save=saved.append)
    assert not isinstance(caught.value, Interrupted)
    assert not saved

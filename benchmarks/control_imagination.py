"""Imagined transitions a second: members side by side against a plain loop over them.

    python benchmarks/control_imagination.py --markdown docs/control.md

The same weights twice: as melior holds them, and as plain perceptrons, each called once for all
rows, as one would write it. Both draw the same candidates, score them and choose the best. First
the numbers: what follows must agree before anything is timed. Then both take turns, whoever goes
first changes, and CPU and wall seconds are counted. Beside them stands how fast the products alone
could be: of a square matrix, whose rate is the most that this machine gives.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from melior import ops
from melior.models.control import (
    DiscriminatorOptions,
    Discriminators,
    Dynamics,
    DynamicsOptions,
    Perceptrons,
)
from melior.rewards.control import DynamicsReward
from melior.sampling.control import Filter, best, candidates

MARKS = ("<!-- numbers: imagination -->", "<!-- /numbers -->")
SHAPES = {"Pendulum": (3, 1), "Hopper": (11, 3)}
Step = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    lines = ["| task | rows | melior | a plain loop | faster, CPU | wall | products alone |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for task, shape in SHAPES.items():
        for rows in asked.rows:
            lines.append(_compared(task, shape, rows, asked))
    lines += ["", _about(asked)]
    page = "\n".join(lines)
    print(page)
    if asked.markdown:
        _put(Path(asked.markdown), page)


def _compared(task: str, shape: tuple[int, int], rows: int, asked: argparse.Namespace) -> str:
    generator = ops.generator(0)
    seen = torch.randn(rows, shape[0], generator=generator)
    acted = torch.rand(rows, shape[1], generator=generator) * 2 - 1
    dynamics, reward = _world(shape, asked.discriminators, seen, acted)
    together, alone = batched(dynamics, reward), looped(dynamics, reward)
    with torch.no_grad():
        off = float((together(seen, acted) - alone(seen, acted)).abs().max())
        if off > 1e-4:
            raise SystemExit(f"{task}: both must imagine the same; found {off:.2g} between them")
        spent: dict[str, list[tuple[float, float]]] = {"together": [], "alone": []}
        for index in range(asked.rounds + 1):
            order = [("together", together), ("alone", alone)]
            for name, step in order if index % 2 else order[::-1]:
                took = _timed(step, seen, acted)
                if index:  # the first warms up
                    spent[name].append(took)
    cpu, wall = ({n: [one[i] for one in own] for n, own in spent.items()} for i in (0, 1))
    each = [f"{rows / statistics.median(cpu[name]):,.0f}" for name in spent]
    ratios = [b / a for a, b in zip(cpu["together"], cpu["alone"], strict=True)]
    middle = statistics.median(cpu["alone"]) / statistics.median(cpu["together"])
    on_wall = statistics.median(wall["alone"]) / statistics.median(wall["together"])
    said = f"**{middle:.2f}x** ({min(ratios):.2f} to {max(ratios):.2f})"
    most = f"{_most() / _operations(dynamics, reward):,.0f}"
    return f"| {task} | {rows} | {' | '.join(each)} | {said} | {on_wall:.2f}x | {most} |"


def _operations(dynamics: Dynamics, reward: DynamicsReward) -> int:
    """Return the multiplications and additions of a transition: all members, 10 candidates."""
    numbers = [
        sum(weight.numel() for weight in own.weights)
        for own in (dynamics.members, reward.discriminators.members)
    ]
    return 2 * (numbers[0] + 2 * len(dynamics.elites) * numbers[1])


def _most() -> float:
    """Return the operations a CPU second of products of square matrices."""
    square = torch.randn(1024, 1024)
    rates = []
    for _ in range(5):
        began = time.process_time()
        square @ square
        rates.append(2 * 1024**3 / (time.process_time() - began))
    return max(rates)


def batched(dynamics: Dynamics, reward: DynamicsReward) -> Step:
    """Return an imagined step as melior takes it."""
    chosen = Filter(reward, best, threshold=0.6)

    def step(seen: Tensor, acted: Tensor) -> Tensor:
        drawn = candidates(dynamics, seen, acted, draws=2, bound=25.0, generator=ops.generator(1))
        return chosen(seen, acted, drawn).next_observations

    return step


def looped(dynamics: Dynamics, reward: DynamicsReward) -> Step:
    """Return the same step in loops over members and over judges, each called once for all rows."""
    members, judges = _apart(dynamics.members), _apart(reward.discriminators.members)
    low, high = dynamics.log_variance_low, dynamics.log_variance_high
    ends = list(zip(reward.real.tolist(), reward.generated.tolist(), strict=True))

    def expected(member: nn.Module, seen: Tensor, acted: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dynamics.inputs(torch.cat([seen, acted], dim=-1))
        mean, raw = member(inputs).chunk(2, dim=-1)
        below = high - nn.functional.softplus(high - raw)
        log_variance = low + nn.functional.softplus(below - low)
        whole = dynamics.outputs.back(mean)
        deviations = (0.5 * log_variance).exp() * dynamics.outputs.width
        return seen + whole[:, :-1], deviations[:, :-1]

    def score(seen: Tensor, acted: Tensor, following: Tensor) -> Tensor:
        shares, inputs = (
            torch.zeros(len(seen)),
            reward.discriminators.inputs(seen, acted, following),
        )
        for judge, (real, generated) in zip(judges, ends, strict=True):
            logits = judge(inputs)[:, 0]
            place = (logits.clamp(generated, real) - generated) / (real - generated)
            shares += (2 * place - 1).sigmoid()
        return -torch.log1p(-(shares / len(judges)).clamp(max=1 - 1e-6))

    def step(seen: Tensor, acted: Tensor) -> Tensor:
        predictions = [expected(member, seen, acted) for member in members]
        places = dynamics.elites.repeat_interleave(2).tolist()
        noise = torch.empty(len(places), len(seen), seen.shape[1] + 1)
        noise.normal_(generator=ops.generator(1))
        drawn = []
        for member, own in zip(places, noise, strict=True):
            mean, deviations = predictions[member]
            drawn.append((mean + deviations * own[:, :-1]).clamp(-25, 25))
        k = len(drawn)
        following = torch.cat(drawn)
        scores = score(seen.repeat(k, 1), acted.repeat(k, 1), following).view(k, -1)
        return torch.stack(drawn)[scores.argmax(0), torch.arange(len(seen))]

    return step


def _world(
    shape: tuple[int, int], judges: int, seen: Tensor, acted: Tensor
) -> tuple[Dynamics, DynamicsReward]:
    """Return networks of the published sizes; how fast they are does not depend on training."""
    dynamics = Dynamics(DynamicsOptions(*shape), seed=0).eval()
    targets = torch.randn(len(seen), shape[0] + 1, generator=ops.generator(2))
    dynamics.fit_scales(seen, acted, targets)
    discriminators = Discriminators(DiscriminatorOptions(*shape, members=judges), seed=1)
    discriminators.fit_scales(seen, seen + targets[:, :-1])
    reward = DynamicsReward(discriminators, torch.full((judges,), 0.1), torch.full((judges,), -0.1))
    return dynamics, reward


def _apart(perceptrons: Perceptrons) -> list[nn.Module]:
    """Return members as perceptrons of their own."""
    kind = {"relu": nn.ReLU, "silu": nn.SiLU}[perceptrons.activation]
    found: list[nn.Module] = []
    for member in range(len(perceptrons.weights[0])):
        layers: list[nn.Module] = []
        for weight, bias in zip(perceptrons.weights, perceptrons.biases, strict=True):
            layer = nn.Linear(*weight[member].shape)
            layer.weight.data, layer.bias.data = weight[member].t().contiguous(), bias[member, 0]
            layers += [layer, kind()]
        found.append(nn.Sequential(*layers[:-1]))
    return found


def _timed(step: Step, seen: Tensor, acted: Tensor) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    step(seen, acted)
    return time.process_time() - cpu, time.perf_counter() - wall


def _about(asked: argparse.Namespace) -> str:
    return (
        f"7 dynamics of 4 layers of 200, 10 candidates a row, {asked.discriminators} discriminators"
        f" of 2 layers of 128, transitions a CPU second; {asked.threads} thread(s), torch "
        f"{torch.__version__}, medians of "
        f"{asked.rounds} rounds by turns, with the least and most of a round. "
        f"`python {' '.join(sys.argv)}`."
    )


def _put(page: Path, numbers: str) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise SystemExit(f"{page}: a place for the numbers, {' '.join(MARKS)}, is needed")
    page.write_text(f"{before}{MARKS[0]}\n{numbers}\n{MARKS[1]}{after}", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 200, 2000])
    parser.add_argument("--discriminators", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", default="", help="a page that has a place for the numbers")
    return parser.parse_args()


if __name__ == "__main__":
    main()

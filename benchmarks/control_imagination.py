"""Imagined transitions a second, members side by side against one after another.

    python benchmarks/control_imagination.py --markdown docs/control.md

The same weights twice: as melior holds them, one tensor for all members of the ensemble and one for
all discriminators, and as a plain list of perceptrons that are called in a loop, as released code
does. Both draw the same candidates, score them and choose the best. First the numbers: what follows
must agree before anything is timed. Then both take turns, whoever goes first changes, and CPU and
wall seconds are counted. Steps of the task itself follow: copies in this process, and in others.
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
    lines = ["| task | rows | members side by side | one after another | faster, CPU | wall |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for task, shape in SHAPES.items():
        for rows in asked.rows:
            lines.append(_compared(task, shape, rows, asked))
    lines += ["", _about(asked)]
    if asked.task:
        lines += ["", *_lived(asked)]
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
    each = [f"{rows / statistics.median(cpu[name]):,.0f} a CPU s" for name in spent]
    ratios = [b / a for a, b in zip(cpu["together"], cpu["alone"], strict=True)]
    middle = statistics.median(cpu["alone"]) / statistics.median(cpu["together"])
    on_wall = statistics.median(wall["alone"]) / statistics.median(wall["together"])
    said = f"**{middle:.2f}x** ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {task} | {rows} | {' | '.join(each)} | {said} | {on_wall:.2f}x |"


def batched(dynamics: Dynamics, reward: DynamicsReward) -> Step:
    """Return an imagined step as melior takes it."""
    chosen = Filter(reward, best, threshold=0.6)

    def step(seen: Tensor, acted: Tensor) -> Tensor:
        drawn = candidates(dynamics, seen, acted, draws=2, bound=25.0, generator=ops.generator(1))
        return chosen(seen, acted, drawn).next_observations

    return step


def looped(dynamics: Dynamics, reward: DynamicsReward) -> Step:
    """Return the same step, member by member and candidate by candidate."""
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
        shares = torch.zeros(len(seen))
        for judge, (real, generated) in zip(judges, ends, strict=True):
            logits = judge(reward.discriminators.inputs(seen, acted, following))[:, 0]
            place = (logits.clamp(generated, real) - generated) / (real - generated)
            shares += (2 * place - 1).sigmoid()
        return -torch.log1p(-(shares / len(judges)).clamp(max=1 - 1e-6))

    def step(seen: Tensor, acted: Tensor) -> Tensor:
        predictions = [expected(member, seen, acted) for member in members]
        places = dynamics.elites.repeat_interleave(2).tolist()
        noise = torch.empty(len(places), len(seen), seen.shape[1] + 1)
        noise.normal_(generator=ops.generator(1))
        drawn, scores = [], []
        for member, own in zip(places, noise, strict=True):
            mean, deviations = predictions[member]
            following = (mean + deviations * own[:, :-1]).clamp(-25, 25)
            drawn.append(following)
            scores.append(score(seen, acted, following))
        chosen = torch.stack(scores).argmax(0)
        return torch.stack(drawn)[chosen, torch.arange(len(seen))]

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


def _lived(asked: argparse.Namespace) -> list[str]:
    """Time steps of the task: copies one behind the other, and each in a process of its own."""
    from melior.envs.control import lives, sizes

    width = sizes(asked.task)[1]
    rates: dict[str, float] = {}
    for name, in_processes in (("in this process", False), ("in processes", True)):
        with lives(asked.task, copies=asked.copies, seed=0, in_processes=in_processes) as world:
            act = _still(width)
            world.step(act)
            began = time.perf_counter()
            for _ in range(asked.env_steps):
                world.step(act)
            rates[name] = asked.copies * asked.env_steps / (time.perf_counter() - began)
    said = "; ".join(f"{name} {rate:,.0f} steps a second" for name, rate in rates.items())
    return [f"{asked.copies} copies of {asked.task}: {said}."]


def _still(width: int) -> Callable[[Tensor], Tensor]:
    return lambda seen: torch.zeros(len(seen), width)


def _about(asked: argparse.Namespace) -> str:
    return (
        f"7 dynamics of 4 layers of 200, 10 candidates a row, {asked.discriminators} discriminators"
        f" of 2 layers of 128; {asked.threads} thread(s), torch {torch.__version__}, medians of "
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
    parser.add_argument("--task", default="", help="of Gymnasium, whose steps are timed, too")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--env-steps", type=int, default=500)
    parser.add_argument("--markdown", default="", help="a page that has a place for the numbers")
    return parser.parse_args()


if __name__ == "__main__":
    main()

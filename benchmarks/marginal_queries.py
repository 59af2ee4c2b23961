"""What a marginal costs at one reading and along orders, and how far off each is.

    python benchmarks/marginal_queries.py --model runs/ising/model --side 4 --markdown docs/mam.md

A trained folder of `melior mam` on Ising's lattice, where the truth is known: the same queries are
put to the marginals at one reading, and to the conditionals along 1, 5 and 20 random orders that
are joined as a mixture of probabilities. Then the time alone, of 1 and 5 orders, by untrained
networks of the paper's lattice and size, 10 x 10. All queries at once, turn by turn; CPU time of
one process, the least of the rounds, the first of which warms up and does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rival import fill_in
from torch import Tensor

from melior import ops
from melior.data.marginal import drawn_orders
from melior.losses.marginal import ensemble
from melior.models.marginal_saved import Marginals, load_marginals, start_marginals
from melior.sampling.marginal import log_likelihood
from melior.stages.marginals.judge import Exam, known_first
from melior.stages.marginals.options import MarginalOptions
from melior.stages.marginals.world import World, load_world

ORDERS = (1, 5, 20)
FEW, FEW_ORDERS, FEW_ROUNDS = 20, (1, 5), 2
"""Queries, orders and rounds of the large networks."""


def main() -> None:
    """Measure, print and write the table."""
    options = parsed()
    torch.set_num_threads(1)
    found = load_marginals(options.model)
    world = load_world(
        MarginalOptions(target="ising", side=options.side), seed=0, validation_share=0.0
    )
    exam = Exam.of(found, world, n_queries=options.queries, n_orders=1, seed=1)
    small = measured(found, exam, ORDERS, options.rounds)
    untrained = start_marginals({"length": 100, "n_values": 2, "width": 2048, "blocks": 4}, seed=0)
    nothing = World(100, 2, log_target=world.log_target)
    asked = Exam.of(untrained, nothing, n_queries=FEW, n_orders=1, seed=1)
    large = measured(untrained, asked, FEW_ORDERS, FEW_ROUNDS)
    text = table(small, exam.wanted, large, options.queries)
    print(text)
    for page in options.markdown:
        fill_in(page, "marginal queries", text)


def parsed() -> argparse.Namespace:
    """Read the options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--side", type=int, default=4)
    made.add_argument("--queries", type=int, default=200)
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--markdown", type=Path, nargs="+", default=[])
    return made.parse_args()


@torch.no_grad()
def measured(
    found: Marginals, exam: Exam, counts: Sequence[int], rounds: int
) -> dict[str, tuple[float, Tensor]]:
    """Return, of each way, the least CPU time of all queries, and what it says."""
    generator, shape = ops.generator(2), exam.queries.shape
    orders = [
        known_first(exam.queries, drawn_orders(*shape, generator=generator))
        for _ in range(max(counts))
    ]

    def along(count: int) -> Callable[[], Tensor]:
        return lambda: ensemble(
            torch.stack(
                [log_likelihood(found.conditionals, exam.queries, own) for own in orders[:count]]
            )
        )

    ways: dict[str, Callable[[], Tensor]] = {
        "one reading": lambda: found.marginals.normalised(exam.queries).double(),
        **{f"{count} order{'s' * (count > 1)}": along(count) for count in counts},
    }
    least: dict[str, tuple[float, Tensor]] = {}
    for number in range(rounds + 1):
        for name, act in ways.items():
            began = time.process_time()
            said = act()
            seconds = time.process_time() - began
            if number == 0:
                continue
            least[name] = min(least.get(name, (seconds, said)), (seconds, said), key=lambda o: o[0])
    return least


def table(
    small: Mapping[str, tuple[float, Tensor]],
    exact: Tensor,
    large: Mapping[str, tuple[float, Tensor]],
    n: int,
) -> str:
    """Return the table, and how much one reading saves at equal accuracy."""
    lines = [
        "| | error, nats | microseconds a query | times one reading"
        " | 10 x 10, milliseconds a query | times one reading |",
        "|---|---|---|---|---|---|",
    ]
    one, other = small["one reading"][0], large["one reading"][0]
    errors = {name: float((said - exact).abs().mean()) for name, (_, said) in small.items()}
    for name, (seconds, _) in small.items():
        far = "| not timed | "
        if name in large:
            far = f"| {1e3 * large[name][0] / FEW:.2f} | {large[name][0] / other:.0f} "
        lines.append(
            f"| {name} | {errors[name]:.3f} | {1e6 * seconds / n:.1f} | {seconds / one:.0f} {far}|"
        )
    wanted = errors.pop("one reading")
    enough = [name for name, error in errors.items() if error <= wanted]
    reached = min(enough, key=lambda name: small[name][0], default=None)
    name = reached or "1 order"
    word = "the cheapest that is as near to the truth" if reached else "and none is as near"
    told = (
        f"At equal accuracy one reading is held against {name}, {word}: it is"
        f" {small[name][0] / one:.0f} times faster."
    )
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    main()

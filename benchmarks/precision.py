"""How far bfloat16 is from exact numbers: gradients, and margins after updates on real text.

    python benchmarks/precision.py --against trl

The gradient of a batch's DPO loss is computed in float64 by the plain model, one unpadded sequence
at a time, and held against melior's in both precisions and TRL's under autocast. Then melior in
float32, melior in bfloat16 and TRL under autocast each take ten updates on the same batches, and
the margins (nats by which chosen answers lead, relative to the start) that they end with are
compared; melior's of bfloat16 once more in float32, by the float32 weights that it learned, which
are what a run saves. What lies farther apart than stated here ends the run.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from interleaved import start
from preference_step import LEARNING_RATE, OPTIONS
from results import begin, finish, markdown, parser
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from turns import Message, Worker
from workloads import WORKLOADS, Pair, batches

from melior.models.embedded import embedded_folder

SIDES = {"melior, float32": ("melior", "fp32"), "melior, bfloat16": ("melior", "bf16"),
         "TRL, bfloat16 autocast": ("trl", "bf16")}  # fmt: skip
GRADIENT = {"melior, float32": 1e-5, "melior, bfloat16": 3e-2}
"""Greatest distance from float64, relative, as a Euclidean norm; bf16 rounds by up to 4e-3, and
what two parts of each of 30 layers round at random adds up to sqrt(60) times as much."""
LEARNED = "melior, bfloat16, read in float32"
MARGIN = {"melior, bfloat16": 2.0, LEARNED: 0.1}
"""Greatest distance of the margins from float32's, in nats, as a root mean square over batches. Ten
updates at 1e-6 are far below what bfloat16 weights resolve, so what is computed with those weights
does not show yet what their float32 masters have learned."""


def main(arguments: Sequence[str] | None = None) -> Message:
    made = parser(__doc__, ["short"])
    made.add_argument("--updates", type=int, default=10)
    options = made.parse_args(arguments)
    results = begin(options) | {"updates": options.updates}
    for name in options.workloads.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            found = compare(name, options, Path(scratch), results["versions"])
        results["workloads"][name] = found
        print("\n".join(" | ".join(row) for row in cells(name, found)), flush=True)
        refuse(name, found)
    return finish(results, options, "performance of precision", table(results))


def compare(
    name: str, options: argparse.Namespace, scratch: Path, versions: dict[str, Message]
) -> dict[str, Any]:
    """Return each side's distance from the exact gradient, and its margins after the updates."""
    drawn = batches(name, embedded_folder(), count=options.updates, seed=options.seed)
    request = {
        "model": str(embedded_folder()),
        "algorithm": "dpo",
        "options": OPTIONS["dpo"],
        "learning_rate": LEARNING_RATE,
        "batches": drawn,
    }
    exact = exact_gradient(drawn[0])
    found: dict[str, Any] = {"gradient": {}, "margins": {}}
    for who, (side, dtype) in SIDES.items():
        with start(side, {**request, "dtype": dtype}, options) as worker:
            versions[side] = worker.versions
            worker.ask("gradient", index=0, path=str(scratch / "gradient"))
            found["gradient"][who] = distance(load_file(scratch / "gradient"), exact)
            for index in range(len(drawn)):
                worker.ask("step", index=index)
            found["margins"][who] = margins(worker, len(drawn))
            if (side, dtype) == ("melior", "bf16"):
                worker.ask("read_masters")
                found["margins"][LEARNED] = margins(worker, len(drawn))
    return found


def margins(worker: Worker, n_batches: int) -> list[float]:
    """Return how far chosen answers lead in each batch."""
    return [worker.ask("margin", index=index)["margin"] for index in range(n_batches)]


def exact_gradient(batch: list[Pair]) -> dict[str, Tensor]:
    """Return the gradient of DPO's loss at its start, where the reference is the model itself."""
    model = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float64)
    for pair in batch:
        chosen, rejected = (
            log_prob(model, pair["prompt_ids"], pair[side])
            for side in ("chosen_ids", "rejected_ids")
        )
        margin = (chosen - chosen.detach()) - (rejected - rejected.detach())
        loss = -F.logsigmoid(OPTIONS["dpo"]["beta"] * margin) / len(batch)
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def log_prob(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum()


def distance(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the norm of the difference over that of the exact gradient."""
    if found.keys() != exact.keys():
        raise SystemExit(f"gradients of the same weights are needed; found {found.keys()}")
    apart = sum(float((found[name] - true).square().sum()) for name, true in exact.items())
    return math.sqrt(apart / sum(float(true.square().sum()) for true in exact.values()))


def apart(found: dict[str, Any], who: str) -> float:
    """Return how far a side's margins lie from float32's."""
    exact, own = found["margins"]["melior, float32"], found["margins"][who]
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(exact, own, strict=True)) / len(own))


def refuse(name: str, found: dict[str, Any]) -> None:
    """Stop where numbers lie farther apart than is stated."""
    for who, most in GRADIENT.items():
        if not found["gradient"][who] <= most:
            raise SystemExit(
                f"{name}: the gradient needs to lie within {most:g} of float64; found"
                f" {found['gradient'][who]:.2g} ({who})"
            )
    for who, most in MARGIN.items():
        if not apart(found, who) <= most:
            raise SystemExit(
                f"{name}: margins need to lie within {most:g} nats of float32; found"
                f" {apart(found, who):.2g} ({who})"
            )


def cells(name: str, found: dict[str, Any]) -> list[list[str]]:
    """Return a workload's rows of the table."""
    return [
        [
            name,
            who,
            f"{found['gradient'][who]:.1e}" if who in found["gradient"] else "",
            f"{sum(own) / len(own):+.2f}",
            f"{apart(found, who):.2f}",
        ]
        for who, own in found["margins"].items()
    ]


def table(results: Message) -> str:
    """Return the results as Markdown, with all that is needed to read them."""
    head = ["workload", "computed by", "gradient from float64", "margin", "from float32"]
    limits, farthest = (
        " and ".join(f"{most:g} ({who})" for who, most in known.items())
        for known in (GRADIENT, MARGIN)
    )
    found = results["workloads"]
    notes = [
        "*gradient from float64*: norm of the difference from the plain model's gradient in"
        f" float64, relative; more than {limits} ends the run.",
        f"*margin*: mean nats by which chosen answers lead after {results['updates']} updates at a"
        f" learning rate of {LEARNING_RATE:g}, on the batches they learned from; *from float32*:"
        f" root mean square over the batches; more than {farthest} ends the run.",
        *(f"{name}: {WORKLOADS[name][2]}." for name in found),
    ]
    rows = [head, *(row for name, one in found.items() for row in cells(name, one))]
    return markdown(rows, notes, results)


if __name__ == "__main__":
    main()

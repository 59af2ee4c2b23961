"""What runs of models of 8 and 70 billion weights take on GPUs that are not here, by `melior plan`.

    python benchmarks/plan_at_scale.py --markdown docs/scale.md

The models are Llama 3's by their published sizes, without weights; rows are random words under the
embedded model's tokenizer. Nothing is measured: memory is counted, speed is assumed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan_against_run import rows
from rival import fill_in

from melior.models.embedded import embedded_folder

SIZES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64},
}  # fmt: skip
"""Llama 3 (arXiv 2407.21783, table 3)."""
COMMON = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
DATA = ["--batch-size", "128", "--max-length", "2048", "--n-samples", "0"]
N_ROWS, ALL_ROWS = 640, 60_000
"""Rows that are planned with, and those that they stand for."""
CHECKPOINTING = ["--gradient-checkpointing"]
RUNS = {
    "8B": ("8 x H100", [["--max-tokens", "2048"], ["--max-tokens", "8192", *CHECKPOINTING]]),
    "70B": ("64 x H100", [["--max-tokens", "2048"], ["--max-tokens", "8192", *CHECKPOINTING]]),
}


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--json", type=Path, help="write all plans to this file")
    made.add_argument("--markdown", type=Path, nargs="+", default=[], help="pages to write into")
    options = made.parse_args(arguments)
    plans = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        lines = (json.dumps(one) + "\n" for one in rows("chat", N_ROWS))
        data.write_text("".join(lines), encoding="utf-8")
        for size, (machines, changes) in RUNS.items():
            model = shell(Path(folder) / size, size)
            for words in changes:
                found = planned(model, data, machines, words)
                plans.append({"size": size, "words": words, "plan": found})
                print(" | ".join(row(plans[-1])), flush=True)
    if options.json:
        options.json.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
    for page in options.markdown:
        fill_in(page, "scale", table(plans))


def shell(folder: Path, size: str) -> Path:
    """Make a model's folder without its weights."""
    folder.mkdir()
    for file in embedded_folder().glob("*"):
        if file.name.startswith(("tokenizer", "special", "vocab", "merges", "chat_template")):
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(COMMON | SIZES[size]), encoding="utf-8")
    return folder


def planned(model: Path, data: Path, machines: str, more: list[str]) -> dict[str, Any]:
    """Ask for a plan."""
    words = ["plan", "dpo", "--model", str(model), "--data", str(data), "--out", "run", *DATA]
    line = [sys.executable, "-m", "melior", *words, "--on", machines, *more, "--json"]
    found: dict[str, Any] = json.loads(subprocess.check_output(line))
    return found


def row(one: dict[str, Any]) -> list[str]:
    """Return a plan's row of the table."""
    plan, machine = one["plan"], one["plan"]["machine"]
    parts = {part["name"]: part["amount"] for part in plan["memory"]["training"]}
    names = ("weights", "float32 masters", "AdamW's two moments", "gradients")
    kept = parts["kept for the backward pass"] + parts["what comes and goes"]
    memory = [
        sum(parts.get(name, 0.0) for name in names), parts["gathered from others for a moment"],
        kept, plan["memory"]["most"],
    ]  # fmt: skip
    cells = [f"{amount / 2**30:.1f} GiB" for amount in memory]
    cells[-1] = f"**{cells[-1]}**" + ("" if plan["fits"] else " (does not fit)")
    counts = plan["counts"]
    seconds = plan["seconds"] * ALL_ROWS / N_ROWS / 3600
    return [
        f"{one['size']}, {machine['count']} x {machine['name']}",
        f"`{' '.join(one['words'])}`",
        *cells,
        f"{counts['FLOPs of a step']:.2g}",
        f"{seconds:.1f} h",
    ]


def table(plans: list[dict[str, Any]]) -> str:
    """Return the plans as Markdown."""
    head = [
        "run", "options", "weights, masters, moments, gradients", "gathered", "a portion",
        "each GPU in all", "FLOPs a step", f"{ALL_ROWS:,} rows once, the reference too",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head), *map(row, plans)]
    counts, machine = plans[0]["plan"]["counts"], plans[0]["plan"]["machine"]
    notes = [
        f"`melior plan dpo {' '.join(DATA)}`; a step has {counts['tokens of a step']:,.0f} tokens,"
        f" {counts['scored tokens of a step']:,.0f} of them scored (padded, they would be"
        f" {counts['the same, padded']:,.0f}).",
        f"{machine['memory'] / 1e9:.0f} GB and {machine['flops']:.3g} FLOP/s are those that the"
        " maker declares for a GPU; 40 % of these FLOP/s are assumed to be reached.",
    ]
    return "\n".join(
        [*("| " + " | ".join(line) + " |" for line in lines), "", *(f"- {note}" for note in notes)]
    )


if __name__ == "__main__":
    main()

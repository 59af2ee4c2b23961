"""Freeze what TRL's RewardTrainer says of given rewards, for `tests/losses/test_reward.py`.

Run inside an environment made from `benchmarks/requirements-trl.txt`, not in melior's:
`python tests/peers/make_trl_reward.py`. It writes `trl_reward.json` beside itself. The rewards are
drawn in float64 and handed to `RewardTrainer.compute_loss` in the model's place, so that what is
frozen is its loss and nothing else.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl

HERE = Path(__file__).parent


def main() -> None:
    assert trl.__version__ == "1.16.0", trl.__version__
    draw = torch.Generator().manual_seed(0)
    rows = [
        row(coefficient, margin, draw) for coefficient in (0.0, 0.01, 0.3) for margin in (0.0, 1.5)
    ]
    content = {
        "package": "trl",
        "version": trl.__version__,
        "script": "tests/peers/make_trl_reward.py",
        "rows": rows,
    }
    (HERE / "trl_reward.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def row(coefficient: float, margin: float, draw: torch.Generator) -> dict:
    """All pairs at once: chosen first, then rejected, as its collator lays them out."""
    chosen, rejected = (3 * torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(2))
    margins = margin * torch.rand(6, generator=draw, dtype=torch.float64)
    trainer = SimpleNamespace(
        args=SimpleNamespace(center_rewards_coefficient=coefficient or None),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=as_it_is, gather_for_metrics=as_it_is),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    logits = torch.cat([chosen, rejected])[:, None]
    inputs = {
        "input_ids": torch.ones(12, 2, dtype=torch.long),
        "attention_mask": torch.ones(12, 2, dtype=torch.long),
        "margin": margins,
    }
    loss = trl.RewardTrainer.compute_loss(
        trainer, lambda **_: SimpleNamespace(logits=logits), inputs
    )
    return {
        "rewards_chosen": chosen.tolist(),
        "rewards_rejected": rejected.tolist(),
        "margins": margins.tolist(),
        "center_rewards_coefficient": coefficient,
        "loss": loss.item(),
    }


def as_it_is(value: torch.Tensor) -> torch.Tensor:
    """Gather from one process."""
    return value


if __name__ == "__main__":
    main()

"""Freeze the losses of whole runs of TRL, for `tests/commands/test_convert_config.py`.

Run inside an environment made from `benchmarks/requirements-trl.txt`, not in melior's:
`python tests/peers/make_trl_runs.py`. It writes `trl_runs.json` beside itself. Each batch holds all
rows, so that their order, which differs, says nothing.
"""

import json
import tempfile
from pathlib import Path

import trl
import yaml
from datasets import load_dataset
from steady import steady_answers, steady_folder, steady_pairs
from transformers import AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.scripts.utils import TrlParser

FILE = Path(__file__).with_name("trl_runs.json")
TRAINERS = {
    "dpo": (trl.DPOConfig, trl.DPOTrainer),
    "cpo": (CPOConfig, CPOTrainer),
    "orpo": (ORPOConfig, ORPOTrainer),
    "kto": (trl.KTOConfig, trl.KTOTrainer),
}
SHARED = {
    "learning_rate": 5e-4, "max_steps": 4, "per_device_train_batch_size": 8, "bf16": False,
    "max_length": 128, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
}  # fmt: skip
CASES = [
    ("dpo", {}),
    ("dpo", {"loss_type": "sigmoid", "beta": 0.5, "lr_scheduler_type": "cosine"}),
    ("dpo", {"loss_type": "hinge", "beta": 0.3, "max_grad_norm": 0.5}),
    ("dpo", {"loss_type": "ipo", "beta": 0.2}),
    ("dpo", {"loss_type": "exo_pair", "label_smoothing": 0.05}),
    ("dpo", {"loss_type": "nca_pair"}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.1, "beta": 0.4}),
    ("dpo", {"loss_type": "aot", "adam_beta2": 0.95}),
    ("dpo", {"loss_type": "apo_zero"}),
    ("dpo", {"loss_type": "apo_down"}),
    ("dpo", {"loss_type": "discopop", "lr_scheduler_type": "constant"}),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}),
    ("dpo", {"ld_alpha": 0.4, "beta": 0.5}),
    ("dpo", {"f_divergence_type": "js_divergence"}),
    ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}),
    ("dpo", {"use_weighting": True}),
    ("dpo", {"label_smoothing": 0.3}),
    ("cpo", {"beta": 0.2, "label_smoothing": 0.1}),
    ("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
    ("cpo", {"loss_type": "simpo", "beta": 2.5, "cpo_alpha": 0.0}),
    ("orpo", {"beta": 0.25}),
    ("kto", {"per_device_train_batch_size": 16, "undesirable_weight": 1.3}),
    ("kto", {"per_device_train_batch_size": 16, "loss_type": "apo_zero_unpaired"}),
]


def main() -> None:
    assert trl.__version__ == "1.16.0", trl.__version__
    rows = [{"trainer": name, "values": SHARED | own, "losses": losses(name, SHARED | own)}
            for name, own in CASES]  # fmt: skip
    content = {
        "package": "trl",
        "version": trl.__version__,
        "script": "tests/peers/make_trl_runs.py",
        "rows": rows,
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def losses(name: str, values: dict) -> list[float]:
    """Train as TRL's scripts do, from the YAML file, and return the loss of each step."""
    kind, trainer = TRAINERS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = (steady_answers if name == "kto" else steady_pairs)(folder / "data")
        config = folder / "trl.yaml"
        # Trainers of the stable part take `use_cpu` for granted where there is no accelerator.
        content = values | {"output_dir": str(folder / "out"), "use_cpu": True}
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        (args,) = TrlParser((kind,)).parse_args_and_config(["--config", str(config)])
        model = str(steady_folder(folder / "model"))
        run = trainer(
            model, args=args, train_dataset=load_dataset(str(data), split="train"),
            processing_class=AutoTokenizer.from_pretrained(model),
        )  # fmt: skip
        run.train()
        return [row["loss"] for row in run.state.log_history if "loss" in row]


if __name__ == "__main__":
    main()

"""Freeze what TRL's own loss code says of given log-probabilities, for `tests/losses`.

Run inside an environment made from `benchmarks/requirements-trl.txt`, not in melior's:
`python tests/peers/make_trl.py`. It writes `trl_dpo.json`, `trl_simpo.json` and
`trl_simpo_hinge.json` beside itself. The log-probabilities are drawn in float64 and handed to
TRL's trainers in the model's place, so that what is frozen is its losses and nothing else;
agreement on whole models is measured by `benchmarks/preference_step.py`.

Left out on purpose: label smoothing of DPO, which TRL 1.16 ignores for its loss type `sigmoid`.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.cpo import CPOTrainer

HERE = Path(__file__).parent
N = 6
"""Pairs a row."""


def main() -> None:
    assert trl.__version__ == "1.16.0", trl.__version__
    draw = torch.Generator().manual_seed(0)
    dpo_rows = [dpo_row(beta, draw) for beta in (0.01, 0.1, 0.5, 2.0)]
    simpo_rows = [
        simpo_row({"beta": beta, "gamma": gamma, "label_smoothing": smoothing}, draw)
        for beta, gamma in ((2.0, 0.5), (2.5, 1.4), (10.0, 3.0))
        for smoothing in (0.0, 0.1)
    ]
    # TRL's hinge knows no target margin.
    hinge_rows = [simpo_row({"beta": beta, "gamma": 0.0}, draw) for beta in (0.5, 2.0)]
    save("trl_dpo", dpo_rows)
    save("trl_simpo", simpo_rows)
    save("trl_simpo_hinge", hinge_rows)


def save(name: str, rows: list[dict]) -> None:
    content = {
        "package": "trl",
        "version": trl.__version__,
        "script": "tests/peers/make_trl.py",
        "rows": rows,
    }
    (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw_numbers(scale: float, draw: torch.Generator) -> torch.Tensor:
    """Log-probabilities; some pairs far apart, so that both tails are held."""
    spread = torch.tensor([0.05, 0.3, 1.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    noise = torch.randn(N, generator=draw, dtype=torch.float64) * spread
    return -scale * (1.0 + noise.abs())


def dpo_row(beta: float, draw: torch.Generator) -> dict:
    """One pair at a time through `DPOTrainer.compute_loss`, which averages over its batch."""
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    numbers = {name: draw_numbers(20.0, draw) for name in names}
    trainer = dpo_trainer(beta)
    losses = []
    for chosen, rejected, *reference in zip(*numbers.values(), strict=True):
        trainer.ref_model = answering(*reference)
        inputs = {
            "input_ids": torch.tensor([[1, 2], [1, 3]]),
            "attention_mask": torch.ones(2, 2, dtype=torch.long),
            "completion_mask": torch.tensor([[0, 1], [0, 1]]),
        }
        losses.append(trainer.compute_loss(answering(chosen, rejected), inputs).item())
    listed = {name: values.tolist() for name, values in numbers.items()}
    return {**listed, "options": {"beta": beta}, "losses": losses}


def simpo_row(options: dict, draw: torch.Generator) -> dict:
    """All pairs at once through `CPOTrainer.cpo_loss`, which leaves them apart."""
    chosen, rejected = draw_numbers(1.0, draw), draw_numbers(1.0, draw)
    settings = SimpleNamespace(
        alpha=0.0,
        beta=options["beta"],
        simpo_gamma=options["gamma"],
        label_smoothing=options.get("label_smoothing", 0.0),
        loss_type="simpo" if "label_smoothing" in options else "hinge",
        accelerator=SimpleNamespace(device="cpu"),
    )
    losses, _, _ = CPOTrainer.cpo_loss(settings, chosen, rejected)
    return {
        "policy_chosen": chosen.tolist(),
        "policy_rejected": rejected.tolist(),
        "options": options,
        "losses": losses.tolist(),
    }


def answering(chosen: torch.Tensor, rejected: torch.Tensor):
    """Return what stands in a model's place: it says these log-probabilities of a token each."""
    log_probs = torch.stack([chosen, rejected])[:, None]
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    return lambda **_: outputs


def dpo_trainer(beta: float) -> trl.DPOTrainer:
    """Return a real trainer, whose model is never asked."""
    words = {"<pad>": 0, "a": 1, "b": 2, "c": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>", unk_token="<pad>"
    )
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    data = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    with tempfile.TemporaryDirectory() as scratch:
        settings = trl.DPOConfig(
            scratch, beta=beta, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True
        )
        return trl.DPOTrainer(
            LlamaForCausalLM(config),
            ref_model=LlamaForCausalLM(config),
            args=settings,
            train_dataset=data,
            processing_class=fast,
        )


if __name__ == "__main__":
    main()

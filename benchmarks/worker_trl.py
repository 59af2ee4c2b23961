"""TRL's side of `preference_step.py`: its own trainer, training loop and collator.

The trainer's loop runs as it always does; callbacks make it wait for its turn before each step.
Left as TRL has it: everything but `gradient_checkpointing=False` (melior's default),
`max_length=None` (no row is cut) and the order of the rows. Run by the rival's Python, so that
nothing of melior is imported here.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.experimental.cpo import CPOConfig, CPOTrainer
from turns import Line, Message

Pair = dict[str, list[int]]


def main() -> None:
    line = Line()
    request = line.wait()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(request, scratch)
        trainer.add_callback(Turns(line, trainer))
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        line.answer({**versions, "trl": trl.__version__})
        while True:
            request = line.wait()
            if request["do"] == "step":
                trainer.train()
            else:
                line.answer(measured(trainer, request["options"]["index"]))


class Turns(TrainerCallback):
    """Hands the turn back after each step, and waits for the next until the last is taken."""

    def __init__(self, line: Line, trainer: Any) -> None:
        self.line = line
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Answer with the step's numbers."""
        self.line.answer(numbers(self.trainer, "train", self.trainer.last_loss))
        if state.global_step < state.max_steps:
            self.line.wait()


class InOrder:
    """Takes the rows as they come, and remembers each step's loss."""

    last_loss = float("nan")

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the trainer does."""
        loss = super().training_step(*args, **kwargs)
        self.last_loss = float(loss)
        return loss


class DPO(InOrder, trl.DPOTrainer):
    """TRL's DPO."""


class SimPO(InOrder, CPOTrainer):
    """TRL's home of SimPO."""


def make_trainer(request: Message, scratch: str) -> DPO | SimPO:
    """Return a trainer on token ids: what it makes of texts is not what is measured here."""
    settings: dict[str, Any] = {
        "output_dir": scratch,
        "per_device_train_batch_size": len(request["batches"][0]),
        "max_steps": len(request["batches"]),
        "learning_rate": request["learning_rate"],
        "bf16": request["dtype"] == "bf16",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    texts = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    options = request["options"]
    if request["algorithm"] == "dpo":
        config = trl.DPOConfig(**settings, **options, max_length=None)
        trainer = DPO(request["model"], args=config, train_dataset=texts)
        row = dict
    else:
        config = CPOConfig(
            **settings,
            beta=options["beta"],
            simpo_gamma=options["gamma"],
            cpo_alpha=0.0,
            loss_type="simpo",
            max_length=2**20,
        )
        # As its DPO trainer loads a model; by name, its CPO trainer would train bf16 weights.
        model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
        trainer = SimPO(model, args=config, train_dataset=texts, processing_class=tokenizer)
        row = cpo_row
    trainer.train_dataset = Dataset.from_list(
        [row(p) for batch in request["batches"] for p in batch]
    )
    return trainer


def cpo_row(pair: Pair) -> dict[str, list[int]]:
    """Return what the CPO trainer's `tokenize_row` would, without its beginning-of-sequence."""
    prompt = pair["prompt_ids"]
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        answer = pair[f"{side}_ids"]
        row[f"{side}_input_ids"] = prompt + answer
        row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{side}_labels"] = [-100] * len(prompt) + answer
    return row


def measured(trainer: DPO | SimPO, index: int) -> Message:
    """Return a batch's numbers by the evaluation's code."""
    n = trainer.args.per_device_train_batch_size
    rows = [trainer.train_dataset[i] for i in range(index * n, index * n + n)]
    trainer.model.eval()
    loss, _, _ = trainer.prediction_step(trainer.model, trainer.data_collator(rows), True)
    return numbers(trainer, "eval", float(loss))


def numbers(trainer: DPO | SimPO, mode: str, loss: float) -> Message:
    """Return the loss and what the trainer noted of the last log-probabilities."""
    noted = trainer._metrics if isinstance(trainer, DPO) else trainer._stored_metrics
    prefix = "eval_" if mode == "eval" and isinstance(trainer, SimPO) else ""
    names = ("logps/chosen", "logps/rejected")
    return {"loss": loss, **{name: float(noted[mode][prefix + name][-1]) for name in names}}


if __name__ == "__main__":
    main()

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
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.experimental.cpo import CPOConfig, CPOTrainer
from turns import Line, Message

Pair = dict[str, list[int]]
SIDES = ("chosen", "rejected")


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
                line.answer(ASKED[request["do"]](trainer, **request["options"]))


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


class Reward(InOrder, trl.RewardTrainer):
    """TRL's reward model."""


Trainer = DPO | SimPO | Reward


def make_trainer(request: Message, scratch: str) -> Trainer:
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
    elif request["algorithm"] == "reward":
        config = trl.RewardConfig(**settings, max_length=None)
        trainer = Reward(request["model"], args=config, train_dataset=texts)
        row = reward_row
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
    for side in SIDES:
        answer = pair[f"{side}_ids"]
        row[f"{side}_input_ids"] = prompt + answer
        row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{side}_labels"] = [-100] * len(prompt) + answer
    return row


def reward_row(pair: Pair) -> dict[str, list[int]]:
    """Return what the reward trainer keeps of a pair: each answer with its prompt."""
    return {f"{side}_ids": pair["prompt_ids"] + pair[f"{side}_ids"] for side in SIDES}


def measured(trainer: Trainer, index: int) -> Message:
    """Return a batch's numbers by the evaluation's code."""
    trainer.model.eval()
    loss, _, _ = trainer.prediction_step(trainer.model, collated(trainer, index), True)
    return numbers(trainer, "eval", float(loss))


def margin(trainer: DPO, index: int) -> Message:
    """Return the mean log-odds, relative to the start, of a batch's chosen answers."""
    measured(trainer, index)
    return {"margin": float(trainer._metrics["eval"]["rewards/margins"][-1]) / trainer.beta}


def gradient(trainer: Trainer, index: int, path: str) -> Message:
    """Write the gradient of a batch's loss to a file."""
    inputs = trainer._prepare_inputs(collated(trainer, index))
    trainer.model.train()
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    save_file({name: p.grad for name, p in trainer.model.named_parameters()}, path)
    trainer.model.zero_grad()
    return {}


ASKED = {"measure": measured, "margin": margin, "gradient": gradient}


def collated(trainer: Trainer, index: int) -> Message:
    """Return a batch as the trainer pads it."""
    n = trainer.args.per_device_train_batch_size
    return trainer.data_collator(
        [trainer.train_dataset[i] for i in range(index * n, index * n + n)]
    )


def numbers(trainer: Trainer, mode: str, loss: float) -> Message:
    """Return the loss and what the trainer noted last."""
    noted = trainer._stored_metrics if isinstance(trainer, SimPO) else trainer._metrics
    prefix = "eval_" if mode == "eval" and isinstance(trainer, SimPO) else ""
    names = ["margin"] if isinstance(trainer, Reward) else [f"logps/{side}" for side in SIDES]
    return {"loss": loss, **{name: float(noted[mode][prefix + name][-1]) for name in names}}


if __name__ == "__main__":
    main()

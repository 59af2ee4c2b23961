"""TRL's side of `policy_pass.py`: the policy pass of its GRPO trainer, on rows that it pads.

Left as TRL has it: everything but `gradient_checkpointing=False` (melior's default). Run by the
rival's Python, so that nothing of melior is imported here.
"""

from __future__ import annotations

import tempfile

import torch
import transformers
import trl
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from turns import Message, serve


class Worker:
    """A trainer whose policy pass is asked for.

    Args:
        request: `model`, `dtype`, `groups`.
    """

    def __init__(self, request: Message) -> None:
        self.groups = request["groups"]
        k = len(self.groups[0]["answers"])
        self.scratch = tempfile.TemporaryDirectory()
        config = trl.GRPOConfig(
            self.scratch.name,
            per_device_train_batch_size=k,
            num_generations=k,
            bf16=request["dtype"] == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
        )
        self.trainer = trl.GRPOTrainer(
            request["model"],
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "a"}]),
        )
        self.trainer.model.train()

    def step(self, index: int) -> Message:
        """Return the answers' log-probabilities, weighed and summed, and their gradient's norm."""
        one, model = self.groups[index], self.trainer.model
        answers = [torch.tensor(answer) for answer in one["answers"]]
        completions = pad_sequence(answers, batch_first=True)
        said = pad_sequence([torch.ones_like(answer) for answer in answers], batch_first=True)
        prompts = torch.tensor([one["prompt_ids"]]).expand(len(answers), -1)
        tokens = torch.cat([prompts, completions], 1)
        log_probs, _, _ = self.trainer._get_per_token_logps_and_entropies(
            model,
            tokens,
            torch.cat([torch.ones_like(prompts), said], 1),
            completions.shape[1],
            compute_entropy=True,
        )
        weights = torch.tensor(one["weights"])[:, None]
        weighed = (weights * (log_probs * said).double()).sum()
        weighed.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        model.zero_grad()
        return {"value": float(weighed), "gradient_norm": float(norm), "tokens": tokens.numel()}


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve(Worker, {**versions, "trl": trl.__version__})

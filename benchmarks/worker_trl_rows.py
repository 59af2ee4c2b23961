"""TRL's side of `data_preparation.py`: what its DPO trainer does to a data set.

The trainer is made around a model of one narrow layer, as its weights are not asked. Run by the
rival's Python, so that nothing of melior is imported here.
"""

from __future__ import annotations

import hashlib
import json
import tempfile

import torch
import transformers
import trl
from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from turns import Message, serve

NARROW = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


class Worker:
    """What makes token ids of a file.

    Args:
        request: `model`, whose tokenizer counts, and `files`.
    """

    def __init__(self, request: Message) -> None:
        self.files = request["files"]
        self.scratch = tempfile.TemporaryDirectory()
        config = AutoConfig.from_pretrained(request["model"], **NARROW)
        self.tokenizer = AutoTokenizer.from_pretrained(request["model"])
        self.trainer = trl.DPOTrainer(
            AutoModelForCausalLM.from_config(config, dtype=torch.float32),
            args=trl.DPOConfig(self.scratch.name, use_cpu=True, max_length=None, report_to=[]),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
            processing_class=self.tokenizer,
        )

    def step(self, index: int) -> Message:
        """Prepare a file."""
        rows = load_dataset(
            "json", data_files=self.files[index], split="train", cache_dir=self.scratch.name
        )
        self.rows = self.trainer._prepare_dataset(
            rows, self.trainer.processing_class, self.trainer.args, "train"
        )
        return {"rows": len(self.rows)}

    def digest(self) -> Message:
        """Return a hash of the ids of the file that was prepared last, up to each end token."""
        found = hashlib.sha256()
        for row in self.rows:
            answers = [self.ended(row["chosen_ids"]), self.ended(row["rejected_ids"])]
            found.update(json.dumps([row["prompt_ids"], *answers]).encode())
        return {"sha256": found.hexdigest()}

    def ended(self, answer: list[int]) -> list[int]:
        """Leave out what the template writes behind the end token."""
        after = answer[::-1].index(self.tokenizer.eos_token_id)
        return answer[: len(answer) - after]


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve(Worker, {**versions, "trl": trl.__version__})

"""The rival's side of `reward_scoring.py`: padded batches of `AutoModelForSequenceClassification`.

TRL has no command that scores. Its trainers that need a reward model's rewards (GRPO, RLOO, online
DPO) write conversations with the chat template, pad them on the right and call transformers' model,
all answers of a step in one batch. The same calls are made here, in batches of a given size and
sorted by length, which its trainers leave out. Run by the rival's Python, so that nothing of melior
is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
import trl
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from turns import Line, Message


def main() -> None:
    line = Line()
    request = line.wait()
    model = AutoModelForSequenceClassification.from_pretrained(
        request["model"], num_labels=1, dtype=getattr(torch, request["torch_dtype"])
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    asked = [json.loads(row) for row in Path(request["groups"]).read_text().splitlines()]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    line.answer({**versions, "trl": trl.__version__})
    while True:
        where = line.wait()["options"]
        texts = [
            text
            for row in asked[where["start"] : where["stop"]]
            for text in conversations(row, tokenizer)
        ]
        line.answer(scored(model, tokenizer, texts, where["batch_size"]))


def conversations(row: Message, tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """Write a prompt with each of its answers as TRL's `apply_chat_template` does."""
    turns = [{"role": "user", "content": row["prompt"]}]
    return [
        tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": answer}], tokenize=False
        )
        for answer in row["answers"]
    ]


def scored(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
    batch_size: int,
) -> Message:
    """Return the rewards in the order of the texts, and how many tokens were computed."""
    tokens = tokenizer(text=texts, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: -len(tokens[i]))
    rewards = [0.0] * len(texts)
    padded = 0
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [tokens[i] for i in places]}, padding_side="right", return_tensors="pt"
        )
        padded += batch["input_ids"].numel()
        with torch.inference_mode():
            found = model(**batch).logits[:, 0]
        for place, reward in zip(places, found.tolist(), strict=True):
            rewards[place] = reward
    return {"rewards": rewards, "padded": padded, "tokens": sum(map(len, tokens))}


if __name__ == "__main__":
    main()

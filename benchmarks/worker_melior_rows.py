"""Melior's side of `data_preparation.py`: what a run does before any weights are loaded."""

from __future__ import annotations

import hashlib
import json

import torch
from turns import Message, serve

from melior.models.loading import load_chat
from melior.options import DataOptions, ModelOptions
from melior.stages.data import as_it_was_said, prepare


class Worker:
    """What makes token ids of a file.

    Args:
        request: `model`, whose tokenizer counts, and `files`.
    """

    def __init__(self, request: Message) -> None:
        self.chat = load_chat(ModelOptions(model=request["model"], device="cpu"))
        self.files = request["files"]

    def step(self, index: int) -> Message:
        """Prepare a file."""
        options = DataOptions(data=(self.files[index],), max_length=8192)
        ready = prepare(options.data, self.chat, options, encode=as_it_was_said, seed=0)
        self.groups = ready.groups
        return {"rows": len(self.groups)}

    def digest(self) -> Message:
        """Return a hash of the token ids of the file that was prepared last."""
        found = hashlib.sha256()
        for group in self.groups:
            prompt = group.answers[0].tokens[: group.answers[0].n_prompt]
            answers = [one.tokens[one.n_prompt :] for one in group.answers]
            found.update(json.dumps([one.tolist() for one in (prompt, *answers)]).encode())
        return {"sha256": found.hexdigest()}


if __name__ == "__main__":
    serve(Worker, {"torch": torch.__version__})

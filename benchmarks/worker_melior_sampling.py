"""Melior's side of `group_sampling.py`: the sampler of `melior sample`, on token ids."""

from __future__ import annotations

import torch
from turns import Message, serve

from melior.models.generation import complete
from melior.models.loading import load_to_answer
from melior.options import ModelOptions, Sampling


class Worker:
    """A model that answers.

    Args:
        request: `model`, `dtype`, `k`, `n_new`, `prompts`.
    """

    def __init__(self, request: Message) -> None:
        options = ModelOptions(model=request["model"], dtype=request["dtype"], device="cpu")
        self.model = load_to_answer(options)
        self.request = request

    def step(self, index: int) -> Message:
        """Draw the answers to a prompt."""
        return {"tokens": sum(map(len, self.drawn(index, temperature=1.0)))}

    def likeliest(self, index: int) -> Message:
        """Return the most likely answers to a prompt."""
        return {"answers": self.drawn(index, temperature=0.0)}

    def drawn(self, index: int, *, temperature: float) -> list[list[int]]:
        """Return the tokens of answers that nothing ends before their time."""
        k, n_new = self.request["k"], self.request["n_new"]
        (answers,) = complete(
            self.model.core,
            [self.request["prompts"][index]],
            Sampling(k=k, temperature=temperature, max_new_tokens=n_new),
            stop_token_ids=(),
            decode=self.model.chat.decode,
            generator=torch.Generator().manual_seed(index),
        )
        return [list(answer.tokens) for answer in answers]


if __name__ == "__main__":
    serve(Worker, {"torch": torch.__version__})

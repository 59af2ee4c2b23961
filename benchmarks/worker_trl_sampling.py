"""The rival's side of `group_sampling.py`: `generate` of transformers, as TRL calls it.

Run by the rival's Python, so that nothing of melior is imported here.
"""

from __future__ import annotations

import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, GenerationConfig
from turns import Message, serve


class Worker:
    """A model that answers.

    Args:
        request: `model`, `torch_dtype`, `k`, `n_new`, `prompts`.
    """

    def __init__(self, request: Message) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=getattr(torch, request["torch_dtype"])
        ).eval()
        self.model.generation_config.eos_token_id = None  # nothing ends an answer before its time
        self.request = request

    def step(self, index: int) -> Message:
        """Draw the answers to a prompt."""
        torch.manual_seed(index)
        # TRL's settings where it is given none of its own.
        answers = self.drawn(index, do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
        return {"tokens": sum(map(len, answers))}

    def likeliest(self, index: int) -> Message:
        """Return the most likely answers to a prompt."""
        return {"answers": self.drawn(index, do_sample=False)}

    def drawn(self, index: int, **settings: float | bool) -> list[list[int]]:
        """Return the tokens of the answers, all of the same length."""
        prompt = self.request["prompts"][index]
        tokens = torch.tensor([prompt]).expand(self.request["k"], -1).contiguous()
        config = GenerationConfig(
            max_new_tokens=self.request["n_new"],
            pad_token_id=0,
            disable_compile=True,
            **settings,
        )
        with torch.no_grad():
            found = self.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
            )
        return found[:, len(prompt) :].tolist()


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve(Worker, {**versions, "trl": trl.__version__})

"""k answers to each prompt from a model that is loaded here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch

from melior.models.generation import MAX_TOKENS, Completion, check_prompt, draw
from melior.models.language import LanguageModel
from melior.options import Sampling
from melior.records import Candidate, Group, Turn


def candidates(
    model: LanguageModel,
    prompts: Iterable[Group],
    sampling: Sampling,
    *,
    generator: torch.Generator,
    start: int = 0,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[Group]:
    """Yield each prompt's group with `sampling.k` new candidates in place of any it had, in order.

    A candidate's facts are `log_prob` (under the model, temperature and cuts aside), `n_tokens`
    and `is_finished`.

    Args:
        model: what answers.
        prompts: groups; their facts are kept. Read only as far ahead as there is room.
        sampling: how to draw.
        generator: the same seed gives the same answers.
        start: so many first prompts were answered earlier. They are left out, and the others get
            the answers, up to rounding, that they would have got after them.
        max_tokens: answers times tokens held at once; bounds the memory.
    """
    rest = iter(prompts)
    pass_over(sum(1 for _ in islice(rest, start)), sampling, generator=generator)
    asked: deque[Group] = deque()

    def tokens() -> Iterator[list[int]]:
        for group in rest:
            asked.append(group)
            try:
                prompt = model.chat.prompt_tokens(group.prompt)
            except ValueError as error:
                raise ValueError(f"{group.origin}: {error}") from error
            check_prompt(model.core, prompt, sampling, group.origin)
            yield prompt

    for completions in draw(
        model.core,
        tokens(),
        sampling,
        stop_token_ids=model.chat.stop_token_ids,
        decode=model.chat.decode,
        generator=generator,
        max_tokens=max_tokens,
    ):
        yield replace(asked.popleft(), candidates=tuple(map(candidate, completions)))


def pass_over(n: int, sampling: Sampling, *, generator: torch.Generator) -> None:
    """Leave a generator as if so many prompts had been answered."""
    for _ in range(n):
        shape = sampling.k, sampling.max_new_tokens
        torch.rand(shape, generator=generator, device=generator.device)


def candidate(completion: Completion) -> Candidate:
    """Return an answer as a candidate."""
    facts = {
        "log_prob": sum(completion.log_probs),
        "n_tokens": len(completion.tokens),
        "is_finished": completion.is_finished,
    }
    # Cut within a character, an answer would end with a sign that the model never said.
    said = completion.text if completion.is_finished else completion.text.rstrip("\ufffd")
    return Candidate((Turn("assistant", said),), facts=facts)

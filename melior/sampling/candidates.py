"""k answers to each prompt from a model that is loaded here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch

from melior.models.generation import Completion
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
    at_once: int = 64,
) -> Iterator[Group]:
    """Yield each prompt's group with `sampling.k` new candidates in place of any it had.

    A candidate's facts are `log_prob` (under the model, temperature and cuts aside), `n_tokens`
    and `is_finished`.

    Args:
        model: what answers.
        prompts: groups; their facts are kept.
        sampling: how to draw.
        generator: the same seed gives the same answers.
        start: so many first prompts were answered earlier. They are left out, and the others get
            the answers that they would have got after them.
        at_once: answers that are drawn together.
    """
    size = max(1, at_once // sampling.k)
    for first, portion in enumerate(_portions(prompts, size)):
        n_done = max(0, start - first * size)
        if n_done >= len(portion):
            shape = (len(portion) * sampling.k, sampling.max_new_tokens)
            torch.rand(shape, generator=generator, device=generator.device)
            continue
        drawn = model.complete([group.prompt for group in portion], sampling, generator=generator)
        for group, completions in list(zip(portion, drawn, strict=True))[n_done:]:
            yield replace(group, candidates=tuple(map(candidate, completions)))


def candidate(completion: Completion) -> Candidate:
    """Return an answer as a candidate."""
    facts = {
        "log_prob": sum(completion.log_probs),
        "n_tokens": len(completion.tokens),
        "is_finished": completion.is_finished,
    }
    return Candidate((Turn("assistant", completion.text),), facts=facts)


def _portions(prompts: Iterable[Group], size: int) -> Iterator[list[Group]]:
    rest = iter(prompts)
    while portion := list(islice(rest, size)):
        yield portion

"""k answers to each prompt from an OpenAI-compatible server: vLLM, SGLang, llama.cpp, ..."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from melior.models.endpoint import Endpoint, Server
from melior.options import Sampling
from melior.records import Candidate, Group, Turn, Turns

UNPENALISED = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""vLLM takes what a model's generation config says unless it is told, and reports log-probabilities
from before penalties, so that nothing shows them."""


def server_candidates(
    server: Server, prompts: Iterable[Group], sampling: Sampling, *, seed: int, start: int = 0
) -> Iterator[Group]:
    """Yield each prompt's group with `sampling.k` new candidates, in order.

    A candidate's facts are `log_prob` (as the server says it), `n_tokens` (where it says
    log-probabilities) and `is_finished`.

    Args:
        server: where to ask.
        prompts: groups; their facts are kept.
        sampling: how to draw. Cuts that are off, and penalties, are switched off at the server too.
        seed: with a prompt's place, it gives the seed that the server is told.
        start: so many first prompts were answered earlier, and are left out.

    Raises:
        ValueError: the server cannot be reached, does not know the model, or refuses.
        PermissionError: it wants another key.
    """
    endpoint = Endpoint(server)
    asked = islice(enumerate(prompts), start, None)

    def answered(item: tuple[int, Group]) -> Group:
        place, group = item
        return _answered(endpoint, group, sampling, f"{seed}/{place}")

    yield from endpoint.each(answered, asked)


def _answered(endpoint: Endpoint, group: Group, sampling: Sampling, seed: str) -> Group:
    """Ask until there are k answers; a server may give fewer at once than it is asked for."""
    found: list[Candidate] = []
    while len(found) < sampling.k:
        asked = 1 if "n" in endpoint.refused else sampling.k - len(found)
        number = random.Random(f"{seed}/{len(found)}").getrandbits(31)
        reply = endpoint.chat(*_fields(group.prompt, sampling, asked, number))
        choices = _choices(reply, endpoint.base)[:asked]
        if len(choices) < asked:
            endpoint.refused.add("n")
        found += choices
    return replace(group, candidates=tuple(found))


def _fields(
    prompt: Turns, sampling: Sampling, n: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a request that decide what an answer means, and the others."""
    needed = {
        "messages": [{"role": t.role, "content": t.content, **t.extra} for t in prompt],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
    }
    needed |= {"stop": list(sampling.stop)} if sampling.stop else {}
    optional = {"n": n, "seed": seed, "logprobs": True, "min_p": 0.0} | UNPENALISED
    # Some servers cut by default: llama.cpp by top_k 40 and min_p 0.05.
    (needed if sampling.top_k else optional)["top_k"] = sampling.top_k
    return needed, optional


def _choices(reply: dict[str, Any], base: str) -> list[Candidate]:
    try:
        choices = [_candidate(choice) for choice in reply["choices"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{base}: a reply needs 'choices' with messages; found {str(reply)[:200]}"
        ) from error
    if not choices:
        raise ValueError(f"{base}: a reply needs 'choices'; found none")
    return choices


def _candidate(choice: dict[str, Any]) -> Candidate:
    facts: dict[str, Any] = {}
    said = (choice.get("logprobs") or {}).get("content")
    if said:
        facts |= {"log_prob": sum(one["logprob"] for one in said), "n_tokens": len(said)}
    facts["is_finished"] = choice.get("finish_reason") == "stop"
    content = choice["message"]["content"] or ""
    if not facts["is_finished"]:
        content = content.rstrip("\ufffd")  # cut within a character, which nobody said
    return Candidate((Turn("assistant", content),), facts=facts)

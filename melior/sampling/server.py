"""k answers to each prompt from an OpenAI-compatible server: vLLM, SGLang, llama.cpp, ..."""

from __future__ import annotations

import http.client
import json
import random
import re
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from melior.options import Sampling, in_range
from melior.records import Candidate, Group, Turn, Turns

OPTIONAL = ("n", "seed", "logprobs", "top_k", "min_p")
"""Fields that a server may refuse; then it is asked without."""
FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long, up to 30."""


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently."""

    url: str
    """Such as `http://localhost:8000`, with or without `/v1`."""
    model: str = ""
    """The model's name there; empty where the server offers one only."""
    api_key: str = field(default="", repr=False)
    concurrency: int = 8
    """Prompts in flight."""
    timeout: float = 600.0
    """Seconds to wait for a reply."""
    retries: int = 5
    """Further tries after a busy or broken reply."""

    def __post_init__(self) -> None:
        """Check the address and the ranges."""
        if not re.match(r"https?://[^/]", self.url):
            raise ValueError(
                f"server must be an address such as http://localhost:8000; found {self.url!r}"
            )
        in_range("concurrency", self.concurrency, 1)
        in_range("timeout", self.timeout, 0, above=True)
        in_range("retries", self.retries, 0)


def server_candidates(
    server: Server, prompts: Iterable[Group], sampling: Sampling, *, seed: int, start: int = 0
) -> Iterator[Group]:
    """Yield each prompt's group with `sampling.k` new candidates, in order.

    A candidate's facts are `log_prob` (as the server says it), `n_tokens` (where it says
    log-probabilities) and `is_finished`.

    Args:
        server: where to ask.
        prompts: groups; their facts are kept.
        sampling: how to draw. Cuts that are off are switched off at the server too.
        seed: with a prompt's place, it gives the seed that the server is told.
        start: so many first prompts were answered earlier, and are left out.

    Raises:
        ValueError: the server cannot be reached, does not know the model, or refuses.
        PermissionError: it wants another key.
    """
    client = _Client(server)
    waiting: deque[Future[Group]] = deque()
    pool = ThreadPoolExecutor(server.concurrency)
    try:
        for place, group in enumerate(prompts):
            if place < start:
                continue
            waiting.append(pool.submit(client.group, group, sampling, f"{seed}/{place}"))
            if len(waiting) >= 2 * server.concurrency:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _RefusedError(Exception):
    """The server did not like a request's fields."""


class _Client:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.base = re.sub(r"/v1$", "", server.url.rstrip("/"))
        self.optional = set(OPTIONAL)
        self.model = self._model()

    def group(self, group: Group, sampling: Sampling, seed: str) -> Group:
        """Ask until there are k answers; a server may give fewer at once than it is asked for."""
        found: list[Candidate] = []
        while len(found) < sampling.k:
            asked = sampling.k - len(found) if "n" in self.optional else 1
            number = random.Random(f"{seed}/{len(found)}").getrandbits(31)
            wanted = self._body(group.prompt, sampling, asked, number)
            try:
                reply = self._ask("/v1/chat/completions", wanted)
            except _RefusedError as error:
                self._drop(str(error), wanted, sampling)
                continue
            choices = self._choices(reply)[:asked]
            if len(choices) < asked:
                self.optional.discard("n")
            found += choices
        return replace(group, candidates=tuple(found))

    def _body(self, prompt: Turns, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": [{"role": t.role, "content": t.content, **t.extra} for t in prompt],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        # Some servers cut by default: llama.cpp by top_k 40 and min_p 0.05.
        optional = {
            "n": n,
            "seed": seed,
            "logprobs": True,
            "top_k": sampling.top_k,
            "min_p": 0.0,
        }
        return body | {key: value for key, value in optional.items() if key in self.optional}

    def _drop(self, message: str, body: dict[str, Any], sampling: Sampling) -> None:
        """Do without what the server refused by name, where that changes no answer's meaning."""
        asked = set(OPTIONAL) & set(body)
        named = {key for key in asked if re.search(rf"\b{key}\b", message)}
        if sampling.top_k:
            named.discard("top_k")
        if not named:
            raise ValueError(f"{self.base}: the server refuses; it says: {message}")
        self.optional -= named

    def _choices(self, reply: dict[str, Any]) -> list[Candidate]:
        try:
            choices = [_candidate(choice) for choice in reply["choices"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.base}: a reply needs 'choices' with messages; found {str(reply)[:200]}"
            ) from error
        if not choices:
            raise ValueError(f"{self.base}: a reply needs 'choices'; found none")
        return choices

    def _model(self) -> str:
        """Return the model's name at the server, checked where it lists its models."""
        name = self.server.model
        try:
            listed = self._ask("/v1/models", retries=1)["data"]
            known = [str(one["id"]) for one in listed]
            aliases = [str(alias) for one in listed for alias in one.get("aliases") or ()]
        except (_RefusedError, KeyError, TypeError, AttributeError) as error:
            if name:
                return name
            raise ValueError(
                f"{self.base}: the server does not list its models; name one with --model"
            ) from error
        if not name and len(known) == 1:
            return known[0]
        if name not in known + aliases:
            found = f"no model {name!r}" if name else "several"
            raise ValueError(
                f"{self.base}: needs the name of a model that is served; found {found}; "
                f"there are: {', '.join(known)}"
            )
        return name

    def _ask(
        self, path: str, body: dict[str, Any] | None = None, *, retries: int | None = None
    ) -> dict[str, Any]:
        """Send one request, again after a while if the server is busy or the reply broken."""
        retries = self.server.retries if retries is None else retries
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.server.api_key:
            headers["Authorization"] = f"Bearer {self.server.api_key}"
        request = urllib.request.Request(self.base + path, data, headers)
        wait = FIRST_WAIT
        for tries_left in reversed(range(retries + 1)):
            try:
                with urllib.request.urlopen(request, timeout=self.server.timeout) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                trouble = self._trouble(error)
                pause = error.headers.get("Retry-After", "")
                wait = max(wait, min(float(pause), 60)) if pause.isdigit() else wait
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
            if tries_left:
                time.sleep(wait)
                wait = min(2 * wait, 30)
        raise ValueError(
            f"{self.base}: needs a server that answers; found in {retries + 1} tries: {trouble}; "
            "start one there, or give another --server"
        )

    def _trouble(self, error: urllib.error.HTTPError) -> str:
        """Return what is wrong if it may pass; raise if it will not."""
        message = _message(error.read())
        if error.code in (401, 403):
            raise PermissionError(
                f"{self.base}: the server wants another key; it says: {message}; name the "
                "environment variable that holds it with --api-key-env"
            ) from error
        if error.code in (400, 404, 422):
            raise _RefusedError(message) from error
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return f"HTTP {error.code}: {message}"
        raise ValueError(f"{self.base}: HTTP {error.code}: {message}") from error


def _candidate(choice: dict[str, Any]) -> Candidate:
    facts: dict[str, Any] = {}
    said = (choice.get("logprobs") or {}).get("content")
    if said:
        facts |= {"log_prob": sum(one["logprob"] for one in said), "n_tokens": len(said)}
    facts["is_finished"] = choice.get("finish_reason") == "stop"
    return Candidate((Turn("assistant", choice["message"]["content"] or ""),), facts=facts)


def _message(body: bytes) -> str:
    """Return what an error's body says."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except ValueError:
        pass  # not JSON: the text itself is the message
    return " ".join(str(text).split())[:300]

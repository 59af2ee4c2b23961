"""A language model behind an OpenAI-compatible server: what is asked, how patiently, what fails."""

from __future__ import annotations

import http.client
import json
import math
import re
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from melior.checks import in_range

Q = TypeVar("Q")
A = TypeVar("A")

FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long, up to 30."""
LONGEST_PAUSE = 60.0
"""Seconds that a server may ask for."""


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


class RefusedError(ValueError):
    """The server answers, but not this request."""

    def __init__(self, base: str, message: str) -> None:
        super().__init__(f"{base}: the server refuses; it says: {message}")
        self.message = message


class SilentError(ValueError):
    """The server gave no answer to this request in all tries; it may answer others."""


class Endpoint:
    """One model at a server; may be asked from several threads.

    Raises:
        ValueError: the server cannot be reached, or does not know the model.
        PermissionError: it wants another key.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.base = re.sub(r"/v1$", "", server.url.rstrip("/"))
        self.refused: set[str] = set()
        """Optional fields that the server does not like; it is asked without."""
        self.model = self._model()

    def chat(self, needed: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to one chat completion.

        Args:
            needed: fields without which the answer would mean something else.
            optional: fields that the server may refuse; then it is asked without.

        Raises:
            RefusedError: the server refuses all the same.
            SilentError: it did not answer in all tries.
            PermissionError: it wants another key.
        """
        while True:
            asked = {key: value for key, value in optional.items() if key not in self.refused}
            try:
                return self._ask("/v1/chat/completions", {"model": self.model, **needed, **asked})
            except RefusedError as error:
                named = _named(error.message, asked)
                if not named:
                    raise
                self.refused |= named

    def each(self, ask: Callable[[Q], A], questions: Iterable[Q]) -> Iterator[A]:
        """Yield the answers to many questions in their order, some of them in flight."""
        waiting: deque[Future[A]] = deque()
        pool = ThreadPoolExecutor(self.server.concurrency)
        try:
            for question in questions:
                waiting.append(pool.submit(ask, question))
                if len(waiting) >= 2 * self.server.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _model(self) -> str:
        """Return the model's name at the server, checked where it lists its models."""
        name = self.server.model
        try:
            listed = self._ask("/v1/models", retries=1)["data"]
            known = [str(one["id"]) for one in listed]
            aliases = [str(alias) for one in listed for alias in one.get("aliases") or ()]
        except (RefusedError, KeyError, TypeError, AttributeError) as error:
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
                    return _object(_body(reply, self.server.timeout))
            except urllib.error.HTTPError as error:
                trouble = self._trouble(error)
                wait = max(wait, _pause(error.headers.get("Retry-After", "")))
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
            if tries_left:
                time.sleep(wait)
                wait = min(2 * wait, 30)
        raise SilentError(
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
            raise RefusedError(self.base, message) from error
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return f"HTTP {error.code}: {message}"
        raise ValueError(f"{self.base}: HTTP {error.code}: {message}") from error


def _body(reply: http.client.HTTPResponse, timeout: float) -> bytes:
    """Return all of a reply; one that comes in drops must be there in time, too."""
    deadline, parts = time.monotonic() + timeout, []
    while part := reply.read1():
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError(f"only a part of the reply came in {timeout:g} seconds")
    if reply.length:  # what was announced and never came
        raise http.client.IncompleteRead(b"".join(parts), reply.length)
    return b"".join(parts)


def _pause(said: str) -> float:
    """Return the seconds that `Retry-After` asks to wait, as a number or a date, within reason."""
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE) if math.isfinite(seconds) else 0.0


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"a reply must be a JSON object; found {str(found)[:60]}")
    return found


def _named(message: str, asked: Collection[str]) -> set[str]:
    """Return the fields that a refusal names."""
    return {key for key in asked if re.search(rf"\b{key}\b", message)}


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

"""Where a judge's replies come from: a server, or (by `judge_local`) a model loaded here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from melior.models.endpoint import Endpoint, RefusedError, Server, SilentError
from melior.options import JudgeOptions, ModelOptions
from melior.rewards.judge import JudgeModel, Reply

SETTINGS: Final = {"temperature": 0, "max_tokens": 8, "top_logprobs": 20}
"""How a server is asked: the likeliest reply, with room for `Answer: A`, and the most
log-probabilities that every server gives."""


class ServedModel:
    """A model behind an OpenAI-compatible server.

    Thinking is switched off where the server knows the switch: the first token is the verdict.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    @property
    def identity(self) -> Mapping[str, Any]:
        """The server's address and the model's name there; what stands behind them may change."""
        return {"model": self.endpoint.model, "server": self.endpoint.base, **SETTINGS}

    def replies(self, questions: Iterable[str], labels: Sequence[str]) -> Iterator[Reply]:
        """Yield the replies in order, several of them in flight; any labels will do."""
        return self.endpoint.each(self._reply, questions)

    def _reply(self, question: str) -> Reply:
        needed = {
            "messages": [{"role": "user", "content": question}],
            "temperature": SETTINGS["temperature"],
            "max_tokens": SETTINGS["max_tokens"],
        }
        optional = {
            "logprobs": True,
            "top_logprobs": SETTINGS["top_logprobs"],
            "chat_template_kwargs": {"enable_thinking": False},
        }
        try:
            return read_reply(self.endpoint.chat(needed, optional))
        except RefusedError as error:  # of this question only, maybe: too long, or filtered
            return Reply(problem=f"refused: {error.message}")
        except SilentError as error:
            return Reply(problem=str(error), is_silence=True)


def read_reply(reply: Mapping[str, Any]) -> Reply:
    """Return what a chat completion says; a problem where it is none."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        said = (choice.get("logprobs") or {}).get("content") or [{}]
        first = {
            str(one["token"]): float(one["logprob"])
            for one in (said[0].get("top_logprobs") or [said[0]])
            if "token" in one
        }
        tokens = int((reply.get("usage") or {}).get("total_tokens") or 0)
        names = [str(reply[key]) for key in ("model", "system_fingerprint") if reply.get(key)]
        return Reply(str(text), first, tokens, " ".join(names))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Reply(problem="a reply without choices that can be read")


def load_judge_model(
    place: str, held: ModelOptions, options: JudgeOptions, *, max_tokens: int
) -> JudgeModel:
    """Return the judge that a place names: an address, a folder, or a model's name.

    Args:
        place: such as `http://localhost:8000`, `runs/a/model` or `smollm2`.
        held: how a model here is held; its name is not read.
        options: how a server is asked.
        max_tokens: computed at once here.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the server cannot be reached, or what is there cannot judge.
    """
    if is_address(place):
        server = Server(
            place,
            options.judge_model,
            api_key=os.environ[options.api_key_env] if options.api_key_env else "",
            concurrency=options.concurrency,
            timeout=options.timeout,
        )
        return ServedModel(Endpoint(server))
    from melior.models.names import check_named

    held = replace(held, model=place)
    check_named(held)  # a wrong name is said before anything heavy is imported
    from melior.models.loading import load
    from melior.rewards.judge_local import LocalModel

    return LocalModel(load(held, trainable=False), place, max_tokens=max_tokens)


def is_address(place: str) -> bool:
    """Say whether a place is a server's."""
    return place.startswith(("http://", "https://"))

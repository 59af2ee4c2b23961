"""Chat templates as text: how a prompt opens an answer, and where in the text the answer ends.

A template is a program, so what it does is found out by trying it on a known conversation. Text
that looks like a control token, in what people wrote, is broken up by `MARK` so that it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from melior.records import Turn, Turns

MARK = "\ufdd0"
"""A code point that no text may hold (a noncharacter); what it separates is tokenised apart."""

NAMED = ("auto", "plain", "chatml")
"""Words of `--chat-template` that name no file."""

QUESTION, ANSWER, RULES = "melior asks", "melior answers", "melior rules"

NO_END = (
    "{}: an answer needs an end token; found none in the chat template, and the tokenizer has"
    " neither an end-of-sequence nor a padding token; name one in its tokenizer_config.json"
    " (eos_token)"
)

Render = Callable[[Turns, bool], str]
"""Writes turns as text; when the second argument is true the assistant's turn is opened."""


@dataclass(frozen=True)
class Tokens:
    """The tokens that a tokenizer finds whole in a text, before it looks at words."""

    added: frozenset[str]
    special: frozenset[str]
    stops: frozenset[str]
    """Those that end an answer."""
    end: str
    """The tokenizer's own end token, or nothing."""


@runtime_checkable
class Writer(Protocol):
    """Writes a conversation as text."""

    name: str
    notes: tuple[str, ...]
    stops: frozenset[str]
    """Tokens that end an answer."""
    probe: str
    """What is written around a known prompt: another template, or another day, shows in it."""

    def guard(self, turns: Turns) -> Turns:
        """Break up what looks like a control token, where the text is not to be trusted."""

    def opened(self, history: Turns) -> str:
        """Return the text that inference feeds: the turns so far and the beginning of an answer."""

    def said(self, history: Turns, turn: Turn, opened: str) -> str:
        """Return what the model has to say after `opened`, its end token included."""


class PlainText:
    """No template: the prompt, then the answer, then the end token.

    A prompt is fed as it stands, control tokens in it included: it may have been rendered before.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.name = "plain"
        if not tokens.end:
            raise ValueError(NO_END.format(self.name))
        self.notes: tuple[str, ...] = ()
        self.stops = tokens.stops
        self.end = tokens.end
        self.probe = QUESTION
        self._control = pattern(tokens.special | tokens.stops)

    def guard(self, turns: Turns) -> Turns:
        """Break up control tokens in answers; one end token at the very end is the real one."""
        return tuple(
            broken(replace(turn, content=turn.content.removesuffix(self.end)), self._control)
            if turn.role == "assistant"
            else turn
            for turn in turns
        )

    def opened(self, history: Turns) -> str:
        """Return the prompt's text.

        Raises:
            ValueError: the prompt has several turns or a system turn, which plain text cannot tell
                apart.
        """
        roles = [turn.role for turn in history]
        if roles != ["user"]:
            raise ValueError(
                "plain text, without a chat template, needs a prompt of one user turn and an answer"
                f" of one turn; found turns of {', '.join(roles) or 'nobody'}; give"
                " --chat-template chatml, or a template file"
            )
        return history[0].content

    def said(self, history: Turns, turn: Turn, opened: str) -> str:
        """Return the answer's text and the end token."""
        _check_calls(turn, turn.content, self.name)
        return turn.content + self.end


class Template:
    """A Jinja chat template, as inference applies it."""

    def __init__(self, name: str, source: str, render: Render, tokens: Tokens) -> None:
        self.name = name
        self._render = render
        asked, answered = Turn("user", QUESTION), Turn("assistant", ANSWER)
        opening = self.opened((asked,))
        whole = self._write((asked, answered), opens=False)
        before, found, after = whole.rpartition(ANSWER)
        if not found:
            raise ValueError(f"{name}: the chat template must write what the assistant says")
        own_end = pattern(tokens.added).search(after)
        self.stops = tokens.stops | ({own_end.group()} if own_end else set())
        self._tail = "" if own_end else after
        self._ending = own_end.group() if own_end else self._next_stop() or tokens.end
        if not self._ending:
            raise ValueError(NO_END.format(name))
        # Whatever stands around a question could forge a turn, were it read out of a question.
        around = set(pattern(tokens.added).findall(self._write((asked,), opens=False)))
        self._stop = pattern(self.stops)
        self._control = pattern(tokens.special | self.stops | around)
        self.probe = source + opening + whole
        lead = before[len(opening) :] if before.startswith(opening) else None
        self.notes = tuple(self._notes(source, tokens, own_end is not None, lead))

    def guard(self, turns: Turns) -> Turns:
        """Break up control tokens in whatever the turns say."""
        return tuple(broken(turn, self._control) for turn in turns)

    def opened(self, history: Turns) -> str:
        """Return the conversation so far with the assistant's turn opened."""
        return self._write(history, opens=True)

    def said(self, history: Turns, turn: Turn, opened: str) -> str:
        """Return what the template writes after `opened`, up to the first end token.

        Raises:
            ValueError: the answer is not written as a continuation, or not as it was given.
        """
        whole = self._write((*history, turn), opens=False)
        if not whole.startswith(opened):
            raise ValueError(
                f"{self.name}: the chat template must write an answer as the continuation of its"
                f" own generation prompt; found a prompt that ends in {opened[-40:]!r} where the"
                f" answered conversation has {whole[max(len(opened) - 40, 0) :][:60]!r}; give"
                " --chat-template FILE with a template that writes both alike"
            )
        rest = whole[len(opened) :]
        content = turn.content.strip()
        at = rest.find(content)
        end = self._stop.search(rest, at + len(content) if at >= 0 else 0)
        said = rest[: end.end()] if end else rest.removesuffix(self._tail) + self._ending
        if content not in said:
            self._check_whole(content, self._control.split(opened)[-1] + said)
        _check_calls(turn, said, self.name)
        return said

    def _check_whole(self, content: str, written: str) -> None:
        """Refuse a template that leaves out words of an answer; it may arrange white space."""
        if "".join(content.split()) not in "".join(written.split()):
            raise ValueError(
                f"{self.name}: the chat template must write an answer as it was given; found"
                f" {_shown(written)} for {_shown(content)}; give --chat-template FILE with a"
                " template that keeps it whole"
            )

    def _write(self, turns: Turns, *, opens: bool) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            return self._render(turns, opens)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{self.name}:{error.lineno}: a chat template must be Jinja; found: {error.message}"
            ) from error
        except (TemplateError, TypeError, KeyError, AttributeError, IndexError) as error:
            roles = [turn.role for turn in turns]
            way_out = (
                "put the system turn's text into the first user turn, or give"
                if "system" in roles
                else "give"
            )
            raise ValueError(
                f"{self.name}: the chat template refuses turns of {', '.join(roles) or 'nobody'}:"
                f" {error}; {way_out} --chat-template FILE with a template that takes them"
            ) from error

    def _next_stop(self) -> str:
        """Return how the next turn ends an answer, where the answer has no end of its own."""
        asked = Turn("user", QUESTION)
        try:
            text = self._write((asked, Turn("assistant", ANSWER), asked), opens=False)
        except ValueError:
            return ""
        after = text.rpartition(ANSWER)[2]
        stop = pattern(self.stops).search(after)
        return after[: stop.end()] if stop else ""

    def _notes(self, source: str, tokens: Tokens, has_end: bool, lead: str | None) -> Iterable[str]:
        if not has_end:
            yield f"the template writes no token at the end of an answer: {self._ending!r} is added"
        elif tokens.end and self._ending != tokens.end:
            yield f"answers end with the template's {self._ending!r}; {tokens.end!r} stops them too"
        if lead is None:
            yield "the template writes answers otherwise than its generation prompt begins them"
        elif lead.strip():
            yield f"the template writes {lead!r} before each answer: it counts as said by the model"
        try:
            if RULES not in self.opened((Turn("system", RULES), Turn("user", QUESTION))):
                yield "the template leaves system turns out"
        except ValueError:
            yield "the template refuses system turns"
        if "strftime_now" in source:
            yield "the template writes today's date: the same prompt differs from day to day"


def check_template(name: str) -> None:
    """Check that a chat template is a known word or a file; no tokenizer is needed for that.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if name not in NAMED and not Path(name).is_file():
        raise FileNotFoundError(
            f"{name}: a chat template must be {', '.join(NAMED)} or a file; found no such file"
        )


def pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return an expression that finds any of the words, the longest first."""
    ordered = sorted((word for word in words if word.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")


def broken(turn: Turn, control: re.Pattern[str]) -> Turn:
    """Return the turn with a MARK in everything that looks like a control token."""
    content = _broken_text(turn.content, control)
    extra = {key: _broken(value, control) for key, value in turn.extra.items()}
    is_clean = content is turn.content and extra == turn.extra
    return turn if is_clean else replace(turn, content=content, extra=extra)


def _broken(value: object, control: re.Pattern[str]) -> object:
    if isinstance(value, str):
        return _broken_text(value, control)
    if isinstance(value, Mapping):
        return {key: _broken(item, control) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(item, control) for item in value]
    return value


def _broken_text(text: str, control: re.Pattern[str]) -> str:
    if MARK in text:
        raise ValueError("a text must hold characters only; found U+FDD0, which is none")
    at = 0
    while match := control.search(text, at):
        if len(match.group()) == 1:
            raise ValueError(
                f"{match.group()!r} is a control token of the tokenizer, and cannot be told from"
                f" the same character in a text; found it in {_shown(text)}"
            )
        at = match.start()
        cut = at + 1
        text = text[:cut] + MARK + text[cut:]
    return text


def _check_calls(turn: Turn, said: str, name: str) -> None:
    """Refuse a template that leaves out the tool calls of an answer."""
    for call in turn.extra.get("tool_calls") or ():
        function = call.get("function", call).get("name", "")
        if function not in said:
            raise ValueError(
                f"{name}: the chat template must write the tool calls of an answer; found nothing"
                f" of {function!r}; give --chat-template FILE with a template for tools"
            )


def _shown(said: str) -> str:
    return repr(said if len(said) <= 80 else said[:60] + " ... " + said[-15:]).replace(MARK, "")

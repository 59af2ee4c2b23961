"""`melior data show`: rows as the tokens that are trained, with the mask of what the model said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from melior.checks import in_range
from melior.options import ModelOptions
from melior.records import Group, Pair, Turns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from melior.data.chat import ChatFormat, Encoded

_SCORED = ("black on green", "black on bright_green")
"""By turns, so that one token ends where the next begins."""
_SCORED_CONTROL = "bold black on yellow"
_FED = "dim"
_FED_CONTROL = "bold magenta"


@dataclass(frozen=True)
class Config:
    """Print rows token by token: what is fed, what is scored, where the end token stands."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or `datasets` names; each `name[:split[:rows]][*weight]`."""
    model: str
    """The model whose tokenizer and template to use: a folder, a name, or `smollm2`."""
    chat_template: str = "auto"
    """`auto`, `plain`, `chatml`, or a file."""
    rows: int = 3
    """How many rows to print."""
    start: int = 1
    """The first row to print, counted from 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.files:
            raise ValueError("data show: needs a file; found none; give one, as in pairs.jsonl")
        in_range("rows", self.rows, 1)
        in_range("start", self.start, 1)


def run(config: Config) -> None:
    """Print the rows."""
    from rich.console import Console

    from melior.data.files import read_any
    from melior.models.names import check_named

    options = ModelOptions(config.model, chat_template=config.chat_template)
    check_named(options)
    first = config.start - 1
    records = list(itertools.islice(read_any(config.files), first, first + config.rows))
    if not records:
        raise ValueError(
            f"{' '.join(config.files)}: needs at least {config.start} rows; found fewer; "
            "give a smaller --start"
        )
    from melior.models.loading import load_chat

    show(records, load_chat(options), Console(highlight=False))


def show(records: Sequence[Pair | Group], chat: ChatFormat, console: Console) -> None:
    """Print records on a console: in colours, or with marks where it has none."""
    has_colours = console.color_system is not None and not console.no_color
    painter = _Painter(chat, has_colours=has_colours)
    for text in itertools.chain(painter.head(), *map(painter.record, records), painter.foot()):
        console.print(text, soft_wrap=True)


class _Painter:
    """Writes tokens as text in which one sees what each of them is."""

    def __init__(self, chat: ChatFormat, *, has_colours: bool) -> None:
        self.chat = chat
        self.has_colours = has_colours
        self.control = frozenset(chat.tokenizer.added_tokens_decoder) | chat.stop_token_ids

    def head(self) -> Iterator[Text]:
        """Name the template and explain the marks."""
        stops = self.chat.tokenizer.convert_ids_to_tokens(sorted(self.chat.stop_token_ids))
        yield _line(f"template: {self.chat.name} ({self.chat.hash[:12]}); ends: {' '.join(stops)}")
        for note in self.chat.notes:
            yield _line(f"note: {note}")
        legend = _line("legend: ")
        for name, is_scored, is_control in (
            ("fed", False, False),
            ("fed control token", False, True),
            ("scored", True, False),
            ("scored control token", True, True),
        ):
            legend.append_text(self._token(name, 0, is_scored=is_scored, is_control=is_control))
            legend.append("  ")
        yield legend

    def record(self, record: Pair | Group) -> Iterator[Text]:
        """Write the prompt once, and each answer as it goes on from there."""
        try:
            prompt = self.chat.prompt_tokens(record.prompt)
        except ValueError as error:
            raise ValueError(f"{record.origin}: {error}") from error
        yield _line("")
        yield _line(f"{record.origin} prompt: {len(prompt)} tokens fed", "bold")
        yield self._tokens(prompt, [False] * len(prompt))
        answers = _answers(record)
        rows = self.chat.encode_many(
            [record.prompt] * len(answers),
            [response for _, response in answers],
            origins=[record.origin] * len(answers),
        )
        for (name, _), row in zip(answers, rows, strict=True):
            yield _line(f"{record.origin} {name}: {self._count(row)}", "bold")
            yield self._tokens(row.tokens[row.n_prompt :], row.mask[row.n_prompt :])

    def foot(self) -> Iterator[Text]:
        """Say what was found on the way."""
        if self.chat.n_control_texts:
            yield _line(
                f"note: {self.chat.n_control_texts} answers or their prompts hold the text of"
                " control tokens, which stays text; prompts that were rendered before need"
                " --chat-template plain"
            )
        if self.chat.n_boundary_merges:
            yield _line(
                f"note: {self.chat.n_boundary_merges} answers are tokenised apart from their"
                " prompts, whose last token would swallow their beginning"
            )

    def _count(self, row: Encoded) -> str:
        scored = [t for t, is_said in zip(row.tokens, row.mask, strict=True) if is_said]
        ends = [token for token in scored if token in self.chat.stop_token_ids]
        (name,) = self.chat.tokenizer.convert_ids_to_tokens(ends[-1:])
        times = "once" if len(ends) == 1 else f"{len(ends)} times, after each turn"
        between = len(row.tokens) - row.n_prompt - len(scored)
        fed = f", {between} tokens of others fed" if between else ""
        return f"{len(scored)} tokens scored{fed}; the end token {name} is scored {times}"

    def _tokens(self, tokens: Sequence[int], mask: Sequence[bool]) -> Text:
        text = _line("")
        for index, (token, piece) in enumerate(zip(tokens, self.chat.pieces(tokens), strict=True)):
            is_control = token in self.control
            text.append_text(
                self._token(piece, index, is_scored=mask[index], is_control=is_control)
            )
        return text

    def _token(self, piece: str, index: int, *, is_scored: bool, is_control: bool) -> Text:
        from rich.text import Text

        shown = "".join(map(_visible, piece))
        if not self.has_colours:
            shown = f"{{{shown}}}" if is_control else shown
            return Text(f"[{shown}]" if is_scored else shown)
        scored = _SCORED_CONTROL if is_control else _SCORED[index % 2]
        return Text(shown, scored if is_scored else _FED_CONTROL if is_control else _FED)


def _answers(record: Pair | Group) -> list[tuple[str, Turns]]:
    if isinstance(record, Pair):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    return [
        (f"candidate {i}" + ("" if one.score is None else f" (score {one.score:g})"), one.response)
        for i, one in enumerate(record.candidates, start=1)
    ]


def _line(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style)


def _visible(character: str) -> str:
    """Show what would move the cursor, or speak to the terminal."""
    if character == "\n":
        return "\\n\n"
    return character if character.isprintable() else ascii(character)[1:-1]

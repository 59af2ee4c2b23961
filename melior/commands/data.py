"""`melior data check`, `stats`, `convert`: what a file holds, before anything is trained on it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from melior.checks import in_range
from melior.options import ModelOptions
from melior.records import Group, Pair, Turns, text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from melior.data.chat import ChatFormat
    from melior.data.lint import Finding

Files = tyro.conf.Positional[tuple[str, ...]]
Model = Annotated[str, tyro.conf.arg(aliases=["--model-name-or-path"])]
HeldOut = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--eval-data"])]

_BATCH = 64
_SUBSETS = ("subset", "source", "category", "dataset", "task_name", "split")
_COLOURS = {"error": "bold red", "warning": "yellow", "note": ""}


@dataclass(frozen=True)
class CheckConfig:
    """Look for what is wrong with preferences; the exit code is 1 when there are errors."""

    files: Files
    """Files, folders or `datasets` names; each `name[:split[:rows]][*weight]`."""
    model: Model = ""
    """Count tokens too, with the tokenizer and template of this model."""
    chat_template: str = "auto"
    """`auto`, `plain`, `chatml`, or a file."""
    held_out: HeldOut = ()
    """Data held out for judging, whose prompts must not be trained on."""
    max_length: int = 1024
    """Tokens of prompt and answer together; counted with --model."""
    max_long_share: float = 0.05
    """Share of rows that may be too long before this is an error."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _need_a_file(self.files)
        in_range("max_length", self.max_length, 2)
        in_range("max_long_share", self.max_long_share, 0, 1)


@dataclass(frozen=True)
class StatsConfig:
    """Show how much there is, how long, and of what kind."""

    files: Files
    """Files, folders or `datasets` names; each `name[:split[:rows]][*weight]`."""
    model: Model = ""
    """Count tokens too, with the tokenizer and template of this model."""
    chat_template: str = "auto"
    """`auto`, `plain`, `chatml`, or a file."""

    def __post_init__(self) -> None:
        """Check that there is a file."""
        _need_a_file(self.files)


@dataclass(frozen=True)
class ConvertConfig:
    """Write the rows of other tools as melior's JSON lines, or answers as benchmarks want them."""

    source: tyro.conf.Positional[str]
    """A file, folder or `datasets` name; `name[:split[:rows]][*weight]`."""
    out: tyro.conf.Positional[str]
    """A file in .jsonl, .jsonl.gz or .jsonl.zst, or `-`; a .json list for AlpacaEval."""
    family: Annotated[str, tyro.conf.arg(aliases=["--from"])] = "auto"
    """The tool that wrote the rows, such as trl, alpaca, sharegpt, swift or ultrafeedback."""
    to: Literal["jsonl", "alpaca-eval", "arena-hard", "mt-bench", "next-turn"] = "jsonl"
    """Write answers, or, of two answers that a judge has compared, judgments, as that benchmark's
    files; `next-turn` writes the prompts of MT-Bench's second turn."""
    against: str = ""
    """A baseline's answers to the same prompts: each is put before the answer, to be judged."""
    generator: str = ""
    """Who answered, where the rows do not say."""
    overwrite: bool = False
    """Replace the file where it is there already."""

    def __post_init__(self) -> None:
        """Check the output's name."""
        wanted = {"alpaca-eval": ".json", "arena-hard": ".jsonl", "mt-bench": ".jsonl"}.get(self.to)
        if wanted and Path(self.out).suffix != wanted:
            raise ValueError(f"out: a name in {wanted} is needed for {self.to}; found {self.out}")


def check(config: CheckConfig) -> None:
    """Print the findings and, with a model, the truncation table.

    Raises:
        SystemExit: with code 1, when there are errors.
    """
    from melior.data.files import as_group, as_pair, read_any, read_prompts
    from melior.data.lint import lint_groups, lint_pairs, worst_first

    console, seen = _console(), _Seen(_chat(config))
    first, records = _peek(seen.watch(read_any(config.files)))
    held_out = read_prompts(config.held_out) if config.held_out else ()
    if isinstance(first, Group):
        findings = lint_groups(map(as_group, records), held_out)
    else:
        findings = lint_pairs(map(as_pair, records), held_out)
    findings = worst_first(findings + seen.findings(config.max_length, config.max_long_share))
    console.print(_title(config.files, seen), soft_wrap=True, markup=False)
    console.print(_finding_table(findings))
    if seen.chat:
        console.print(_truncation_table(seen.totals, config.max_length))
    levels = Counter(finding.level for finding in findings)
    errors, warnings = levels["error"], levels["warning"]
    console.print(f"errors: {errors}, warnings: {warnings}", style="red" if errors else "green")
    if errors:
        raise SystemExit(1)


def stats(config: StatsConfig) -> None:
    """Print rows, lengths, turns, subsets, and how often the longer answer is chosen."""
    from melior.data.files import content_hash, read_any
    from melior.data.lint import length_bias

    console, seen = _console(), _Seen(_chat(config))
    for record in seen.watch(read_any(config.files)):
        seen.describe(record)
    console.print(_title(config.files, seen), soft_wrap=True, markup=False)
    if "-" not in config.files:
        console.print(f"sha256 {content_hash(config.files)}", style="dim")
    if not seen.rows:
        return
    console.print(_number_table(seen.numbers))
    console.print(_count_table(seen.counts, seen.rows))
    for finding in length_bias(seen.longer[1], seen.longer[-1]):
        console.print(f"{finding.share:.1%}: {finding.text}")


def convert(config: ConvertConfig) -> None:
    """Write pairs or groups, whichever the rows are; or answers for a benchmark."""
    from melior.data.answers import KINDS, write
    from melior.data.files import as_group, read_any, write_records

    if config.out != "-" and Path(config.out).exists() and not config.overwrite:
        raise FileExistsError(f"{config.out}: is there already; give --overwrite to replace it")
    seen = _Seen(None)
    first, records = _peek(seen.watch(read_any(config.source, family=config.family)))
    if first is None:
        raise ValueError(f"{config.source}: needs at least one row; found none")
    if config.against or config.to != "jsonl":
        records = _answers_of(map(as_group, records), config)
    if config.to in KINDS:
        write(config.to, Path(config.out), map(as_group, records))
    else:
        write_records(config.out, records)
    if config.out != "-":
        _console().print(
            f"{_title([config.source], seen)} -> {config.out}", markup=False, soft_wrap=True
        )


def _answers_of(groups: Iterable[Group], config: ConvertConfig) -> Iterator[Group]:
    """Return answers with who gave them, beside a baseline's, or with what is asked next."""
    from melior.data import answers
    from melior.data.files import read_groups

    found = answers.named(groups, config.generator)
    if config.against:
        found = answers.against(found, answers.named(read_groups(config.against), "baseline"))
    return answers.next_turn(found) if config.to == "next-turn" else found


@dataclass
class _Seen:
    """What was counted while records passed by."""

    chat: ChatFormat | None
    kinds: Counter[str] = field(default_factory=Counter)
    origins: list[str] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    """Tokens of prompt and the longest answer, row by row."""
    refused: list[str] = field(default_factory=list)
    reason: str = ""
    numbers: dict[str, list[float]] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    longer: Counter[int] = field(default_factory=Counter)
    """1: the chosen answer is the longer one; -1: the rejected."""

    @property
    def rows(self) -> int:
        """How many records passed."""
        return self.kinds.total()

    def watch(self, records: Iterable[Pair | Group]) -> Iterator[Pair | Group]:
        """Hand records on, and count their tokens."""
        for record in records:
            self.kinds[_kind(record)] += 1
            if self.chat:
                self._count_tokens(self.chat, record)
            yield record

    def _count_tokens(self, chat: ChatFormat, record: Pair | Group) -> None:
        answers = _answers(record)
        try:
            prompts = [record.prompt for _ in answers]
            said = [answer for _, answer in answers]
            encoded = chat.encode_many(prompts, said, origins=[record.origin] * len(said))
            n_prompt = (
                len(chat.prompt_tokens(record.prompt)) if not encoded else encoded[0].n_prompt
            )
        except ValueError as error:
            self.refused.append(record.origin)
            self.reason = self.reason or str(error)
            return
        self.origins.append(record.origin)
        self.totals.append(max([n_prompt, *(len(one.tokens) for one in encoded)]))
        self._put("prompt, tokens", n_prompt)
        for (name, _), one in zip(answers, encoded, strict=True):
            self._put(f"{name}, tokens", len(one.tokens) - n_prompt)

    def describe(self, record: Pair | Group) -> None:
        """Count what the records are made of."""
        self._put("prompt, characters", len(text(record.prompt)))
        self._put("prompt, turns", len(record.prompt))
        for name, answer in _answers(record):
            self._put(f"{name}, characters", len(text(answer)))
        if isinstance(record, Pair):
            long, short = len(text(record.chosen)), len(text(record.rejected))
            self.longer[(long > short) - (long < short)] += 1
            if record.margin:
                self._put("margin", record.margin)
        else:
            self._put("candidates", len(record.candidates))
        for name, score in _scores(record):
            self._put(name, score)
        everything = [record.prompt, *(answer for _, answer in _answers(record))]
        for role in {turn.role for turns in everything for turn in turns}:
            self.counts["role", role] += 1
        for name in _SUBSETS:
            if isinstance(value := record.facts.get(name), str | int):
                self.counts[name, str(value)] += 1

    def findings(self, max_length: int, max_long_share: float) -> list[Finding]:
        """Return what the tokens tell."""
        from melior.data.lint import EXAMPLES, Finding, lint_lengths

        found = lint_lengths(
            zip(self.origins, self.totals, strict=True),
            max_length=max_length,
            max_long_share=max_long_share,
        )
        if self.refused:
            count, said = len(self.refused), f"the chat template refuses it: {self.reason}"
            where = tuple(self.refused[:EXAMPLES])
            found.append(Finding("error", "refused", count, count / self.rows, said, where))
        return found

    def _put(self, name: str, value: float) -> None:
        self.numbers.setdefault(name, []).append(value)


def _answers(record: Pair | Group) -> list[tuple[str, Turns]]:
    if isinstance(record, Pair):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    return [("answer", candidate.response) for candidate in record.candidates]


def _scores(record: Pair | Group) -> Iterator[tuple[str, float]]:
    for candidate in record.candidates if isinstance(record, Group) else ():
        if candidate.score is not None:
            yield "score", candidate.score
        yield from candidate.aspects.items()


def _kind(record: Pair | Group) -> str:
    if isinstance(record, Pair):
        return "pairs"
    return "groups" if record.candidates else "prompts"


def _need_a_file(files: Sequence[str]) -> None:
    if not files:
        raise ValueError("needs at least one file, folder or `datasets` name; found none")


def _chat(config: CheckConfig | StatsConfig) -> ChatFormat | None:
    if not config.model:
        return None
    from melior.models.names import check_named

    options = ModelOptions(config.model, chat_template=config.chat_template)
    check_named(options)
    from melior.models.loading import load_chat

    return load_chat(options)


def _peek(
    records: Iterator[Pair | Group],
) -> tuple[Pair | Group | None, Iterator[Pair | Group]]:
    first = next(records, None)
    return first, records if first is None else itertools.chain([first], records)


def _console() -> Console:
    """Return a console that does not fold tables at 80 columns when its output goes to a file."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _title(files: Sequence[str], seen: _Seen) -> str:
    counted = (f"{n:,} {kind[: -1 if n == 1 else None]}" for kind, n in seen.kinds.items())
    kinds = ", ".join(counted) or "no rows"
    return f"{' '.join(files)}: {kinds}"


def _finding_table(findings: Sequence[Finding]) -> Table:
    from rich.text import Text

    table = _table("", "what", "rows", "share", "found", "where")
    for one in findings:
        row = one.level, one.code, f"{one.count:,}", f"{one.share:.1%}", one.text
        table.add_row(*map(Text, row), Text(_where(one.examples)), style=_COLOURS[one.level])
    return table


def _where(origins: Sequence[str]) -> str:
    """Write origins in short: `pairs.jsonl:12, 40, 77`."""
    lines: dict[str, list[str]] = {}
    for origin in origins:
        file, _, line = origin.rpartition(":")
        lines.setdefault(Path(file).name, []).append(line)
    return " ".join(f"{file}:{', '.join(found)}" for file, found in lines.items())


def _truncation_table(lengths: Sequence[int], max_length: int) -> Table:
    from melior.data.lint import MAXIMA, truncation_table

    table = _table("max length", "longer rows", "share")
    for one in truncation_table(lengths, sorted({*MAXIMA, max_length})):
        style = "bold" if one.max_length == max_length else ""
        table.add_row(f"{one.max_length:,}", f"{one.rows:,}", f"{one.share:.1%}", style=style)
    return table


def _number_table(numbers: dict[str, list[float]]) -> Table:
    table = _table("", "least", "5 %", "half", "95 %", "most", "")
    for name, values in numbers.items():
        cuts = statistics.quantiles(values, n=20, method="inclusive") if len(values) > 1 else values
        shown = [min(values), cuts[0], statistics.median(values), cuts[-1], max(values)]
        table.add_row(name, *(f"{value:,.4g}" for value in shown), histogram(values))
    return table


def _count_table(counts: Counter[tuple[str, str]], rows: int) -> Table:
    """Show roles and subsets, of each the ten that come most often."""
    from rich.text import Text

    table = _table("", "", "rows", "share")
    for name in dict.fromkeys(name for name, _ in counts):
        own = Counter({value: count for (key, value), count in counts.items() if key == name})
        for value, count in own.most_common(10):
            table.add_row(name, Text(value), f"{count:,}", f"{count / rows:.1%}")
        if len(own) > 10:
            table.add_row(name, f"({len(own) - 10} more)", "", "")
    return table


def histogram(values: Sequence[float], bins: int = 20) -> str:
    """Draw how often values of each size come, as blocks; sizes above 0 on a logarithmic scale."""
    scaled = [math.log1p(value) for value in values] if min(values) >= 0 else values
    low, width = min(scaled), (max(scaled) - min(scaled)) / bins
    counts = Counter(min(int((value - low) / width), bins - 1) if width else 0 for value in scaled)
    most = max(counts.values())
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * counts[i] / most)] for i in range(bins))


def _table(*headers: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        is_number = header in ("rows", "share", "least", "5 %", "half", "95 %", "most")
        table.add_column(header, justify="right" if is_number else "left")
    return table

"""`melior sample`: draw k answers to each prompt, from a model here or on a server."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from melior.checks import in_range, known_device
from melior.options import ModelOptions, Sampling, WorkerOptions
from melior.records import Group, Metrics

if TYPE_CHECKING:
    import torch

    from melior.workers.work import Chunk

CHUNK = 512
"""Answers, about, that a worker draws at a time: several batches, of which only the last drains."""


@dataclass(frozen=True)
class Config:
    """Draw candidates for prompts; groups go out as JSON lines."""

    prompts: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data"])]
    """Files with a `prompt` in each row, or whole groups or pairs, of which the prompt is taken."""
    model: Annotated[str, tyro.conf.arg(aliases=["--model-name-or-path"])] = ""
    """A folder, a name such as `org/model`, or `smollm2`; the name at the server where one is
    given (empty where it serves one model)."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))
    goal: float | None = None
    """Ask for answers of this quality, as `melior_goal.json` in the model's folder says how; what
    is written holds the prompts without it."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """A .jsonl file, or `-` for standard output."""
    resume: bool = False
    """Go on after the prompts that the file has answers to."""
    seed: int = 42
    max_tokens: int = 32768
    """Answers times tokens held at once; bounds the memory."""
    server: str = ""
    """Ask an OpenAI-compatible server at this address, such as http://localhost:8000."""
    api_key_env: str = ""
    """Environment variable that holds the server's key."""
    concurrency: int = 8
    """Prompts in flight at the server."""
    revision: Annotated[str, tyro.conf.arg(aliases=["--model-revision"])] = "main"
    """Branch, tag or commit of a model that is fetched by name."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    chat_template: str = "auto"
    """`auto`, `plain`, `chatml`, or a file."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if not self.model and not self.server:
            raise ValueError("--model must name what answers (or give --server); found neither")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(
                f"--api-key-env: {self.api_key_env} must hold the server's key; found nothing in it"
            )
        if self.resume and self.out == "-":
            raise ValueError("--resume needs the file to go on with; found no --out")
        if self.out != "-" and Path(self.out).suffix != ".jsonl":
            raise ValueError(f"--out must end in .jsonl, or be -; found {self.out!r}")
        if not Path(self.out).parent.is_dir():
            raise ValueError(f"--out: the folder of {self.out} does not exist; make it")
        in_range("seed", self.seed, 0, 2**63 - 1)
        in_range("max_tokens", self.max_tokens, 16)
        in_range("concurrency", self.concurrency, 1)
        known_device(self.device)
        self.workers.check(self.device)
        if self.workers.is_used and self.server:
            raise ValueError(
                "--processes and --cluster hold models of their own; found --server, which answers"
                " --concurrency prompts at once"
            )


def run(config: Config) -> Metrics:
    """Sample and write each group as soon as it is there."""
    from melior.data.growing import n_whole_rows, opened
    from melior.models.names import check_named
    from melior.training.hooks import counted

    if not config.server:
        check_named(_model(config))
    prompts = _prompts(config)
    total = sum(1 for _ in prompts)  # every row is checked before anything is loaded
    if not total:
        raise ValueError(f"{', '.join(config.prompts)}: needs at least one prompt; found none")
    start = _answered(config, prompts)
    plain, twins = iter(prompts), iter(prompts)
    asked = _under_goal(config, twins)
    tally = _Tally()
    try:
        with (
            opened(config.out, start=start) as put,
            counted("prompts answered", total, start=start) as show,
        ):
            drawn = _source(config, asked, start) if start < total else ()
            for given, group in zip(islice(plain, start, None), drawn, strict=True):
                put(replace(group, prompt=given.prompt))
                tally.add(group)
                show(start + tally.groups, tally.cost())
    except (KeyboardInterrupt, ChildProcessError) as error:
        is_lost = isinstance(error, ChildProcessError)
        why = f"{error}; " if is_lost else ""
        is_file = config.out != "-"
        n = n_whole_rows(Path(config.out)) if is_file else tally.groups
        way = "; --resume goes on" if is_file else ""
        told = f"{why}{n} of {total} prompts are done{way}"
        raise type(error)(told) from error  # the kind of interrupt says how it ends
    print(tally.sentence(config.out), file=sys.stderr)
    return tally.metrics()


@dataclass(frozen=True)
class _InFiles:
    """Prompts that are read again whenever somebody goes through them; none is held."""

    sources: tuple[str, ...]
    seed: int

    def __iter__(self) -> Iterator[Group]:
        from melior.data.files import read_prompts

        return read_prompts(list(self.sources), seed=self.seed)


def _prompts(config: Config) -> Iterable[Group]:
    """Return the prompts: in memory, and in their files where there may be more than it holds."""
    from melior.data.files import parse_source

    prompts = _InFiles(config.prompts, config.seed)
    paths = [Path(parse_source(one).path).expanduser() for one in config.prompts]
    can_read_again = all(path.is_file() or path.is_dir() for path in paths)
    return prompts if config.workers.is_used and can_read_again else list(prompts)


def _under_goal(config: Config, prompts: Iterator[Group]) -> Iterator[Group]:
    """Return the prompts as they are asked: under the goal, where one is given."""
    if config.goal is None:
        return prompts
    from melior.stages.ratings.relabel import beyond, read_goals

    goals = read_goals(config.model)
    goal = goals.level(config.goal)
    if remark := beyond(goals, config.goal):
        print(remark, file=sys.stderr)
    fact = {"goal": config.goal}
    return (
        replace(one, prompt=goals.ask(one.prompt, goal), facts={**one.facts, **fact})
        for one in prompts
    )


def _source(config: Config, prompts: Iterator[Group], start: int) -> Iterator[Group]:
    """Return the prompts behind the first `start`, answered."""
    if config.workers.is_used:
        return _by_workers(config, prompts, start)
    if config.server:
        from melior.models.endpoint import Server
        from melior.sampling.server import server_candidates

        server = Server(
            config.server,
            config.model,
            api_key=os.environ[config.api_key_env] if config.api_key_env else "",
            concurrency=config.concurrency,
        )
        return server_candidates(server, prompts, config.sampling, seed=config.seed, start=start)
    from melior import ops
    from melior.models.loading import load_to_answer
    from melior.sampling.candidates import candidates

    return candidates(
        load_to_answer(_model(config)),
        prompts,
        config.sampling,
        generator=ops.generator(config.seed),
        start=start,
        max_tokens=config.max_tokens,
    )


def _by_workers(config: Config, prompts: Iterator[Group], start: int) -> Iterator[Group]:
    """Deal the prompts out in whole chunks, on whose company the rounding of an answer depends."""
    from melior.workers.deal import dealt
    from melior.workers.work import chunked

    size = max(1, CHUNK // config.sampling.k)
    again = start % size  # answered before, in a chunk that was not ended
    first = start - again
    chunks = chunked(islice(prompts, first, None), size, first=first)
    with dealt(config.workers, partial(_Drawing, config), chunks, device=config.device) as deal:
        yield from islice(deal.groups(), again, None)


class _Drawing:
    """What a worker does: draw, from a model that it holds, as if it had answered all before."""

    def __init__(self, config: Config) -> None:
        from melior.models.loading import load_to_answer

        self.config = config
        self.about: dict[str, Any] = {}
        self.model = load_to_answer(_model(config))
        self.place, self.generator = self._beginning()

    def groups(self, chunk: Chunk) -> Iterator[Group]:
        """Answer the prompts of a chunk."""
        from melior.sampling.candidates import candidates, pass_over

        if chunk.first < self.place:  # another worker has lost it
            self.place, self.generator = self._beginning()
        sampling, generator = self.config.sampling, self.generator
        pass_over(chunk.first - self.place, sampling, generator=generator)
        self.place = chunk.first + len(chunk.groups)
        tokens = self.config.max_tokens
        return candidates(
            self.model, chunk.groups, sampling, generator=generator, max_tokens=tokens
        )

    def remarks(self) -> list[str]:
        """Say nothing: what was drawn says all."""
        return []

    def costs(self) -> dict[str, int]:
        """Count nothing besides."""
        return {}

    def _beginning(self) -> tuple[int, torch.Generator]:
        from melior import ops

        return 0, ops.generator(self.config.seed)


def _model(config: Config) -> ModelOptions:
    return ModelOptions(
        model=config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
    )


def _answered(config: Config, prompts: Iterable[Group]) -> int:
    """Return how many first prompts the file has answers to."""
    from melior.data.files import turn_rows
    from melior.data.growing import rows_so_far

    rest, number = iter(prompts), 0
    for number, row in enumerate(rows_so_far(config.out, resume=config.resume), 1):
        group = next(rest, None)
        n = len(row.get("candidates") or ())
        is_other_goal = config.goal is not None and row.get("goal") != config.goal
        is_other = group is None or row.get("prompt") != turn_rows(group.prompt) or is_other_goal
        if is_other or n != config.sampling.k:
            wanted = f"{config.sampling.k} answers to {group.origin}" if group else "no more rows"
            wanted += f" under the goal {config.goal:g}" if is_other_goal else ""
            raise ValueError(
                f"{config.out}:{number}: --resume needs {wanted}; found {n} answers to "
                f"{str(row.get('prompt'))[:80]}; give the prompts and k of that run, or another"
                " --out"
            )
    return number


@dataclass
class _Tally:
    """Counts of what was drawn."""

    groups: int = 0
    answers: int = 0
    tokens: int = 0
    unfinished: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, group: Group) -> None:
        facts = [one.facts for one in group.candidates]
        self.groups += 1
        self.answers += len(facts)
        self.tokens += sum(fact.get("n_tokens", 0) for fact in facts)
        self.unfinished += sum(not fact["is_finished"] for fact in facts)

    def cost(self) -> str:
        """Say how fast it is."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        tokens = f", {self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        return f"{self.answers / seconds:.1f} answers/s{tokens}"

    def metrics(self) -> Metrics:
        return {
            "sample/groups": self.groups,
            "sample/answers": self.answers,
            "sample/tokens": self.tokens,
            "sample/share_unfinished": self.unfinished / max(self.answers, 1),
        }

    def sentence(self, out: str) -> str:
        where = "" if out == "-" else f" in {out}"
        share = self.metrics()["sample/share_unfinished"]
        return (
            f"drew {self.answers} answers to {self.groups} prompts{where}; "
            f"{share:.0%} were cut at max_new_tokens"
        )

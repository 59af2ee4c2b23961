"""The table of commands; imports nothing heavy until a command runs.

Exit codes: 0 done, 1 `data check` found errors or the program broke, 2 the input is wrong,
130 and 143 stopped by a signal.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from melior.objectives.table import MARGIN_WEIGHTED, OBJECTIVES
from melior.training import processes

# Name: (module, the suffix of its config class and its function, what it does).
COMMANDS = {
    **{name: ("recipes.preference", "", about) for name, (_, _, about) in OBJECTIVES.items()},
    "madpo": ("recipes.madpo", "", MARGIN_WEIGHTED["madpo"][2]),
    "reward-augmented": ("recipes.reward_augmented", "", "learn from rated pairs, under goals"),
    "train-pairwise": ("recipes.pairwise", "", "train a model that compares two answers"),
    "train-reward": ("recipes.reward", "", "train a reward model on pairs"),
    "gpm": ("recipes.gpm", "", "a reward model of preferences that may go in circles"),
    "armorm": ("recipes.armorm", "", "a reward model of rated objectives, mixed by the prompt"),
    "compare": ("recipes.compare", "", "tune, train and judge objectives alike: which to use"),
    "rlhf-workflow": ("recipes.rlhf_workflow", "", "online iterative DPO: best against worst of n"),
    "gpo": ("recipes.gpo", "", "preferences that need not be one number, in rounds; SPPO, too"),
    "scir": ("recipes.scir", "", "learn from what the model's own judges agree on"),
    "ocgfn pretrain": ("recipes.ocgfn", "pretrain", "flows that build whatever is asked for"),
    "ocgfn finetune": ("recipes.ocgfn", "finetune", "... turned to a reward"),
    "ocgfn build": ("recipes.ocgfn", "build", "... asked for outcomes by name"),
    "gfn": ("recipes.gfn", "", "flows of one reward, from nothing"),
    "mam": ("recipes.mam", "", "the probability of any part of a row, at one reading"),
    "online": ("recipes.online", "", "sample, score, choose, learn and judge, in rounds"),
    "morec": ("recipes.morec", "", "learn to act from a log, in a world learned from it"),
    "cloning": ("recipes.cloning", "", "learn to do what was done in a log"),
    "td3-bc": ("recipes.td3_bc", "", "learn to act from a log, close to what was done"),
    "cql": ("recipes.cql", "", "learn to act from a log, cautious off it"),
    **{f"plan {name}": ("commands.plan", "", f"what `{name}` will take") for name in OBJECTIVES},
    "demo": ("recipes.demo", "", "all five verbs on the embedded model, with proof"),
    "data check": ("commands.data", "check", "find what is wrong with preferences"),
    "data stats": ("commands.data", "stats", "count and draw what a file holds"),
    "data convert": ("commands.data", "convert", "translate from other tools' layouts"),
    "data show": ("commands.show", "", "print rows as the tokens that are trained"),
    "sample": ("commands.sample", "", "draw k answers to each prompt"),
    "margins": ("commands.margins", "", "store a reward model's margins with pairs"),
    "relabel reward-augmented": (
        "commands.relabel",
        "reward_augmented",
        "rated pairs to pairs under goals, two for each",
    ),
    "collect control": ("commands.collect_control", "", "log a task's transitions, of five kinds"),
    "score": ("commands.score", "", "say how good the candidates are"),
    "select best-and-worst": ("commands.select", "best_and_worst", "best against worst: pairs"),
    "select best-and-random": ("commands.select", "best_and_random", "best against a worse one"),
    "select top": ("commands.select", "top", "keep the best m of each group"),
    "select boltzmann": ("commands.select", "boltzmann", "draw by exp(score / temperature)"),
    "evaluate reward": ("commands.evaluate_reward", "", "scorers on labelled preferences"),
    "evaluate control": ("commands.evaluate_control", "", "policies' normalised scores"),
    "evaluate win-rate": ("commands.win_rate", "", "a judge's file as win rates"),
    "evaluate marginal": ("commands.evaluate_marginal", "", "marginals at one reading"),
    "convert-config": ("commands.convert_config", "", "turn a config of TRL's into one of ours"),
    "merge": ("commands.merge", "", "fold an adapter into its base model"),
    "reproduce": ("commands.reproduce", "", "a paper's central claim, small: claimed and measured"),
    "report": ("commands.report", "", "one HTML page for one run or several"),
}
PLANS, PLAN = "plan COMMAND", "what memory and time a run of one stage will take"
EXPECTED = (ValueError, OSError)
"""What a wrong input raises; anything else is a mistake of ours and keeps its traceback."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait starve each other as soon as anything else runs: sampling
    # beside two busy processes on two cores gave 8 tokens a second spinning, 248 sleeping.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has enough
        raise SystemExit(141) from None
    except EXPECTED as error:
        _end(" ".join(str(error).split()) or type(error).__name__, code=2)
    except KeyboardInterrupt as error:
        _end(str(error) or "interrupted", code=getattr(error, "exit_code", 130))
    except Exception as error:
        if processes.expected() == 1:
            raise
        _end_one_of_several(error)


class _Terminated(KeyboardInterrupt):
    exit_code = 143


def _terminate(*_: object) -> None:
    raise _Terminated("stopped by SIGTERM")


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if words[0] == "--version":
        from melior import __version__

        print(__version__)
        return
    name, rest = _command(words)
    is_question = any(word in ("-h", "--help") for word in rest)
    if processes.expected() > 1 and not _is_shared(name) and not is_question:
        raise ValueError(
            f"melior {name} runs in one process; found {processes.expected()}, of torchrun;"
            " start it without torchrun"
        )
    config, function = _parse(name, rest)
    result = function(config)
    if isinstance(result, Path):
        print(result)


def overview() -> str:
    """Return the list of commands."""
    listed = {
        PLANS if place == "commands.plan" else name: PLAN if place == "commands.plan" else about
        for name, (place, _, about) in COMMANDS.items()
    }
    width = max(map(len, listed))
    lines = [f"  {name:<{width}}  {about}" for name, about in listed.items()]
    return "\n".join(
        [
            "melior learns what is better: candidates are proposed, scored, chosen, learned from,"
            " judged.",
            "",
            "usage: melior COMMAND [OPTIONS]      melior COMMAND --help      melior --version",
            "",
            *lines,
            "",
            "Options of a run may also stand in a YAML file: --config FILE; flags override it.",
        ]
    )


def _command(words: list[str]) -> tuple[str, list[str]]:
    """Split off the command, of one word or two."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if family:
        verbs = ", ".join(name.split()[1] for name in family)
        found = words[1] if len(words) > 1 else ""
        if found in ("-h", "--help"):
            print("\n".join(f"melior {name}: {COMMANDS[name][2]}" for name in family))
            raise SystemExit(0)
        hint = _near(found, [name.split()[1] for name in family])
        raise ValueError(
            f"melior {words[0]}: needs one of {verbs}; found {found or 'nothing'}{hint}"
        )
    firsts = [name.split()[0] for name in COMMANDS]
    raise ValueError(
        f"{words[0]!r} is not a command; melior --help lists them{_near(words[0], firsts)}"
    )


def _is_shared(name: str) -> bool:
    """Say whether processes of torchrun may share the work of a command."""
    return COMMANDS[name][0] == "recipes.preference"


def command(name: str) -> tuple[type, Callable[[Any], object]]:
    """Return the config of a command and what runs it."""
    place, suffix, _ = COMMANDS[name]
    module = import_module(f"melior.{place}")
    if place == "recipes.preference":
        return module.config_of(name), module.run
    if place == "commands.plan":
        recipe, _ = command(name.removeprefix("plan "))
        return module.config_of(recipe), module.run
    kind = getattr(module, "".join(part.title() for part in suffix.split("_")) + "Config")
    return kind, getattr(module, suffix or "run")


def _parse(name: str, words: list[str]) -> tuple[Any, Callable[[Any], object]]:
    """Build the command's config from its words and a YAML file."""
    import tyro

    from melior.config import config_arguments

    kind, function = command(name)
    words = config_arguments(kind, words, where=f"melior {name}")
    said = io.StringIO()
    config: Any
    try:
        with redirect_stderr(said):
            config = tyro.cli(
                kind, args=words, prog=f"melior {name}", config=(tyro.conf.OmitArgPrefixes,)
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise ValueError(f"melior {name}: {_sentence(said.getvalue())}") from None
    return config, function


def _sentence(box: str) -> str:
    """Return what a parser's framed message says, on one line."""
    lines = [line.strip(" │╭╮╰╯") for line in box.splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"[-─\s]*", line)]
    body = lines[1:] if len(lines) > 1 else lines
    kept = []
    for line in body:
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        kept.append(line)
    if kept and kept[0].startswith("Missing from"):
        return "needs " + ", ".join(_needed(kept[1:]))
    text = " ".join(kept)
    return re.sub(r"^Error parsing (\w*Config: )?", "", text)


def _needed(lines: Sequence[str]) -> list[str]:
    """Return the options, or what is said of the arguments, that a framed list asks for."""
    flags = [re.findall(r"--[a-z][\w-]*", line)[-1:] for line in lines if line.startswith("--")]
    bare = [line for before, line in pairwise(["", *lines]) if re.match(r"[A-Z]+( |$)", before)]
    bare = [line.removesuffix(" (required)").rstrip(".") for line in bare]
    bare = [line[:1].lower() + line[1:] for line in bare]
    return [*bare, *(flag for found in flags for flag in found)]


def _near(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _end(message: str, *, code: int) -> NoReturn:
    """Say why the command ends; of processes that share the work the first to fail does."""
    if processes.is_first_to_fail(message):
        print(f"melior: {message}", file=sys.stderr)
    processes.leave(code)


def _end_one_of_several(error: Exception) -> NoReturn:
    """End a process that shares the work: because another has ended, or with its own mistake."""
    if processes.is_loss(error):
        _end(processes.LOST, code=1)
    if processes.is_first_to_fail(f"{type(error).__name__}: {error}"):
        traceback.print_exception(error)
    processes.leave(1)

"""Scorers by the name of what they stand on: one door for rules, judges, reward models of any kind.

A scorer that was loaded holds what it needs and changes nothing in it: it may be asked again and
again, with whatever groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from melior.checks import one_of
from melior.data.template import NAMED
from melior.models.names import adapter_base, check_named, find, kind_of, policy_and_reference
from melior.options import ModelOptions, ScoringOptions
from melior.records import Facts, Group
from melior.rewards.judging import JudgeScorer
from melior.rewards.rules import RuleScorer, constraints_in

if TYPE_CHECKING:
    from melior.types import Scorer

RULES: Final = "rules"
ENSEMBLE: Final = "ensemble:"
KINDS: Final = ("scalar", "aspects", "general", "pairwise")
"""Of reward models, as their folders name them; each has a module here with a `load_scorer`."""
COMPARED: Final = frozenset({"comparisons", "orders"})
"""A group's facts that a scorer leaves which compares; they say nothing of part of its answers."""
TOLD: Final = frozenset({"ensemble", "explanation"})
"""A candidate's facts that say how its score came about."""


def check_scorer(name: str, options: ScoringOptions) -> None:
    """Check a scorer's name and what it reads of the options, before looking for anything.

    Raises:
        ValueError: there is no such scorer, nothing stands behind its name, or a constraint is
            not known.
    """
    if name in FAMILIES:
        raise ValueError(f"--with: {name} needs a model behind it; found none")
    if name != RULES and not _is_place(name):
        one_of("--with", name, (RULES, *FAMILIES))
    members = members_of(name)
    for member in members:
        if members.count(member) > 1 or len(members) < 2 or members_of(member):
            raise ValueError(
                f"--with: an ensemble needs two different scorers or more, {ENSEMBLE}A,B; found"
                f" {name!r}"
            )
        check_scorer(member, options)
    constraints_in(options.constraints)


def check_prompted(names: Sequence[str], options: ScoringOptions) -> None:
    """Check that a chat template is read by one of the scorers, or by one of an ensemble's.

    Raises:
        ValueError: it is given, and none of them reads it.
    """
    every = [one for name in names for one in (members_of(name) or [name])]
    if options.chat_template != "auto" and not any(map(_is_prompted, every)):
        raise ValueError(
            f"--chat-template needs a judge that is loaded here, or implicit rewards; found"
            f" {', '.join(names)}: rules read none, a reward model and a server have their own"
        )


def find_scorer(name: str) -> None:
    """Look for the models behind a name, before anything heavy is imported.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a folder holds no reward model that is known.
    """
    family, place = _split(name)
    if family:
        FAMILIES[family].find(place)
    elif name != RULES:
        one_of(f"{name}: the kind of a reward model", kind_of(name), KINDS)


def load_scorer(name: str, options: ScoringOptions) -> Scorer:
    """Load whatever `melior score --with` names.

    Args:
        name: `rules`, a reward model, or a model behind one of `FAMILIES`.
        options: how it is held and run.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is none that can score, or a server cannot be reached.
        PermissionError: a server wants another key.
    """
    family, place = _split(name)
    if family:
        return FAMILIES[family].load(place, options)
    if name == RULES:
        return RuleScorer(constraints_in(options.constraints))
    return load_reward_scorer(
        options.model(name), max_tokens=options.max_tokens, max_length=options.max_length
    )


def members_of(name: str) -> list[str]:
    """Return the scorers that an ensemble's name lists; none of any other name."""
    return name.removeprefix(ENSEMBLE).split(",") if name.startswith(ENSEMBLE) else []


def load_reward_scorer(options: ModelOptions, *, max_tokens: int, max_length: int = 0) -> Scorer:
    """Load a trained reward model of whatever kind its folder holds.

    Args:
        options: which model, and how it is held.
        max_tokens: computed at once; a prompt counts once for all its answers.
        max_length: of prompt and answer together; 0 is as long as the model can.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no reward model, or of a kind that is not known.
    """
    kind = kind_of(options.model)  # before anything heavy is imported
    one_of(f"{options.model}: the kind of a reward model", kind, KINDS)
    module = import_module(f"melior.rewards.{kind}")
    scorer: Scorer = module.load_scorer(options, max_tokens=max_tokens, max_length=max_length)
    return scorer


def unjudged(group: Group) -> Group:
    """Return a group without what an earlier scorer left besides scores.

    Not every scorer compares, is an ensemble or explains itself, and whoever reads what it has
    scored would take what is left of another's for its own.
    """
    candidates = (replace(one, facts=_without(one.facts, TOLD)) for one in group.candidates)
    return replace(group, candidates=tuple(candidates), facts=_without(group.facts, COMPARED))


def cooled(group: Group, temperature: float) -> Group:
    """Return a group with its scores divided by a temperature.

    `sigmoid` of the difference of two scores is then the chance that the first is preferred, if the
    temperature is the one that fits (Guo et al. 2017, arXiv 1706.04599), whatever the scores' unit.
    Where answers are compared, the comparisons are such log-odds, and divided in place of the
    scores, which are means over the others.
    """
    if temperature == 1:
        return group
    if compared := group.facts.get("comparisons"):
        rows = [[None if x is None else x / temperature for x in row] for row in compared]
        return replace(group, facts={**group.facts, "comparisons": rows})
    cold = [
        one if one.score is None else replace(one, score=one.score / temperature)
        for one in group.candidates
    ]
    return replace(group, candidates=tuple(cold))


def about_scorer(name: str, scorer: Scorer, options: ScoringOptions) -> dict[str, Any]:
    """Return what is stored with scores: by what, and all that decides them."""
    cold = {"temperature": options.temperature} if options.temperature != 1 else {}
    return _about(name, scorer, options) | cold


def folder_hash(folder: Path) -> str:
    """Return the sha256 of all files of a folder, by name."""
    digest = hashlib.sha256()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _about(name: str, scorer: Scorer, options: ScoringOptions) -> dict[str, Any]:
    if isinstance(scorer, JudgeScorer):
        return scorer.about
    if members_of(name):
        from melior.rewards.ensemble import EnsembleScorer

        assert isinstance(scorer, EnsembleScorer)
        parts = [_about(*part, options) for part in scorer.members.items()]
        return {"name": name, "members": parts, **asdict(options.ensemble)}
    if name == RULES:
        always = constraints_in(options.constraints)
        return {"name": name, "constraints": always} if always else {"name": name}
    held: dict[str, Any] = {"dtype": options.dtype, "max_length": options.max_length}
    if _is_prompted(name):
        held |= {"chat_template": _known(options.chat_template)}
    hashes = [folder_hash(one)[:16] for one in _folders(_split(name)[1].split(","))]
    return {"name": name, "hashes": hashes, **held}


def _folders(names: Iterable[str]) -> Iterator[Path]:
    """Yield the folders of models, each adapter's base behind it: both decide what it says."""
    for name in names:
        place = find(name.strip())
        if isinstance(place, Path):
            yield place
            if base := adapter_base(place):
                yield from _folders([base])


def _known(template: str) -> str:
    """Return a chat template's name, and of a file what is in it."""
    place = Path(template)
    if template in NAMED or not place.is_file():
        return template
    return hashlib.sha256(place.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Family:
    """Scorers whose names begin alike, with what stands behind them after a colon."""

    find: Callable[[str], object]
    """Looks for what is named behind the colon."""
    load: Callable[[str, ScoringOptions], Scorer]


def _find_judge(place: str) -> None:
    from melior.rewards.judge_models import is_address

    if not is_address(place):
        find(place)


def _judge(place: str, options: ScoringOptions) -> Scorer:
    from melior.data.kept import Kept
    from melior.rewards.judge import Budget, Judge
    from melior.rewards.judge_models import load_judge_model
    from melior.training.cache import cache_folder

    own = options.judge
    held = options.model("", chat_template=options.chat_template)
    model = load_judge_model(place, held, own, max_tokens=options.max_tokens)
    budget = Budget(own.judge_calls, own.judge_tokens)
    judge = Judge(model, Kept(cache_folder() / "verdicts.sqlite"), budget=budget)
    return JudgeScorer(judge, by=own.judge_by)


def _implicit(place: str, options: ScoringOptions) -> Scorer:
    policy, _ = policy_and_reference(place)
    check_named(options.model(policy, chat_template=options.chat_template))
    from melior.rewards.implicit import load_implicit

    held = options.model("", chat_template=options.chat_template)
    return load_implicit(place, held, max_tokens=options.max_tokens, max_length=options.max_length)


def _find_members(place: str) -> None:
    for name in members_of(ENSEMBLE + place):
        find_scorer(name)


def _ensemble(place: str, options: ScoringOptions) -> Scorer:
    from melior.rewards.ensemble import EnsembleScorer

    members = {name: load_scorer(name, options) for name in members_of(ENSEMBLE + place)}
    return EnsembleScorer(members, options.ensemble)


FAMILIES: Final = {
    "judge:": Family(_find_judge, _judge),
    "implicit:": Family(policy_and_reference, _implicit),
    ENSEMBLE: Family(_find_members, _ensemble),
}
"""By how their names begin."""


def _without(facts: Facts, names: frozenset[str]) -> Facts:
    return {name: value for name, value in facts.items() if name not in names}


def _split(name: str) -> tuple[str, str]:
    """Return the family that a name begins with, and what stands behind it."""
    for family in FAMILIES:
        if name.startswith(family):
            return family, name.removeprefix(family)
    return "", name


def _is_prompted(name: str) -> bool:
    """Say whether a scorer is a language model, prompted by a chat template of the user's choice.

    A server writes its model's own.
    """
    from melior.rewards.judge_models import is_address

    family, place = _split(name)
    return family == "implicit:" or (family == "judge:" and not is_address(place))


def _is_place(name: str) -> bool:
    """Say whether a name is a model's, maybe behind what it is to do, rather than a scorer's."""
    return bool(_split(name)[0]) or "/" in name or Path(name).is_dir()

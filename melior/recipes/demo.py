"""The demo: all five verbs on the embedded model, on a task that programs can check.

Answers are sampled for prompts with verifiable constraints (so many bullets, no commas, all lower
case, ...), scored by rules, the best chosen against the worst, and learned from with SimPO. The
held-out prompts have other topics and other wording, and are judged before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.checks import in_range
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig, Sampling
from melior.records import Candidate, Group, Pair, text

if TYPE_CHECKING:
    import torch

    from melior.models.language import LanguageModel
    from melior.stages.learn import Plan

PAPER = "Meng et al. 2024, arXiv 2405.14734"
DATA = Path(__file__).parent / "demo_data"


@dataclass(frozen=True)
class Config:
    """Sample, score, choose, learn and judge on the embedded model; ends with a report."""

    out: str = "runs/demo"
    """The run folder."""
    model: str = "smollm2"
    """Another model's folder or name works too."""
    fast: bool = False
    """Learn from the pairs shipped with the package instead of sampling new ones."""
    n_prompts: int = 300
    """Training prompts to sample answers for."""
    n_held_out: int = 100
    """Held-out prompts to judge on."""
    sampling: Sampling = Sampling(k=5, temperature=0.7, max_new_tokens=72)
    optim: OptimConfig = OptimConfig(learning_rate=5e-5)
    beta: float = 2.0
    gamma_beta_ratio: float = 0.5
    epochs: float = 2.0
    batch_size: int = 8
    seed: int = 42
    resume: bool = False
    """Go on with a demo that was stopped."""
    overwrite: bool = False
    """Replace the folder's run."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("n_prompts", self.n_prompts, 2)
        in_range("n_held_out", self.n_held_out, 2)
        in_range("beta", self.beta, 0, above=True)
        in_range("gamma_beta_ratio", self.gamma_beta_ratio, 0)
        in_range("epochs", self.epochs, 0, above=True)
        in_range("batch_size", self.batch_size, 1)

    @classmethod
    def tiny(cls, model: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            out=out, model=model, n_prompts=6, n_held_out=3, batch_size=4, epochs=1,
            sampling=Sampling(k=3, max_new_tokens=8),
        )  # fmt: skip


def run(config: Config) -> None:
    """Propose, score, choose, learn, judge and report."""
    from melior.models.names import find
    from melior.training.folder import check_folder

    check_folder(Path(config.out), resume=_resumes(config), overwrite=config.overwrite)
    find(config.model)
    from melior.models.loading import load_to_answer
    from melior.report.terminal import present
    from melior.stages.learn import learn, write_card
    from melior.training.run import write_json, write_json_lines

    folder = Path(config.out)
    start = load_to_answer(ModelOptions(model=config.model))
    pairs = DATA / "pairs.jsonl" if config.fast else _propose_score_choose(config, start, folder)
    learn(_plan(config, pairs))
    held_out = list(islice(_prompts("held_out_prompts.jsonl"), config.n_held_out))
    after = load_to_answer(ModelOptions(model=str(folder / "model")))
    old, new = (_answered(model, held_out, config) for model in (start, after))
    write_json(folder / "evaluation.json", _verdict(config, start, after, old, new))
    write_card(folder, base=config.model)
    write_json_lines(folder / "samples.jsonl", _samples(old, new))
    write_json_lines(folder / "scores.jsonl", _scores(old, new))
    present([folder])


def _resumes(config: Config) -> bool:
    """Say whether training began before the demo was stopped; else only its answers are kept."""
    return config.resume and (Path(config.out) / "run.json").exists()


def _prompts(name: str) -> Iterator[Group]:
    from melior.data.files import read_prompts

    return read_prompts(DATA / name)


def _propose_score_choose(config: Config, model: LanguageModel, folder: Path) -> Path:
    """Leave candidates.jsonl, scored.jsonl and pairs.jsonl in the folder; return the last."""
    from melior.data.files import read_groups, write_groups, write_pairs
    from melior.ops import generator
    from melior.rewards.rules import score_groups
    from melior.sampling.candidates import candidates
    from melior.training.hooks import counted

    proposed, pairs = folder / "candidates.jsonl", folder / "pairs.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not (config.resume and proposed.exists()):
        prompts = islice(_prompts("train_prompts.jsonl"), config.n_prompts)
        with counted("prompts answered", config.n_prompts) as progress:
            draw = generator(config.seed)
            drawn = candidates(model, prompts, config.sampling, generator=draw)
            write_groups(proposed, _watched(drawn, progress))
    write_groups(folder / "scored.jsonl", score_groups(read_groups(proposed)))
    if not write_pairs(pairs, _best_against_worst(read_groups(folder / "scored.jsonl"))):
        raise ValueError(
            f"{folder / 'scored.jsonl'}: a group whose answers score differently is needed;"
            " found none; raise --n-prompts or --k"
        )
    return pairs


def _watched(groups: Iterator[Group], on_progress: Callable[[int], None]) -> Iterator[Group]:
    for done, group in enumerate(groups, 1):
        on_progress(done)
        yield group


def _best_against_worst(groups: Iterator[Group]) -> Iterator[Pair]:
    """Yield one pair of each group whose scores differ."""
    import torch

    from melior.data.files import duel
    from melior.selection import best_and_worst, has_spread

    for group in groups:
        scores = torch.tensor([[candidate.score or 0.0 for candidate in group.candidates]])
        if not has_spread(scores):
            continue
        best, worst = (group.candidates[int(index)] for index in best_and_worst(scores))
        margin = float(scores.max() - scores.min())
        yield duel(group, best, worst, margin=margin)


def _plan(config: Config, pairs: Path) -> Plan:
    from functools import partial

    from melior.losses.reference_free import simpo
    from melior.stages.learn import Plan
    from melior.stages.method import per_token_method

    loss = partial(simpo, beta=config.beta, gamma=config.beta * config.gamma_beta_ratio)
    loop = LoopOptions(
        out=config.out, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed,
        resume=_resumes(config), overwrite=config.overwrite,
    )  # fmt: skip
    return Plan(
        recipe="demo",
        paper=PAPER,
        method=per_token_method(loss, beta=config.beta),
        model=ModelOptions(model=config.model),
        data=DataOptions(data=(str(pairs),), n_samples=0),
        optim=config.optim,
        loop=loop,
        config=config,
    )


def _answered(model: LanguageModel, prompts: Sequence[Group], config: Config) -> list[Group]:
    """Answer each held-out prompt once, drawn as in training, and score the answers."""
    from melior.ops import generator
    from melior.rewards.rules import score_groups
    from melior.sampling.candidates import candidates
    from melior.training.hooks import counted

    sampling = replace(config.sampling, k=1)
    with counted("held-out prompts answered", len(prompts)) as progress:
        draw = generator(config.seed + 1)
        drawn = candidates(model, prompts, sampling, generator=draw)
        return list(score_groups(_watched(drawn, progress)))


def _verdict(
    config: Config,
    start: LanguageModel,
    after: LanguageModel,
    old: Sequence[Group],
    new: Sequence[Group],
) -> dict[str, Any]:
    """Compare the held-out answers, as in a run's `evaluation.json`."""
    from melior.evaluation.compare import compare
    from melior.evaluation.preferences import wins
    from melior.ops import generator
    from melior.stages.judge import answers, kl

    draw = generator(config.seed)
    rows: tuple[tuple[str, str, str, bool | None], ...] = (
        ("share_met", "constraints met", "share", True),
        ("all_met", "prompts with every constraint met", "share", True),
        ("on_topic", "answers on the topic", "share", True),
        ("repetition", "repetition", "share", False),
        ("length", "answer length", "words", None),
    )
    comparisons = [
        compare(
            [_aspect(group, key) for group in old], [_aspect(group, key) for group in new],
            name=name, unit=unit, higher_is_better=higher, generator=draw,
        ).to_json()
        for key, name, unit, higher in rows
    ]  # fmt: skip
    shares = [[_aspect(group, "share_met") for group in side] for side in (old, new)]
    asked = [group.prompt for group in new][:24]
    drawn = answers(after, asked, max_new_tokens=config.sampling.max_new_tokens, seed=config.seed)
    moved = kl(start, asked, drawn)
    return {
        "title": "Held-out prompts: constraints of other topics and other wording",
        "comparisons": comparisons,
        "win_rate": wins(shares[0], shares[1]).to_json(),
        "facts": {
            "KL to the start, nats per answer": moved.value,
            "its standard error": moved.error,
        },
        "subsets": _by_constraint(old, new, draw),
    }


def _aspect(group: Group, name: str) -> float:
    (candidate,) = group.candidates
    if name == "all_met":
        return float(candidate.aspects["share_met"] == 1.0)
    return float(candidate.aspects[name])


def _by_constraint(
    old: Sequence[Group], new: Sequence[Group], draw: torch.Generator
) -> list[dict[str, Any]]:
    """Compare each kind of constraint; a prompt with several counts for each of them."""
    from melior.evaluation.compare import compare_by_subset

    kinds, before, after = [], [], []
    for was, now in zip(old, new, strict=True):
        for name in {constraint["name"]: None for constraint in now.facts["constraints"]}:
            kinds.append(name)
            before.append(_aspect(was, name))
            after.append(_aspect(now, name))
    return [
        one.to_json()
        for one in compare_by_subset(before, after, kinds, generator=draw, unit="share")
    ]


def _samples(old: Sequence[Group], new: Sequence[Group]) -> Iterator[dict[str, Any]]:
    from melior.data.files import turn_rows

    for was, now in zip(old, new, strict=True):
        (before,), (after,) = was.candidates, now.candidates
        yield {
            "prompt": turn_rows(now.prompt),
            "before": text(before.response),
            "after": text(after.response),
            "score_before": before.score,
            "score_after": after.score,
            "facts": {"constraints": now.facts["constraints"]},
        }


def _scores(old: Sequence[Group], new: Sequence[Group]) -> Iterator[dict[str, Any]]:
    for name, side in (("before", old), ("after", new)):
        for group in side:
            candidate: Candidate = group.candidates[0]
            yield {"group": name, "reward": candidate.score, "length": candidate.aspects["length"]}

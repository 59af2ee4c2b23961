"""One cell of an experiment: a model trained and examined in a process of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from melior.config import config_to_dict
from melior.data.files import content_hash, read_pairs
from melior.evaluation.bakeoff import QUANTITIES
from melior.evaluation.compare import compare
from melior.models.language import LanguageModel
from melior.models.loading import load
from melior.ops import generator
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.bakeoff.exam import Exam, Numbers, Sat, sit
from melior.stages.learn import Plan, learn, whole
from melior.stages.method import Method
from melior.training.jobs import peak_memory
from melior.training.run import write_json, write_json_lines

JUDGED = "judged.json"
"""What a finished cell leaves; it is written last."""


class Options(Protocol):
    """Options of an objective, which make its method."""

    paper: str

    def method(self) -> Method:
        """Return the loss and the reward that it compares."""
        ...


@dataclass(frozen=True)
class Cell:
    """What is trained, how, and what it is put to afterwards."""

    label: str
    """The arm's."""
    name: str
    """The objective's."""
    objective: Any
    """Its options; `Options` says what they must offer."""
    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    optim: OptimConfig
    exam: Exam
    start: str
    """What `judge_start` left of the same examination."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Hashes of all files that are read: what makes the cell this one, besides its options."""

    @property
    def folder(self) -> Path:
        """Where the cell leaves its run."""
        return Path(self.loop.out)

    @property
    def is_done(self) -> bool:
        """Say whether it was trained and judged."""
        return (self.folder / JUDGED).exists()

    def config(self) -> object:
        """Return the options as the objective's own command takes them."""
        parts = [
            ("model", ModelOptions), ("data", DataOptions), ("loop", LoopOptions),
            ("objective", type(self.objective)), ("optim", OptimConfig),
        ]  # fmt: skip
        kind = make_dataclass("CellConfig", parts, frozen=True, namespace={"__module__": __name__})
        return kind(self.model, self.data, self.loop, self.objective, self.optim)

    def key(self) -> str:
        """Return a hash of all that decides what comes out."""
        options = config_to_dict(self.config())
        for name in ("out", "data", "resume", "overwrite", "allow_changes", "report_to"):
            options.pop(name)
        exam = asdict(self.exam)
        exam = {name: exam[name] for name in exam if name not in ("comparisons", "prompts")}
        return digest([self.name, options, exam, dict(self.about)])


def digest(value: object) -> str:
    """Return a short hash of what JSON can hold."""
    said = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def train_and_judge(cell: Cell) -> None:
    """Train, examine, and leave a run folder without more weights than `model/`."""
    began = time.monotonic()
    shutil.rmtree(cell.folder, ignore_errors=True)  # what a stopped one has left
    objective: Options = cell.objective
    method = objective.method()
    learn(
        Plan(
            cell.name, objective.paper, method, cell.model, cell.data, cell.optim, cell.loop,
            cell.config(),
        )
    )  # fmt: skip
    trained, peak = time.monotonic() - began, peak_memory()
    # Seeds draw other answers, arms the same noise: less of it is left in what is compared.
    exam = replace(cell.exam, seed=cell.loop.seed)
    sat = sit(exam, _trained(cell), load(cell.model, trainable=False), method)
    before = json.loads(Path(cell.start).read_text(encoding="utf-8"))
    write_json(cell.folder / "evaluation.json", _verdict(before["numbers"], sat.numbers))
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    write_json_lines(cell.folder / "samples.jsonl", _side_by_side(before["samples"], sat))
    data = json.loads((cell.folder / "data.json").read_text(encoding="utf-8"))
    found = {
        "numbers": sat.numbers,
        "n_rows": data["train"]["rows_used"],
        "train_s": round(trained, 2),
        "wall_s": round(time.monotonic() - began, 2),
        "peak_mem": peak,
    }
    write_json(cell.folder / JUDGED, found)


def _verdict(before: Numbers, after: Numbers) -> dict[str, Any]:
    """Compare a cell with the start model, as in a run's `evaluation.json`."""
    draw = generator(0)
    comparisons = [
        compare(
            before[name], after[name], name=about.title, unit=about.unit,
            higher_is_better=about.higher_is_better, generator=draw,
        ).to_json()
        for name, about in QUANTITIES.items()
        if name in before and name in after
    ]  # fmt: skip
    kl = after.get("kl", [])
    facts = {"KL to the start, nats per answer": sum(kl) / len(kl)} if kl else {}
    return {"title": "Held out", "comparisons": comparisons, "facts": facts}


def judge_start(cell: Cell) -> None:
    """Examine the start model, once for all cells with the same examination."""
    model = load(cell.model, trainable=False)
    sat = sit(cell.exam, model, model, None)
    Path(cell.start).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(cell.start), {"numbers": sat.numbers, "samples": sat.samples})


def _trained(cell: Cell) -> LanguageModel:
    return load(whole(cell.model, str(cell.folder / "model")), trainable=False)


def _side_by_side(before: list[dict[str, Any]], after: Sat) -> list[dict[str, Any]]:
    return [
        {
            "prompt": new["prompt"],
            "before": old["answer"],
            "after": new["answer"],
            "score_before": old["score"],
            "score_after": new["score"],
            "facts": new["facts"],
        }
        for old, new in zip(before, after.samples, strict=True)
    ]


@dataclass(frozen=True)
class Scoring:
    """Pairs that are to be weighed by a reward model's margins."""

    data: str
    reward_model: str
    max_length: int

    @property
    def out(self) -> str:
        """Where the pairs go, with their margins: beside those without, named after their rows."""
        place = Path(self.data)
        made_of = [content_hash(self.data), self.reward_model, self.max_length]
        return str(place.with_name(f"{place.stem}-{digest(made_of)}.jsonl"))


def store_margins(job: Scoring) -> None:
    """Write pairs with the margins of a reward model."""
    from melior.rewards.scalar import load_scorer
    from melior.stages.reward_models.margins import write_margins

    options = ModelOptions(model=job.reward_model)
    scorer = load_scorer(options, max_tokens=16384, max_length=job.max_length)
    write_margins(Path(job.out), read_pairs(job.data), scorer, job.reward_model, leaves_out=True)

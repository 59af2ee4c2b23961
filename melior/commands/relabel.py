"""`melior relabel`: turn rated pairs into pairs under goals, two for each."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from melior.data.goals import Placement
from melior.options import GoalOptions, ModelOptions
from melior.records import Metrics


@dataclass(frozen=True)
class RewardAugmentedConfig:
    """Write each rated pair twice: under its better answer's goal, and swapped under the other's.

    Split pairs into those trained on and those held out before this, by their prompts: twins and
    their likes must not lie on both sides, and held-out pairs stay as they are.
    """

    file: tyro.conf.Positional[str]
    """Rated pairs, or groups of two scored candidates: `name[:split[:rows]][*weight]`."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])]
    """Where the pairs go; how goals are asked for goes beside them, as NAME.goal.json."""
    goals: GoalOptions = field(default_factory=GoalOptions)
    model: Annotated[str, tyro.conf.arg(aliases=["--model-name-or-path"])] = ""
    """The one that is to be trained: its chat template tells where goals can stand."""
    chat_template: str = "auto"
    """`auto`, `plain`, `chatml`, or a file."""

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        if self.file == "-":
            raise ValueError("pairs must lie in a file, as they are read twice; found - (stdin)")
        if self.goals.placement == "auto" and not self.model:
            raise ValueError(
                "placement auto needs --model, whose chat template decides; found none; name it,"
                " or give --placement system or user_prefix"
            )


def reward_augmented(config: RewardAugmentedConfig) -> Metrics:
    """Write the pairs and how goals are asked for; say what was left out, and why."""
    from melior.stages.ratings.relabel import read_rated, relabel, save_goals

    if next(read_rated([config.file], config.goals.scores), None) is None:
        raise ValueError(f"{config.file}: needs at least one pair; found no row")
    done = relabel([config.file], config.out, config.goals, _placement(config))
    print(done.sentence(), file=sys.stderr)
    if config.out != "-":
        place = Path(config.out)
        beside = place.with_name(f"{place.name.split('.jsonl')[0]}.goal.json")
        save_goals(done.goals, beside)
        print(
            f"how to ask for a goal: {beside}; copied into the trained model's folder as"
            " melior_goal.json it makes melior sample --goal work",
            file=sys.stderr,
        )
    return {"relabel/read": float(done.read), "relabel/written": float(done.written)}


def _placement(config: RewardAugmentedConfig) -> Placement:
    from melior.stages.ratings.relabel import placement_of

    if not config.model:
        return "system" if config.goals.placement == "system" else "user_prefix"
    from melior.models.names import check_named

    options = ModelOptions(model=config.model, chat_template=config.chat_template)
    check_named(options)
    from melior.models.loading import load_chat

    return placement_of(config.goals, load_chat(options).writer)

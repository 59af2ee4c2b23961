"""Which round a run ends with, and what it says on the way."""

import pytest

from melior.stages.online.options import RoundOptions
from melior.stages.online.rounds import best_round, may_go_on
from melior.training.run import Run


def round_of(number, **numbers):
    return {"round": number, "numbers": numbers, "means": {"kl": 0.5}, "parts": ""}


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        ([{"reward": [0, 1]}, {"reward": [2, 0]}, {"reward": [1, 1]}], 1),  # the first of equals
        ([{"reward": [1, 1]}, {"reward": [1, 1]}], 0),
        ([{"reward": [0], "judge": [1]}, {"reward": [9], "judge": [0]}], 0),
        ([{"reward": [0], "ranked": [0]}, {"reward": [9], "ranked": [-1]}], 0),
        # What one round lacks counts in none; where nothing is left, the scorer's word does.
        ([{"reward": [0, 0], "judge": [1, 9]}, {"reward": [0, 0], "judge": [2, None]}], 1),
        ([{"reward": [0, 1], "judge": [None, 3]}, {"reward": [0, 2], "judge": [5, None]}], 1),
        ([{"reward": [None]}, {"reward": [None]}], 0),
        # A held-out scorer that joined later has not judged them all.
        ([{"reward": [0]}, {"reward": [1], "judge": [0]}], 1),
    ],
)
def test_the_best_round_is_the_held_out_scorers_on_prompts_that_all_rounds_share(rounds, best):
    assert best_round([round_of(i, **numbers) for i, numbers in enumerate(rounds)]) == best


STOPS = {"stop_on_overoptimisation": True, "judge_with": "rules"}


@pytest.mark.parametrize(
    ("more", "options", "budget", "goes_on", "said"),
    [
        ({}, {}, 0.0, True, []),
        ({}, {}, 0.4, True, ["0.5 nats an answer from the start, above --kl-budget"]),
        ({}, {}, 0.6, True, []),
        ({"judge": [None, 1.0]}, STOPS, 0.0, True, ["no held-out score for 1 of 2"]),
        ({"judge": [None, None]}, {}, 0.0, True, ["no held-out score for 2 of 2"]),
        ({"judge": [None, None]}, STOPS, 0.0, False, ["for 2 of 2", "cannot be seen"]),
        ({"parts": "they part"}, {}, 0.0, True, ["they part"]),
        ({"parts": "they part"}, STOPS, 0.0, False, ["they part", "stopped there"]),
    ],
)
def test_what_is_to_worry_about_is_said_and_stops_where_that_was_asked(
    tmp_path, more, options, budget, goes_on, said
):
    numbers = {name: more[name] for name in ("judge",) if name in more}
    judged = round_of(1, kl=[0.25, 0.75], **numbers) | {"parts": more.get("parts", "")}
    with Run.create(str(tmp_path / "run"), "online", RoundOptions(), []) as record:
        found = may_go_on(record, judged, RoundOptions(**options), kl_budget=budget)
        notes = record.record.get("notes", [])
    assert found is goes_on
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))

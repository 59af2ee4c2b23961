"""Tokens that a model computes to score groups: answer by answer, every two, or in a knock-out.

    python benchmarks/comparison_tokens.py groups.jsonl --model smollm2 --rows 200

Answer by answer is what a Bradley-Terry model, ArmoRM and GPM compute: the prompt once, and each
answer. Counts only; nothing is computed.
"""

from __future__ import annotations

import argparse
from itertools import islice

from melior.data.chat import Encoded
from melior.data.files import as_group, read_any
from melior.data.forest import size
from melior.data.pairwise import Comparisons
from melior.models.heads import reward_chat
from melior.models.loading import load_chat
from melior.options import ModelOptions
from melior.records import Group
from melior.rewards.comparisons import Verdict
from melior.rewards.pairwise import Contest

WAYS = ("answer by answer", "every two", "every two, nothing shared", "knock-out", "to train")


def main() -> None:
    """Print the mean over the groups of a file."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("groups", help="groups or pairs, as `melior score` reads them")
    made.add_argument("--model", default="smollm2", help="whose tokenizer and chat format count")
    made.add_argument("--rows", type=int, default=200, help="the first so many are counted")
    options = made.parse_args()
    model = ModelOptions(options.model)
    rows = list(islice(map(as_group, read_any([options.groups])), options.rows))
    if not rows:
        raise SystemExit(f"{options.groups}: needs at least one group; found none")
    comparisons, chat = Comparisons(load_chat(model)), reward_chat(model)
    totals = dict.fromkeys(WAYS, 0)
    for group in rows:
        answers = [one.response for one in group.candidates]
        alone = [chat.encode(group.prompt, answer).tokens for answer in answers]
        totals["answer by answer"] += size([_whole(tokens) for tokens in alone])
        for name, is_knock_out in (("every two", False), ("knock-out", True)):
            asked = _asked(comparisons, group, is_knock_out=is_knock_out)
            totals[name] += sum(size([_whole(tokens) for tokens in part]) for part in asked)
            if not is_knock_out:
                totals["every two, nothing shared"] += sum(
                    len(own) for part in asked for own in part
                )
                totals["to train"] += sum(len(tokens) for tokens in asked[0][::2])
    k = sum(len(group.candidates) for group in rows) / len(rows)
    print(f"{len(rows)} groups of {k:g} answers, tokens a group:")
    for name, total in totals.items():
        share = total / totals["answer by answer"]
        print(f"  {name:<26} {total / len(rows):8.0f}  {share:6.2f}")


def _asked(
    comparisons: Comparisons, group: Group, *, is_knock_out: bool
) -> list[list[tuple[int, ...]]]:
    """Return the questions of each round; in a knock-out the earlier answer always wins."""
    answers = [one.response for one in group.candidates]
    contest = Contest((1,) * len(answers), is_knock_out=is_knock_out)
    rounds = []
    while due := contest.due():
        asked = [(group.prompt, answers[left], answers[right]) for left, right in due]
        both = comparisons.both_orders(asked, max_length=2**31)
        rounds.append([tokens for one in both for tokens in (one.left_first, one.right_first)])
        for match in due:
            contest.take(match, Verdict(1.0, 1.0))
    return rounds


def _whole(tokens: tuple[int, ...]) -> Encoded:
    return Encoded(tokens, (False,) * len(tokens), len(tokens))


if __name__ == "__main__":
    main()

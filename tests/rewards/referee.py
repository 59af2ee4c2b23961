"""What a judge at a real server replies, by a rule: more points are better, and it favours B."""

import math
import re

from melior.data.kept import Kept
from melior.models.endpoint import Endpoint, Server
from melior.records import Candidate, Group, Turn
from melior.rewards.judge import Budget, Comparison, Judge
from melior.rewards.judge_models import ServedModel

BIAS = 0.75
"""Logit by which the answer shown second is favoured."""


def points(text):
    """The number that an answer states, such as `7 points`; nothing where it states none."""
    found = re.search(r"(-?\d+) points", text)
    return float(found.group(1)) if found else None


def shown(body):
    """The answers in a request."""
    question = body["messages"][0]["content"]
    return re.findall(r"BEGIN ANSWER.*?\n(.*?)\nEND ANSWER", question, re.DOTALL)


def spoken(text, **facts):
    return 200, {
        "choices": [{"message": {"content": text}, **facts}],
        "usage": {"total_tokens": 10},
    }


def with_log_probs(text, **log_probs):
    listed = [{"token": token, "logprob": value} for token, value in log_probs.items()]
    content = [{"token": text, "logprob": log_probs[text], "top_logprobs": listed}]
    return spoken(text, logprobs={"content": content})


def logit(body):
    """The logit that the answer shown first wins; None where one of them states no points."""
    found = [points(text) for text in shown(body)]
    return None if None in found else found[0] - found[1] - BIAS


def referee(body, number):
    """A verdict with log-probabilities, or chatter."""
    gap = logit(body)
    if gap is None:
        return spoken("Both have their merits.")
    a, b = (-math.log1p(math.exp(-sign * gap)) for sign in (1, -1))
    return with_log_probs("A" if gap > 0 else "B", A=a, B=b)


def rater(body, number):
    """Ratings: two digits share the probability."""
    (text,) = shown(body)
    found = points(text)
    if found is None:
        return spoken("Hard to say.")
    low = int(found)
    return with_log_probs(str(low), **{str(low): math.log(0.75), str(low + 1): math.log(0.25)})


def said(text):
    return (Turn("assistant", text),)


ASKED = (Turn("user", "How many?"),)


def comparison(left, right):
    return Comparison(ASKED, said(left), said(right))


def group(*answers, number=1):
    asked = (Turn("user", f"How many of {number}?"),)
    return Group(asked, tuple(Candidate(said(text)) for text in answers), origin=f"g:{number}")


def judge_at(url, path, *, budget=None, **options):
    endpoint = Endpoint(Server(url, **({"concurrency": 2, "retries": 1} | options)))
    return Judge(ServedModel(endpoint), Kept(path / "verdicts.sqlite"), budget=budget or Budget())

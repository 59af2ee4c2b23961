"""A mixture of objectives, end to end on a tiny model: gain, plain transformers, resume, refusals."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from melior.cli import main
from melior.models.aspects import load_aspect_model
from melior.options import ModelOptions
from melior.recipes import armorm
from tests.tiny import tiny_folder

FACTS = ("Paris is the capital.", "the fox is quick.")
THANKS = ("thank you!", "hello there.")


def answer(dice):
    """Draw an answer that is a fact or not, polite or not, and long or short."""
    true, polite, length = dice.randrange(2), dice.randrange(2), dice.randrange(5)
    said = f"{FACTS[1 - true]} {THANKS[1 - polite]}" + " fine" * (2 * length)
    return said, true, polite, length


def asked(dice, number):
    """Draw a question that wants a fact, or one that wants manners."""
    wants_fact = dice.randrange(2)
    word = "capital" if wants_fact else "hello"
    return f"{word} {number}, {word}?", wants_fact


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_ratings(path, count, *, seed=0, **changes):
    """Answers rated by three objectives, one of them with a liking for length; gaps in two."""
    dice, rows = random.Random(seed), []
    for i in range(count):
        said, true, polite, length = answer(dice)
        ratings = {"fact": 4 * true, "manners": 2 * polite + length / 2, "verbosity": length}
        for name in ("fact", "manners"):
            if dice.random() < 0.3:
                ratings[name] = None
        turns = [{"role": "user", "content": asked(dice, i)[0]},
                 {"role": "assistant", "content": said}]  # fmt: skip
        rows.append({"messages": turns, "row_id": i, **ratings, **changes})
    return write(path, rows)


def write_pairs(path, start, stop, *, seed=0):
    """Pairs whose better answer has what the question wants; the subset names the question."""
    dice, rows = random.Random(seed + start), []
    while len(rows) < stop - start:
        prompt, wants_fact = asked(dice, start + len(rows))
        both = [answer(dice), answer(dice)]
        both.sort(key=lambda one: -one[1 if wants_fact else 2])
        if both[0][1 if wants_fact else 2] == both[1][1 if wants_fact else 2]:
            continue
        rows.append({"prompt": prompt, "chosen": both[0][0], "rejected": both[1][0],
                     "subset": "fact" if wants_fact else "manners"})  # fmt: skip
    return write(path, rows)


@pytest.fixture
def data(tmp_path):
    return (
        write_ratings(tmp_path / "ratings.jsonl", 300),
        write_pairs(tmp_path / "train.jsonl", 0, 200),
        write_pairs(tmp_path / "held.jsonl", 500, 580),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(model_folder, data, out, *more):
    return ["armorm", "--model", str(model_folder), "--ratings", data[0], "--pairs", data[1],
            "--out", str(out), "--dtype", "fp32", "--steps", "60", "--batch-size", "64",
            "--gate-hidden", "32", "--gate-layers", "1", "--logit-scale", "30", "--learning-rate",
            "1e-2", "--eval-steps", "20", "--save-steps", "20", *more]  # fmt: skip

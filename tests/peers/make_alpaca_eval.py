"""Freeze AlpacaEval's win rates, for `tests/evaluation/test_win_rate.py`.

Run in an environment of its own, with `alpaca-eval==0.6.6` and `scikit-learn==1.5.2`:
`python tests/peers/make_alpaca_eval.py`. It writes `alpaca_eval.json` beside itself. The file that
the package fetches, `df_gamed.csv`, is replaced by one of the same columns, so that its own
`get_length_controlled_winrate` runs as it is; each model is also fitted at a tolerance of 1e-10,
since liblinear stops at 1e-4 by itself.
"""

import copy
import json
import math
import random
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pandas as pd
from alpaca_eval.metrics import glm_winrate

HERE = Path(__file__).parent
EXACT = {"tol": 1e-10, "max_iter": 1_000_000}
GAMED = ("preference", "std_delta_len", "instruction_difficulty")


def main() -> None:
    assert version("alpaca-eval") == "0.6.6", version("alpaca-eval")
    warnings.simplefilter("ignore")
    content = {
        "package": "alpaca-eval",
        "version": version("alpaca-eval"),
        "scikit-learn": version("scikit-learn"),
        "script": "tests/peers/make_alpaca_eval.py",
        "worlds": [world(0, 40, 1.5), world(1, 83, 0.0), world(2, 60, 3.0)],
    }
    (HERE / "alpaca_eval.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def world(seed: int, n: int, liking: float) -> dict:
    """Judge answers of two lengths to n instructions, and fit each of the package's models."""
    draw = random.Random(seed)
    difficulty = [round(draw.gauss(0, 1), 4) for _ in range(n)]
    lengths = [[int(40 + draw.expovariate(1 / 300)) for _ in range(2)] for _ in range(n)]
    preferences = [judge(draw, d, *own, liking) for d, own in zip(difficulty, lengths, strict=True)]
    preferences[3], preferences[10], preferences[11] = 1.5, 2.0, 1.0
    gamed = [
        {
            "model": model,
            "index": index,
            "preference": round(logistic(side * 0.8 * liking + 0.2 * draw.gauss(0, 1)), 4),
            "std_delta_len": round(-side * draw.uniform(0.5, 2), 4),
            "instruction_difficulty": difficulty[index],
            "not_gamed_baseline": False,
        }
        for model, side in (("concise", -1), ("verbose", 1))
        for index in range(n)
    ]
    rows = [
        {
            "instruction": f"say {i}", "output_1": "a" * one, "generator_1": "baseline",
            "output_2": "b" * two, "generator_2": "model", "annotator": "judge",
            "preference": preference,
        }
        for i, ((one, two), preference) in enumerate(zip(lengths, preferences, strict=True))
    ]  # fmt: skip
    names = ("length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal")
    return {
        "difficulty": difficulty,
        "lengths": lengths,
        "preferences": preferences,
        "gamed": [[row[key] for key in GAMED] for row in gamed],
        "fits": {name: both(rows, gamed, name) for name in names},
    }


def both(rows: list[dict], gamed: list[dict], name: str) -> dict:
    """Return the package's numbers as released, and those of its model solved to the end."""
    released, _ = measured(rows, gamed, name, {})
    exact, fitted = measured(rows, gamed, name, EXACT)
    return {
        "released": released,
        "exact": exact,
        "weights": dict(zip(fitted.feature_names_in_, fitted.coef_[0].tolist(), strict=True)),
        "penalty": float(fitted.C_[0]),
    }


def measured(rows: list[dict], gamed: list[dict], name: str, options: dict):
    """Run the package's function on a copy, and catch the model that it fits."""
    info = copy.deepcopy(glm_winrate.GLM_INFO[name])
    info["kwargs"] |= options
    caught = []

    def fitted(*args, **kwargs):
        caught.append(original(*args, **kwargs))
        return caught[-1]

    original = glm_winrate.fit_LogisticRegressionCV
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "df_gamed.csv"
        pd.DataFrame(gamed).to_csv(place, index=False)
        with (
            mock.patch.object(glm_winrate, "hf_hub_download", lambda **_: str(place)),
            mock.patch.object(glm_winrate, "fit_LogisticRegressionCV", fitted),
        ):
            found = glm_winrate.get_length_controlled_winrate(
                pd.DataFrame(rows), glm_name=name, save_weights_dir=None, glm_info=info
            )
    return {key: float(value) for key, value in found.items()}, caught[0]


def judge(draw: random.Random, difficulty: float, one: int, two: int, liking: float) -> float:
    """Return a preference from 1 to 2 that likes the longer answer."""
    logit = 0.4 - 0.5 * difficulty + liking * math.tanh((two - one) / 300) + draw.gauss(0, 0.7)
    return round(1 + logistic(logit), 4)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


if __name__ == "__main__":
    main()

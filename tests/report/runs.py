"""Run folders as recipes leave them: finished, without a gain, failed, running, damaged."""

import json
import math
import random
from pathlib import Path

HOSTILE = '</script><script>window.broken = 1</script><img src=x onerror="window.broken = 1">'
TOPICS = [
    "List three uses of baking soda",
    "Explain tides to a child",
    "Name a good first houseplant",
    "Schreibe einen Satz über Käse, Ähren und Straßen",
    "用一句话介绍长城",
    "اكتب جملة عن البحر",
    "Describe a rainy street",
    "Why do cats purr",
    "Give tips for a first 10 km run",
    "Suggest a title for a story about a lighthouse 🗼",
]
RULES = [
    "exactly three bullet points",
    "no commas",
    "all lower case",
    "JSON only",
    "at least 4 sentences",
]
BEFORE = (
    "Sure! Here is an answer. Baking soda can be used for cleaning, baking, and deodorising, "
    "and it is found in most kitchens."
)
AFTER = "* cleans pans without scratches\n* lifts the smell from a fridge\n* helps a cake to rise"


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_lines(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def about(recipe: str, status: str, reason: str = "", minutes: int = 11) -> dict:
    command = ["melior", recipe, "--model", "smollm2", "--data", "pairs.jsonl"]
    return {
        "command": [*command, "--out", f"runs/{recipe}", "--stop", "it's over; $HOME"],
        "recipe": recipe,
        "paper": "Meng, Xia and Chen 2024, arXiv:2405.14734" if recipe == "simpo" else "",
        "status": status,
        "reason": reason,
        "started": "2026-11-24T02:10:00+00:00",
        "finished": f"2026-11-24T02:{10 + minutes}:04+00:00" if status != "running" else "",
        "versions": {"melior": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "machine": {"cpu": "Some CPU @ 2.50GHz", "cores": 2, "platform": "Linux x86_64"},
        "git": "4a67352",
    }


def metrics(steps: int, speed: float, seed: int) -> list[dict]:
    draw, rows = random.Random(seed), []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-speed * step / 60)
        margin = 2.2 * done + draw.gauss(0, 0.18)
        rows.append(
            {
                "step": step,
                "epoch": round(step / 60, 3),
                "time": step * 4.1,
                "loss": 0.95 - 0.5 * done + draw.gauss(0, 0.04),
                "rewards/chosen": -1.1 + 0.3 * done + draw.gauss(0, 0.06),
                "rewards/rejected": -1.1 + 0.3 * done - margin,
                "rewards/margins": margin,
                "rewards/accuracies": min(1, max(0, 0.5 + 0.4 * done + draw.gauss(0, 0.08))),
                "logps/chosen": -118 - 24 * done + draw.gauss(0, 3),
                "logps/rejected": -121 - 70 * done + draw.gauss(0, 4),
                "grad_norm": 3 + draw.expovariate(1),
                "learning_rate": 5e-6 * min(1, step / 12) * (1 - step / (steps + 1)),
                "num_tokens": 900 * step,
                "rewards/constraints/mean": 0.3 + 0.2 * done + draw.gauss(0, 0.02),
            }
        )
        if step % 20 == 0:
            rows.append(
                {
                    "step": step,
                    "eval_loss": 0.99 - 0.45 * done,
                    "eval_rewards/accuracies": 0.5 + 0.33 * done,
                }
            )
    return rows


def samples(n: int, gain: float, seed: int) -> list[dict]:
    draw, rows = random.Random(seed), []
    for i in range(n):
        is_better, is_worse = draw.random() < gain, draw.random() < 0.08
        before = draw.choice([0.0, 1 / 3, 0.5])
        after = 1.0 if is_better else 0.0 if is_worse else before
        rule = RULES[i % len(RULES)]
        turns = [{"role": "user", "content": f"{TOPICS[i % len(TOPICS)]}: {rule}. ({i})"}]
        if i % 7 == 3:
            turns.insert(0, {"role": "system", "content": "Follow the constraints to the letter."})
        rows.append(
            {
                "prompt": turns if i % 5 else turns[-1]["content"],
                "before": BEFORE * (1 + i % 3),
                "after": AFTER if is_better else BEFORE,
                "score_before": before,
                "score_after": after,
                "facts": {"subset": rule, "constraints": 1 + i % 3},
            }
        )
    rows[0]["prompt"] = f"What does {HOSTILE} do in a page?"
    rows[0]["after"] = f"It must not run: {HOSTILE} <b>not bold</b> &amp; \x00 \ud83d"
    rows[1]["after"] = "A very long answer that goes on. " * 400
    rows[2]["after"] = ""
    return rows


def split(path: str, rows: int, findings: list[dict]) -> dict:
    draw = random.Random(rows)
    lengths = {
        key: sorted(int(draw.lognormvariate(mean, 0.5)) for _ in range(rows))
        for key, mean in (("prompt", 3.4), ("chosen", 4.4), ("rejected", 4.6))
    }
    return {
        "sources": [{"path": path, "sha256": "9f2c4d7e" * 8, "rows": rows}],
        "rows": rows,
        "sha256": "11aa22bb" * 8,
        "findings": findings,
        "left_out": ["pairs.jsonl:7"] if findings else [],
        "cut": 2 if findings else 0,
        "lengths": lengths,
        "truncation": [
            {"max_length": 256, "rows": 9, "share": 0.03},
            {"max_length": 512, "rows": 0, "share": 0.0},
        ],
    }


FINDINGS = [
    {
        "level": "warning",
        "code": "equal-answers",
        "count": 3,
        "share": 0.01,
        "text": "rows have equal answers: nothing can be learned from them",
        "examples": ["pairs.jsonl:12", "pairs.jsonl:80", "pairs.jsonl:211"],
    },
    {
        "level": "note",
        "code": "length-bias",
        "count": 171,
        "share": 0.57,
        "text": "the longer answer is the chosen one (95 % interval 51.3% to 62.5%)",
        "examples": [],
    },
]


HEALTH = [
    {
        "level": "warning",
        "code": "displacement",
        "text": "chosen answers, too, become less likely: -1.2 to -1.9 nats a token",
        "remedy": "lower --learning-rate, or --sft-weight 0.1",
        "first": 60,
        "last": 180,
        "curves": ["logps/chosen"],
    },
    {
        "level": "note",
        "code": "wrong-start",
        "text": "the first loss is 0.78",
        "remedy": "run once with --dtype fp32",
        "first": 1,
        "last": 1,
        "curves": ["loss"],
    },
]


def comparison(name: str, before: float, difference: float, half: float, **changes) -> dict:
    return {
        "name": name,
        "unit": "share",
        "before": before,
        "after": before + difference,
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "confidence": 0.95,
        "n": 100,
        "p_value": 0.0004 if abs(difference) > half else 0.41,
        "higher_is_better": True,
    } | changes


def evaluation(gain: float) -> dict:
    wins = {"wins": 41, "ties": 50, "losses": 9, "win_rate": 0.66, "low": 0.563, "high": 0.745}
    subsets = [(rule, 0.3 + i / 20, gain * (0.4 + i / 4)) for i, rule in enumerate(RULES)]
    return {
        "title": "100 held-out instructions with verifiable constraints",
        "comparisons": [
            comparison("constraints met", 0.31, gain, 0.06),
            comparison("all constraints of a prompt met", 0.22, gain * 0.8, 0.07),
            comparison("answer length", 64.0, 5.2, 6.1, unit="words", higher_is_better=None),
        ],
        "win_rate": wins,
        "facts": {"kl to the start": 3.2, "tokens per answer": 88.4, "judge": "rules"},
        "subsets": [
            {"name": rule, "n": 20, "before": level, "after": level + own,
             "low": own - 0.12, "high": own + 0.12}
            for rule, level, own in subsets
        ],
    }  # fmt: skip


def config(recipe: str, rate: float) -> str:
    return (
        f"recipe: {recipe}\nmodel:\n  model: smollm2\n  dtype: fp32\n  lora_r: 16\n"
        f"data:\n  data:\n  - pairs.jsonl\noptim:\n  learning_rate: {rate}\nbeta: 2.0\nseed: 42\n"
    )


def finished(
    folder: Path,
    recipe: str = "simpo",
    *,
    gain: float = 0.21,
    rate: float = 5e-6,
    steps: int = 180,
    n: int = 100,
) -> Path:
    folder.mkdir(parents=True)
    seed = len(recipe)
    write(folder / "run.json", about(recipe, "finished"))
    (folder / "config.yaml").write_text(config(recipe, rate), encoding="utf-8")
    held_out = split("held_out.jsonl", 100, [])
    write(
        folder / "data.json", {"train": split("pairs.jsonl", 300, FINDINGS), "held_out": held_out}
    )
    write_lines(folder / "metrics.jsonl", metrics(steps, 1 + gain, seed))
    write(folder / "evaluation.json", evaluation(gain))
    write(folder / "health.json", {"findings": HEALTH if recipe == "simpo" else []})
    rows = samples(n, 2 * gain, seed)
    text = "".join(json.dumps(row) + "\n" for row in rows)  # escaped: half a character is in there
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    draw = random.Random(seed)
    write_lines(
        folder / "scores.jsonl",
        [
            {
                "group": group,
                "reward": min(1.0, max(0.0, draw.gauss(0.31 + lift, 0.2))),
                "length": int(draw.lognormvariate(4.3 + lift, 0.4)),
            }
            for group, lift in (("before", 0.0), ("after", gain))
            for _ in range(4 * n)
        ],
    )
    (folder / "model").mkdir()
    return folder


def failed(folder: Path) -> Path:
    folder.mkdir(parents=True)
    reason = "ValueError: step 37: the loss is nan; rows pairs.jsonl:12, pairs.jsonl:80"
    write(folder / "run.json", about("dpo", "failed", reason, 2))
    (folder / "config.yaml").write_text(config("dpo", 1e-2), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", [*metrics(36, 9, 5), {"step": 37, "loss": None}])
    error = FINDINGS[0] | {"level": "error", "count": 170, "share": 0.57}
    write(folder / "data.json", {"train": split("pairs.jsonl", 300, [error])})
    return folder


def running(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write(folder / "run.json", about("dpo", "running"))
    lines = [json.dumps(row) for row in metrics(12, 1, 3)]
    text = "\n".join([*lines, '{"step": 13, "loss": 0.'])
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def bare(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{", encoding="utf-8")
    return folder


if __name__ == "__main__":
    import sys

    root = Path(sys.argv[1])
    finished(root / "simpo-demo")
    finished(root / "dpo-small", "dpo", gain=0.02, rate=5e-7)
    failed(root / "dpo-hot")
    running(root / "dpo-now")
    bare(root / "bare")

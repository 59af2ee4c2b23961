"""The README of a saved model: base, data, method, options, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from melior.models.names import EMBEDDED, EMBEDDED_FROM


@dataclass(frozen=True)
class Card:
    """What a model card says."""

    name: str
    base: str
    method: str
    paper: str
    data: Sequence[Mapping[str, Any]]
    """Sources with path, rows and sha256."""
    options: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    """As in a run's `evaluation.json`."""
    metrics: Mapping[str, float]
    """Of the last step."""
    versions: Mapping[str, str]
    command: str
    is_adapter: bool = False
    is_reward_model: bool = False
    kind: str = ""
    """Of a reward model that gives more than one number."""

    def text(self) -> str:
        """Return the page: YAML for a hub, then Markdown for people."""
        head = {
            "library_name": "peft" if self.is_adapter else "transformers",
            "base_model": self.base,
            "model_name": self.name,
            "pipeline_tag": "text-classification" if self.is_reward_model else "text-generation",
            "tags": ["melior", self.method, self._kind()],
        }
        if self.base == EMBEDDED:
            head |= {"base_model": EMBEDDED_FROM, "license": "apache-2.0"}
        parts = [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            f"# {self.name}",
            f"`{self.base}`, trained with {self.method} ({self.paper}) by melior.",
            self._start(),
            "## Data\n\n" + _table(("source", "rows", "sha256"), [*map(_source, self.data)]),
            self._evaluation(),
            "## Last step\n\n" + _table(("metric", "value"), _rows(self.metrics)),
            "## Options\n\n```\n" + self.command + "\n```\n\n"
            + _table(("option", "value"), _rows(self.options)),
            "## Versions\n\n" + _table(("package", "version"), _rows(self.versions)),
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part) + "\n"

    def _kind(self) -> str:
        return "reward-model" if self.is_reward_model or self.kind else "preference-optimization"

    def _start(self) -> str:
        if self.is_reward_model or self.kind:
            return _STARTS.get(self.kind, _REWARD_START)
        load = "AutoPeftModelForCausalLM" if self.is_adapter else "AutoModelForCausalLM"
        package = "peft" if self.is_adapter else "transformers"
        return (
            "## Quick start\n\nIn the folder of this page:\n\n```python\n"
            f"from {package} import {load}\nfrom transformers import AutoTokenizer\n\n"
            f'model = {load}.from_pretrained(".")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'turns = [{"role": "user", "content": "Hello!"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0]))\n```"
        )

    def _evaluation(self) -> str:
        rows = [
            (
                str(one["name"]),
                _number(one["before"]),
                _number(one["after"]),
                _number(one["difference"]),
                f"{_number(one['low'])} to {_number(one['high'])}",
                str(one["n"]),
            )
            for one in self.evaluation.get("comparisons", [])
        ]
        if not rows:
            return "## Evaluation\n\nNot evaluated: no held-out data was given."
        head = ("held out", "before", "after", "difference", "95 % interval", "n")
        return "## Evaluation\n\n" + _table(head, rows)


_REWARD_START = """## Quick start

In the folder of this page:

```python
from transformers import pipeline

read = pipeline("text-classification", model=".")
turns = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello, how can I help?"},
]
text = read.tokenizer.apply_chat_template(turns, tokenize=False)
print(read(text, add_special_tokens=False)[0]["score"])
```

The score is the answer's reward, read at its end token; only differences between answers to one
prompt mean something. Without a chat template the text is prompt, answer and end token."""


_STARTS = {
    "aspects": """## Quick start

In the folder of this page:

```python
from transformers import pipeline

read = pipeline("text-classification", model=".")
turns = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello, how can I help?"},
]
text = read.tokenizer.apply_chat_template(turns, tokenize=False)
print(read(text, add_special_tokens=False, top_k=None, function_to_apply="none"))
```

These are the answer's ratings by each objective, in the unit interval. How a prompt mixes them to
one score, and the raters' own scales, are known to `melior score --with FOLDER`; `--explain` says
what each objective adds.""",
    "general": """## Quick start

```
melior score groups.jsonl --with FOLDER --out scored.jsonl
```

compares all answers to a prompt: `comparisons` holds the log-odds that each (row) beats each other
one (column), which may go in circles; an answer's `score` is the mean of its row. Other programs
read an answer's embedding from the folder of this page:

```python
from transformers import pipeline

read = pipeline("text-classification", model=".")
turns = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello, how can I help?"},
]
text = read.tokenizer.apply_chat_template(turns, tokenize=False)
print(read(text, add_special_tokens=False, top_k=None, function_to_apply="none"))
```

These are the coordinates `a0 b0 a1 b1 ...`, two to a plane, before they get the length 1 where
`melior.json` has `is_normalised`. A score is skew-symmetric: the sum over planes of
`gate (a_i b_j - b_i a_j)`, with the gate in the folder `gate`, read at the prompt's last token.""",
    "pairwise": """## Quick start

In the folder of this page:

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (
    kind.from_pretrained(".") for kind in (AutoModelForCausalLM, AutoTokenizer)
)
letters = tokenizer.convert_tokens_to_ids(["A", "B"])


def first_wins(request, first, second):
    asked = (
        f"[CONTEXT] \\n\\n\\n<turn> user\\n {request}\\n\\n\\n"
        f" [RESPONSE A] {first} [RESPONSE B] {second} \\n"
    )
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )
    with torch.no_grad():
        return model(**inputs).logits[0, -1, letters].float().softmax(-1)[0].item()


one, two = "Hello, how can I help?", "What do you want?"
print((first_wins("Hello!", one, two) + 1 - first_wins("Hello!", two, one)) / 2)
```

That is the probability that the first answer is the better one: both orders are averaged, as a
model favours a slot. `melior score --with FOLDER` compares all answers to a prompt, of several
turns, too, and breaks up what looks like a tag inside an answer.""",
}
"""Of reward models that give more than one number or compare, by their kind."""


def _source(source: Mapping[str, Any]) -> tuple[str, ...]:
    return (str(source["path"]), str(source["rows"]), str(source["sha256"])[:16])


def _rows(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(name, _number(value)) for name, value in values.items()]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)

"""The parts of the page on how it came about: curves, distributions, data, options, command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from statistics import median

from melior.records import Facts
from melior.report import charts, health, words
from melior.report.load import Run, mapping, mappings, number, numbers, spoken
from melior.report.markup import Child, Html, chip, hue, join, table, tag

PANELS: list[tuple[str, dict[str, str]]] = [
    ("Normalised score in the task", {"score": ""}),
    ("Return in the task", {"return": ""}),
    ("Loss", {"loss": ""}),
    ("Pairs ranked right", {"rewards/accuracies": ""}),
    ("Reward margin", {"rewards/margins": ""}),
    ("Rewards", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
    ("Pairs ranked right by the reward model", {"accuracy": ""}),
    ("Margin of the reward model", {"margin": ""}),
    ("Rewards of a batch", {"min_reward": "least", "mean_reward": "mean", "max_reward": "most"}),
    ("Log of the mean reward drawn", {"log_mean_reward": ""}),
    ("Log-probability", {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    ("Success at what is asked for", {"success": ""}),
    ("Total variation from the reward", {"total_variation": ""}),
    ("Divergence of what is drawn from the target", {"divergence": ""}),
    ("Distance of all marginals from the target", {"distance": ""}),
    ("Modes built so far", {"modes": ""}),
    ("Reward", {"reward": ""}),
    ("KL to the start", {"kl": ""}),
    ("Entropy", {"entropy": ""}),
    ("Answer length", {"completions/mean_length": ""}),
    ("Answer length in training", {"lengths/chosen": "chosen", "lengths/rejected": "rejected"}),
    ("Held to be worth", {"policy/critic/value": "critics"}),
    ("Length of roll-outs", {"imagined/length": ""}),
    ("Share of roll-outs rejected", {"imagined/rejected": ""}),
    ("Real and generated told apart", {"reward/discriminator/accuracy": ""}),
    ("Gradient norm", {"grad_norm": ""}),
    ("Learning rate", {"learning_rate": ""}),
]
FIRST_PANELS = 6
FEW = 20
"""Fewer numbers than these make no histogram."""


def curves(runs: Sequence[Run]) -> Html | None:
    """Draw the metrics over steps; the less known ones folded away."""
    known = {key for _, keys in PANELS for key in keys}
    found = {
        key.removeprefix("eval_"): None
        for run in runs
        for row in run.steps
        for key, value in row.items()
        if key not in {"step", "epoch", "time"} and number(value) is not None
    }
    many = len(runs) > 1
    known_panels = [panel for title, keys in PANELS for panel in _split(title, keys, many)]
    panels = [*known_panels, *((key, {key: ""}) for key in found if key not in known)]
    drawn = [chart for title, keys in panels if (chart := _panel(title, keys, runs)) is not None]
    if not drawn:
        return None
    rest = drawn[FIRST_PANELS:]
    is_judged = any(key.startswith("eval_") for run in runs for row in run.steps for key in row)
    return tag(
        "section",
        tag("h2", "Training"),
        tag("p", "Dots: held-out data.", class_="note") if many and is_judged else None,
        tag("div", drawn[:FIRST_PANELS], class_="charts"),
        tag(
            "details",
            tag("summary", words.count(len(rest), "more curve")),
            tag("div", rest, class_="charts"),
        )
        if rest
        else None,
        id="training",
    )


def distributions(runs: Sequence[Run]) -> Html | None:
    """Draw lengths and rewards of the answers before and after."""
    drawn = []
    for key, title, unit in (("reward", "Reward of the answers", ""),
                             ("length", "Length of the answers", "")):  # fmt: skip
        groups: list[tuple[str, int, list[float]]] = []
        for place, run in enumerate(runs):
            for group, values in spread(run, key).items():
                if len(runs) > 1 and group == "before" and place:
                    continue  # one start for all is enough
                name = group if len(runs) == 1 or group == "before" else run.label
                groups.append((name, 6 if group == "before" else hue(place), values))
        if any(values for _, _, values in groups):
            drawn.append(charts.histogram(title, groups, unit))
    if not drawn:
        return None
    return tag(
        "section",
        tag("h2", "Distributions"),
        tag("div", drawn, class_="charts"),
        id="distributions",
    )


def spread(run: Run, key: str) -> dict[str, list[float]]:
    """Return rewards or lengths before and after: of the scores, else of the samples."""
    result: dict[str, list[float]] = {"before": [], "after": []}
    for row in run.scores:
        value, group = number(row.get(key)), str(row.get("group"))
        if value is not None and group in result:
            result[group].append(value)
    if any(result.values()):
        return result
    for row in run.samples:
        for group, values in result.items():
            if key == "reward":
                value = number(row.get(f"score_{group}"))
            else:
                said = " ".join(text for _, text in spoken(row[group])) if group in row else None
                value = None if said is None else float(len(said.split()))
            if value is not None:
                values.append(value)
    return result


def data(runs: Sequence[Run]) -> Html | None:
    """Write what was trained and judged on; runs on the same data share an entry."""
    found: dict[str, tuple[Facts, str, list[int]]] = {}
    for place, run in enumerate(runs):
        for key, title in (("train", "Training data"), ("held_out", "Held-out data")):
            part = mapping(run.data.get(key))
            if part:
                same = json.dumps([key, part], sort_keys=True)
                found.setdefault(same, (part, title, []))[2].append(place)
    if not found:
        return None
    blocks = [
        tag(
            "div",
            tag(
                "h3", title, [tag("small", chip(i), runs[i].label) for i in places if len(runs) > 1]
            ),
            _part(part),
            class_="data",
        )
        for part, title, places in found.values()
    ]
    return tag("section", tag("h2", "Data"), tag("div", blocks, class_="columns"), id="data")


def config_differences(runs: Sequence[Run]) -> Html | None:
    """Write the options in which the runs differ."""
    if len(runs) < 2:
        return None
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [
        [key, *(_option(run.config[key]) if key in run.config else words.DASH for run in runs)]
        for key in keys
        if len({_option(run.config.get(key)) for run in runs if run.config}) > 1
    ]
    if not rows:
        return None
    heads = ["Option", *(join([chip(i), run.label]) for i, run in enumerate(runs))]
    return tag(
        "section", tag("h2", "What differs"), table(heads, rows, "options"), id="differences"
    )


def origins(runs: Sequence[Run]) -> Html:
    """Write how each run was made: command, options, versions, machine."""
    blocks = [_origin(run, i, len(runs) > 1) for i, run in enumerate(runs)]
    return tag("section", tag("h2", "How it was made"), blocks, id="origin")


def _part(part: Facts) -> Html:
    sources = [
        tag(
            "li",
            tag("b", str(source.get("path"))),
            f" {words.count(number(source.get('rows')) or 0, 'row')} ",
            tag(
                "code", str(source.get("sha256") or "")[:12], title=str(source.get("sha256") or "")
            ),
        )
        for source in mappings(part.get("sources"))
    ]
    findings = mappings(part.get("findings"))
    rows = number(part.get("rows"))
    return join(
        [
            tag("p", words.count(rows, "row"), class_="big") if rows is not None else None,
            tag("ul", sources, class_="sources"),
            tag("ul", [_finding(row) for row in findings], class_="findings") if findings else None,
            tag("p", "✓ The data check found nothing.", class_="note")
            if part.get("findings") == []
            else None,
            _left_out(part),
            _lengths(mapping(part.get("lengths"))),
            _weights(part),
            _truncation(mappings(part.get("truncation"))),
        ]
    )


def _finding(row: Facts) -> Html:
    level = str(row.get("level"))
    mark = {"error": "✕", "warning": "!"}.get(level, "i")
    share, size = number(row.get("share")), number(row.get("count"))
    many = ", ".join(
        part
        for part in (
            words.count(size, "row") if size is not None else "",
            words.amount(share, "share") if share is not None else "",
        )
        if part
    )
    where = row.get("examples")
    examples = [str(example) for example in where[:20]] if isinstance(where, list) else []
    return tag(
        "li",
        tag("span", mark, class_="mark", role="img", aria_label=level),
        tag(
            "div",
            tag("b", words.finding(row)),
            f" {row.get('text') or ''} ",
            tag("small", many) if many else None,
            tag("details", tag("summary", "Where"), tag("code", ", ".join(examples)))
            if examples
            else None,
        ),
        class_=level if level in {"error", "warning"} else "hint",
    )


def _left_out(part: Facts) -> Html | None:
    left, cut = part.get("left_out"), number(part.get("cut"))
    said = [words.count(len(left), "row") + " left out"] if isinstance(left, list) and left else []
    said += [f"{words.count(cut, 'row')} cut"] if cut else []
    return tag("p", f"Too long: {', '.join(said)}.", class_="note") if said else None


def _lengths(lengths: Facts) -> list[Html]:
    found = {key: own for key, values in lengths.items() if (own := numbers(values))}
    if not found:
        return []
    rows: list[list[Child]] = [
        [key, *(words.figure(measure(own)) for measure in (min, median, max))]
        for key, own in found.items()
    ]
    parts = [table(["Tokens", "shortest", "median", "longest"], rows, "numbers")]
    answers = [(k, i, found[k]) for i, k in enumerate(("chosen", "rejected")) if k in found]
    if any(len(own) >= FEW for *_, own in answers):
        parts.append(charts.histogram("Length of answers", answers, "tokens"))
    return parts


def _weights(part: Facts) -> list[Html]:
    """Draw margins that a reward model gave the pairs, and the weights made of them."""
    titles = {"margins": "Margin of the pairs", "weights": "Weight of the pairs"}
    found = {title: numbers(part.get(key)) for key, title in titles.items()}
    return [charts.histogram(title, [("pairs", 0, own)]) for title, own in found.items() if own]


def _truncation(rows: Sequence[Facts]) -> Html | None:
    cells: list[list[Child]] = [
        [
            words.figure(number(row.get("max_length"))),
            words.figure(number(row.get("rows"))),
            words.amount(number(row.get("share")), "share"),
        ]
        for row in rows
    ]
    return table(["Maximum length", "rows too long", "share"], cells, "numbers") if cells else None


def _split(title: str, keys: dict[str, str], many: bool) -> list[tuple[str, dict[str, str]]]:
    """Give each key a panel of its own where several runs are drawn."""
    if not many or len(keys) == 1:
        return [(title, keys)]
    return [(f"{title}, {name}", {key: ""}) for key, name in keys.items()]


def _panel(title: str, keys: dict[str, str], runs: Sequence[Run]) -> Html | None:
    lines = []
    many = len(runs) > 1
    for place, run in enumerate(runs):
        for part, (key, name) in enumerate(keys.items()):
            for prefix, kind in (("", ""), ("eval_", "held out")):
                points = run.curve(prefix + key)
                said = (run.label if many else "", name, kind)
                label = " ".join(word for word in said if word) or "training"
                color = hue(place if many else part + 2 * bool(prefix))
                if points:
                    lines.append(charts.Line(label, points, color, part, is_sparse=bool(prefix)))
    as_percent = all(key.endswith("accuracies") for key in keys)
    bands = [] if many else health.bands(runs[0], keys)
    return charts.line_chart(title, lines, as_percent=as_percent, bands=bands) if lines else None


def _origin(run: Run, place: int, many: bool) -> Html:
    command = run.about.get("command")
    line = shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")
    started = words.moment(run.about.get("started"))
    machine, versions = mapping(run.about.get("machine")), mapping(run.about.get("versions"))
    facts = {
        "Recipe": run.about.get("recipe"),
        "Paper": run.about.get("paper"),
        "Started": f"{started:%d %b %Y, %H:%M %Z}".strip() if started else None,
        "Took": words.took(run),
        "Versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "Machine": ", ".join(f"{value} cores" if key == "cores" else str(value)
                             for key, value in machine.items()),
        "Notes": "; ".join(map(str, run.about.get("notes") or ())),
        "Code": run.about.get("git"),
        "Folder": str(run.folder),
        "Model": str(run.folder / "model") if run.has_model else None,
    }  # fmt: skip
    options = [[key, _option(value)] for key, value in run.config.items()]
    known = {key: str(value) for key, value in facts.items() if value}
    return tag(
        "div",
        tag("h3", chip(place), run.label) if many else None,
        _command(line) if line else None,
        tag("dl", [(tag("dt", key), tag("dd", value)) for key, value in known.items()]),
        tag(
            "details",
            tag("summary", f"All {len(options)} options"),
            table(["Option", "Value"], options, "options"),
        )
        if options
        else None,
        class_="origin",
    )


def _command(line: str) -> Html:
    button = tag("button", "Copy", type="button", class_="copy", data_copy=line)
    return tag("div", tag("pre", tag("code", line), tabindex=0), button, class_="command")


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

"""What became of scorers on labelled answers, as lines for the terminal and one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from melior.evaluation.compare import Interval
from melior.evaluation.preferences import PairScores
from melior.evaluation.reward_bench import Share
from melior.evaluation.scorers import Between, Circles, Findings
from melior.evaluation.uncertainty import SHARES, Sureness
from melior.report import pictures, words
from melior.report.markup import Child, Html, table, tag
from melior.report.page import document, write_page


def lines(
    found: Sequence[Findings], pairs: Sequence[Between], around: Circles | None
) -> Iterator[str]:
    """Yield what matters of each scorer, of each two, and of all."""
    for one in found:
        yield f"{one.name}: best answer first in {_said(one.accuracies.everything)}"
        for name, share in _shown(one).items():
            yield f"  {name}: {_said(share)}"
        if one.accuracies.overall is not None:
            yield f"  mean of the sections: {one.accuracies.overall:.1%}"
        yield f"  {_calibration(one)}"
        for sure in one.sureness:
            yield f"  {_sure(sure)}"
        yield f"  {_lengths(one)}"
        if one.circles is not None:
            yield f"  its comparisons rank {_circles(one.circles)}"
        if one.n_missing:
            yield f"  left out: {words.count(one.n_missing, 'prompt')} with an answer not scored"
        if one.answers_per_second is not None:
            yield f"  {words.figure(one.answers_per_second)} answers a second"
    for pair in pairs:
        yield f"{pair.first} and {pair.second}: {_agreement(pair)}"
    if around is not None:
        yield f"the majority ranks {_circles(around)}"


def write_scorers(
    place: Path,
    data: str,
    found: Sequence[Findings],
    pairs: Sequence[Between],
    around: Circles | None,
) -> Path:
    """Write the page and return where it lies."""
    best = max(found, key=lambda one: one.accuracies.everything.accuracy)
    share = best.accuracies.everything
    sentence = f"{best.name} puts the best answer first in {share.accuracy:.1%} of prompts"
    ends = f"{100 * (share.low or 0):.1f} to {100 * (share.high or 0):.1f} %"
    lead = f"95 % interval {ends}, n = {words.figure(share.n)}; ties share the first place."
    header = tag(
        "header",
        tag("p", tag("b", data), class_="eyebrow"),
        tag("h1", sentence),
        tag("p", lead, class_="lead"),
        class_="hero",
    )
    parts = {
        "Accuracy": _accuracy(found),
        "Calibration": _reliability(found),
        "Sureness": _sureness(found),
        "Length": _bias(found),
        "Agreement": _between(found, pairs, around),
    }
    write_page(place, document(", ".join(one.name for one in found), header, parts))
    return place


def _shown(one: Findings) -> dict[str, Share]:
    """Return sections where there are some, and else the subsets, where there are several."""
    own = one.accuracies
    return own.sections or (own.subsets if len(own.subsets) > 1 else {})


def _said(share: Share) -> str:
    ends = "" if share.low is None else f" ({share.low:.1%} to {share.high:.1%})"
    return f"{share.accuracy:.1%}{ends}, n = {words.figure(share.n)}"


def _calibration(one: Findings) -> str:
    own = one.calibration
    said = f"calibration error {own.error:.3f}"
    if own.temperature is None or own.error_at_temperature is None:
        return f"{said}; no temperature: {own.why_not}"
    return (
        f"{said}; at temperature {words.figure(own.temperature)}, fitted on the other half,"
        f" {own.error_at_temperature:.3f}"
    )


def _sure(one: Sureness) -> str:
    half, everything = one.accuracies[SHARES.index(0.5)], one.accuracies[-1]
    said = f"by {one.by} the surest half is right in {half:.1%}, all in {everything:.1%}"
    if one.auroc is None:
        return said
    own = one.auroc
    ends = "" if own.low is None else f" ({own.low:.2f} to {own.high:.2f})"
    return f"{said}; it tells right from wrong pairs with an area of {own.value:.2f}{ends}"


def _lengths(one: Findings) -> str:
    bias = one.lengths.bias
    parts = [
        f"right in {share.accuracy:.1%} of {share.n} pairs whose better answer is {name}"
        for name, share in (("shorter", bias.chosen_shorter), ("longer", bias.chosen_longer))
        if share is not None
    ]
    return "; ".join([*parts, f"Spearman of score and length {one.lengths.of_scores:+.2f}"])


def _agreement(pair: Between) -> str:
    gain = pair.accuracy
    ends = words.interval(gain.low, gain.high, "share")
    return (
        f"{pair.agreement:.1%} of pairs ranked alike, Spearman of margins {pair.correlation:+.2f};"
        f" best answer first: {words.change(gain.difference, 'share')} for {pair.second} ({ends}),"
        f" {words.p_value(gain.p_value)}"
    )


def _circles(around: Circles) -> str:
    triples = words.count(around.decided, "decided triple")
    return f"{around.cyclic} of {triples} of answers in a circle"


def _accuracy(found: Sequence[Findings]) -> Html:
    rows = [_dot(one.name, one.accuracies.everything) for one in found]
    chance = pictures.Row("two answers by chance", (), Interval(0.5, None, None, 0.95, 1))
    drawn = pictures.dots("Best answer first", "share of prompts", rows, level=chance)
    names = list(dict.fromkeys(name for one in found for name in one.accuracies.subsets))
    sections = list(dict.fromkeys(name for one in found for name in one.accuracies.sections))
    parts = [pictures.embedded(drawn)]
    if sections and sections != names:
        shares = [[one.accuracies.sections.get(name) for one in found] for name in sections]
        means = [one.accuracies.overall for one in found]
        last = [["Mean of the sections", "", *(f"{m:.1%}" if m is not None else "" for m in means)]]
        parts.append(_table("Section", found, sections, shares, last))
    if len(names) > 1:
        subsets = [[one.accuracies.subsets.get(name) for one in found] for name in names]
        parts.append(_table("Subset", found, names, subsets, []))
    return _section("Accuracy", parts)


def _table(
    head: str,
    found: Sequence[Findings],
    names: Sequence[str],
    shares: Sequence[Sequence[Share | None]],
    last: Sequence[Sequence[str]],
) -> Html:
    rows: list[Sequence[Child]] = [
        [name, _sizes(own), *(_cell(share) if share else words.DASH for share in own)]
        for name, own in zip(names, shares, strict=True)
    ]
    heads = [head, "Prompts", *(one.name for one in found)]
    return tag("div", table(heads, [*rows, *last], "standings"), class_="comparison")


def _sizes(shares: Sequence[Share | None]) -> str:
    """Return how many prompts there are; several numbers where scorers left some out."""
    return " / ".join(dict.fromkeys(words.figure(share.n) for share in shares if share))


def _cell(share: Share) -> str:
    ends = (
        ""
        if share.low is None or share.high is None
        else (f" ({100 * share.low:.1f} to {100 * share.high:.1f})")
    )
    return f"{share.accuracy:.1%}{ends}"


def _reliability(found: Sequence[Findings]) -> Html:
    marks = {
        "as sure as right": [pictures.Mark("equal", "", x, x) for x in (0.5, 1.0)],
        **{
            one.name: [
                pictures.Mark(f"{one.name}, {b.n} pairs", "", b.confidence, b.accuracy)
                for b in one.calibration.bins
            ]
            for one in found
        },
    }
    drawn = pictures.plane("How sure, how right", "confidence", "share ranked right", marks)
    said = [tag("li", f"{one.name}: {_calibration(one)}.") for one in found]
    return _section("Calibration", [pictures.embedded(drawn), tag("ul", said)])


def _sureness(found: Sequence[Findings]) -> Html:
    marks = {
        f"{one.name}, {own.by}" if len(one.sureness) > 1 else one.name: [
            pictures.Mark(f"{own.by}, {share:.0%}", "", share, accuracy)
            for share, accuracy in zip(SHARES, own.accuracies, strict=True)
        ]
        for one in found
        for own in one.sureness
    }
    drawn = pictures.plane("The surest pairs", "share of pairs taken", "share ranked right", marks)
    said = [tag("li", f"{one.name}: {_sure(own)}.") for one in found for own in one.sureness]
    return _section("Sureness", [pictures.embedded(drawn), tag("ul", said)])


def _bias(found: Sequence[Findings]) -> Html:
    rows = [
        _dot(f"{one.name}, {name}", share)
        for one in found
        for name, share in (
            ("shorter", one.lengths.bias.chosen_shorter),
            ("longer", one.lengths.bias.chosen_longer),
        )
        if share is not None
    ]
    said = tag("ul", [tag("li", f"{one.name}: {_lengths(one)}.") for one in found])
    if not rows:
        return _section("Length", [said])
    title = "Pairs ranked right, by which answer is the better one"
    return _section(
        "Length", [pictures.embedded(pictures.dots(title, "share of pairs", rows)), said]
    )


def _between(
    found: Sequence[Findings], pairs: Sequence[Between], around: Circles | None
) -> Html | None:
    said = [f"{pair.first} and {pair.second}: {_agreement(pair)}." for pair in pairs]
    said += [f"{one.name}'s comparisons rank {_circles(one.circles)}."
             for one in found if one.circles]  # fmt: skip
    said += [f"The majority ranks {_circles(around)}."] if around else []
    return _section("Agreement", [tag("ul", [tag("li", one) for one in said])]) if said else None


def _dot(name: str, share: Share | PairScores) -> pictures.Row:
    return pictures.Row(name, (), Interval(share.accuracy, share.low, share.high, 0.95, share.n))


def _section(name: str, parts: Sequence[Child]) -> Html:
    return tag("section", tag("h2", name), parts, id=name.lower())

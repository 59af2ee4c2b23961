"""Lines keep their ends and extremes, ticks are round, and text never becomes markup."""

import json
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from melior.report import charts, markup
from melior.report.markup import Html, tag

FINITE = st.floats(-1e9, 1e9)


@given(st.lists(FINITE, min_size=1, max_size=900), st.integers(10, 300))
def test_thinned_lines_keep_ends_and_extremes(values, most):
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = charts.thin(points, most)
    assert len(kept) <= max(most, len(points) if len(points) <= most else 0)
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {max(v for _, v in kept), min(v for _, v in kept)} == {max(values), min(values)}


@given(FINITE, st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low, width):
    high = low + width
    if high - low < abs(low) * 1e-12:
        return  # no room between neighbouring floats
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - width * 1e-6 <= value <= high + width * 1e-6 for value in found)
    assert found == sorted(set(found))


def test_ticks_are_round():
    assert charts.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert charts.ticks(3, 178, 5) == [50, 100, 150]
    assert charts.ticks(1, 12, 5, are_whole=True) == [5, 10]
    assert charts.ticks(1, 2, 5, are_whole=True) == [1, 2]


@given(st.lists(FINITE, min_size=1, max_size=300))
def test_smoothing_stays_between_the_extremes_and_keeps_a_straight_line(values):
    points = [(float(i), v) for i, v in enumerate(values)]
    slack = 1e-6 * (1 + max(abs(v) for v in values))
    for _, value in charts.smooth(points):
        assert min(values) - slack <= value <= max(values) + slack
    straight = [(float(i), 2.0 * i) for i in range(50)]
    assert charts.smooth(straight)[2:-2] == straight[2:-2]


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_every_chart_is_finite_whatever_the_numbers(values):
    points = [(float(step), value) for step, value in enumerate(values)]
    chart = charts.line_chart("Loss", [charts.Line("training", points, 0)])
    chart += charts.histogram("Reward", [("before", 6, values), ("after", 0, [])])
    assert not re.search(r"\b(nan|inf)\b", chart)


def test_a_chart_says_what_it_shows():
    line = charts.Line("chosen <b>", [(1.0, 0.98), (200.0, 0.44)], 0)
    chart = charts.line_chart("Loss", [line])
    assert "Loss over steps: chosen &lt;b&gt; from 0.98 to 0.44." in chart
    attributes = []
    parser = HTMLParser()
    parser.handle_starttag = lambda _, found: attributes.append(dict(found))
    parser.feed(chart)
    data = json.loads(attributes[0]["data-chart"])
    assert data["lines"] == [["chosen <b>", 0, [[1.0, 0.98], [200.0, 0.44]]]]


@given(st.text())
def test_text_is_never_markup(said):
    seen = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_starttag = lambda name, found: seen.append((name, dict(found)))
    parser.feed(tag("p", said, title=said))
    parser.close()
    clean = markup.CONTROL.sub("\N{REPLACEMENT CHARACTER}", said)
    assert [name for name, _ in seen] == ["p"]
    assert seen[0][1]["title"] == clean


def test_attributes_and_children():
    built = tag("input", class_="a", aria_label='"', hidden=True, checked=False, value=None)
    assert built == '<input class="a" aria-label="&quot;" hidden>'
    assert tag("p", ["<", Html("<br>"), None], ["x"], width=1 / 3) == (
        '<p width="0.333333">&lt;<br>x</p>'
    )
    assert markup.text("\ud83d a \ud83d\ude00") == "\ufffd a 😀"

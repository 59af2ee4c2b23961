"""Pictures of stages: each kind is drawn with what it says, and what cannot be read is left out."""

import json
import re
from urllib.parse import quote

import pytest

from melior.report import drawn, words
from melior.report.load import read_run


def page_of(tmp_path, *pictures):
    (tmp_path / "evaluation.json").write_text(json.dumps({"pictures": list(pictures)}))
    return drawn.section([read_run(tmp_path)])


def test_a_map_has_a_cell_for_each_number_and_is_darkest_at_the_greatest(tmp_path):
    page = page_of(tmp_path, {"kind": "map", "title": "Cells", "cells": [[0.0, 1.0], [2.0, 4.0]]})
    shades = [float(own) for own in re.findall(r'fill-opacity="([\d.]+)"', page)]
    assert shades == [0.0, 0.25, 0.5, 1.0]
    assert "2 by 2 cells, the greatest 4" in page and "1, 0: 2" in page


def test_maps_of_one_scale_are_shaded_alike(tmp_path):
    cells = {"kind": "map", "title": "Cells", "cells": [[1.0, 2.0]], "high": 4}
    page = page_of(tmp_path, cells)
    assert 'fill-opacity="0.25"' in page and 'fill-opacity="0.5"' in page
    assert 'fill-opacity="1.0"' not in page and "darkest <b>4" in page


def test_a_map_of_nothing_is_blank(tmp_path):
    page = page_of(tmp_path, {"kind": "map", "title": "Cells", "cells": [[0.0, 0.0]]})
    assert [float(own) for own in re.findall(r'fill-opacity="([\d.]+)"', page)] == [0.0, 0.0]


def test_images_are_framed_and_blank_where_they_are_0(tmp_path):
    row = {"kind": "images", "title": "Rows", "images": [[[0, 1, 2]], [[2, 0, 0]], [[1, 1, 1]]]}
    page = page_of(tmp_path, row)
    assert "Rows: 3 of 1 by 3 cells" in page and page.count('class="frame"') == 3
    shades = [float(own) for own in re.findall(r'fill-opacity="([\d.]+)"', page)]
    assert shades == [0.5, 1.0, 1.0, 0.5, 0.5, 0.5]
    ends = [
        float(x) + float(w) for x, w in re.findall(r'x="([\d.]+)"[^>]*? width="([\d.]+)"', page)
    ]
    assert max(ends) <= 352.01  # within the picture


def test_points_stand_against_the_diagonal(tmp_path):
    points = [[0.0, 0.5], [1.0, 1.0]]
    row = {"kind": "against", "title": "Shares", "names": ["asked for", "drawn"], "points": points}
    page = page_of(tmp_path, row)
    assert "drawn over asked for, on average 0.25 apart" in page and page.count("<circle") == 2


def test_lines_and_spreads_are_charts(tmp_path):
    lines = {"flows": [[8, 0], [16, 2]], "chains": [[8, 1]], "none": []}
    page = page_of(
        tmp_path,
        {"kind": "lines", "title": "Modes", "over": "look", "lines": lines},
        {"kind": "spread", "title": "Values", "values": [1.0, 2.0, 2.0]},
    )
    assert "Modes over looks: flows from 0 to 2; chains from 1 to 1" in page
    assert "Distribution of Values" in page


def test_values_are_dots_with_their_mean_a_row_for_each_name(tmp_path):
    values = {"random": [1.0, 3.0], "expert": [9.0], "none": []}
    page = page_of(tmp_path, {"kind": "dots", "title": "Returns", "unit": "r", "values": values})
    assert 'alt="Returns: random 2; expert 9."' in page
    assert page.count(quote('class="ring"')) == 3


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "dots", "title": "x", "values": {"a": []}},
        {"kind": "dots", "title": "x", "values": [1.0]},
        {"kind": "images", "title": "x", "images": [[[1.0]], [[1.0, 2.0]]]},
        {"kind": "images", "title": "x", "images": [[]]},
        {"kind": "map", "title": "x"},
        {"kind": "map", "title": "x", "cells": [[1.0], [1.0, 2.0]]},
        {"kind": "map", "title": "x", "cells": "much"},
        {"kind": "against", "title": "x", "points": [[1.0]], "names": ["a", "b"]},
        {"kind": "against", "title": "x", "points": [[1.0, 2.0]], "names": ["a"]},
        {"kind": "lines", "title": "x", "lines": {"a": 3}},
        {"kind": "spread", "title": "x", "values": [1.0]},
        {"kind": "hologram", "title": "x"},
        {},
    ],
    ids=str,
)
def test_what_cannot_be_read_is_left_out(row, tmp_path):
    assert page_of(tmp_path, row) is None


def test_a_number_that_is_exact_needs_no_interval():
    row = {"name": "distance", "before": 0.7, "after": 0.1, "difference": -0.6, "is_exact": True,
           "higher_is_better": False}  # fmt: skip
    verdict = words.of_comparison(row)
    assert (verdict.kind, verdict.sentence) == ("better", "Better by 0.6 (exact)")
    assert words.of_comparison(row | {"difference": 0.2}).kind == "worse"
    assert words.of_comparison(row | {"difference": 0.0}).kind == "none"

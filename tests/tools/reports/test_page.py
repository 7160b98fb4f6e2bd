"""The report is one well-formed page that loads nothing, shows the figures it was given, and escapes text."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from reports.curves import line_chart, smooth, ticks
from reports.page import Example, Report, Run, render_report

VOID = {"meta", "img", "br", "line", "polyline"}


class Checker(HTMLParser):
    """Tags balance; collects addresses and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.links, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.sources += [attrs[key] for key in ("src", "srcset") if key in attrs]
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def make_run(name="detic", novel=31.25, **extra):
    rows = [
        {"class": "dog", "split": "novel", "num_gt": 7, "AP50": 12.5},
        {"class": "cow", "split": "novel", "num_gt": 9, "AP50": 50.0},
        {"class": "owl", "split": "novel", "num_gt": 0, "AP50": None},
        {"class": "car", "split": "base", "num_gt": 3, "AP50": 77.7},
    ]
    results = {"AP50_novel": novel, "AP50_base": 60.0, "AP50_all": math.nan, "per_class": rows}
    metrics = [{"iteration": i, "total_loss": 5.0 / (i + 1), "loss_cls": 1.0} for i in range(0, 100, 20)]
    return Run(name, extra.get("title", "Detic"), 3, results, metrics)


def full_report(**changes):
    image = np.full((20, 30, 3), (200, 30, 30), np.uint8)
    values = {
        "title": "A <b>title</b> & more",
        "intro": ["First & <script>alert(1)</script>", "See https://openmoji.org, please."],
        "runs": [make_run(), make_run("clim", 40.0, title="Detic + CLIM")],
        "examples": [Example("image 1", [("Ground truth", image), ("Detic", image)])],
        "examples_note": "chosen by rule",
        "mosaics": [Example("", [("a mosaic", image)])],
        "seconds": {"Data": 61.4, "Base stage": 1234.0},
        "notes": ["drawn by a program"],
        "commands": [("Predict:", 'python tools/predict.py --vocabulary "a<b"')],
    }
    return Report(**(values | changes))


def test_page_is_whole_and_loads_nothing():
    page = render_report(full_report())
    checker = checked(page)
    assert "script" not in checker.tags and "link" not in checker.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in checker.sources)
    assert len(checker.sources) == 3
    assert "url(" not in page and "@import" not in page
    assert checker.links == ["https://openmoji.org"]
    assert "prefers-color-scheme: dark" in page
    assert "&lt;script&gt;" in page and "A &lt;b&gt;title&lt;/b&gt; &amp; more" in page
    assert "--vocabulary &quot;a&lt;b&quot;" in page
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(checker.sources[0].partition(",")[2]))))
    assert decoded.shape == (20, 30, 3) and np.abs(decoded.astype(int) - (200, 30, 30)).max() <= 3


def test_figures_are_shown_and_missing_ones_are_dashes():
    page = render_report(full_report())
    order = [page.index(f">{name}</th>") for name in ("cow", "dog", "owl")]
    assert order == sorted(order)  # the best come first
    widths = re.findall(r"--width:([\d.]+)%", render_report(full_report(runs=[make_run(novel=130.0)])))
    assert "100.0" in widths and "60.0" in widths and "12.5" in widths
    text = checked(page).text
    for expected in ("31.2", "40.0", "60.0", "12.5", "50.0", "61 s", "1,234 s"):
        assert expected in text
    assert "77.7" not in text  # base classes are not in the table of novel ones
    assert text.count("–") == 2 + 2  # AP50 all is nan, owl has no objects: in both runs


def test_empty_parts_are_left_out():
    page = render_report(Report(title="t", intro=[], runs=[]))
    assert "<section>" not in page
    checked(page)


def test_one_chart_for_each_loss_and_for_ap_once_it_was_measured_twice():
    run = make_run()
    assert render_report(full_report(runs=[run])).count("<svg") == 2
    assert "<svg" not in render_report(full_report(runs=[replace(run, metrics=[])]))
    run.metrics[1]["bbox/AP50_novel"] = 3.0
    assert render_report(full_report(runs=[run])).count("<svg") == 2
    run.metrics[2]["bbox/AP50_novel"] = 4.0
    assert render_report(full_report(runs=[run])).count("<svg") == 3


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 5, 10]),
        (0, 2.4, [0, 1, 2]),
        (0, 300, [0, 100, 200, 300]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected
    assert smooth([0, 3, 6, 9], window=3) == [1.5, 3, 6, 7.5] and smooth([], window=9) == []


def points_of(svg):
    root = ElementTree.fromstring(svg)
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]


def test_chart_places_values_linearly_and_leaves_gaps():
    series = {"a": ([0, 10, 20, 30, 40], [0.0, 2.0, math.nan, 4.0, 4.0])}
    svg = line_chart(series, title="t", x_label="x", colours={"a": "red"})
    first, second = points_of(svg)
    assert len(first) == 2 and len(second) == 2  # nan cuts the line
    (x0, y0), (x1, y1) = first
    (x3, y3), (x4, y4) = second
    assert y3 == y4 and y0 > y1 > y3  # up is smaller in SVG
    assert (y0 - y1) == pytest.approx((y0 - y3) / 2, abs=0.11)
    assert (x4 - x3) == pytest.approx(x1 - x0, abs=0.11)
    constant = line_chart({"a": ([5], [0.0])}, title="t", x_label="x", colours={"a": "red"})
    assert len(points_of(constant)) == 1
    svg = line_chart({"a": ([], [])}, title="t", x_label="x", colours={"a": "red"})
    assert "no values" in svg and points_of(svg) == []

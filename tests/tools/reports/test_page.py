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
import torch
from PIL import Image

from clim.data.tiles import Tiles
from clim_commands.canvases import draw_canvas
from clim_commands.page import Example
from reports.curves import line_chart, smooth, ticks
from reports.page import Part, Report, Run, render_report

VOID = {"meta", "img", "br", "input", "line", "polyline"}


class Checker(HTMLParser):
    """Tags balance; collects addresses and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.sources, self.links, self.text = [], [], [], [], []
        self.feed(page)
        assert self.open == []

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


def make_run(name="detic", novel=31.25, title="Detic"):
    figures = {
        "dog": ("novel", 7, 12.5),
        "cow": ("novel", 9, 50.0),
        "owl": ("novel", 0, None),
        "car": ("base", 3, 77.7),
    }
    rows = [{"class": c, "split": split, "num_gt": n, "AP50": ap} for c, (split, n, ap) in figures.items()]
    results = {"AP50_novel": novel, "AP50_base": 60.0, "AP50_all": math.nan, "per_class": rows}
    metrics = [{"iteration": i, "total_loss": 5.0 / (i + 1), "loss_cls": 1.0} for i in range(0, 100, 20)]
    return Run(name, title, 3, results, metrics)


def page_of(**changes):
    image = np.full((20, 30, 3), (200, 30, 30), np.uint8)
    values = {
        "title": "A <b>title</b> & more",
        "intro": ["First & <script>alert(1)</script>", "See https://openmoji.org, please."],
        "runs": [make_run(), make_run("clim", 40.0, title="Detic + CLIM")],
        "parts": [
            Part("Seen", "chosen by rule", examples=[Example("image 1", [("Ground truth", image), ("Detic", image)])]),
            Part("Mosaics", examples=[Example("", [("a mosaic", image)], lines=["a <b>", "a dog"])]),
        ],
        "seconds": {"Data": 61.4, "Base stage": 1234.0},
        "notes": ["drawn by a program"],
        "commands": [("Predict:", 'clim predict --vocabulary "a<b"')],
    }
    return render_report(Report(**(values | changes)))


def test_page_is_whole_and_loads_nothing():
    page = page_of()
    checker = Checker(page)
    assert "script" not in checker.tags and "link" not in checker.tags
    assert len(checker.sources) == 3 and all(s.startswith("data:image/jpeg;base64,") for s in checker.sources)
    assert "url(" not in page and "@import" not in page and "prefers-color-scheme: dark" in page
    assert checker.links == ["https://openmoji.org"]
    assert "&lt;script&gt;" in page and "A &lt;b&gt;title&lt;/b&gt; &amp; more" in page
    assert "--vocabulary &quot;a&lt;b&quot;" in page
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(checker.sources[0].partition(",")[2]))))
    assert decoded.shape == (20, 30, 3) and np.abs(decoded.astype(int) - (200, 30, 30)).max() <= 3
    empty = render_report(Report(title="t", intro=[], runs=[]))
    assert "<section>" not in empty and Checker(empty)


def test_figures_are_shown_and_missing_ones_are_dashes():
    page = page_of()
    order = [page.index(f">{name}</th>") for name in ("cow", "dog", "owl")]
    assert order == sorted(order)  # the best come first
    widths = re.findall(r"--width:([\d.]+)%", page_of(runs=[make_run(novel=130.0)]))
    assert {"100.0", "60.0", "12.5"} <= set(widths)
    text = Checker(page).text
    assert {"31.2", "40.0", "60.0", "12.5", "50.0", "61 s", "1,234 s"} <= set(text)
    assert "77.7" not in text  # base classes are not in the table of novel ones
    assert text.count("–") == 2 + 2  # AP50 all is nan, owl has no objects: in both runs


def test_one_chart_for_each_loss_and_for_ap_once_it_was_measured_twice():
    run = make_run()
    assert "<svg" not in page_of(runs=[replace(run, metrics=[])])
    counts = []
    for entry, ap in zip(run.metrics, (None, 3.0, 4.0), strict=False):
        entry |= {} if ap is None else {"bbox/AP50_novel": ap}
        counts.append(page_of(runs=[run]).count("<svg"))
    assert counts == [2, 2, 3]


def test_a_part_has_its_note_table_charts_and_images():
    lines = {"Detic": ([0, 50, 100], [90.0, 50.0, 0.0]), "Detic + CLIM": ([0, 100], [80.0, 10.0])}
    image = np.zeros((5, 5, 3), np.uint8)
    rows = [["a <b>", 7, 12.34, None]]
    part = Part("By size", "a note", ["class", "objects", "Detic", "Detic + CLIM"], rows, charts={"novel": lines})
    part.examples = [Example("one", [("x", image)])]
    plain, page = page_of(), page_of(parts=[part, Part("Nothing", "no content")])
    assert "Nothing" not in page and "a &lt;b&gt;" in page and page.count("<svg") == plain.count("<svg") + 1
    assert {"a note", "7", "12.3", "–", "novel"} <= set(Checker(page).text)
    polylines = re.findall(r'stroke="(var\(--run\d\))"[^>]*><title>([^<]+)', page.partition("By size")[2])
    assert polylines[:2] == [("var(--run0)", "Detic"), ("var(--run1)", "Detic + CLIM")]
    assert page.count('class="zoom"') == page.count("<img") == 1
    assert "<li>a &lt;b&gt;</li><li>a dog</li>" in plain


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 5, 10]), (0, 2.4, [0, 1, 2]), (0, 300, [0, 100, 200, 300]), (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)  # fmt: skip
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected
    assert smooth([0, 3, 6, 9], window=3) == [1.5, 3, 6, 7.5] and smooth([], window=9) == []


def test_chart_places_values_linearly_and_leaves_gaps():
    def lines(xs, ys):
        svg = line_chart({"a": (xs, ys)}, title="t", x_label="x", colours={"a": "red"})
        found = [e.get("points").split() for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("polyline")]
        return [[tuple(map(float, point.split(","))) for point in line] for line in found]

    (first, second) = lines([0, 10, 20, 30, 40], [0.0, 2.0, math.nan, 4.0, 4.0])  # nan cuts the line
    ((x0, y0), (x1, y1)), ((x3, y3), (x4, y4)) = first, second
    assert y3 == y4 and y0 > y1 > y3  # up is smaller in SVG
    assert (y0 - y1) == pytest.approx((y0 - y3) / 2, abs=0.11)
    assert (x4 - x3) == pytest.approx(x1 - x0, abs=0.11)
    assert len(lines([5], [0.0])) == 1 and lines([], []) == []


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_canvas_shows_the_tiles_of_the_mapper(order):
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[0 if order == "RGB" else 2] = 200  # red
    tiles = Tiles(
        boxes=torch.tensor([[0.0, 0, 50, 50], [50, 0, 100, 40]]),
        canvas=torch.zeros(2, dtype=torch.int64),
        image_ids=torch.tensor([1, 2]),
        captions=[["a cat"], ["a dog"]],
        drawn=["a cat", "a dog"],
        tags=[[], []],
    )
    drawn = draw_canvas({"image": image, "tiles": tiles}, image_format=order, side=500)
    assert drawn.shape == (500, 500, 3) and (drawn[450, 250] == (200, 0, 0)).all()
    white = (drawn == 255).all(axis=2)
    assert white[200, 0] and white[150, 250] and white[:200, 251:499].any() and not white[210:, 260:].any()

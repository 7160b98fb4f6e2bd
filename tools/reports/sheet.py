"""Panels in rows and columns on white, with titles, a line of text above each panel, and a legend below.

Images are uint8 (H, W, 3) RGB.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from clim.data.mosaic import fit_cell
from clim_commands.drawing import BLACK, WHITE, font
from clim_commands.maps import colour_bar

GREY = (93, 100, 112)
TALLEST = 1.5  # height of a panel as a part of its width, at most
GAP = 14  # px


class Panel(NamedTuple):
    image: np.ndarray
    text: str = ""  # the line above it
    strong: bool = False  # in black and larger: what the row is about


def panel_size(height: int, width: int, *, panel: int) -> tuple[int, int]:
    """Height and width at which an image fills a panel ``panel`` px wide, its ratio kept."""
    return fit_cell(height, width, cell=(round(panel * TALLEST), panel))


def sheet(
    rows: Sequence[Sequence[Panel]], titles: Sequence[str], *, panel: int, footer: np.ndarray | None = None
) -> np.ndarray:
    """The rows' panels under the columns' titles. Images have their :func:`panel_size` already."""
    head, line = round(panel / 17) + 4, round(panel / 20)
    top = round(head * 1.7)
    heads = [round(line * 1.9) if any(p.text for p in row) else 0 for row in rows]
    heights = [above + max(p.image.shape[0] for p in row) + GAP for above, row in zip(heads, rows, strict=True)]
    width = len(titles) * (panel + GAP) + GAP
    height = top + sum(heights) + (footer.shape[0] + GAP if footer is not None else 0)
    page = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(page)
    lefts = [GAP + i * (panel + GAP) for i in range(len(titles))]
    for x, title in zip(lefts, titles, strict=True):
        _write(draw, (x, top / 2 + 2), title, size=head, width=panel, ink=BLACK)
    y = top
    for row, above, extent in zip(rows, heads, heights, strict=True):
        for x, p in zip(lefts, row, strict=True):
            size, ink = (round(line * 1.12), BLACK) if p.strong else (line, GREY)
            _write(draw, (x, y + line * 0.9), p.text, size=size, width=panel, ink=ink)
            page.paste(Image.fromarray(p.image), (x, y + above))
        y += extent
    if footer is not None:
        page.paste(Image.fromarray(footer), (GAP, y))
    return np.asarray(page)


def response_legend(*, width: int, size: int, note: str) -> np.ndarray:
    """The colour bar between "low" and "high", and what else has to be said of a sheet of response maps."""
    strip = Image.new("RGB", (width, round(size * 1.8)), WHITE)
    draw = ImageDraw.Draw(strip)
    middle, x = strip.height / 2, 0
    for text in ("low", None, "high", note):
        if text is None:
            bar = colour_bar(10 * size, size)
            strip.paste(Image.fromarray(bar), (x, round(middle - size / 2)))
            x += bar.shape[1] + size // 2
        elif text:
            x += _write(draw, (x, middle), text, size=size, width=width - x, ink=GREY) + size // 2
    return np.asarray(strip)


def class_legend(names: Sequence[str], colours: Sequence, *, width: int, size: int, note: str = "") -> np.ndarray:
    """Swatches with names, in columns that fit into ``width`` px, then a line with ``note``."""
    swatch, step = size, round(size * 1.7)
    column = min(round(max(map(font(size).getlength, names), default=0)) + swatch * 3, width)
    columns = max(width // max(column, 1), 1)
    lines = -(-len(names) // columns)
    strip = Image.new("RGB", (width, step * (lines + bool(note))), WHITE)
    draw = ImageDraw.Draw(strip)
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        x, y = i % columns * column, i // columns * step
        box = (x, y + (step - swatch) // 2, x + swatch, y + (step + swatch) // 2)
        draw.rectangle(box, fill=tuple(int(v) for v in colour))
        _write(draw, (x + swatch * 1.5, y + step / 2), name, size=size, width=column - swatch * 2, ink=BLACK)
    if note:
        _write(draw, (0, strip.height - step / 2), note, size=size, width=width, ink=GREY)
    return np.asarray(strip)


def shortened(text: str, *, width: float, size: int) -> str:
    """``text`` in at most ``width`` px, in letters of ``size`` px; an ellipsis marks a cut."""
    length = font(size).getlength
    if length(text) <= width:
        return text
    while text and length(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _write(draw, place, text: str, *, size: int, width: float, ink) -> int:
    """Write ``text`` at ``place`` (left, middle), cut to ``width`` px. Returns its length in px."""
    text = shortened(text, width=width, size=size)
    draw.text(place, text, fill=ink, font=font(size), anchor="lm")
    return round(font(size).getlength(text))

"""Parts of an HTML page that contains its tables and images, and loads nothing: light and dark, wide and narrow."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from clim.files import replacing

STYLE = Path(__file__).with_name("page.css").read_text("utf-8")


@dataclass
class Example:
    """Images that belong together: (caption, uint8 RGB (H, W, 3)); ``lines`` of a numbered list beside them."""

    title: str
    panels: list[tuple[str, np.ndarray]]
    lines: Sequence[str] = ()


def page(title: str, intro: Iterable[str], sections: Mapping[str, str]) -> str:
    """The whole page: ``title`` and ``intro`` in plain text, {heading: HTML} of its sections without the empty ones."""
    body = "".join(f"<section><h2>{escape(head)}</h2>{html}</section>" for head, html in sections.items() if html)
    paragraphs = "".join(f"<p>{linked(paragraph)}</p>" for paragraph in intro)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><header><h1>{escape(title)}</h1>{paragraphs}</header><main>{body}</main></body></html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page whole; a file name in it that is no UTF-8 gets question marks. Returns ``path``."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", errors="replace")
    return path


def data_uri(image: np.ndarray, *, quality: int = 85) -> str:
    """An RGB image as a JPEG inside an address."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def panels(examples: Iterable[Example]) -> str:
    """Images that enlarge by CSS alone: each lies in the label of an invisible checkbox."""
    blocks = []
    for example in examples:
        figures = "".join(
            f'<figure><label class="zoom"><input type="checkbox" aria-label="enlarge">'
            f'<span><img src="{data_uri(image)}" width="{image.shape[1]}" height="{image.shape[0]}" '
            f'alt="{escape(example.title)}: {escape(caption)}"></span></label>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, image in example.panels
        )
        if example.lines:
            figures += f"<ol>{''.join(f'<li>{escape(line)}</li>' for line in example.lines)}</ol>"
        heading = f"<h3>{escape(example.title)}</h3>" if example.title else ""
        blocks.append(f'{heading}<div class="panels">{figures}</div>')
    return "".join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; all columns but the first are numbers."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def bar(text: str, percent: float, *, colour: int = 0) -> str:
    """``text`` with a bar of ``percent`` of the full width behind it."""
    width = min(max(percent, 0.0), 100.0)
    return f'<span class="bar" style="--width:{width:.1f}%;--ink:var(--run{colour % 6})">{text}</span>'


def linked(text: str) -> str:
    """Escaped, with addresses as links."""
    return re.sub(r"(https?://[^\s<>]+[^\s<>.,;)])", r'<a href="\1">\1</a>', escape(text))

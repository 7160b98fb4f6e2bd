"""The page of ``clim inspect``: tables, examples with their boxes or captions, and mosaics."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import supervision as sv
from detectron2.structures import BoxMode

from clim.data.images import UnreadableImage, read_image, resize
from clim.data.mosaic import fit_size
from clim.results import draw

from ..canvases import mosaic_of_each_grid
from ..page import Example, bar, page, panels, table, write_page
from .counts import SIZES, Counts, class_rows

EXAMPLES, TRIED = 8, 400  # images of a set; records among which they are chosen
CAPTIONS = 3  # of an image
SIDE, LETTERS = 640, 24  # px
SEED = 0


def write_report(path: Path, cfg, sets: Sequence[Counts], remarks: Sequence[str]) -> Path:
    """Write the page and return ``path``."""
    sections = {
        "Sets": "".join(f"<p>{escape(remark)}</p>" for remark in remarks) + _facts(sets),
        "Classes": _classes(sets),
        "Size of boxes": _sizes(sets),
        "Damaged or missing files": _damaged(sets),
    }
    names = list(dict.fromkeys(name for c in sets for name in c.classes or ()))
    for c in sets:
        sections[f"Examples of {c.name}"] = panels(examples(c, names))
    if cfg.DATASETS.CAPTIONS:
        sections["Mosaics as the detector gets them"] = panels(mosaic_of_each_grid(cfg, seed=SEED))
    intro = [f"{sum(len(c.sides) for c in sets):,} images in {len(sets)} sets.", "Click on an image to enlarge it."]
    return write_page(path, page(f"Data of {cfg.DATASETS.DATA or ', '.join(c.name for c in sets)}", intro, sections))


def _facts(sets: Sequence[Counts]) -> str:
    tables = (table([_name(c), ""], [[escape(what), value] for what, value in c.facts().items()]) for c in sets)
    return f'<div class="charts">{"".join(tables)}</div>'


def _name(counts: Counts) -> str:
    """The name of the set, which may break after an underline."""
    return escape(counts.name).replace("_", "_<wbr>")


def _classes(sets: Sequence[Counts]) -> str:
    rows = class_rows(sets)
    most = [max((row[2 + i] or 0 for row in rows), default=0) or 1 for i in range(len(sets))]
    cells = [
        [f"{escape(name)} ★" if novel else escape(name)] + [_count(n, most[i], colour=i) for i, n in enumerate(numbers)]
        for name, novel, *numbers in rows
    ]
    heads = [f"{_name(c)}: {'images with the tag' if c.part == 'captions' else 'boxes'}" for c in sets]
    note = "<p>A star marks novel classes, which have no boxes for training. Bars compare the classes of a set.</p>"
    return (note if any(row[1] for row in rows) else "") + table(["class", *heads], cells)


def _count(number: int | None, most: int, *, colour: int) -> str:
    return "–" if number is None else bar(f"{number:,}", 100 * number / most, colour=colour + 1)


def _sizes(sets: Sequence[Counts]) -> str:
    shown = [(i, c) for i, c in enumerate(sets) if c.areas]
    rows = [[name, *(_count(c.sizes()[name], len(c.areas), colour=i) for i, c in shown)] for name in SIZES if shown]
    note = "<p>In pixels of the image: small below 32 × 32, large above 96 × 96. The detector sees resized images.</p>"
    return note + table(["boxes", *(_name(c) for _, c in shown)], rows) if rows else ""


def _damaged(sets: Sequence[Counts]) -> str:
    rows = [[escape(s.file_name), escape(c.name), escape(s.reason)] for c in sets for s in c.damaged]
    return table(["file", "set", "reason"], rows) if rows else ""


def examples(counts: Counts, names: Sequence[str]) -> list[Example]:
    """One example of images that together show as many classes as they can, with their boxes or captions."""
    unseen, chosen, records = Counter(), [], _sample(counts.records)
    found = {i: {counts.class_name(k) for k in _indices(record)} for i, record in enumerate(records)}
    while found and len(chosen) < EXAMPLES:  # the one with the most classes that were shown least
        best = max(found, key=lambda i: sum(1 / (1 + unseen[name]) ** 2 for name in found[i]))
        unseen.update(found.pop(best))
        try:
            chosen.append(_panel(counts, records[best], names))
        except UnreadableImage:
            continue
    return [Example("", chosen)] if chosen else []


def _sample(records: Sequence[dict]) -> Sequence[dict]:
    chosen = np.random.default_rng(SEED).permutation(len(records))[:TRIED]
    return [records[int(i)] for i in sorted(chosen)]


def _indices(record: dict) -> list[int]:
    return record["tags"] if "captions" in record else [a["category_id"] for a in record.get("annotations", ())]


def _panel(counts: Counts, record: dict, names: Sequence[str]) -> tuple[str, np.ndarray]:
    """What stands below an image, and the image with its boxes."""
    decoded = read_image(record["file_name"], fmt="RGB")
    size = fit_size(decoded.height, decoded.width, short=SIDE, long=SIDE)
    image, title = resize(decoded.image, size), Path(record["file_name"]).name
    if "captions" in record:
        tags = ", ".join(counts.class_name(k) for k in record["tags"])
        return f"{' / '.join(record['captions'][:CAPTIONS])} (tags: {tags or 'none'}; {title})", image
    kept = [a for a in record["annotations"] if "bbox" in a and not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS) for a in kept]
    boxes = np.array(boxes).reshape(-1, 4) * (size[1] / record["width"])
    classes = [names.index(counts.class_name(a["category_id"])) for a in kept]
    novel = {names.index(name) for name in counts.novel if name in names}
    order = np.argsort((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    found = sv.Detections(xyxy=boxes, class_id=np.array(classes, int))[order]  # small boxes lie on top
    labels = ["★ " * (k in novel) + names[k] for k in found.class_id]
    return title, draw(image, found, labels, novel=novel, letters=LETTERS)

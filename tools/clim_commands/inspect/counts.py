"""What is in a data set: images, boxes, captions, and files that cannot be used."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clim.data.captions import pairs_of
from clim.data.names import set_classes
from clim.sources import Skipped

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # COCO's: square pixels of the image
SLACK = 1.0  # px that a box may reach over the border of its image, because labels are rounded


class Counts:
    """What is in the set ``name`` of "train", "test" or "captions".

    Attributes:
        records, classes, novel: of the set; ``novel`` are names.
        sides: (width, height) of every image.
        objects: {class: its boxes, without crowds; of captions, the images that have it as a tag}.
        areas: of the boxes, in square pixels.
        empty: images without boxes, or without tags.
        outside: (file, class) of boxes that reach over the border of their image.
        captions, words: captions of every image, words of every caption.
        damaged: files that cannot be used. ``unlisted``: number of other images in the folder. Both from
            :mod:`~clim_commands.inspect.files`.
    """

    def __init__(self, name: str, part: str):
        metadata = MetadataCatalog.get(name)
        self.name, self.part, self.records = name, part, DatasetCatalog.get(name)
        if part == "captions":
            self.records = pairs_of(self.records, name)
        self.classes, self.novel = set_classes(name), set(metadata.get("novel_classes", ()))
        self.sides: list[tuple[int, int]] = []
        self.areas: list[float] = []
        self.captions: list[int] = []
        self.words: list[int] = []
        self.objects, self.empty = Counter(), 0
        self.outside: list[tuple[str, str]] = []
        self.damaged: list[Skipped] = []
        self.unlisted = 0
        for record in self.records:
            self.sides.append((record["width"], record["height"]))
            found = self._tags(record) if part == "captions" else self._boxes(record)
            self.objects.update(found)
            self.empty += not found

    def _tags(self, record: dict) -> set[str]:
        """Count the captions. Returns the classes of the tags."""
        self.captions.append(len(record["captions"]))
        self.words += [len(caption.split()) for caption in record["captions"]]
        return set(map(self.class_name, record.get("tags", ())))

    def _boxes(self, record: dict) -> list[str]:
        """Count the boxes. Returns their classes."""
        classes = []
        for a in record.get("annotations", ()):
            if "bbox" not in a or a.get("iscrowd", 0):
                continue
            x0, y0, x1, y1 = BoxMode.convert(list(a["bbox"]), a.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
            classes.append(self.class_name(a["category_id"]))
            self.areas.append((x1 - x0) * (y1 - y0))
            if min(x0, y0) < -SLACK or x1 > record["width"] + SLACK or y1 > record["height"] + SLACK:
                self.outside.append((record["file_name"], classes[-1]))
        return classes

    def class_name(self, index: int) -> str:
        return self.classes[index] if self.classes and 0 <= index < len(self.classes) else f"class {index}"

    def facts(self) -> dict[str, str]:
        """{what: how much}, in the order of a table."""
        ordered = sorted(self.sides, key=np.prod)
        sizes = ["{} × {}".format(*ordered[i]) for i in (0, len(ordered) // 2, -1)] if ordered else "–––"
        facts = {"images": f"{len(ordered):,}"}
        facts |= zip(("smallest image, px", "median image", "largest image"), sizes, strict=True)
        if self.part == "captions":
            facts |= {"captions": f"{sum(self.captions):,}", "captions of an image": _range(self.captions)}
            facts |= {"words of a caption": _range(self.words), "images without tags": f"{self.empty:,}"}
        else:
            facts |= {"boxes": f"{len(self.areas):,}"} | {f"{size} boxes": f"{n:,}" for size, n in self.sizes().items()}
            facts |= {"images without boxes": f"{self.empty:,}", "boxes over the border": f"{len(self.outside):,}"}
        return facts | {"damaged or missing": f"{len(self.damaged):,}", "images without an entry": f"{self.unlisted:,}"}

    def sizes(self) -> dict[str, int]:
        """{name of a range of areas: boxes in it}."""
        areas = np.array(self.areas)
        return {name: int(np.sum((low <= areas) & (areas < high))) for name, (low, high) in SIZES.items()}


def _range(values: Sequence[int]) -> str:
    return f"{np.median(values):g} ({min(values)}–{max(values)})" if values else "–"


def class_rows(sets: Sequence[Counts]) -> list[list]:
    """[class, is novel, then its number in each set, None where the set does not know it], in the sets' order."""
    known = [dict.fromkeys((*(counts.classes or ()), *counts.objects)) for counts in sets]
    novel = {name for counts in sets for name in counts.novel}
    return [
        [name, name in novel, *(c.objects[name] if name in of else None for c, of in zip(sets, known, strict=True))]
        for name in dict.fromkeys(name for of in known for name in of)
    ]


def remarks(sets: Sequence[Counts]) -> list[str]:
    """Sentences about what hinders the training or the evaluation; none if nothing does."""
    found = [f"Files of {c.name} that cannot be used: {len(c.damaged)}." for c in sets if c.damaged]
    for c in sets:
        if c.outside:
            file, name = c.outside[0]
            found.append(
                f"Boxes of {c.name} over the border of their image: {len(c.outside)}, first {name!r} of {file}."
            )
    shown: dict[str, Counter] = {}
    for c in sets:
        shown.setdefault(c.part, Counter()).update(c.objects)
    for part, of_novel, said in (
        ("train", False, "No box for training shows {}: list what the images may show as novel."),
        ("captions", True, "No caption has the novel {} as a tag: add captions that name it."),
        ("test", None, "No box for testing shows {}: its AP is not measured."),
    ):
        wanted = [name for name, novel, *_ in class_rows(sets) if of_novel in (None, novel)]
        if lacking := [name for name in wanted if part in shown and not shown[part][name]]:
            found.append(said.format(_listed(lacking)))
    return found


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

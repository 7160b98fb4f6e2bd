"""Pseudo-labels of images: first lines in a folder, then a json in COCO's format.

Labels of many images take hours, and the work may be interrupted. So each process appends finished images, a line each,
to its own file in a folder beside the json. The json is written when no image is missing.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
from torch.utils.data import DataLoader, Dataset

from clim.data.images import MIN_SIDE, UnreadableImage, read_image
from clim.data.shards import SCHEME
from clim.errors import UserError
from clim.files import decode_json, naming, read_json, write_json
from clim_commands.outputs import hold


class Labels(NamedTuple):
    """Boxes (R, 4) xyxy in pixels, nouns (R,) from 0, scores (R,) of one image."""

    boxes: np.ndarray
    nouns: np.ndarray
    scores: np.ndarray


class Line(TypedDict):
    """A finished image: (height, width), boxes xyxy, nouns and scores, or why it was skipped."""

    image_id: int | str
    size: NotRequired[Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]]
    boxes: NotRequired[list[Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]]]
    nouns: NotRequired[list[Annotated[int, msgspec.Meta(ge=0)]]]
    scores: NotRequired[list[float]]
    skipped: NotRequired[str]


class LabelFolder:
    """Finished images, a :class:`Line` each.

    ``settings`` is all that changes labels, in types of json. Raises UserError if the folder was begun with other
    settings, or a line of it is damaged.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, dict(settings), shared=True)
        before = read_json(path, kind=dict[str, object], remedy=f"remove {self.folder} to start anew")
        now = json.loads(json.dumps(dict(settings)))
        for key in before | now:
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{self.folder} was begun with {key} = {before.get(key)}, not {now.get(key)}: go on with "
                    "the same arguments, or remove that folder to start anew."
                )

    def finished(self) -> dict[int, Line]:
        """{image id: line} of all files, without unfinished last lines."""
        lines = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                place = f"line {number} of {path}"
                entry = decode_json(line, source=place, kind=Line, remedy="remove that line")
                if len({len(entry.get(key, ())) for key in ("boxes", "nouns", "scores")}) != 1:
                    raise UserError(f"{place} has not as many boxes as nouns and scores: remove that line.")
                lines[entry["image_id"]] = entry
        return lines

    @contextmanager
    def appending(self, shard: int, shards: int) -> Iterator[Callable[[dict], None]]:
        """A function that adds a line to this shard's file. Raises UserError if another process uses the file."""
        stem = self.folder / f"{shard}-of-{shards}"
        with open(stem.with_suffix(".lock"), "wb") as lock, open(stem.with_suffix(".jsonl"), "a+b") as file:
            remedy = "wait for it, or give the two different --shard i/n"
            hold(lock, f"Another process works on shard {shard}/{shards} of {self.folder}: {remedy}.")
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # the unfinished line of a killed process

            def append(entry: dict) -> None:
                with naming(file.name):
                    file.write(json.dumps(entry).encode() + b"\n")
                    file.flush()

            yield append


def label_images(
    records: Sequence[Mapping],
    label: Callable[[np.ndarray], Labels],
    append: Callable[[dict], None],
    *,
    workers: int = 0,
) -> Iterator[dict]:
    """Label every image of ``records``, append its line and yield it. Unreadable images are ``skipped``.

    ``label``: RGB uint8 (H, W, 3) → labels. ``workers``: processes that decode images.
    """
    images = DataLoader(_Images(records), batch_size=None, collate_fn=_same, num_workers=workers)
    for record, (image, fault) in zip(records, images, strict=True):
        entry = {"image_id": record["image_id"]}
        if fault:
            entry["skipped"] = fault
        else:
            boxes, nouns, scores = label(image)
            entry["size"] = list(image.shape[:2])
            entry["boxes"] = [[round(float(v), 2) for v in box] for box in boxes]
            entry["nouns"] = [int(noun) for noun in nouns]
            entry["scores"] = [round(float(score), 4) for score in scores]
        append(entry)
        yield entry


def coco_format(
    records: Sequence[Mapping], lines: Mapping[int, Line], *, nouns: Sequence[str], image_root: str
) -> dict:
    """The json's content: images with boxes in the records' order, categories 1…N in the nouns' order.

    ``file_name`` is relative to ``image_root``; ``bbox`` is x, y, width, height in pixels of the upright image.
    """
    images, annotations = [], []
    for record in records:
        line = lines[record["image_id"]]
        if not line.get("boxes"):
            continue
        height, width = line["size"]
        scheme = SCHEME if record["file_name"].startswith(SCHEME) else ""
        name = scheme + os.path.relpath(record["file_name"].removeprefix(scheme), image_root)
        images.append({"id": record["image_id"], "file_name": name, "height": height, "width": width})
        for (x0, y0, x1, y1), noun, score in zip(line["boxes"], line["nouns"], line["scores"], strict=True):
            w, h = round(x1 - x0, 2), round(y1 - y0, 2)
            entry = {"id": len(annotations) + 1, "image_id": record["image_id"], "category_id": noun + 1}
            entry |= {"bbox": [x0, y0, w, h], "area": round(w * h, 2), "iscrowd": 0, "score": score}
            annotations.append(entry)
    categories = [{"id": i, "name": noun} for i, noun in enumerate(nouns, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


class _Images(Dataset):
    """Record index → (RGB uint8 (H, W, 3), None), or (None, why it is unreadable)."""

    def __init__(self, records: Sequence[Mapping]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, str | None]:
        try:
            return read_image(self.records[index]["file_name"], fmt="RGB", min_side=MIN_SIDE).image, None
        except UnreadableImage as error:
            return None, error.reason


def _same(sample):
    return sample

"""Records → network inputs, each a pure function of (seed, epoch, index): workers and ranks don't matter."""

import copy
import logging
import random
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from clim.errors import UserError

from .augmentation import training_augmentations
from .images import Decoded, UnreadableImage, read_image, resize
from .mosaic import (
    compose,
    composition_groups,
    fit_cell,
    fit_size,
    grid_cells,
    inward_anchors,
    place,
    resized_crop,
    shortest_crop,
)
from .tiles import Tiles

MAX_REPLACEMENTS = 50  # in a row: then the image folder is wrong, not a picture
NUM_GROUP_DRAWS = 2  # independent draws of composition groups: captions, tags
logger = logging.getLogger(__name__)


class RecordMapper:
    """What all mappers share: the random stream of a sample, and what happens to unreadable pictures."""

    square = False  # whether all samples have one square size, whatever the pictures' shapes
    annotated = False  # whether records hold boxes, which are wrong on a picture of another size than theirs

    def __init__(self, records: Sequence[dict], *, seed: int, stream: int, image_format: str):
        self.records = records
        self.seed, self.stream, self.image_format = seed, stream, image_format

    def __call__(self, *, index: int, epoch: int) -> dict:
        """One network input, with ``skipped``: [(file name, reason)] of the pictures that were replaced."""
        rng = np.random.default_rng([self.seed, self.stream, epoch, index])
        skipped: list[tuple[str, str]] = []
        sample = self.map(index, rng, skipped)
        sample["skipped"] = skipped
        return sample

    def read(self, index: int, rng: np.random.Generator, skipped: list, replace, at_least=None):
        """(record, decoded picture) of ``index``, or of the first readable one that ``replace()`` names."""
        for _ in range(MAX_REPLACEMENTS):
            record = self.records[index]
            try:
                short_of = at_least(record) if at_least else None
                decoded = read_image(record["file_name"], fmt=self.image_format, at_least=short_of)
                if self.annotated:
                    check_size(record, decoded)
                return record, decoded
            except UnreadableImage as error:
                skipped.append((error.file_name, error.reason))
                index = replace()
        raise UserError(
            f"{MAX_REPLACEMENTS} pictures in a row could not be read, the last one {skipped[-1][0]} "
            f"({skipped[-1][1]}): is the image folder of this data set complete?"
        )

    def any_record(self, rng):
        return lambda: int(rng.integers(len(self.records)))


def check_size(record: dict, decoded: Decoded) -> None:
    """UnreadableImage where the picture is not the one that was annotated."""
    told, found = (record["width"], record["height"]), (decoded.width, decoded.height)
    if told != found:
        reason = f"{found[0]}x{found[1]} px, but annotated as {told[0]}x{told[1]}"
        raise UnreadableImage(record["file_name"], reason)


def tiles_of(records: Sequence[dict], boxes: np.ndarray, *, groups: np.ndarray, rng) -> Tiles:
    """Tiles of one canvas: T records at ``boxes`` (T, 4), one caption drawn for each, ``groups`` (L, G, T)."""
    return Tiles(
        boxes=torch.from_numpy(boxes).float(),
        canvas=torch.zeros(len(boxes), dtype=torch.int64),
        image_ids=torch.tensor([r["image_id"] for r in records]),
        captions=[list(r["captions"]) for r in records],
        drawn=[r["captions"][rng.integers(len(r["captions"]))] for r in records],
        tags=[list(r.get("tags", ())) for r in records],
        groups=torch.from_numpy(groups),
    )


class CanvasMapper(RecordMapper):
    """Image-caption records → canvases of n x n tiles; n = 1 is the resized picture, unpadded.

    Args:
        records: dicts with ``file_name, image_id, captions, tags``.
        grids: n is drawn uniformly from it for every canvas.
        short, long: sides in px. For n = 1 Detectron2's ResizeShortestEdge rule; for n > 1 the canvas is
            ``long`` x ``long``.
        filling: "fit" keeps the ratio, pads and packs inwards (CLIM release); "crop" fills each cell by a
            random crop (CLIM paper §3.2). The box of a tile is what was pasted.
        partners: (N, K) indices of each record's neighbours, or None: partners are drawn from all records.
        seed, stream: two sources with different ``stream`` draw independently.
    """

    def __init__(
        self,
        records,
        *,
        grids: Sequence[int],
        short: int,
        long: int,
        flip: float,
        filling: str = "fit",
        crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        pad_value: float = 114,
        num_groups: int = 0,
        partners: np.ndarray | None = None,
        seed: int,
        stream: int,
        image_format: str = "BGR",
    ):
        super().__init__(records, seed=seed, stream=stream, image_format=image_format)
        if filling not in ("fit", "crop"):
            raise UserError(f'INPUT.MOSAIC.FILLING is "{filling}": choose "fit" or "crop".')
        if not grids or min(grids) < 1:
            raise UserError(
                f"INPUT.MOSAIC.GRIDS is {list(grids)}: give one or more n >= 1, such as [2, 3, 4]."
            )
        self.grids, self.short, self.long, self.flip = tuple(grids), short, long, flip
        self.filling, self.crop_scale, self.crop_ratio = filling, crop_scale, crop_ratio
        self.pad_value = pad_value
        self.num_groups, self.partners = num_groups, partners
        self.square = min(grids) > 1

    @classmethod
    def captions(cls, cfg, records, *, seed, stream):
        """The caption branch: 1 x 1 canvases."""
        caption = cfg.INPUT.CAPTION
        return cls(
            records, grids=[1], short=caption.SHORT_SIDE, long=caption.LONG_SIDE, flip=caption.FLIP,
            seed=seed, stream=stream, image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    @classmethod
    def mosaics(cls, cfg, records, *, seed, stream, partners=None):
        """Canvases of INPUT.MOSAIC; ``partners``: (N, P) indices of records to draw from, None: all."""
        mosaic = cfg.INPUT.MOSAIC
        return cls(
            records, grids=mosaic.GRIDS, short=mosaic.SIZE, long=mosaic.SIZE, flip=mosaic.FLIP,
            filling=mosaic.FILLING, crop_scale=tuple(mosaic.CROP_SCALE),
            crop_ratio=tuple(mosaic.CROP_RATIO), pad_value=mosaic.PAD_VALUE,
            num_groups=mosaic.GROUPS, partners=partners, seed=seed, stream=stream, image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        n = int(rng.choice(self.grids))
        indices = self.draw_partners(index, n * n, rng)
        if n == 1:
            cells = None
            record, picture = self.read_single(index, rng, skipped)
            chosen, pictures = [record], [picture]
            size = picture.shape[:2]
            boxes = np.array([[0, 0, size[1], size[0]]])
        else:
            size = (self.long, self.long)
            cells = grid_cells(n, size=size)
            chosen, pictures = zip(
                *(self.read_tile(i, cell, rng, skipped) for i, cell in zip(indices, cells, strict=True)),
                strict=True,
            )
            extents = np.array([p.shape[:2] for p in pictures])
            boxes = place(extents, cells, inward_anchors(n, rng))
        pictures = [p[:, ::-1] if rng.random() < self.flip else p for p in pictures]
        canvas = compose([p.transpose(2, 0, 1) for p in pictures], boxes, size=size, pad_value=self.pad_value)
        groups = [composition_groups(n, self.num_groups, rng) for _ in range(NUM_GROUP_DRAWS)]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(canvas)),
            "height": size[0],
            "width": size[1],
            "tiles": tiles_of(chosen, boxes, groups=np.stack(groups), rng=rng),
        }

    def draw_partners(self, index: int, count: int, rng) -> list[int]:
        """``index`` and ``count`` - 1 others, distinct where there are enough of them."""
        pool = self.partners[index] if self.partners is not None else None
        size = len(pool) if pool is not None else len(self.records) - 1
        if size == 0:
            return [index] * count
        drawn = rng.choice(size, count - 1, replace=size < count - 1)
        if pool is not None:
            return [index, *(int(pool[i]) for i in drawn)]
        return [index, *(int(i) + (i >= index) for i in drawn)]  # all records but ``index``

    def read_single(self, index, rng, skipped):
        """(record, its picture resized to the caption size, (h, w, 3) uint8)."""

        def at_least(record):
            return fit_size(record["height"], record["width"], short=self.short, long=self.long)

        record, decoded = self.read(index, rng, skipped, self.any_record(rng), at_least)
        return record, resize(
            decoded.image, fit_size(decoded.height, decoded.width, short=self.short, long=self.long)
        )

    def read_tile(self, index, cell, rng, skipped):
        """A picture for ``cell`` (x0, y0, x1, y1), fitted or cropped to it."""
        height, width = int(cell[3] - cell[1]), int(cell[2] - cell[0])
        # A crop keeps a part of each side, so the whole picture must be decoded that much larger.
        crop = {"scale": self.crop_scale, "ratio": self.crop_ratio}
        margin = 1.0 if self.filling == "fit" else 1 / shortest_crop(**crop)

        def at_least(record):
            h, w = record["height"], record["width"]
            scale = (min if self.filling == "fit" else max)(height / h, width / w) * margin
            return min(int(np.ceil(h * scale)), h), min(int(np.ceil(w * scale)), w)

        record, decoded = self.read(index, rng, skipped, self.any_record(rng), at_least)
        if self.filling == "fit":
            return record, resize(
                decoded.image, fit_cell(decoded.height, decoded.width, cell=(height, width))
            )
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], **crop, rng=rng)
        return record, resize(decoded.image[y0:y1, x0:x1], (height, width))


class DetectionMapper(RecordMapper):
    """Detection records → Detectron2's {image, height, width, image_id, instances}, training only.

    Detectron2's own augmentations, on pictures that may be unreadable.
    """

    annotated = True

    def __init__(self, records, *, augmentations, seed, stream, image_format="BGR"):
        super().__init__(records, seed=seed, stream=stream, image_format=image_format)
        self.augmentations = T.AugmentationList(augmentations)

    @classmethod
    def from_cfg(cls, cfg, records, *, seed, stream):
        return cls(
            records, augmentations=training_augmentations(cfg), seed=seed, stream=stream,
            image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped, self.any_record(rng))
        record = copy.deepcopy(record)
        aug_input = T.AugInput(decoded.image)
        with _numpy_seeded(int(rng.integers(2**31))):
            transforms = self.augmentations(aug_input)
        size = aug_input.image.shape[:2]
        annotations = [
            utils.transform_instance_annotations(a, transforms, size)
            for a in record.pop("annotations", [])
            if a.get("iscrowd", 0) == 0
        ]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))),
            "height": decoded.height,
            "width": decoded.width,
            "image_id": record["image_id"],
            "file_name": record["file_name"],
            "instances": utils.filter_empty_instances(utils.annotations_to_instances(annotations, size)),
        }


@contextmanager
def _numpy_seeded(seed: int):
    """Detectron2's augmentations read the global NumPy state; lend them one of the sample's own."""
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])

"""Mappers turn records into network inputs. Each input is a pure function of (seed, stream, epoch, index).

``image`` is uint8 (3, H, W), boxes are x0, y0, x1, y1 in px, T is the number of tiles on a canvas.
"""

import copy
import os
import random
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from PIL import Image

from clim.errors import UserError

from .images import MIN_SIDE, Decoded, UnreadableImage, channels_first, check_size, letterbox, paste, read_image
from .jittering import Jittering, JitterTransform
from .mosaic import COPY_SIDE, fit_cell, fit_size, grid_cells, inward_anchors, place, resized_crop, shortest_crop
from .tiles import Tiles, tiles_of

MAX_REPLACEMENTS = 50  # more in a row mean that the image folder is wrong


class RecordMapper:
    """Base of all mappers: it gives each sample its random numbers and replaces unreadable images.

    ``records`` are dicts with ``file_name, height, width, image_id`` and what the subclass needs. Sources with
    different ``stream`` draw independently. ``copies``: [(folder of images, folder of their small copies)].
    """

    square = False  # whether all samples are squares of one size
    annotated = False  # whether records hold boxes, which need an image of the annotated size
    min_side = MIN_SIDE  # px, of an image that is used

    def __init__(self, records: Sequence[dict], *, seed: int, stream: int, image_format: str = "BGR", copies=()):
        self.records = records
        self.seed, self.stream, self.image_format = seed, stream, image_format
        self.copies = [(os.path.join(os.path.abspath(images), ""), small) for images, small in copies]

    def __call__(self, *, index: int, epoch: int) -> dict:
        """One network input of a draw, and the replaced images under ``skipped``: [(file name, reason)]."""
        rng = np.random.default_rng([self.seed, self.stream, epoch, index])
        skipped: list[tuple[str, str]] = []
        return self.map(index % len(self.records), rng, skipped) | {"skipped": skipped}

    def map(self, index: int, rng: np.random.Generator, skipped: list) -> dict:
        """The network input of record ``index``; the method adds replaced images to ``skipped``."""
        raise NotImplementedError

    def read(self, index: int, rng: np.random.Generator, skipped: list, at_least=None) -> tuple[dict, Decoded]:
        """Record ``index`` and its decoded image, or a random record whose image can be read.

        ``at_least(record)`` is the (height, width) in px that the caller resizes to; None: full size.
        """
        for _ in range(MAX_REPLACEMENTS):
            record = self.records[index]
            try:
                size = at_least(record) if at_least else None
                options = {"fmt": self.image_format, "at_least": size}
                decoded = size and self.copies and self.read_copy(record, **options)
                decoded = decoded or read_image(record["file_name"], min_side=self.min_side, **options)
                if self.annotated:
                    check_size(record, decoded)
                return record, decoded
            except UnreadableImage as error:
                skipped.append((error.file_name, error.reason))
                index = int(rng.integers(len(self.records)))
        last = "{} ({})".format(*skipped[-1])
        raise UserError(f"{MAX_REPLACEMENTS} images in a row could not be read, last {last}: is the folder complete?")

    def read_copy(self, record: dict, *, at_least: tuple[int, int], **options) -> Decoded | None:
        """The small copy of an image, if it has the ``at_least`` (height, width) in px; None: the image is read."""
        size = record["height"], record["width"]
        path = os.path.abspath(record["file_name"]) if max(at_least) <= COPY_SIDE < max(size) else ""
        for images, copies in self.copies:
            with suppress(UnreadableImage):
                if path.startswith(images):
                    small = read_image(os.path.join(copies, path[len(images) :]), at_least=at_least, **options)
                    if small[1:] == fit_cell(*size, cell=(COPY_SIDE, COPY_SIDE)):  # else it is of another image
                        return Decoded(small.image, *size)
        return None


class CanvasMapper(RecordMapper):
    """Records with ``captions`` and ``tags`` → canvases of n x n tiles; n = 1 is the resized image (CLIM paper §3.2).

    n is drawn uniformly from ``grids`` for every canvas. A mosaic has ``long`` x ``long`` px; a single image follows
    Detectron2's ResizeShortestEdge, with both sides times one of ``scales``, drawn uniformly. ``filling``: "fit" keeps
    the ratio, pads and packs inwards (CLIM release); "crop" fills each cell with a random crop (CLIM paper §3.2). With
    ``jitter``, a single image is jittered instead, and a mosaic fits what is left of each image into its cell (CLIM
    release on LVIS). A tile's box is that of its pixels.
    ``partners`` are (N, K) indices of each record's neighbours; None: all records. ``permute_texts``: every tile of a
    mosaic gets the texts of another tile (a control for experiments).
    """

    def __init__(
        self, records: Sequence[dict], *, grids: Sequence[int], short: int, long: int, flip: float,
        scales: Sequence[float] = (1.0,), filling: str = "fit", crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3), pad_value: float = 114, partners: np.ndarray | None = None,
        permute_texts: bool = False, jitter: Jittering | None = None, **stream,
    ):  # fmt: skip
        super().__init__(records, **stream)
        self.grids, self.short, self.long, self.flip, self.jitter = tuple(grids), short, long, flip, jitter
        self.scales = tuple(scales)
        self.filling, self.crop = filling, {"scale": tuple(crop_scale), "ratio": tuple(crop_ratio)}
        self.pad_value, self.partners, self.permute_texts = pad_value, partners, permute_texts
        self.square = min(grids) > 1
        self.memory = np.empty(0, dtype=np.uint8)  # of the largest canvas so far: new memory takes longer to get

    def map(self, index, rng, skipped):
        n = int(rng.choice(self.grids))
        indices = self.draw_partners(index, n * n, rng)
        made = self.mosaic(n, indices, rng, skipped) if n > 1 else self.single(index, rng, skipped)
        records, images, boxes, (height, width) = made
        if self.memory.size < (needed := 3 * height * width):
            self.memory = np.empty(needed, dtype=np.uint8)
        canvas = self.memory[:needed].reshape(height, width, 3)
        canvas[:] = self.pad_value
        for image, (x0, y0, x1, y1) in zip(images, boxes.tolist(), strict=True):
            paste(image, canvas[y0:y1, x0:x1], mirrored=rng.random() < self.flip)
        tiles = tiles_of(records, boxes, rng=rng)
        if self.permute_texts and len(tiles) > 1:
            # This draw is the last, so the canvas does not depend on it. A rotation moves every text.
            tiles = tiles.with_rolled_texts(int(rng.integers(1, len(tiles))))
        return _canvas(channels_first(canvas), tiles)

    def single(self, index: int, rng, skipped) -> tuple:
        """([record], [image], boxes (1, 4), size (H, W)) of one image, which is resized to fill its canvas."""
        if self.jitter:
            record, image = self.read_jittered(index, rng, skipped)
            height, width = image.shape[:2]
        else:
            scale = rng.choice(self.scales)  # of one scale, NumPy draws nothing
            fit = partial(fit_size, short=self.short * scale, long=self.long * scale)
            record, decoded = self.read(index, rng, skipped, lambda r: fit(r["height"], r["width"]))
            image, (height, width) = decoded.image, fit(decoded.height, decoded.width)
        return [record], [image], np.array([[0, 0, width, height]]), (height, width)

    def mosaic(self, n: int, indices: Sequence[int], rng, skipped) -> tuple:
        """(records, images, boxes (T, 4), size (H, W)) of n x n images, which are resized into a square canvas."""
        size = (self.long, self.long)
        cells = grid_cells(n, size=size)
        tiles = [self.read_tile(i, cell, rng, skipped) for i, cell in zip(indices, cells, strict=True)]
        records, images, extents = zip(*tiles, strict=True)
        return records, images, place(np.array(extents), cells, inward_anchors(n, rng)), size

    def draw_partners(self, index: int, count: int, rng) -> list[int]:
        """``index`` and ``count`` - 1 others, which differ from each other if there are enough."""
        pool = self.partners[index] if self.partners is not None else None
        size = len(pool) if pool is not None else len(self.records) - 1
        if size == 0:
            return [index] * count
        drawn = rng.choice(size, count - 1, replace=size < count - 1)
        if pool is not None:
            return [index, *(int(pool[i]) for i in drawn)]
        return [index, *(int(i) + (i >= index) for i in drawn)]  # all records but ``index``

    def read_tile(self, index: int, cell, rng, skipped) -> tuple[dict, np.ndarray, tuple[int, int]]:
        """A record, its image or a crop of it, and the (height, width) that this gets in ``cell`` (x0, y0, x1, y1)."""
        height, width = int(cell[3] - cell[1]), int(cell[2] - cell[0])
        if self.jitter:
            record, image = self.read_jittered(index, rng, skipped)
            return record, image, fit_cell(*image.shape[:2], cell=(height, width))
        # A crop keeps a part of each side, so the decoded image must be larger by that factor.
        margin = 1.0 if self.filling == "fit" else 1 / shortest_crop(**self.crop)

        def at_least(record):
            scales = height / record["height"], width / record["width"]
            return _scaled(record, (min(scales) if self.filling == "fit" else max(scales)) * margin)

        record, decoded = self.read(index, rng, skipped, at_least)
        if self.filling == "fit":
            return record, decoded.image, fit_cell(decoded.height, decoded.width, cell=(height, width))
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], **self.crop, rng=rng)
        return record, decoded.image[y0:y1, x0:x1], (height, width)

    def read_jittered(self, index: int, rng, skipped) -> tuple[dict, np.ndarray]:
        """A record and its jittered image."""
        draws = self.jitter.draw(rng)
        plan = partial(self.jitter.transform, draws=draws)
        record, decoded = self.read(index, rng, skipped, lambda r: plan(r["height"], r["width"]).jitter.size)
        transform = plan(decoded.height, decoded.width)
        skipped += vanished([transform], record)
        return record, transform.apply_image(decoded.image)


class CropMapper(RecordMapper):
    """Records with ``captions`` and ``tags`` → one random crop each, resized to ``size`` x ``size`` px (clip_fvlm §2).

    ``scale`` bounds the crop's part of the area, ``ratio`` its width / height, drawn uniformly on a logarithmic scale.
    """

    square = True

    def __init__(self, records, *, size: int, scale: tuple[float, float], ratio: tuple[float, float], **stream):
        super().__init__(records, **stream)
        self.size, self.crop = size, {"scale": tuple(scale), "ratio": tuple(ratio)}

    def map(self, index, rng, skipped):
        # The smallest crop has at least ``size`` px a side, unless the image is smaller.
        shortest = self.size / shortest_crop(**self.crop)
        record, decoded = self.read(index, rng, skipped, lambda r: _scaled(r, shortest / min(r["height"], r["width"])))
        # PIL's bicubic filter averages all pixels when it shrinks, as CLIP's own preprocessing does.
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], **self.crop, rng=rng)
        image = Image.fromarray(decoded.image[y0:y1, x0:x1]).resize((self.size, self.size), Image.Resampling.BICUBIC)
        tiles = tiles_of([record], np.array([[0, 0, self.size, self.size]]), rng=rng)
        return _canvas(channels_first(np.asarray(image)), tiles)


class RegionMapper(RecordMapper):
    """Pseudo-labelled boxes → letterboxed canvases; each box is a tile that has its noun as tag and no caption.

    Records hold ``boxes`` (R, 4) xyxy in px of the image, R >= 1, and ``nouns`` (R,) 0-based. The longest side becomes
    ``size`` px and black pads to a square; there is no augmentation (CLIPSelf, clip_fvlm §5).
    """

    square, annotated = True, True

    def __init__(self, records, *, size: int, **stream):
        super().__init__(records, **stream)
        self.size = size

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped)
        canvas, scale = letterbox(decoded.image, self.size)
        regions = [record | {"captions": (), "tags": [noun]} for noun in record["nouns"].tolist()]
        return _canvas(channels_first(canvas), tiles_of(regions, record["boxes"] * scale, rng=rng))


class DetectionMapper(RecordMapper):
    """Detection records → Detectron2's training inputs.

    ``mask_format``: "polygon" or "bitmask" masks as in Detectron2; None: no masks. With masks, "mmdet" jittering takes
    boxes from what is left of the masks, and keeps those above .01 px (detic §3.2).
    """

    annotated, min_side = True, 1

    def __init__(self, records, *, augmentations: Sequence[T.Augmentation], mask_format: str | None = None, **stream):
        super().__init__(records, **stream)
        self.augmentations, self.mask_format = T.AugmentationList(augmentations), mask_format
        styles = [a.style for a in augmentations if isinstance(a, Jittering)]
        self.boxes_of_masks = mask_format is not None and "mmdet" in styles

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped)
        record = copy.deepcopy(record)
        aug_input = T.AugInput(decoded.image)
        with _numpy_seeded(int(rng.integers(2**31))):
            transforms = self.augmentations(aug_input)
        skipped += vanished(transforms.transforms, record)
        instances = self.instances(record.get("annotations", []), transforms, aug_input.image.shape[:2])
        sample = {"image": channels_first(aug_input.image), "height": decoded.height, "width": decoded.width}
        return sample | {name: record[name] for name in ("image_id", "file_name")} | {"instances": instances}

    def instances(self, annotations: list[dict], transforms: T.TransformList, size: tuple[int, int]) -> Instances:
        """What is left of the annotations, without crowds, in the transformed image of ``size`` (height, width)."""
        kept = [a for a in annotations if a.get("iscrowd", 0) == 0]
        if self.mask_format is None:
            kept = [{key: value for key, value in a.items() if key != "segmentation"} for a in kept]
        moved = [utils.transform_instance_annotations(a, transforms, size) for a in kept]
        instances = utils.annotations_to_instances(moved, size, self.mask_format or "polygon")
        if not (self.boxes_of_masks and len(instances)):
            return utils.filter_empty_instances(instances)
        masks = instances.gt_masks
        bitmasks = masks if isinstance(masks, BitMasks) else BitMasks.from_polygon_masks(masks, *size)
        instances.gt_boxes = bitmasks.get_bounding_boxes()
        return utils.filter_empty_instances(instances, box_threshold=0.01)


def vanished(transforms: Sequence[T.Transform], record: dict) -> list[tuple[str, str]]:
    """An entry of ``skipped`` if jittering leaves a side of the image less than 1 px, which becomes 1 px."""
    jitters = (t.jitter for t in transforms if isinstance(t, JitterTransform))
    return [(record["file_name"], "jittered to a side of 0 px") for jitter in jitters if jitter.vanished]


def _scaled(record: dict, scale: float) -> tuple[int, int]:
    """(height, width) of the image times ``scale``, rounded up but for errors of floats, and at most full size."""
    return tuple(min(int(np.ceil(record[side] * scale - 1e-6)), record[side]) for side in ("height", "width"))


def _canvas(image: torch.Tensor, tiles: Tiles) -> dict:
    return {"image": image, "height": image.shape[1], "width": image.shape[2], "tiles": tiles}


@contextmanager
def _numpy_seeded(seed: int):
    """Detectron2's augmentations draw from the global random states: seed these, and restore them at the end."""
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])

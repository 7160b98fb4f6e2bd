"""Mappers: records → network inputs, each a pure function of (seed, epoch, index); workers and ranks do not matter.

``image`` is uint8 (3, H, W), boxes are x0, y0, x1, y1 in px, T is the number of tiles on a canvas. An unreadable image
never stops a training: :meth:`RecordMapper.read` takes another record and names the file under ``skipped``.
"""

import copy
import random
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from PIL import Image

from clim.errors import UserError

from .images import Decoded, UnreadableImage, channels_first, letterbox, read_image, resize
from .mosaic import compose, fit_cell, fit_size, grid_cells, inward_anchors, place, resized_crop, shortest_crop
from .tiles import Tiles, tiles_of

MAX_REPLACEMENTS = 50  # in a row: then the image folder is wrong, not an image


class RecordMapper:
    """What all mappers share: the random numbers of a sample, and what happens to unreadable images.

    Args:
        records: dicts with ``file_name, height, width, image_id``; more of it is the subclass's business.
        seed, stream: two sources with different ``stream`` draw independently.
        image_format: channel order of ``image``, "BGR" or "RGB".
    """

    square = False  # whether all samples have one square size, whatever the images' shapes
    annotated = False  # whether records hold boxes, which are wrong on an image of another size than theirs

    def __init__(self, records: Sequence[dict], *, seed: int, stream: int, image_format: str = "BGR"):
        self.records = records
        self.seed, self.stream, self.image_format = seed, stream, image_format

    def __call__(self, *, index: int, epoch: int) -> dict:
        """One network input, with ``skipped``: [(file name, reason)] of the images that were replaced."""
        rng = np.random.default_rng([self.seed, self.stream, epoch, index])
        skipped: list[tuple[str, str]] = []
        return self.map(index, rng, skipped) | {"skipped": skipped}

    def map(self, index: int, rng: np.random.Generator, skipped: list) -> dict:
        """The network input of record ``index``, by the sample's own ``rng``; replaced images go to ``skipped``."""
        raise NotImplementedError

    def read(self, index: int, rng: np.random.Generator, skipped: list, at_least=None) -> tuple[dict, Decoded]:
        """The record ``index`` and its decoded image, or a random record whose image can be read.

        ``at_least(record)`` gives the (height, width) in px that the caller resizes to; None: full size. UserError if
        ``MAX_REPLACEMENTS`` images in a row are unreadable.
        """
        for _ in range(MAX_REPLACEMENTS):
            record = self.records[index]
            try:
                asked = at_least(record) if at_least else None
                decoded = read_image(record["file_name"], fmt=self.image_format, at_least=asked)
                if self.annotated:
                    check_size(record, decoded)
                return record, decoded
            except UnreadableImage as error:
                skipped.append((error.file_name, error.reason))
                index = int(rng.integers(len(self.records)))
        raise UserError(
            f"{MAX_REPLACEMENTS} images in a row could not be read, the last one {skipped[-1][0]} "
            f"({skipped[-1][1]}): is the image folder of this data set complete?"
        )


def check_size(record: dict, decoded: Decoded) -> None:
    """UnreadableImage where the image has another size than its record: boxes would lie elsewhere on it."""
    annotated, found = (record["width"], record["height"]), (decoded.width, decoded.height)
    if annotated != found:
        reason = f"{found[0]}x{found[1]} px, but annotated as {annotated[0]}x{annotated[1]}"
        raise UnreadableImage(record["file_name"], reason)


class CanvasMapper(RecordMapper):
    """Image-caption records → canvases of n x n tiles; n = 1 is the resized image, unpadded (CLIM paper §3.2).

    Args:
        records: with ``captions`` and ``tags``.
        grids: n is drawn uniformly from it for every canvas.
        short, long: sides in px. For n = 1 Detectron2's ResizeShortestEdge rule; for n > 1 the canvas is
            ``long`` x ``long``.
        filling: "fit" keeps the ratio, pads and packs inwards (CLIM release); "crop" fills each cell by a
            random crop (CLIM paper §3.2). The box of a tile is what was pasted.
        partners: (N, K) indices of each record's neighbours, or None: partners are drawn from all records.
        permute_texts: every tile of a mosaic gets the texts of another tile (a control for experiments).
        stream: ``seed, stream, image_format`` of :class:`RecordMapper`.
    """

    def __init__(
        self,
        records: Sequence[dict],
        *,
        grids: Sequence[int],
        short: int,
        long: int,
        flip: float,
        filling: str = "fit",
        crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        pad_value: float = 114,
        partners: np.ndarray | None = None,
        permute_texts: bool = False,
        **stream,
    ):
        super().__init__(records, **stream)
        if filling not in ("fit", "crop"):
            raise UserError(f'INPUT.MOSAIC.FILLING is "{filling}": choose "fit" or "crop".')
        self.grids, self.short, self.long, self.flip = tuple(grids), short, long, flip
        self.filling, self.crop = filling, {"scale": tuple(crop_scale), "ratio": tuple(crop_ratio)}
        self.pad_value, self.partners, self.permute_texts = pad_value, partners, permute_texts
        self.square = min(grids) > 1

    @classmethod
    def captions(cls, cfg, records, **stream):
        """The caption branch: 1 x 1 canvases of INPUT.CAPTION."""
        caption = cfg.INPUT.CAPTION
        return cls(
            records, grids=[1], short=caption.SHORT_SIDE, long=caption.LONG_SIDE, flip=caption.FLIP,
            image_format=cfg.INPUT.FORMAT, **stream,
        )  # fmt: skip

    @classmethod
    def mosaics(cls, cfg, records, *, partners=None, **stream):
        """Canvases of INPUT.MOSAIC; ``partners`` as in the constructor."""
        mosaic = cfg.INPUT.MOSAIC
        return cls(
            records, grids=mosaic.GRIDS, short=mosaic.SIZE, long=mosaic.SIZE, flip=mosaic.FLIP, filling=mosaic.FILLING,
            crop_scale=mosaic.CROP_SCALE, crop_ratio=mosaic.CROP_RATIO, pad_value=mosaic.PAD_VALUE, partners=partners,
            permute_texts=mosaic.PERMUTE_TEXTS, image_format=cfg.INPUT.FORMAT, **stream,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        n = int(rng.choice(self.grids))
        indices = self.draw_partners(index, n * n, rng)
        laid_out = self.mosaic(n, indices, rng, skipped) if n > 1 else self.single(index, rng, skipped)
        records, images, boxes, size = laid_out
        images = [image[:, ::-1] if rng.random() < self.flip else image for image in images]
        canvas = compose([i.transpose(2, 0, 1) for i in images], boxes, size=size, pad_value=self.pad_value)
        tiles = tiles_of(records, boxes, rng=rng)
        if self.permute_texts and len(tiles) > 1:
            # Drawn last, so that the canvas is that of a run without; a rotation leaves no text in place.
            tiles = tiles.with_rolled_texts(int(rng.integers(1, len(tiles))))
        return _canvas(torch.from_numpy(canvas), tiles)

    def single(self, index: int, rng, skipped) -> tuple:
        """([record], [image], boxes (1, 4), size) of one image, which is the whole canvas of ``size`` (H, W)."""

        def fitted(height, width):
            return fit_size(height, width, short=self.short, long=self.long)

        record, decoded = self.read(index, rng, skipped, lambda r: fitted(r["height"], r["width"]))
        size = fitted(decoded.height, decoded.width)
        return [record], [resize(decoded.image, size)], np.array([[0, 0, size[1], size[0]]]), size

    def mosaic(self, n: int, indices: Sequence[int], rng, skipped) -> tuple:
        """(records, images, boxes (T, 4), size) of n x n images, each inside its cell of a square canvas."""
        size = (self.long, self.long)
        cells = grid_cells(n, size=size)
        tiles = [self.read_tile(i, cell, rng, skipped) for i, cell in zip(indices, cells, strict=True)]
        records, images = zip(*tiles, strict=True)
        extents = np.array([image.shape[:2] for image in images])
        return records, images, place(extents, cells, inward_anchors(n, rng)), size

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

    def read_tile(self, index: int, cell, rng, skipped) -> tuple[dict, np.ndarray]:
        """A record and its image for ``cell`` (x0, y0, x1, y1), fitted or cropped to it."""
        height, width = int(cell[3] - cell[1]), int(cell[2] - cell[0])
        # A crop keeps a part of each side, so the whole image must be decoded that much larger.
        margin = 1.0 if self.filling == "fit" else 1 / shortest_crop(**self.crop)

        def at_least(record):
            h, w = record["height"], record["width"]
            scale = (min if self.filling == "fit" else max)(height / h, width / w) * margin
            return min(int(np.ceil(h * scale)), h), min(int(np.ceil(w * scale)), w)

        record, decoded = self.read(index, rng, skipped, at_least)
        if self.filling == "fit":
            return record, resize(decoded.image, fit_cell(decoded.height, decoded.width, cell=(height, width)))
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], **self.crop, rng=rng)
        return record, resize(decoded.image[y0:y1, x0:x1], (height, width))


class CropMapper(RecordMapper):
    """Image-caption records → one random crop each, resized to a square: a 1 x 1 canvas (clip_fvlm §2).

    Args:
        records: with ``captions`` and ``tags``.
        size: px, side of the square.
        scale: bounds of the crop's part of the image's area.
        ratio: bounds of its width / height, drawn uniformly on a logarithmic scale.
    """

    square = True

    def __init__(self, records, *, size: int, scale: tuple[float, float], ratio: tuple[float, float], **stream):
        super().__init__(records, **stream)
        self.size, self.crop = size, {"scale": tuple(scale), "ratio": tuple(ratio)}

    @classmethod
    def captions(cls, cfg, records, **stream):
        """Single crops of INPUT.CAPTION."""
        caption = cfg.INPUT.CAPTION
        return cls(
            records, size=caption.CROP, scale=caption.CROP_SCALE, ratio=caption.CROP_RATIO,
            image_format=cfg.INPUT.FORMAT, **stream,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        # The smallest crop still has at least ``size`` px a side, where the image has them.
        margin = self.size / shortest_crop(**self.crop)

        def at_least(record):
            grow = margin / min(record["height"], record["width"])
            return tuple(min(int(np.ceil(record[side] * grow)), record[side]) for side in ("height", "width"))

        record, decoded = self.read(index, rng, skipped, at_least)
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], **self.crop, rng=rng)
        # PIL's bicubic averages over all pixels where it shrinks: what CLIP's own preprocessing does.
        image = Image.fromarray(decoded.image[y0:y1, x0:x1]).resize((self.size, self.size), Image.Resampling.BICUBIC)
        tiles = tiles_of([record], np.array([[0, 0, self.size, self.size]]), rng=rng)
        return _canvas(channels_first(np.asarray(image)), tiles)


class RegionMapper(RecordMapper):
    """Pseudo-labelled boxes → letterboxed canvases; every box is a tile with its noun as tag, without caption.

    The longest side becomes ``size`` px, black pads to a square; no augmentation (CLIPSelf, clip_fvlm §5).

    Args:
        records: with ``boxes`` (R, 4) xyxy in px of the image, R >= 1, and ``nouns`` (R,) 0-based.
    """

    square, annotated = True, True

    def __init__(self, records, *, size: int, **stream):
        super().__init__(records, **stream)
        self.size = size

    @classmethod
    def from_cfg(cls, cfg, records, **stream):
        return cls(records, size=cfg.INPUT.REGIONS.SIZE, image_format=cfg.INPUT.FORMAT, **stream)

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped)
        canvas, scale = letterbox(decoded.image, self.size)
        count = len(record["boxes"])
        tiles = Tiles(
            boxes=torch.from_numpy(record["boxes"] * scale).float(),
            canvas=torch.zeros(count, dtype=torch.int64),
            image_ids=torch.full((count,), record["image_id"]),
            captions=[[] for _ in range(count)],
            drawn=[""] * count,
            tags=[[int(noun)] for noun in record["nouns"]],
        )
        return _canvas(channels_first(canvas), tiles)


class DetectionMapper(RecordMapper):
    """Detection records → Detectron2's {image, height, width, image_id, instances}, for training only."""

    annotated = True

    def __init__(self, records, *, augmentations: Sequence[T.Augmentation], **stream):
        super().__init__(records, **stream)
        self.augmentations = T.AugmentationList(augmentations)

    @classmethod
    def from_cfg(cls, cfg, records, **stream):
        return cls(records, augmentations=training_augmentations(cfg), image_format=cfg.INPUT.FORMAT, **stream)

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped)
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
            "image": channels_first(aug_input.image),
            "height": decoded.height,
            "width": decoded.width,
            "image_id": record["image_id"],
            "file_name": record["file_name"],
            "instances": utils.filter_empty_instances(utils.annotations_to_instances(annotations, size)),
        }


def training_augmentations(cfg) -> list[T.Augmentation]:
    """Detectron2's resizing and flip; with INPUT.LSJ.SIZE large-scale jittering in the place of the resizing.

    Large-scale jittering (arXiv 2012.07177): scale to fit a square of a random part of SIZE, cut out at most
    SIZE x SIZE. The model pads to the square, so that training and test do it alike.
    """
    standard = utils.build_augmentation(cfg, is_train=True)
    size, (smallest, largest) = cfg.INPUT.LSJ.SIZE, cfg.INPUT.LSJ.SCALE
    if not size:
        return standard
    return [T.ResizeScale(smallest, largest, size, size), T.FixedSizeCrop((size, size), pad=False), *standard[1:]]


def _canvas(image: torch.Tensor, tiles: Tiles) -> dict:
    return {"image": image, "height": image.shape[1], "width": image.shape[2], "tiles": tiles}


@contextmanager
def _numpy_seeded(seed: int):
    """Detectron2's augmentations read the global random states; lend them the sample's own."""
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])

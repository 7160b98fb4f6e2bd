"""Pictures with regions to classify: records of a region set → letterboxed test inputs.

CLIM release's protocol (clip_fvlm §3). R: regions that are left of a picture; S, C, M: sides in px.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.structures import Boxes
from torch import Tensor

from clim.errors import UserError

from .images import UnreadableImage, read_image
from .letterbox import letterbox
from .region_shapes import bitmask, crop_letterboxed, extent, letterbox_masks, segment_ids
from .skipping_loader import Skipped, SkippingLoader

VARIANTS = ("boxes", "masks", "crops")
NO_REGION = "no region left"  # why a readable picture is skipped: nothing on it is to be classified
CROP_ENLARGED = 1.5  # crops show the surroundings of a given box; stuff is cut at its extent (CLIM release)


class RegionTestMapper:
    """Record of a region set → {"image", "boxes", "gt_classes", "image_id", …}, or :class:`Skipped`.

    ====================  =======================================================================
    ``image``             uint8 (3, S, S), longest side S, black to the right and below
    ``boxes``             Boxes (R, 4), x0, y0, x1, y1 in pixels of ``image``, not cut at its border
    ``gt_classes``        int64 (R,)
    ``masks``             bool (R, S, S), of cells of M x M px; with the variant "masks" only
    ``crops``             uint8 (R, 3, C, C); with the variant "crops" only
    ``height``, ``width`` of the original picture
    ====================  =======================================================================

    Of a picture's annotations in their order the first ``max_boxes`` are looked at, and of those the ones kept
    whose box area, width x height in the original picture, lies in [``min_area``, ``max_area``].

    Args:
        size, crop_size, mask_stride: S, C, M.
        crowds: False leaves crowd annotations out beforehand; the release does not.
    """

    def __init__(
        self,
        *,
        variants: tuple[str, ...] = ("boxes",),
        size: int = 1024,
        mask_stride: int = 16,
        crop_size: int = 224,
        min_area: float = 8**2,
        max_area: float = 1024**2,
        max_boxes: int = 100,
        crowds: bool = True,
        image_format: str = "RGB",
    ):
        self.variants, self.image_format = variants, image_format
        self.size, self.crop_size, self.mask_stride = size, crop_size, mask_stride
        self.min_area, self.max_area, self.max_boxes, self.crowds = min_area, max_area, max_boxes, crowds

    @classmethod
    def from_cfg(cls, cfg) -> "RegionTestMapper":
        regions = cfg.INPUT.REGIONS
        return cls(
            variants=tuple(cfg.TEST.REGIONS), size=regions.SIZE, mask_stride=regions.MASK_STRIDE,
            crop_size=regions.CROP_SIZE, min_area=regions.MIN_AREA, max_area=regions.MAX_AREA,
            max_boxes=regions.MAX_BOXES, crowds=regions.CROWDS, image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    def __call__(self, record: dict) -> dict | Skipped:
        annotations = [a for a in record["annotations"] if self.crowds or not a["iscrowd"]][: self.max_boxes]
        if not annotations:
            return Skipped(record["file_name"], NO_REGION)
        try:
            image = _read(record["file_name"], record, fmt=self.image_format)
            segments = None
            if "pan_seg_file_name" in record:
                segments = segment_ids(_read(record["pan_seg_file_name"], record, fmt="RGB"))
        except UnreadableImage as error:
            return Skipped(error.file_name, error.reason)

        masks = [
            _mask(a, record, segments) if "masks" in self.variants or "bbox" not in a else None
            for a in annotations
        ]
        boxes = [_box(a, mask) for a, mask in zip(annotations, masks, strict=True)]
        kept = [i for i, box in enumerate(boxes) if box is not None and self.is_sized(box)]
        if not kept:
            return Skipped(record["file_name"], NO_REGION)
        boxes = torch.stack([boxes[i] for i in kept])
        square, scale = letterbox(image, self.size)
        sample = {
            "image": _channels_first(square),
            "boxes": Boxes((boxes * scale).float()),
            "gt_classes": torch.tensor([annotations[i]["category_id"] for i in kept]),
            "image_id": record["image_id"],
            "file_name": record["file_name"],
            "height": image.shape[0],
            "width": image.shape[1],
        }
        if "masks" in self.variants:
            cells = letterbox_masks(torch.stack([masks[i] for i in kept]), self.size // self.mask_stride)
            sample["masks"] = F.interpolate(cells[:, None].byte(), self.size)[:, 0].bool()
        if "crops" in self.variants:
            given = ["bbox" in annotations[i] for i in kept]
            sample["crops"] = self.crops(image, boxes.numpy(), given)
        return sample

    def is_sized(self, box: Tensor) -> bool:
        """Whether a box (4,) xyxy, in px of the original picture, is neither too small nor too large."""
        width, height = (box[2:] - box[:2]).tolist()
        return self.min_area <= width * height <= self.max_area

    def crops(self, image: np.ndarray, boxes: np.ndarray, given: list[bool]) -> Tensor:
        """uint8 (R, 3, C, C) of boxes (R, 4); those that were ``given``, not measured, are enlarged."""
        crops = [
            crop_letterboxed(image, box, self.crop_size, enlarged=CROP_ENLARGED if is_given else 1.0)
            for box, is_given in zip(boxes, given, strict=True)
        ]
        return torch.stack([_channels_first(crop) for crop in crops])


def build_region_test_loader(cfg, name: str, *, on_skip: Callable[[Skipped], None]) -> SkippingLoader:
    """This process's share of region set ``name``, one picture a batch.

    Raises:
        UserError: the set holds no picture, or no masks although TEST.REGIONS asks for them.
    """
    records = DatasetCatalog.get(name)
    if not records:
        raise UserError(f"DATASETS.TEST {name} holds no picture.")
    if "masks" in cfg.TEST.REGIONS and not all(map(_has_masks, records)):
        raise UserError(
            f"TEST.REGIONS asks for masks, but regions of {name} have none: take it out, or name another data set."
        )
    loader = build_detection_test_loader(
        records, mapper=RegionTestMapper.from_cfg(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return SkippingLoader(loader, on_skip=on_skip)


def _has_masks(record: dict) -> bool:
    return "pan_seg_file_name" in record or all("segmentation" in a for a in record["annotations"])


def _read(file_name: str, record: Mapping, *, fmt: str) -> np.ndarray:
    """(H, W, 3); a picture of another size than the json says has its boxes elsewhere, so it is of no use."""
    image = read_image(file_name, fmt=fmt).image
    if image.shape[:2] != (record["height"], record["width"]):
        stated = f"{record['width']}x{record['height']}"
        raise UnreadableImage(file_name, f"{image.shape[1]}x{image.shape[0]}, but {stated} in the json")
    return image


def _mask(annotation: Mapping, record: Mapping, segments: Tensor | None) -> Tensor:
    """bool (H, W)."""
    if segments is not None:
        return segments == annotation["segment_id"]
    return bitmask(annotation["segmentation"], record["height"], record["width"])


def _box(annotation: Mapping, mask: Tensor | None) -> Tensor | None:
    """(4,) double x0, y0, x1, y1; None for stuff that the segmentation does not show."""
    if "bbox" not in annotation:
        return extent(mask)
    x, y, width, height = annotation["bbox"]
    return torch.tensor([x, y, x + width, y + height], dtype=torch.float64)


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

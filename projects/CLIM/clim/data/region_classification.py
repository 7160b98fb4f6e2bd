"""Region classification: records of ``read_regions`` or ``read_panoptic_regions`` → letterboxed test inputs.

A mask comes from ``segmentation`` or, in a panoptic set, from the pixels of ``pan_seg_file_name`` with the
``segment_id``. Stuff has no box, so the extent of its mask is its box. The inputs follow the CLIM release
(clip_fvlm §3). H, W: size of the original image; R: its regions after filtering; S, C, M: sides in px.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.structures import Boxes
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import masks_to_boxes

from clim.errors import UserError

from .datasets import get_records
from .images import UnreadableImage, channels_first, check_size, letterbox, letterbox_size, read_image
from .loader import NO_REGION, Skipped, SkippingLoader
from .readers import warn_of_strays
from .schemas import run_lengths

VARIANTS = ("boxes", "masks", "crops")
CROP_ENLARGED = 1.5  # crops show the surroundings of a box, but not of stuff (CLIM release)


@dataclass(kw_only=True)
class RegionTestMapper:
    """Record of a region set → one network input, or :class:`Skipped`.

    The input holds ``image``, uint8 (3, S, S), black to the right and below; ``boxes``, Boxes (R, 4) xyxy in px of it,
    not cut at its border; ``gt_classes``, int64 (R,); ``height`` and ``width`` of the original image. The variants
    "masks" and "crops" add ``masks``, bool (R, S, S), of squares of M x M px, and ``crops``, uint8 (R, 3, C, C).

    The mapper takes the first ``max_boxes`` annotations and keeps boxes whose area in the original image lies in
    [``min_area``, ``max_area``] px². INPUT.REGIONS has the arguments from ``size`` to ``crowds`` in capitals.
    """

    variants: tuple[str, ...] = ("boxes",)
    size: int = 1024  # S
    mask_stride: int = 16  # M
    crop_size: int = 224  # C
    min_area: float = 8**2
    max_area: float = 1024**2
    max_boxes: int = 100
    crowds: bool = True  # False leaves out crowd annotations first; the release keeps them
    image_format: str = "RGB"

    @classmethod
    def from_cfg(cls, cfg) -> "RegionTestMapper":
        regions = {key.lower(): value for key, value in cfg.INPUT.REGIONS.items()}
        return cls(variants=tuple(cfg.TEST.REGIONS), image_format=cfg.INPUT.FORMAT, **regions)

    def __call__(self, record: dict) -> dict | Skipped:
        annotations = [a for a in record["annotations"] if self.crowds or not a["iscrowd"]][: self.max_boxes]
        if not annotations:
            return Skipped(record["file_name"], NO_REGION)
        try:
            image, segments = self.read(record)
        except UnreadableImage as error:
            return Skipped(error.file_name, error.reason)

        kept, boxes, masks = [], [], []
        for annotation in annotations:
            mask = None
            if segments is not None:
                mask = segments == annotation["segment_id"]
            elif "masks" in self.variants:
                mask = bitmask(annotation["segmentation"], record["height"], record["width"])
            if "bbox" in annotation:
                x, y, width, height = annotation["bbox"]
                box = torch.tensor([x, y, x + width, y + height], dtype=torch.float64)
            else:
                box = extent(mask)  # stuff
            if self.min_area <= (box[2:] - box[:2]).prod() <= self.max_area:
                kept.append(annotation)
                boxes.append(box)
                masks.append(mask)
        if not kept:
            return Skipped(record["file_name"], NO_REGION)
        boxes = torch.stack(boxes)
        square, scale = letterbox(image, self.size)
        sample = {name: record[name] for name in ("image_id", "file_name", "height", "width")}
        sample |= {"image": channels_first(square), "boxes": Boxes((boxes * scale).float())}
        sample["gt_classes"] = torch.tensor([annotation["category_id"] for annotation in kept])
        if "masks" in self.variants:
            squares = letterbox_masks(torch.stack(masks), self.size // self.mask_stride)
            sample["masks"] = F.interpolate(squares[:, None].byte(), self.size)[:, 0].bool()
        if "crops" in self.variants:
            factors = [CROP_ENLARGED if "bbox" in annotation else 1.0 for annotation in kept]
            cuts = zip(boxes.numpy(), factors, strict=True)
            crops = (crop_letterboxed(image, box, self.crop_size, enlarged=factor) for box, factor in cuts)
            sample["crops"] = torch.stack(list(map(channels_first, crops)))
        return sample

    def read(self, record: Mapping) -> tuple[np.ndarray, Tensor | None]:
        """Image (H, W, 3) and segment ids (H, W); UnreadableImage also if they do not fit, or lack a segment."""
        decoded = read_image(record["file_name"], fmt=self.image_format)
        check_size(record, decoded)
        if "pan_seg_file_name" not in record:
            return decoded.image, None
        segments = read_image(record["pan_seg_file_name"], fmt="RGB")
        check_size({**record, "file_name": record["pan_seg_file_name"]}, segments)
        # COCO's panoptic PNGs store an id as red + 256 green + 65536 blue.
        ids = segments.image.astype(np.int64) @ [1, 256, 65536]
        if absent := [a["segment_id"] for a in record["annotations"] if not (ids == a["segment_id"]).any()]:
            raise UnreadableImage(record["pan_seg_file_name"], f"it does not show segment {absent[0]} of its image")
        return decoded.image, torch.from_numpy(ids)


def build_region_loader(cfg, name: str, *, on_skip: Callable[[Skipped], None]) -> SkippingLoader:
    """This process's share of region set ``name``, one image a batch. UserError without images, or needed masks."""
    records = get_records(name, masks="masks" in cfg.TEST.REGIONS)
    source = MetadataCatalog.get(name).get("json_file", name)
    if not records:
        raise UserError(f"DATASETS.TEST {name} ({source}) holds no image.")
    warn_of_strays(records, source)
    with_masks = ("pan_seg_file_name" in r or all("segmentation" in a for a in r["annotations"]) for r in records)
    if "masks" in cfg.TEST.REGIONS and not all(with_masks):
        raise UserError(f"TEST.REGIONS asks for masks, but regions of {name} have none: change it or DATASETS.TEST.")
    mapper, workers = RegionTestMapper.from_cfg(cfg), cfg.DATALOADER.NUM_WORKERS
    return SkippingLoader(build_detection_test_loader(records, mapper=mapper, num_workers=workers), on_skip=on_skip)


def bitmask(segmentation: list | Mapping, height: int, width: int) -> Tensor:
    """bool (H, W) of COCO's polygons or run lengths (compressed or not)."""
    return torch.from_numpy(coco_mask.decode(run_lengths(segmentation, height, width)).astype(bool))


def extent(mask: Tensor) -> Tensor:
    """(4,) double x0, y0, x1, y1 of a bool mask (H, W): indices of its first and last pixels.

    As in the release, the box is one pixel narrower than the mask, and a single row has no area.
    """
    return masks_to_boxes(mask[None])[0].double()


def letterbox_masks(masks: Tensor, size: int) -> Tensor:
    """bool (R, H, W) → (R, S, S), R > 0: True if the bicubic value without antialiasing is positive (CLIM release).

    Each value reads 4 x 4 pixels, so a small or thin region can vanish. It then gets the one value that covers most of
    it; the release would average over nothing. An empty mask stays empty.
    """
    full = masks[:, None].float()
    height, width = letterbox_size(*masks.shape[1:], size)
    inside = F.interpolate(full, (height, width), mode="bicubic", align_corners=False)[:, 0] > 0
    lost = masks.flatten(1).any(dim=1) & ~inside.flatten(1).any(dim=1)
    for i in lost.nonzero().flatten().tolist():
        inside[i].view(-1)[F.adaptive_avg_pool2d(full[i], (height, width)).argmax()] = True
    return F.pad(inside, (0, size - width, 0, size - height))


def crop_letterboxed(image: np.ndarray, box: np.ndarray, size: int, *, enlarged: float = 1.0) -> np.ndarray:
    """Crop ``box`` of uint8 (H, W, 3), resize its longest side to S and pad with black on both sides → (S, S, 3).

    ``box`` is x0, y0, x1, y1 in px. It grows by the factor ``enlarged`` about its centre, ends at the image's border
    and is rounded to whole pixels, at least one.
    """
    height, width = image.shape[:2]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * enlarged
    low = np.rint(np.clip(centre - half, 0, [width - 1, height - 1])).astype(int)
    high = np.maximum(np.rint(np.minimum(centre + half, [width, height])).astype(int), low + 1)
    square, _ = letterbox(np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]), size)
    height, width = letterbox_size(high[1] - low[1], high[0] - low[0], size)
    return np.roll(square, ((size - height) // 2, (size - width) // 2), axis=(0, 1))

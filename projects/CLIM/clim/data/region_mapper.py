"""Records with pseudo-labelled boxes → letterboxed canvases whose tiles are the boxes."""

import numpy as np
import torch

from .images import letterbox
from .record_mapper import RecordMapper
from .tiles import Tiles


class RegionMapper(RecordMapper):
    """The longest side becomes ``size``, black pads to a square; no augmentation (CLIPSelf, clip_fvlm §5).

    Every box is a tile with one tag, its noun, and without caption.

    Args:
        records: dicts with ``file_name, height, width, image_id``, ``boxes`` (R, 4) xyxy in pixels of the
            picture, R >= 1, and ``nouns`` (R,) 0-based.
        size: px, side of the canvas.
    """

    square, annotated = True, True

    def __init__(self, records, *, size: int, seed: int, stream: int, image_format: str = "BGR"):
        super().__init__(records, seed=seed, stream=stream, image_format=image_format)
        self.size = size

    @classmethod
    def from_cfg(cls, cfg, records, *, seed, stream):
        return cls(
            records, size=cfg.INPUT.REGIONS.SIZE, seed=seed, stream=stream, image_format=cfg.INPUT.FORMAT
        )  # fmt: skip

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped, self.any_record(rng))
        canvas, scale = letterbox(decoded.image, self.size)
        count = len(record["boxes"])
        return {
            "image": torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1))),
            "height": self.size,
            "width": self.size,
            "tiles": Tiles(
                boxes=torch.from_numpy(record["boxes"] * scale).float(),
                canvas=torch.zeros(count, dtype=torch.int64),
                image_ids=torch.full((count,), record["image_id"]),
                captions=[[] for _ in range(count)],
                drawn=[""] * count,
                tags=[[int(noun)] for noun in record["nouns"]],
            ),
        }

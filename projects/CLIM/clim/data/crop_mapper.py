"""Image-caption records → square random crops, as CLIP is trained on them."""

import numpy as np
import torch
from PIL import Image

from .mosaic import resized_crop, shortest_crop
from .record_mapper import RecordMapper
from .tiles import tiles_of


class CropMapper(RecordMapper):
    """One crop of a random size and shape, resized to a square: a 1 x 1 canvas (CLIM release, clip_fvlm §2).

    Args:
        records: dicts with ``file_name, image_id, captions, tags``.
        size: px, side of the square.
        scale: bounds of the crop's part of the picture's area.
        ratio: bounds of its width / height, drawn uniformly on a logarithmic scale.
    """

    square = True

    def __init__(
        self, records, *, size: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int, stream: int,
        image_format: str = "BGR",
    ):  # fmt: skip
        super().__init__(records, seed=seed, stream=stream, image_format=image_format)
        self.size, self.scale, self.ratio = size, scale, ratio

    @classmethod
    def captions(cls, cfg, records, *, seed, stream):
        """Single crops of INPUT.CAPTION."""
        caption = cfg.INPUT.CAPTION
        return cls(
            records, size=caption.CROP, scale=tuple(caption.CROP_SCALE), ratio=tuple(caption.CROP_RATIO),
            seed=seed, stream=stream, image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        # The smallest crop still has at least ``size`` px a side, where the picture has them.
        margin = self.size / shortest_crop(scale=self.scale, ratio=self.ratio)

        def at_least(record):
            grow = margin / min(record["height"], record["width"])
            return tuple(min(int(np.ceil(record[side] * grow)), record[side]) for side in ("height", "width"))

        record, decoded = self.read(index, rng, skipped, self.any_record(rng), at_least)
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], scale=self.scale, ratio=self.ratio, rng=rng)
        crop = Image.fromarray(decoded.image[y0:y1, x0:x1])
        # PIL's bicubic averages over all pixels where it shrinks: what CLIP's own preprocessing does.
        picture = crop.resize((self.size, self.size), Image.Resampling.BICUBIC)
        boxes = np.array([[0, 0, self.size, self.size]])
        return {
            "image": torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()),
            "height": self.size,
            "width": self.size,
            "tiles": tiles_of([record], boxes, rng=rng),
        }

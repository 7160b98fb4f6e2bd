"""EfficientNet-Lite0 as the image encoder of an image-text model, for CPUs: ImageNet weights, a learned projection.

Inputs: (RGB - 127) / 128. Shapes: B pictures, (h, w) cells at stride 16, D embedding width.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import Tensor, nn

from clim.checkpoints.keys import Half, read_half
from clim.errors import UserError
from clim.files import resolve

from .efficientnet import LAST_SHARED, OUT_CHANNELS, folded_lite0
from .image_encoders import IMAGE_ENCODER_REGISTRY, ImageEncoder, as_rois, pool_rois

ROI_SIZE = 7
WEIGHTS = Half(
    "image encoder", "projection.weight", "", "MODEL.IMAGE_ENCODER.NAME", "MODEL.IMAGE_ENCODER.PRETRAINED"
)
TAPS = {2: ShapeSpec(channels=24, stride=4), 4: ShapeSpec(channels=40, stride=8),
        10: ShapeSpec(channels=112, stride=16), 15: ShapeSpec(channels=320, stride=32)}  # fmt: skip


@IMAGE_ENCODER_REGISTRY.register()
class EfficientNetLite0(ImageEncoder):
    """Pictures: blocks 0–15, mean, projection. Cells: without mean.

    Regions "v2": RoIAlign 7 x 7 after block 10, then the same rest, as an attention-pool ResNet's; "v1": RoIAlign
    1 x 1 of the dense map, as a ViT's (clip_fvlm §1).
    """

    stride = 16
    dense_stride = 32
    native_size = 128

    @configurable
    def __init__(self, *, dim: int, unlocked_blocks: int, regions: str = "v2", pretrained: str = ""):
        """
        Args:
            unlocked_blocks: the last of 16 blocks, which learn; the projection to ``dim`` always does.
            pretrained: a file with all of this encoder's weights, such as an image-text model's clip.pt; "": those
                of ImageNet and a random projection.
        """
        super().__init__()
        net = folded_lite0()
        count = len(net._blocks)
        if not 0 <= unlocked_blocks <= count:
            raise UserError(
                f"MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS is {unlocked_blocks}, but EfficientNet-Lite0 has {count} "
                f"blocks: choose a number from 0 to {count}."
            )
        if regions not in ("v1", "v2"):
            raise UserError(f'MODEL.IMAGE_ENCODER.REGIONS is "{regions}": choose "v1" or "v2".')
        self.dim, self.regions = dim, regions
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.ModuleList(net._blocks)
        self.projection = nn.Linear(OUT_CHANNELS, dim)
        if pretrained:
            self._load(pretrained)
        self.first_unlocked = count - unlocked_blocks
        for module in (self.stem, *self.blocks[: self.first_unlocked]):
            module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg):
        encoder = cfg.MODEL.IMAGE_ENCODER
        return {
            "dim": cfg.MODEL.TEXT.DIM,
            "unlocked_blocks": encoder.UNLOCKED_BLOCKS,
            "regions": encoder.REGIONS,
            "pretrained": encoder.PRETRAINED,
        }

    def _load(self, pretrained: str) -> None:
        path = resolve(pretrained)
        if not path.is_file():
            raise UserError(
                f"MODEL.IMAGE_ENCODER.PRETRAINED: {path} does not exist; name a clip.pt that an image-text model with "
                'this encoder has written, or "" for ImageNet weights.'
            )
        parts = dict(self.named_children())
        # Beside the encoder's own weights, a published file has logit_scale.
        state = read_half(WEIGHTS, path)[0]
        try:
            self.load_state_dict({k: v for k, v in state.items() if k.partition(".")[0] in parts})
        except RuntimeError as error:  # other keys or shapes
            reason = str(error).partition("\n")[2].strip().partition("\n")[0]
            raise UserError(
                f"MODEL.IMAGE_ENCODER.PRETRAINED: {path} holds another encoder than EfficientNetLite0 with "
                f"MODEL.TEXT.DIM {self.dim} ({reason})."
            ) from error

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, D): the projected mean of the last map."""
        return self._project_mean(self.features(images)["dense"])

    def cells(self, images: Tensor) -> Tensor:
        """(B, 320, H / 32, W / 32), the output of block 15."""
        return self._head(self.features(images)["dense"])

    def project(self, rows: Tensor) -> Tensor:
        return self.projection(rows)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """{"dense": (B, 112, h, w)}, the output of block 10."""
        with torch.no_grad():
            x = self.stem(images)
        return {"dense": self._run(x, range(LAST_SHARED + 1))}

    @property
    def tap_shapes(self) -> dict[int, ShapeSpec]:
        """Channels and stride of what :meth:`taps` gives, four maps for a pyramid."""
        return TAPS

    def taps(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Outputs of blocks 2, 4, 10 and 15 at strides 4 to 32, and block 10's again: what regions are pooled from."""
        maps, start = {}, 0
        with torch.no_grad():
            x = self.stem(images)
        for block in TAPS:
            x = maps[block] = self._run(x, range(start, block + 1))
            start = block + 1
        return maps, maps[LAST_SHARED]

    def embed_stages(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Iterator[Tensor]:
        rois = as_rois(boxes)
        if self.regions == "v1":
            yield pool_rois(self.dense(features), rois, stride=self.dense_stride, size=1).flatten(1)
        else:
            yield self._project_mean(pool_rois(features["dense"], rois, stride=self.stride, size=ROI_SIZE))

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        """(B, D, h / 2, w / 2), a unit vector for each location at stride 32."""
        cells = self._head(features["dense"]).permute(0, 2, 3, 1)
        return F.normalize(self.projection(cells).float(), dim=3).permute(0, 3, 1, 2)

    def _project_mean(self, maps: Tensor) -> Tensor:
        return self.projection(self._head(maps).mean((2, 3)))

    def _head(self, maps: Tensor) -> Tensor:
        return self._run(maps, range(LAST_SHARED + 1, len(self.blocks)))

    def _run(self, x: Tensor, blocks: range) -> Tensor:
        for i in blocks:
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.first_unlocked):
                x = self.blocks[i](x)
        return x

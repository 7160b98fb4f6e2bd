"""CLIP's ResNet with an attention pool: regions by the pool itself, or from a dense map (clip_fvlm §1).

Shapes: B pictures, C channels of layer4, (h, w) its cells, D embedding width.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import Tensor, nn

from clim.errors import UserError

from .image_encoders import IMAGE_ENCODER_REGISTRY, ImageEncoder, as_rois, pool_rois, resize_positions

LAYERS = ("layer1", "layer2", "layer3", "layer4")
ROIS_AT_ONCE = 256  # a 14 x 14 RoI of RN50x64 takes 13 MB, with its tokens, keys and values


@IMAGE_ENCODER_REGISTRY.register()
class ClipResNet(ImageEncoder):
    """Regions "v2": RoIAlign layer4 to the attention pool's own grid, then the pool; "v1": RoIAlign the dense map.

    Batch norm, stem to layer3, and the pool's value and output projections are always frozen.
    """

    stride = 32

    @configurable
    def __init__(self, *, visual: nn.Module, unlocked_blocks: int, regions: str):
        """``visual``: an open_clip ModifiedResNet. ``unlocked_blocks``: 0, or 1 for layer4 and the pool's
        query, key and positional embedding. Raises UserError for other values and towers.
        """
        super().__init__()
        _check(visual, unlocked_blocks, regions)
        self.visual = visual
        self.regions = regions
        self.dim = visual.output_dim
        self.grid = round((len(visual.attnpool.positional_embedding) - 1) ** 0.5)
        self.native_size = self.grid * self.stride
        self.learns = bool(unlocked_blocks)
        self.idle_without_singles = self.learns and regions == "v1"  # the pool's queries and keys
        visual.requires_grad_(False)
        pool = visual.attnpool
        for module in (visual.layer4, pool.q_proj, pool.k_proj):
            module.requires_grad_(self.learns)
        pool.positional_embedding.requires_grad_(self.learns)
        for module in visual.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, cfg):
        from clim.text.clip import load_clip_visual  # open_clip takes seconds to import

        encoder = cfg.MODEL.IMAGE_ENCODER
        return {
            "visual": load_clip_visual(encoder.ARCHITECTURE, encoder.PRETRAINED),
            "unlocked_blocks": encoder.UNLOCKED_BLOCKS,
            "regions": encoder.REGIONS,
        }

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, D): CLIP's own embedding, by the attention pool over the whole picture."""
        return attention_pool(self.visual.attnpool, self.taps(images)[1])

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """{"dense": (B, C, h, w)}, the output of layer4."""
        return {"dense": self.taps(images)[1]}

    @property
    def tap_shapes(self) -> dict[str, ShapeSpec]:
        """Channels and stride of what :meth:`taps` gives, four maps for a pyramid."""
        return {
            name: ShapeSpec(channels=getattr(self.visual, name)[-1].bn3.num_features, stride=4 << i)
            for i, name in enumerate(LAYERS)
        }

    def taps(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """{"layer1": …, "layer4": …} at strides 4 to 32, and layer4 again: the map that regions are pooled from."""
        taken = {}
        with torch.no_grad():
            x = self.visual.stem(images)
            for name in LAYERS[:-1]:
                x = taken[name] = getattr(self.visual, name)(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns):
            taken["layer4"] = self.visual.layer4(x)
        return taken, taken["layer4"]

    def embed_stages(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Iterator[Tensor]:
        pool = self._dense_at if self.regions == "v1" else self._attention_at
        yield pool(features, as_rois(boxes))

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        """(B, D, h, w) of unit length at every cell (clip_fvlm §1)."""
        # The pool without attention: each cell's projected value. The mean token then touches no cell.
        pool, layer4 = self.visual.attnpool, features["dense"]
        grid = layer4.shape[2:]
        positions = resize_positions(pool.positional_embedding, tuple(grid))[1:]
        cells = pool.c_proj(pool.v_proj(layer4.flatten(2).transpose(1, 2) + positions))  # (B, h·w, D)
        return F.normalize(cells.transpose(1, 2).unflatten(2, grid).float(), dim=1)

    def _dense_at(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        return pool_rois(self.dense(features), rois, stride=self.stride, size=1).flatten(1)

    def _attention_at(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        layer4, pool = features["dense"], self.visual.attnpool
        parts = [
            attention_pool(pool, pool_rois(layer4, part, stride=self.stride, size=self.grid))
            for part in rois.split(ROIS_AT_ONCE)
        ]
        return torch.cat(parts)


def attention_pool(pool: nn.Module, maps: Tensor) -> Tensor:
    """(B, D): open_clip's AttentionPool2d ``pool`` of maps (B, C, h, w) of any size.

    Asks with the mean token alone, whose answer is all that the module itself returns.
    """
    positions = resize_positions(pool.positional_embedding, tuple(maps.shape[2:]))
    cells = maps.flatten(2).transpose(1, 2)
    tokens = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + positions
    parts = pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), pool.v_proj(tokens)
    heads = [x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2) for x in parts]  # (B, heads, N, -1)
    return pool.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1))


def _check(visual: nn.Module, unlocked_blocks: int, regions: str) -> None:
    if not all(hasattr(visual, part) for part in (*LAYERS, "stem", "attnpool")):
        raise UserError(
            "MODEL.IMAGE_ENCODER.ARCHITECTURE does not name a CLIP ResNet, and ClipResNet reads no other: choose "
            "one such as RN50x64-quickgelu, or another MODEL.IMAGE_ENCODER.NAME."
        )
    if unlocked_blocks not in (0, 1):
        raise UserError(
            f"MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS is {unlocked_blocks}, but of a ClipResNet either nothing "
            "learns (0) or layer4 and the attention pool's queries, keys and positions do (1)."
        )
    if regions not in ("v1", "v2"):
        raise UserError(
            f"MODEL.IMAGE_ENCODER.REGIONS {regions!r} is unknown: choose v2 (attention pool of RoIAligned layer4) "
            "or v1 (RoIAligned dense map)."
        )

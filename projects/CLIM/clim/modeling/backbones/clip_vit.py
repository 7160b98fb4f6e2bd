"""CLIP's vision transformer with MaskCLIP's dense map: the last block runs without attention (clip_fvlm §1).

Shapes: B images, (h, w) patches, N = 1 + h·w tokens with CLS first, W width, D embedding width.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from clim.errors import UserError

from .encoder import IMAGE_ENCODER_REGISTRY, ImageEncoder, clip_arguments, first_unlocked, resize_positions


@IMAGE_ENCODER_REGISTRY.register()
class ClipViT(ImageEncoder):
    """Regions are RoIAligned from the dense map. Images may have any size: positional embeddings are resized."""

    @configurable
    def __init__(self, *, visual: nn.Module, unlocked_blocks: int):
        """``visual``: an open_clip VisionTransformer. Only its last ``unlocked_blocks`` blocks learn."""
        super().__init__()
        if not _is_plain(visual):
            raise UserError(
                "MODEL.IMAGE_ENCODER.ARCHITECTURE does not name a CLIP vision transformer for square images: choose "
                "one such as ViT-B-16-quickgelu, or another MODEL.IMAGE_ENCODER.NAME."
            )
        self.visual, self.dim = visual, visual.output_dim
        self.native_size, self.stride = visual.image_size[0], visual.patch_size[0]
        blocks = visual.transformer.resblocks
        # Blocks 3, 5, 7 and 11 of 12 (release); other depths take the same fractions.
        taps = (len(blocks) * twelfths // 12 - 1 for twelfths in (4, 6, 8, 12))
        self.tap_shapes = dict.fromkeys(taps, ShapeSpec(channels=len(visual.proj), stride=self.stride))
        visual.requires_grad_(False)
        blocks[first_unlocked(unlocked_blocks, len(blocks)) :].requires_grad_(True)

    @classmethod
    def from_config(cls, cfg):
        return clip_arguments(cfg)

    def embed_images(self, images: Tensor) -> Tensor:
        tokens, _ = self._run(images, attend)
        return self.visual.ln_post(tokens[:, 0]) @ self.visual.proj

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"dense": self.taps(images, ())[1]}

    def taps(self, images: Tensor, blocks: Collection[int] | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Outputs (B, W, h, w) of ``blocks``, counted from 0, and the dense map (B, D, h, w); CLS is left out."""
        blocks = self.tap_shapes if blocks is None else blocks
        grid = tuple(side // self.stride for side in images.shape[2:])
        tokens, taken = self._run(images, values, blocks)
        dense = self.visual.ln_post(tokens[:, 1:]) @ self.visual.proj
        maps = {block: x[:, 1:].transpose(1, 2).unflatten(2, grid) for block, x in taken.items()}
        return maps, F.normalize(dense.transpose(1, 2).unflatten(2, grid).float(), dim=1)

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        return features["dense"]

    def _run(
        self, images: Tensor, last_mix: Callable[[nn.Module, Tensor], Tensor], taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens (B, N, W) after the last block, and after each of the blocks ``taps``.

        ``last_mix``: :func:`attend` or :func:`values`, how tokens mix in the last block.
        """
        patches = self.visual.conv1(images)  # (B, W, h, w)
        first = self.visual.class_embedding.to(patches).expand(len(patches), 1, -1)
        positions = resize_positions(self.visual.positional_embedding, tuple(patches.shape[2:]))
        x = self.visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + positions)
        taken, blocks = {}, self.visual.transformer.resblocks
        for i, block in enumerate(blocks):
            mix = last_mix if i == len(blocks) - 1 else attend
            x = x + block.ls_1(mix(block.attn, block.ln_1(x)))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            if i in taps:
                taken[i] = x
        return x, taken


def attend(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Self-attention of ``x`` (B, N, W). On a CPU it is faster than the module's own, with half the memory."""
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    parts = (part.unflatten(2, (attention.num_heads, -1)) for part in projected.chunk(3, dim=2))
    heads = (part.transpose(1, 2) for part in parts)  # queries, keys, values (B, heads, N, -1)
    return attention.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def values(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """The result of :func:`attend` if each token sees only itself."""
    width = x.shape[2]
    return attention.out_proj(F.linear(x, attention.in_proj_weight[-width:], attention.in_proj_bias[-width:]))


def _is_plain(visual: nn.Module) -> bool:
    """Whether ``visual`` is a transformer whose every step this file computes."""
    return (
        isinstance(getattr(visual, "transformer", None), nn.Module)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and all(type(block.attn) is nn.MultiheadAttention for block in visual.transformer.resblocks)
        and visual.image_size[0] == visual.image_size[1]
        and visual.patch_size[0] == visual.patch_size[1]
    )

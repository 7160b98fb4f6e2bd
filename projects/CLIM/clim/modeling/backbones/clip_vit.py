"""CLIP's vision transformers with MaskCLIP's dense map: the last block runs without attention (clip_fvlm §1).

Shapes: B images, (h, w) patches, N = P + h·w tokens, P before the patches (CLS; SigLIP: none), W width, D embedding.
"""

from collections.abc import Collection
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clim.errors import UserError

from .encoder import IMAGE_ENCODER_REGISTRY, ImageEncoder, clip_arguments, first_unlocked, resize_positions
from .timm_vit import TimmSteps


@IMAGE_ENCODER_REGISTRY.register()
class ClipViT(ImageEncoder):
    """open_clip's vision transformers, its own and timm's; regions are RoIAligned from the dense map.

    Images may have any size: positional embeddings are resized. Pixels behind the last whole patch are not seen.
    """

    @configurable
    def __init__(self, *, visual: nn.Module, unlocked_blocks: int, checkpointing: bool = False):
        """``visual``: open_clip's image tower. Only its last ``unlocked_blocks`` blocks learn; with ``checkpointing``
        they are computed again in the backward pass instead of stored.
        """
        super().__init__()
        kinds = [kind for kind in (ClipSteps, TimmSteps) if kind.can_read(visual)]
        if not kinds:
            raise UserError(
                "MODEL.IMAGE_ENCODER.ARCHITECTURE does not name a CLIP vision transformer for square images that can "
                "be read densely: choose one such as ViT-B-16-quickgelu or EVA02-B-16, or another encoder's NAME."
            )
        self.visual, self.steps, self.checkpointing = visual, kinds[0](visual), checkpointing
        self.dim, self.native_size, self.stride = self.steps.dim, self.steps.image_size, self.steps.patch_size
        blocks = self.steps.blocks
        # Blocks 3, 5, 7 and 11 of 12 (release); other depths take the same fractions.
        taps = (len(blocks) * twelfths // 12 - 1 for twelfths in (4, 6, 8, 12))
        self.tap_shapes = dict.fromkeys(taps, ShapeSpec(channels=self.steps.width, stride=self.stride))
        visual.requires_grad_(False)
        blocks[first_unlocked(unlocked_blocks, len(blocks)) :].requires_grad_(True)

    @classmethod
    def from_config(cls, cfg):
        return clip_arguments(cfg) | {"checkpointing": cfg.MODEL.IMAGE_ENCODER.CHECKPOINTING}

    def embed_images(self, images: Tensor) -> Tensor:
        tokens, _ = self._run(images, dense=False)
        return self.steps.pool(tokens)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"dense": self.taps(images, ())[1]}

    def taps(self, images: Tensor, blocks: Collection[int] | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Outputs (B, W, h, w) of ``blocks``, counted from 0, and the dense map (B, D, h, w); patches alone."""
        blocks = self.tap_shapes if blocks is None else blocks
        grid, first = tuple(side // self.stride for side in images.shape[2:]), self.steps.prefix
        tokens, taken = self._run(images, dense=True, taps=blocks)
        dense = self.steps.project(tokens[:, first:])
        maps = {block: x[:, first:].transpose(1, 2).unflatten(2, grid) for block, x in taken.items()}
        return maps, F.normalize(dense.transpose(1, 2).unflatten(2, grid).float(), dim=1)

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        return features["dense"]

    def _run(self, images: Tensor, *, dense: bool, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens (B, N, W) after the last block (``dense``: as for the dense map), and after each of ``taps``."""
        x, rotation = self.steps.embed(images)
        taken, blocks = {}, self.steps.blocks
        for i, block in enumerate(blocks):
            run = partial(self.steps.run, dense=dense and i == len(blocks) - 1)
            if self.checkpointing and any(weight.requires_grad for weight in block.parameters()):
                x = checkpoint(run, block, x, rotation, use_reentrant=False)
            else:
                x = run(block, x, rotation)
            if i in taps:
                taken[i] = x
        return x, taken


class ClipSteps:
    """The steps of open_clip's own VisionTransformer, for :class:`ClipViT`."""

    prefix = 1

    def __init__(self, visual: nn.Module):
        self.visual, self.blocks = visual, visual.transformer.resblocks
        self.width, self.dim = visual.proj.shape
        self.image_size, self.patch_size = visual.image_size[0], visual.patch_size[0]

    @staticmethod
    def can_read(visual: nn.Module) -> bool:
        """Whether ``visual`` is a transformer whose every step is computed here."""
        return (
            isinstance(getattr(visual, "transformer", None), nn.Module)
            and visual.attn_pool is None
            and visual.pool_type in ("tok", "avg")
            and all(type(block.attn) is nn.MultiheadAttention for block in visual.transformer.resblocks)
            and visual.image_size[0] == visual.image_size[1]
            and visual.patch_size[0] == visual.patch_size[1]
        )

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """Tokens (B, N, W) before the first block; no rotary positions."""
        patches = self.visual.conv1(images)  # (B, W, h, w)
        first = self.visual.class_embedding.to(patches).expand(len(patches), 1, -1)
        positions = resize_positions(self.visual.positional_embedding, tuple(patches.shape[2:]))
        return self.visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + positions), None

    def run(self, block: nn.Module, x: Tensor, _: None, *, dense: bool) -> Tensor:
        """One block; ``dense``: each token sees only itself."""
        mix = values if dense else attend
        x = x + block.ls_1(mix(block.attn, block.ln_1(x)))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def pool(self, x: Tensor) -> Tensor:
        """(B, N, W) → (B, D), as open_clip: CLS, or the mean of the patches."""
        return self.visual._pool(x)[0] @ self.visual.proj

    def project(self, x: Tensor) -> Tensor:
        """(B, n, W) → (B, n, D), each token as if it were the pooled one."""
        return self.visual.ln_post(x) @ self.visual.proj


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

"""timm's vision transformers inside open_clip (EVA, EVA-02, SigLIP, PE and others), for ClipViT.

Dense maps: towers that read CLS or a mean run their last block without attention, residual and MLP kept (CLIPSelf for
EVA-02). With an attention pool (SigLIP, PE) all blocks run, and the pool reads each location alone (ours, as in
CLIP's ResNets). Norm and projection follow in both. Shapes as in clip_vit.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .encoder import resize_positions

SEQUENCES = 2**15  # at once: CUDA's attention takes fewer than 65,536


class TimmSteps:
    """The steps of timm's VisionTransformer or Eva, the ``trunk`` of an open_clip image tower."""

    def __init__(self, visual: nn.Module):
        self.visual, self.trunk, self.blocks = visual, visual.trunk, visual.trunk.blocks
        self.width, self.prefix = self.trunk.embed_dim, self.trunk.num_prefix_tokens
        self.image_size, self.patch_size = self.trunk.patch_embed.img_size[0], self.trunk.patch_embed.patch_size[0]
        with torch.no_grad():
            self.dim = self.project(self.trunk.pos_embed[:, :1]).shape[2]

    @staticmethod
    def can_read(visual: nn.Module) -> bool:
        """Whether ``visual`` holds a transformer of timm whose every step is computed here."""
        if not hasattr(visual, "trunk"):
            return False
        from timm.layers import PatchEmbed  # timm takes seconds to import
        from timm.models import Eva, VisionTransformer

        trunk = visual.trunk
        return (
            type(trunk) in (Eva, VisionTransformer)
            and type(trunk.patch_embed) is PatchEmbed
            and trunk.pos_embed is not None
            and trunk.pos_embed.shape[1] == trunk.num_prefix_tokens + trunk.patch_embed.num_patches
        )

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, W) before the first block, and rotary positions of the patches, if the tower has them."""
        trunk = self.trunk
        patches = trunk.patch_embed.proj(images)  # (B, W, h, w)
        grid, tokens = tuple(patches.shape[2:]), (trunk.cls_token, trunk.reg_token)
        first = [token.expand(len(patches), -1, -1) for token in tokens if token is not None]
        x = torch.cat([*first, trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))], dim=1)
        x = trunk.norm_pre(x + resize_positions(trunk.pos_embed[0], grid, prefix=self.prefix))
        if getattr(trunk, "rope", None) is None:
            return x, None
        trunk.rope.update_feat_shape(grid)  # its angles span the trained grid
        return x, trunk.rope.get_embed(grid)

    def run(self, block: nn.Module, x: Tensor, rotation: Tensor | None, *, dense: bool) -> Tensor:
        """One block; ``dense``: each token sees only itself, but all tokens if an attention pool follows."""
        if dense and self.trunk.attn_pool is None:
            return alone(block, x)
        return block(x) if rotation is None else block(x, rope=rotation)

    def pool(self, x: Tensor) -> Tensor:
        """(B, N, W) → (B, D), as open_clip."""
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))

    def project(self, x: Tensor) -> Tensor:
        """(B, n, W) → (B, n, D), each token as if it were the only one to pool."""
        x = self.trunk.norm(x)
        if self.trunk.attn_pool is not None:
            x = alone(self.trunk.attn_pool, x)
        return self.visual.head(self.trunk.head(self.trunk.fc_norm(x)))


def alone(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What ``module`` makes of each token of (B, n, W) as a sequence of its own: (B, n, W').

    Attention to one key gives its value, as under a mask that lets each token see only itself.
    """
    parts = x.reshape(-1, 1, x.shape[2]).split(SEQUENCES)
    return torch.cat([module(part).flatten(1) for part in parts]).unflatten(0, x.shape[:2])

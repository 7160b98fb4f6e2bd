"""F-VLM (arXiv 2209.15639) on CLIP: a Faster R-CNN whose backbone is frozen and whose scores ask CLIP again."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList

from .meta_arch import OpenVocabRCNN


@META_ARCH_REGISTRY.register()
class FVLM(OpenVocabRCNN):
    """Training is the parent's, on boxes; at test the encoder embeds every proposal and both scores are fused.

    Args:
        square: px, side of the canvas that pictures are padded to; a larger picture makes a larger one.
        pad_pixel: colour of the padding, in the order of INPUT.FORMAT.
    """

    @configurable
    def __init__(self, *, square: int, pad_pixel: list[float], **kwargs):
        super().__init__(**kwargs)
        self.square = square
        self.register_buffer("pad_pixel", torch.tensor(pad_pixel).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        return super().from_config(cfg) | {
            "square": cfg.INPUT.LSJ.SIZE,
            "pad_pixel": cfg.MODEL.FVLM.PAD_PIXEL,
        }

    @torch.no_grad()
    def inference(self, batched_inputs):
        """Detectron2's list of {"instances"}; these carry ``scores`` and, for ranking, ``logits``."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        # The encoder looks at the proposals as they are, before the head refines them (release).
        embeddings = self.backbone.embed_regions(features, [p.proposal_boxes for p in proposals])
        for regions, part in zip(proposals, embeddings.split([len(p) for p in proposals]), strict=True):
            regions.vlm_embeddings = part
        results, _ = self.roi_heads(images, features, proposals)
        return self._postprocess(results, batched_inputs, images.image_sizes)

    def preprocess_image(self, batched_inputs) -> ImageList:
        """Pictures in the upper left corners of square canvases, then normalised: padding is a colour too."""
        pictures = [x["image"].to(self.device) for x in batched_inputs]
        sizes = [tuple(p.shape[-2:]) for p in pictures]
        divisor = self.backbone.size_divisibility
        side = -(-max(self.square, *map(max, sizes)) // divisor) * divisor
        canvases = self.pad_pixel.expand(len(pictures), -1, side, side).clone()
        for canvas, picture, (height, width) in zip(canvases, pictures, sizes, strict=True):
            canvas[:, :height, :width] = picture
        return ImageList((canvases - self.pixel_mean) / self.pixel_std, sizes)

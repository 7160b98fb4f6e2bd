"""Boxes and their nouns: an RPN proposes boxes, and an image encoder names their crops.

This is CLIM's RegionCLIP comparator (clip_fvlm §5). Its sources give no number of proposals, NMS or score cut, so these
are ours. N proposals, K nouns, D embedding width.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.ops import nms

from clim.checkpoints.checkpointer import load_model
from clim.data.images import ResizeShortestEdge
from clim.data.region_classification import crop_letterboxed
from clim.errors import UserError
from clim.modeling.backbones.encoder import ImageEncoder, build_image_encoder
from clim_commands.drawing import ordered

from .folder import Labels


class Proposer:
    """``Proposer(cfg)(image)`` → boxes (N, 4) xyxy in the image's pixels, by falling objectness.

    Args:
        cfg: of a detector with an RPN; weights are cfg.MODEL.WEIGHTS, "" for random ones.
        count: the largest number of boxes.
        overlap: of two boxes with a higher IoU, one stays.
        min_area: px² of the image; smaller boxes are left out.
        min_objectness: boxes of a lower probability, the sigmoid of the RPN's logit, are left out.
    """

    def __init__(self, cfg, *, count: int, overlap: float, min_area: float, min_objectness: float = 0.0):
        if min_objectness > 0 and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CenterNet":
            raise UserError("--min-objectness needs a detector with an RPN: CenterNet's scores are no logits.")
        self.count, self.overlap, self.min_area, self.min_objectness = count, overlap, min_area, min_objectness
        self.input_format = cfg.INPUT.FORMAT
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = load_model(cfg, parts=("backbone.", "proposal_generator."))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Tensor:
        """``image`` RGB uint8 (H, W, 3)."""
        image = ordered(image, self.input_format)
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        images = self.model.preprocess_image([{"image": tensor}])
        features = self.model.backbone(images.tensor)
        proposals = self.model.proposal_generator(images, features, None)[0][0]
        boxes = proposals.proposal_boxes
        boxes.scale(image.shape[1] / resized.shape[1], image.shape[0] / resized.shape[0])
        scores = proposals.objectness_logits.double()
        kept = (boxes.area() >= self.min_area) & (scores.sigmoid() >= self.min_objectness)
        boxes, scores = boxes.tensor[kept].double(), scores[kept]
        return boxes[nms(boxes, scores, self.overlap)[: self.count]].float().cpu()


class PseudoLabeller:
    """``PseudoLabeller(…)(image)`` → :class:`Labels`: each proposal with the nearest noun of its crop.

    Args:
        propose: RGB uint8 (H, W, 3) → boxes (N, 4).
        nouns: (K, D) unit rows.
        pixel_mean, pixel_std: (3,) of the encoder's input, in the channel order ``input_format``.
        min_score: boxes of a lower cosine are left out.
    """

    def __init__(
        self, *, propose, encoder: ImageEncoder, nouns: Tensor, pixel_mean, pixel_std, input_format: str,
        min_score: float = -1.0,
    ):  # fmt: skip
        if nouns.shape[1] != encoder.dim:
            raise UserError(
                f"The noun embeddings have {nouns.shape[1]} dimensions, but the image encoder's {encoder.dim}: "
                "embed them with this encoder's own text tower (tools/build_text_embeddings.py --tower)."
            )
        self.propose, self.encoder, self.min_score = propose, encoder.eval(), min_score
        self.device = next(encoder.parameters()).device
        self.nouns = nouns.to(self.device)
        self.mean, self.std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (pixel_mean, pixel_std))
        self.input_format = input_format

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Labels:
        """``image`` RGB uint8 (H, W, 3)."""
        boxes = self.propose(image)
        if not len(boxes):
            return Labels(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
        image, size = ordered(image, self.input_format), self.encoder.native_size
        crops = np.stack([crop_letterboxed(image, box, size) for box in boxes.double().numpy()])
        pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2)
        embeddings = normalize(self.encoder.embed_images((pixels - self.mean) / self.std).float(), dim=1)
        scores, nouns = (embeddings @ self.nouns.T).max(dim=1)
        kept = (scores >= self.min_score).cpu()
        return Labels(*(values.cpu()[kept].numpy() for values in (boxes, nouns, scores)))


def load_image_encoder(cfg) -> ImageEncoder:
    """The config's encoder on its device, with its part of cfg.MODEL.WEIGHTS ("" for none)."""
    holder = nn.Module()
    holder.image_encoder = build_image_encoder(cfg)
    return load_model(cfg, model=holder).image_encoder.to(cfg.MODEL.DEVICE)

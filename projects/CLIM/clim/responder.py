"""From a picture and texts to response maps: the model of a config and its weights, ready to be asked."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor

from clim.data.images import ordered, resize
from clim.data.mosaic import fit_size
from clim.engine.checkpoint import SafeCheckpointer
from clim.engine.weight_ensemble import tell_unmixed
from clim.errors import UserError
from clim.modeling.dense_responses import dense_embeddings, dense_stride, responses
from clim.predictor import Predictor, detects
from clim.text import CLASS_FEATURES, build_text_encoder


class Responder:
    """``Responder(cfg)(picture, responder.embed(["a dog"]))`` → cosine maps of a detector or an image encoder.

    Pictures are uint8 (H, W, 3) RGB. The network sees them at a size of whole cells, so a ratio may change by half
    a cell a side.
    """

    def __init__(self, cfg, *, prompt: str | None = None):
        """Weights: cfg.MODEL.WEIGHTS, "" for what the parts bring. ``prompt``: MODEL.VOCABULARY.PROMPT where None."""
        self.prompt = prompt or cfg.MODEL.VOCABULARY.PROMPT
        self.input_format = cfg.INPUT.FORMAT
        self.detects = detects(cfg)
        if self.detects:
            self.model = Predictor(cfg).model
            self.features = self.model.roi_heads.box_predictor.text_features(cfg)
            self.short, self.long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        else:
            self.model = build_model(cfg).eval()
            self.features = "embedding"
            checkpointer = SafeCheckpointer(self.model, cfg.OUTPUT_DIR, trusted=cfg.MODEL.TRUST_WEIGHTS)
            tell_unmixed(cfg.MODEL.WEIGHTS, checkpointer.load(cfg.MODEL.WEIGHTS))
            self.short = self.long = cfg.INPUT.REGIONS.SIZE
        owned = getattr(self.model, "text_encoder", None)  # no `or`: an empty cache is false
        self.text_encoder = build_text_encoder(cfg) if owned is None else owned
        self.stride = dense_stride(self.model)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(Q, D) of texts, each read as the model reads a class name."""
        read = CLASS_FEATURES[self.features]
        return read(self.text_encoder, list(texts), self.prompt).to(self.model.device)

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, texts: Tensor, *, long_side: int | None = None) -> Tensor:
        """Cosines (Q, h, w) of cells that tile the picture with ``texts`` (Q, D), on the CPU.

        Args:
            long_side: px of the picture as the network sees it; None: the config's size at test.
        """
        images = (self._pixels(picture, long_side)[None] - self.model.pixel_mean) / self.model.pixel_std
        return responses(dense_embeddings(self.model, images).float(), texts)[0].cpu()

    @torch.no_grad()
    def best_box(
        self, picture: np.ndarray, text: Tensor, *, long_side: int | None = None
    ) -> np.ndarray | None:
        """x0, y0, x1, y1 in the picture's pixels of the detection that fits ``text`` (D,) best.

        The vocabulary is this one text, and afterwards the model's own again. None where nothing is found; UserError
        where the model has no boxes.
        """
        if not self.detects:
            raise UserError(
                f"MODEL.META_ARCHITECTURE {type(self.model).__name__} draws response maps but no boxes: leave out "
                "--boxes, or name the config of a detector."
            )
        height, width = picture.shape[:2]
        batch = [{"image": self._pixels(picture, long_side), "height": height, "width": width}]
        with self.model.roi_heads.box_predictor.vocabulary(text[None]):
            found = self.model(batch)[0]["instances"].to("cpu")
        if not len(found):
            return None
        return found.pred_boxes.tensor[found.logits.argmax()].numpy()

    def _pixels(self, picture: np.ndarray, long_side: int | None) -> Tensor:
        """(3, H, W) float on the model's device, in its channel order; H and W of whole cells."""
        short, long = (long_side, long_side) if long_side else (self.short, self.long)
        size = [
            max(round(side / self.stride), 1) * self.stride
            for side in fit_size(*picture.shape[:2], short=short, long=long)
        ]
        image = picture if tuple(size) == picture.shape[:2] else resize(picture, tuple(size))
        image = ordered(image, self.input_format).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(image)).float().to(self.model.device)

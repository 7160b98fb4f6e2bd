"""The response maps of CLIM's Figs. 3, 4 and 5: cosines of every location of an image and a text.

The release has no code for them, so the recipe is ours (clip_fvlm §6). B images, D width of embeddings, (h, w)
locations, Q texts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clim.checkpoints.checkpointer import load_model
from clim.data.images import resize
from clim.data.mosaic import fit_size
from clim.detector import Detector, detects
from clim.errors import UserError
from clim.modeling import ImageEncoder
from clim.text import CLASS_FEATURES

from .drawing import ordered

RES5_STRIDE = 2  # of a C4 head's last stage, on top of its backbone's


class Responder:
    """``Responder(cfg)(image, responder.embed(["a dog"]))`` → cosine maps of a detector or an image encoder.

    Images are uint8 (H, W, 3) RGB. The network sees a size of whole locations, so each side may change by half a one.
    """

    def __init__(self, cfg, *, prompt: str | None = None, detector: Detector | None = None):
        """``prompt``: the default is MODEL.VOCABULARY.PROMPT. ``detector``: one of this config, loaded already."""
        self.prompt = prompt or cfg.MODEL.VOCABULARY.PROMPT
        self.input_format = cfg.INPUT.FORMAT
        self.detects = detects(cfg)
        if self.detects:
            detector = detector or Detector(cfg, score_threshold=0.0)
            self.model, self.features = detector.model, detector.features
            self.short, self.long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        else:
            self.model, self.features = load_model(cfg), "embedding"
            self.short = self.long = cfg.INPUT.REGIONS.SIZE
        self.stride = dense_stride(self.model)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(Q, D) of texts, embedded as class names."""
        return CLASS_FEATURES[self.features](self.model.text_encoder, list(texts), self.prompt).to(self.model.device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, texts: Tensor, *, long_side: int | None = None) -> Tensor:
        """Cosines (Q, h, w) of the image's locations and ``texts`` (Q, D), on the CPU.

        ``long_side``: px of the network's input; the default is the config's size at test.
        """
        images = (self._pixels(image, long_side)[None] - self.model.pixel_mean) / self.model.pixel_std
        return responses(dense_embeddings(self.model, images).float(), texts)[0].cpu()

    @torch.no_grad()
    def best_box(self, image: np.ndarray, text: Tensor, *, long_side: int | None = None) -> np.ndarray | None:
        """x0, y0, x1, y1 in the image's pixels of the best detection of ``text`` (D,), or None.

        During the call the vocabulary is this one text. Raises UserError if the model has no boxes.
        """
        if not self.detects:
            raise UserError(
                f"MODEL.META_ARCHITECTURE {type(self.model).__name__} draws response maps but no boxes: leave out "
                "--boxes, or name the config of a detector."
            )
        height, width = image.shape[:2]
        batch = [{"image": self._pixels(image, long_side), "height": height, "width": width}]
        with vocabulary(self.model.roi_heads, text[None]):
            found = self.model(batch)[0]["instances"].to("cpu")
        if not len(found):
            return None
        return found.pred_boxes.tensor[found.logits.argmax()].numpy()

    def _pixels(self, image: np.ndarray, long_side: int | None) -> Tensor:
        """(3, H, W) float on the model's device, in its channel order; H and W are whole locations."""
        short, long = (long_side, long_side) if long_side else (self.short, self.long)
        size = tuple(
            max(round(side / self.stride), 1) * self.stride
            for side in fit_size(*image.shape[:2], short=short, long=long)
        )
        image = image if size == image.shape[:2] else resize(image, size)
        image = ordered(image, self.input_format).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(image)).float().to(self.model.device)


@contextmanager
def vocabulary(roi_heads: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """In this block, ``roi_heads`` detect the classes of ``embeddings`` (K', D)."""
    with kept_vocabulary(roi_heads):
        roi_heads.set_vocabulary(embeddings)
        yield


@contextmanager
def kept_vocabulary(roi_heads: nn.Module) -> Iterator[None]:
    """After this block, ``roi_heads`` detect the same classes as before."""
    saved = [(p, p.num_classes, dict(p.named_buffers())) for p in roi_heads.predictors]
    try:
        yield
    finally:  # set_vocabulary replaces buffers and does not write into them, so these are the old ones
        for predictor, count, buffers in saved:
            predictor.num_classes, predictor.synonyms = count, None
            for name, buffer in buffers.items():
                owner, _, key = name.rpartition(".")
                setattr(predictor.get_submodule(owner), key, buffer)


def dense_stride(model: nn.Module) -> int:
    """Pixels between two locations of :func:`dense_embeddings`."""
    encoder = _image_encoder(model)
    if encoder is not None:
        return encoder.dense_stride
    (name,) = _c4_head(model).in_features
    return model.backbone.output_shape()[name].stride * RES5_STRIDE


def dense_embeddings(model: nn.Module, images: Tensor) -> Tensor:
    """(B, D, h, w): a unit vector for every location, in the space of the model's texts.

    ``images``: normalised pixels (B, 3, H, W); H and W are multiples of :func:`dense_stride`. Raises UserError for a
    model without a C4 head and an image encoder.
    """
    encoder = _image_encoder(model)
    if encoder is not None:
        return encoder.dense(encoder.features(images))
    return head_embeddings(_c4_head(model), model.backbone(images))


def head_embeddings(roi_heads: nn.Module, features: dict[str, Tensor]) -> Tensor:
    """(B, D, h, w) of a C4 head: its last stage on the whole map, then the embedding of each location.

    (The embedding of a region is that of the mean over its locations.)
    """
    (name,) = roi_heads.in_features
    last = roi_heads.res5(features[name]).permute(0, 2, 3, 1)
    predictor = roi_heads.predictors[-1]
    embed = predictor.cls_score.embed if hasattr(predictor, "cls_score") else predictor.project
    embeddings = embed(last.flatten(0, 2))
    return F.normalize(embeddings, dim=1).unflatten(0, last.shape[:3]).permute(0, 3, 1, 2)


def responses(embeddings: Tensor, texts: Tensor) -> Tensor:
    """Cosines (B, Q, h, w) of unit ``embeddings`` (B, D, h, w) with ``texts`` (Q, D) of any length."""
    return torch.einsum("bdhw,qd->bqhw", embeddings, F.normalize(texts, dim=1))


def _image_encoder(model: nn.Module) -> ImageEncoder | None:
    return next((module for module in model.modules() if isinstance(module, ImageEncoder)), None)


def _c4_head(model: nn.Module) -> nn.Module:
    head = getattr(model, "roi_heads", None)
    if not (hasattr(head, "res5") and hasattr(head, "predictors")):
        raise UserError(
            f"{type(model).__name__} has neither a C4 head with a text classifier nor an image encoder: response "
            "maps can be drawn for these two."
        )
    return head

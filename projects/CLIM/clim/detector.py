"""A trained model in your own Python: detect classes of any names, or map how similar each location is to a text.

from clim import Detector
detector = Detector(cfg)
detector.set_classes(["dog", "fire hydrant"])
found = detector("photo.jpg")  # Detectron2's Instances
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import nms

from clim.checkpoints.checkpointer import load_model
from clim.data.images import ordered, read_image, resize
from clim.data.mosaic import fit_size
from clim.errors import UserError, registered
from clim.modeling import OpenVocabRCNN
from clim.modeling.dense_responses import dense_embeddings, dense_stride, responses
from clim.modeling.vocabulary import num_classes
from clim.text import CLASS_FEATURES


class _ReadsTexts:
    """Base of what has ``model``, the ``features`` of its class names and a ``prompt``."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(Q, D) of texts, each read as the model reads a class name."""
        return CLASS_FEATURES[self.features](self.model.text_encoder, list(texts), self.prompt).to(self.model.device)


class Detector(_ReadsTexts):
    """``Detector(cfg)(file_name)`` → Instances in the image's own pixels.

    Evaluation leaves out CLIM's bias on the logits, so that all scores are high, the best 0.9999…. Here the learnt bias
    stays in: ``scores`` are the probabilities that training fitted, a threshold is meaningful, and ranks are the same.

    Attributes:
        names: K class names.
        novel: indices of those that had no boxes in training.
    """

    def __init__(self, cfg, *, score_threshold: float = 0.0):
        """Load the model of ``cfg`` with cfg.MODEL.WEIGHTS, "" for random ones; drop boxes below ``score_threshold``.

        Raises UserError where the config is no detector's, or the file does not fit it.
        """
        if not detects(cfg):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} detects nothing: use the config of an "
                "open-vocabulary detector."
            )
        self.input_format, self.prompt = cfg.INPUT.FORMAT, cfg.MODEL.VOCABULARY.PROMPT
        self._base = frozenset(_metadata(cfg, "base_classes"))
        self.names = class_names(cfg)
        self.novel = self._novel_among(self.names)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = load_model(cfg)
        self.features = self.model.roi_heads.predictors[-1].text_features(cfg)
        for predictor in self.model.roi_heads.predictors:
            if cfg.MODEL.VOCABULARY.NAMES:
                predictor.freq_weight = _with_boxes(len(self.names), self.novel).to(predictor.freq_weight)
            predictor.test_score_thresh = score_threshold
            for part in predictor.modules():
                if hasattr(part, "cls_bias"):
                    part.register_forward_hook(_keep_training_bias)

    def set_classes(self, names: Sequence[str], embeddings: Tensor | None = None) -> None:
        """Detect the K classes ``names`` from now on.

        Args:
            embeddings: (K, D) of them, as the model's text tower embeds classes; None: the tower does it.
        """
        names = list(names)
        if not names or (embeddings is not None and len(embeddings) != len(names)):
            count = "" if embeddings is None else f" and {len(embeddings)} embeddings"
            raise UserError(f"{len(names)} class names{count} were given: give one or more names, and as many of both.")
        if embeddings is None:
            embeddings = self.embed(names)
        novel = self._novel_among(names)
        self.model.roi_heads.set_vocabulary(embeddings, _with_boxes(len(names), novel))
        self.names, self.novel = names, novel

    def __call__(self, file_name: str | os.PathLike) -> Instances:
        """Detections of an image file; raises :class:`clim.data.images.UnreadableImage`."""
        return self.predict(read_image(file_name, fmt=self.input_format).image)

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Instances:
        """``image`` uint8 (H, W, 3) in cfg.INPUT.FORMAT → pred_boxes, falling scores, pred_classes."""
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        found = self.model([{"image": tensor, "height": height, "width": width}])[0]["instances"].to("cpu")
        return found[found.scores.argsort(descending=True, stable=True)]

    def _novel_among(self, names: Sequence[str]) -> frozenset[int]:
        return frozenset(i for i, name in enumerate(names) if self._base and name not in self._base)


class Responder(_ReadsTexts):
    """``Responder(cfg)(image, responder.embed(["a dog"]))`` → cosine maps of a detector or an image encoder.

    Images are uint8 (H, W, 3) RGB. The network sees them at a size of whole map locations, so a ratio may change by
    half a location a side.
    """

    def __init__(self, cfg, *, prompt: str | None = None):
        """Weights: cfg.MODEL.WEIGHTS, "" for what the parts bring. ``prompt``: MODEL.VOCABULARY.PROMPT where None."""
        self.prompt = prompt or cfg.MODEL.VOCABULARY.PROMPT
        self.input_format = cfg.INPUT.FORMAT
        self.detects = detects(cfg)
        if self.detects:
            detector = Detector(cfg)
            self.model, self.features = detector.model, detector.features
            self.short, self.long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        else:
            self.model, self.features = load_model(cfg), "embedding"
            self.short = self.long = cfg.INPUT.REGIONS.SIZE
        self.stride = dense_stride(self.model)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, texts: Tensor, *, long_side: int | None = None) -> Tensor:
        """Cosines (Q, h, w) of locations that cover the image with ``texts`` (Q, D), on the CPU.

        Args:
            long_side: px of the image as the network sees it; None: the config's size at test.
        """
        images = (self._pixels(image, long_side)[None] - self.model.pixel_mean) / self.model.pixel_std
        return responses(dense_embeddings(self.model, images).float(), texts)[0].cpu()

    @torch.no_grad()
    def best_box(self, image: np.ndarray, text: Tensor, *, long_side: int | None = None) -> np.ndarray | None:
        """x0, y0, x1, y1 in the image's pixels of the detection that fits ``text`` (D,) best.

        Meanwhile the vocabulary is this one text. None where nothing is found; UserError for a model without boxes.
        """
        if not self.detects:
            raise UserError(f"MODEL.META_ARCHITECTURE {type(self.model).__name__} has no boxes: use a detector.")
        height, width = image.shape[:2]
        batch = [{"image": self._pixels(image, long_side), "height": height, "width": width}]
        with self.model.roi_heads.vocabulary(text[None]):
            found = self.model(batch)[0]["instances"].to("cpu")
        if not len(found):
            return None
        return found.pred_boxes.tensor[found.logits.argmax()].numpy()

    def _pixels(self, image: np.ndarray, long_side: int | None) -> Tensor:
        """(3, H, W) float on the model's device, in its channel order; H and W of whole locations."""
        short, long = (long_side, long_side) if long_side else (self.short, self.long)
        sides = fit_size(*image.shape[:2], short=short, long=long)
        size = tuple(max(round(side / self.stride), 1) * self.stride for side in sides)
        image = image if size == image.shape[:2] else resize(image, size)
        image = ordered(image, self.input_format).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(image)).float().to(self.model.device)


def most_confident(
    found: Instances, *, threshold: float = 0.0, top: int | None = None, overlap: float = 1.0
) -> Instances:
    """At most ``top`` boxes of ``found``, sorted by falling score, that score ``threshold`` or more.

    Of boxes whose IoU is above ``overlap`` the best stays, whatever their classes: one name for one object.
    """
    found = found[found.scores >= threshold]
    return found[nms(found.pred_boxes.tensor.double(), found.scores.double(), overlap)[:top]]


def detects(cfg) -> bool:
    """Whether the config's model is an open-vocabulary detector."""
    name = cfg.MODEL.META_ARCHITECTURE
    return issubclass(registered(META_ARCH_REGISTRY, name, key="MODEL.META_ARCHITECTURE"), OpenVocabRCNN)


def class_names(cfg) -> list[str]:
    """Names of the configured classes: the given ones, else the test set's, else their numbers."""
    count = num_classes(cfg)
    names: Sequence[str] = cfg.MODEL.VOCABULARY.NAMES or _metadata(cfg, "thing_classes")
    return list(names) if len(names) == count else [f"class {i}" for i in range(count)]


def _metadata(cfg, key: str) -> Sequence[str]:
    return MetadataCatalog.get(cfg.DATASETS.TEST[0]).get(key, ()) if cfg.DATASETS.TEST else ()


def _with_boxes(count: int, novel: frozenset[int]) -> Tensor:
    """(``count``,) 1 for classes that had boxes in training, 0 for ``novel`` ones."""
    return torch.tensor([float(i not in novel) for i in range(count)])


def _keep_training_bias(classifier, inputs, logits):
    return logits + classifier.cls_bias

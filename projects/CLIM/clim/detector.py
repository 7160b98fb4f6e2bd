"""Use a trained model in your own Python: detect classes of any names.

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

from clim.checkpoints.checkpointer import load_model
from clim.data.images import channels_first, read_image
from clim.errors import UserError, registered
from clim.modeling import OpenVocabRCNN
from clim.modeling.vocabulary import vocabulary_names
from clim.text import CLASS_FEATURES


class Detector:
    """``Detector(cfg)(file_name)`` → Instances in the image's own pixels.

    ``scores`` are the probabilities of training: they contain CLIM's learnt bias on the logits. Evaluation leaves it
    out, where all scores are nearly 1 and a threshold means nothing. The order of scores is the same.

    Attributes:
        names: K class names.
        novel: indices of the classes that had no boxes in training.
    """

    def __init__(self, cfg, *, score_threshold: float = 0.0):
        """Load cfg.MODEL.WEIGHTS; find boxes with a score of at least ``score_threshold``. UserError as load_model."""
        if not detects(cfg):
            name = cfg.MODEL.META_ARCHITECTURE
            raise UserError(f"MODEL.META_ARCHITECTURE {name} detects nothing: use the config of a detector.")
        self.input_format, self.prompt = cfg.INPUT.FORMAT, cfg.MODEL.VOCABULARY.PROMPT
        self._base = frozenset(_metadata(cfg, "base_classes"))
        self.names = vocabulary_names(cfg)
        self.novel = self._novel_among(self.names)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = load_model(cfg)
        self.features = self.model.roi_heads.predictors[-1].text_features
        for predictor in self.model.roi_heads.predictors:
            if cfg.MODEL.VOCABULARY.NAMES:
                predictor.freq_weight = _with_boxes(len(self.names), self.novel).to(predictor.freq_weight)
            predictor.test_score_thresh = score_threshold
            for part in predictor.modules():
                if hasattr(part, "cls_bias"):
                    part.register_forward_hook(lambda classifier, _, logits: logits + classifier.cls_bias)

    def set_classes(self, names: Sequence[str], embeddings: Tensor | None = None) -> None:
        """Detect the K classes ``names`` from now on, by ``embeddings`` (K, D); None: the text tower makes them."""
        names = list(names)
        if not names or (embeddings is not None and len(embeddings) != len(names)):
            count = "" if embeddings is None else f" and {len(embeddings)} embeddings"
            raise UserError(f"There are {len(names)} class names{count}: give one or more names, and as many of both.")
        if embeddings is None:
            embeddings = self.embed(names)
        novel = self._novel_among(names)
        self.model.roi_heads.set_vocabulary(embeddings, _with_boxes(len(names), novel))
        self.names, self.novel = names, novel

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(Q, D) embeddings of texts, which the model reads like class names."""
        rows = CLASS_FEATURES[self.features](self.model.text_encoder, list(texts), self.prompt)
        return rows.to(self.model.device)

    def __call__(self, file_name: str | os.PathLike) -> Instances:
        """Detections in an image file. Raises :class:`clim.data.images.UnreadableImage`."""
        return self.predict(read_image(file_name, fmt=self.input_format).image)

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Instances:
        """``image`` uint8 (H, W, 3) in cfg.INPUT.FORMAT → pred_boxes, scores (the highest first), pred_classes.

        A detector with masks also gives ``pred_masks`` (N, H, W) bool.
        """
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        sample = {"image": channels_first(resized), "height": height, "width": width}
        found = self.model([sample])[0]["instances"].to("cpu")
        return found[found.scores.argsort(descending=True, stable=True)]

    def _novel_among(self, names: Sequence[str]) -> frozenset[int]:
        return frozenset(i for i, name in enumerate(names) if self._base and name not in self._base)


def detects(cfg) -> bool:
    """Whether the config's model is an open-vocabulary detector."""
    key = "MODEL.META_ARCHITECTURE"
    return issubclass(registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, key=key), OpenVocabRCNN)


def _metadata(cfg, key: str) -> Sequence[str]:
    return MetadataCatalog.get(cfg.DATASETS.TEST[0]).get(key, ()) if cfg.DATASETS.TEST else ()


def _with_boxes(count: int, novel: frozenset[int]) -> Tensor:
    """(``count``,): 0 for ``novel`` classes, 1 for others."""
    return torch.tensor([float(i not in novel) for i in range(count)])

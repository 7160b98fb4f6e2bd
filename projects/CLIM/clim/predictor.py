"""From a picture file to named boxes: the detector of a config and its weights, ready to be called."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.structures import Instances
from torchvision.ops import nms

from clim.data.images import read_image
from clim.engine.checkpoint import SafeCheckpointer
from clim.errors import UserError
from clim.modeling.vocabulary import num_classes


class Predictor:
    """``Predictor(cfg)(file_name)`` → Instances in the picture's own pixels.

    Where training used a bias on the logits that inference leaves out (CLIM: sigmoid(25 cos) at test), every
    pair of a box and a class scores high, the best ones 0.9999…. Here the learnt bias stays in: ``scores``
    are the probabilities that training fitted. Ranks are the evaluation's, and a threshold means something.

    Attributes:
        names: K class names, the configured vocabulary's.
        novel: indices of those that had no boxes in training.
    """

    def __init__(self, cfg, *, score_threshold: float = 0.0):
        """Weights: cfg.MODEL.WEIGHTS, "" for random ones. Boxes below ``score_threshold`` are dropped."""
        if not detects(cfg):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} detects nothing: name the config of a "
                "detector, such as one that starts from it."
            )
        self.input_format = cfg.INPUT.FORMAT
        self.names = class_names(cfg)
        base = _metadata(cfg, "base_classes")
        self.novel = frozenset(i for i, name in enumerate(self.names) if base and name not in base)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = build_model(cfg).eval()
        checkpointer = SafeCheckpointer(self.model, cfg.OUTPUT_DIR, trusted=cfg.MODEL.TRUST_WEIGHTS)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        checkpointer.require_whole(cfg.MODEL.WEIGHTS)
        predictor = self.model.roi_heads.box_predictor
        if cfg.MODEL.VOCABULARY.NAMES:
            with_boxes = torch.tensor([i not in self.novel for i in range(len(self.names))]).float()
            predictor.freq_weight = with_boxes.to(predictor.freq_weight)
        predictor.test_score_thresh = score_threshold
        for part in predictor.modules():
            if hasattr(part, "cls_bias"):
                part.register_forward_hook(_keep_training_bias)

    def __call__(self, file_name: str | os.PathLike) -> Instances:
        """Detections of a picture file; raises :class:`clim.data.images.UnreadableImage`."""
        return self.predict(read_image(file_name, fmt=self.input_format).image)

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Instances:
        """``image`` uint8 (H, W, 3) in cfg.INPUT.FORMAT → pred_boxes, falling scores, pred_classes."""
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        found = self.model([{"image": tensor, "height": height, "width": width}])[0]["instances"].to("cpu")
        return found[found.scores.argsort(descending=True, stable=True)]


def most_confident(
    found: Instances, *, threshold: float = 0.0, top: int | None = None, overlap: float = 1.0
) -> Instances:
    """What a person wants to see of ``found``: at most ``top`` boxes that score ``threshold`` or more.

    ``found`` is sorted by falling score. Of boxes whose IoU passes ``overlap`` the best stays, whatever their
    classes: one name for one object.
    """
    found = found[found.scores >= threshold]
    return found[nms(found.pred_boxes.tensor.double(), found.scores.double(), overlap)[:top]]


def detects(cfg) -> bool:
    """Whether the config's model is a detector."""
    return issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), GeneralizedRCNN)


def class_names(cfg) -> list[str]:
    """Names of the configured classes: the given ones, else the test set's, else their numbers."""
    count = num_classes(cfg)
    names: Sequence[str] = cfg.MODEL.VOCABULARY.NAMES or _metadata(cfg, "thing_classes")
    return list(names) if len(names) == count else [f"class {i}" for i in range(count)]


def _metadata(cfg, key: str) -> Sequence[str]:
    return MetadataCatalog.get(cfg.DATASETS.TEST[0]).get(key, ()) if cfg.DATASETS.TEST else ()


def _keep_training_bias(classifier, inputs, logits):
    return logits + classifier.cls_bias

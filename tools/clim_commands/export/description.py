"""What a client must know of an exported detector: names, sizes, text tower, origin."""

import hashlib
from pathlib import Path

import torch

import clim


def describe(detector, weights: Path) -> dict:
    """The description of ``detector``, whose scores are at least its threshold; ``weights`` is its checkpoint."""
    cfg, predictor = detector.cfg, detector.model.roi_heads.predictors[-1]
    text, vocabulary = cfg.MODEL.TEXT, cfg.MODEL.VOCABULARY
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "names": list(detector.names), "novel": sorted(detector.novel),
        "channels": "RGB", "min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "score_threshold": predictor.test_score_thresh, "nms_threshold": predictor.test_nms_thresh,
        "max_detections": predictor.test_topk_per_image,
        "text": {
            "tower": text.NAME, "pretrained": text.PRETRAINED, "prompt": vocabulary.PROMPT,
            "features": predictor.text_features,
        },
        "weights": {"file": weights.name, "sha256": digest},
        "versions": {"clim": clim.__version__, "torch": torch.__version__},
    }  # fmt: skip

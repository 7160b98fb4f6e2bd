"""Evaluation: scores of a detector on base and novel classes, and of the classification of given regions.

- :mod:`~clim.evaluation.coco_api`: COCO's precision and recall arrays for boxes, from either COCO library.
- :mod:`~clim.evaluation.ov_coco`: AP50, AP and AR on novel, base and all classes of OV-COCO, in the
  generalized protocol and in CLIM's two runs.
- :mod:`~clim.evaluation.region_classification`: Top-1 and Top-5 of regions whose boxes are given.
"""

from clim.evaluation.coco_api import EvaluationParams, PrecisionRecall, precision_at, resolve_backend
from clim.evaluation.ov_coco import OVCOCOEvaluator
from clim.evaluation.region_classification import RegionClassificationEvaluator

__all__ = [
    "EvaluationParams",
    "OVCOCOEvaluator",
    "PrecisionRecall",
    "RegionClassificationEvaluator",
    "precision_at",
    "resolve_backend",
]

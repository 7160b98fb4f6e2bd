"""Evaluation: scores of a detector on base and novel classes.

- :mod:`~clim.evaluation.coco_api`: COCO's precision and recall arrays for boxes, from either COCO library.
- :mod:`~clim.evaluation.ov_coco`: AP50, AP and AR on novel, base and all classes of OV-COCO, in the
  generalized protocol and in CLIM's two runs.
"""

from clim.evaluation.coco_api import EvaluationParams, PrecisionRecall, precision_at, resolve_backend
from clim.evaluation.ov_coco import OVCOCOEvaluator

__all__ = ["EvaluationParams", "OVCOCOEvaluator", "PrecisionRecall", "precision_at", "resolve_backend"]

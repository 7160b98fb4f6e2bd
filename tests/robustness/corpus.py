"""All cases, and those that take no model and no training."""

from . import configs, folders, images, jsons, ranks, stages, texts, tools, weights

CASES = [
    case for part in (jsons, texts, images, configs, weights, stages, ranks, folders, tools) for case in part.CASES
]
SLOW = (  # beginnings of the names of entries
    "train", "eval", "predict", "Detector", "inspect", "resume", "stopped", "export", "BERT", "cache", "build", "two",
    "OV-RCNN", "CLIP from", "F-VLM", "VLDet",
)  # fmt: skip
QUICK = [
    case
    for case in CASES
    if not case.entry.name.startswith(SLOW) and "/dev/zero" not in case.name and "FIFO" not in case.name
]

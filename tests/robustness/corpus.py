"""All cases, and those that take no model and no training."""

from . import configs, folders, images, jsons, texts, tools, weights

CASES = [case for part in (jsons, texts, images, configs, weights, folders, tools) for case in part.CASES]
SLOW = ("train", "eval", "predict", "Detector", "inspect", "resume", "stopped", "export", "BERT", "cache", "build")
QUICK = [
    case
    for case in CASES
    if not case.entry.name.startswith(SLOW) and "/dev/zero" not in case.name and "FIFO" not in case.name
]

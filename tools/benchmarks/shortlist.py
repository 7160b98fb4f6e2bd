"""The best detections of an image from its scores: CLIM's search against Detectron2's, with equal results."""

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

from clim.errors import UserError
from clim.modeling.shortlist import detect_best

from .inputs import Settings
from .stopwatch import Spread, compared, paired_ratio

NAMES = (80, 400, 1203, 2400, 20_000)
MOST_NAMES = 1203  # of Detectron2's search, which takes more than half a minute at the next size
ROIS, SIDE = 1000, 800  # SIDE in px
LIMITS = -2.94, 0.5, 100  # threshold of logits (probability .05), IoU of NMS, detections


def measure_shortlist(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Candidates and NMS of 1,000 RoIs."""
    turns = {"synchronise": settings.start(), "repeats": settings.repeats, "clock": settings.seconds}
    generator, rows = torch.Generator().manual_seed(0), []
    centre, half = (torch.rand(ROIS, 2, generator=generator) * side for side in (SIDE, 100))
    boxes = torch.cat([centre - half, centre + half], dim=1).to(settings.device)
    for names in NAMES:
        logits = (torch.randn(ROIS, names + 1, generator=generator) + 2).to(settings.device)
        searches = {"CLIM": detect_best} | ({"Detectron2": fast_rcnn_inference} if names <= MOST_NAMES else {})
        ways = {way: partial(best, search, boxes, logits) for way, search in searches.items()}
        seconds, found = compared(ways, title=f"{names} names", **turns)
        if not all(torch.equal(*pair) for way in ways for pair in zip(found["CLIM"], found[way], strict=True)):
            raise UserError(f"Both searches find different detections of {names} names: report this as an error.")
        for way, taken in seconds.items():
            row = {"names": f"{names:,}", "search": way, f"{settings.seconds} s": Spread.of(taken)}
            rows.append(row | {"times as slow": paired_ratio(taken, seconds["CLIM"]), "found": len(found[way][0])})
    return rows


def best(search, boxes, logits) -> tuple:
    """Scores, classes and boxes of the detections of one image."""
    (found,), _ = search([boxes], [logits], [(SIDE, SIDE)], *LIMITS)
    return found.scores, found.pred_classes, found.pred_boxes.tensor

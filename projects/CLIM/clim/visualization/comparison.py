"""Several detectors on the same pictures beside the ground truth, and the mosaics that they learn from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.data.canvas_mapper import CanvasMapper
from clim.data.images import read_image
from clim.data.sources import STREAMS, caption_records
from clim.detector import Detector, most_confident

from .draw import draw_canvas, draw_objects
from .report import Example


def most_novel(dataset: str, *, count: int) -> list[dict]:
    """The ``count`` records of a registered data set with the most novel objects, first ones first."""
    novel = novel_classes(dataset)
    records = DatasetCatalog.get(dataset)
    return sorted(records, key=lambda r: -sum(a["category_id"] in novel for a in r["annotations"]))[:count]


def novel_classes(dataset: str) -> set[int]:
    metadata = MetadataCatalog.get(dataset)
    return {i for i, name in enumerate(metadata.thing_classes) if name in metadata.novel_classes}


def compare(
    record: dict,
    dataset: str,
    predictors: Mapping[str, Detector],
    *,
    threshold: float,
    overlap: float,
    top: int,
) -> Example:
    """One picture with its ground truth, then with what each of {title: predictor} finds in it.

    ``threshold``, ``overlap`` and ``top`` as in :func:`clim.detector.most_confident`.
    """
    picture = read_image(record["file_name"], fmt="RGB").image
    names, novel = MetadataCatalog.get(dataset).thing_classes, novel_classes(dataset)
    boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = [a["category_id"] for a in record["annotations"]]
    panels = [("Ground truth", draw_objects(picture, boxes, classes, names=names, novel=novel))]
    for title, predictor in predictors.items():
        found = most_confident(predictor(record["file_name"]), threshold=threshold, overlap=overlap, top=top)
        drawn = draw_objects(
            picture,
            found.pred_boxes.tensor,
            found.pred_classes.tolist(),
            names=predictor.names,
            novel=predictor.novel,
            scores=found.scores.tolist(),
        )
        panels.append((title, drawn))
    return Example(f"Picture {Path(record['file_name']).name}", panels)


def mosaic_of_each_grid(cfg, *, seed: int) -> list[tuple[str, np.ndarray]]:
    """(caption, drawing) of a canvas of every grid of INPUT.MOSAIC.GRIDS, from the mapper of the training."""
    records = caption_records(cfg.DATASETS.CAPTIONS)
    mapper = CanvasMapper.mosaics(cfg, records, seed=seed, stream=STREAMS["mosaics"])
    grids = set(cfg.INPUT.MOSAIC.GRIDS)
    found: dict[int, dict] = {}
    for epoch in range(50):  # a grid is drawn anew for every canvas
        canvas = mapper(index=epoch % len(records), epoch=epoch)
        found.setdefault(len(canvas["tiles"]), canvas)
        if len(found) == len(grids):
            break
    return [
        (f"{tiles} tiles with their captions", draw_canvas(canvas, image_format=cfg.INPUT.FORMAT))
        for tiles, canvas in sorted(found.items())
    ]

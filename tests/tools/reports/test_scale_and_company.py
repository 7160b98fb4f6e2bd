"""Sizes of objects as the network sees them, AP50 by size, and what the model calls a tile in company and alone."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.checkpoints.checkpointer import load_model
from clim.data.mappers import CanvasMapper
from clim.methods import Regions
from clim.modeling.region_pooling import embed_regions
from mini.factor import build_factor
from reports import scale_and_company
from reports.factor import config_of, held_out, pairs_file
from reports.scale_and_company import ap50_by_size, company, shown_sides, sides_at_test, tile_answers

SQUARES = {"small": [0, 0, 10, 10], "middle": [20, 20, 30, 30], "large": [100, 100, 80, 80]}  # XYWH


@pytest.fixture
def root(tmp_path, tiny_mini, monkeypatch):
    """A data root with the tiny mini benchmark, and 17 pairs and 5 held-out ones of each factor."""
    (tmp_path / "mini").symlink_to(tiny_mini / "mini")
    build_factor(tmp_path, seed=7, num_pairs=17, num_held_out=5, workers=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_ap50_of_each_third_counts_the_novel_objects_of_that_size(tmp_path):
    name = "three_sizes"
    annotations = [{"bbox": box, "category_id": 1} for box in SQUARES.values()]
    annotations += [{"bbox": [0, 50, 5, 5], "category_id": 0}]  # a base object is in no third
    DatasetCatalog.register(name, lambda: [{"image_id": 4, "annotations": annotations}])
    ids = {"thing_dataset_id_to_contiguous_id": {8: 0, 9: 1}}
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], novel_classes=["dog"], **ids)
    (tmp_path / "inference" / name).mkdir(parents=True)
    path = tmp_path / "inference" / name / "coco_instances_results.json"
    found = [("small", 9, 0.5), ("large", 9, 0.3), ("middle", 8, 0.9)]  # the middle one has the base class's name
    rows = [{"image_id": 4, "category_id": c, "bbox": SQUARES[box], "score": score} for box, c, score in found]
    path.write_text(json.dumps(rows))
    try:
        assert ap50_by_size(tmp_path, name) == {"smallest": 100.0, "middle": 0.0, "largest": 100.0}
        assert sides_at_test(name) == [10, 30, 80, 5]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_sides_are_those_of_the_images_times_what_a_canvas_makes_of_them(root):
    pairs = json.loads(pairs_file(root, "captions", 2.5).read_text())
    of_file = {max(o["bbox"][2:]) for o in pairs["annotations"]}
    for name, count, widths in (
        ("4 captions", 4, {128}),
        ("CLIM, 4 captions", 4, {128}),
        ("21 captions, scaled down as tiles", 21, {64, 85, 128}),
    ):
        sides = shown_sides(config_of(name, 2.5, 7), pairs, steps=6)
        assert len(sides) == 6 * count
        possible = {side * width / 256: width for side in of_file for width in widths}
        used = {possible[min(possible, key=lambda one, side=side: abs(one - side))] for side in sides}
        assert used == widths and all(min(abs(one - side) for one in possible) < 1e-4 for side in sides)


def test_answers_are_those_of_single_canvases(root):
    cfg = config_of("CLIM", 4.0, 7, "MODEL.WEIGHTS", "")
    model, image = load_model(cfg), root / "mini_factor/x4"
    records = [
        {"file_name": str(image / f"{i:06d}.jpg"), "image_id": i, "captions": ["x"], "height": 256, "width": 256}
        for i in range(9)
    ]
    options = {"short": 256, "long": 256, "flip": 0.0, "seed": 0, "stream": 0, "image_format": "RGB"}
    sample = CanvasMapper(records, grids=[3], **options)(index=0, epoch=0)
    boxes = sample["tiles"].boxes

    def answers(canvas, boxes):
        features = model.backbone(model.preprocess_image([{"image": canvas}]).tensor)
        regions = Regions(boxes, torch.zeros(len(boxes), dtype=torch.int64), torch.eye(len(boxes), dtype=torch.bool))
        *_, (_, rows) = embed_regions(model.roi_heads, features, {"caption": regions})
        return (rows["caption"] @ model.classifier.class_embeddings[:-1].T).argmax(1).tolist()

    with torch.no_grad():
        alone = []
        for box in boxes:
            x0, y0, x1, y1 = box.int().tolist()
            canvas = torch.full_like(sample["image"], 114)
            canvas[:, y0:y1, x0:x1] = sample["image"][:, y0:y1, x0:x1]
            alone += answers(canvas, box[None])
        together = answers(sample["image"], boxes)
    assert list(tile_answers(model, sample, grey=114)) == [together, alone]
    assert len(set(together + alone)) > 1


def test_counts_of_answers(root, monkeypatch):
    pairs, seen = json.loads(pairs_file(root, "held_out", 4.0).read_text()), []
    concepts = {o["image_id"]: o["category_id"] - 1 for o in pairs["annotations"]}

    def answers(model, sample, *, grey):
        shown = [concepts[i] for i in sample["tiles"].image_ids.tolist()]
        seen.append(shown)
        return [[shown[0], *shown[:-1]], [*shown[:-1], -1]]  # the first is right, the others name another tile

    monkeypatch.setattr(scale_and_company, "tile_answers", answers)
    found = company(config_of("CLIM", 4.0, 7, "MODEL.WEIGHTS", ""), held_out(root, 4.0), grids=(2,))
    ((first, *others),) = seen  # 5 pairs are one canvas of 2 x 2
    right = 1 + sum(a == b for a, b in zip([first, *others[:-1]], others, strict=True))
    assert found == {"2 x 2": {"tiles": 4, "right": right, "right alone": 3, "another": 4 - right, "another alone": 0}}
    assert len(np.unique(seen)) > 2

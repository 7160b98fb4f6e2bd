"""What explains when mosaics win: the size of objects that the network sees, and what company does to a tile.

A side is the longer side of an object's box in px. Sizes are measured on training batches and test images, answers on
held-out pairs, with a trained model.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from benchmarks.inputs import Settings
from benchmarks.steps import timed_steps
from clim.checkpoints.checkpointer import load_model
from clim.data.loader import build_train_loader
from clim.data.mappers import CanvasMapper
from clim.methods import Regions
from clim.modeling.region_pooling import embed_regions

from .analysis import class_mean, precision, read_detections, truth_of

THIRDS = ("smallest", "middle", "largest")


def sides_at_test(dataset: str) -> list[float]:
    """Sides of all objects of a test set."""
    return [max(a["bbox"][2:]) for record in DatasetCatalog.get(dataset) for a in record["annotations"]]


def shown_sides(cfg, pairs: Mapping, *, steps: int) -> list[float]:
    """Sides of the objects of pairs as the network sees them, in single images and tiles of ``steps`` batches.

    ``pairs``: their COCO dict, with the boxes of objects.
    """
    parts = {image["id"]: [] for image in pairs["images"]}
    widths = {image["id"]: image["width"] for image in pairs["images"]}
    for o in pairs["annotations"]:
        parts[o["image_id"]].append(max(o["bbox"][2:]) / widths[o["image_id"]])
    sides = []
    for batch in islice(build_train_loader(cfg, seed=cfg.SEED), steps):
        for sample in (*batch.get("captions", ()), *batch.get("mosaics", ())):
            tiles = sample["tiles"]
            shown = (tiles.boxes[:, 2] - tiles.boxes[:, 0]).tolist()
            for width, image_id in zip(shown, tiles.image_ids.tolist(), strict=True):
                sides += [width * part for part in parts[image_id]]
    return sides


def ap50_by_size(run: Path, dataset: str) -> dict[str, float | None]:
    """{third: AP50 of the novel classes} of the run's detections; a third of the novel test objects, by area."""
    metadata, records = MetadataCatalog.get(dataset), DatasetCatalog.get(dataset)
    novel = [k for k, name in enumerate(metadata.thing_classes) if name in metadata.novel_classes]
    found = read_detections(run, dataset, records)
    truth, found = ([one[np.isin(one.class_id, novel)] for one in part] for part in (map(truth_of, records), found))
    first, second = np.quantile(np.concatenate([one.box_area for one in truth]), (1 / 3, 2 / 3)).tolist()
    areas = dict(zip(THIRDS, ((0, first), (first, second), (second, 1e10)), strict=True))
    found = precision(truth, found, num_classes=len(metadata.thing_classes), areas=areas)
    means = (class_mean(found[..., i], novel) for i in range(len(areas)))
    return {name: None if mean is None else float(mean.mean()) for name, mean in zip(areas, means, strict=True)}


def company(cfg, records: Sequence[Mapping], *, grids=(2, 3, 4)) -> dict[str, dict[str, int]]:
    """{grid: counts} of tiles of held-out mosaics that the model names right, among other tiles and alone.

    ``records``: pairs whose first tag is the concept of their object. A grid has as many tiles as there are pairs, or a
    few less. "alone" is the same tile at the same place, and the canvas is grey. "another" counts wrong answers that
    are the concept of another tile; alone, this one is not to be seen.
    """
    model, key, found = load_model(cfg), cfg.INPUT.MOSAIC, {}
    options = {"short": key.SIZE, "long": key.SIZE, "flip": key.FLIP, "stream": 0, "image_format": cfg.INPUT.FORMAT}
    for n in grids:
        mapper = CanvasMapper(records, grids=[n], seed=n, **options)
        counts = Counter(dict.fromkeys(("tiles", "right", "right alone", "another", "another alone"), 0))
        for i in range(len(records) // n**2):
            sample = mapper(index=i, epoch=0)
            shown = [tags[0] for tags in sample["tiles"].tags]
            counts["tiles"] += len(shown)
            for answers, where in zip(tile_answers(model, sample, grey=mapper.pad_value), ("", " alone"), strict=True):
                for answer, own in zip(answers, shown, strict=True):
                    counts["right" + where] += answer == own
                    counts["another" + where] += answer != own and answer in shown
        found[f"{n} x {n}"] = dict(counts)
    return found


@torch.no_grad()
def tile_answers(model, sample: Mapping, *, grey: float) -> Iterator[list[int]]:
    """The class (T,) that the model gives to each tile of a canvas, among the other tiles and then alone."""
    boxes, image = sample["tiles"].boxes, sample["image"]
    alone = [torch.full_like(image, grey) for _ in boxes]
    for canvas, (x0, y0, x1, y1) in zip(alone, boxes.int().tolist(), strict=True):
        canvas[:, y0:y1, x0:x1] = image[:, y0:y1, x0:x1]
    images = model.preprocess_image([{"image": canvas} for canvas in (image, *alone)])
    number = len(boxes)
    canvas = torch.cat([torch.zeros(number, dtype=torch.int64), torch.arange(1, number + 1)])
    regions = Regions(boxes.repeat(2, 1), canvas, torch.eye(number, dtype=torch.bool).repeat(2, 1))
    *_, (_, embeddings) = embed_regions(model.roi_heads, model.backbone(images.tensor), {"caption": regions})
    cosines = embeddings["caption"] @ model.classifier.class_embeddings[:-1].T
    yield from (part.argmax(dim=1).tolist() for part in cosines.split(number))


def step_seconds(configs: Mapping[str, object], *, repeats: int, folder: Path) -> dict[str, float]:
    """{name: mean CPU seconds of a training step} on one thread; the steps take turns, as in tools/benchmark.py."""
    settings = Settings(
        repeats=repeats, canvases=1, threads=1, device="cpu", config_file="", scale=1.0, folder=str(folder),
        overrides=(), evaluated=(1, 1), pairs=(),
    )  # fmt: skip
    runs = timed_steps(settings, [], configs)
    return {name: float(np.mean([run.cpu for run in taken])) for name, taken in runs.items()}

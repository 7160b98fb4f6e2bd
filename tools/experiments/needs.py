"""What a training needs before it starts, from its config alone: files below the data root, and GPU hours."""

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

from clim.files import data_root

README = "see datasets/README.md"
EMBED = "make it with tools/build_text_embeddings.py, see datasets/README.md"


def needed_files(cfg) -> dict[str, str]:
    """{file or folder below the data root: how to get it}. Weights that are downloaded are none of them."""
    from detectron2.data import DatasetCatalog

    from clim.data.loader import batch_sizes

    sizes, datasets = batch_sizes(cfg), cfg.DATASETS
    sets = [*(datasets.TRAIN if "detection" in sizes else ()), *(datasets.REGIONS if "regions" in sizes else ())]
    sets += [*(datasets.CAPTIONS if sizes.keys() & {"captions", "mosaics"} else ()), *datasets.TEST]
    needed = {}
    for name in sets:
        files = DatasetCatalog[name].args[0]  # as clim.data.datasets registers a set of its own
        paths = (os.path.relpath(path, data_root()) for path in (files.json_path(), files.image_path()))
        needed = dict.fromkeys(paths, files.how()) | needed
    method, text = cfg.MODEL.METHOD, cfg.MODEL.TEXT.NAME
    needed[cfg.MODEL.VOCABULARY.EMBEDDINGS] = EMBED
    if method.NAME == "VLDet":
        needed[method.VLDET.EMBEDDINGS] = EMBED
    if method.NAME == "RegionClip":
        needed[method.REGION_CLIP.EMBEDDINGS] = EMBED
    if cfg.INPUT.MOSAIC.PARTNERS != "random":
        needed[cfg.INPUT.MOSAIC.PARTNERS] = "make it with tools/build_neighbours.py"
    if cfg.MODEL.OPEN_VOCAB.BASE_CLASSES.endswith(".json"):
        needed[cfg.MODEL.OPEN_VOCAB.BASE_CLASSES] = "make it with datasets/prepare_ovlvis.py"
    if text.startswith("bert"):
        needed[text] = f"put Hugging Face's files of this model there, {README}"
    return {file: remedy for file, remedy in needed.items() if file}


class Rate(NamedTuple):
    """Images that a GPU trains on in an hour, at a side of ``size`` px. Cost grows with the area."""

    images: float
    size: int
    source: str


# Published times of whole trainings, all on 8 V100, divided by the images that they show.
C4_BOXES = Rate(90_000 * 16 / (12 * 8), 800, "Detic's model zoo: BoxSup_CLIP_R50_1x takes 12 h on 8 V100")
C4_PAIRS = Rate(
    45_000 * 64 / (16 * 8 - 45_000 * 16 / C4_BOXES.images), 400,
    "Detic's model zoo: Detic_CLIP_R50_1x_caption-image, half of whose iterations have pairs, takes 16 h on 8 V100",
)  # fmt: skip
C2_BOXES = Rate(90_000 * 64 / (17 * 8), 640, "Detic's model zoo: Box-Supervised_C2_R50_640_4x takes 17 h on 8 V100")
C2_PAIRS = Rate(
    45_000 * 256 / (22 * 8 - 45_000 * 64 / C2_BOXES.images), 320,
    "Detic's model zoo: Detic_C2_CCcapimg_R50_640_4x, half of whose iterations have pairs, takes 22 h on 8 V100",
)  # fmt: skip
OVRCNN_PAIRS = Rate(40_000 * 64 / (10 * 8), 800, "OVR-CNN's issue 1: the first stage takes 10 h on 8 V100")
OVRCNN_BOXES = Rate(150_000 * 8 / (18 * 8), 800, "OVR-CNN's issue 1: the second stage takes 18 h on 8 V100")
# No times are published for these. Arithmetic of the network, and a guess of what a GPU does: 40 TFLOP/s.
FLOPS = 40e12
GUESS = "a guess: the encoder's arithmetic at 40 TFLOP/s"
# Images of an epoch, where the config counts epochs; LVIS: after rare images are repeated, a guess.
EPOCH_IMAGES = {
    "coco_caption_train": 118_287, "coco_pseudo_regions": 118_287, "cc3m_wds_train": 2_900_000,
    "lvis_v1_train_norare": 130_000,
}  # fmt: skip


def gpu_hours(cfg) -> tuple[float, list[str]]:
    """GPU hours of the training without evaluations, and where its rates come from."""
    streams = list(_streams(cfg))
    world = cfg.SOLVER.REFERENCE_WORLD_SIZE
    iterations = cfg.SOLVER.MAX_ITER
    if cfg.SOLVER.EPOCHS > 0:
        source, number, *_ = streams[0]
        iterations = round(cfg.SOLVER.EPOCHS * (EPOCH_IMAGES[source] // (number * world)))
    per_iteration = sum(number / rate.images * (side / rate.size) ** 2 for _, number, side, rate in streams)
    return per_iteration * world * iterations, list(dict.fromkeys(rate.source for *_, rate in streams))


def _streams(cfg) -> Iterator[tuple[str, float, int, Rate]]:
    """(data set, images of an iteration and GPU, their side in px, rate) of each source of images."""
    data, given, datasets = cfg.DATALOADER, cfg.INPUT, cfg.DATASETS
    boxes, pairs = _rates(cfg)
    caption_side = given.CAPTION.CROP or given.CAPTION.JITTER_SIZE or given.CAPTION.SHORT_SIDE
    if data.CAPTIONS_PER_GPU:
        yield datasets.CAPTIONS[0], data.CAPTIONS_PER_GPU, caption_side, pairs
    if data.REGIONS_PER_GPU:
        yield datasets.REGIONS[0], data.REGIONS_PER_GPU, given.REGIONS.SIZE, boxes
    if data.DETECTION_PER_GPU:
        yield datasets.TRAIN[0], data.DETECTION_PER_GPU, given.LSJ.SIZE or given.MIN_SIZE_TRAIN[0], boxes
    canvases = data.MOSAICS_PER_GPU
    if given.MOSAIC.COMPOSE == "device":
        canvases = 3 * (data.CAPTIONS_PER_GPU // 29)
    if canvases:
        yield datasets.CAPTIONS[0], canvases, given.MOSAIC.SIZE, boxes


def _rates(cfg) -> tuple[Rate, Rate]:
    """Rates of images with boxes, which those of canvases equal, and of pairs."""
    model = cfg.MODEL
    if model.META_ARCHITECTURE == "GridTextModel":
        return OVRCNN_PAIRS, OVRCNN_PAIRS
    if model.META_ARCHITECTURE == "OpenVocabRCNN":
        if model.ROI_BOX_HEAD.PREDICTOR == "OVRCNNOutputLayers":
            return OVRCNN_BOXES, OVRCNN_BOXES
        return (C2_BOXES, C2_PAIRS) if model.PROPOSAL_GENERATOR.NAME == "CenterNet" else (C4_BOXES, C4_PAIRS)
    if model.META_ARCHITECTURE == "FVLM":
        side = cfg.INPUT.LSJ.SIZE
        seconds = encoder_flops(model.IMAGE_ENCODER.NAME, side) / FLOPS
        seconds += 3600 / C2_BOXES.images * (side / C2_BOXES.size) ** 2
        return (Rate(3600 / seconds, side, f"{GUESS}, and the heads as those of OV-LVIS's R50"),) * 2
    sides = (cfg.INPUT.MOSAIC.SIZE, cfg.INPUT.CAPTION.CROP)
    # Forward and, through the half of the blocks that learns, backward, which takes twice as long.
    both = (Rate(3600 * FLOPS / (2 * encoder_flops(model.IMAGE_ENCODER.NAME, side)), side, GUESS) for side in sides)
    return tuple(both)


def encoder_flops(name: str, side: int) -> float:
    """Of one forward pass of CLIP's ViT-B/16, or of its RN50x64, of which we know that 448 px take 530 GFLOP."""
    if name == "ClipResNet":
        return 530e9 * (side / 448) ** 2
    tokens = math.ceil(side / 16) ** 2
    return 2 * 86e6 * tokens + 12 * 4 * tokens**2 * 768  # weights; attention of 12 blocks, 768 channels

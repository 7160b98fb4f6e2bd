"""Speed and memory of the mosaics, the joint step and the text towers, side by side: medians (min–max).

    python tools/benchmark.py                          # everything, a quarter of an hour on two cores
    python tools/benchmark.py --only mosaics --images COCO/val2017
    python tools/benchmark.py --only steps memory --full --json output/benchmark.json
    python tools/benchmark.py --only steps --config-file configs/mini/detic_clim.yaml

What is compared runs in turn (ABAB), each section in a process of its own. On a CPU, rates and ratios are of
CPU seconds, which other programs disturb less; wall seconds stand beside them. Boxes, captions and tags are
drawn at random. Weights are random too, with the anchors as proposals, unless the command ends in
"-- MODEL.WEIGHTS FILE".
"""

import argparse
import functools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import cv2
import detectron2
import numpy as np
import PIL.features
import PIL.Image
import torch
import torchvision
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from tqdm import tqdm

from clim.benchmarking import (
    REST,
    Run,
    Spread,
    Stages,
    fresh,
    interleaved,
    machine,
    measure,
    paired_ratio,
    peak_resident_bytes,
    shares,
)
from clim.data import mapper
from clim.data.images import UnreadableImage, read_image, resize
from clim.data.loader import build_train_loader
from clim.data.mosaic import fit_cell, grid_cells, inward_anchors, place
from clim.engine import Trainer, load_config, run_cleanly
from clim.errors import UserError
from clim.text import CaptionCache, build_text_tower

GRIDS = (2, 3, 4)
CANVAS = 800  # px
RELEASED_CELL = 400  # px, to which the CLIM release resizes every picture before it lays it on a canvas
SMALLEST_SIDE = 32  # px, of scaled inputs
MEMORY_STEPS = 2  # the optimiser's momenta are there from the second on
TOWERS = {"MiniLM": "minilm", "ViT-B/32 (random weights)": "ViT-B-32-quickgelu"}
CAPTIONS_A_STEP = 2 + 2 * sum(n * n for n in GRIDS) // len(GRIDS)  # 2 single pairs and 2 mosaics

# Table 1a and its stacked rows: (detection, captions, mosaics) a GPU and step. The first is the reference.
STEPS = {
    "baseline 2+4": (2, 4, 0),
    "CLIM 2+2+2": (2, 2, 2),
    "stacked 2+20": (2, 20, 0),
    "stacked 2+32": (2, 32, 0),
}
PARTS = (
    "data", "backbone", "proposals", "pooling + head", "texts", "losses", "backward", "optimiser", REST
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the user has chosen; goes to every process."""

    repeats: int
    canvases: int
    threads: int
    device: str
    config_file: str
    scale: float
    folder: str  # scratch: synthetic photos, caption cache, logs
    overrides: tuple[str, ...]

    def start(self) -> Callable[[], None]:
        """Limit the threads of this process; returns what waits for the device."""
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        return torch.cuda.synchronize if self.on_gpu else lambda: None

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def seconds(self) -> str:
        """Which of a run's clocks the rates and ratios are taken from."""
        return "wall" if self.on_gpu else "cpu"


# ---- Pictures -----------------------------------------------------------------------------------


def synthetic_photos(folder: Path, *, count: int) -> list[Path]:
    """``count`` 640x480 JPEGs with the 1/f spectrum of photographs and COCO's bytes (about 160 kB each)."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = 480, 640
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    paths = []
    for i in tqdm(range(count), desc="synthetic photos", unit="photo"):
        rng = np.random.default_rng(i)
        noise = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency
        light, *colour = np.fft.irfft2(noise, s=(height, width))
        channels = [light + 0.3 * c for c in (colour[0], colour[1], -colour[0])]
        picture = np.stack(channels, axis=-1)
        picture = 127 + 45 * (picture - picture.mean()) / picture.std()
        paths.append(folder / f"{i:06d}.jpg")
        PIL.Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def records_of(paths: Sequence[Path]) -> list[dict]:
    """Records for boxes and captions alike: 7 boxes, 5 captions of 10 words and 3 tags, as COCO's mean."""
    words = "man dog street red small table near holding two plate field sitting bus window".split()
    records = []
    for i, path in enumerate(paths):
        rng = np.random.default_rng([1, i])
        try:
            _, height, width = read_image(path)
        except UnreadableImage as error:
            raise UserError(f"--images: {error}. Remove this picture or name another folder.") from error
        extent = rng.uniform(0.05, 0.6, (7, 2)) * (width, height)
        corner = rng.uniform(0, 1, (7, 2)) * ((width, height) - extent)
        records.append(
            {
                "file_name": str(path),
                "height": height,
                "width": width,
                "image_id": i,
                "annotations": [
                    {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": int(c), "iscrowd": 0}
                    for box, c in zip(
                        np.hstack([corner, extent]).tolist(), rng.integers(0, 48, 7), strict=True
                    )
                ],
                "captions": [f"{i} {k} " + " ".join(rng.choice(words, 8)) for k in range(5)],
                "tags": rng.choice(48, 3, replace=False).tolist(),
            }
        )
    return records


def find_photos(folder: str, *, count: int) -> list[Path]:
    """``count`` pictures of ``folder``, spread over its sorted list."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise UserError(f"--images {folder}: there is no .jpg or .png in it.")
    return paths[:: math.ceil(len(paths) / count)]


# ---- 1. Mosaics -----------------------------------------------------------------------------------


class ReleasedOrder:
    """The order of work in the CLIM release, as a baseline: every picture is decoded whole and fitted into
    400 px, n x n of such cells make a canvas, and the canvas is resized to the network's input.

    Args:
        partners: gives the fitted picture of a record; the release keeps a memory of 1,024 of them.
    """

    def __init__(
        self, records: Sequence[dict], *, n: int, partners: Callable[[int], np.ndarray] | None = None
    ):
        self.records, self.n = records, n
        self.partner = partners or self.fitted

    def fitted(self, index: int) -> np.ndarray:
        picture = mapper.read_image(self.records[index]["file_name"]).image
        size = fit_cell(*picture.shape[:2], cell=(RELEASED_CELL, RELEASED_CELL))
        return mapper.resize(picture, size)

    def __call__(self, *, index: int, epoch: int) -> torch.Tensor:
        rng = np.random.default_rng([epoch, index])
        others = rng.choice(len(self.records), self.n**2 - 1, replace=len(self.records) < self.n**2)
        pictures = [self.fitted(index), *(self.partner(int(i)) for i in others)]
        side = self.n * RELEASED_CELL
        cells = grid_cells(self.n, size=(side, side))
        boxes = place(np.array([p.shape[:2] for p in pictures]), cells, inward_anchors(self.n, rng))
        canvas = np.full((side, side, 3), 114, dtype=np.uint8)
        for picture, (x0, y0, x1, y1) in zip(pictures, boxes.tolist(), strict=True):
            canvas[y0:y1, x0:x1] = picture if rng.random() < 0.5 else picture[:, ::-1]
        canvas = mapper.resize(canvas, (CANVAS, CANVAS))
        return torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))


def full_decode(file_name, *, fmt="BGR", at_least=None):
    """The photo at its full size, whatever is asked for."""
    return read_image(file_name, fmt=fmt)


def mosaic_arms(settings: Settings, records: Sequence[dict], n: int) -> dict[str, Callable[[], Run]]:
    """One run of each way to make ``settings.canvases`` canvases of n x n tiles, always the same ones."""
    clim = mapper.CanvasMapper(
        records, grids=[n], short=CANVAS, long=CANVAS, flip=0.5, num_groups=4, seed=0, stream=0
    )
    released = ReleasedOrder(records, n=n)
    remembering = ReleasedOrder(records, n=n, partners=functools.cache(released.fitted))
    stages = Stages()

    def arm(make, read):
        def run():
            for i in range(settings.canvases):
                make(index=i % len(records), epoch=i // len(records))

        def timed():
            with (
                mock.patch.object(mapper, "read_image", stages.timed("decode", read)),
                mock.patch.object(mapper, "resize", stages.timed("resize", resize)),
            ):
                return measure(run, stages=stages)

        return timed

    return {
        "CLIM, decoded afresh": arm(clim, read_image),
        "CLIM, full-size decode": arm(clim, full_decode),
        "CLIM, tiles in memory": arm(clim, functools.cache(read_image)),
        "released order, decoded afresh": arm(released, read_image),
        "released order, partners in memory": arm(remembering, read_image),
    }


def measure_mosaics(settings: Settings, records: Sequence[dict]) -> list[dict]:
    settings.start()
    rows, by_grid = [], []
    for n in GRIDS:
        arms = mosaic_arms(settings, records, n)
        by_grid.append(interleaved(arms, repeats=settings.repeats, title=f"mosaics {n} x {n}"))
        rows += mosaic_rows(f"{n} x {n}", by_grid[-1], canvases=settings.canvases)
    everything = {
        name: [joined(runs) for runs in zip(*(g[name] for g in by_grid), strict=True)] for name in by_grid[0]
    }
    return rows + mosaic_rows("2, 3, 4", everything, canvases=settings.canvases * len(GRIDS))


def joined(runs: Sequence[Run]) -> Run:
    """Runs one after the other, as one."""
    stages = {name: sum(r.stages.get(name, 0.0) for r in runs) for name in runs[0].stages}
    return Run(sum(r.wall for r in runs), sum(r.cpu for r in runs), stages)


def mosaic_rows(grid: str, arms: dict[str, list[Run]], *, canvases: int) -> list[dict]:
    rates = {name: [canvases / run.cpu for run in runs] for name, runs in arms.items()}
    reference = next(iter(rates.values()))
    rows = []
    for name, runs in arms.items():
        part = shares(runs)
        rows.append(
            {
                "grid": grid,
                "way": name,
                "mosaics / s and core": Spread.of(rates[name]),
                "ratio": paired_ratio(rates[name], reference),
                "wall ms": Spread.of([1000 * run.wall / canvases for run in runs]),
                **{f"{stage} %": 100 * part.get(stage, 0.0) for stage in ("decode", "resize", REST)},
            }
        )
    return rows


# ---- 2. Joint step --------------------------------------------------------------------------------


def register(records: Sequence[dict]) -> None:
    """Make ``records`` the data set "benchmark" of this process."""
    DatasetCatalog.pop("benchmark", None)
    DatasetCatalog.register("benchmark", lambda: [dict(r) for r in records])


def step_config(settings: Settings, batch: tuple[int, int, int]):
    """The config of one step on the data set "benchmark".

    Canvases, anchors and the pooled grid of a region get ``scale`` times their sides, and the numbers of
    regions stay: so every part of a step shrinks by about scale², and the ratios between steps stay.
    """
    cfg = load_config(settings.config_file, ["MODEL.DEVICE", settings.device])
    s = settings.scale
    anchors = [[size * s for size in sizes] for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES]

    def side(px):
        return max(SMALLEST_SIDE, round(px * s))

    return load_config(
        settings.config_file,
        [
            "MODEL.DEVICE", settings.device,
            "MODEL.WEIGHTS", "",
            "MODEL.VOCABULARY.EMBEDDINGS", "",
            "MODEL.TEXT.NAME", "minilm",
            "MODEL.TEXT.PRETRAINED", "",
            "MODEL.TEXT.DIM", 384,
            "MODEL.TEXT.CACHE", os.path.join(settings.folder, "captions"),
            "MODEL.ANCHOR_GENERATOR.SIZES", anchors,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
            max(2, round(cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION * s)),
            "INPUT.MIN_SIZE_TRAIN", tuple(side(px) for px in cfg.INPUT.MIN_SIZE_TRAIN),
            "INPUT.MAX_SIZE_TRAIN", side(cfg.INPUT.MAX_SIZE_TRAIN),
            "INPUT.CAPTION.SHORT_SIDE", side(cfg.INPUT.CAPTION.SHORT_SIDE),
            "INPUT.CAPTION.LONG_SIDE", side(cfg.INPUT.CAPTION.LONG_SIDE),
            "INPUT.MOSAIC.SIZE", side(cfg.INPUT.MOSAIC.SIZE),
            "DATASETS.TRAIN", ("benchmark",),
            "DATASETS.CAPTIONS", ("benchmark",),
            "DATALOADER.DETECTION_PER_GPU", batch[0],
            "DATALOADER.CAPTIONS_PER_GPU", batch[1],
            "DATALOADER.MOSAICS_PER_GPU", batch[2],
            "DATALOADER.ALTERNATE", (),
            "DATALOADER.NUM_WORKERS", 0,
            "SOLVER.BASE_LR", 0.0,  # every step meets the same weights
            "OUTPUT_DIR", settings.folder,
            *settings.overrides,
        ],
    )  # fmt: skip


def prefill_captions(settings: Settings, records: Sequence[dict]) -> None:
    """Fill the caption cache, as a first epoch would, so that no measured process loads the tower."""
    text = step_config(settings, STEPS["CLIM 2+2+2"]).MODEL.TEXT
    tower = build_text_tower(name=text.NAME, pretrained=text.PRETRAINED, device=settings.device)
    CaptionCache(tower, text.CACHE).prefill([c for r in records for c in r["captions"]])


def new_trainer(cfg) -> Trainer:
    trainer = Trainer(cfg)
    trainer.checkpointer.load(cfg.MODEL.WEIGHTS)
    if not cfg.MODEL.WEIGHTS:
        # An untrained R50's deltas send nearly all boxes to the same few places. Without them the anchors are
        # the proposals, as many as a trained network's: the RoI head then has its full work.
        torch.nn.init.zeros_(trainer.raw_model.proposal_generator.rpn_head.anchor_deltas.weight)
    trainer.iter = 0
    return trainer


def watch(trainer: Trainer, stages: Stages) -> None:
    """Count the calls of the model's and the trainer's own parts for their stages."""
    model = trainer.raw_model
    heads, rpn = model.roi_heads, model.proposal_generator
    for owner, name, stage in (
        (model.backbone, "forward", "backbone"),
        (rpn, "forward", "proposals"),
        (rpn, "propose", "proposals"),
        (rpn, "losses", "losses"),
        (model.method, "select", "proposals"),
        (model.method, "losses", "losses"),
        (model.text_encoder, "encode", "texts"),
        (heads, "forward", "pooling + head"),
        (heads, "_shared_roi_transform", "pooling + head"),
        (heads.box_predictor, "losses", "losses"),
        (heads.box_predictor.cls_score, "project", "pooling + head"),
        (trainer.optimizer, "zero_grad", "optimiser"),
        (trainer.optimizer, "step", "optimiser"),
    ):
        setattr(owner, name, stages.timed(stage, getattr(owner, name)))


def measure_steps(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """One model takes all steps in turn; only the batches differ."""
    synchronise = settings.start()

    def clock():
        synchronise()
        return time.perf_counter() if settings.on_gpu else time.process_time()

    register(records)
    stages = Stages(clock)
    trainer = new_trainer(step_config(settings, STEPS["CLIM 2+2+2"]))
    watch(trainer, stages)

    def arm(batch):
        loader = build_train_loader(step_config(settings, batch), seed=0)

        def run():
            trainer.loader = iter(stages.timed("data", lambda: next(loader)), None)
            return measure(trainer.run_step, stages=stages, synchronise=synchronise)

        return run

    clip = torch.nn.utils.clip_grad_norm_
    with (
        EventStorage() as trainer.storage,
        mock.patch.object(torch.nn.utils, "clip_grad_norm_", stages.timed("optimiser", clip)),
        mock.patch.object(torch.Tensor, "backward", stages.timed("backward", torch.Tensor.backward)),
    ):
        runs = interleaved(
            {name: arm(batch) for name, batch in STEPS.items()}, repeats=settings.repeats, title="steps"
        )
    return step_rows(runs, key=settings.seconds)


def step_rows(arms: dict[str, list[Run]], *, key: str) -> list[dict]:
    seconds = {name: [getattr(run, key) for run in runs] for name, runs in arms.items()}
    reference = next(iter(seconds.values()))
    rows = []
    for name, runs in arms.items():
        part = shares(runs)
        rows.append(
            {
                "step": name,
                f"{key} s": Spread.of(seconds[name]),
                "ratio": paired_ratio(seconds[name], reference),
                "wall s": Spread.of([run.wall for run in runs]),
                **{f"{stage} %": 100 * part.get(stage, 0.0) for stage in PARTS},
            }
        )
    return rows


# ---- 3. Memory ------------------------------------------------------------------------------------


def peak_of_steps(settings: Settings, records: Sequence[dict], batch: tuple[int, int, int]) -> dict[str, int]:
    """Bytes before the first step (libraries and model) and at the worst moment of some steps."""
    settings.start()
    peak = torch.cuda.max_memory_allocated if settings.on_gpu else peak_resident_bytes
    register(records)
    cfg = step_config(settings, batch)
    trainer = new_trainer(cfg)
    trainer.loader = build_train_loader(cfg, seed=0)
    before = peak()
    with EventStorage() as trainer.storage:
        for _ in range(MEMORY_STEPS):
            trainer.run_step()
    return {"before": before, "peak": peak()}


def measure_memory(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Every figure from a process of its own."""
    measured: dict[str, list[dict[str, int]]] = {name: [] for name in STEPS}
    with tqdm(total=settings.repeats * len(STEPS), desc="memory", unit="process") as bar:
        for _ in range(settings.repeats):
            for name, batch in STEPS.items():
                measured[name].append(fresh(peak_of_steps, settings, records, batch))
                bar.update()
    reference = [m["peak"] for m in measured["baseline 2+4"]]
    return [
        {
            "step": name,
            "peak MiB": Spread.of([m["peak"] / 2**20 for m in values]),
            "ratio": paired_ratio([m["peak"] for m in values], reference),
            "before the first step MiB": Spread.of([m["before"] / 2**20 for m in values]),
        }
        for name, values in measured.items()
    ]


# ---- 4. Texts -------------------------------------------------------------------------------------


def measure_text(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """The captions of joint steps, read by the tower or from the warm cache on disk."""
    synchronise = settings.start()
    captions = [c for r in records for c in r["captions"]]
    batches = [
        [captions[(i * CAPTIONS_A_STEP + j) % len(captions)] for j in range(CAPTIONS_A_STEP)]
        for i in range(settings.canvases)
    ]
    rows = []
    for title, name in TOWERS.items():
        tower = build_text_tower(name=name, pretrained="", device=settings.device)
        cache = CaptionCache(tower, os.path.join(settings.folder, "cached", name))
        cache.prefill(captions)

        def arm(encoder):
            def run():
                for batch in batches:
                    encoder.encode(batch).to(settings.device)

            return lambda: measure(run, synchronise=synchronise)

        arms = {"live": arm(tower), "cached": arm(cache)}
        runs = interleaved(arms, repeats=settings.repeats, title=title)
        rates = {
            way: [CAPTIONS_A_STEP * len(batches) / getattr(r, settings.seconds) for r in runs[way]]
            for way in arms
        }
        for way in arms:
            rows.append(
                {
                    "tower": title,
                    "way": way,
                    "captions / s": Spread.of(rates[way]),
                    "ratio": paired_ratio(rates[way], rates["live"]),
                    "wall ms a joint step": Spread.of([1000 * r.wall / len(batches) for r in runs[way]]),
                    "CPU ms a joint step": Spread.of([1000 * r.cpu / len(batches) for r in runs[way]]),
                }
            )
    return rows


# ---- Command line ---------------------------------------------------------------------------------

SECTIONS = {
    "mosaics": "Mosaics of 800 px; rate and ratio by CPU seconds, ratio to the first row of the grid",
    "steps": "Joint training step (detection + captions + mosaics), ratio to the baseline",
    "memory": "Peak memory of training steps (small inputs leave mostly libraries and weights), ratio to the baseline",
    "text": f"Caption embeddings, {CAPTIONS_A_STEP} captions a joint step, ratio to the live tower",
}


def run_section(name: str, settings: Settings, records: Sequence[dict]) -> list[dict]:
    if name in ("steps", "memory"):
        fresh(prefill_captions, settings, records)
    if name == "memory":
        return measure_memory(settings, records)
    return fresh(
        {"mosaics": measure_mosaics, "steps": measure_steps, "text": measure_text}[name], settings, records
    )


def default_scale(config_file: str, device: str) -> float:
    """Full size, but 2/7 (14 pooled cells become 4) where a CPU would meet inputs for GPUs: 40 s a step."""
    large = max(load_config(config_file, []).INPUT.MIN_SIZE_TRAIN) > 400
    return 2 / 7 if large and not device.startswith("cuda") else 1.0


def as_table(rows: Sequence[dict]) -> str:
    cells = [
        [f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    return tabulate(cells, headers=list(rows[0]), tablefmt="github", disable_numparse=True)


def as_json(value):
    if isinstance(value, Spread):
        return value._asdict()
    if isinstance(value, dict):
        return {key: as_json(v) for key, v in value.items()}
    return [as_json(v) for v in value] if isinstance(value, list) else value


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--images", default="", help="folder of photos, e.g. COCO's; else synthetic ones are made"
    )
    parser.add_argument("--photos", type=int, default=64, help="number of photos (default 64)")
    parser.add_argument("--repeats", type=int, default=3, help="runs behind each median (default 3)")
    parser.add_argument(
        "--canvases", type=int, default=8, help="canvases (or steps' captions) a run (default 8)"
    )
    parser.add_argument(
        "--config-file", default="configs/Detic_CLIM_C4.yaml", help="model of steps and memory"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--scale", type=float,
        help="of the sides of steps' inputs (default: 2/7 for large inputs on a CPU, else 1)",
    )  # fmt: skip
    size.add_argument("--full", action="store_const", const=1.0, dest="scale", help="the same as --scale 1")
    parser.add_argument("--threads", type=int, default=1, help="of torch and OpenCV (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, after --")
    args = parser.parse_args(argv)
    for name in ("photos", "repeats", "canvases", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give at least 1")
    if args.scale is not None and not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale}: give a number above 0, at most 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by the processes that are started below
    facts = machine([torch, torchvision, detectron2, np, cv2, PIL]) | {"threads": str(args.threads)}
    facts["libjpeg-turbo (PIL)"] = PIL.features.version("libjpeg_turbo") or "no"
    if args.device.startswith("cuda"):
        facts["device"] = torch.cuda.get_device_name(args.device)
    else:
        facts["device"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="clim_benchmark_") as folder:
        if args.images:
            paths = find_photos(args.images, count=args.photos)
        else:
            paths = synthetic_photos(Path(folder) / "photos", count=args.photos)
        records = records_of(paths)
        scale = args.scale if args.scale is not None else default_scale(args.config_file, args.device)
        settings = Settings(
            repeats=args.repeats, canvases=args.canvases, threads=args.threads, device=args.device,
            config_file=args.config_file, scale=scale, folder=folder, overrides=tuple(args.opts),
        )  # fmt: skip
        facts["photos"] = describe(records, source=args.images or "synthetic")
        facts["model"] = f"{args.config_file}, scale {scale:.3g}"
        print("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
        results = {}
        for name in args.only:
            results[name] = run_section(name, settings, records)
            print(f"\n{SECTIONS[name]}; median (min–max) of {args.repeats}\n\n{as_table(results[name])}")
            if args.json:  # after every section: an interrupted run keeps what it has
                content = {"machine": facts, "settings": asdict(settings), "results": as_json(results)}
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(content, indent=1) + "\n")


def describe(records: Sequence[dict], *, source: str) -> str:
    sizes = [os.path.getsize(r["file_name"]) / 1000 for r in records]
    height, width = (statistics.median([r[side] for r in records]) for side in ("height", "width"))
    return (
        f"{len(records)} from {source}, median {width:g} x {height:g} px, {statistics.median(sizes):.0f} kB"
    )


if __name__ == "__main__":
    run_cleanly(main)

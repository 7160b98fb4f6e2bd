"""Joint training steps against the baseline's and stacked ones, their peak memory, and captions per second."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from clim.data.loader import build_train_loader
from clim.engine import Trainer, load_config
from clim.text import CaptionCache, build_text_tower
from clim_commands.outputs import prefill

from .inputs import Settings
from .mosaics import GRIDS
from .stopwatch import (
    REST,
    Run,
    Spread,
    Stages,
    fresh,
    interleaved,
    measure,
    paired_ratio,
    peak_resident_bytes,
    shares,
)  # fmt: skip

SMALLEST_SIDE = 32  # px, of scaled inputs
SIDES = ("INPUT.MAX_SIZE_TRAIN", "INPUT.CAPTION.SHORT_SIDE", "INPUT.CAPTION.LONG_SIDE", "INPUT.MOSAIC.SIZE")
EMPTY = ("MODEL.WEIGHTS", "MODEL.VOCABULARY.EMBEDDINGS", "MODEL.OPEN_VOCAB.BASE_CLASSES", "MODEL.TEXT.PRETRAINED")
# Table 1a and its stacked rows: (detection, captions, mosaics) a GPU and step. The first is the reference.
STEPS = {"baseline 2+4": (2, 4, 0), "CLIM 2+2+2": (2, 2, 2), "stacked 2+20": (2, 20, 0), "stacked 2+32": (2, 32, 0)}
SINGLE = {"4 captions": (0, 4, 0), "2 box images": (2, 0, 0)}
PARTS = ("data", "backbone", "proposals", "pooling + head", "texts", "losses", "backward", "optimiser", REST)
MEMORY_STEPS = 2  # the optimiser's momenta are there from the second on
TOWERS = {"MiniLM": "minilm", "ViT-B/32 (random weights)": "ViT-B-32-quickgelu"}
CAPTIONS_A_STEP = 2 + 2 * sum(n * n for n in GRIDS) // len(GRIDS)  # 2 single pairs and 2 mosaics


def register(records: Sequence[dict]) -> None:
    """Make ``records`` the data set "benchmark" of this process."""
    DatasetCatalog.pop("benchmark", None)
    DatasetCatalog.register("benchmark", lambda: [dict(r) for r in records])


def step_config(settings: Settings, batch: tuple[int, int, int]):
    """The config of one step on the data set "benchmark".

    ``scale`` multiplies the sides of canvases, anchors and pooled regions. The numbers of regions stay. So every part
    of a step shrinks by about scale², and the ratios between steps stay.
    """
    cfg = load_config(settings.config_file, ["MODEL.DEVICE", settings.device])
    s = settings.scale

    def side(px):
        return max(SMALLEST_SIDE, round(px * s))

    values = {key: side(attrgetter(key)(cfg)) for key in SIDES} | dict.fromkeys(EMPTY, "")
    values |= {
        "MODEL.DEVICE": settings.device,
        "MODEL.TEXT.NAME": "minilm",
        "MODEL.TEXT.DIM": 384,
        "MODEL.TEXT.CACHE": os.path.join(settings.folder, "captions"),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size * s for size in sizes] for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": max(2, round(cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION * s)),
        "INPUT.MIN_SIZE_TRAIN": tuple(map(side, cfg.INPUT.MIN_SIZE_TRAIN)),
        "DATASETS.TRAIN": ("benchmark",),
        "DATASETS.CAPTIONS": ("benchmark",),
        "DATASETS.TEST": (),
        "DATALOADER.DETECTION_PER_GPU": batch[0],
        "DATALOADER.CAPTIONS_PER_GPU": batch[1],
        "DATALOADER.MOSAICS_PER_GPU": batch[2],
        "DATALOADER.ALTERNATE": (),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.BASE_LR": 0.0,  # every step has the same weights
        "OUTPUT_DIR": settings.folder,
    }
    overrides = [word for pair in values.items() for word in pair]
    return load_config(settings.config_file, [*overrides, *settings.overrides])


def prefill_captions(settings: Settings, records: Sequence[dict]) -> None:
    """Fill the caption cache, as a first epoch does, so that no measured process loads the tower."""
    text = step_config(settings, STEPS["CLIM 2+2+2"]).MODEL.TEXT
    tower = build_text_tower(name=text.NAME, pretrained=text.PRETRAINED, device=settings.device)
    prefill(CaptionCache(tower, text.CACHE), [c for r in records for c in r["captions"]])


def new_trainer(cfg) -> Trainer:
    trainer = Trainer(cfg)
    trainer.checkpointer.load(cfg.MODEL.WEIGHTS)
    if not cfg.MODEL.WEIGHTS:
        # An untrained R50's deltas move nearly all boxes to a few places. Without deltas the anchors are the
        # proposals, as many as a trained network has: so the RoI head has its full work.
        torch.nn.init.zeros_(trainer.raw_model.proposal_generator.rpn_head.anchor_deltas.weight)
    trainer.iter = 0
    return trainer


def watch(trainer: Trainer, stages: Stages) -> None:
    """Count the calls of parts of the model and the trainer for their stages."""
    model = trainer.raw_model
    heads, rpn = model.roi_heads, model.proposal_generator
    calls = {
        "backbone": [(model.backbone, "forward")],
        "proposals": [(rpn, "forward"), (rpn, "propose"), (model.method, "select")],
        "pooling + head": [
            (heads, "forward"), (heads, "_shared_roi_transform"), (heads.box_predictor.cls_score, "project")
        ],
        "texts": [(model.text_encoder, "encode")],
        "losses": [(rpn, "losses"), (model.method, "losses"), (heads.box_predictor, "losses")],
        "optimiser": [(trainer.optimizer, "zero_grad"), (trainer.optimizer, "step"), (trainer, "clip_gradients")],
    }  # fmt: skip
    for stage, owned in calls.items():
        for owner, name in owned:
            setattr(owner, name, stages.timed(stage, getattr(owner, name)))


def measure_steps(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Training steps.

    The ratio is that to the baseline's. One model takes all steps in turn; only the batches differ.
    """
    fresh(prefill_captions, settings, records)
    configs = {name: step_config(settings, batch) for name, batch in (STEPS | SINGLE).items()}
    return step_rows(timed_steps(settings, records, configs), key=settings.seconds)


def timed_steps(settings: Settings, records: Sequence[dict], configs: Mapping[str, CfgNode]) -> dict[str, list[Run]]:
    """{name: its runs} of one model, the first config's, with the batches of each config in turn."""
    synchronise, stages = settings.start(), Stages(settings.clock)
    register(records)
    trainer = new_trainer(next(iter(configs.values())))
    watch(trainer, stages)

    def arm(cfg):
        loader = build_train_loader(cfg, seed=0)

        def run():
            trainer.loader = iter(stages.timed("data", lambda: next(loader)), None)
            return measure(trainer.run_step, stages=stages, synchronise=synchronise)

        return run

    with (
        EventStorage() as trainer.storage,
        mock.patch.object(torch.Tensor, "backward", stages.timed("backward", torch.Tensor.backward)),
    ):
        arms = {name: arm(cfg) for name, cfg in configs.items()}
        return interleaved(arms, repeats=settings.repeats, title="steps")


def step_rows(arms: dict[str, list[Run]], *, key: str) -> list[dict]:
    seconds = {name: [getattr(run, key) for run in runs] for name, runs in arms.items()}
    reference = next(iter(seconds.values()))
    return [
        {
            "step": name,
            f"{key} s": Spread.of(seconds[name]),
            "ratio": paired_ratio(seconds[name], reference),
            "wall s": Spread.of([run.wall for run in runs]),
            **shares(runs, PARTS),
        }
        for name, runs in arms.items()
    ]


def peak_of_steps(settings: Settings, records: Sequence[dict], batch: tuple[int, int, int]) -> dict[str, int]:
    """Bytes before the first step (libraries and model), and the peak of MEMORY_STEPS steps."""
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
    """Peak memory of training steps.

    Each figure comes from its own process.
    """
    fresh(prefill_captions, settings, records)
    arms = {name: partial(fresh, peak_of_steps, settings, records, batch) for name, batch in STEPS.items()}
    measured = interleaved(arms, repeats=settings.repeats, title="memory", warm_up=0)
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


def measure_text(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Caption embeddings, 21 captions a joint step.

    They come from the tower, or from the warm cache on disk.
    """
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
        prefill(cache, captions)

        def arm(encoder):
            def run():
                for batch in batches:
                    encoder.encode(batch).to(settings.device)

            return lambda: measure(run, synchronise=synchronise)

        runs = interleaved({"live": arm(tower), "cached": arm(cache)}, repeats=settings.repeats, title=title)
        steps = len(batches)
        rates = {way: [CAPTIONS_A_STEP * steps / getattr(r, settings.seconds) for r in runs[way]] for way in runs}
        rows += [
            {
                "tower": title,
                "way": way,
                "captions / s": Spread.of(rates[way]),
                "ratio": paired_ratio(rates[way], rates["live"]),
                "wall ms a joint step": Spread.of([1000 * r.wall / steps for r in runs[way]]),
                "CPU ms a joint step": Spread.of([1000 * r.cpu / steps for r in runs[way]]),
            }
            for way in runs
        ]
    return rows

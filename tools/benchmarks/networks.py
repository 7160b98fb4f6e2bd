"""Networks at work: detection with 80 names, and dense features of a ViT-B/16 against open_clip's own blocks."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from clim.data.images import channels_first, read_image, resize
from clim.errors import UserError
from clim.modeling.backbones.clip_vit import ClipViT

from .inputs import Settings
from .steps import STEPS, new_trainer, register, step_config
from .stopwatch import (
    REST,
    Spread,
    Stages,
    fresh,
    interleaved,
    measure,
    paired_ratio,
    peak_resident_bytes,
    reset_peak,
    shares,
)  # fmt: skip

NAMES, SIDE, LEARNING = 80, 1024, 6  # class names; px of dense features, and their blocks that learn
DENSE = {"open_clip": None, "CLIM": False, "CLIM, checkpointing": True}  # {way: its MODEL.IMAGE_ENCODER.CHECKPOINTING}


def measure_detection(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Detection on one photo."""
    synchronise, stages = settings.start(), Stages(settings.clock)
    register(records)
    cfg = step_config(settings, STEPS["CLIM 2+2+2"])
    model = new_trainer(cfg).raw_model.eval()
    heads, predictor = model.roi_heads, model.roi_heads.box_predictor
    heads.set_vocabulary(torch.randn(NAMES, len(predictor.cls_score.zs_weight), device=settings.device))
    parts = {
        "backbone": (model.backbone, "forward"), "proposals": (model.proposal_generator, "forward"),
        "pooling": (heads.pooler, "forward"), "res5": (heads.res5, "forward"), "scores": (predictor, "forward"),
        "search": (predictor, "inference"),
    }  # fmt: skip
    for stage, (owner, name) in parts.items():
        setattr(owner, name, stages.timed(stage, getattr(owner, name)))
    short = round(cfg.INPUT.MIN_SIZE_TEST * settings.scale)
    height, width = size = (short, round(short * 4 / 3))
    image = channels_first(resize(read_image(records[0]["file_name"]).image, size))
    detect = torch.no_grad()(lambda: model([{"image": image, "height": height, "width": width}]))
    arms = {"": partial(measure, detect, stages=stages, synchronise=synchronise)}
    runs = interleaved(arms, repeats=settings.repeats, title="detection")[""]
    seconds = Spread.of([getattr(run, settings.seconds) for run in runs])
    row = {"image": f"{height} x {width} px", "names": NAMES, f"{settings.seconds} s": seconds}
    return [row | shares(runs, (*parts, REST))]


def measure_dense(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Dense features of ViT-B/16, of which 6 blocks learn.

    Every run has its own process, for its peak memory on top of the libraries and the model.
    """
    rows, side = [], round(SIDE * settings.scale / 16) * 16
    for name, ways in (("forward", ("open_clip", "CLIM")), ("forward, backward", tuple(DENSE))):
        arms = {way: partial(fresh, dense_once, settings, way, side, "backward" in name) for way in ways}
        runs = interleaved(arms, repeats=settings.repeats, title=name, warm_up=0)
        seconds = {way: [run["seconds"] for run in taken] for way, taken in runs.items()}
        for way, taken in runs.items():
            if not np.allclose(taken[0]["sample"], runs["open_clip"][0]["sample"], atol=1e-4):
                raise UserError(f"The dense features of {way} differ from open_clip's: report this as an error.")
            row = {"image": f"{side} x {side} px", "pass": name, "way": way}
            row |= {f"{settings.seconds} s": Spread.of(seconds[way])}
            row |= {"times as fast": paired_ratio(seconds["open_clip"], seconds[way])}
            rows.append(row | {"peak MiB": Spread.of([run["peak"] / 2**20 for run in taken])})
    return rows


def dense_once(settings: Settings, way: str, side: int, backward: bool) -> dict:
    """Seconds and peak bytes of one image's dense features, and a sample of them."""
    synchronise = settings.start()
    torch.manual_seed(0)
    visual = open_clip.create_model("ViT-B-16-quickgelu").visual
    encoder = ClipViT(visual=visual, unlocked_blocks=LEARNING, checkpointing=bool(DENSE[way])).to(settings.device)
    encoder.train(backward)
    images = torch.randn(1, 3, side, side, device=settings.device)
    features = partial(plain_features, encoder) if way == "open_clip" else lambda x: encoder.features(x)["dense"]
    peak = torch.cuda.max_memory_allocated if settings.on_gpu else peak_resident_bytes
    before, found = peak() if settings.on_gpu else reset_peak(), []

    def run():
        with torch.set_grad_enabled(backward):
            found.append(features(images))
        if backward:
            found[0].square().mean().backward()

    seconds = getattr(measure(run, synchronise=synchronise), settings.seconds)
    sample = found[0].detach()[0, :, ::4, ::4].cpu().numpy()
    return {"seconds": seconds, "peak": peak() - before, "sample": sample}


def plain_features(encoder: ClipViT, images: Tensor) -> Tensor:
    """The same features by open_clip's own blocks, of which the last one runs without attention."""
    x, _ = encoder.steps.embed(images)
    *blocks, last = encoder.steps.blocks
    for block in blocks:
        x = block(x)
    dense = encoder.steps.project(encoder.steps.run(last, x, None, dense=True)[:, 1:])
    grid = [side // encoder.stride for side in images.shape[2:]]
    return F.normalize(dense.transpose(1, 2).unflatten(2, grid).float(), dim=1)

"""Tables 3, 4 and 5: CLIP, CLIM on it, and F-VLM detectors on the frozen result.

On the mini benchmark a seed has its own images, dual encoder and base stage. The RPN of the base stage proposes
RegionCLIP's boxes.
"""

from functools import partial
from pathlib import Path

from experiments import rows
from experiments.rows import CONFIGS, Row, datasets_of
from experiments.scripts import run_script
from experiments.tables import AP50, Entry, Table
from mini.generate import NOUNS, set_up_mini

from . import full
from .ov_coco import BASE

START = Row("mini/clip_start.yaml")
LABELS, CUT_LABELS = (f"mini/annotations/pseudo_regions{end}.json" for end in ("", "_cut"))
# Top-1 with seed 9: 4.1 without a cut, 8.2 at .9, 6.9 at .95, 7.6 at .99, 9.1 at .995. First .5 and .8 were meant, but
# they leave out 10 and 221 of 7,500 boxes: half of all have more than .966.
MIN_OBJECTNESS = 0.995
TOP = {"Top1_micro": "Top-1", "Top5_micro": "Top-5", "Top1_micro_novel": "Top-1, novel"}
tuned = partial(rows.tuned, start=START)


def detector(encoder: Row) -> Row:
    """F-VLM on the trained ``encoder``."""
    return tuned("mini/fvlm.yaml", start=encoder, key="MODEL.IMAGE_ENCODER.PRETRAINED", file="clip.pt")


def label_boxes(output: Path, seed: int, *, file: str = LABELS, min_objectness: float = 0) -> None:
    """Name boxes by nouns of the captions with ``tools/pseudo_label.py``. A finished ``file`` stays."""
    root = datasets_of(output, seed)
    labels = root / file
    nouns, embeddings = (root / "mini/metadata" / name for name in NOUNS)
    arguments = [
        "--dataset", "mini_ov_captions", "--config-file", CONFIGS / BASE.config,
        "--weights", BASE.folder(output, seed) / "model_final.pth", "--encoder", CONFIGS / START.config,
        "--encoder-weights", START.folder(output, seed) / "model_final.pth", "--nouns", nouns,
        "--embeddings", embeddings, "--boxes", 5, "--min-objectness", min_objectness,
    ]  # fmt: skip
    run_script("pseudo_label.py", arguments, output=labels, root=root, log=root / f"{labels.stem}.log")


WHOLE, CLIM = tuned("mini/clip_whole.yaml"), tuned("mini/clip_clim.yaml")
REGION_CLIP = tuned("mini/clip_region_clip.yaml", needs=(BASE,), prepare=label_boxes)
CUT_REGIONS = f"[['cut_regions', 'pseudo_labels', '{CUT_LABELS}', 'mini/pairs']]"
CUT_REGION_CLIP = tuned(
    "mini/clip_region_clip.yaml", "DATASETS.OWN", CUT_REGIONS, "DATASETS.REGIONS", "('cut_regions',)",
    needs=(BASE,), prepare=partial(label_boxes, file=CUT_LABELS, min_objectness=MIN_OBJECTNESS),
)  # fmt: skip
CUT_NAME = f"RegionCLIP, boxes with objectness ≥ {MIN_OBJECTNESS}"


def top(first: float, fifth: float) -> dict[str, float]:
    """Top-1 and Top-5 of the paper, which does not say over which classes, and whether over regions or classes."""
    return {"Top-1": first, "Top-5": fifth}


def novel_base(novel: float, base: float) -> dict[str, float]:
    return {"AP50 novel": novel, "AP50 base": base}


CANVASES = (
    Entry("CLIP", full=full.CLIP, published=top(29.2, 51.6)),
    Entry("dual encoder", START),
    Entry("fine-tuned on whole images", WHOLE),
    Entry("CLIM, canvas 320", full=full.CANVAS320, published=top(57.8, 80.0)),
    Entry("CLIM, canvas 640", full=full.CANVAS640, published=top(61.3, 83.8)),
    Entry("CLIM, canvas 1024", full=full.CLIP_CLIM, published=top(62.2, 84.3)),
    Entry("CLIM, canvas 192", tuned("mini/clip_clim.yaml", "INPUT.MOSAIC.SIZE", 192)),
    Entry("CLIM, canvas 256", CLIM),
    Entry("CLIM, canvas 384", tuned("mini/clip_clim.yaml", "INPUT.MOSAIC.SIZE", 384)),
    Entry("control: canvas 256, texts permuted", tuned("mini/clip_clim.yaml", "INPUT.MOSAIC.PERMUTE_TEXTS", True)),
)
DETECTORS = (
    Entry("CLIP", full=full.FVLM_CLIP, published=novel_base(21.6, 36.4)),
    Entry("whole images", detector(WHOLE)),
    Entry("CLIM", detector(CLIM), full.FVLM_CLIM, novel_base(25.7, 42.5)),
    Entry("RegionCLIP", detector(REGION_CLIP), full.FVLM_REGION_CLIP, novel_base(26.1, 42.4)),
    Entry(CUT_NAME, detector(CUT_REGION_CLIP)),
)
COMPARED = (
    Entry("whole images", WHOLE),
    Entry("CLIM", CLIM, full.CLIP_CLIM, top(62.2, 84.3)),
    Entry("RegionCLIP", REGION_CLIP, full.REGION_CLIP, top(62.8, 84.7)),
    Entry(CUT_NAME, CUT_REGION_CLIP),
)
FULL_TOP = {  # what the release reports comes first
    "Top1_macro_things": "Top-1", "Top5_macro_things": "Top-5", "Top1_micro_80way": "Top-1 of 80 ways, over regions",
    "Top1_macro_80way": "Top-1 of 80 ways", "Top1_micro": "Top-1, things and stuff, over regions",
}  # fmt: skip
TWO_RUNS = {f"{key}_run": name for key, name in AP50.items() if key != "AP50_all"}
table = partial(Table, set_up=set_up_mini)
TABLES = (
    table(
        "3", "regions classified by the dual encoder", CANVASES, metrics=TOP, full_metrics=FULL_TOP,
        pairs=[("fine-tuned on whole images", "CLIM, canvas 256")],
    ),
    table(
        "4", "F-VLM detectors on the frozen encoders", DETECTORS, metrics=AP50, full_metrics=TWO_RUNS,
        pairs=[("whole images", "CLIM")],
    ),
    table("5", "CLIM and RegionCLIP", COMPARED, metrics=TOP, full_metrics=FULL_TOP),
)  # fmt: skip

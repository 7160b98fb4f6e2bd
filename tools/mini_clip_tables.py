"""Train Tables 3, 4 and 5 on the mini benchmark: a dual encoder, CLIM on it, and detectors on the frozen result.

    python tools/mini_clip_tables.py                       # all rows; can be stopped and started again
    python tools/mini_clip_tables.py --report docs/mini_results.md   # only write tables of what has been run

A seed has its own images, dual encoder and base stage. The RPN of the base stage proposes RegionCLIP's boxes.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from clim.errors import UserError, run_cleanly
from experiments import tables
from experiments.tables import AP50, CONFIGS, Row, Section, datasets_of, tables_command
from mini.generate import NOUNS, set_up_mini

TOOLS = Path(__file__).resolve().parent
BASE, START = Row("base_stage.yaml"), Row("clip_start.yaml")
tuned = partial(tables.tuned, start=START)


def detector(encoder: Row) -> Row:
    """F-VLM on the trained ``encoder``."""
    return tuned("fvlm.yaml", start=encoder, key="MODEL.IMAGE_ENCODER.PRETRAINED", file="clip.pt")


def label_boxes(output: Path, seed: int) -> None:
    """Name boxes by nouns of the captions with ``tools/pseudo_label.py``. A finished file stays."""
    root = datasets_of(output, seed)
    labels = root / "mini/annotations/pseudo_regions.json"
    if labels.is_file():
        return
    nouns, embeddings = (root / "mini/metadata" / name for name in NOUNS)
    arguments = [
        "--dataset", "mini_ov_captions", "--config-file", CONFIGS / BASE.config,
        "--weights", BASE.folder(output, seed) / "model_final.pth", "--encoder", CONFIGS / START.config,
        "--encoder-weights", START.folder(output, seed) / "model_final.pth", "--nouns", nouns,
        "--embeddings", embeddings, "--output", labels, "--boxes", 5,
    ]  # fmt: skip
    log = root / "pseudo_label.log"
    with open(log, "ab") as stream:
        code = subprocess.run(
            [sys.executable, str(TOOLS / "pseudo_label.py"), *map(str, arguments)], stdout=stream, stderr=stream,
            env=os.environ | {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"},
        ).returncode  # fmt: skip
    if code != 0:
        raise UserError(f"tools/pseudo_label.py stopped with exit code {code}; its log is {log}.")


WHOLE, CLIM = tuned("clip_whole.yaml"), tuned("clip_clim.yaml")
REGION_CLIP = tuned("clip_region_clip.yaml", needs=(BASE,), prepare=label_boxes)
TOP = {"Top1_micro": "Top-1", "Top5_micro": "Top-5", "Top1_micro_novel": "Top-1, novel"}
SECTIONS = {
    "Mini Table 3: regions classified by the dual encoder": Section(
        {
            "dual encoder": START,
            "fine-tuned on whole images": WHOLE,
            "CLIM, canvas 192": tuned("clip_clim.yaml", "INPUT.MOSAIC.SIZE", 192),
            "CLIM, canvas 256": CLIM,
            "CLIM, canvas 384": tuned("clip_clim.yaml", "INPUT.MOSAIC.SIZE", 384),
            "control: canvas 256, texts permuted": tuned("clip_clim.yaml", "INPUT.MOSAIC.PERMUTE_TEXTS", True),
        },
        TOP,
    ),
    "Mini Table 5: CLIM and RegionCLIP": Section({"whole images": WHOLE, "CLIM": CLIM, "RegionCLIP": REGION_CLIP}, TOP),
    "Mini Table 4: F-VLM detectors on the frozen encoders": Section(
        {"whole images": detector(WHOLE), "CLIM": detector(CLIM), "RegionCLIP": detector(REGION_CLIP)}, AP50
    ),
}

if __name__ == "__main__":
    run_cleanly(tables_command, SECTIONS, tool="mini_clip_tables", description=__doc__, set_up=set_up_mini)

"""Train Table 1b's rows on mini OV-LVIS with three seeds, and write their tables: mask AP of rare classes first.

    python tools/mini_lvis_tables.py                       # all rows; can be stopped and started again
    python tools/mini_lvis_tables.py --only F-VLM          # the rows of one method: Detic, VLDet or F-VLM
    python tools/mini_lvis_tables.py --report docs/mini_results.md   # only write tables of what has been run

A seed has its own images and shards. Detic and VLDet start from its base stage. F-VLM is trained on a frozen dual
encoder, which has seen whole images of the shards, or mosaics too. Settings are those of configs/mini.
"""

from functools import partial

from clim.errors import run_cleanly
from experiments import tables
from experiments.tables import Row, Section, tables_command
from mini.lvis import set_up_mini_lvis

METRICS = {"segm/APr": "AP rare", "segm/APc": "AP common", "segm/APf": "AP frequent", "segm/AP": "AP"}
METRICS |= {"bbox/APr": "box AP rare", "bbox/AP": "box AP"}
PERMUTED_TEXTS = ("INPUT.MOSAIC.PERMUTE_TEXTS", True)
CONTROL = "control: CLIM, texts permuted within each canvas"
BASE = Row("lvis_base_stage.yaml")
# Encoders are tested by their detectors alone: the boxes of mini_val_regions belong to mini OV-COCO.
PAIRS = ("DATASETS.CAPTIONS", "('mini_lvis_pairs',)", "DATASETS.TEST", "()")
ENCODER = Row("clip_start.yaml", PAIRS)
tuned = partial(tables.tuned, start=BASE)


def fvlm(config: str, *overrides) -> Row:
    """F-VLM on the dual encoder that ``config`` fine-tunes."""
    encoder = tuned(config, *PAIRS, *overrides, start=ENCODER)
    return tuned("lvis_fvlm.yaml", start=encoder, key="MODEL.IMAGE_ENCODER.PRETRAINED", file="clip.pt")


METHODS = {
    "Detic": {
        "base stage only": BASE,
        "Detic": tuned("lvis_detic.yaml"),
        "Detic + CLIM": tuned("lvis_detic_clim.yaml"),
        CONTROL: tuned("lvis_detic_clim.yaml", *PERMUTED_TEXTS),
    },
    "VLDet": {
        "base stage only": BASE,
        "VLDet": tuned("lvis_vldet.yaml"),
        "VLDet + CLIM": tuned("lvis_vldet_clim.yaml"),
        CONTROL: tuned("lvis_vldet_clim.yaml", *PERMUTED_TEXTS),
    },
    "F-VLM": {
        "F-VLM, encoder of whole images": fvlm("clip_whole.yaml"),
        "F-VLM, encoder + CLIM": fvlm("clip_clim.yaml"),
        "control: encoder + CLIM, texts permuted": fvlm("clip_clim.yaml", *PERMUTED_TEXTS),
    },
}
SECTIONS = {f"Mini Table 1b: {method} on OV-LVIS, mask AP": Section(rows, METRICS) for method, rows in METHODS.items()}

if __name__ == "__main__":
    run_cleanly(tables_command, SECTIONS, tool="mini_lvis_tables", description=__doc__, set_up=set_up_mini_lvis)

"""Train the paper's ablations on the mini benchmark with three seeds, and write their tables.

    python tools/mini_tables.py                       # all rows; can be stopped and started again
    python tools/mini_tables.py --report docs/mini_results.md   # only write tables of what has been run
    python tools/mini_tables.py --only 1a             # only sections with this word in their title

A seed has its own images and its own base stage, from which its rows start. Settings are those of configs/mini.
"""

from functools import partial

from clim.errors import run_cleanly
from experiments import tables
from experiments.tables import AP50, Row, Section, tables_command
from mini.generate import set_up_mini

BASE, BARON_BASE = Row("base_stage.yaml"), Row("baron_base_stage.yaml")
NO_TAGS = ("MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
STACKED = ("DATALOADER.CAPTIONS_PER_GPU", 21)  # CLIM's 2 + 2 x (4 + 9 + 16) / 3 images
PERMUTED_TEXTS = ("INPUT.MOSAIC.PERMUTE_TEXTS", True)
CLUTTERED = ("DATASETS.CAPTIONS", "('mini_ov_captions_cluttered',)")
tuned = partial(tables.tuned, start=BASE)
PERMUTED = tuned("detic_clim.yaml", *PERMUTED_TEXTS)
METHODS = {
    "Detic": tuned("detic.yaml"),
    "Detic + CLIM": tuned("detic_clim.yaml"),
    "BARON": tuned("baron.yaml", start=BARON_BASE),
    "BARON + CLIM": tuned("baron_clim.yaml", start=BARON_BASE),
    "OV-RCNN": tuned("ovrcnn.yaml", start=Row("ovrcnn_pretrain.yaml")),
    "OV-RCNN + CLIM": tuned("ovrcnn_clim.yaml", start=Row("ovrcnn_clim_pretrain.yaml")),
}
GROUNDING_CONTROL = Row("ovrcnn_clim_pretrain.yaml", PERMUTED_TEXTS)
METHOD_CONTROLS = {
    "Detic + CLIM": PERMUTED,
    "BARON + CLIM": tuned("baron_clim.yaml", *PERMUTED_TEXTS, start=BARON_BASE),
    "OV-RCNN + CLIM": tuned("ovrcnn_clim.yaml", start=GROUNDING_CONTROL),
}
SUPERVISION = {
    "base stage only": BASE,
    "4 captions": tuned("detic.yaml", *NO_TAGS),
    "21 captions, stacked": tuned("detic.yaml", *STACKED, *NO_TAGS),
    "CLIM, captions": tuned("detic_clim.yaml", *NO_TAGS),
    "4 captions + tags": tuned("detic.yaml"),
    "21 captions + tags, stacked": tuned("detic.yaml", *STACKED),
    "CLIM, captions + tags": tuned("detic_clim.yaml"),
    "control: CLIM, texts permuted within each canvas": PERMUTED,
}
GRIDS = {
    "2 x 2": tuned("detic_clim.yaml", "INPUT.MOSAIC.GRIDS", "[2]"),
    "3 x 3": tuned("detic_clim.yaml", "INPUT.MOSAIC.GRIDS", "[3]"),
    "4 x 4": tuned("detic_clim.yaml", "INPUT.MOSAIC.GRIDS", "[4]"),
    "random (the row above)": tuned("detic_clim.yaml"),
}
CLUTTERED_ROWS = {
    "base stage only": BASE,
    "4 captions + tags": tuned("detic.yaml", *CLUTTERED),
    "21 captions + tags, stacked": tuned("detic.yaml", *STACKED, *CLUTTERED),
    "CLIM, captions + tags": tuned("detic_clim.yaml", *CLUTTERED),
}
VLDET_BASE = Row("vldet_base_stage.yaml")
VLDET = {
    "base stage only": VLDET_BASE,
    "VLDet": tuned("vldet.yaml", start=VLDET_BASE),
    "VLDet + CLIM": tuned("vldet_clim.yaml", start=VLDET_BASE),
    "control: CLIM, texts permuted within each canvas": tuned("vldet_clim.yaml", *PERMUTED_TEXTS, start=VLDET_BASE),
}
SECTIONS = {
    "Mini Table 1a: every method, with and without CLIM": Section(METHODS, AP50),
    "Controls of Mini Table 1a: texts permuted within each canvas": Section(METHOD_CONTROLS, AP50),
    "Image-text supervision, object-centric pairs": Section(SUPERVISION, AP50),
    "Grids, captions + tags": Section(GRIDS, AP50),
    "Cluttered pairs, captions + tags (one seed)": Section(CLUTTERED_ROWS, AP50, most_seeds=1),
    "VLDet on OV-COCO, with and without CLIM": Section(VLDET, AP50),
}

if __name__ == "__main__":
    run_cleanly(tables_command, SECTIONS, tool="mini_tables", description=__doc__, set_up=set_up_mini)

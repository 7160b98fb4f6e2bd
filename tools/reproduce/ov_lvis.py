"""Table 1b: OV-LVIS, mask AP of rare classes first.

On mini OV-LVIS a seed has its own images and shards. Detic and VLDet start from its base stage. F-VLM is trained on a
frozen dual encoder, which has seen whole images of the shards, or mosaics too.
"""

from functools import partial

from experiments import rows
from experiments.rows import Row
from experiments.tables import Entry, Table
from mini.lvis import set_up_mini_lvis

from .ov_coco import CONTROL, PERMUTED_TEXTS

METRICS = {"segm/APr": "AP rare", "segm/APc": "AP common", "segm/APf": "AP frequent", "segm/AP": "AP"}
METRICS |= {"bbox/APr": "box AP rare", "bbox/AP": "box AP"}
BASE = Row("mini/lvis_base_stage.yaml")
# Encoders are tested by their detectors alone: the boxes of mini_val_regions belong to mini OV-COCO.
PAIRS = ("DATASETS.CAPTIONS", "('mini_lvis_pairs',)", "DATASETS.TEST", "()")
ENCODER = Row("mini/clip_start.yaml", PAIRS)
tuned = partial(rows.tuned, start=BASE)


def fvlm(config: str, *overrides) -> Row:
    """F-VLM on the dual encoder that ``config`` fine-tunes."""
    encoder = tuned(config, *PAIRS, *overrides, start=ENCODER)
    return tuned("mini/lvis_fvlm.yaml", start=encoder, key="MODEL.IMAGE_ENCODER.PRETRAINED", file="clip.pt")


DETIC = (
    Entry("base stage only", BASE),
    Entry("Detic", tuned("mini/lvis_detic.yaml")),
    Entry("Detic + CLIM", tuned("mini/lvis_detic_clim.yaml")),
    Entry(CONTROL, tuned("mini/lvis_detic_clim.yaml", *PERMUTED_TEXTS)),
)
VLDET = (
    Entry("base stage only", BASE),
    Entry("VLDet", tuned("mini/lvis_vldet.yaml")),
    Entry("VLDet + CLIM", tuned("mini/lvis_vldet_clim.yaml")),
    Entry(CONTROL, tuned("mini/lvis_vldet_clim.yaml", *PERMUTED_TEXTS)),
)
FVLM = (
    Entry("F-VLM, encoder of whole images", fvlm("mini/clip_whole.yaml")),
    Entry("F-VLM, encoder + CLIM", fvlm("mini/clip_clim.yaml")),
    Entry("control: encoder + CLIM, texts permuted", fvlm("mini/clip_clim.yaml", *PERMUTED_TEXTS)),
)
table = partial(Table, "1b", metrics=METRICS, set_up=set_up_mini_lvis)
TABLES = (
    table("Detic on OV-LVIS, mask AP", DETIC),
    table("VLDet on OV-LVIS, mask AP", VLDET),
    table("F-VLM on OV-LVIS, mask AP", FVLM),
)

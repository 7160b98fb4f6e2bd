"""Train Table 1b's rows on mini OV-LVIS with three seeds, and write their table: mask AP of rare classes first.

    python tools/mini_lvis_tables.py                       # all rows; can be stopped and started again
    python tools/mini_lvis_tables.py --report docs/mini_results.md   # only write the table of what has been run

A seed has its own images, shards and base stage, from which its rows start. Settings are those of configs/mini/lvis_*.
"""

from clim.errors import run_cleanly
from experiments.tables import Row, Section, tables_command
from mini.lvis import set_up_mini_lvis

METRICS = {"segm/APr": "AP rare", "segm/APc": "AP common", "segm/APf": "AP frequent", "segm/AP": "AP"}
METRICS |= {"bbox/APr": "box AP rare", "bbox/AP": "box AP"}
BASE = Row("lvis_base_stage.yaml")
START = (("MODEL.WEIGHTS", BASE, "model_final.pth"),)
ROWS = {
    "base stage only": BASE,
    "Detic": Row("lvis_detic.yaml", starts_from=START),
    "Detic + CLIM": Row("lvis_detic_clim.yaml", starts_from=START),
    "control: CLIM, texts permuted within each canvas": Row(
        "lvis_detic_clim.yaml", ("INPUT.MOSAIC.PERMUTE_TEXTS", True), starts_from=START
    ),
    "VLDet": Row("lvis_vldet.yaml", starts_from=START),
    "VLDet + CLIM": Row("lvis_vldet_clim.yaml", starts_from=START),
    "control: VLDet + CLIM, texts permuted within each canvas": Row(
        "lvis_vldet_clim.yaml", ("INPUT.MOSAIC.PERMUTE_TEXTS", True), starts_from=START
    ),
}
SECTIONS = {"Mini Table 1b: OV-LVIS, mask AP": Section(ROWS, METRICS)}

if __name__ == "__main__":
    run_cleanly(tables_command, SECTIONS, tool="mini_lvis_tables", description=__doc__, set_up=set_up_mini_lvis)

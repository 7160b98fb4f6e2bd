"""Tables 1a and 2a to 2c: detectors that learn from captions, on OV-COCO; and VLDet, which the paper has on OV-LVIS.

On the mini benchmark a seed has its own images and its own base stage, from which its rows start.
"""

from functools import partial
from pathlib import Path

from experiments import rows
from experiments.rows import Row, datasets_of
from experiments.scripts import run_script
from experiments.tables import AP50, Entry, Table
from mini.generate import CAPTION_CACHE, set_up_mini

PERMUTED_TEXTS = ("INPUT.MOSAIC.PERMUTE_TEXTS", True)
NO_TAGS = ("MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
STACKED = ("DATALOADER.CAPTIONS_PER_GPU", 21)  # CLIM's 2 + 2 x (4 + 9 + 16) / 3 images
CLUTTERED = ("DATASETS.CAPTIONS", "('mini_ov_captions_cluttered',)")
CONTROL = "control: CLIM, texts permuted within each canvas"

BASE, BARON_BASE, VLDET_BASE = (
    Row(f"mini/{name}.yaml") for name in ("base_stage", "baron_base_stage", "vldet_base_stage")
)
OVRCNN_PRETRAIN, OVRCNN_CLIM_PRETRAIN = Row("mini/ovrcnn_pretrain.yaml"), Row("mini/ovrcnn_clim_pretrain.yaml")
tuned = partial(rows.tuned, start=BASE)
DETIC, DETIC_CLIM = tuned("mini/detic.yaml"), tuned("mini/detic_clim.yaml")
PERMUTED = tuned("mini/detic_clim.yaml", *PERMUTED_TEXTS)
CAPTIONS_CLIM = tuned("mini/detic_clim.yaml", *NO_TAGS)

# A list of neighbours is as long as the number of images that show one concept: 1,500 pairs with 1.4 of 65 concepts
# each make 32. At full size it has 64 of 100,000 images, so that neighbours mean the same concept there too. And the 15
# partners of a 4 x 4 grid are still drawn at random.
NEIGHBOURS = 32
NEIGHBOURS_OF = {by: f"mini/metadata/neighbours_{by}.npy" for by in ("text", "image")}


def find_neighbours(output: Path, seed: int, *, by: str) -> None:
    """List the nearest neighbours of the pairs with ``tools/build_neighbours.py``. A finished list stays."""
    root = datasets_of(output, seed)
    path = root / NEIGHBOURS_OF[by]
    if path.with_suffix(".json").is_file():  # written last
        return
    arguments = ["--dataset", "mini_ov_captions", "--by", by, "--output", path, "--k", NEIGHBOURS, "--device", "cpu"]
    arguments += {
        "text": ["--name", "minilm", "--pretrained", "", "--cache", root / CAPTION_CACHE],
        "image": ["--name", "lite0"],
    }[by]
    run_script("build_neighbours.py", arguments, root=root, log=root / f"{path.stem}.log")


BARON, BARON_CLIM = (tuned(f"mini/{name}.yaml", start=BARON_BASE) for name in ("baron", "baron_clim"))
BARON_ROWS = (Entry("BARON", BARON), Entry("BARON + CLIM", BARON_CLIM))
METHODS = (
    Entry("Detic", DETIC),
    Entry("Detic + CLIM", DETIC_CLIM),
    Entry("control: Detic + CLIM, texts permuted", PERMUTED),
    *BARON_ROWS,
    Entry("control: BARON + CLIM, texts permuted", tuned("mini/baron_clim.yaml", *PERMUTED_TEXTS, start=BARON_BASE)),
    Entry("OV-RCNN", tuned("mini/ovrcnn.yaml", start=OVRCNN_PRETRAIN)),
    Entry("OV-RCNN + CLIM", tuned("mini/ovrcnn_clim.yaml", start=OVRCNN_CLIM_PRETRAIN)),
    Entry(
        "control: OV-RCNN + CLIM, texts permuted",
        tuned("mini/ovrcnn_clim.yaml", start=Row("mini/ovrcnn_clim_pretrain.yaml", PERMUTED_TEXTS)),
    ),
)
SUPERVISION = (
    Entry("base stage only", BASE),
    Entry("4 captions", tuned("mini/detic.yaml", *NO_TAGS)),
    Entry("21 captions, stacked", tuned("mini/detic.yaml", *STACKED, *NO_TAGS)),
    Entry("CLIM, captions", CAPTIONS_CLIM),
    Entry("4 captions + tags", DETIC),
    Entry("21 captions + tags, stacked", tuned("mini/detic.yaml", *STACKED)),
    Entry("CLIM, captions + tags", DETIC_CLIM),
    Entry(CONTROL, PERMUTED),
)
GRIDS = (
    *(Entry(f"{n} x {n}", tuned("mini/detic_clim.yaml", *NO_TAGS, "INPUT.MOSAIC.GRIDS", f"[{n}]")) for n in (2, 3, 4)),
    Entry("2, 3 or 4 at random", CAPTIONS_CLIM),
)
TEXT, IMAGE = (
    tuned("mini/detic_clim.yaml", *NO_TAGS, "INPUT.MOSAIC.PARTNERS", path, prepare=partial(find_neighbours, by=by))
    for by, path in NEIGHBOURS_OF.items()
)
PARTNERS = {"random": CAPTIONS_CLIM, "similar texts": TEXT, "similar images": IMAGE}
PARTNER_ROWS = (
    *(Entry(name, row) for name, row in PARTNERS.items()),
    *(  # each after the row that makes its list
        Entry(f"control: {name}, texts permuted", tuned(row.config, *row.overrides, *PERMUTED_TEXTS, needs=(row,)))
        for name, row in PARTNERS.items()
    ),
)
CLUTTERED_ROWS = (
    Entry("base stage only", BASE),
    Entry("4 captions + tags", tuned("mini/detic.yaml", *CLUTTERED)),
    Entry("21 captions + tags, stacked", tuned("mini/detic.yaml", *STACKED, *CLUTTERED)),
    Entry("CLIM, captions + tags", tuned("mini/detic_clim.yaml", *CLUTTERED)),
)
VLDET = (
    Entry("base stage only", VLDET_BASE),
    Entry("VLDet", tuned("mini/vldet.yaml", start=VLDET_BASE)),
    Entry("VLDet + CLIM", tuned("mini/vldet_clim.yaml", start=VLDET_BASE)),
    Entry(CONTROL, tuned("mini/vldet_clim.yaml", *PERMUTED_TEXTS, start=VLDET_BASE)),
)
table = partial(Table, metrics=AP50, set_up=set_up_mini)
TABLES = (
    table(
        "1a", "every method, with and without CLIM", METHODS,
        pairs=[(name, f"{name} + CLIM") for name in ("Detic", "BARON", "OV-RCNN")],
    ),
    table("baron", "BARON over eight seeds", BARON_ROWS, seeds=tuple(range(8)), pairs=[("BARON", "BARON + CLIM")]),
    table("2a", "image-text supervision, object-centric pairs", SUPERVISION),
    table("2b", "grids, captions alone", GRIDS),
    table(
        "2c", "mosaic partners, captions alone", PARTNER_ROWS,
        pairs=[("random", "similar texts"), ("random", "similar images")],
    ),
    table("cluttered", "cluttered pairs, captions + tags (one seed)", CLUTTERED_ROWS, seeds=(0,)),
    table("vldet", "VLDet on OV-COCO, with and without CLIM", VLDET),
)  # fmt: skip

"""Our own tables "photos3" and "photos1a": Table 3, and Detic of Table 1a, on a few real photos, on a CPU.

Pairs are Flickr8k's; boxes and panoptic segments are those of a small COCO with OV-COCO's split. All seeds have the
same photos and the same ImageNet and MiniLM weights: they differ in the order of images, crops and flips, and in the
start of the new layers. docs/photos.md says how the data is made.
"""

import statistics
from collections import Counter
from functools import partial
from pathlib import Path

from arguments import captions_in
from clim.errors import UserError
from clim.files import data_root, read_json, replacing
from clim_commands.outputs import prefill, write_embeddings
from experiments import rows
from experiments.rows import Row
from experiments.tables import AP50, Entry, Table

from .ov_coco import PERMUTED_TEXTS, STACKED

FOLDERS = {"coco": "coco_parts", "flickr8k": "flickr8k"}  # of a seed's data root: of the user's
CAPTIONS = "flickr8k/annotations/captions_tags.json"
NAMED = 10  # photos whose captions name a class, at least
NEEDED = (CAPTIONS, "coco_parts/zero-shot/instances_train2017_seen_2_oriorder.json",
          "coco_parts/annotations/panoptic_val2017.json")  # fmt: skip
REMEDY = """\
make it with
  python datasets/prepare_flickr8k.py --source FLICKR8K --output {root}
  python datasets/merge_coco.py --source COCO [COCO …] --output {root}
and name that folder by DETECTRON2_DATASETS (docs/photos.md)"""


def set_up_photos(root: Path, *, seed: int) -> None:
    """Make the files of configs/photos under ``root``, a folder two levels below that of all seeds.

    Links to the user's prepared photos, and MiniLM's embeddings, which all seeds share. Existing ones stay. UserError
    if the photos are not prepared.
    """
    source = data_root().resolve()
    if missing := [name for name in NEEDED if not (source / name).is_file()]:
        raise UserError(f"{source / missing[0]} is missing: {REMEDY.format(root=data_root())}.")
    shared = root.parents[1] / "photos"
    shared.mkdir(parents=True, exist_ok=True)
    links = {name: source / folder for name, folder in FOLDERS.items()} | {"photos": shared}
    for name, original in links.items():
        if (root / name).resolve() != original.resolve():
            with replacing(root / name) as link:
                link.symlink_to(original.resolve())
    write_text_embeddings(shared, captions_in(source / CAPTIONS, remedy=REMEDY.format(root=data_root())))


def write_text_embeddings(folder: Path, captions: list[str]) -> None:
    """Write MiniLM's missing embeddings: of the sentences "a NAME" of COCO's 80 and 133 classes, and of captions."""
    from clim.data.categories import COCO_NAMES, PANOPTIC_NAMES
    from clim.text import CaptionCache, LazyTower, build_text_tower, class_embeddings

    for file, names in (("coco_minilm.npy", COCO_NAMES), ("coco_panoptic_minilm.npy", PANOPTIC_NAMES)):
        if not (folder / file).is_file():
            spoken = list(map(spoken_class, names))
            embeddings = class_embeddings(build_text_tower(name="minilm"), spoken, "a")
            write_embeddings(folder / file, embeddings.cpu().numpy(), names)
    cache = folder / "captions_minilm"
    prefill(CaptionCache(LazyTower(name="minilm", pretrained="", directory=cache), cache), captions)


def spoken_class(name: str) -> str:
    """A panoptic class as people say it: "floor-other-merged" is a floor, "wall-brick" a wall brick."""
    return name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff").replace("-", " ")


def named_figures(results: dict, root: Path) -> dict[str, float | None]:
    """{"AP50_named": mean over the novel classes that have objects and that the tags of ``NAMED`` photos name}."""
    pairs = read_json(root / CAPTIONS, remedy=REMEDY.format(root=data_root()))
    photos = Counter(key for image in pairs["images"] for key in image["pos_category_ids"])
    named = {category["name"] for category in pairs["categories"] if photos[category["id"]] >= NAMED}
    novel = [row["AP50"] for row in results["per_class"] if row["split"] == "novel" and row["class"] in named]
    found = [figure for figure in novel if figure is not None]
    return {"AP50_named": statistics.mean(found) if found else None}


START, BASE = Row("photos/photos_clip_start.yaml"), Row("photos/photos_base_stage.yaml")
encoder, detector = partial(rows.tuned, start=START), partial(rows.tuned, start=BASE)
CANVASES = (
    Entry("dual encoder", START),
    Entry("fine-tuned on whole images", encoder("photos/photos_clip_whole.yaml")),
    Entry("CLIM, canvas 192", encoder("photos/photos_clip_clim.yaml", "INPUT.MOSAIC.SIZE", 192)),
    Entry("CLIM, canvas 256", encoder("photos/photos_clip_clim.yaml")),
    Entry("CLIM, canvas 384", encoder("photos/photos_clip_clim.yaml", "INPUT.MOSAIC.SIZE", 384)),
    Entry("control: canvas 256, texts permuted", encoder("photos/photos_clip_clim.yaml", *PERMUTED_TEXTS)),
)
DETECTORS = (
    Entry("base stage only", BASE),
    Entry("Detic", detector("photos/photos_detic.yaml")),
    Entry("Detic, 21 captions, stacked", detector("photos/photos_detic.yaml", *STACKED)),
    Entry("Detic + CLIM", detector("photos/photos_detic_clim.yaml")),
    Entry("control: Detic + CLIM, texts permuted", detector("photos/photos_detic_clim.yaml", *PERMUTED_TEXTS)),
)
PANOPTIC = "coco_panoptic_val_regions"
TOP = {
    "Top1_micro": "80-way Top-1", "Top5_micro": "80-way Top-5", "Top1_macro": "80-way Top-1, mean of classes",
    f"{PANOPTIC}/Top1_micro": "133-way Top-1", f"{PANOPTIC}/Top1_macro": "133-way Top-1, mean of classes",
}  # fmt: skip
AP = {"AP50_novel": "AP50 novel", "AP50_named": f"novel, named {NAMED} times"} | AP50
table = partial(Table, set_up=set_up_photos)
TABLES = (
    table(
        "photos3",
        "regions of real photos, classified by the dual encoder",
        CANVASES,
        metrics=TOP,
        pairs=[("fine-tuned on whole images", "CLIM, canvas 256")],
    ),
    table(
        "photos1a",
        "detectors on real photos, OV-COCO's split",
        DETECTORS,
        metrics=AP,
        figures=named_figures,
        pairs=[("Detic", "Detic + CLIM")],
    ),
)

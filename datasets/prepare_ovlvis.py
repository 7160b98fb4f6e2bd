"""Make OV-LVIS's files from LVIS v1: training without rare classes, counts of each class, tags of Conceptual Captions.

    python datasets/prepare_ovlvis.py --source /path/to/source --output datasets

``--source`` holds lvis_v1_{train,val}.json, in lvis/ or at its top, and COCO's train2017/ and val2017/, in coco/ or at
its top, unless the output has them already; and, where pairs are wanted, cc3m/train_image_info.json and cc3m/training/.
The script only reads it. ``--output`` becomes the data root (DETECTRON2_DATASETS); it may be the source. A second run
with the same input changes nothing.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

import prepare_ovcoco as ovcoco
import tags
from clim.data.schemas import texts_of
from clim.errors import UserError, run_cleanly
from clim_commands.pairs import WholeNumberedPairFile

DOWNLOAD = "get LVIS v1 from https://www.lvisdataset.org/dataset and unpack it"
PHOTOS = "get the images of COCO 2017 from https://cocodataset.org/#download"
GET_CC3M = "make it as datasets/README.md says"
STAMP = ".prepare_ovlvis.json"  # a Stamp
PARTS = ("train", "val")
FULL_SET = {"train": 100_170, "val": 19_809}  # images
# Where Detic, VLDet and CLIM look for the counts; the files in metadata/ may come with Detic.
COUNTS = ("lvis/lvis_v1_train_cat_info.json", "metadata/lvis_v1_train_cat_info.json")
BASE_COUNTS = ("lvis/lvis_v1_train_norare_cat_info.json", "metadata/lvis_v1_train_cat_norare_info.json")
PAIRS = "cc3m/train_image_info.json"
EMBEDDINGS = """\
Class embeddings, if you have none yet:
  python tools/build_text_embeddings.py classes --dataset lvis --prompt a \\
      --output {root}/metadata/lvis_v1_clip_a+cname.npy"""


def remove_rare(instances: dict) -> dict:
    """``instances`` without the annotations of rare classes; images, categories and all ids stay."""
    rare = {category["id"] for category in instances["categories"] if category["frequency"] == "r"}
    return instances | {"annotations": [a for a in instances["annotations"] if a["category_id"] not in rare]}


def tag_pairs(pairs: dict, categories: list[dict]) -> dict:
    """Detic's caption file: the pairs whose first caption names a class, with its ``pos_category_ids``."""
    find_tags, images = tags.released_rule(tags.lvis_table()), []
    for image in tqdm(pairs["images"], desc="tags of captions", unit="image"):
        if found := find_tags(texts_of(image.get("captions"))[:1]):
            images.append(image | {"pos_category_ids": found})
    return {"images": images, "categories": categories, "annotations": []}


def read_instances(path: Path, part: str) -> dict:
    """The content of an LVIS v1 file. UserError if it is not LVIS v1, or is complete and counts disagree."""
    from clim.data.categories import LVIS_RARE_IDS  # takes seconds: Detectron2 imports torch

    content = ovcoco.read_whole(path, kind=ovcoco.Instances, remedy=DOWNLOAD)
    categories = content["categories"]
    rare = tuple(sorted(category["id"] for category in categories if category.get("frequency") == "r"))
    if len(categories) != 1203 or rare != LVIS_RARE_IDS:
        counts = f"{len(categories) - len(rare)} base and {len(rare)} rare classes instead of 866 and 337"
        raise UserError(f"{path} is not LVIS v1 ({counts}): {DOWNLOAD}")
    if part == "train" and len(content["images"]) == FULL_SET[part]:
        said = [(category["name"], category.get("image_count")) for category in categories]
        wrong = sorted(set(said) - {(row["name"], row["image_count"]) for row in ovcoco.category_info(content)})
        if wrong:
            raise UserError(
                f"{path} has all {FULL_SET[part]:,} images, but class {wrong[0][0]} is not on {wrong[0][1]:,} of them, "
                f"as the file says: {DOWNLOAD}"
            )
    return content


def find(source: Path, name: str, *folders: str) -> Path | None:
    """``name`` in the first of these folders of the source that has it."""
    return next((source / folder / name for folder in folders if (source / folder / name).exists()), None)


def link(source: Path, output: Path, *, copy: bool) -> dict[str, Path]:
    """Link or copy what is taken as it is. Returns {path below output: original} of the jsons."""
    jsons = {f"lvis/lvis_v1_{part}.json": find(source, f"lvis_v1_{part}.json", "lvis", ".") for part in PARTS}
    photos = {f"coco/{part}2017": find(source, f"{part}2017", "coco", ".") for part in PARTS}
    for name, original in jsons.items():
        if original is None:
            raise UserError(f"--source {source} lacks {name}: {DOWNLOAD}")
    for name, original in photos.items():
        if original is None and not (output / name).is_dir():
            raise UserError(f"--source {source} lacks {name}, and so does --output {output}: {PHOTOS}")
    jsons |= {PAIRS: find(source, PAIRS, ".")}
    for name, original in (jsons | photos | {"cc3m/training": find(source, "cc3m/training", ".")}).items():
        if original is not None and original != output.resolve() / name:
            print(f"{output / name}: {ovcoco.place(original, output / name, copy=copy)}")
    return {name: original for name, original in jsons.items() if original is not None}


def contents(jsons: dict[str, Path], *, kept: set[str]) -> dict[str, Callable[[], dict | list]]:
    """{path below the data root: function that builds its content}, without the files ``kept`` as they are."""
    train, val = (read_instances(jsons[f"lvis/lvis_v1_{part}.json"], part) for part in PARTS)
    base = remove_rare(train)
    made: dict[str, Callable] = {"lvis/lvis_v1_train_norare.json": lambda: base}
    made |= {name: partial(ovcoco.category_info, train) for name in COUNTS}
    made |= {name: partial(ovcoco.category_info, base) for name in BASE_COUNTS}
    if PAIRS in jsons:
        pairs = partial(ovcoco.read_whole, jsons[PAIRS], kind=WholeNumberedPairFile, remedy=GET_CC3M)
        made[PAIRS.replace(".json", "_tags.json")] = lambda: tag_pairs(pairs(), val["categories"])
    for part, content in zip(PARTS, (train, val), strict=True):
        count, full = len(content["images"]), FULL_SET[part]
        print(f"{part}: {count:,} images, {'complete' if count == full else f'a part of the {full:,} of LVIS v1'}")
    return {name: build for name, build in made.items() if name not in kept}


def prepare(source: Path, output: Path, *, copy: bool = False) -> dict[str, dict]:
    """Write all files below ``output``. Returns {path below output: counts and sha256} of the jsons.

    Raises UserError if the source is incomplete or not LVIS v1, or the output is read-only or in the source.
    """
    source = source.resolve()
    for folder in ("lvis", "coco", "cc3m", "metadata"):
        ovcoco.require_writable(output / folder, source, in_place=output.resolve() == source)
    stamp = output / "lvis" / STAMP
    kept = {name for name in (COUNTS[1], BASE_COUNTS[1]) if (output / name).exists()} - set(ovcoco.written_by(stamp))
    for name in sorted(kept):
        print(f"{output / name}: kept the file that is there")
    return ovcoco.write_all(contents(link(source, output, copy=copy), kept=kept), output, stamp=stamp)


def main(arguments: list[str] | None = None) -> None:
    parser = ovcoco.new_parser(__doc__, source="LVIS v1, COCO's images and CC3M", folders="lvis/ and cc3m/")
    args = parser.parse_args(arguments)
    print(ovcoco.report(prepare(args.source, args.output, copy=args.copy), below=f"{args.output}/"))
    print(EMBEDDINGS.format(root=args.output))


if __name__ == "__main__":
    run_cleanly(main)

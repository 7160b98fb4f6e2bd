"""Make OV-COCO's files from COCO 2017: Detic's zero-shot splits, CLIM's base/novel files, captions with tags.

    python datasets/prepare_ovcoco.py --source /path/to/coco --output datasets

``--source`` holds annotations/{instances_train2017,instances_val2017,captions_train2017}.json, train2017/ and val2017/.
The script only reads it. ``--output`` becomes the data root (DETECTRON2_DATASETS); it may be the source's parent. A
second run with the same input changes nothing.
"""

import argparse
import filecmp
import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from msgspec import Struct
from tabulate import tabulate
from tqdm import tqdm

import tags
from clim.data.schemas import Annotation, Caption, Category, File
from clim.errors import UserError, run_cleanly
from clim.files import data_root, read_json, replacing, write_json
from clim_commands.inputs import Parser, output_folder
from clim_commands.pairs import NumberedPairFile, captions_by_image

DOWNLOAD = "get COCO 2017 from https://cocodataset.org/#download"
ANNOTATIONS = ("instances_train2017.json", "instances_val2017.json", "captions_train2017.json")
OPTIONAL_ANNOTATIONS = ("captions_val2017.json",)
IMAGE_FOLDERS = ("train2017", "val2017")
STAMP = ".prepare_ovcoco.json"  # a Stamp
COUNTED = ("images", "annotations", "categories")

# Images of the complete set -> images left by the split (OVR-CNN, Detic): 48 classes of train, 65 of val.
FULL_SET = {"train": (118_287, 107_761), "val": (5_000, 4_836)}

# The released rule knows only LVIS's words; the other rule also knows COCO's names.
RULES = {"released": (tags.released_tags, tags.lvis_words), "words": (tags.word_tags, tags.all_words)}


class Text(Caption):
    """An annotation of COCO's captions, each with a caption."""

    caption: str


class Instances(File[Annotation]):
    """COCO's boxes, or LVIS's."""

    categories: list[Category]


class Stamp(Struct):
    """The files below the output that this script has written, and may replace."""

    files: list[str]


def keep_classes(instances: dict, ids: Collection[int], *, drop_empty_images: bool) -> dict:
    """COCO's instances with the annotations of ``ids`` only, crowds included, all ids unchanged.

    ``drop_empty_images`` removes images without such an annotation (OVR-CNN's split); CLIM keeps all images.
    """
    annotations = [a for a in instances["annotations"] if a["category_id"] in ids]
    images = instances["images"]
    if drop_empty_images:
        shown = {a["image_id"] for a in annotations}
        images = [image for image in images if image["id"] in shown]
    return instances | {"images": images, "annotations": annotations}


def list_classes(instances: dict, ids: Collection[int]) -> dict:
    """``instances`` with the ``categories`` of ``ids`` only, each with OVR-CNN's ``split``."""
    from clim.data.categories import BASE_IDS  # takes seconds: Detectron2 imports torch

    categories = [
        category | {"split": "seen" if category["id"] in BASE_IDS else "unseen"}
        for category in instances["categories"]
        if category["id"] in ids
    ]
    return instances | {"categories": categories}


def category_info(instances: dict) -> list[dict]:
    """COCO's 80 categories with ``image_count`` and ``instance_count`` (crowds counted), zeros included."""
    annotations = instances["annotations"]
    instance_count = Counter(a["category_id"] for a in annotations)
    image_count = Counter(key for key, _ in {(a["category_id"], a["image_id"]) for a in annotations})
    return [
        category | {"image_count": image_count[category["id"]], "instance_count": instance_count[category["id"]]}
        for category in instances["categories"]
    ]


def tag_captions(captions: dict, categories: list[dict], *, rule: str) -> dict:
    """Detic's caption file: the images with a tag, each with its ``captions`` and ``pos_category_ids``."""
    find, words = RULES[rule][0], RULES[rule][1]()
    by_image, images = captions_by_image(captions), []
    for image in tqdm(captions["images"], desc="tags of captions", unit="image"):
        texts = by_image.get(image["id"], [])
        if found := find(texts, words):
            images.append(image | {"captions": texts, "pos_category_ids": found})
    listed = [category | {"synonyms": list(words[category["id"]]), "frequency": "f"} for category in categories]
    return {"images": images, "categories": listed, "annotations": []}


def check_full_set(part: str, instances: dict, split: dict) -> None:
    """Raise UserError if complete COCO gives another number of images than the published split."""
    full, expected = FULL_SET[part]
    if len(instances["images"]) == full and len(split["images"]) != expected:
        raise UserError(
            f"{part}2017 has all {full:,} images but the split keeps {len(split['images']):,} instead of "
            f"{expected:,}: the annotations are not COCO 2017's; {DOWNLOAD}"
        )


def find_source(source: Path) -> Path:
    """``source``, resolved. Raises UserError if a file or folder is missing."""
    needed = [f"annotations/{name}" for name in ANNOTATIONS] + list(IMAGE_FOLDERS)
    missing = [name for name in needed if not (source / name).exists()]
    if missing:
        hint = DOWNLOAD
        if all((source / "coco" / name).exists() for name in needed):
            hint = f"did you mean --source {source / 'coco'}?"
        raise UserError(f"--source {source} lacks {', '.join(missing)}: {hint}")
    return source.resolve()


def read_whole(path: Path, *, kind: type, remedy: str) -> dict:
    """Content of a json that fits ``kind``, with all its keys."""
    read_json(path, kind=kind, remedy=remedy)
    return read_json(path, remedy=remedy)


def read_instances(path: Path) -> dict:
    """The content of a COCO instances file, with COCO's 80 categories by ascending id."""
    from clim.data.categories import COCO_CATEGORIES

    content = read_whole(path, kind=Instances, remedy=DOWNLOAD)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if [(category["id"], category["name"]) for category in categories] != list(COCO_CATEGORIES):
        raise UserError(f"{path} does not list COCO's 80 categories: {DOWNLOAD}")
    return content | {"categories": categories}


def require_writable(folder: Path, source: Path, *, in_place: bool) -> None:
    """Raise UserError if ``folder`` lies in a source elsewhere or is read-only."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"{existing} is no folder, or a link that leads to none: move it away")
    within = existing.resolve()
    if not in_place and within.is_relative_to(source):
        raise UserError(
            f"{existing} lies in the source {source}, which is only read: choose another --output "
            f"(the folder that holds the source works in place) or remove the link"
        )
    # The mode counts too: an administrator can write anywhere, but should not.
    anyone = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    if not (within.stat().st_mode & anyone and os.access(within, os.W_OK)):
        raise UserError(f"{existing} is read-only: choose another --output")


def place(original: Path, target: Path, *, copy: bool) -> str:
    """Link or copy a source file or folder to ``target``. An equal target stays."""
    if target.is_symlink():
        if target.exists() and target.resolve() != original.resolve():
            raise UserError(f"{target} is a link to another place than {original}: move it away")
        if target.exists() and not copy:
            return "linked already"
        target.unlink()  # the link alone: it leads nowhere, or becomes a copy
    elif target.is_dir():
        return "kept the folder that is there"
    elif target.exists():
        if filecmp.cmp(target, original, shallow=False):
            return "kept the same file"
        raise UserError(f"{target} is there already and differs from {original}: move it away")
    with replacing(target) as unfinished:
        if not copy:
            unfinished.symlink_to(original)
        elif original.is_dir():
            unfinished.mkdir()
            for file in tqdm(sorted(original.iterdir()), desc=f"copy {original.name}", unit="file"):
                shutil.copyfile(file, unfinished / file.name)
        else:
            shutil.copyfile(original, unfinished)
    return "copied" if copy else "linked"


def write_output(path: Path, content: dict | list, *, replace: bool) -> dict:
    """Write a file whole or not at all, if it changes. Returns its row of the report.

    Without ``replace``, other content is an error: it may come from the scripts of Detic or OVR-CNN.
    """
    data = json.dumps(content).encode()
    if not path.is_file() or path.read_bytes() != data:
        if os.path.lexists(path) and not (replace and path.is_file()):
            raise UserError(
                f"{path} is there already, differs and is not from this script: move it away or choose another --output"
            )
        with replacing(path) as unfinished:
            unfinished.write_bytes(data)
    sections = {"categories": content} if isinstance(content, list) else content
    counts = {key: len(sections[key]) if key in sections else None for key in COUNTED}
    return counts | {"sha256": hashlib.sha256(data).hexdigest()[:12]}


def prepare(source: Path, output: Path, *, rule: str = "released", copy: bool = False) -> dict[str, dict]:
    """Write all files below ``output/coco``. Returns {path below coco/: counts and sha256} of the jsons.

    Raises UserError if the source is incomplete or not COCO 2017, or the output is read-only or in the source.
    """
    source, coco = find_source(source), output / "coco"
    in_place = Path(os.path.realpath(coco)) == source
    for folder in (coco, coco / "annotations", coco / "zero-shot", coco / "wusize"):
        require_writable(folder, source, in_place=in_place)
    made = contents(source, rule=rule)
    if not in_place:
        names = [*IMAGE_FOLDERS, *(f"annotations/{name}" for name in ANNOTATIONS + OPTIONAL_ANNOTATIONS)]
        for name in names:
            if (source / name).exists():
                print(f"{coco / name}: {place(source / name, coco / name, copy=copy)}")
    return write_all(made, coco, stamp=coco / STAMP)


def write_all(made: dict[str, Callable[[], dict | list]], folder: Path, *, stamp: Path) -> dict[str, dict]:
    """Write the files of ``made`` below ``folder``; ``stamp`` lists those that this script may replace."""
    ours, files = written_by(stamp), {}
    for name, build in tqdm(made.items(), desc="json files", unit="file"):
        files[name] = write_output(folder / name, build(), replace=name in ours)
        if name not in ours:  # at once, so that a run after an interrupted one knows its files
            ours.append(name)
            write_json(stamp, {"files": ours})
    return files


def written_by(stamp: Path) -> list[str]:
    """The files that earlier runs of this script have written."""
    remedy = "remove it, and move away the files that the next call names"
    return read_json(stamp, kind=Stamp, remedy=remedy).files if os.path.lexists(stamp) else []


def report(files: dict[str, dict], *, below: str) -> str:
    """Counts and checksums as a table of files below the folder ``below``."""
    rows = [[name, *(row[key] for key in COUNTED), row["sha256"]] for name, row in files.items()]
    return tabulate(rows, headers=[f"below {below}", *COUNTED, "sha256"], intfmt=",")


def contents(source: Path, *, rule: str) -> dict[str, Callable[[], dict | list]]:
    """{path below coco/: function that builds its content}, after checking the published counts."""
    annotations = source / "annotations"
    train, val = (read_instances(annotations / f"instances_{part}2017.json") for part in ("train", "val"))
    made = split_files(train, val)
    captions = partial(
        read_whole, annotations / "captions_train2017.json", kind=NumberedPairFile[Text], remedy=DOWNLOAD
    )
    made["annotations/captions_train2017_tags_allcaps.json"] = lambda: tag_captions(
        captions(), val["categories"], rule=rule
    )
    return made


def split_files(train: dict, val: dict) -> dict[str, Callable[[], dict | list]]:
    """As :func:`contents`, of instances alone."""
    from clim.data.categories import BASE_IDS, NOVEL_IDS

    both = BASE_IDS + NOVEL_IDS
    train_seen = keep_classes(train, BASE_IDS, drop_empty_images=True)
    check_full_set("train", train, train_seen)
    val_parts = {
        name: (ids, keep_classes(val, ids, drop_empty_images=True))
        for name, ids in {"all": both, "seen": BASE_IDS, "unseen": NOVEL_IDS}.items()
    }
    check_full_set("val", val, val_parts["all"][1])

    made = {
        "zero-shot/instances_train2017_seen_2.json": partial(list_classes, train_seen, BASE_IDS),
        "zero-shot/instances_train2017_seen_2_oriorder.json": partial(dict, train_seen),
        "zero-shot/instances_train2017_seen_2_oriorder_cat_info.json": partial(category_info, train_seen),
    }
    for name, (ids, split) in val_parts.items():
        made[f"zero-shot/instances_val2017_{name}_2.json"] = partial(list_classes, split, ids)
        made[f"zero-shot/instances_val2017_{name}_2_oriorder.json"] = partial(dict, split)
    clims = {"train2017_base": (train, BASE_IDS), "val2017_base": (val, BASE_IDS), "val2017_novel": (val, NOVEL_IDS)}
    for name, (instances, ids) in clims.items():
        made[f"wusize/instances_{name}.json"] = partial(keep_classes, instances, ids, drop_empty_images=False)
    return made


def new_parser(doc: str, *, source: str, folders: str) -> argparse.ArgumentParser:
    """The options of all preparations; ``source`` says what that folder holds, ``folders`` what is written."""
    parser = Parser(description=doc.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--source", type=Path, required=True, help=f"folder of {source}, only read")
    add("--output", type=output_folder, default=str(data_root()), help=f"data root to write {folders} into")
    add("--copy", action="store_true", help="copy images and annotations instead of linking them")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__, source="plain COCO 2017", folders="coco/")
    parser.add_argument("--tag-rule", choices=sorted(RULES), default="released", help="how captions become tags")
    args = parser.parse_args(arguments)
    print(report(prepare(args.source, args.output, rule=args.tag_rule, copy=args.copy), below="coco/"))


if __name__ == "__main__":
    run_cleanly(main)

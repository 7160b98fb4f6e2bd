"""Merge folders that hold parts of COCO 2017 into one small COCO, with OV-COCO's files of it.

    python datasets/merge_coco.py --source /path/to/part /path/to/another --output datasets

A source holds annotations/instances_{train,val}2017.json, train2017/ and val2017/, and perhaps panoptic_train2017.json
or panoptic_val2017.json with the folder of its PNGs, beside the json or above. It is only read. A photo that several
sources hold counts once, as in the first of them. The output is a COCO of its own, ``coco_parts/`` in the data root:
photos are linked one by one, and the splits are those of prepare_ovcoco.py. A second run changes nothing.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

import prepare_ovcoco as ovcoco
from clim.data.schemas import PanopticFile
from clim.errors import UserError, run_cleanly
from clim.files import data_root
from clim_commands.inputs import Parser, output_folder

FOLDER = "coco_parts"
STAMP = ".merge_coco.json"  # an ovcoco.Stamp
PARTS = ("train2017", "val2017")
REMEDY = "give a folder with COCO's annotations"


def owners(contents: Sequence[dict]) -> dict[int, int]:
    """{image id: index of the first of COCO's jsons that lists it}."""
    owner: dict[int, int] = {}
    for number, content in enumerate(contents):
        owner = {image["id"]: number for image in content["images"]} | owner
    return owner


def merged(contents: Sequence[dict]) -> dict:
    """COCO's jsons as one, images by ascending id. Of an image in several, the first counts. Boxes get new ids."""
    owner, images, annotations = owners(contents), [], []
    for number, content in enumerate(contents):
        images += [image for image in content["images"] if owner[image["id"]] == number]
        annotations += [a for a in content["annotations"] if owner.get(a["image_id"]) == number]
    if annotations and "id" in annotations[0]:  # of boxes: sources may number theirs alike
        annotations = [a | {"id": i} for i, a in enumerate(annotations, start=1)]
    images.sort(key=lambda image: image["id"])
    return {"images": images, "annotations": annotations, "categories": contents[0]["categories"]}


def find_sources(sources: Sequence[Path]) -> list[Path]:
    """``sources``, resolved. Raises UserError if a file or folder is missing."""
    for source in sources:
        needed = [*(f"annotations/instances_{part}.json" for part in PARTS), *PARTS]
        if missing := [name for name in needed if not (source / name).exists()]:
            raise UserError(f"--source {source} lacks {', '.join(missing)}: {REMEDY}.")
    return [source.resolve() for source in sources]


def panoptic_folder(source: Path, part: str) -> Path | None:
    """The folder of the PNGs of a panoptic json, or None without that json. Raises UserError without the folder."""
    if not (source / f"annotations/panoptic_{part}.json").is_file():
        return None
    folders = [source / place / f"panoptic_{part}" for place in ("annotations", ".")]
    if found := next(filter(Path.is_dir, folders), None):
        return found
    raise UserError(f"{source}/annotations/panoptic_{part}.json needs its PNGs in {' or '.join(map(str, folders))}.")


def link_all(files: Mapping[str, Path], target: Path) -> None:
    """Link each file, {name: its folder}, in ``target``. UserError if one is missing."""
    for name, folder in tqdm(files.items(), desc=target.name, unit="link"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, but annotations of this source name it.")
        ovcoco.place(folder / name, target / name, copy=False)


def prepare(sources: Sequence[Path], output: Path) -> dict[str, dict]:
    """Write ``output/coco_parts``. Returns {path below it: counts and sha256} of the jsons, as prepare_ovcoco does."""
    sources, target = find_sources(sources), output / FOLDER
    for source in sources:
        ovcoco.require_writable(target, source, in_place=False)
    instances: dict[str, dict] = {}
    made: dict[str, Callable[[], dict | list]] = {}
    for part in PARTS:
        read = [ovcoco.read_instances(source / f"annotations/instances_{part}.json") for source in sources]
        instances[part], owner = merged(read), owners(read)
        made[f"annotations/instances_{part}.json"] = partial(dict, instances[part])
        photos = {image["file_name"]: sources[owner[image["id"]]] / part for image in instances[part]["images"]}
        if pngs := {source: folder for source in sources if (folder := panoptic_folder(source, part))}:
            files = [source / f"annotations/panoptic_{part}.json" for source in pngs]
            read = [ovcoco.read_whole(file, kind=PanopticFile, remedy=REMEDY) for file in files]
            segments, owner, folders = merged(read), owners(read), list(pngs.values())
            made[f"annotations/panoptic_{part}.json"] = partial(dict, segments)
            link_all(
                {a["file_name"]: folders[owner[a["image_id"]]] for a in segments["annotations"]},
                target / f"annotations/panoptic_{part}",
            )
            # Photos without a box may have segments.
            photos = {i["file_name"]: list(pngs)[owner[i["id"]]] / part for i in segments["images"]} | photos
        link_all(photos, target / part)
    train, val = ({image["id"] for image in content["images"]} for content in instances.values())
    if both := train & val:
        raise UserError(f"Image {min(both)} is in train2017 and in val2017 of the sources: give sources without it.")
    made |= ovcoco.split_files(instances["train2017"], instances["val2017"])
    return ovcoco.write_all(made, target, stamp=target / STAMP)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--source", type=Path, nargs="+", required=True, help="folders of parts of COCO 2017, only read")
    add("--output", type=output_folder, default=str(data_root()), help=f"data root to write {FOLDER}/ into")
    args = parser.parse_args(arguments)
    print(ovcoco.report(prepare(args.source, args.output), below=f"{FOLDER}/"))


if __name__ == "__main__":
    run_cleanly(main)

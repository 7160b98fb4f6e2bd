"""Prepare image-text pairs for DATASETS.CAPTIONS: an index of tar shards, or a pairs json from a TSV or a json.

    python tools/index_pairs.py shards --shards datasets/cc3m-wds --pattern "cc3m-train-*.tar" \\
        --output datasets/cc3m-wds/index
    python tools/index_pairs.py tsv --tsv pairs.tsv --images photos --output pairs.json
    python tools/index_pairs.py json --json datasets/coco/annotations/captions_train2017.json \\
        --nouns datasets/coco/VLDet/coco_nouns_4764.txt \\
        --output datasets/coco/VLDet/nouns_captions_train2017_4764tags_allcaps.json

Shards are tar files as img2dataset writes them (KEY.jpg, KEY.txt, perhaps KEY.json), also with .png or .webp. A pass
that was interrupted goes on with the next shard. A TSV has the lines FILE<TAB>CAPTION, FILE below the folder; its first
line may name the columns, as "caption<TAB>file". Several lines of a file are several captions. A json is COCO's
captions, Conceptual Captions as Detic's scripts write them, or another pairs json, whose tags are replaced.

Tags are the LVIS classes that a caption names or, for VLDet, the nouns of --nouns that it names. As in Detic, images
without a tag are left out (--keep-untagged keeps them). --tag-rule none makes no tags and keeps all images: train with
MODEL.METHOD.DETIC.TAG_WEIGHT 0.0.
"""

import argparse
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from arguments import listed_names, new_parser
from clim.data.schemas import texts_of
from clim.errors import UserError, run_cleanly
from clim.files import read_json, write_json
from clim_commands.inputs import output_file, output_folder, quiet_logging, require_other, workers
from clim_commands.pairs import WholeNumberedPairFile, captions_by_image

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from shards.build import Tagging

RULES = ("released", "tagger", "words", "none")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shards = commands.add_parser("shards", help='tar shards → an index, kind "shards" of DATASETS.OWN')
    add = shards.add_argument
    add("--shards", type=Path, required=True, help="their folder")
    add("--pattern", default="*.tar", help="names of the shards (%(default)s); **/*.tar: in sub-folders too")
    add("--output", type=output_folder, required=True, help="the folder of the index")
    add("--workers", type=workers, default=2, help="processes that read shards (%(default)s)")
    tsv = commands.add_parser("tsv", help='files and a TSV → a pairs json, kind "captions" of DATASETS.OWN')
    tsv.add_argument("--tsv", type=Path, required=True)
    tsv.add_argument("--images", type=Path, required=True, help="the folder of the images")
    tsv.add_argument("--output", type=output_file, required=True, help="the json")
    of_json = commands.add_parser("json", help='a json of captions → a pairs json, kind "captions" of DATASETS.OWN')
    of_json.add_argument("--json", type=Path, required=True)
    of_json.add_argument("--output", type=output_file, required=True, help="the json to write")
    for command in (shards, tsv, of_json):
        add = command.add_argument
        add("--nouns", type=Path, help="tags are these: a .txt with one a line, or the json of tools/parse_nouns.py")
        add("--tag-rule", choices=RULES, default="released", help="as in datasets/README.md (%(default)s)")
        add("--keep-untagged", action="store_true", help="keep images whose caption names no class")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    quiet_logging()
    {"shards": index_shards, "tsv": convert_tsv, "json": convert_json}[args.command](args)


def index_shards(args: argparse.Namespace) -> None:
    from shards.build import build_index

    try:
        names = sorted(str(path.relative_to(args.shards)) for path in args.shards.glob(args.pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"--pattern {args.pattern} is no pattern of files below --shards ({error}).") from error
    if not names:
        raise UserError(f"--shards {args.shards}: no file there is named {args.pattern}.")
    facts = build_index(args.shards, names, args.output, tagging=tagging_of(args), workers=args.workers)
    print(f"{args.output}: {facts['images']} image-text pairs of {len(names)} shards")
    print_skipped(facts["skipped"])


def convert_tsv(args: argparse.Namespace) -> None:
    from clim.data.formats import read_table
    from clim.data.images import UnreadableImage, image_size

    require_other(args.output, args.tsv, args.nouns)
    captions, tagging, skipped = read_table(args.tsv, remedy="correct --tsv"), tagging_of(args), Counter()
    images = []
    for number, (name, texts) in enumerate(tqdm(captions.items(), desc="images", unit="image"), start=1):
        found = list(tagging.tag(texts))
        if not found and not tagging.keep_untagged:
            skipped["no tag"] += 1
            continue
        try:
            height, width = image_size(str(args.images / name))
        except UnreadableImage as error:
            skipped[error.reason.partition(" (")[0]] += 1
            continue
        image = {"id": number, "file_name": name, "height": height, "width": width, "captions": texts}
        images.append(image | ({"pos_category_ids": found} if tagging.categories else {}))
    write_pairs(args.output, images, tagging, skipped, source=args.tsv)


def convert_json(args: argparse.Namespace) -> None:
    require_other(args.output, args.json, args.nouns)
    remedy = "give a json of captions"
    read_json(args.json, kind=WholeNumberedPairFile, remedy=remedy)
    content, tagging = read_json(args.json, remedy=remedy), tagging_of(args)  # with all keys
    images, skipped = tag_images(content, tagging)
    write_pairs(args.output, images, tagging, skipped, source=args.json)


def tag_images(content: Mapping, tagging: "Tagging") -> tuple[list[dict], Counter]:
    """(images with ``captions`` and the ids of their tags, {reason: number of images left out}).

    The captions of an image are its own, or COCO's "annotations". Images without a caption are left out.
    """
    apart, images, skipped = captions_by_image(content), [], Counter()
    for image in tqdm(content["images"], desc="images", unit="image"):
        captions = texts_of(image.get("captions")) or apart.get(image["id"], ())
        found = list(tagging.tag(captions))
        if not captions or not (found or tagging.keep_untagged):
            skipped["no tag" if captions else "no caption"] += 1
            continue
        image = image | {"captions": list(captions)}
        image.pop("pos_category_ids", None)
        images.append(image | ({"pos_category_ids": found} if tagging.categories else {}))
    if unknown := apart.keys() - {image["id"] for image in content["images"]}:
        skipped["captions of an image that is not listed"] = len(unknown)
    return images, skipped


def write_pairs(output: Path, images: list[dict], tagging: "Tagging", skipped: Counter, *, source: Path) -> None:
    if not images:
        raise UserError(f"{source} gives no image-text pair: {dict(skipped)}.")
    write_json(output, {"images": images, "categories": list(tagging.categories), "annotations": []})
    print(f"{output}: {len(images)} images with captions")
    print_skipped(skipped)


def tagging_of(args: argparse.Namespace) -> "Tagging":
    """The tagging of the command line: with its nouns, or with LVIS v1's categories by ascending id."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    from shards.build import NO_TAGS, Tagging

    if args.tag_rule == "none":
        return NO_TAGS
    if args.nouns:
        nouns = listed_names(args.nouns, remedy="--nouns takes a .txt with a noun a line, or a json with categories")
        return noun_tagging(nouns, args.tag_rule, keep_untagged=args.keep_untagged)
    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    names = [{"id": category["id"], "name": category["name"]} for category in categories]
    rule = rule_of(args.tag_rule, {category["id"]: tuple(category["synonyms"]) for category in categories})
    return Tagging(f"lvis {args.tag_rule}", names, rule, args.keep_untagged)


def noun_tagging(nouns: Sequence[str], rule: str, *, keep_untagged: bool) -> "Tagging":
    """Tags are nouns, with ids from 1 in the order of the list, so that id - 1 is the row of a noun's embedding.

    ``rule`` is one of RULES but "none". Categories have the form of VLDet's files (vldet §2).
    """
    from shards.build import Tagging

    of_noun = [{"name": n, "synonyms": [n], "frequency": "f", "supercategory": n} for n in nouns]
    categories = [{"id": i} | category for i, category in enumerate(of_noun, start=1)]
    table = {category["id"]: (category["name"],) for category in categories}
    checksum = zlib.crc32("\n".join(nouns).encode())
    return Tagging(f"{len(nouns)} nouns ({checksum:08x}) {rule}", categories, rule_of(rule, table), keep_untagged)


def rule_of(name: str, table: Mapping[int, Sequence[str]]):
    """The rule captions → ids of datasets/tags.py, made for ``table`` once."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
    import tags

    rules = {"released": tags.released_rule, "tagger": tags.tagger_rule, "words": tags.word_rule}
    return rules[name](table)


def print_skipped(skipped: dict[str, int]) -> None:
    for reason, number in skipped.items():
        print(f"  {number} left out: {reason}")


if __name__ == "__main__":
    run_cleanly(main)

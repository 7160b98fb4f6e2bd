"""Prepare image-text pairs for DATASETS.CAPTIONS: an index of tar shards, or a pairs json from a TSV.

    python tools/index_pairs.py shards --shards datasets/cc3m-wds --pattern "cc3m-train-*.tar" \\
        --output datasets/cc3m-wds/index
    python tools/index_pairs.py tsv --tsv pairs.tsv --images photos --output pairs.json

Shards are tar files as img2dataset writes them (KEY.jpg, KEY.txt, perhaps KEY.json), also with .png or .webp. A pass
that was interrupted goes on with the next shard. A TSV has the lines FILE<TAB>CAPTION, FILE below the folder; with a
first line "caption<TAB>file" the columns are exchanged. Several lines of a file are several captions.

Tags are the LVIS classes that a caption names. As in Detic, images without a tag are left out (--keep-untagged keeps
them). --tag-rule none makes no tags and keeps all images: train with MODEL.METHOD.DETIC.TAG_WEIGHT 0.0.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from arguments import new_parser
from clim.errors import UserError, run_cleanly
from clim.files import write_json
from clim_commands.inputs import quiet_logging

RULES = ("released", "words", "none")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shards = commands.add_parser("shards", help='tar shards → an index, kind "shards" of DATASETS.OWN')
    shards.add_argument("--shards", type=Path, required=True, help="their folder")
    shards.add_argument(
        "--pattern", default="*.tar", help="names of the shards (%(default)s); **/*.tar: in sub-folders too"
    )
    shards.add_argument("--output", type=Path, required=True, help="the folder of the index")
    shards.add_argument("--workers", type=int, default=2, help="processes that read shards (%(default)s)")
    tsv = commands.add_parser("tsv", help='files and a TSV → a pairs json, kind "captions" of DATASETS.OWN')
    tsv.add_argument("--tsv", type=Path, required=True)
    tsv.add_argument("--images", type=Path, required=True, help="the folder of the images")
    tsv.add_argument("--output", type=Path, required=True, help="the json")
    for command in (shards, tsv):
        command.add_argument(
            "--tag-rule", choices=RULES, default="released", help="as in datasets/README.md (%(default)s)"
        )
        command.add_argument("--keep-untagged", action="store_true", help="keep images whose caption names no class")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    quiet_logging()
    (index_shards if args.command == "shards" else convert_tsv)(args)


def index_shards(args: argparse.Namespace) -> None:
    from shards.build import build_index

    names = sorted(str(path.relative_to(args.shards)) for path in args.shards.glob(args.pattern))
    if not names:
        raise UserError(f"--shards {args.shards}: no file there is named {args.pattern}.")
    facts = build_index(args.shards, names, args.output, tagging=tagging_of(args), workers=args.workers)
    print(f"{args.output}: {facts['images']} image-text pairs of {len(names)} shards")
    print_skipped(facts["skipped"])


def convert_tsv(args: argparse.Namespace) -> None:
    from clim.data.images import UnreadableImage, image_size

    captions, tagging, skipped = read_tsv(args.tsv), tagging_of(args), Counter()
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
    if not images:
        raise UserError(f"{args.tsv} gives no image-text pair: {dict(skipped)}.")
    write_json(args.output, {"images": images, "categories": list(tagging.categories)})
    print(f"{args.output}: {len(images)} images with captions")
    print_skipped(skipped)


def read_tsv(path: Path) -> dict[str, list[str]]:
    """{file: its captions, none blank} in the order of the lines."""
    captions: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            order = (0, 1)
            for number, row in enumerate(rows, start=1):
                if number == 1 and row in (["caption", "file"], ["file", "caption"]):
                    order = row.index("file"), row.index("caption")
                    continue
                if len(row) != 2:
                    raise UserError(f"line {number} of {path} has {len(row)} columns: give FILE<TAB>CAPTION.")
                name, caption = (row[column] for column in order)
                if caption.strip():
                    captions.setdefault(name, []).append(caption)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tsv {path} cannot be read ({error}).") from error
    return captions


def tagging_of(args: argparse.Namespace):
    """The tagging of the command line, with LVIS v1's categories by ascending id."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    from shards.build import NO_TAGS, Tagging

    if args.tag_rule == "none":
        return NO_TAGS
    sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
    import tags

    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    table = tags.lvis_table()
    rule = tags.released_rule(table) if args.tag_rule == "released" else partial(tags.word_tags, table=table)
    names = [{"id": category["id"], "name": category["name"]} for category in categories]
    return Tagging(f"lvis {args.tag_rule}", names, rule, args.keep_untagged)


def print_skipped(skipped: dict[str, int]) -> None:
    for reason, number in skipped.items():
        print(f"  {number} left out: {reason}")


if __name__ == "__main__":
    run_cleanly(main)

"""Find each image's nearest neighbours by text or image: similar mosaic partners (CLIM paper, Table 2c).

    python tools/build_neighbours.py --dataset coco_caption_train_tags --by text --output neighbours_text.npy

Then train with INPUT.MOSAIC.PARTNERS neighbours_text.npy. Several data sets: name them in the config's order.
"""

import argparse
import time
from collections.abc import Sequence

from arguments import add_device, new_parser, usable_device
from clim.errors import UserError, run_cleanly
from clim_commands.inputs import count, output_file, workers
from clim_commands.outputs import read_note


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--dataset", nargs="+", required=True, help="caption data sets, as DATASETS.CAPTIONS")
    add("--by", choices=("text", "image"), required=True)
    add("--output", required=True, type=output_file, help="the .npy to write; a .json appears beside it")
    add("--k", type=count, default=64, help="neighbours an image (%(default)s)")
    name_help = "the tower: an open_clip model; for text also as MODEL.TEXT.NAME, for images also lite0 (%(default)s)"
    add("--name", default="ViT-B-32-quickgelu", help=name_help)
    add("--pretrained", default="openai", help="its weights: open_clip tag, file or hub name (%(default)s)")
    add("--cache", default="", help="for text: folder of caption embeddings, as MODEL.TEXT.CACHE")
    add_device(parser)
    add("--workers", type=workers, default=2, help="processes that decode images")
    args = parser.parse_args(argv)
    if args.output.suffix != ".npy":
        parser.error(f"--output {args.output}: give a name that ends in .npy")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.time()
    from detectron2.data import DatasetCatalog

    import clim.data.datasets  # noqa: F401  registers the data sets
    from clim.data.loader import caption_records
    from clim.data.partners import Facts
    from neighbours.search import compute_features, nearest, save_neighbours

    args.device = usable_device(args.device)
    remedy = "it does not come with neighbours, and would be replaced: move it away, or name another --output"
    read_note(args.output.with_suffix(".json"), kind=Facts, remedy=remedy)
    if unknown := [name for name in args.dataset if name not in DatasetCatalog]:
        raise UserError(f"--dataset {unknown[0]} is not registered; clim/data/datasets.py lists the names")
    records = caption_records(args.dataset)
    if len(records) < 2:
        raise UserError(f"{', '.join(args.dataset)} holds one image: neighbours need two or more")
    rows = nearest(compute_features(args, records).to(args.device), args.k)
    save_neighbours(args.output, rows, records=records, by=args.by, dataset=" + ".join(args.dataset))
    seconds = time.time() - started
    print(f"{args.output}: {rows.shape[1]} neighbours by {args.by} for {len(rows)} images, {seconds:.0f} s")


if __name__ == "__main__":
    run_cleanly(main)

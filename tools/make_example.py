"""Make the data of docs/worked_example.md: images with boxes in YOLO's format, photos with captions, and a video.

python tools/make_example.py --output example
"""

import argparse
import time

from arguments import new_parser
from clim.errors import run_cleanly
from clim.files import naming
from clim_commands.inputs import output_folder, whole, workers
from mini.example import SIZES, TOYS, build_example


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--output", type=output_folder, default="example", help="a new folder (%(default)s)")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--workers", type=workers, default=2, help="processes that draw")
    parser.add_argument("--sizes", type=whole, nargs=4, help=argparse.SUPPRESS)  # for tests: train, val, photos, frames
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args, start = parse(arguments), time.perf_counter()
    sizes = dict(zip((*SIZES, "frames"), args.sizes, strict=True)) if args.sizes else SIZES
    with naming(args.output):
        build_example(args.output, seed=args.seed, workers=args.workers, sizes=sizes)
    boxed, novel = (", ".join(toy.name for toy in TOYS if toy.novel is kind) for kind in (False, True))
    print(f"{sizes['train']} images with boxes of {boxed}; {sizes['val']} to test on, with boxes of {novel} too;")
    print(f"{sizes['photos']} photos with captions; a video. {args.output}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run_cleanly(main)

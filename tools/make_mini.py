"""Draw the mini benchmark (tools/mini).

python tools/make_mini.py --output datasets --seed 0
"""

import argparse
import time
from pathlib import Path

from arguments import new_parser
from clim.errors import run_cleanly
from mini.generate import DEFAULT_SIZES, build_mini


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("datasets"), help="the folder mini/ is made in")
    parser.add_argument("--seed", type=int, default=0)
    for split, number in DEFAULT_SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=number, help=f"images (default {number})")
    parser.add_argument("--novel-in-scenes", type=float, default=0.1, help="share of unlabelled novel objects")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    start = time.perf_counter()
    sizes = {f"num_{split}": getattr(args, split) for split in DEFAULT_SIZES}
    summary = build_mini(
        args.output, seed=args.seed, novel_in_scenes=args.novel_in_scenes, workers=args.workers, **sizes
    )
    for split, counts in summary["counts"].items():
        print(f"{split:<10}" + ", ".join(f"{number} {what}" for what, number in counts.items()))
    print(f"{args.output / 'mini'}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run_cleanly(main)

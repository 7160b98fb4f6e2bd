"""Draw the mini benchmark (tools/mini): mini OV-COCO, or mini OV-LVIS with masks, rare classes and tar shards.

python tools/make_mini.py --output datasets --seed 0
python tools/make_mini.py --output datasets --benchmark lvis
python tools/make_mini.py --output datasets --benchmark own   # a user's own boxes and pairs, for fine-tuning
python tools/make_mini.py --output datasets --benchmark factor   # pairs with objects of four sizes
"""

import argparse
import time

from arguments import new_parser
from clim.errors import UserError, run_cleanly
from clim_commands.inputs import number, output_folder, whole, workers
from mini import factor, generate, lvis, own

# {benchmark: (folder, function that draws it, function that finds nouns in its captions, default sizes)}
BENCHMARKS = {
    "coco": ("mini", generate.build_mini, generate.write_noun_pairs, generate.DEFAULT_SIZES),
    "lvis": ("mini_lvis", lvis.build_mini_lvis, lvis.write_noun_index, lvis.DEFAULT_SIZES),
    "own": ("mini_own", own.build_own, lambda root: None, own.DEFAULT_SIZES),
    "factor": ("mini_factor", factor.build_factor, lambda root: None, {"pairs": factor.DEFAULT_SIZES["pairs"]}),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    folder_help = "mini/, or mini_lvis/, … is made in it"
    parser.add_argument("--output", type=output_folder, default="datasets", help=folder_help)
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS), default="coco", help="default: %(default)s")
    parser.add_argument("--seed", type=whole, default=0)
    for split in generate.DEFAULT_SIZES:
        numbers = ", ".join(f"{name} {sizes[split]}" for name, (*_, sizes) in BENCHMARKS.items() if split in sizes)
        parser.add_argument(f"--{split}", type=whole, help=f"images (default: {numbers})")
    novel_help = "share of unlabelled novel objects in mini OV-COCO (default 0.1)"
    parser.add_argument("--novel-in-scenes", type=number(0, 1), help=novel_help)
    parser.add_argument("--workers", type=workers, default=2, help="processes that draw")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    start = time.perf_counter()
    folder, build, find_nouns, sizes = BENCHMARKS[args.benchmark]
    options = {f"num_{split}": getattr(args, split) for split in generate.DEFAULT_SIZES}
    options = {k: v for k, v in (options | {"novel_in_scenes": args.novel_in_scenes}).items() if v is not None}
    taken = {f"num_{split}" for split in sizes} | ({"novel_in_scenes"} if args.benchmark == "coco" else set())
    if others := sorted(options.keys() - taken):
        words = " and ".join("--" + name.removeprefix("num_").replace("_", "-") for name in others)
        raise UserError(f"--benchmark {args.benchmark} has no {words}.")
    summary = build(args.output, seed=args.seed, workers=args.workers, **options)
    find_nouns(args.output)
    for split, counts in summary["counts"].items():
        print(f"{split:<10}" + ", ".join(f"{number} {what}" for what, number in counts.items()))
    print(f"{args.output / folder}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run_cleanly(main)

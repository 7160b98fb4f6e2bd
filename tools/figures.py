"""Draw the paper's figures for any images, words and models: response maps (Figs. 3, 4), class maps (Fig. 5).

    python tools/figures.py responses --input photo.jpg --query "a dog" umbrella --boxes
    python tools/figures.py responses --input datasets/mini/pairs/00000[0-8].jpg --mosaic 3 --query rabbit --tile 1
    python tools/figures.py classes --input photos --names pascal_context --config-file A.yaml --weights A.pth B.pth

Models stand side by side. The default ones are the two of `make demo`. A model is a detector with a C4 head, or has an
image encoder. One --config-file serves several --weights, and the other way round; --weights "" takes those of the
config.

A response is the cosine of a location's embedding and a text's. Between the locations of the model's map it is
bilinear. Each map has its own colours, from its lowest to its highest value: compare where maps are high, not how high.
A ring marks the highest response. A detector's map is its head run on the whole image. A class map shows, for every
pixel, the class of the highest response.
"""

import argparse
from pathlib import Path

from arguments import CLASS_LISTS, PROMPTS, new_parser
from clim.errors import UserError, run_cleanly
from clim.sources import find_source
from clim_commands.inputs import add_overrides, count, output_file, quiet_logging, require_other


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (("responses", "cosine maps of texts"), ("classes", "a class for every pixel")):
        command = commands.add_parser(name, help=summary)
        add = command.add_argument
        add("--input", nargs="+", required=True, metavar="IMAGES", help="files, folders or globs")
        add("--output", type=output_file, default=f"output/figures/{name}.png", help="image (%(default)s)")
        add("--config-file", nargs="+", help="YAML of each model (the demo's)")
        add("--weights", nargs="+", help="checkpoint of each model (the demo's, else the config's)")
        add("--titles", nargs="+", help="of the models (from the names of files)")
        add("--prompt", choices=PROMPTS, help="what is read for a text (MODEL.VOCABULARY.PROMPT)")
        add("--size", type=count, help="px, longest side that a network sees (the config's size at test)")
        add("--panel", type=count, default=320, help="px, width of an image in the figure (%(default)s)")
        add("--small", action="store_true", help="256 colours: a PNG of a third of the bytes")
        if name == "responses":
            add("--query", nargs="+", default=[], metavar="TEXT", help="a row for each, and for each image")
            mosaic_help = "lay the first N x N images on one canvas; others stand alone"
            add("--mosaic", type=count, metavar="N", help=mosaic_help)
            add("--tile", type=count, nargs="+", help="tile of each query, outlined: 1 is the upper left one")
            add("--boxes", action="store_true", help="draw the best box for the query (detectors)")
        else:
            add("--names", default="pascal_context", help=f'{", ".join(CLASS_LISTS)}, "a,b,c" or a .txt (%(default)s)')
        add_overrides(command)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    quiet_logging()
    if args.output.suffix not in (".png", ".jpg"):
        raise UserError(f"--output {args.output}: name a .png or a .jpg.")
    images = find_source(args.input)
    if others := [image for image in images if not isinstance(image, Path)]:
        raise UserError(f"--input {others[0]} is no file: a figure shows files, folders and globs of images.")
    require_other(args.output, *images)
    from reports.figures import figure, save  # torch loads after wrong arguments are reported

    drawn = figure(args, images)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save(drawn, args.output, small=args.small)
    print(f"{args.output}: {drawn.shape[1]} x {drawn.shape[0]} px")


if __name__ == "__main__":
    run_cleanly(main)

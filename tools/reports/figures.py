"""The sheets of tools/figures.py: rows of response maps (CLIM, Figs. 3 and 4) and of class maps (Fig. 5).

``args`` are the arguments of that command; N images of any sizes, uint8 (H, W, 3) RGB.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from arguments import CLASS_LISTS, known_classes
from clim.data.images import UnreadableImage, read_image, resize
from clim.data.mosaic import compose, fit_cell, grid_cells, inward_anchors, place
from clim.engine import load_config
from clim.errors import UserError
from clim_commands import maps
from clim_commands.drawing import BLACK, class_colours
from clim_commands.inputs import read_names
from clim_commands.responder import Responder

from . import COMPARED, TITLES
from .sheet import GAP, Panel, class_legend, panel_size, response_legend, sheet

DEMO_CONFIGS = [f"configs/mini/{name}.yaml" for name in COMPARED]
DEMO_WEIGHTS = [f"output/demo/{name}/model_final.pth" for name in COMPARED]
# Texts come later and are not cached, so no data set has to exist.
NO_DATA = [
    "MODEL.TEXT.CACHE", "", "MODEL.VOCABULARY.NAMES", "['object']", "MODEL.OPEN_VOCAB.BASE_CLASSES", "",
    "DATASETS.TEST", "()",
]  # fmt: skip
SMALLEST_SHARE = 0.005  # of an image: classes with less are left out of the legend


def figure(args: argparse.Namespace, paths: list[Path]) -> np.ndarray:
    """The image of the command ``responses`` or ``classes`` for the images of ``paths``."""
    return {"responses": response_figure, "classes": class_figure}[args.command](args, paths)


def save(figure: np.ndarray, path: Path, *, small: bool) -> None:
    image = Image.fromarray(figure)
    if path.suffix == ".png":
        if small:  # Pillow dithers only towards a palette that it is given
            image = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        image.save(path, optimize=True)
    else:
        image.save(path, quality=92)


def response_figure(args: argparse.Namespace, paths: list[Path]) -> np.ndarray:
    queries = [query for query in args.query if query.strip()]
    if not queries:
        raise UserError('--query holds no text: name what to look for, such as --query "a dog".')
    check_mosaic(args, queries, paths)
    photos = [read(path) for path in paths]
    models = load_models(args)
    texts = {title: model.embed(queries) for title, model in models.items()}
    rows = []
    if args.mosaic:
        count = args.mosaic**2
        first = (args.config_file or DEMO_CONFIGS)[0]
        side = args.size or load_config(first, list(args.opts)).INPUT.MOSAIC.SIZE
        canvas, boxes = lay_mosaic(photos[:count], n=args.mosaic, side=side)
        tiles = boxes[np.array(args.tile) - 1] if args.tile else [None] * len(queries)
        rows += response_rows(canvas, queries, models, texts, tiles=tiles, size=canvas.shape[0], args=args)
        photos = photos[count:]
    for photo in photos:
        tiles = [None] * len(queries)
        rows += response_rows(photo, queries, models, texts, tiles=tiles, size=args.size, args=args)
    note = "each map from its own lowest to its own highest cosine; ring: highest response"
    if args.boxes:
        note += "; box: best detection of this text"
    legend = response_legend(**legend_layout(args, models), note=note)
    return sheet(rows, ["Image", *models], panel=args.panel, footer=legend)


def response_rows(photo, queries, models, texts, *, tiles, size, args) -> list[list[Panel]]:
    """A row for each query: the image, then the map of every model. ``tiles``: a box or None for each query."""
    found = {title: model(photo, texts[title], long_side=size) for title, model in models.items()}
    height, width = panel_size(*photo.shape[:2], panel=args.panel)
    small = resize(photo, (height, width))
    scale = np.array([width / photo.shape[1], height / photo.shape[0]] * 2)
    rows = []
    for q, (query, tile) in enumerate(zip(queries, tiles, strict=True)):
        tile = None if tile is None else tile * scale
        row = [Panel(small if tile is None else maps.outline(small, tile), f"“{query}”", strong=True)]
        for title, model in models.items():
            best = model.best_box(photo, texts[title][q], long_side=size) if args.boxes else None
            best = None if best is None else best * scale
            row.append(response_panel(small, found[title][q], tile=tile, best=best))
        rows.append(row)
    return rows


def response_panel(image: np.ndarray, cosines, *, tile, best) -> Panel:
    """One model's map (h, w) over the image; the boxes ``tile`` and ``best`` (or None) in its pixels."""
    response = maps.upsample(cosines[None], image.shape[:2])[0].numpy()
    point = maps.peak(cosines.numpy(), response.shape)
    text = f"cosine {cosines.min():.2f} to {cosines.max():.2f}"
    drawn = maps.overlay(image, maps.min_max(response))
    if best is not None:
        drawn = maps.outline(drawn, best, colour=BLACK, width=1)
    if tile is not None:
        drawn = maps.outline(drawn, tile)
        inside = tile[0] <= point[0] < tile[2] and tile[1] <= point[1] < tile[3]
        text += ", highest in the tile" if inside else ", highest elsewhere"
    return Panel(maps.mark_peak(drawn, point), text)


def lay_mosaic(images: Sequence[np.ndarray], *, n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Canvas (side, side, 3) of n x n images, row by row, and their boxes. Images keep their ratio, as in training."""
    cells = grid_cells(n, size=(side, side))
    sizes = [fit_cell(*p.shape[:2], cell=(c[3] - c[1], c[2] - c[0])) for p, c in zip(images, cells, strict=True)]
    boxes = place(np.array(sizes), cells, inward_anchors(n, np.random.default_rng(0)))
    resized = [resize(p, size).transpose(2, 0, 1) for p, size in zip(images, sizes, strict=True)]
    return np.ascontiguousarray(compose(resized, boxes, size=(side, side)).transpose(1, 2, 0)), boxes


def check_mosaic(args: argparse.Namespace, queries: list[str], paths: list[Path]) -> None:
    if args.mosaic and len(paths) < args.mosaic**2:
        raise UserError(f"--mosaic {args.mosaic} takes {args.mosaic**2} images, but --input names {len(paths)}.")
    tiles, last = args.tile or [], (args.mosaic or 0) ** 2
    if tiles and (len(tiles) != len(queries) or not all(1 <= tile <= last for tile in tiles)):
        raise UserError(
            f"--tile {' '.join(map(str, tiles))}: give --mosaic N, and one number from 1 to N x N for each of the "
            f"{len(queries)} texts of --query."
        )


def class_figure(args: argparse.Namespace, paths: list[Path]) -> np.ndarray:
    names = class_list(args.names)
    photos = [read(path) for path in paths]
    models = load_models(args)
    texts = {title: model.embed(names) for title, model in models.items()}
    colours = class_colours(len(names))
    rows, held, legend = [], np.zeros(len(names)), legend_layout(args, models)
    for path, photo in zip(paths, photos, strict=True):
        small = resize(photo, panel_size(*photo.shape[:2], panel=args.panel))
        row = [Panel(small, path.name)]
        for title, model in models.items():
            classes = maps.class_map(model(photo, texts[title], long_side=args.size), small.shape[:2])
            held = np.maximum(held, maps.shares(classes, len(names)))
            painted = maps.paint(small, classes, colours)
            row.append(Panel(maps.name_regions(painted, classes, names, size=legend["size"])))
        rows.append(row)
    shown = np.flatnonzero(held >= SMALLEST_SHARE)
    rest = np.count_nonzero(held) - len(shown)
    note = f"and {rest} on less than {SMALLEST_SHARE:.1%} of any image" if rest else ""
    footer = class_legend([names[k] for k in shown], colours[shown], **legend, note=note)
    return sheet(rows, ["Image", *models], panel=args.panel, footer=footer)


def class_list(text: str) -> list[str]:
    """The names that --names stands for."""
    if names := known_classes(text):
        return names
    if "," not in text and not text.endswith(".txt"):
        known = ", ".join(CLASS_LISTS)
        raise UserError(f'--names {text!r} is none of {known}: name one, "a,b,c", or a .txt with a name a line.')
    return read_names(text, option="--names")


def load_models(args: argparse.Namespace) -> dict[str, Responder]:
    """{title: model}, in the order of the command line."""
    configs, weights = args.config_file or DEMO_CONFIGS, args.weights or [None]
    if args.config_file is None and args.weights is None:
        weights = DEMO_WEIGHTS
        if missing := [path for path in DEMO_WEIGHTS if not Path(path).is_file()]:
            raise UserError(f"{missing[0]} does not exist: train it with `make demo`, or name --weights.")
    count = max(len(configs), len(weights))
    if {len(configs), len(weights)} - {1, count}:
        raise UserError(
            f"{len(configs)} files after --config-file and {len(weights)} after --weights: give as many of both, or "
            "one of either."
        )
    configs, weights = (list(files) * (count // len(files)) for files in (configs, weights))
    titles = args.titles or model_titles(configs, weights)
    if len(set(titles)) != count:
        raise UserError(f"--titles holds {len(set(titles))} different names for {count} models: name each of them.")
    models = {}
    for title, config, path in zip(titles, configs, weights, strict=True):
        overrides = [*args.opts, *NO_DATA, *([] if path is None else ["MODEL.WEIGHTS", path])]
        models[title] = Responder(load_config(config, overrides), prompt=args.prompt)
    return models


def model_titles(configs: Sequence[str], weights: Sequence[str | None]) -> list[str]:
    """The names of configs, or folders of checkpoints, or checkpoints: the first that all differ."""
    stems = [Path(config).stem for config in configs]
    folders = [Path(path).parent.name if path else stem for path, stem in zip(weights, stems, strict=True)]
    files = [Path(path).name if path else stem for path, stem in zip(weights, stems, strict=True)]
    names = next((n for n in (stems, folders, files) if len(set(n)) == len(n)), None)
    names = names or [f"{stem} {i + 1}" for i, stem in enumerate(stems)]
    return [TITLES.get(name, name) for name in names]


def read(path: Path) -> np.ndarray:
    try:
        return read_image(path, fmt="RGB").image
    except UnreadableImage as error:
        raise UserError(f"--input {path}: {error.reason}.") from error


def legend_layout(args: argparse.Namespace, models) -> dict[str, int]:
    """Width of a legend below the image and the ``models``, and size of its letters, in px."""
    return {"width": (len(models) + 1) * (args.panel + GAP) - GAP, "size": max(round(args.panel / 22), 9)}

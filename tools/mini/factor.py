"""Image-text pairs whose objects are 1, 1.6, 2.5 or 4 times as large as those of mini OV-COCO's scenes.

Layout under ``root/mini_factor/``, with one set of files for each factor::

    x1/ x1.6/ x2.5/ x4/             JPEG images, 256 x 256, with one object each
    annotations/captions_x1.json    pairs with web-like captions, and the boxes of their objects
    annotations/held_out_x1.json    more pairs, for analysis
    summary.json                    written first, and last with the counts of the finished files

The factor is that of the geometric mean of the objects' longer sides. Image i has the same concept, captions and
background at every factor, and its object has the same colours, rotation and relative place. Only its size differs.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np

from clim.files import write_json
from mini.concepts import CONCEPTS, web_captions
from mini.generate import build_once, captions_of, coco_json, draw_splits, fill_caption_cache, save_image, set_up_mini
from mini.images import SCENE_SIDES, LabelledImage, draw, pair_background

VERSION = 1
FACTORS = (1.0, 1.6, 2.5, 4.0)
SPREAD = 1.12  # sides are drawn up to this factor below and above their mean: at factor 4 they fit into the image
DEFAULT_SIZES = {"pairs": 1500, "held_out": 200}
STREAM = 11  # of random numbers; the other mini sets have 0 to 10


def set_name(factor: float) -> str:
    """Folder of a factor: "x1.6"."""
    return f"x{factor:g}"


def draw_factor_pair(seed: int, index: int, factor: float) -> tuple[LabelledImage, list[str]]:
    """Pair ``index`` with its object at ``factor``, and its captions."""
    rng = np.random.default_rng((seed, STREAM, index))
    concepts = rng.integers(len(CONCEPTS), size=1)
    captions = web_captions(concepts, rng)
    mean = factor * math.sqrt(math.prod(SCENE_SIDES))
    return draw(pair_background(rng), concepts, rng, sides=(mean / SPREAD, mean * SPREAD)), captions


def build_factor(
    root: str | Path,
    *,
    seed: int = 0,
    num_pairs: int = DEFAULT_SIZES["pairs"],
    num_held_out: int = DEFAULT_SIZES["held_out"],
    workers: int = 2,
) -> dict:
    """Write the files above to ``root/mini_factor`` unless they are there already, and return their summary.

    The numbers of images are those of each factor. Arguments and summary as of :func:`mini.generate.build_mini`.
    """
    folder = Path(root) / "mini_factor"
    sizes = {set_name(factor): num_pairs + num_held_out for factor in FACTORS}
    arguments = {"seed": seed, "num_pairs": num_pairs, "num_held_out": num_held_out}

    def make() -> dict[str, dict[str, int]]:
        write = partial(_write_image, folder=folder, seed=seed)
        images, objects = draw_splits(sizes, write, workers=workers, what="pairs of four sizes")
        for name in sizes:
            for part, rows in (("captions", slice(num_pairs)), ("held_out", slice(num_pairs, None))):
                content = coco_json(images[name][rows], objects[name][rows], for_captions=True)
                write_json(folder / f"annotations/{part}_{name}.json", content)
        return {name: {"images": num_pairs, "held-out images": num_held_out} for name in sizes}

    return build_once(folder, version=VERSION, arguments=arguments, parts=(*sizes, "annotations"), make=make)


def _write_image(task: tuple[str, int], *, folder: Path, seed: int) -> tuple[str, dict, list[dict]]:
    """Draw an image and write its JPEG. Returns its folder, its entry and its annotation."""
    name, index = task
    drawn, captions = draw_factor_pair(seed, index, float(name[1:]))
    return name, *save_image(folder / name, index, drawn, captions, first_id=STREAM * 1_000_000)


def set_up_factor(root: Path, *, seed: int) -> None:
    """Make the files of configs/mini and configs/mini/factor.yaml under ``root``. Existing ones stay."""
    set_up_mini(root, seed=seed)
    build_factor(root, seed=seed)
    # The captions are the same at all factors.
    fill_caption_cache(root, captions_of(root / f"mini_factor/annotations/captions_{set_name(FACTORS[0])}.json"))

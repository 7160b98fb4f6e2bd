"""Draw the mini benchmark (tools/mini) and, on request, a contact sheet of it.

Usage: python tools/make_mini.py --output datasets --seed 0 [--preview output/mini.png]
"""

import argparse
import json
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from clim.errors import run_cleanly
from mini.generate import DEFAULT_SIZES, build_mini
from mini.images import CANVAS

COLUMNS = 6
CAPTION_HEIGHT = 44


def _cell(folder: Path, image: dict, text: str) -> np.ndarray:
    """The image with ``text`` in up to three lines below it."""
    shown = cv2.imread(str(folder / image["file_name"]))
    strip = np.full((CAPTION_HEIGHT, CANVAS, 3), 255, np.uint8)
    for line, words in enumerate(textwrap.wrap(text, 40)[:3]):
        cv2.putText(strip, words, (3, 12 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1)
    return np.vstack([shown, strip])


def _scene_cell(folder: Path, image: dict, objects: list[dict], names: dict[int, str]) -> np.ndarray:
    """The image with its annotated boxes and their category names."""
    cell = _cell(folder, image, f"{folder.name}/{image['file_name']}: {len(objects)} boxes")
    for o in objects:
        x, y, width, height = map(int, o["bbox"])
        cv2.rectangle(cell, (x, y), (x + width - 1, y + height - 1), (0, 255, 0), 1)
        place = (x, max(y - 3, 9))
        for colour, thickness in ((0, 0, 0), 3), ((255, 255, 255), 1):
            cv2.putText(cell, names[o["category_id"]], place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, colour, thickness)
    return cell


def _row(cells: list[np.ndarray]) -> np.ndarray:
    blank = np.full((CANVAS + CAPTION_HEIGHT, CANVAS, 3), 255, np.uint8)
    return np.hstack(cells + [blank] * (COLUMNS - len(cells)))


def contact_sheet(folder: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR: training and validation scenes with boxes, pairs and cluttered with a caption."""
    rows = []
    for split, name in ("train", "instances_train_base"), ("val", "instances_val_all"):
        content = json.loads((folder / "annotations" / f"{name}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects = defaultdict(list)
        for o in content["annotations"]:
            objects[o["image_id"]].append(o)
        shown = content["images"][:COLUMNS]
        rows.append(_row([_scene_cell(folder / split, i, objects[i["id"]], names) for i in shown]))
    for split in "pairs", "cluttered":
        content = json.loads((folder / "annotations" / f"captions_{split}_tags.json").read_text())
        shown = content["images"][:COLUMNS]
        rows.append(_row([_cell(folder / split, i, i["captions"][0]) for i in shown]))
    return np.vstack(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("datasets"), help="the folder mini/ is made in")
    parser.add_argument("--seed", type=int, default=0)
    for split, number in DEFAULT_SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=number, help=f"images (default {number})")
    parser.add_argument("--novel-in-scenes", type=float, default=0.1, help="share of unlabelled novel objects")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--preview", type=Path, help="write a contact sheet to this image file")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    start = time.perf_counter()
    summary = build_mini(
        arguments.output,
        seed=arguments.seed,
        **{f"num_{split}": getattr(arguments, split) for split in DEFAULT_SIZES},
        novel_in_scenes=arguments.novel_in_scenes,
        workers=arguments.workers,
    )
    for split, counts in summary["counts"].items():
        print(f"{split:<10}" + ", ".join(f"{number} {what}" for what, number in counts.items()))
    print(f"{arguments.output / 'mini'}: {time.perf_counter() - start:.1f} s")
    if arguments.preview:
        arguments.preview.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(arguments.preview), contact_sheet(arguments.output / "mini"))
        print(f"contact sheet: {arguments.preview}")


if __name__ == "__main__":
    run_cleanly(main)

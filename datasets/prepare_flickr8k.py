"""Make image-text pairs with COCO's classes as tags from Flickr8k.

    python datasets/prepare_flickr8k.py --source /path/to/flickr8k --output datasets

``--source`` holds one of

    Flicker8k_Dataset/, Flickr8k.token.txt    the original (the text file may lie in Flickr8k_text/)
    Images/, captions.txt                     Kaggle's: lines "image,caption"
    images/, captions.json                    pairs as Detic's jsons list them: images with "captions"

The script only reads it. Below ``--output``, ``flickr8k/images`` is a link to the photos and
``flickr8k/annotations/captions_tags.json`` lists those that are there, with all their captions and as tags the classes
of COCO that the captions name (the rule "words" of datasets/tags.py). A second run changes nothing.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import prepare_ovcoco as ovcoco
import tags
from clim.data.schemas import WholePairFile, texts_of
from clim.errors import UserError, run_cleanly
from clim.files import read_json, read_text

DOWNLOAD = "get Flickr8k, see datasets/README.md"
STAMP = ".prepare_flickr8k.json"  # an ovcoco.Stamp
SHOWN = 3  # names in a message


def original_captions(path: Path) -> Iterator[tuple[str, str]]:
    """(file name, caption) of lines "NAME.jpg#0<tab>CAPTION". Raises UserError for another line."""
    for number, line in lines_of(path):
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name:
            raise UserError(f'Line {number} of {path} is {line[:60]!r}, not "NAME#NUMBER<tab>CAPTION": {DOWNLOAD}')
        yield name.partition("#")[0], caption


def kaggle_captions(path: Path) -> Iterator[tuple[str, str]]:
    """(file name, caption) of a csv with the header "image,caption". Raises UserError for another line."""
    rows = csv.reader(io.StringIO(read_text(path, remedy=DOWNLOAD)))
    if (header := next(rows, [])) != ["image", "caption"]:
        raise UserError(f'{path} begins with {",".join(header)[:60]!r}, not "image,caption": {DOWNLOAD}')
    for row in filter(None, rows):
        if len(row) != 2:
            raise UserError(f"Line {rows.line_num} of {path} has {len(row)} columns instead of 2: {DOWNLOAD}")
        yield row[0], row[1]


def listed_captions(path: Path) -> Iterator[tuple[str, str]]:
    """(file name, caption) of a json of pairs. Raises UserError for a broken file."""
    for image in read_json(path, kind=WholePairFile, remedy=DOWNLOAD).images:
        yield from ((image.file_name or "", caption) for caption in texts_of(image.captions))


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines of a text file that are not empty."""
    numbered = enumerate(read_text(path, remedy=DOWNLOAD).splitlines(), start=1)
    return ((number, line) for number, line in numbered if line.strip())


# Folder of the photos, text file, its reader.
LAYOUTS = (
    ("Flicker8k_Dataset", "Flickr8k.token.txt", original_captions),
    ("Flicker8k_Dataset", "Flickr8k_text/Flickr8k.token.txt", original_captions),
    ("Images", "captions.txt", kaggle_captions),
    ("images", "captions.json", listed_captions),
)


def find_source(source: Path) -> tuple[Path, dict[str, list[str]]]:
    """The folder of the photos, and {file name: its captions}. Raises UserError for another layout or no caption."""
    for folder, text, read in LAYOUTS:
        if (source / folder).is_dir() and (source / text).is_file():
            captions: dict[str, list[str]] = {}
            for name, caption in read(source / text):
                if stripped := caption.strip():
                    captions.setdefault(name, []).append(stripped)
            if not captions:
                raise UserError(f"{source / text} holds no caption: {DOWNLOAD}")
            return (source / folder).resolve(), captions
    layouts = "; ".join(f"{folder}/ and {text}" for folder, text, _ in LAYOUTS)
    raise UserError(f"--source {source} holds none of: {layouts}. {DOWNLOAD[0].upper()}{DOWNLOAD[1:]}")


def pairs(photos: Path, captions: dict[str, list[str]]) -> dict:
    """The content of Detic's caption file: photos sorted by name, with captions and ``pos_category_ids``.

    A photo whose captions name no class is kept. Missing photos are left out and printed. Raises UserError if all are
    missing, or if a file is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    from clim.data.categories import COCO_CATEGORIES

    words, images, missing = tags.all_words(), [], []
    for name, texts in tqdm(sorted(captions.items()), desc="tags of captions", unit="image"):
        if not name or not (photos / name).is_file():
            missing.append(name)
            continue
        try:
            with Image.open(photos / name) as photo:  # this reads no pixels
                width, height = photo.size
        except UnidentifiedImageError as error:
            raise UserError(f"{photos / name} is no image: {DOWNLOAD}") from error
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        images[-1] |= {"captions": texts, "pos_category_ids": tags.word_tags(texts, words)}
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        print(f"left out {len(missing)} of {len(captions)} photos with captions, which {photos} lacks: {shown}")
    if not images:
        raise UserError(f"{photos} holds none of the photos with captions: {DOWNLOAD}")
    categories = [
        {"id": key, "name": name, "synonyms": list(words[key]), "frequency": "f"} for key, name in COCO_CATEGORIES
    ]
    return {"images": images, "annotations": [], "categories": categories}


def prepare(source: Path, output: Path, *, copy: bool = False) -> dict[str, dict]:
    """Write ``output/flickr8k``. Returns {path below it: counts and sha256} of the json, as prepare_ovcoco does.

    Raises UserError if the source has another layout, or the output is read-only or in the source.
    """
    photos, captions = find_source(source)
    target = output / "flickr8k"
    ovcoco.require_writable(target, source.resolve(), in_place=False)
    content = pairs(photos, captions)
    print(f"{target / 'images'}: {ovcoco.place(photos, target / 'images', copy=copy)}")
    return ovcoco.write_all({"annotations/captions_tags.json": lambda: content}, target, stamp=target / STAMP)


def main(arguments: list[str] | None = None) -> None:
    args = ovcoco.new_parser(__doc__, source="Flickr8k", folders="flickr8k/").parse_args(arguments)
    print(ovcoco.report(prepare(args.source, args.output, copy=args.copy), below="flickr8k/"))


if __name__ == "__main__":
    run_cleanly(main)

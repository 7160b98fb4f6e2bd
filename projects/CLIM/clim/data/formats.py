"""More formats of a user's own files: boxes of YOLO and Pascal VOC, captions in tables and in a file for each image.

Readers have the arguments and records of readers.py. Images lie anywhere below the image folder, and the file of
``a/b.jpg`` is ``a/b.txt`` or ``a/b.xml``. The header of each image gives its size.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from detectron2.structures import BoxMode
from tqdm import tqdm

from clim.errors import UserError
from clim.files import nfc, read_bytes, read_text
from clim.sources import IMAGES, files_below

from .captions import packed
from .images import UnreadableImage, image_size
from .readers import class_index, require_folder, warn_of_strays
from .records import PairRecords
from .schemas import Pair

logger = logging.getLogger(__name__)

# Names of columns, in lower case.
_FILE_COLUMNS = {"file", "file_name", "filename", "filepath", "image", "image_name", "path"}
_CAPTION_COLUMNS = {"caption", "comment", "description", "sentence", "text", "title"}


def find_images(folder: str | os.PathLike) -> list[str]:
    """Names of all images below ``folder``, relative to it and sorted. UserError if there is no folder or no image."""
    require_folder(folder)
    images = sorted(str(path.relative_to(folder)) for path in files_below(folder) if path.suffix.lower() in IMAGES)
    if not images:
        raise UserError(f"There is no image in {folder}: an image ends in {', '.join(sorted(IMAGES))}.")
    return images


def read_yolo(folder: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of YOLO's text files: a line is a class and x, y of the centre, width, height, in parts of the image.

    A line with more numbers is a polygon: its box counts. An image without a file has no box.
    """
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    def read(file: Path, height: int, width: int):
        lines = {i: line for i, line in enumerate(read_text(file, remedy=remedy).splitlines(), 1) if line.strip()}
        for i, line in lines.items():
            try:
                key = _check_line(line)
            except ValueError as error:
                raise UserError(f"line {i} of {file} is {line[:60]!r}: {error}: correct the line.") from error
            if key not in index:
                there = f"but names (or classes) has {len(index)}, which count from 0"
                raise UserError(f"line {i} of {file} has class {key}, {there}: add it to names, or correct the line.")
        found = yolo_annotations_to_detections(list(lines.values()), (width, height), with_masks=False)
        return found.xyxy, found.class_id.tolist()

    return _read_folder(folder, image_root, ".txt", read, index, remedy)


def _check_line(line: str) -> int:
    """The class of a line. ValueError for pixels and for key points, of which wrong boxes would be made."""
    key, *numbers = line.split()
    if not key.isdecimal():
        raise ValueError(f"the class {key!r} must be a number that counts from 0")
    numbers = list(map(float, numbers))
    if len(numbers) < 4 or (len(numbers) > 5 and len(numbers) % 2):
        raise ValueError(f"{len(numbers)} numbers follow the class, but 4 are a box, and pairs of x, y a polygon")
    if wrong := [number for number in numbers if not -0.1 <= number <= 1.1]:
        raise ValueError(f"{wrong[0]:g} is no part of an image's width or height, which lie between 0 and 1")
    if len(numbers) < 6 and min(numbers[2:4]) < 0:
        raise ValueError("a box has no negative width or height")
    return int(key)


def read_voc(folder: str, image_root: str, *, index: Mapping[str, int], remedy: str) -> list[dict]:
    """Boxes of Pascal VOC's xml files. An image without a file has no box."""
    from supervision.dataset.formats.pascal_voc import detections_from_xml_obj

    def read(file: Path, height: int, width: int):
        root = _voc_root(file)
        for thing in root.iterfind("object"):
            for polygon in thing.findall("polygon"):  # a damaged one would be drawn without end
                thing.remove(polygon)
            for low, high in (("xmin", "xmax"), ("ymin", "ymax")):  # supervision would exchange them
                if float(thing.findtext(f"bndbox/{low}", "nan")) > float(thing.findtext(f"bndbox/{high}", "nan")):
                    raise ValueError(f"{low} of an object is larger than its {high}")
        found, names = detections_from_xml_obj(root, [], (1, 1))
        return found.xyxy, [nfc(names[i].strip()) for i in found.class_id]

    return _read_folder(folder, image_root, ".xml", read, index, remedy)


def voc_classes(folder: str | os.PathLike) -> set[str]:
    """The names of all objects in the xml files below ``folder``. UserError for a broken file."""
    roots = map(_voc_root, sorted(Path(folder).rglob("*.xml")))
    return {nfc(name.text.strip()) for root in roots for name in root.iterfind("object/name") if name.text}


def _voc_root(file: Path) -> Element:
    """The first element of a file. UserError for a broken file, another kind of xml, and harmful entities."""
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(read_bytes(file, remedy="correct the file."))
    except (LookupError, SyntaxError, ValueError) as error:  # an unknown encoding, a broken file, an entity
        raise UserError(f"{file} cannot be read ({error}): correct the file.") from error
    if root.tag != "annotation":
        raise UserError(f"{file} begins with <{root.tag}> in place of <annotation>: correct the file.")
    return root


def _read_folder(folder: str, image_root: str, suffix: str, read: Callable, index: Mapping, remedy: str) -> list[dict]:
    """The records of all images; ``read``: (file, height, width) → boxes (N, 4) xyxy in px, N classes of ``index``."""
    records, unreadable, labelled = [], [], 0
    for number, name in enumerate(tqdm(find_images(image_root), desc=f"boxes of {folder}", unit="image", leave=False)):
        image, file = os.path.join(image_root, name), Path(folder, name).with_suffix(suffix)
        try:
            height, width = image_size(image)
        except UnreadableImage as error:
            unreadable.append(error)
            continue
        annotations = []
        if os.path.lexists(file):
            labelled += 1
            try:
                boxes, classes = read(file, height, width)
            except ValueError as error:
                raise UserError(f"{file} cannot be read ({error}): correct the file.") from error
            for (x0, y0, x1, y1), key in zip(boxes.tolist(), classes, strict=True):
                annotation = {"bbox": [x0, y0, x1 - x0, y1 - y0], "bbox_mode": BoxMode.XYWH_ABS}
                annotations.append(annotation | {"category_id": class_index(key, index, "the name of an object", file)})
        size = {"height": height, "width": width}
        records.append({"file_name": image, "image_id": number, "annotations": annotations} | size)
    if unreadable:
        logger.warning(f"{image_root}: skipped {len(unreadable)} unreadable images, first {unreadable[0]}")
    warn_of_strays(records, folder)
    if not labelled:
        raise UserError(f"No image of {image_root} has a {suffix} file in {folder}: {remedy}")
    number = sum(len(record["annotations"]) for record in records)
    without = len(records) - labelled
    logger.info(f"Loaded {len(records)} images ({without} without a file) with {number} boxes from {folder}")
    return records


def read_caption_table(file: str, image_root: str, *, remedy: str, **_) -> PairRecords:
    """Image-text pairs of a table, see :func:`read_table`."""
    return _pairs(read_table(file, remedy=remedy), file, image_root, remedy)


def read_caption_files(folder: str, image_root: str, *, remedy: str, **_) -> PairRecords:
    """Image-text pairs of text files: each line of ``a/b.txt`` is a caption of ``a/b.jpg``."""
    files = ((name, Path(folder, name).with_suffix(".txt")) for name in find_images(image_root))
    captions = {name: read_text(file, remedy=remedy).splitlines() for name, file in files if file.is_file()}
    return _pairs(captions, folder, image_root, remedy)


def _pairs(captions: Mapping[str, list[str]], source: str, image_root: str, remedy: str) -> PairRecords:
    require_folder(image_root)
    pairs = (Pair(i, name, captions=texts) for i, (name, texts) in enumerate(captions.items()))
    return packed(pairs, source, image_root=image_root, remedy=remedy)


def read_table(path: str | os.PathLike, *, remedy: str) -> dict[str, list[str]]:
    """{image file: its captions, none blank}, in the order of the lines.

    Columns are separated by tabs, commas, "|" or ";", the first of these that the first line has. They are file and
    caption, unless the first line names them, e.g. "image,caption"; with "," and ";" it must. Flickr8k's "name.jpg#0"
    is file name.jpg.
    """
    text = read_text(path, remedy=remedy)
    heading = text.partition("\n")[0]
    separator = next((s for s in "\t,|;" if s in heading), "\t")
    quoting = csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
    captions: dict[str, list[str]] = {}
    file, caption, columns, first, last = 0, 1, 2, 1, 0  # first and last line of a row
    try:
        for row in rows:
            first, last = last + 1, rows.line_num
            if not row:
                continue
            if first == 1:
                names = [name.strip().lower() for name in row]
                places = [[i for i, n in enumerate(names) if n in k] for k in (_FILE_COLUMNS, _CAPTION_COLUMNS)]
                if all(places):
                    (file, *_), (caption, *_), columns = *places, len(row)
                    continue
                if separator in ",;":
                    header = f"image{separator}caption"
                    raise UserError(f'The first line of {path} does not name the columns: write "{header}" there.')
            if len(row) != columns:
                form = "FILE<TAB>CAPTION" if columns == 2 and separator == "\t" else f"{columns} as the first line"
                raise UserError(f"line {first} of {path} has {len(row)} columns: give {form}.")
            if not row[file].strip():
                raise UserError(f"line {first} of {path} names no file: name the image of the caption.")
            if row[caption].strip():
                name = re.sub(r"(\.\w+)#\d+$", r"\1", row[file].strip())
                captions.setdefault(name, []).append(row[caption].strip())
    except csv.Error as error:
        raise UserError(f"line {last + 1} of {path} cannot be read ({error}): {remedy}") from error
    return captions

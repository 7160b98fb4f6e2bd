"""Images: damaged bytes, other depths, turned, elongated, huge; things in their place; odd names."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from .damage import BYTES, PLACES, edited, edits, flipped, put
from .entries import DETECTOR, INSPECT, OWN, PHOTO_EVAL, PHOTO_PREDICT, PHOTO_TRAIN, PREDICT, TRAIN
from .runner import cases, ends, same, without

GREY, COLOUR, ONE, PAIR = (
    "own/photos/grey.png",
    "own/photos/colour.png",
    "own/images/1.jpg",
    "datasets/mini/pairs/000001.jpg",
)


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    image.save(file := io.BytesIO(), fmt, **options)
    return file.getvalue()


def turned(image: Image.Image, fmt: str) -> bytes:
    """Stored turned, with an orientation that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), fmt, exif=exif)


def of_array(fmt: str, change):
    """A grey image of another depth."""
    return lambda image: encoded(Image.fromarray(change(np.asarray(image))), fmt)


SOUND = {  # the same pixels in other files: all results are those of the twin
    "grey of 16 bits": (GREY, of_array("PNG", lambda a: a.astype(np.uint16) * 257)),
    "grey TIFF of 16 bits": (GREY, of_array("TIFF", lambda a: a.astype(np.uint16) * 257)),
    "grey TIFF of floats": (GREY, of_array("TIFF", lambda a: a.astype(np.float32) / 255)),
    "grey as colour": (GREY, lambda image: encoded(image.convert("RGB"), "PNG")),
    "a turned TIFF": (COLOUR, lambda image: turned(image, "TIFF")),
    "a turned PNG": (COLOUR, lambda image: turned(image, "PNG")),
    "BMP": (COLOUR, lambda image: encoded(image, "BMP")),
    "WebP without loss": (COLOUR, lambda image: encoded(image, "WEBP", lossless=True)),
    "a palette": (COLOUR, lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
    "opaque alpha": (COLOUR, lambda image: encoded(image.convert("RGBA"), "PNG")),
    "PPM": (COLOUR, lambda image: encoded(image, "PPM")),
    "broken EXIF": (COLOUR, lambda image: encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
}


def png(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, pixels = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(bytes(99))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


UNREADABLE = BYTES | {
    "a bomb": lambda data: png(60_000, 60_000), "no side": lambda data: png(0, 10),
    "half": lambda data: data[: len(data) // 2],
    "a PDF": lambda data: b"%PDF-1.4\n%%EOF", "an SVG": lambda data: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "an EPS": lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n",
}  # fmt: skip
# A side must not become 0.
LONG = {f"{w} x {h}": lambda data, size=(w, h): encoded(Image.new("RGB", size, (90, 60, 30)), "PNG")
        for w, h in ((3000, 11), (11, 3000), (1, 1))}  # fmt: skip
OVER = {"over JPEG's limit": lambda data: encoded(Image.new("RGB", (66_000, 12)), "PNG")}


def placed(file: str, *names: str) -> dict:
    return {f"{os.path.basename(file)}: {name}": PLACES[name](file) for name in names}


def named(name: str):
    """One more image, with this name."""
    return lambda world: put(world / "own/images" / name, (world / ONE).read_bytes())


def not_utf8(world):
    with open(bytes(world / "own/images") + b"/caf\xe9.jpg", "wb") as file:
        file.write((world / ONE).read_bytes())


def one_more(result, twin) -> bool:
    return len(result) == len(twin) + 1 and all(result[name] == value for name, value in twin.items())


CASES = []
for run in (PHOTO_PREDICT, PHOTO_EVAL, PHOTO_TRAIN):
    for why, (file, change) in SOUND.items():
        again = {why: edited(file, lambda data, change=change: change(Image.open(io.BytesIO(data))))}
        CASES += cases("images", run, again, handled=same)
for run in (PREDICT, DETECTOR):  # the damaged image is named, the others are as in the twin
    CASES += cases("images", run, edits(ONE, UNREADABLE), "1.jpg", handled=without("1.jpg"), said=("1.jpg",))
    CASES += cases("images", run, edits(ONE, LONG), handled=without("1.jpg"))
    CASES += cases("images", run, placed(ONE, *PLACES), "1.jpg", handled=without("1.jpg"))
CASES += cases("images", PREDICT, edits(ONE, OVER), handled=without("1.jpg"))
# The last byte of a PNG belongs to the checksum of an empty part: without it, the image is whole.
PNG = {name: change for name, change in UNREADABLE.items() if name != "all but the last byte"}
for run in (PHOTO_EVAL, PHOTO_TRAIN):
    CASES += cases(
        "images", run, edits(GREY, PNG) | placed(GREY, *PLACES), "grey.png", handled=ends, said=("grey.png",)
    )
    CASES += cases("images", run, edits(GREY, LONG), "grey.png", handled=ends)
CASES += cases("images", TRAIN, edits(PAIR, UNREADABLE), "000001.jpg", handled=ends)
CASES += cases("images", INSPECT, placed(ONE, *PLACES), "1.jpg", handled=ends, said=("1.jpg",))
FLIPPED = {f"flipped bits {seed}": flipped(seed) for seed in range(6)}
for run in (PREDICT, DETECTOR, OWN["json"]):
    CASES += cases("images", run, edits(ONE, FLIPPED), handled=without("1.jpg", "captions/1.jpg"))
NAMES = ("newline\n.jpg", "ünï.jpg", "a b.jpg", "-rf.jpg", "%d.jpg", "x" * 240 + ".jpg")
CASES += cases("images", PREDICT, {f"named {name[:12]!r}": named(name) for name in NAMES}, handled=one_more)
CASES += cases(
    "images", PREDICT, {"a name that is no UTF-8": not_utf8}, "caf", handled=lambda r, t: r.items() >= t.items()
)
CASES += cases("images", INSPECT, {"a name that is no UTF-8": not_utf8}, "caf", handled=ends)

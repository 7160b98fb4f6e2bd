"""Images and videos: damaged bytes, other depths, turned, elongated, huge; things in their place; addresses."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from .damage import BYTES, PLACES, cut, edited, flipped, put
from .entries import DETECTOR, INSPECT, OWN, PHOTO_EVAL, PHOTO_PREDICT, PHOTO_TRAIN, PREDICT, TRAIN
from .runner import Case, ends, same, without

GREY, COLOUR = "own/photos/grey.png", "own/photos/colour.png"


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    image.save(file := io.BytesIO(), fmt, **options)
    return file.getvalue()


def again(change):
    """A function of the bytes of an image: those of ``change(image)``."""
    return lambda data: change(Image.open(io.BytesIO(data)))


def turned(image: Image.Image, fmt: str) -> bytes:
    """Stored turned, with an orientation that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), fmt, exif=exif)


def alpha(image: Image.Image) -> bytes:
    return encoded(image.convert("RGBA"), "PNG")


# The same pixels in other files: all results are those of the twin.
SOUND = {
    "grey of 16 bits": (GREY, lambda image: encoded(Image.fromarray(np.asarray(image).astype(np.uint16) * 257), "PNG")),
    "grey TIFF of 16 bits": (GREY, lambda image: encoded(Image.fromarray(np.asarray(image).astype(np.uint16) * 257), "TIFF")),
    "grey TIFF of floats": (GREY, lambda image: encoded(Image.fromarray(np.asarray(image).astype(np.float32) / 255), "TIFF")),
    "grey as colour": (GREY, lambda image: encoded(image.convert("RGB"), "PNG")),
    "a turned TIFF": (COLOUR, lambda image: turned(image, "TIFF")),
    "a turned PNG": (COLOUR, lambda image: turned(image, "PNG")),
    "BMP": (COLOUR, lambda image: encoded(image, "BMP")),
    "WebP without loss": (COLOUR, lambda image: encoded(image, "WEBP", lossless=True)),
    "a palette": (COLOUR, lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
    "opaque alpha": (COLOUR, alpha),
    "PPM": (COLOUR, lambda image: encoded(image, "PPM")),
    "broken EXIF": (COLOUR, lambda image: encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
}  # fmt: skip


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


UNREADABLE = {name: change for name, change in BYTES.items()} | {
    "a bomb": lambda data: png_header(60_000, 60_000), "no side": lambda data: png_header(0, 10),
    "half": cut(0.5), "a PDF": lambda data: b"%PDF-1.4\n%%EOF", "an EPS": lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n",
    "an SVG": lambda data: b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>',
}  # fmt: skip
# A side must not become 0.
LONG = {"3000 x 11": (3000, 11), "11 x 3000": (11, 3000), "1 x 1": (1, 1)}


def long(size):
    return lambda data: encoded(Image.new("RGB", size, (90, 60, 30)), "PNG")


def in_place(run, image: str, *, key: str, said: bool = True) -> list[Case]:
    """Damages of one image among others, which are as in the twin; it is named."""
    name = image.rpartition("/")[2]
    words = (name,) if said else ()
    damages = {why: edited(image, change) for why, change in UNREADABLE.items()}
    damages |= {
        why: PLACES[why](image) for why in ("a link to nothing", "a link to itself", "a FIFO", "/dev/zero", "a folder")
    }
    return [
        Case("images", f"{key} {why}", run, damage, (name,), without(name, f"train/{name}"), words)
        for why, damage in damages.items()
    ]


CASES = []
for run in (PHOTO_PREDICT, PHOTO_EVAL, PHOTO_TRAIN):
    for name, (file, change) in SOUND.items():
        CASES.append(Case("images", f"{name}", run, edited(file, again(change)), None, same))
CASES += in_place(PREDICT, "own/images/1.jpg", key="1.jpg:")
CASES += in_place(DETECTOR, "own/images/1.jpg", key="1.jpg:")
for why, change in UNREADABLE.items():
    CASES.append(
        Case("images", f"grey.png: {why}", PHOTO_EVAL, edited(GREY, change), ("grey.png",), ends, ("grey.png",))
    )
    CASES.append(
        Case("images", f"grey.png: {why}", PHOTO_TRAIN, edited(GREY, change), ("grey.png",), ends, ("grey.png",))
    )
    pair = "datasets/mini/pairs/000001.jpg"
    CASES.append(Case("images", f"pair: {why}", TRAIN, edited(pair, change), ("000001.jpg",), ends))
for why in ("a link to nothing", "a link to itself", "a FIFO", "/dev/zero", "a folder", "missing"):
    for run, image in ((PHOTO_EVAL, GREY), (PHOTO_TRAIN, GREY), (INSPECT, "own/images/1.jpg")):
        name = image.rpartition("/")[2]
        CASES.append(Case("images", f"{name}: {why}", run, PLACES[why](image), (name,), ends, (name,)))
for why, size in LONG.items():
    CASES.append(
        Case("images", f"1.jpg: {why}", PREDICT, edited("own/images/1.jpg", long(size)), None, without("1.jpg"))
    )
    CASES.append(
        Case("images", f"1.jpg: {why}", DETECTOR, edited("own/images/1.jpg", long(size)), None, without("1.jpg"))
    )
    CASES.append(Case("images", f"grey.png: {why}", PHOTO_EVAL, edited(GREY, long(size)), ("grey.png",), ends))
    CASES.append(Case("images", f"grey.png: {why}", PHOTO_TRAIN, edited(GREY, long(size)), ("grey.png",), ends))
CASES.append(
    Case(
        "images",
        "1.jpg: over JPEG's limit",
        PREDICT,
        edited("own/images/1.jpg", long((66_000, 12))),
        None,
        without("1.jpg"),
    )
)
for seed in range(6):
    for run, image in (
        (PREDICT, "own/images/1.jpg"),
        (DETECTOR, "own/images/1.jpg"),
        (OWN["json"], "own/images/1.jpg"),
    ):
        change = edited(image, flipped(seed))
        CASES.append(
            Case("images", f"1.jpg: flipped bits {seed}", run, change, None, without("1.jpg", "captions/1.jpg"))
        )
for name in ("newline\n.jpg", "ünï.jpg", "a b.jpg", "-rf.jpg", "%d.jpg", "x" * 240 + ".jpg"):

    def more(world, name=name):
        put(world / "own/images" / name, (world / "own/images/1.jpg").read_bytes())

    CASES.append(
        Case(
            "images",
            f"a file named {name[:12]!r}",
            PREDICT,
            more,
            None,
            lambda r, t: all(r[k] == t[k] for k in t) and len(r) == len(t) + 1,
        )
    )


def not_utf8(world):
    with open(bytes(world / "own/images") + b"/caf\xe9.jpg", "wb") as file:
        file.write((world / "own/images/1.jpg").read_bytes())


CASES.append(
    Case(
        "images", "a file name that is no UTF-8", PREDICT, not_utf8, ("caf",), lambda r, t: all(r[k] == t[k] for k in t)
    )
)
CASES.append(Case("images", "a file name that is no UTF-8", INSPECT, not_utf8, ("caf",), ends))

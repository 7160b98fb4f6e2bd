"""Decode and resize images; those of the web may be damaged, which raises :class:`UnreadableImage`.

At full size, ordinary files decode bit for bit as in ``detectron2.data.detection_utils.read_image``. But samples of
more than 8 bits are scaled (there: clipped), TIFFs are rotated once (there: twice), and damaged files are errors.
Only regular files are read: a pipe or a device would never end.
"""

import io
import os
import stat
from collections.abc import Mapping
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

MIN_SIDE = 10  # px, of image-text pairs; the CLIM release replaces smaller images too
MAX_PIXELS = 178_956_970  # PIL's limit for decompression bombs, which other libraries may lift
MAX_BYTES = 1 << 30  # of a file

_TURN = Image.Transpose
_UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
            6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}  # fmt: skip


class UnreadableImage(Exception):
    """An image that cannot be used; ``reason`` is short, e.g. ``"truncated"`` or ``"tiny (6x300)"``."""

    def __init__(self, file_name: str, reason: str):
        super().__init__(file_name, reason)  # unpickling needs both arguments
        self.file_name, self.reason = file_name, reason

    def __str__(self) -> str:
        return f"{self.file_name}: {self.reason}"


class Decoded(NamedTuple):
    """A decoded image and the size of the original."""

    image: np.ndarray  # uint8 (H', W', 3), contiguous and writable, smaller than the original with ``at_least``
    height: int  # of the upright original
    width: int


def read_image(
    file_name: str | os.PathLike, *, fmt: str = "BGR", at_least: tuple[int, int] | None = None, min_side: int = 1
) -> Decoded:
    """Decode an image to three 8-bit channels and turn it upright (EXIF). Detectron2's ``PathManager`` opens the file.

    ``fmt`` is "BGR" or "RGB". ``at_least`` is the (height, width) in px that the caller resizes to: a larger JPEG is
    decoded at 1/2, 1/4 or 1/8 of its size, which is faster and does not alias; no side becomes shorter than asked.
    UnreadableImage if a file is missing, damaged, no image or no regular file, or has over ``MAX_PIXELS`` or
    ``MAX_BYTES``, or a side under ``min_side`` px. Nothing here fetches addresses.
    """
    file_name = os.fspath(file_name)
    check_file(file_name)
    with _unreadable(file_name), PathManager.open(file_name, "rb") as file:
        data = file.read()
    return decode_image(data, file_name=file_name, fmt=fmt, at_least=at_least, min_side=min_side)


def check_file(file_name: str, *, most_bytes: float = MAX_BYTES) -> None:
    """UnreadableImage unless ``file_name`` is a regular file of at most ``most_bytes``, or a link to one.

    Images in shards pass, and no other address: ``PathManager`` would fetch it.
    """
    if file_name.startswith("tar://"):
        return
    with _unreadable(file_name):
        status = os.stat(file_name)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage(file_name, "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device")
    if status.st_size > most_bytes:
        raise UnreadableImage(file_name, "over 1 GB")


def decode_image(
    data: bytes, *, file_name: str, fmt: str = "BGR", at_least: tuple[int, int] | None = None, min_side: int = 1
) -> Decoded:
    """As :func:`read_image`, of the content of a file; ``file_name`` is for errors."""
    if fmt not in ("BGR", "RGB"):
        raise ValueError(f"fmt is 'BGR' or 'RGB', not {fmt!r}")
    if not data:
        raise UnreadableImage(file_name, "empty")
    ordinary = _decode_jpeg(data, fmt=fmt, at_least=at_least, min_side=min_side)
    if ordinary is not None:
        return ordinary
    with _unreadable(file_name), Image.open(io.BytesIO(data)) as opened:
        _check_size(opened, file_name, min_side)
        size = None
        if at_least is not None and opened.format in ("JPEG", "MPO"):
            # The decoder takes the smallest of its scales that is large enough. The stored image may be turned.
            size = _upright_size(opened)
            opened.draft(None, at_least[::-1] if size == opened.size[::-1] else at_least)
        rgb = to_rgb(opened, name=file_name)
        height, width = size or rgb.shape[:2]
    return Decoded(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if fmt == "BGR" else rgb.copy(), height, width)


def _decode_jpeg(data: bytes, *, fmt: str, at_least: tuple[int, int] | None, min_side: int) -> Decoded | None:
    """PIL's pixels of a sound JPEG that stands upright, in less time; None: PIL decides what becomes of it."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        usable = min(height, width) >= min_side and height * width <= MAX_PIXELS
        if not usable or space not in ("YCbCr", "Gray") or _may_be_turned(data):
            return None
        fits = min(height // at_least[0], width // at_least[1]) if at_least else 1
        shrink = next((scale for scale in (8, 4, 2) if scale <= fits), 1)  # as PIL's draft
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        return Decoded(simplejpeg.decode_jpeg(data, fmt, **least), height, width)
    except ValueError:  # also where it only warns
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an EXIF orientation other than upright, or metadata that cannot be read."""
    place = 2
    while data[place : place + 1] == b"\xff":
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:  # the pixels begin: there is none
            return False
        if marker == 0xE1:  # EXIF or XMP
            break
        place += 2 + length
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return _orientation(opened) != 1
    except Exception:
        return True


def to_rgb(image: Image.Image, *, name: str) -> np.ndarray:
    """uint8 (H, W, 3), upright, of a PIL image of any mode; it may be read-only. Raises UnreadableImage."""
    with _unreadable(name):
        _check_size(image, name)
        if image.format == "EPS":  # Ghostscript would run the file as a program
            raise UnreadableImage(name, "not an image (PostScript)")
        image.load()
        # PIL turns a TIFF in load() and removes its orientation. Asking a PNG for it loads it, and hides errors.
        orientation = _orientation(image)
        image = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        if image.mode == "F" or image.mode.startswith("I"):
            return np.repeat(_to_8_bit(np.asarray(image))[:, :, None], 3, axis=2)
        if "transparency" in image.info:  # RGB has none, and PIL would warn
            image = image.copy()
            del image.info["transparency"]
        return np.asarray(image.convert("RGB"))


def image_size(file: str | BinaryIO) -> tuple[int, int]:
    """(height, width) in px of the upright image, from the header of a file or an open file. Raises UnreadableImage."""
    if isinstance(file, str):
        check_file(file)
    with _unreadable(str(file)), Image.open(file) as opened:
        return _upright_size(opened)


def check_size(record: Mapping, decoded: Decoded) -> None:
    """UnreadableImage if the image does not have the size of its record, so that boxes would be wrong."""
    if (record["width"], record["height"]) != (decoded.width, decoded.height):
        reason = f"{decoded.width}x{decoded.height} px, but annotated as {record['width']}x{record['height']}"
        raise UnreadableImage(record["file_name"], reason)


def resize(image: np.ndarray, size_hw: tuple[int, int], *, into: np.ndarray | None = None) -> np.ndarray:
    """Resize an array (H, W) or (H, W, C) to ``size_hw`` = (height, width) in px; ``into`` is written to, if given.

    It is bilinear (cv2), as in the CLIM release, but averages areas if a side shrinks more than twofold, where cv2's
    bilinear kernel would alias: it reads 2 source pixels per axis at any scale.
    """
    height, width = size_hw
    shrink = max(image.shape[0] / height, image.shape[1] / width)
    method = cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=into, interpolation=method)


def paste(image: np.ndarray, part: np.ndarray, *, mirrored: bool) -> None:
    """:func:`resize` an image into a ``part`` (h, w, 3) of a canvas, left and right exchanged if ``mirrored``."""
    resized = resize(image, part.shape[:2], into=None if mirrored else part)
    if mirrored:
        cv2.flip(resized, 1, dst=part)


class _KeepsAPixel:
    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):  # otherwise the size stays
            resize.new_h, resize.new_w = max(1, resize.new_h), max(1, resize.new_w)
        return resize


class ResizeShortestEdge(_KeepsAPixel, T.ResizeShortestEdge):
    """Detectron2's, but both sides of a very long image keep a pixel; there, one becomes 0, which is an error."""


class ResizeScale(_KeepsAPixel, T.ResizeScale):
    """As :class:`ResizeShortestEdge`."""


def channels_first(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) → (3, H, W), contiguous."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Resize uint8 (H, W, 3) to longest side ``size`` and pad it with black on the right and below (CLIM release).

    Returns uint8 (size, size, 3) and the scale: boxes of ``image`` times it are boxes on the square. PIL's bicubic
    filter averages when it shrinks, like torchvision on PIL images.
    """
    height, width = image.shape[:2]
    new_height, new_width = letterbox_size(height, width, size)
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[:new_height, :new_width] = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    return square, size / max(height, width)


def letterbox_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) in px, at least 1, of a :func:`letterbox` image without padding."""
    scale = size / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


@contextmanager
def _unreadable(name: str):
    """In the block, what PIL raises for damaged bytes (struct.error, KeyError, …) becomes UnreadableImage.

    Truncated files raise errors, too, even if another library has set PIL to fill the missing part with grey.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(name, _reason(error)) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_size(image: Image.Image, name: str, min_side: int = 1) -> None:
    width, height = image.size
    if min(height, width) < min_side:
        raise UnreadableImage(name, f"tiny ({width}x{height})")
    if height * width > MAX_PIXELS:
        raise UnreadableImage(name, f"too large ({width}x{height})")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image that is not loaded yet. PIL has turned the size of a TIFF already."""
    turned = image.format != "TIFF" and _orientation(image) >= 5
    return image.size if turned else image.size[::-1]


def _orientation(image: Image.Image) -> int:
    """EXIF's 1…8; broken metadata of a sound image count as 1, as in Detectron2."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF parser raises many types, too
        return 1
    return orientation if orientation in range(1, 9) else 1


def _to_8_bit(samples: np.ndarray) -> np.ndarray:
    """Scale grey samples (H, W) to uint8 from the narrowest usual range that holds them.

    The range is 0…65535 for integers (16-bit PNG, TIFF and PGM), 0…1 or 0…255 for floats, else minimum…maximum.
    """
    integer = np.issubdtype(samples.dtype, np.integer)
    samples = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = samples.min(), samples.max()
    usual = [65535.0] if integer else [1.0, 255.0]
    top = next((top for top in usual if 0 <= low and high <= top), None)
    if top is None:
        samples, top = samples - low, (high - low) or 1.0
    return np.rint(samples * (255.0 / top)).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):  # PIL's, of a row that is too long
        return "too large"
    if "truncated" in str(error).lower():
        return "truncated"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be opened ({error.strerror})"
    return f"damaged ({' '.join(str(error).split())[:80] or type(error).__name__})"

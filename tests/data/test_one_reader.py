"""Training, evaluation, prediction, inspection and serving read an image alike, or give the same reason."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clim.data.images import ResizeShortestEdge, UnreadableImage, image_size, read_image
from clim.data.loader import Skipped, read_or_skip
from clim.data.mappers import DetectionMapper
from clim.data.region_classification import RegionTestMapper
from clim.errors import UserError
from clim.sources import read_source
from clim_commands.inspect.files import reason_against

GREY = np.add.outer(np.arange(12) * 7, np.arange(20) * 5).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
TRIPLE = np.repeat(GREY[..., None], 3, axis=2)


def encoded(array, fmt, mode=None, *, orientation=None, **options):
    image, stream = Image.fromarray(array), io.BytesIO()
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    (image.convert(mode) if mode else image).save(stream, fmt, **options)
    return stream.getvalue()


def png(width, height, depth=8, kind=2, rows=b""):
    """A PNG of any header."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def flipped(data):
    """A byte in the middle of the pixels is another one."""
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


DEEP = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}
THIN = np.full((1, 900, 3), 90, np.uint8)
CASES = {  # name: (content, the image; "like PIL": that of PIL; or a part of the reason)
    "16_bit.png": (encoded(GREY.astype(np.uint16) * 257, "PNG"), TRIPLE),
    "16_bit.tif": (encoded(GREY.astype(np.uint16) * 257, "TIFF"), TRIPLE),
    "16_bit_colours.png": (png(20, 12, 16, 2, DEEP), RGB),
    "float.tif": (encoded(GREY.astype(np.float32) / 255, "TIFF"), TRIPLE),
    "1_bit.png": (encoded(RGB, "PNG", "1"), "like PIL"), "palette.png": (encoded(RGB, "PNG", "P"), "like PIL"),
    "cmyk.jpg": (encoded(RGB, "JPEG", "CMYK"), "like PIL"), "alpha.png": (encoded(RGB, "PNG", "RGBA"), RGB),
    "grey_alpha.png": (encoded(GREY, "PNG", "LA"), TRIPLE), "is_png.jpg": (encoded(RGB, "PNG"), RGB),
    "progressive.jpg": (encoded(RGB, "JPEG", progressive=True, icc_profile=b"x" * 70_000), "like PIL"),
    "frames.gif": (encoded(RGB, "GIF", **FRAMES), "like PIL"), "frames.tif": (encoded(RGB, "TIFF", **FRAMES), RGB),
    "frames.webp": (encoded(RGB, "WEBP", lossless=True, **FRAMES), RGB),
    "frames.png": (encoded(RGB, "PNG", **FRAMES), RGB),
    "exif.jpg": (encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40), "like PIL"),
    **{f"turned.{s}": (encoded(np.rot90(RGB), f, orientation=6, **o), RGB)
       for s, f, o in (("png", "PNG", {}), ("tif", "TIFF", {}), ("webp", "WEBP", {"lossless": True}))},
    "thin.png": (encoded(THIN, "PNG"), THIN), "dot.png": (encoded(THIN[:, :1], "PNG"), THIN[:, :1]),
    "flipped.png": (flipped(encoded(RGB, "PNG")), "damaged"), "cut.jpg": (encoded(RGB, "JPEG")[:400], "truncated"),
    "bomb.png": (png(60_000, 60_000), "too large"), "wide_bomb.png": (png(178_956_970, 1), "too large"),
    "header.png": (png(0, 7), "not an image"), "empty.jpg": (b"", "empty"), "text.png": (b"text", "not an image"),
    "postscript.jpg": (encoded(RGB, "EPS"), "PostScript"),
}  # fmt: skip


def trained(path, size):
    record = {"file_name": path, "height": size[0], "width": size[1], "image_id": 0}
    skipped, mapper = [], DetectionMapper([record], seed=0, stream=0, augmentations=[])
    try:
        return mapper.read(0, np.random.default_rng(0), skipped)[1].image
    except UserError:
        return skipped[0][1]


def evaluated(path, size):
    record = {"file_name": path, "image_id": 0, "annotations": []}
    sample = read_or_skip(record, resize=ResizeShortestEdge([0, 0], 0), image_format="BGR")
    return sample.reason if isinstance(sample, Skipped) else sample["image"].numpy().transpose(1, 2, 0)


def classified(path, size):
    try:
        record = {"file_name": path, "height": size[0], "width": size[1]}
        return RegionTestMapper(image_format="BGR").read(record)[0]
    except UnreadableImage as error:
        return error.reason


def predicted(path, size):
    (frame,) = read_source(path)
    return frame.reason if isinstance(frame, Skipped) else frame.image[..., ::-1]


@pytest.mark.parametrize("name", CASES)
def test_all_entry_points_read_an_image_alike(name, tmp_path):
    content, expected = CASES[name]
    path = tmp_path / name
    path.write_bytes(content)
    path = str(path)
    if isinstance(expected, str) and expected == "like PIL":
        expected = np.asarray(Image.open(path).convert("RGB"))
    size = (1, 1) if isinstance(expected, str) else expected.shape[:2]
    for read in (trained, evaluated, classified, predicted):
        found = read(path, size)
        if isinstance(expected, str):
            assert isinstance(found, str) and expected in found, read
        else:
            np.testing.assert_array_equal(found, expected[..., ::-1], err_msg=read.__name__)
    inspected = reason_against({"file_name": path, "height": size[0], "width": size[1], "annotations": []})
    assert (expected in inspected.reason) if isinstance(expected, str) else inspected is None
    assert isinstance(expected, str) or image_size(path) == size


def test_only_regular_files_of_a_sane_size_are_opened(tmp_path):
    reasons = {"pipe": "a pipe, socket or device", "zero": "a pipe, socket or device", "folder": "a folder",
               "circle": "cannot be opened (Too many levels of symbolic links)", "nowhere": "missing",
               "huge": "over 1 GB"}  # fmt: skip
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, target in (("zero", "/dev/zero"), ("circle", "circle.jpg"), ("nowhere", "gone.jpg")):
        (tmp_path / f"{name}.jpg").symlink_to(target)
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate((1 << 30) + 1)  # takes no space
    for name, reason in reasons.items():
        path = str(tmp_path / f"{name}.jpg")
        for read in (read_image, image_size):
            with pytest.raises(UnreadableImage) as caught:
                read(path)
            assert caught.value.reason == reason
    for name in ("http://127.0.0.1:9/a.jpg", "a\0.jpg", "\ud83d.jpg"):
        with pytest.raises(UnreadableImage):
            read_image(name)
    found = {s.file_name.rpartition("/")[2]: s.reason for s in read_source(tmp_path)}
    assert found == {f"{name}.jpg": reason for name, reason in reasons.items() if name != "folder"}

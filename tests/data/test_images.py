"""Decoding: sound files equal Detectron2's reading, damaged ones are errors, reduced ones large enough."""

import pickle

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from clim.data import images
from clim.data.images import (
    MIN_SIDE,
    ResizeScale,
    ResizeShortestEdge,
    UnreadableImage,
    image_size,
    letterbox,
    read_image,
    resize,
)


def photo(height, width):
    """Smooth colours, different in every corner, so that turns, flips and channel swaps all show."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.rint(np.stack([255 * x, 255 * y, 200 * (1 - x) * (1 - y)], axis=2)).astype(np.uint8)


def save(path, array, mode=None, *, orientation=None, **options):
    image = Image.fromarray(array)
    image = image.convert(mode) if mode else image
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(path, **options)
    return str(path)


def reason_of(path, **options):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, **options)
    assert caught.value.file_name == str(path)
    return caught.value.reason


# ---- sound files


@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
def test_jpegs_equal_detectron2s_reading_in_both_channel_orders(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", photo(40, 60), orientation=orientation, quality=90)
    for fmt in ("BGR", "RGB"):
        decoded = read_image(path, fmt=fmt)
        np.testing.assert_array_equal(decoded.image, detectron2_read_image(path, fmt))
        assert (decoded.height, decoded.width) == decoded.image.shape[:2] == image_size(path)
        assert decoded.image.dtype == np.uint8
        assert decoded.image.flags.c_contiguous and decoded.image.flags.writeable
    with pytest.raises(ValueError, match="BGR"):
        read_image(path, fmt="L")


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("grey.jpg", "L", {}), ("cmyk.jpg", "CMYK", {}), ("ycbcr.jpg", "YCbCr", {}), ("bits.png", "1", {}),
        ("grey.png", "L", {}), ("greyalpha.png", "LA", {}), ("rgba.png", "RGBA", {}), ("palette.png", "P", {}),
        ("palette.gif", "P", {}), ("rgb.bmp", "RGB", {}), ("rgb.webp", "RGB", {}), ("rgb.tif", "RGB", {}),
        ("large_header.jpg", "RGB", {"progressive": True, "icc_profile": b"x" * 70_000}),
    ],
)  # fmt: skip
def test_equals_detectron2_in_other_modes(tmp_path, name, mode, options):
    path = save(tmp_path / name, photo(24, 31), mode, **options)
    decoded = read_image(path)
    assert decoded.image.shape == (24, 31, 3)
    np.testing.assert_array_equal(decoded.image, detectron2_read_image(path, "BGR"))


def test_transparency_is_dropped_without_warnings(tmp_path, recwarn):
    path = save(tmp_path / "a.png", np.dstack([photo(20, 30), np.zeros((20, 30), np.uint8)]))
    np.testing.assert_array_equal(read_image(path, fmt="RGB").image, photo(20, 30))
    palette = Image.fromarray(photo(20, 30)).quantize(16)
    palette.save(path, transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(path, fmt="RGB").image, np.asarray(palette.convert("RGB")))
    assert not [w for w in recwarn if "PIL" in w.filename]


@pytest.mark.parametrize("at_least", [None, (20, 20)])
def test_adobe_inverted_cmyk_shows_its_colours(tmp_path, at_least):
    """PIL writes CMYK JPEGs as Adobe does, inverted; red must come back red, not cyan."""
    path = save(tmp_path / "a.jpg", np.full((80, 80, 3), [250, 10, 10], np.uint8), "CMYK", quality=95)
    assert b"Adobe" in open(path, "rb").read()
    decoded = read_image(path, fmt="RGB", at_least=at_least).image
    assert np.abs(decoded.astype(int) - [250, 10, 10]).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "samples", "expected"),
    [
        *((suffix, np.uint16([0, 257, 40_000]), [0, 1, 156]) for suffix in ("png", "tif", "pgm")),
        ("tif", np.float32([0, 0.5, 1.0]), [0, 128, 255]), ("tif", np.float32([0, 100, 255]), [0, 100, 255]),
        ("tif", np.float32([-1, 0, 1]), [0, 128, 255]), ("tif", np.float32([0, 500, 1000]), [0, 128, 255]),
        ("tif", np.float32([np.nan, np.inf, 1.0]), [0, 0, 255]), ("tif", np.float32([700, 700, 700]), [0, 0, 0]),
        ("tif", np.int32([0, 257, 65535]), [0, 1, 255]), ("tif", np.int32([0, 100_000, 200_000]), [0, 128, 255]),
    ],
)  # fmt: skip
def test_grey_of_more_than_8_bits_is_scaled_not_clipped(tmp_path, suffix, samples, expected):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.repeat(samples[None], 12, axis=0).repeat(4, axis=1)).save(path)
    for channel in range(3):
        np.testing.assert_array_equal(read_image(path).image[0, ::4, channel], expected)


def test_orientation_behind_the_frame_of_a_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    save(path, photo(40, 60), orientation=6, quality=90)
    upright, data = read_image(path).image, path.read_bytes()
    start, scan = data.index(b"\xff\xe1"), data.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    path.write_bytes(data[:start] + data[end:scan] + data[start:end] + data[scan:])
    np.testing.assert_array_equal(read_image(path).image, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation_in_other_formats(tmp_path, orientation, suffix):
    upright = photo(24, 36)
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    stored = np.asarray(Image.fromarray(upright).transpose(images._UPRIGHT[undo])) if undo > 1 else upright
    options = {"lossless": True} if suffix == "webp" else {}
    decoded = read_image(save(tmp_path / f"a.{suffix}", stored, orientation=orientation, **options), fmt="RGB")
    assert (decoded.height, decoded.width) == (24, 36)
    np.testing.assert_array_equal(decoded.image, upright)


# ---- reduced decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_decode_is_the_upright_photo_made_smaller(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", photo(320, 480), orientation=orientation, quality=95, subsampling=0)
    full = read_image(path)
    at_least = (80, 120) if orientation < 5 else (120, 80)
    reduced = read_image(path, at_least=at_least)
    assert reduced.image.shape == (*at_least, 3)
    assert (reduced.height, reduced.width) == (full.height, full.width) == (4 * at_least[0], 4 * at_least[1])
    blocks = full.image.reshape(at_least[0], 4, at_least[1], 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced.image - blocks).max() < 4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(10, 300), st.integers(10, 300)),
    at_least=st.tuples(st.integers(1, 350), st.integers(1, 350)),
    orientation=st.integers(1, 8),
    progressive=st.booleans(),
)
def test_reduced_sides_are_never_shorter_than_asked(tmp_path, size, at_least, orientation, progressive):
    path = save(tmp_path / "a.jpg", photo(*size), orientation=orientation, progressive=progressive)
    decoded = read_image(path, at_least=at_least)
    full = size if orientation < 5 else size[::-1]
    assert (decoded.height, decoded.width) == full
    for side, asked, whole in zip(decoded.image.shape, at_least, full, strict=False):
        assert min(asked, whole) <= side <= whole
    if all(whole >= 2 * asked for whole, asked in zip(full, at_least, strict=True)):
        assert decoded.image.shape[0] <= full[0] // 2 + 1  # and it is reduced whenever it can be


def test_fractions_are_rounded_up_and_other_formats_come_at_full_size(tmp_path):
    jpeg, png = (save(tmp_path / name, photo(200, 200)) for name in ("a.jpg", "a.png"))
    assert read_image(jpeg, at_least=(100.0, 100.0)).image.shape == (100, 100, 3)
    assert read_image(jpeg, at_least=(100.2, 100.2)).image.shape == (200, 200, 3)
    np.testing.assert_array_equal(read_image(png, at_least=(20, 30)).image, read_image(png).image)


# ---- damaged files


@pytest.mark.parametrize("at_least", [None, (12, 12)])
@pytest.mark.parametrize("suffix", ["jpg", "progressive.jpg", "png", "gif", "bmp", "webp", "tif"])
def test_a_file_cut_anywhere_is_an_error_or_complete(tmp_path, suffix, at_least):
    path = save(tmp_path / f"a.{suffix}", photo(48, 64), **{"progressive": True} if "prog" in suffix else {})
    data = open(path, "rb").read()
    full = read_image(path, at_least=at_least).image
    reasons = set()
    for length in [*range(10), *range(10, len(data), len(data) // 60), *range(len(data) - 5, len(data))]:
        with open(path, "wb") as file:
            file.write(data[:length])
        try:
            np.testing.assert_array_equal(read_image(path, at_least=at_least).image, full)
        except UnreadableImage as error:
            reasons.add(error.reason)
    # The decoder of webp does not say why it gave up.
    assert {"empty", "not an image", "truncated"} - reasons <= ({"truncated"} if suffix == "webp" else set())


@pytest.mark.parametrize("before", [True, False])
def test_no_grey_filling_even_where_pil_is_set_to_it(tmp_path, monkeypatch, before):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
    path = save(tmp_path / "a.jpg", photo(100, 100), quality=95)
    data = open(path, "rb").read()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    assert reason_of(path) == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before


def test_what_is_not_an_image_missing_tiny_or_postscript_which_is_never_run(tmp_path):
    path = tmp_path / "a.jpg"
    page, svg = b"<!DOCTYPE html><html><body>404 Not Found</body></html>", b'<svg width="30" height="30"/>'
    for content in (b"", page, b"\xff\xd8\xff", bytes(1000), svg):
        path.write_bytes(content)
        assert reason_of(path) == ("not an image" if content else "empty")
    assert reason_of(tmp_path / "none.jpg") == "missing"
    assert reason_of(tmp_path) == "a folder"
    Image.fromarray(photo(20, 30)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(path)
    assert reason_of(path) == "not an image (PostScript)"
    for height, width in ((9, 100), (100, 9), (1, 1)):
        save(path, photo(height, width))
        assert reason_of(path, min_side=MIN_SIDE) == f"tiny ({width}x{height})"
        assert read_image(path, fmt="RGB").image.shape == (height, width, 3)
    assert read_image(save(path, photo(10, 10)), min_side=MIN_SIDE).image.shape == (10, 10, 3)


def test_decompression_bombs(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", photo(100, 120))
    monkeypatch.setattr(images, "MAX_PIXELS", 11_999)
    assert reason_of(path) == "too large (120x100)"
    monkeypatch.setattr(images, "MAX_PIXELS", 12_000)
    assert read_image(path).image.shape == (100, 120, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_999)
    assert reason_of(path) == "too large"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp"])
def test_flipped_bytes_never_raise_anything_else(tmp_path, suffix):
    rng, errors = np.random.default_rng(0), 0
    data = np.frombuffer(open(save(tmp_path / f"a.{suffix}", photo(24, 24)), "rb").read(), np.uint8)
    for _ in range(80):
        damaged = data.copy()
        damaged[rng.integers(0, len(data), size=8)] = rng.integers(0, 256, size=8)
        (tmp_path / "b").write_bytes(damaged.tobytes())
        try:
            decoded = read_image(tmp_path / "b")
            assert decoded.image.dtype == np.uint8 and decoded.image.shape[2] == 3
        except UnreadableImage:
            errors += 1
    assert errors


def test_unreadable_survives_pickling_and_reads_well():
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "truncated")))
    assert (error.file_name, error.reason, str(error)) == ("a/b.jpg", "truncated", "a/b.jpg: truncated")


# ---- resizing


def test_resize_is_bilinear_up_to_twofold_and_averages_beyond():
    image = np.random.default_rng(0).integers(0, 256, size=(12, 12, 3), dtype=np.uint8)
    for factor in (2, 4):  # at exactly 2 the bilinear kernel is this mean
        blocks = image.reshape(12 // factor, factor, 12 // factor, factor, 3).mean(axis=(1, 3))
        assert np.abs(resize(image, (12 // factor, 12 // factor)) - blocks).max() <= 1
    np.testing.assert_array_equal(resize(image, (12, 12)), image)
    row = np.uint8([[0, 100, 200, 40]]).repeat(2, axis=0)
    np.testing.assert_array_equal(resize(row, (2, 8))[0], [0, 25, 75, 125, 175, 160, 80, 40])
    stripes = np.zeros((72, 72, 3), np.uint8)  # one pixel wide: they become grey, they do not alias
    stripes[:, ::3] = 240
    assert np.abs(resize(stripes, (24, 24)).astype(int) - 80).max() <= 1
    for size in [(1, 1), (5, 40), (40, 5), (33, 17)]:
        assert resize(photo(20, 30), size).shape == (*size, 3)
        assert resize(photo(20, 30)[:, :, 0], size).shape == size


@pytest.mark.parametrize("height, width", [(30, 47), (47, 30), (90, 61), (200, 33), (32, 32), (32, 20)])
def test_letterbox_is_torchvisions_resize_and_black_padding(height, width):
    image = np.random.default_rng([height, width]).integers(1, 256, (height, width, 3), dtype=np.uint8)
    square, scale = letterbox(image, 32)
    inside = [round(height * 32 / max(height, width)), round(width * 32 / max(height, width))]
    expected = F.resize(Image.fromarray(image), inside, InterpolationMode.BICUBIC, antialias=True)
    assert scale == 32 / max(height, width)
    np.testing.assert_array_equal(square[: inside[0], : inside[1]], np.asarray(expected))
    assert not square[inside[0] :].any() and not square[:, inside[1] :].any()
    np.testing.assert_array_equal(letterbox(image[:, :, ::-1].copy(), 32)[0], square[:, :, ::-1])


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 64))
def test_letterbox_shape_and_scale(height, width, size):
    """The image touches two opposite sides, and its far corner lies where the scale says, to half a pixel."""
    square, scale = letterbox(np.full((height, width, 3), 255, dtype=np.uint8), size)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8
    rows, cols = square[:, 0, 0].astype(bool), square[0, :, 0].astype(bool)
    assert max(rows.sum(), cols.sum()) == size
    for lit, side in ((rows, height), (cols, width)):
        assert lit[: lit.sum()].all()
        assert abs(lit.sum() - side * scale) <= 0.5 or lit.sum() == 1


@pytest.mark.parametrize(
    "shape, shorter", [((20, 20_000), (1, 256)), ((20_000, 20), (256, 1)), ((100, 50), (256, 128))]
)
def test_a_very_long_image_keeps_a_pixel(shape, shorter):
    image = np.zeros((*shape, 3), np.uint8)
    assert ResizeShortestEdge([256, 256], 256).get_transform(image).apply_image(image).shape == (*shorter, 3)
    assert ResizeScale(1.0, 1.0, 256, 256).get_transform(image).apply_image(image).shape == (*shorter, 3)
    assert ResizeShortestEdge([0, 0], 256).get_transform(image).apply_image(image).shape == image.shape

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
from clim.data.images import UnreadableImage, image_size, letterbox, read_image, resize

ORIENTATION = 0x0112


def photo(height, width):
    """Smooth colours, different in every corner, so that turns, flips and channel swaps all show."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.rint(np.stack([255 * x, 255 * y, 200 * (1 - x) * (1 - y)], axis=2)).astype(np.uint8)


def save(path, array, mode=None, *, orientation=None, **options):
    image = Image.fromarray(array)
    image = image.convert(mode) if mode else image
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    image.save(path, **options)
    return str(path)


def reason_of(path, **options):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, **options)
    assert caught.value.file_name == str(path)
    return caught.value.reason


# ---- equal to Detectron2


@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
@pytest.mark.parametrize("fmt", ["BGR", "RGB"])
def test_equals_detectron2_on_jpegs(tmp_path, orientation, fmt):
    path = save(tmp_path / "a.jpg", photo(40, 60), orientation=orientation, quality=90)
    decoded = read_image(path, fmt=fmt)
    np.testing.assert_array_equal(decoded.image, detectron2_read_image(path, fmt))
    assert (decoded.height, decoded.width) == decoded.image.shape[:2]
    assert decoded.image.dtype == np.uint8
    assert decoded.image.flags.c_contiguous and decoded.image.flags.writeable


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


# ---- colours


def test_channel_order_and_dropped_alpha(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([photo(20, 30), np.zeros((20, 30), np.uint8)]))
    np.testing.assert_array_equal(read_image(path, fmt="RGB").image, photo(20, 30))
    np.testing.assert_array_equal(read_image(path, fmt="BGR").image, photo(20, 30)[:, :, ::-1])
    with pytest.raises(ValueError, match="BGR"):
        read_image(path, fmt="L")


def test_transparent_palette_reads_without_warnings(tmp_path, recwarn):
    palette = Image.fromarray(photo(20, 30)).quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", fmt="RGB").image, np.asarray(palette.convert("RGB")))
    assert not [w for w in recwarn if "PIL" in w.filename]


@pytest.mark.parametrize("at_least", [None, (20, 20)])
def test_adobe_inverted_cmyk_shows_its_colours(tmp_path, at_least):
    """PIL writes CMYK JPEGs as Adobe does, inverted; red must come back red, not cyan."""
    red = np.zeros((80, 80, 3), np.uint8)
    red[:] = 250, 10, 10
    path = save(tmp_path / "a.jpg", red, "CMYK", quality=95)
    assert b"Adobe" in open(path, "rb").read()
    decoded = read_image(path, fmt="RGB", at_least=at_least).image
    assert np.abs(decoded.astype(int) - red[0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "samples", "expected"),
    [
        ("png", np.uint16([0, 257, 40_000]), [0, 1, 156]),
        ("tif", np.uint16([0, 257, 40_000]), [0, 1, 156]),
        ("pgm", np.uint16([0, 257, 40_000]), [0, 1, 156]),
        ("tif", np.float32([0, 0.5, 1.0]), [0, 128, 255]),
        ("tif", np.float32([0, 100, 255]), [0, 100, 255]),
        ("tif", np.float32([-1, 0, 1]), [0, 128, 255]),
        ("tif", np.float32([0, 500, 1000]), [0, 128, 255]),
        ("tif", np.float32([np.nan, np.inf, 1.0]), [0, 0, 255]),
        ("tif", np.float32([700, 700, 700]), [0, 0, 0]),
        ("tif", np.int32([0, 257, 65535]), [0, 1, 255]),
        ("tif", np.int32([0, 100_000, 200_000]), [0, 128, 255]),
    ],
)
def test_grey_of_more_than_8_bits_is_scaled_not_clipped(tmp_path, suffix, samples, expected):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.repeat(samples[None], 12, axis=0).repeat(4, axis=1)).save(path)
    for channel in range(3):
        np.testing.assert_array_equal(read_image(path).image[0, ::4, channel], expected)


# ---- orientation and reduced decoding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation_in_other_formats(tmp_path, orientation, suffix):
    upright = photo(24, 36)
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    stored = Image.fromarray(upright)
    if undo > 1:
        stored = stored.transpose(images._UPRIGHT[undo])
    decoded = read_image(save(path, np.asarray(stored), orientation=orientation, **options), fmt="RGB")
    assert (decoded.height, decoded.width) == (24, 36)
    np.testing.assert_array_equal(decoded.image, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_decode_is_the_upright_photo_made_smaller(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", photo(320, 480), orientation=orientation, quality=95, subsampling=0)
    full = read_image(path)
    assert (full.height, full.width) == ((320, 480) if orientation < 5 else (480, 320))
    at_least = (80, 120) if orientation < 5 else (120, 80)
    reduced = read_image(path, at_least=at_least)
    assert reduced.image.shape == (*at_least, 3)
    assert (reduced.height, reduced.width) == (full.height, full.width)
    blocks = full.image.reshape(at_least[0], 4, at_least[1], 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced.image - blocks).max() < 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(10, 300), st.integers(10, 300)),
    at_least=st.tuples(st.integers(1, 350), st.integers(1, 350)),
    orientation=st.integers(1, 8),
    progressive=st.booleans(),
)
def test_reduced_sides_are_never_shorter_than_asked(folder, size, at_least, orientation, progressive):
    path = save(folder / "a.jpg", photo(*size), orientation=orientation, progressive=progressive)
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


@pytest.mark.parametrize("orientation", [None, 1, 4, 5, 8])
def test_the_size_in_the_header_is_upright(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", photo(20, 30), orientation=orientation)
    assert image_size(path) == read_image(path).image.shape[:2]


# ---- damaged


@pytest.mark.parametrize("at_least", [None, (12, 12)])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("gif", {}), ("bmp", {}), ("webp", {}),
        ("tif", {}),
    ],
)  # fmt: skip
def test_a_file_cut_anywhere_is_an_error_or_complete(tmp_path, suffix, options, at_least):
    path = save(tmp_path / f"a.{suffix}", photo(48, 64), **options)
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
    assert "empty" in reasons and "not an image" in reasons
    if suffix != "webp":  # its decoder doesn't say why it gave up
        assert "truncated" in reasons


@pytest.mark.parametrize("before", [True, False])
def test_no_grey_filling_even_where_pil_is_set_to_it(tmp_path, monkeypatch, before):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
    path = save(tmp_path / "a.jpg", photo(100, 100), quality=95)
    data = open(path, "rb").read()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    assert reason_of(path) == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (bytes(1000), "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="30" height="30"/>', "not an image"),
    ],
)
def test_what_is_not_an_image(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason_of(tmp_path / "a.jpg") == reason


def test_missing_file_folder_and_postscript_which_is_never_run(tmp_path):
    assert reason_of(tmp_path / "none.jpg") == "missing"
    assert reason_of(tmp_path).startswith("cannot be opened")
    Image.fromarray(photo(20, 30)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert reason_of(tmp_path / "a.jpg") == "not an image (PostScript)"


def test_tiny_images(tmp_path):
    for height, width in ((9, 100), (100, 9), (1, 1)):
        assert reason_of(save(tmp_path / "a.jpg", photo(height, width))) == f"tiny ({width}x{height})"
    assert read_image(save(tmp_path / "a.jpg", photo(10, 10))).image.shape == (10, 10, 3)


def test_decompression_bombs(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", photo(100, 120))
    monkeypatch.setattr(images, "MAX_PIXELS", 11_999)
    assert reason_of(path) == "too large (120x100)"
    monkeypatch.setattr(images, "MAX_PIXELS", 12_000)
    assert read_image(path).image.shape == (100, 120, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_999)
    assert reason_of(path) == "too large"


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "tif", "webp"):
        data = np.frombuffer(open(save(tmp_path / f"a.{suffix}", photo(24, 24)), "rb").read(), np.uint8)
        outcomes = set()
        for _ in range(80):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), size=8)] = rng.integers(0, 256, size=8)
            (tmp_path / "b").write_bytes(damaged.tobytes())
            try:
                decoded = read_image(tmp_path / "b")
                assert decoded.image.dtype == np.uint8 and decoded.image.shape[2] == 3
                outcomes.add("read")
            except UnreadableImage:
                outcomes.add("error")
        assert "error" in outcomes


def test_unreadable_survives_pickling_and_reads_well():
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "truncated")))
    assert (error.file_name, error.reason, str(error)) == ("a/b.jpg", "truncated", "a/b.jpg: truncated")


# ---- resizing


def test_resize_is_bilinear_up_to_twofold_and_averages_beyond():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, size=(12, 12, 3), dtype=np.uint8)
    halves = image.reshape(6, 2, 6, 2, 3).mean(axis=(1, 3))  # at exactly 2 the bilinear kernel is this mean
    assert np.abs(resize(image, (6, 6)) - halves).max() <= 1
    quarters = image.reshape(3, 4, 3, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, (3, 3)) - quarters).max() <= 1
    np.testing.assert_array_equal(resize(image, (12, 12)), image)


def test_resize_twofold_up_matches_the_bilinear_formula():
    row = np.uint8([[0, 100, 200, 40]]).repeat(2, axis=0)
    np.testing.assert_array_equal(resize(row, (2, 8))[0], [0, 25, 75, 125, 175, 160, 80, 40])


def test_strong_shrinking_does_not_alias():
    """Stripes one pixel wide become grey; a bilinear kernel that skips pixels would keep stripes."""
    stripes = np.zeros((72, 72, 3), np.uint8)
    stripes[:, ::3] = 240
    assert np.abs(resize(stripes, (24, 24)).astype(int) - 80).max() <= 1


def test_resize_shapes():
    for size in [(1, 1), (5, 40), (40, 5), (33, 17)]:
        assert resize(photo(20, 30), size).shape == (*size, 3)
        assert resize(photo(20, 30)[:, :, 0], size).shape == size


# ---- letterbox


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

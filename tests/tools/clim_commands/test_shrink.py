"""``clim shrink``: what is copied, what is not, and what a second call makes."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from clim.data.images import read_image
from clim.errors import UserError
from clim_commands import shrink
from clim_commands.main import run


@pytest.fixture
def photos(tmp_path):
    """A folder with images of all kinds."""
    folder, rng, exif = tmp_path / "photos", np.random.default_rng(0), Image.Exif()
    (folder / "more").mkdir(parents=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))

    def save(name, *size, mode="RGB", **options):
        image = coarse.resize(size, Image.Resampling.BICUBIC)
        image.convert(mode, palette=Image.Palette.ADAPTIVE).save(folder / name, **options)

    save("plain.jpg", 1200, 900)
    save("more/plain.jpg", 400, 401)
    exif[0x0112] = 6
    save("turned.jpg", 640, 480, exif=exif)
    for mode, name in (("L", "grey.png"), ("P", "palette.png"), ("RGBA", "alpha.PNG"), ("CMYK", "inks.jpeg")):
        save(name, 500, 300, mode=mode)
    save("small.jpg", 400, 300)
    save("thin.png", 900, 9)
    (folder / "half.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:9000])
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "notes.txt").write_text("no image")
    return folder


COPIES = {
    "plain.jpg": (300, 400), "more/plain.jpg": (400, 399), "turned.jpg": (400, 300), "grey.png": (240, 400),
    "palette.png": (240, 400), "alpha.PNG": (240, 400), "inks.jpeg": (240, 400),
}  # fmt: skip


def call(photos, *more):
    run(["shrink", "--input", str(photos), "--output", str(photos.parent / "copies"), "--workers", "0", *more])


def files(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_copies_are_upright_jpegs_of_400_px_with_the_names_of_their_images(photos, capsys, workers):
    call(photos, "--workers", workers)
    copies, errors = photos.parent / "copies", {}
    assert files(copies).keys() == COPIES.keys() | {"copies.json"}
    for name, size in COPIES.items():
        with Image.open(copies / name) as copy:
            assert (copy.format, copy.mode, copy.size[::-1], len(copy.getexif())) == ("JPEG", "RGB", size, 0)
        image = Image.fromarray(read_image(photos / name, fmt="RGB").image)
        means = np.asarray(image.resize(size[::-1], Image.Resampling.BOX), float)
        errors[name] = np.abs(read_image(copies / name, fmt="RGB").image - means).mean()
    assert max(errors.values()) < 4, errors  # of 256; 3.3 for the palette's edges of colours, 1 for the others
    out = capsys.readouterr().out
    size = sum((copies / name).stat().st_size for name in COPIES) / 1e6
    assert f"copies: 7 copies (7 of them new), {size:.1f} MB\n1 images are no larger, and need none\n" in out
    lines = {"gone.jpg: missing", "half.jpg: truncated", "thin.png: tiny (900x9)"}
    assert "3 images could not be read, and have none:\n" in out and lines < set(out.splitlines())
    assert out.endswith(f"""Train with INPUT.COPIES "[['{photos}', '{copies}']]".\n""")


def test_a_second_call_makes_what_is_missing_or_has_changed(photos, capsys):
    call(photos)
    copies = photos.parent / "copies"
    before = files(copies)
    (copies / "grey.png").unlink()
    (copies / "grey.png.partial").write_bytes(b"half")  # of a killed process
    os.utime(photos / "plain.jpg", (1e9, 1e9))  # older, as an archive unpacks it
    Image.new("RGB", (50, 50)).save(photos / "palette.png")
    os.utime(photos / "palette.png", (2e9, 2e9))
    capsys.readouterr()
    call(photos)
    after = files(copies)
    assert "6 copies (2 of them new)" in capsys.readouterr().out
    assert after.keys() == before.keys() - {"palette.png"}
    assert {name for name in after if after[name] != before[name]} == {"plain.jpg"}  # the time is that of the image
    assert read_image(copies / "grey.png").image.shape == (240, 400, 3)


def test_an_interruption_leaves_no_half_copy_and_the_next_call_goes_on(photos, monkeypatch, capsys):
    calls, utime = [], os.utime

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        utime(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "utime", interrupted)
        call(photos)
    assert len(files(photos.parent / "copies")) == 1 + 2  # the note
    call(photos)
    assert "7 copies (5 of them new)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        (["--input", "gone"], "--input gone does not exist, or is no folder"),
        (["--input", "shards"], "--input shards has no image .*tar shards are not shrunk"),
        (["--output", "photos"], "--output photos and --input .*photos lie in each other"),
        (["--output", "photos/small"], "lie in each other"),
        (["--output", "."], "lie in each other"),
        (["--output", "shards"], "--output shards holds files that this command has not made"),
        (["--input", "photos/more"], "copies holds copies of .*photos: name another folder, or correct .*copies.json"),
    ],
)
def test_wrong_folders_are_refused(photos, monkeypatch, change, message):
    monkeypatch.chdir(photos.parent)
    os.makedirs("shards")
    (photos.parent / "shards" / "0.tar").write_bytes(b"")
    (photos.parent / "copies").mkdir()
    (photos.parent / "copies" / "copies.json").write_text(f'{{"images": "{photos}"}}')
    with pytest.raises(UserError, match=message):
        call(photos, *change)
    assert files(photos.parent / "copies").keys() == {"copies.json"}


def test_one_process_at_a_time_makes_the_copies_of_a_folder(photos):
    with shrink.holding(photos.parent / "copies", photos), ProcessPoolExecutor(1, get_context("fork")) as pool:
        with pytest.raises(UserError, match="Another process makes the copies in .*copies: wait for it"):
            pool.submit(call, photos).result()
    call(photos)

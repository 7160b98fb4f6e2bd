"""Results: drawings, files, and the formats of others."""

import json
import os

import cv2
import numpy as np
import pytest
import supervision as sv
from PIL import Image
from pycocotools.mask import decode

from clim.errors import UserError
from clim.results import Result, Results, save_each
from clim.sources import Frame, Skipped, read_source

NAMES = ["dog", "kite", "fire hydrant"]
BOXES = np.array([[10, 20, 50, 80], [60, 10, 90, 30.5]], np.float32)


def make(*, image=None, name="folder/a.png", number=None, rows=2, masks=False, tracks=None):
    image = np.full((100, 120, 3), 90, np.uint8) if image is None else image
    pixels = np.zeros((rows, *image.shape[:2]), bool)
    for row, (x0, y0, x1, y1) in zip(pixels, BOXES.astype(int), strict=False):
        row[y0:y1, x0:x1] = True
    whole = np.tile([0, 0, image.shape[1], image.shape[0]], (rows, 1))
    found = sv.Detections(
        xyxy=BOXES[:rows].copy(), confidence=np.array([0.9, 0.25], np.float32)[:rows], class_id=np.array([1, 0])[:rows],
        mask=sv.CompactMask.from_dense(pixels, whole, image.shape[:2]) if masks else None, tracker_id=tracks,
    )  # fmt: skip
    frame = Frame(image, name, number, None if number is None else 10.0)
    return Result(frame, found, names=NAMES, novel=frozenset({1}))


def results(*items, skipped=()):
    of = Results(names=NAMES, novel=frozenset({1}))
    of += items
    of.skipped += skipped
    return of


def test_fields_labels_and_formats():
    result = make(masks=True, tracks=np.array([4, -1]))
    assert len(result) == 2 and result.masks.shape == (2, 100, 120) and result.masks.sum() == 40 * 60 + 30 * 20
    assert result.labels() == ["★ kite #4 0.90", "dog 0.25"] and "★ kite #4 0.90, dog 0.25" in repr(result)
    first, second = result.to_coco(7, category_ids=[18, 38, 11])
    assert (first["image_id"], first["category_id"], second["category_id"]) == (7, 38, 18)
    assert second["bbox"] == [60, 10, 30, 20.5] and first["score"] == pytest.approx(0.9)
    assert (decode(first["segmentation"]) == result.masks[0]).all()
    entry = json.loads(result.to_json())
    assert {key: entry[key] for key in ("file_name", "height", "width")} == {
        "file_name": "folder/a.png", "height": 100, "width": 120,
    }  # fmt: skip
    expected = {"name": "kite", "category_id": 1, "score": 0.9, "bbox": [10, 20, 40, 60], "track_id": 4}
    assert {key: entry["detections"][0][key] for key in expected} == expected
    detections = result.to_supervision()
    assert detections.data["class_name"].tolist() == ["kite", "dog"] and isinstance(detections.mask, np.ndarray)
    both = results(make(), result, make(rows=0))
    assert [entry["image_id"] for entry in both.to_coco()] == [0, 0, 1, 1]
    assert [entry["image_id"] for entry in both.to_coco([5, 6, 7])] == [5, 5, 6, 6]
    assert [len(of) for of in both.to_supervision()] == [2, 2, 0]
    assert json.loads(both.to_json())["novel"] == ["kite"] and "segmentation" not in both.to_dict()["images"][0]


def test_drawings_are_rgb_large_enough_and_leave_the_image_alone():
    image = np.zeros((100, 120, 3), np.uint8)
    image[..., 0] = 90  # red
    result = make(image=image, masks=True)
    drawn = result.plot()
    assert drawn.shape == (533, 640, 3) and drawn.dtype == np.uint8 and (image[..., 1:] == 0).all()
    assert drawn[-5, -5].tolist() == [90, 0, 0]
    scale = 640 / 120
    kite, dog = (sv.ColorPalette.DEFAULT.colors[k].as_rgb() for k in (1, 0))
    inside = drawn[int(70 * scale), int(40 * scale)]  # of the mask
    assert np.abs(inside - (np.array(kite) + [90, 0, 0]) / 2).max() <= 1
    column = drawn[int(50 * scale), int(10 * scale) - 8 : int(10 * scale) + 8].tolist()
    assert list(kite) in column and [255, 255, 255] in column  # novel: a white rim
    column = drawn[int(25 * scale), int(60 * scale) - 8 : int(60 * scale) + 8].tolist()
    assert list(dog) in column and [255, 255, 255] not in column
    assert (make(image=image, rows=0).plot() == np.asarray(Image.fromarray(image).resize((640, 533), 0))).mean() > 0.99
    assert [of.shape for of in results(result, make()).plot()] == [(533, 640, 3)] * 2


def test_files_get_different_names(tmp_path):
    names = ["a/x.jpg", "b/x.png", "x_2.jpg", "https://c.d/x.jpg?y=1", "webcam:0"]
    written = [name for _, name in save_each([make(name=name) for name in names], tmp_path / "new")]
    assert written == ["x.jpg", "x_2.jpg", "x_2_2.jpg", "x_3.jpg", "webcam_0.jpg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(written)
    assert make().save(tmp_path) == tmp_path / "a.jpg"


def test_drawings_replace_no_image_and_lose_no_result(tmp_path, monkeypatch, caplog):
    photo, out = tmp_path / "photos/a.png", tmp_path / "out"
    photo.parent.mkdir()
    Image.fromarray(np.full((100, 120, 3), 7, np.uint8)).save(photo)
    (tmp_path / "link").symlink_to(photo.parent)
    for folder in (photo.parent, tmp_path / "link", photo.parent / "../photos"):
        for save in (make(name=str(photo)).save, results(make(name=str(photo))).save):
            with pytest.raises(UserError, match="a.png lies in .*: name another folder"):
                save(folder)
    monkeypatch.chdir(tmp_path)  # an array and an address are no files of this folder
    assert results(make(name="image_0")).save(".").joinpath("image_0.jpg").is_file()
    assert make(name=f"https://c.d/x.jpg?{'y' * 300}").without_image().image.size
    (out / "b.jpg").mkdir(parents=True)
    (out / "a.jpg").symlink_to(photo)  # which is not written through
    long = make(image=np.zeros((66_000, 2, 3), np.uint8), name="long.jpg", rows=0)
    odd = make(name="y" * 250 + "\n\udcff.jpg")
    named = [
        name for _, name in save_each([make(name="A.png"), make(name="a.png"), make(name="b.png"), long, odd], out)
    ]
    assert named == ["A.jpg", "a_2.jpg", "b_2.jpg", "long.png", "y" * 200 + ".jpg"]
    assert set(named) < set(os.listdir(out)) and Image.open(photo).size == (120, 100)
    assert Image.open(out / "long.png").size == (2, 66_000)
    monkeypatch.setattr(Result, "plot", lambda self: 1 / 0)
    assert [name for _, name in save_each([make(), make(name="v.mp4", number=0)], out)] == [None, None]
    assert "a.png is not drawn (ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("shape, named", [((2000, 1), None), ((5, 16_386), None), ((16_384, 16), "v.mp4")])
def test_videos_that_are_too_narrow_or_long_for_h264(tmp_path, caplog, shape, named):
    frames = [make(image=np.zeros((*shape, 3), np.uint8), name="v.mp4", number=i, rows=0) for i in range(2)]
    assert [name for _, name in save_each(frames, tmp_path)] == [named] * 2
    assert ("v.mp4 is not drawn" in caplog.text) == (named is None)
    assert os.listdir(tmp_path) == [named] * bool(named)


def test_videos_and_images_are_read_again_and_saved(tmp_path):
    """An annotated H.264 video with the rate and length of the first, and all in predictions.json."""
    path, photo = tmp_path / "film.mp4", tmp_path / "photo.png"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (642, 480))
    for number in range(4):
        writer.write(np.full((480, 642, 3), 50 * number, np.uint8))
    writer.release()
    Image.fromarray(np.full((100, 120, 3), 7, np.uint8)).save(photo)
    frames = [make(image=f.image, name=f.name, number=f.number) for f in read_source(path)]
    kept = results(*(of.without_image() for of in [*frames, make(name=str(photo))]), skipped=[Skipped("b.jpg", "cut")])
    assert all(of._image is None for of in kept) and make(name="gone.jpg").without_image()._image is not None
    assert kept[2].image.mean() == pytest.approx(100, abs=6) and kept[4].image.mean() == 7
    kept[2]._image = None
    del kept[1]  # frames may be left out
    out = kept.save(tmp_path / "out")
    content = json.loads((out / "predictions.json").read_text())
    assert [of["drawing"] for of in content["images"]] == ["film.mp4"] * 3 + ["photo.jpg"]
    assert [of.get("frame") for of in content["images"]] == [0, 2, 3, None]
    assert content["skipped"] == [{"file_name": "b.jpg", "reason": "cut"}]
    written = list(read_source(out / "film.mp4"))
    assert [frame.rate for frame in written] == [10.0] * 3 and written[0].image.shape == (480, 642, 3)
    assert [frame.image[470, 630].mean() for frame in written] == pytest.approx([0, 100, 150], abs=6)
    video = cv2.VideoCapture(str(out / "film.mp4"))
    assert int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") in (b"avc1", b"h264")

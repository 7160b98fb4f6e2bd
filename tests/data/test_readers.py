"""Readers: the records of every format, what is skipped, and mistakes in one sentence."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as run_lengths

from clim.data.categories import COCO_INDEX
from clim.data.readers import read_boxes, read_lvis, read_panoptic_regions, read_pseudo_labels, read_regions
from clim.data.region_classification import RegionTestMapper
from clim.errors import UserError

POLYGON = [[1.0, 2.0, 9.0, 2.0, 9.0, 11.0]]
RUNS = {"size": [20, 30], "counts": [0, 600]}
SIZE = {"height": 20, "width": 30}
IMAGES = [{"id": identifier, "file_name": f"{identifier}.jpg"} | SIZE for identifier in (9, 4)]


@pytest.fixture
def read(root):
    """``read(reader, json, index=COCO's)``: records of a json whose images lie in the folder images."""

    def read(reader, path, **index):
        return reader(str(path), str(root / "images"), **{"index": COCO_INDEX, "remedy": "make tea"} | index)

    return read


def box(**fields):
    return {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0} | fields


@pytest.mark.parametrize("reader", [read_boxes, read_lvis, read_regions, read_panoptic_regions, read_pseudo_labels])
def test_missing_and_broken_files_and_unknown_categories_are_refused(root, write, read, reader):
    with pytest.raises(UserError, match="none.json not found: make tea$"):
        read(reader, root / "none.json")
    path = write("coco/a.json")
    path.write_text('{"images": [')
    with pytest.raises(UserError, match=r"a.json .*: make tea$"):
        read(reader, path)
    segments = [{"id": 7, "category_id": 12, "bbox": [0, 0, 1, 1]}]
    write("coco/a.json", IMAGES[0],
          annotations=[box(category_id=12, segments_info=segments, file_name="9.png")])  # fmt: skip
    (root / "a").mkdir()
    with pytest.raises(UserError, match=r"image 9 of .*a.json has category 12, .* \d+ categories"):
        read(reader, path)
    (root / "images").rmdir()
    with pytest.raises(UserError, match="image folder .*images not found"):
        read(reader, path)


def test_boxes_are_detectron2s_records_with_crowds_and_without_masks(root, write, read, caplog):
    masks = (POLYGON, [], [[1, 2]], RUNS)
    annotations = [box(id=i, iscrowd=i % 2, segmentation=mask, keypoints=[1, 2, 1]) for i, mask in enumerate(masks)]
    path = write("a.json", *IMAGES, annotations=[*annotations, box(image_id=5)])
    for content in (path.read_bytes(), b"\xef\xbb\xbf" + path.read_bytes()):
        path.write_bytes(content)
        empty, record = read(read_boxes, path)
        assert (empty["image_id"], empty["annotations"]) == (4, [])
        expected = {"bbox": [1, 2, 8, 9], "category_id": 16, "bbox_mode": BoxMode.XYWH_ABS}
        assert record == SIZE | {
            "file_name": str(root / "images/9.jpg"), "image_id": 9,
            "annotations": [expected | {"iscrowd": i % 2} for i in range(4)],
        }  # fmt: skip
    assert "left out 1 boxes whose image_id is not among its images" in caplog.text


@pytest.mark.parametrize("reader", [read_boxes, read_lvis, read_regions])
@pytest.mark.parametrize(
    "wrong, message",
    [
        *(({"bbox": b}, r"has bbox .*: it must be \[x, y, width") for b in (None, [], [1, 2, 3], [1, 2, -3, 4], "1 2")),
        *(({"bbox": [1, 2, value, 4]}, "has bbox") for value in (float("nan"), float("inf"), "3", True)),
        ({"category_id": None}, "has no category_id"),
        ({"image_id": [9]}, "has no image_id"),
    ],
)
def test_a_broken_annotation_is_named(write, read, reader, wrong, message):
    path = write("a.json", IMAGES[0], annotations=[box(), box(id=7) | wrong])
    with pytest.raises(UserError, match=rf"^annotations\[1\] of .*a.json \(id 7\) {message}"):
        read(reader, path)


def test_broken_lists_and_images_are_named(write, read):
    with pytest.raises(UserError, match=r"annotations\[0\] of .*a.json is 'x'"):
        read(read_boxes, write("a.json", IMAGES[0], annotations=["x"]))
    with pytest.raises(UserError, match=r"images\[1\] of .*a.json has no id"):
        read(read_boxes, write("a.json", IMAGES[0], {"file_name": "x.jpg"}))
    with pytest.raises(UserError, match="9.jpg and x.jpg have the same image id 9"):
        read(read_boxes, write("a.json", IMAGES[0], IMAGES[0] | {"file_name": "x.jpg"}))
    with pytest.raises(UserError, match="Image 4.jpg in .*images has id '4': it must be a number"):
        read(read_boxes, write("a.json", IMAGES[0], IMAGES[1] | {"id": "4"}))
    with pytest.raises(UserError, match="images/9.jpg: missing; the json does not give its height and width"):
        read(read_boxes, write("a.json", {"id": 9, "file_name": "9.jpg"}))


# ---- regions


def test_regions_by_image_with_crowds_in_the_files_order(root, write, read):
    annotations = [
        box(segmentation=POLYGON), box(category_id=1, iscrowd=1, segmentation=RUNS),
        {"image_id": 9, "category_id": 90, "bbox": [1, 2, 8, 9], "segmentation": []},
    ]  # fmt: skip
    empty, full = read(read_regions, write("a.json", *IMAGES, annotations=annotations))
    assert empty == SIZE | {"file_name": str(root / "images/4.jpg"), "image_id": 4, "annotations": []}
    same = {"bbox": [1, 2, 8, 9]}
    assert full == SIZE | {
        "file_name": str(root / "images/9.jpg"), "image_id": 9,
        "annotations": [
            same | {"category_id": 16, "iscrowd": 0, "segmentation": POLYGON},
            same | {"category_id": 0, "iscrowd": 1, "segmentation": RUNS},
            same | {"category_id": 79, "iscrowd": 0},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["coco/panoptic_val2017", "coco/annotations/panoptic_val2017"])
def test_panoptic_segments_and_stuff_without_box(root, write, read, folder):
    segments = [
        {"id": 77, "category_id": 199, "iscrowd": 0, "bbox": [0, 0, 5, 5], "area": 9},
        {"id": 5, "category_id": 18, "iscrowd": 1, "bbox": [1, 2, 8, 9], "area": 9},
    ]
    infos = ((9, segments), (4, []))
    annotations = [{"image_id": i, "file_name": f"{i}.png", "segments_info": info} for i, info in infos]
    path = write("coco/annotations/panoptic_val2017.json", *IMAGES, annotations=annotations)
    with pytest.raises(UserError, match="no folder of panoptic PNGs at .*coco/panoptic_val2017 or .*: make tea$"):
        read(read_panoptic_regions, path)
    (root / folder).mkdir()
    empty, full = read(read_panoptic_regions, path)
    assert empty["annotations"] == [] and empty["pan_seg_file_name"] == str(root / folder / "4.png")
    assert full["pan_seg_file_name"] == str(root / folder / "9.png")
    assert full["file_name"] == str(root / "images/9.jpg")
    assert full["annotations"] == [
        {"category_id": 131, "iscrowd": 0, "segment_id": 77},
        {"category_id": 16, "iscrowd": 1, "segment_id": 5, "bbox": [1, 2, 8, 9]},
    ]
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[4:15, 10:26, 0] = 77
    Image.fromarray(pixels).save(root / folder / "9.png")
    Image.fromarray(pixels + 99).save(root / "images/9.jpg")
    sample = RegionTestMapper(size=60)(full)
    assert sample["boxes"].tensor.tolist() == [[20, 8, 50, 28], [2, 4, 18, 22]]
    assert sample["gt_classes"].tolist() == [131, 16]


def test_pseudo_labels_are_arrays_and_boxes_without_area_go(write, read):
    """A file by other hands: any ids in any order; an image whose boxes are all empty is left out."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 1, "width": 1} for i in (102, 100, 101)]
    boxes = [(100, 90, [1, 2, 3, 4]), (100, 7, [5, 5, 0, 9]), (101, 7, [1, 1, 9, 0]), (102, 7, [0, 0, 8, 9])]
    annotations = [{"id": n, "image_id": i, "category_id": c, "bbox": b} for n, (i, c, b) in enumerate(boxes)]
    records = read(read_pseudo_labels, write("a.json", *images, annotations=annotations), index={7: 0, 90: 1})
    found = [(r["image_id"], r["boxes"].tolist(), r["nouns"].tolist()) for r in records]
    assert found == [(100, [[1, 2, 4, 6]], [1]), (102, [[0, 0, 8, 9]], [0])]
    assert records[0]["boxes"].dtype == np.float32 and records[0]["nouns"].dtype == np.int64


# ---- LVIS


def test_lvis_has_masks_as_arrays_and_finds_images_by_their_url(root, write, read):
    urls = [
        {"id": i, "coco_url": f"http://images.cocodataset.org/{part}2017/{i}.jpg"} | SIZE
        for i, part in ((9, "train"), (4, "val"))
    ]
    own = {"id": 2, "file_name": "mine/2.jpg", "coco_url": "http://a/b/c.jpg"} | SIZE
    lvis = {key: value for key, value in box().items() if key != "iscrowd"}
    annotations = [
        lvis | {"segmentation": [POLYGON[0], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]},
        lvis | {"image_id": 2, "segmentation": RUNS}, lvis | {"image_id": 2, "category_id": 90},
        lvis | {"segmentation": [[1, 2]]}, lvis | {"segmentation": []}, lvis | {"iscrowd": 1, "segmentation": RUNS},
    ]  # fmt: skip
    records = read(read_lvis, write("lvis/a.json", *urls, own, annotations=annotations))
    names = ["mine/2.jpg", "val2017/4.jpg", "train2017/9.jpg"]
    assert [r["file_name"] for r in records] == [str(root / "images" / name) for name in names]  # by id
    (runs, bare), none, (polygons,) = (r["annotations"] for r in records)
    assert none == [] and (records[2]["image_id"], records[2]["height"], records[2]["width"]) == (9, 20, 30)
    assert polygons["segmentation"][0].dtype == np.float32 and len(polygons["segmentation"]) == 1
    assert polygons["segmentation"][0].tolist() == POLYGON[0]
    same = {"bbox": [1, 2, 8, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 16}
    assert {k: v for k, v in polygons.items() if k != "segmentation"} == same
    assert run_lengths.area(runs["segmentation"]) == 600 and bare == same | {"category_id": 79}


def test_images_without_a_name_are_refused(write, read):
    nameless = {key: value for key, value in IMAGES[0].items() if key != "file_name"}
    path = write("lvis/a.json", nameless, annotations=[box()])
    for reader in (read_lvis, read_boxes):
        with pytest.raises(UserError, match="image 9 .* no file_name and no coco_url"):
            read(reader, path)


@pytest.mark.parametrize("reader", [read_lvis, read_regions, read_panoptic_regions, read_pseudo_labels])
def test_a_file_without_boxes_is_refused(write, read, reader):
    path = write("lvis/a.json", *IMAGES)
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match="a.json has no images or no annotations.*: make tea$"):
        read(reader, path)

"""Readers: the records of every format, what is skipped, and mistakes in one sentence."""

import json
import re

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
IMAGES = [{"id": number, "file_name": f"{number}.jpg", "coco_url": None} | SIZE for number in (9, 4)]


@pytest.fixture
def read(root):
    """``read(reader, json, index=COCO's)``: records of a json whose images lie in the folder images."""

    def read(reader, path, **index):
        return reader(str(path), str(root / "images"), **{"index": COCO_INDEX, "remedy": "make tea"} | index)

    return read


def box(**fields):
    return {"image_id": 9, "category_id": 18, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0} | fields


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
    said = r"annotations\[0\](.segments_info\[0\])?.category_id of .*a.json .*is 12, .* \d+ categories"
    with pytest.raises(UserError, match=said):
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
    assert "left out 1 annotations whose image_id is not among these images" in caplog.text


NUMBER, BOX = "it must be a whole number: make tea$", r"it must be \[x, y, width, height\] in pixels.*: make tea$"
WRONG = [  # a key of annotations[1] or images[1], a value, and what is said of it
    *(("annotations", "bbox", box, BOX) for box in (None, [], [1, 2, 3], [1, 2, -3, 4], "1 2", {}, [[1, 2, 3, 4]])),
    *(("annotations", "bbox", [1, 2, value, 4], BOX) for value in (float("nan"), float("inf"), "3", True, 1e300)),
    *(("annotations", "category_id", value, NUMBER) for value in (None, "18", [18], 18.5, True)),
    *(("annotations", "image_id", value, NUMBER) for value in (None, "9", [9], 2**70)),
    *(("annotations", "iscrowd", value, "it must be 0 or 1: make tea$") for value in (None, "0", 2, -1, 0.5, [])),
    *(("images", "id", value, NUMBER) for value in (None, "4", 4.5, float("nan"), 2**63)),
    *(("images", "file_name", value, "it must be a text.*: make tea$")
      for value in (None, 4, ["4.jpg"], "a\0", "\ud83d")),
    *(("images", key, value, "it must be a whole number of pixels: make tea$")
      for key in ("height", "width") for value in ("20", -20, 20.5, float("inf"), 2**31, True, [20])),
]  # fmt: skip


@pytest.mark.parametrize("reader", [read_boxes, read_lvis, read_regions])
@pytest.mark.parametrize("part, key, value, said", WRONG)
def test_a_wrong_value_is_named(write, read, reader, part, key, value, said):
    contents = {"images": IMAGES, "annotations": [box(id=5), box(id=7)]}
    contents[part] = [contents[part][0], contents[part][1] | {key: value}]
    path = write("a.json", *contents["images"], annotations=contents["annotations"])
    shown = re.escape(json.dumps(value)[:60])
    with pytest.raises(UserError, match=rf"^{part}\[1\].{key} of \S*a.json (\(id [47]\) )?is {shown}.?: {said}"):
        read(reader, path)


@pytest.mark.parametrize("reader", [read_boxes, read_lvis, read_regions])
@pytest.mark.parametrize(
    "images, annotations, said",
    [
        ([IMAGES[0]], ["x"], r'annotations\[0\] of \S*a.json is "x": it must be an object'),
        ([IMAGES[0]], [box(), {"id": 7, "image_id": 9}], r"annotations\[1\] of \S*a.json \(id 7\) has no category_id"),
        ([IMAGES[0], {"file_name": "x.jpg"}], [], r"images\[1\] of \S*a.json has no id"),
        ([{"id": 9} | SIZE], [], r"images\[0\] of \S*a.json \(id 9\) has no file_name and no coco_url"),
        ([IMAGES[0] | {"file_name": ""}], [], r"images\[0\] of \S*a.json \(id 9\) has no file_name"),
        ([*IMAGES, IMAGES[0] | {"file_name": "x.jpg"}], [],
         r"a.json has the id 9 twice: images\[0\] \(9.jpg\) and images\[2\] \(x.jpg\) need ids of their own"),
        ([IMAGES[0]], [box(id=2), box(), box(id=2)],
         r"a.json has the id 2 twice: annotations\[0\] and annotations\[2\] need ids of their own"),
        ([IMAGES[0]], None, r"annotations of \S*a.json is null: it must be a list"),
        (None, [], r"images of \S*a.json is null: it must be a list"),
        ([{"id": 9, "file_name": "9.jpg"}], [], r"a.json has only 1 images that give no .*images/9.jpg: missing: make"),
    ],
)  # fmt: skip
def test_broken_lists_and_objects_are_named(write, read, reader, images, annotations, said):
    path = write("a.json")
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(UserError, match=said):
        read(reader, path)


def test_what_other_tools_write_counts(write, read):
    """Numbers as 3.0, sizes that are 0, annotations without ids, keys that are not read, an absolute file."""
    image = {"id": 9.0, "file_name": "/elsewhere/9.jpg", "height": 20.0, "width": 30.0, "license": None, "date": [{}]}
    other = box(image_id=9.0, category_id=18.0, iscrowd=False, area=None, segmentation="x", keypoints={}, id=None)
    (record,) = read(read_boxes, write("a.json", image, annotations=[other, {**other, "iscrowd": 1.0}]))
    expected = {"bbox": [1, 2, 8, 9], "category_id": 16, "bbox_mode": BoxMode.XYWH_ABS}
    assert record == SIZE | {"file_name": "/elsewhere/9.jpg", "image_id": 9, "annotations": [
        expected | {"iscrowd": 0}, expected | {"iscrowd": 1}]}  # fmt: skip
    assert all(type(record[key]) is int for key in ("image_id", "height", "width"))


def test_images_that_give_no_size_are_left_out_and_told(root, write, read, caplog):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (4, 9)]
    path = write("a.json", *images, annotations=[box(image_id=4), box()])
    Image.new("RGB", (30, 20)).save(root / "images/9.jpg")
    (root / "images/4.jpg").write_bytes(b"no image")
    (record,) = read(read_boxes, path)
    assert (record["height"], record["width"], len(record["annotations"])) == (20, 30, 1)
    assert "left out 1 images that give no height and width, first " in caplog.text
    assert "images/4.jpg" in caplog.text and "left out 1 annotations" in caplog.text


# ---- regions


def test_regions_by_image_with_crowds_in_the_files_order(root, write, read):
    annotations = [
        box(segmentation=POLYGON), box(category_id=1, iscrowd=1, segmentation=RUNS),
        {"image_id": 9, "category_id": 90, "bbox": [1, 2, 8, 9], "segmentation": []},
    ]  # fmt: skip
    empty, full = read(read_regions, write("a.json", *IMAGES, annotations=annotations))
    (polygon,) = full["annotations"][0]["segmentation"]
    assert polygon.dtype == np.float64
    full["annotations"][0]["segmentation"] = [polygon.tolist()]
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
    pixels[4:15, 10:26, 0], pixels[0, 0, 0] = 77, 5
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


@pytest.mark.parametrize("reader", [read_lvis, read_regions, read_panoptic_regions, read_pseudo_labels])
def test_a_file_without_boxes_is_refused(write, read, reader):
    path = write("lvis/a.json", *IMAGES)
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match="a.json has no annotations, so it is a file of another kind: make tea$"):
        read(reader, path)


WRONG_MASKS = [
    *(None, "x", 3, {}, ["a"], [["a"] * 6], [1, 2, 3, 4, 5, 6], [[float("nan")] * 6], [[1, 2, 3, 4, 5, None]]),
    *({"size": [20, 30], "counts": counts} for counts in (None, 5, [-3, 603], [0, 5], "hello", "", [0.5, 599.5])),
    *({"size": size, "counts": [0, 600]} for size in (None, [20], ["20", "30"], [10**9, 10**9], [-20, -30])),
    {"size": [30, 20], "counts": [0, 600]},  # of another image
]


@pytest.mark.parametrize("mask", WRONG_MASKS)
def test_wrong_masks_are_named_where_masks_are_read_and_do_no_harm_elsewhere(write, read, mask):
    path = write("a.json", *IMAGES, annotations=[box(segmentation=POLYGON), box(id=7, segmentation=mask)])
    for reader in (read_lvis, read_regions):
        with pytest.raises(UserError, match=r"annotations\[1\].segmentation\S* (of \S*a.json )?\(id 7\)"):
            read(reader, path)
        (record,) = [r for r in read(reader, path, masks=False) if r["annotations"]]
        assert [a["bbox"] for a in record["annotations"]] == [[1, 2, 8, 9]] * 2
    assert len(read(read_boxes, path)[1]["annotations"]) == 2


def test_polygons_without_three_points_are_told(write, read, caplog):
    masks = (POLYGON, [*POLYGON, [1, 2]], [[1, 2, 30, 40]], [])
    path = write("a.json", *IMAGES, annotations=[box(segmentation=mask) for mask in masks])
    _, record = read(read_lvis, path)
    assert [len(a["segmentation"]) for a in record["annotations"]] == [1, 1]
    assert "a.json: 3 annotations, first annotations[1], have no polygons or some of no 3 points" in caplog.text

"""datasets/prepare_flickr8k.py on three photos in each layout: contents, missing photos, repetition, mistakes."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import prepare_flickr8k
from clim.data.categories import COCO_CATEGORIES
from clim.data.datasets import register_own_set
from clim.errors import UserError
from prepare_flickr8k import prepare

DOG, PERSON, HOT_DOG = 18, 1, 58
# b.jpg has no photo, c.jpg names no class.
CAPTIONS = {
    "c.jpg": ["Green grass ."], "a.jpg": ["Two dogs , on \"grass\"", "A woman eats a hot dog ."], "b.jpg": ["A cat ."],
}  # fmt: skip
PAIRS = [
    {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6, "captions": CAPTIONS["a.jpg"],
     "pos_category_ids": [PERSON, DOG, HOT_DOG]},
    {"id": 2, "file_name": "c.jpg", "height": 5, "width": 3, "captions": CAPTIONS["c.jpg"], "pos_category_ids": []},
]  # fmt: skip


def original():
    lines = [f"{name}#{i}\t{text}\n" for name, texts in CAPTIONS.items() for i, text in enumerate(texts)]
    return "\n".join(lines)  # with empty lines between


def kaggle():
    quoted = {name: [text.replace('"', '""') for text in texts] for name, texts in CAPTIONS.items()}
    return "image,caption\n" + "".join(f'{name},"{text}"\n' for name, texts in quoted.items() for text in texts)


def listed():
    return json.dumps({"images": [{"id": 7, "file_name": n, "captions": texts} for n, texts in CAPTIONS.items()]})


LAYOUTS = {
    "original": ("Flicker8k_Dataset", "Flickr8k.token.txt", original),
    "texts apart": ("Flicker8k_Dataset", "Flickr8k_text/Flickr8k.token.txt", original),
    "kaggle": ("Images", "captions.txt", kaggle),
    "json": ("images", "captions.json", listed),
}


def make(source, layout):
    """A source of two photos; returns its text file."""
    folder, text, write = LAYOUTS[layout]
    (source / folder).mkdir(parents=True)
    for name, size in (("a.jpg", (6, 4)), ("c.jpg", (3, 5))):
        Image.new("RGB", size).save(source / folder / name)
    (source / text).parent.mkdir(exist_ok=True)
    (source / text).write_text(write())
    return source / text


def snapshot(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs_and_a_second_run_changes_nothing(tmp_path, capsys, layout):
    source, output = tmp_path / "source", tmp_path / "datasets"
    make(source, layout)
    before = snapshot(source)
    report = prepare(source, output)
    path = output / "flickr8k/annotations/captions_tags.json"
    content = json.loads(path.read_text())
    assert content["images"] == PAIRS and content["annotations"] == []
    assert [(c["id"], c["name"]) for c in content["categories"]] == list(COCO_CATEGORIES)
    photos = source / LAYOUTS[layout][0]
    assert f"left out 1 of 3 photos with captions, which {photos} lacks: b.jpg" in capsys.readouterr().out
    assert os.readlink(output / "flickr8k/images") == str(photos)
    written = snapshot(output)
    prepare_flickr8k.main(["--source", str(source), "--output", str(output)])
    assert report["annotations/captions_tags.json"]["sha256"] in capsys.readouterr().out
    assert snapshot(output) == written and snapshot(source) == before


def test_the_library_reads_the_pairs_with_indices_of_cocos_classes_as_tags(tmp_path):
    make(tmp_path / "source", "kaggle")
    prepare(tmp_path / "source", tmp_path, copy=True)
    folder = tmp_path / "flickr8k"
    register_own_set(
        "flickr8k_test", "captions", str(folder / "annotations/captions_tags.json"), str(folder / "images")
    )
    try:
        records = list(DatasetCatalog.get("flickr8k_test"))
    finally:
        DatasetCatalog.remove("flickr8k_test")
    assert [(r["file_name"], list(r["captions"]), list(r["tags"])) for r in records] == [
        (str(folder / "images/a.jpg"), CAPTIONS["a.jpg"], [0, 16, 52]),
        (str(folder / "images/c.jpg"), CAPTIONS["c.jpg"], []),
    ]


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [
        (
            "original",
            "a.jpg#0\tA dog .\na.jpg A dog .\n",
            "Line 2 of .*token.txt is 'a.jpg A dog .', not \"NAME#NUMBER",
        ),
        ("original", "a.jpg\tA dog .\n", "Line 1 of .*token.txt is 'a.jpg.tA dog .', not"),
        ("original", "\n", "token.txt holds no caption: get Flickr8k"),
        ("kaggle", "a.jpg,A dog .\n", "captions.txt begins with 'a.jpg,A dog .', not \"image,caption\""),
        ("kaggle", "image,caption\n\na.jpg,A dog, a cat .\n", "Line 3 of .*captions.txt has 3 columns instead of 2"),
        ("json", '{"images": [{"file_name": "a.jpg"}]}', r"images\[0\] of .*captions.json has no id"),
        (
            "json",
            '{"images": [{"id": 1, "file_name": "b.jpg", "captions": ["A"]}]}',
            "none of the photos with captions",
        ),
    ],
)
def test_damaged_texts_are_refused_and_nothing_is_written(tmp_path, layout, text, message):
    make(tmp_path / "source", layout).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "source", tmp_path / "datasets")
    assert not (tmp_path / "datasets").exists()


def test_another_layout_a_broken_photo_and_an_output_in_the_source_are_refused(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(UserError, match=r"holds none of: Flicker8k_Dataset/ and Flickr8k.token.txt; .*Get Flickr8k"):
        prepare(source, tmp_path / "datasets")
    make(source, "kaggle")
    with pytest.raises(UserError, match="lies in the source"):
        prepare(source, source)
    (source / "Images/a.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"a.jpg is no image: get Flickr8k"):
        prepare(source, tmp_path / "datasets")
    assert not (tmp_path / "datasets").exists()

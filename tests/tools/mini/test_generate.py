"""The mini benchmark's files: the same images for a seed, correct labels; unfinished files are made again."""

import json

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from clim.data.names import names_file
from clim.errors import UserError
from clim.text import build_text_tower, class_embeddings, load_embeddings, word_piece_means
from mini import generate
from mini.concepts import CONCEPTS, NAMES, caption_tags
from mini.generate import CLASS_EMBEDDINGS, build_mini, draw_image, write_class_embeddings
from tags import word_tags

SIZES = {"num_train": 12, "num_pairs": 10, "num_cluttered": 6, "num_val": 8}


def _contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _json(folder, name):
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("mini")
    summary = build_mini(root, seed=3, workers=1, novel_in_scenes=0.4, **SIZES)
    return root / "mini", summary


def test_images_differ_between_indices_splits_and_seeds():
    keys = [(0, "train", 0), (0, "train", 1), (1, "train", 0), (0, "val", 0), (0, "cluttered", 0), (0, "train", 0)]
    *images, again = [draw_image(*key, novel_in_scenes=0.0)[0].image for key in keys]
    assert np.array_equal(images[0], again) and len({image.tobytes() for image in images}) == 5


def test_layout_and_counts(built):
    folder, summary = built
    for split in generate.SPLITS:
        assert len(list((folder / split).glob("*.jpg"))) == SIZES[f"num_{split}"] == summary["counts"][split]["images"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["version"] == generate.VERSION and summary["arguments"]["seed"] == 3
    names = ("instances_train_base", "instances_val_all", "captions_pairs_tags", "captions_cluttered_tags")
    ids = [image["id"] for name in names for image in _json(folder, name)["images"]]
    assert len(ids) == len(set(ids)) == sum(SIZES.values())  # ids differ between splits too


@pytest.mark.parametrize("name, split", [("instances_train_base", "train"), ("instances_val_all", "val")])
def test_instances_load_with_pycocotools_and_match_the_drawn_masks(built, name, split):
    folder, _ = built
    coco = COCO(str(folder / "annotations" / f"{name}.json"))
    assert [c["name"] for c in coco.loadCats(sorted(coco.getCatIds()))] == list(NAMES)
    assert len(set(coco.getAnnIds())) == len(coco.dataset["annotations"])
    assert len(coco.getImgIds()) == SIZES[f"num_{split}"]
    for index, image_id in enumerate(coco.getImgIds()):
        image = coco.imgs[image_id]
        pixels = cv2.imread(str(folder / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        drawn, _ = draw_image(3, split, index, novel_in_scenes=0.4)
        expected = [
            (c + 1, [float(v) for v in box], int((drawn.mask == i).sum()))
            for i, (c, box) in enumerate(zip(drawn.concepts, drawn.boxes(), strict=True))
            if split == "val" or not CONCEPTS[c].novel
        ]
        written = [(a["category_id"], a["bbox"], a["area"]) for a in coco.imgToAnns[image_id]]
        assert written == expected
        # JPEG artefacts aside the file is the image.
        assert np.abs(pixels.astype(int) - drawn.image).mean() < 8


def test_only_base_objects_are_annotated_and_counted_in_training_scenes(built):
    folder, summary = built
    train, info = _json(folder, "instances_train_base"), _json(folder, "instances_train_base_cat_info")
    counts, annotations = summary["counts"]["train"], train["annotations"]
    assert {a["image_id"] for a in annotations} == {image["id"] for image in train["images"]}
    assert counts["objects"] > counts["annotations"] == len(annotations)
    assert [(entry["id"], entry["name"]) for entry in info] == list(enumerate(NAMES, start=1))
    for entry, concept in zip(info, CONCEPTS, strict=True):
        of_category = [a["image_id"] for a in annotations if a["category_id"] == entry["id"]]
        assert entry["instance_count"] == len(of_category) and not (concept.novel and of_category)
        assert entry["image_count"] == len(set(of_category)) and entry["frequency"] == "r"
    for images, frequency in ((0, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")):
        annotations = [{"image_id": i, "category_id": 7} for i in range(images)] * 2
        (row,) = generate.category_info({"categories": [{"id": 7, "name": "x"}], "annotations": annotations})
        assert (row["image_count"], row["instance_count"], row["frequency"]) == (images, 2 * images, frequency)


@pytest.mark.parametrize("split", ["pairs", "cluttered"])
def test_caption_files_have_detics_format(built, split):
    folder, _ = built
    content = _json(folder, f"captions_{split}_tags")
    assert content["annotations"] == []
    assert [c["id"] for c in content["categories"]] == list(range(1, 66))
    for category, concept in zip(content["categories"], CONCEPTS, strict=True):
        assert category["split"] == ("novel" if concept.novel else "base")
        assert category["frequency"] == "f" and category["synonyms"] == [concept.name, *concept.synonyms]
    for index, image in enumerate(content["images"]):
        assert set(image) == {"id", "file_name", "height", "width", "captions", "pos_category_ids"}
        drawn, captions = draw_image(3, split, index, novel_in_scenes=0.4)
        assert image["captions"] == captions and len(captions) == 5
        assert image["pos_category_ids"] == caption_tags(captions)
        assert {c + 1 for c in drawn.concepts} >= set(image["pos_category_ids"]) >= {drawn.concepts[0] + 1}


def test_files_do_not_depend_on_the_number_of_workers(built, tmp_path):
    folder, summary = built
    assert build_mini(tmp_path, seed=3, workers=2, novel_in_scenes=0.4, **SIZES) == summary
    assert _contents(tmp_path / "mini") == _contents(folder)


def test_finished_output_is_kept_and_half_written_output_rebuilt(tmp_path):
    sizes = {"num_train": 2, "num_pairs": 2, "num_cluttered": 1, "num_val": 1}
    summary = build_mini(tmp_path, workers=1, **sizes)
    folder = tmp_path / "mini"
    (folder / "notes.txt").write_text("a user's own file")
    first, touched = _contents(folder), folder / "train" / "000001.jpg"
    touched.write_bytes(b"torn")
    assert build_mini(tmp_path, workers=1, **sizes) == summary
    assert touched.read_bytes() == b"torn"
    begun = json.dumps({"version": summary["version"], "arguments": summary["arguments"]})
    (folder / "pairs" / "000099.jpg").write_bytes(b"stale")
    (folder / "summary.json").write_text(begun)  # by a call that was interrupted
    assert build_mini(tmp_path, workers=1, **sizes) == summary
    assert _contents(folder) == first


@pytest.mark.parametrize("damage", [None, "", "{", "[]", "null", '{"version": "2", "arguments": {}}', "\0\0"])
def test_a_folder_whose_summary_is_missing_or_damaged_stays(tmp_path, damage):
    folder = tmp_path / "mini"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "mine.jpg").write_bytes(b"a photo")
    if damage is not None:
        (folder / "summary.json").write_text(damage)
    with pytest.raises(UserError, match=f"move {folder} away" if damage is None else f"remove {folder}, and it is"):
        build_mini(tmp_path, workers=1, num_train=1, num_pairs=0, num_cluttered=0, num_val=0)
    assert (folder / "train" / "mine.jpg").read_bytes() == b"a photo"


def test_other_arguments_replace_what_is_there(tmp_path):
    sizes = {"num_train": 1, "num_cluttered": 0, "num_val": 0}
    build_mini(tmp_path, workers=1, num_pairs=2, **sizes)
    pair = (tmp_path / "mini/pairs/000000.jpg").read_bytes()
    summary = build_mini(tmp_path, workers=1, seed=1, num_pairs=1, **sizes)
    assert summary["arguments"]["seed"] == 1 and summary["counts"]["val"] == {"images": 0, "objects": 0}
    assert [path.name for path in (tmp_path / "mini/pairs").iterdir()] == ["000000.jpg"]
    assert (tmp_path / "mini/pairs/000000.jpg").read_bytes() != pair


@pytest.mark.parametrize("arguments", [{"num_val": -1}, {"seed": -1}, {"novel_in_scenes": 1.5}])
def test_impossible_arguments_are_errors(tmp_path, arguments):
    with pytest.raises(UserError, match="Seed and sizes must be"):
        build_mini(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_class_embeddings_of_every_config(tiny_mini, load_cfg):
    tower = build_text_tower(name="minilm")
    files = {load_cfg(f"mini/{name}.yaml").MODEL.VOCABULARY.EMBEDDINGS for name in ("detic", "ovrcnn")}
    assert files == set(CLASS_EMBEDDINGS)
    sentences, words = (tiny_mini / name for name in CLASS_EMBEDDINGS)
    expected = class_embeddings(tower, NAMES, "a")
    torch.testing.assert_close(load_embeddings(sentences), expected)
    assert torch.equal(load_embeddings(words, unit=False), word_piece_means(tower, NAMES))


def test_nouns_of_the_pairs(tiny_mini):
    """All pairs stay. Tags and embeddings number the nouns in the order of the list."""
    plain, tagged = (_json(tiny_mini / "mini", f"captions_pairs_{what}") for what in ("tags", "nouns"))
    listed = json.loads((tiny_mini / "mini/metadata/nouns.json").read_text())["categories"]
    words = {c["id"]: c["name"] for c in listed}
    assert {c["id"]: c["name"] for c in tagged["categories"]} == words and len(words) > 5
    table = {i: (noun,) for i, noun in words.items()}
    for image, before in zip(tagged["images"], plain["images"], strict=True):
        assert image == before | {"pos_category_ids": word_tags(image["captions"], table)}
    expected = class_embeddings(build_text_tower(name="minilm"), list(words.values()), "a")
    found = load_embeddings(tiny_mini / "mini/metadata/nouns_minilm.npy")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_only_what_is_missing_is_written(tmp_path):
    present, missing = (tmp_path / name for name in CLASS_EMBEDDINGS)
    present.parent.mkdir(parents=True)
    present.write_bytes(b"kept")
    write_class_embeddings(tmp_path)
    assert present.read_bytes() == b"kept" and np.load(missing).shape == (65, 384)
    names = names_file(missing)
    assert {path.name for path in present.parent.iterdir()} == {present.name, missing.name, names.name}
    assert json.loads(names.read_text()) == list(NAMES)

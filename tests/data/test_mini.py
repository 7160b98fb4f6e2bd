"""The mini benchmark: deterministic pictures, tight boxes, honest labels, tags read from captions."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from clim.data import mini
from clim.data.mini import build_mini, caption_tags, draw, draw_pair, draw_picture, draw_scene, place
from clim.data.mini_concepts import CONCEPTS, MINI_BASE, MINI_CATEGORIES, MINI_NOVEL, plural_of
from clim.errors import UserError

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


def _id(name):
    return MINI_CATEGORIES.index(name) + 1


# ------------------------------------------------------------------------------------------------- concepts


def test_48_base_and_17_novel_concepts_between_them():
    assert (len(MINI_CATEGORIES), len(MINI_BASE), len(MINI_NOVEL)) == (65, 48, 17)
    assert len(set(MINI_CATEGORIES)) == 65
    assert len({concept.code for concept in CONCEPTS}) == 65
    assert set(MINI_BASE) | set(MINI_NOVEL) == set(MINI_CATEGORIES)
    neighbours = zip(CONCEPTS, CONCEPTS[1:], strict=False)
    assert not any(a.novel and b.novel for a, b in neighbours)


def test_no_word_of_a_concept_speaks_of_another():
    for index, concept in enumerate(CONCEPTS, start=1):
        assert 1 <= len(concept.synonyms) <= 2
        for word in (concept.name, concept.plural, *concept.synonyms, *map(plural_of, concept.synonyms)):
            assert caption_tags([word]) == [index], word


def test_no_template_speaks_of_a_concept():
    words = (*mini.WEB_TEMPLATES, *mini.WEB_EXTRAS, *mini.SCENE_TEMPLATES, *mini.NUMBERS)
    assert caption_tags(words) == []


@pytest.mark.parametrize(
    "noun, plural",
    [("hare", "hares"), ("coach", "coaches"), ("grizzly", "grizzlies"), ("door key", "door keys")],
)
def test_plural_of(noun, plural):
    assert plural_of(noun) == plural


# --------------------------------------------------------------------------------------------- tags, captions


def test_tags_are_whole_words_of_either_number_in_any_case():
    assert caption_tags([]) == []
    assert caption_tags(["A Dog, two HORSES", "more dogs"]) == sorted([_id("horse"), _id("dog")])
    assert caption_tags(["a dogma about carpets, hotdogs, keyboards"]) == [_id("keyboard")]
    assert caption_tags(["pup", "(sofas)"]) == sorted([_id("dog"), _id("couch")])


def _tags_word_by_word(captions):
    """The slow reference: every form of every concept, sought as a run of whole words."""
    found = set()
    for caption in captions:
        words = re.split(r"\W+", caption.lower())
        for index, c in enumerate(CONCEPTS, start=1):
            forms = [c.name, c.plural, *c.synonyms, *map(plural_of, c.synonyms)]
            for form in (f.split() for f in forms):
                if any(words[i : i + len(form)] == form for i in range(len(words))):
                    found.add(index)
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(concepts=st.lists(st.integers(0, 64), min_size=1, max_size=2), seed=st.integers(0, 2**32))
def test_web_captions_name_the_main_object_always_and_nothing_else(concepts, seed):
    captions = mini.web_captions(concepts, np.random.default_rng(seed))
    assert len(captions) == len(set(captions)) == 5
    for caption in captions:
        tags = caption_tags([caption])
        assert concepts[0] + 1 in tags
        assert set(tags) <= {c + 1 for c in concepts}
        assert tags == _tags_word_by_word([caption])


@settings(max_examples=30, deadline=None)
@given(concepts=st.lists(st.integers(0, 64), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_scene_captions_list_every_object(concepts, seed):
    captions = mini.scene_captions(concepts, np.random.default_rng(seed))
    assert len(captions) == len(set(captions)) == 5
    for caption in captions:
        assert caption_tags([caption]) == sorted({c + 1 for c in concepts}) == _tags_word_by_word([caption])


def test_two_of_a_kind_are_counted():
    captions = mini.scene_captions([1, 1, 0], np.random.default_rng(0))
    assert all(re.search(r"two (dogs|hounds|pups)", caption) for caption in captions)


def test_some_captions_leave_the_second_object_out():
    rng = np.random.default_rng(0)
    tags = [caption_tags([c]) for _ in range(40) for c in mini.web_captions([4, 60], rng)]
    assert 0.2 < np.mean([t == [5] for t in tags]) < 0.4
    assert [5] in tags and [5, 61] in tags


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("concept", range(0, 65, 4))
def test_boxes_are_tight_around_the_alpha(concept):
    def drawn(shade):
        background = np.full((256, 256, 3), shade, np.uint8)
        return draw(background, [concept], np.random.default_rng(concept), sides=(28, 112))

    on_black, on_white = drawn(0), drawn(255)
    # What shines through from behind is 255 · (1 - alpha).
    alpha = 255 - (on_white.image.astype(int) - on_black.image.astype(int)).max(axis=2)
    (x, y, width, height) = on_black.boxes()[0]
    for share in 40, 200:
        rows, columns = np.nonzero(alpha >= share)[:2]
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        if share == 40:
            np.testing.assert_allclose([x, y, x + width, y + height], edges, atol=1)
        else:
            assert x <= edges[0] and y <= edges[1] and edges[2] <= x + width and edges[3] <= y + height
    assert max(width, height) <= 112


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_boxes_lie_inside_and_touch_what_is_visible_on_all_sides(seed):
    for picture in (
        draw_scene(np.random.default_rng(seed), photos=mini.PHOTOS),
        draw_pair(np.random.default_rng(seed)),
    ):
        assert picture.image.shape == (256, 256, 3) and picture.image.dtype == np.uint8
        boxes = picture.boxes()
        assert len(boxes) == len(picture.concepts) >= 1
        assert (boxes[:, 2:] > 0).all() and (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= 256).all()
        for i, (x, y, w, h) in enumerate(boxes):
            inside = picture.mask[y : y + h, x : x + w] == i
            assert inside.sum() == (picture.mask == i).sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 256), st.integers(1, 256)), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_place_keeps_boxes_inside_and_apart(sizes, seed):
    corners = place(sizes, np.random.default_rng(seed))
    assert len(corners) <= len(sizes) and (len(corners) > 0) == (len(sizes) > 0)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=False)]
    for i, a in enumerate(boxes):
        assert min(a) >= 0 and max(a) <= 256
        for b in boxes[:i]:
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
            assert max(width, 0) * max(height, 0) < mini.MAX_COVERED * smaller


def test_place_leaves_out_what_finds_no_room():
    assert len(place([(256, 256), (256, 256)], np.random.default_rng(0))) == 1


def test_scenes_for_training_hold_a_base_object_always():
    rng = np.random.default_rng(0)
    for _ in range(20):
        concepts = draw_scene(rng, photos=mini.PHOTOS, novel_share=1.0).concepts
        assert [CONCEPTS[c].novel for c in concepts].count(False) == 1


def test_pictures_differ_between_indices_splits_and_seeds():
    keys = [(0, "train", 0), (0, "train", 1), (1, "train", 0), (0, "val", 0), (0, "cluttered", 0)]
    pictures = [draw_picture(*key, novel_in_scenes=0.0)[0].image for key in keys]
    again = draw_picture(*keys[0], novel_in_scenes=0.0)[0].image
    np.testing.assert_array_equal(pictures[0], again)
    for i, a in enumerate(pictures):
        assert all((a != b).any() for b in pictures[:i])


def test_validation_sees_a_photo_of_its_own():
    held_out = set(mini.VAL_PHOTOS) - set(mini.PHOTOS)
    assert held_out and not held_out & set(mini.PAIR_PHOTOS)


# ---------------------------------------------------------------------------------------------------- files


def test_layout_and_counts(built):
    folder, summary = built
    numbers = {"train": 12, "pairs": 10, "cluttered": 6, "val": 8}
    for split, number in numbers.items():
        assert len(list((folder / split).glob("*.jpg"))) == number == summary["counts"][split]["images"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["version"] == mini.VERSION and summary["arguments"]["seed"] == 3


@pytest.mark.parametrize("name, split", [("instances_train_base", "train"), ("instances_val_all", "val")])
def test_instances_load_with_pycocotools_and_match_the_drawn_masks(built, name, split):
    folder, _ = built
    coco = COCO(str(folder / "annotations" / f"{name}.json"))
    assert [c["name"] for c in coco.loadCats(sorted(coco.getCatIds()))] == list(MINI_CATEGORIES)
    assert len(set(coco.getAnnIds())) == len(coco.dataset["annotations"])
    assert len(coco.getImgIds()) == SIZES[f"num_{split}"]
    for index, image_id in enumerate(coco.getImgIds()):
        image = coco.imgs[image_id]
        pixels = cv2.imread(str(folder / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        picture, _ = draw_picture(3, split, index, novel_in_scenes=0.4)
        drawn = [
            (c + 1, [float(v) for v in box], int((picture.mask == i).sum()))
            for i, (c, box) in enumerate(zip(picture.concepts, picture.boxes(), strict=True))
            if split == "val" or not CONCEPTS[c].novel
        ]
        written = [(a["category_id"], a["bbox"], a["area"]) for a in coco.imgToAnns[image_id]]
        assert written == drawn
        # JPEG artefacts aside the file is the picture.
        assert np.abs(pixels.astype(int) - picture.image).mean() < 8


def test_only_base_objects_are_annotated_in_training_scenes(built):
    folder, summary = built
    train = _json(folder, "instances_train_base")
    labelled = {MINI_CATEGORIES[a["category_id"] - 1] for a in train["annotations"]}
    assert labelled <= set(MINI_BASE)
    assert {a["image_id"] for a in train["annotations"]} == {image["id"] for image in train["images"]}
    assert summary["counts"]["train"]["objects"] > summary["counts"]["train"]["annotations"]
    assert summary["counts"]["train"]["annotations"] == len(train["annotations"])


def test_category_info_counts_images_and_instances(built):
    folder, _ = built
    train = _json(folder, "instances_train_base")
    info = _json(folder, "instances_train_base_cat_info")
    assert [(entry["id"], entry["name"]) for entry in info] == list(enumerate(MINI_CATEGORIES, start=1))
    for entry in info:
        of_category = [a["image_id"] for a in train["annotations"] if a["category_id"] == entry["id"]]
        assert entry["instance_count"] == len(of_category)
        assert entry["image_count"] == len(set(of_category))
        assert entry["frequency"] == "r"
    assert all(entry["image_count"] == 0 for entry in info if entry["name"] in MINI_NOVEL)


@pytest.mark.parametrize("images, frequency", [(0, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")])
def test_frequency_follows_lvis(images, frequency):
    instances = {
        "categories": [{"id": 7, "name": "x"}],
        "annotations": [{"image_id": i, "category_id": 7} for i in range(images)] * 2,
    }
    assert mini.category_info(instances) == [
        {
            "id": 7, "name": "x", "image_count": images, "instance_count": 2 * images, "frequency": frequency
        }
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["pairs", "cluttered"])
def test_caption_files_have_detics_format(built, split):
    folder, _ = built
    content = _json(folder, f"captions_{split}_tags")
    assert content["annotations"] == []
    assert [c["id"] for c in content["categories"]] == list(range(1, 66))
    for category, concept in zip(content["categories"], CONCEPTS, strict=True):
        assert category["frequency"] == "f" and category["synonyms"] == [concept.name, *concept.synonyms]
    for index, image in enumerate(content["images"]):
        assert set(image) == {"id", "file_name", "height", "width", "captions", "pos_category_ids"}
        picture, captions = draw_picture(3, split, index, novel_in_scenes=0.4)
        assert image["captions"] == captions and len(captions) == 5
        assert image["pos_category_ids"] == _tags_word_by_word(captions)
        assert (
            {c + 1 for c in picture.concepts} >= set(image["pos_category_ids"]) >= {picture.concepts[0] + 1}
        )


def test_tags_come_from_the_captions_not_from_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "web_captions", lambda concepts, rng: ["two hounds", "an owl"])
    build_mini(tmp_path, num_train=0, num_pairs=3, num_cluttered=0, num_val=0, workers=1)
    images = _json(tmp_path / "mini", "captions_pairs_tags")["images"]
    assert [image["pos_category_ids"] for image in images] == [[_id("dog"), _id("owl")]] * 3


def test_image_ids_differ_between_all_splits(built):
    folder, _ = built
    names = ("instances_train_base", "instances_val_all", "captions_pairs_tags", "captions_cluttered_tags")
    ids = [image["id"] for name in names for image in _json(folder, name)["images"]]
    assert len(ids) == len(set(ids)) == sum(SIZES.values())


# -------------------------------------------------------------------------------- building, keeping, mending


def test_files_do_not_depend_on_the_number_of_workers(built, tmp_path):
    folder, summary = built
    assert build_mini(tmp_path, seed=3, workers=2, novel_in_scenes=0.4, **SIZES) == summary
    assert _contents(tmp_path / "mini") == _contents(folder)


def test_finished_output_is_kept_and_half_written_output_rebuilt(tmp_path):
    sizes = {"num_train": 2, "num_pairs": 2, "num_cluttered": 1, "num_val": 1}
    summary = build_mini(tmp_path, workers=1, **sizes)
    folder = tmp_path / "mini"
    first = _contents(folder)

    touched = folder / "train" / "000001.jpg"
    touched.write_bytes(b"torn")
    (folder / "notes.txt").write_text("a user's own file")
    assert build_mini(tmp_path, workers=1, **sizes) == summary
    assert touched.read_bytes() == b"torn"

    for summary_text in (None, "{", "[]"):
        (folder / "summary.json").unlink()
        if summary_text is not None:
            (folder / "summary.json").write_text(summary_text)
        (folder / "pairs" / "000099.jpg").write_bytes(b"stale")
        assert build_mini(tmp_path, workers=1, **sizes) == summary
        assert (folder / "notes.txt").read_text() == "a user's own file"
        (folder / "notes.txt").rename(tmp_path / "notes.txt")
        assert _contents(folder) == first
        (tmp_path / "notes.txt").rename(folder / "notes.txt")


def test_other_arguments_replace_what_is_there(tmp_path):
    sizes = {"num_pairs": 1, "num_cluttered": 0, "num_val": 0}
    build_mini(tmp_path, workers=1, num_train=3, **sizes)
    pair = (tmp_path / "mini" / "pairs" / "000000.jpg").read_bytes()
    summary = build_mini(tmp_path, workers=1, seed=1, num_train=1, **sizes)
    assert summary["arguments"]["seed"] == 1
    assert len(list((tmp_path / "mini" / "train").iterdir())) == 1
    assert (tmp_path / "mini" / "pairs" / "000000.jpg").read_bytes() != pair


def test_empty_splits_are_legal(tmp_path):
    summary = build_mini(tmp_path, num_train=0, num_pairs=0, num_cluttered=0, num_val=0)
    assert all(number == 0 for counts in summary["counts"].values() for number in counts.values())
    assert _json(tmp_path / "mini", "instances_val_all")["images"] == []


@pytest.mark.parametrize("arguments", [{"num_val": -1}, {"seed": -1}, {"novel_in_scenes": 1.5}])
def test_impossible_arguments_are_told(tmp_path, arguments):
    with pytest.raises(UserError, match="mini benchmark takes"):
        build_mini(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"needs resvg-py: pip install -r requirements\.txt"):
        build_mini(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_photo_is_told():
    with pytest.raises(UserError, match=r"no photo data/nowhere\.png"):
        mini.photo("nowhere.png")


def test_a_missing_drawing_is_told(monkeypatch):
    monkeypatch.setattr(mini, "CONCEPTS", (CONCEPTS[0]._replace(code="FFFFF"),))
    with pytest.raises(UserError, match=r"no drawing FFFFF \(horse\)"):
        mini.drawing.__wrapped__(0)

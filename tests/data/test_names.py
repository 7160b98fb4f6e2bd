"""The detector's words, and sets in other orders that are matched to them."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from clim.data.datasets import register_own_set
from clim.data.loader import source_records
from clim.data.names import (
    matched,
    names_file,
    pair_records,
    set_categories,
    training_records,
    vocabulary_names,
    with_tags,
)
from clim.errors import UserError

WORDS = ["dog", "car", "kite", "cup"]
CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"


@pytest.fixture
def cfg(load_cfg):
    """A config of four words without names and without sets, to be overridden."""

    def make(*overrides):
        sets = (f"DATASETS.{key}" for key in ("TRAIN", "TEST", "CAPTIONS"))
        nothing = [value for key in sets for value in (key, ())] + ["MODEL.VOCABULARY.EMBEDDINGS", ""]
        return load_cfg("mini/detic_clim.yaml", *nothing, CLASSES, 4, *overrides)

    return make


@pytest.fixture
def own(tmp_path):
    """``own(name, {id: class}, kind="boxes")`` registers a set with a box, or an image's tag, of each class."""
    names = []

    def make(name, categories, *, kind="boxes", **register):
        boxes = [{"id": i, "image_id": 1, "category_id": i, "bbox": [i, 1, 5, 5], "iscrowd": 0} for i in categories]
        image = {"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}
        pairs = {"captions": ["a"], "pos_category_ids": list(categories)} if kind == "captions" else {}
        listed = [{"id": i, "name": word} for i, word in categories.items()]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": [image | pairs], "annotations": boxes, "categories": listed}))
        if register:
            DatasetCatalog.register(name, register["function"])
        elif kind == "detectron2":
            register_coco_instances(name, {}, str(path), str(tmp_path))
        else:
            register_own_set(name, kind, str(path), str(tmp_path))
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_first_that_says_it_gives_the_words(cfg, own, tmp_path):
    train, test = own("names_train", dict(enumerate(WORDS))), own("names_test", dict(enumerate(WORDS[::-1])))
    few = own("names_few", {1: "dog"})
    sets = ("DATASETS.TRAIN", (few, train), "DATASETS.TEST", (test,))
    assert vocabulary_names(cfg()) == ["class 0", "class 1", "class 2", "class 3"]
    assert vocabulary_names(cfg("DATASETS.TEST", (test,))) == WORDS[::-1]
    assert vocabulary_names(cfg(*sets)) == WORDS
    file = ("MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "e.v1.npy"))
    assert vocabulary_names(cfg(*sets, *file)) == WORDS
    assert names_file(file[1]) == tmp_path / "e.v1.names.json"
    names_file(file[1]).write_text('["a", "b", "c", "d"]')
    assert vocabulary_names(cfg(*sets, *file)) == ["a", "b", "c", "d"]
    assert vocabulary_names(cfg(*sets, *file, "MODEL.VOCABULARY.NAMES", ["x"])) == ["x"]
    for content, message in (
        ("{}", "is {}: it must be a list"), ('["a"]', "1 names, but .*NUM_CLASSES is 4"), ("[", "not valid"),
        ('["a", 1, "c", "d"]', "is 1: it must be a text"), ('["a", "b\\n", "c", "d"]', "has the name"),
    ):  # fmt: skip
        names_file(file[1]).write_text(content)
        with pytest.raises(UserError, match=f"e.v1.names.json .*{message}"):
            vocabulary_names(cfg(*file))
    (tmp_path / "names_train.json").unlink()
    assert vocabulary_names(cfg(*sets)) == WORDS[::-1]
    with pytest.raises(UserError, match="names_train.json not found"):
        vocabulary_names(cfg("DATASETS.TRAIN", (train,)))


@pytest.mark.parametrize("kind", ["boxes", "detectron2", "lvis"])
def test_permutations_and_subsets_train_the_right_classes(cfg, own, kind):
    whole = own("names_whole", {5: "cup", 9: "dog", 2: "car", 7: "kite"}, kind=kind)
    part = own("names_part", {1: "kite", 2: "dog"}, kind=kind)
    named = cfg("DATASETS.TRAIN", (whole, part), "MODEL.VOCABULARY.NAMES", WORDS)
    assert matched(named, "TRAIN", whole) == [1, 3, 2, 0] and matched(named, "TRAIN", part) == [2, 0]
    ids = {"names_whole": {5: "cup", 9: "dog", 2: "car", 7: "kite"}, "names_part": {1: "kite", 2: "dog"}}
    records = source_records(named, "detection")
    for record, categories in zip(records, ids.values(), strict=True):
        found = {int(a["bbox"][0]): WORDS[a["category_id"]] for a in record["annotations"]}
        assert found == categories  # a box begins at its category's id
    other = cfg("DATASETS.TRAIN", (part,), "MODEL.VOCABULARY.NAMES", ["kite", "dog", "x"])
    assert [a["category_id"] for a in source_records(other, "detection")[0]["annotations"]] == [0, 1]


def test_other_words_are_refused_with_the_first_difference(cfg, own):
    name = own("names_other", {1: "dog", 2: "cat", 3: "puppy"}, kind="detectron2")
    options = ("DATASETS.TEST", (name,), "MODEL.VOCABULARY.NAMES", WORDS)
    message = (
        r"^Class 2 of DATASETS.TEST names_other \(.*names_other.json\) is 'cat', which the detector's vocabulary "
        r"\(MODEL.VOCABULARY\) lacks, where class 2 is 'car': rename the class, add 'cat' to MODEL.VOCABULARY.NAMES"
    )
    with pytest.raises(UserError, match=message):
        matched(cfg(*options), "TEST", name)
    with pytest.raises(UserError, match="names_other has 3 classes, but the detector 4: set MODEL.VOCABULARY.NAMES"):
        matched(cfg("DATASETS.TEST", (name,)), "TEST", name)
    with pytest.raises(UserError, match="Class 3 of .* is 'puppy', .* where class 2 is the last"):
        matched(cfg("DATASETS.TEST", (name,), "MODEL.VOCABULARY.NAMES", ["cat", "dog"]), "TEST", name)
    twice = own("names_twice", {1: "dog", 2: "car", 3: "dog"})
    with pytest.raises(UserError, match="names_twice .*lists the class name 'dog' 2 times"):
        matched(cfg("DATASETS.TRAIN", (twice,), "MODEL.VOCABULARY.NAMES", WORDS), "TRAIN", twice)
    for words in (["dog", "dog"], ["dog", " "]):
        with pytest.raises(UserError, match="MODEL.VOCABULARY.NAMES (lists the class name 'dog'|has an empty name)"):
            vocabulary_names(cfg("MODEL.VOCABULARY.NAMES", words))


def test_a_function_gives_the_same_records_again_and_indices_of_no_class_are_refused(cfg, own):
    box = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYWH_ABS}
    boxes = [box | {"category_id": i} for i in (0, 1)]
    records = [{"file_name": "a.jpg", "annotations": boxes}, {"file_name": "b.jpg", "annotations": []}]
    name = own("names_function", {}, function=lambda: records)
    named = cfg("MODEL.VOCABULARY.NAMES", ["cup", "dog"])
    assert matched(named, "TRAIN", name) is None and training_records(named, name) == records  # no names: indices
    with pytest.raises(UserError, match="a box of a.jpg has class 1, but there are 1 classes: number them from 0"):
        training_records(cfg("MODEL.VOCABULARY.NAMES", ["cup"]), name)
    MetadataCatalog.get(name).thing_classes = ["dog", "cup"]
    for _ in range(2):
        found = training_records(named, name)
        assert [a["category_id"] for a in found[0]["annotations"]] == [1, 0] and found[1] == records[1]
    records[0]["annotations"][0]["category_id"] = -1
    with pytest.raises(UserError, match="a box of a.jpg has class -1, but there are 2 classes"):
        training_records(named, name)
    for i, wrong in enumerate((None, 5, [None], [{"file_name": "b.jpg"}])):
        with pytest.raises(UserError, match=rf"DATASETS.TRAIN names_wrong{i} .*(return a list|without annotations)"):
            training_records(named, own(f"names_wrong{i}", {}, function=lambda wrong=wrong: wrong))


def test_tags_are_matched_where_they_are_classes(cfg, own, caplog):
    name = own("names_pairs", {3: "cup", 4: "unicorn", 5: "dog"}, kind="captions")
    options = ["MODEL.VOCABULARY.NAMES", WORDS, "DATASETS.CAPTIONS", (name,)]
    assert pair_records(cfg(*options), name)[0]["tags"] == [3, 0]
    assert "1 of the 3 tags of DATASETS.CAPTIONS names_pairs are no classes of the detector, such as 'un" in caplog.text
    assert source_records(cfg(*options), "mosaics")[0]["tags"] == [3, 0]
    for other in (["MODEL.METHOD.NAME", "VLDet"], ["MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0]):  # nouns; unused
        assert pair_records(cfg(*options, *other), name)[0]["tags"] == [0, 1, 2]
    assert pair_records(cfg(*options[2:]), name)[0]["tags"] == [0, 1, 2]  # nobody names the detector's rows
    with pytest.raises(UserError, match="3 of the 3 tags of .* such as 'cup', .*TAG_WEIGHT 0.0"):
        pair_records(cfg("MODEL.VOCABULARY.NAMES", ["x", "y"]), name)
    pairs = [{"file_name": "a.jpg", "height": 1, "width": 1, "image_id": 0, "captions": ["x"], "tags": [0, 9]}]
    function = own("names_tags", {}, function=lambda: pairs)
    with pytest.raises(UserError, match="names_tags has tags up to 9, but there are . classes"):
        pair_records(cfg(*options), function)


def test_tags_of_shards_are_matched_when_a_record_is_read():
    assert with_tags([5, None, 7], {"tags": [2, 0, 1], "a": 1}) == {"tags": [7, 5], "a": 1}


def test_categories_of_metadata_without_ids_have_those_of_the_json(own):
    name = own("names_ids", {7: "cup", 3: "dog", 5: "car"}, kind="detectron2")
    assert set_categories(name) == {3: "dog", 5: "car", 7: "cup"}
    metadata = MetadataCatalog.get(name).set(thing_classes=["cup", "dog"])
    assert set_categories(name) == {7: "cup", 3: "dog"}  # by name
    del metadata.thing_classes
    metadata.thing_classes = ["hound", "car", "cup"]
    assert set_categories(name) == {3: "hound", 5: "car", 7: "cup"}  # the json has no hound: by ascending id

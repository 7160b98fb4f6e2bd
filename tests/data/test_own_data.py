"""data.yaml: its sets and classes, their records and metadata, the config that follows; mistakes in one sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clim.data.names import matched, vocabulary_names
from clim.data.own_data import read_data, register_data
from clim.engine import load_config
from clim.errors import UserError
from clim.modeling.vocabulary import class_mask
from shards.build import build_index

CLIM = str(Path(__file__).parents[2] / "configs/mini/detic_clim.yaml")
CATEGORIES = [{"id": i, "name": name} for i, name in ((7, "cat"), (3, "dog"), (5, "kite"))]
ANNOTATIONS = [{"id": i, "image_id": 1, "category_id": c, "bbox": [i, 2, 8, 9]} for i, c in enumerate((7, 3, 5, 3))]
BOXES = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": ANNOTATIONS, "categories": CATEGORIES,
}  # fmt: skip
COCO = "{images: images, boxes: ann.json}"


@pytest.fixture
def own(tmp_path, write_shard, pair):
    """``own(text)``: a data.yaml beside boxes and captions of two images in every format; its sets are removed."""
    for folder in ("images", "data set/images/x"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("a.jpg", "b.jpg"):
            Image.new("RGB", (40, 20)).save(tmp_path / folder / name)
    captions = [{"id": 1, "file_name": "a.jpg", "captions": ["A kite"], "pos_category_ids": [7, 4]}]
    captions += [{"id": 2, "file_name": "b.jpg", "captions": ["two hot dogs and Kites!", "a cat"]}]
    others = [{"id": 4, "name": "cow"}, *CATEGORIES]
    words = "<annotation><object><name>kite</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    for name, content in {
        "ann.json": json.dumps(BOXES), "caps.json": json.dumps({"images": captions, "categories": others}),
        "lvis.json": json.dumps(BOXES | {"categories": [c | {"frequency": "c", "image_count": 4} for c in CATEGORIES]}),
        "data set/labels/x/a.txt": "1 .5 .5 .5 1", "voc/b.xml": words + "</bndbox></object></annotation>",
        "caps.tsv": "a.jpg\tA kite\nb.jpg\ttwo hot dogs and Kites!\nb.jpg\ta cat\n", "images/a.txt": "no name",
        "empty/a.xml": "<annotation/>",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, "utf-8-sig")
    write_shard(tmp_path / "shards/0.tar", *pair("1", "my cats"), *pair("2", "nothing"))
    before = set(DatasetCatalog)

    def read(text, name="mine"):
        (tmp_path / f"{name}.yaml").write_text(text, "utf-8-sig")
        return read_data(tmp_path / f"{name}.yaml")

    yield read
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def loaded(data, **options):
    """The records of all sets by name, (class, box) in place of annotations."""
    register_data(data, **options)
    records = {own.name: DatasetCatalog.get(own.name) for own in data.sets}
    return {k: [[(a["category_id"], a["bbox"]) for a in r["annotations"]] for r in rs] for k, rs in records.items()}


def test_categories_are_matched_by_name_and_novel_boxes_are_not_trained(own, caplog):
    data = own(f"classes: [kite, cat]\nnovel: [dog, zebra]\ntrain: {COCO}\nval: [{COCO}, {COCO}]")
    assert (data.classes, data.novel) == (["kite", "cat", "dog", "zebra"], ["dog", "zebra"])
    assert data.names("train") == ("mine_train",) and data.names("val") == ("mine_val", "mine_val_2")
    every = [(1, [0, 2, 8, 9]), (2, [1, 2, 8, 9]), (0, [2, 2, 8, 9]), (2, [3, 2, 8, 9])]
    base = [(k, box) for k, box in every if k != 2]
    assert loaded(data) == {"mine_train": [base, []], "mine_val": [every, []], "mine_val_2": [every, []]}
    assert "mine_train: left out 2 boxes of novel classes" in caplog.text and "mine_val" not in caplog.text
    metadata = MetadataCatalog.get("mine_val")
    assert (metadata.thing_classes, metadata.base_classes) == (data.classes, ["kite", "cat"])
    assert (metadata.novel_classes, metadata.evaluator_type) == (["dog", "zebra"], "ov_coco")
    assert metadata.json_file == str(data.file.parent / "ann.json")
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 1, 3: 2, 5: 0, 8 + 3: 3}


def test_a_split_of_the_json_is_not_ignored_without_a_word(own, caplog):
    categories = [c | {"split": "base" if c["name"] == "cat" else "novel"} for c in CATEGORIES]
    (own(f"train: {COCO}").file.parent / "split.json").write_text(json.dumps(BOXES | {"categories": categories}))
    split = "{images: images, boxes: split.json}"
    for text in (f"train: {COCO}", f"novel: []\nval: {split}", f"novel: [kite]\ntrain: {split}"):
        own(text)
    assert not caplog.records
    assert own(f"train: {COCO}\nval: {split}").novel == []
    (record,) = caplog.records
    assert '"split": "novel" at \'dog\', but' in record.getMessage() and "add novel: [dog" in record.getMessage()


def test_classes_are_those_of_the_train_sets(own):
    """Without classes: by id, or sorted; without novel ones, no class has a split."""
    data = own(f"train: [{COCO}, {{images: images, boxes: voc}}]\nval: {{images: images, boxes: lvis.json}}")
    assert (data.classes, [own.kind for own in data.sets]) == (["dog", "kite", "cat"], ["COCO", "VOC", "LVIS"])
    boxes = [(2, [0, 2, 8, 9]), (0, [1, 2, 8, 9]), (1, [2, 2, 8, 9]), (0, [3, 2, 8, 9])]
    of_voc = [[], [(1, [0, 0, 9, 9])]]
    assert loaded(data) == {"mine_train": [boxes, []], "mine_train_2": of_voc, "mine_val": [boxes, []]}
    train, val = (MetadataCatalog.get(f"mine_{part}") for part in ("train_2", "val"))
    assert (train.base_classes, train.novel_classes, train.get("json_file")) == ([], [], None)
    assert val.evaluator_type == "lvis" and val.class_image_count == [{"id": i, "image_count": 4} for i in range(3)]
    assert own("val: {images: images, boxes: voc}").classes == ["kite"]
    assert own(f"train: {COCO}\nclasses: [10, yes, 1.50]").classes == ["10", "yes", "1.50"]
    polygons = [a | {"segmentation": [[1, 2, 9, 2, 9, 8]]} for a in ANNOTATIONS]
    (data.file.parent / "ann.json").write_text(json.dumps(BOXES | {"annotations": polygons}))
    register_data(own(f"train: {COCO}"), masks=True)
    assert DatasetCatalog.get("mine_train")[0]["annotations"][0]["segmentation"][0].tolist() == [1, 2, 9, 2, 9, 8]


@pytest.mark.parametrize(
    "text",
    [
        "path: data set\ntrain: images/x\nval: images/x\nnames: {1: cat, 0: dog}\nnc: 2",
        "train: ../data set/images/x\nval: ../data set/images/x\nnames: [dog, cat]\nroboflow: {a: b}",
        "classes: [dog, cat]\ntrain: [{images: data set/images/x, boxes: data set/labels/x}]\nval: data set/images/x",
    ],
)
def test_ultralytics_and_roboflows_files(own, text):
    data = own(text)
    assert data.classes == ["dog", "cat"]
    assert loaded(data) == {"mine_train": [[(1, [10, 0, 20, 20])], []], "mine_val": [[(1, [10, 0, 20, 20])], []]}


def test_the_kind_of_boxes_is_that_of_most_files(own, tmp_path):
    labels, text = tmp_path / "data set/labels/x", "classes: [dog, cat]\ntrain: data set/images/x"
    (labels / "b.txt").write_text("0 .5 .5 .5 1")
    (labels / "stray.xml").write_text("<annotation/>")
    assert own(text).sets[0].kind == "YOLO"
    (tmp_path / "voc/classes.txt").write_text("kite")
    assert own("train: {images: images, boxes: voc}").sets[0].kind == "VOC"


def test_names_that_look_the_same_are_equal(own, tmp_path):
    """An accent in its letter (NFC) or behind it (NFD): in data.yaml, a json, an xml and the config."""
    behind, within = "cafe\u0301", "caf\u00e9"
    categories = [{"id": 3, "name": behind}, {"id": 5, "name": "kite"}, {"id": 7, "name": "cat"}]
    (tmp_path / "ann.json").write_text(json.dumps(BOXES | {"categories": categories}))
    xml = (tmp_path / "voc/b.xml").read_text("utf-8-sig")
    (tmp_path / "voc/b.xml").write_text(xml.replace("kite", behind))
    sets = f"train: [{COCO}, {{images: images, boxes: voc}}]"
    for classes in ("", f"classes: [{behind}, kite, cat]\n", f"classes: [{within}, kite, cat]\n"):
        data = own(classes + sets)
        assert data.classes == [within, "kite", "cat"]
        assert [k for k, _ in loaded(data)["mine_train_2"][1]] == [0]
    cfg = load_config(CLIM, ["DATASETS.DATA", str(data.file), "MODEL.VOCABULARY.NAMES", ["kite", "cat", behind]])
    assert vocabulary_names(cfg)[2] == within and matched(cfg, "TRAIN", "mine_train") == [2, 0, 1]


def test_captions_of_every_format_with_tags(own, tmp_path, caplog):
    index = "captions: [{images: shards}]"
    with pytest.raises(UserError, match="no index .*shards/index: make it with python tools/index_pairs.py shards"):
        own(index)
    build_index(tmp_path / "shards", ["0.tar"], tmp_path / "shards/index")
    formats = ("captions: caps.json}", "captions: caps.tsv}", "captions: caps.tsv, tags: none}")
    entries = [f"{{images: images, {end}" for end in formats]
    data = own(f"classes: [cat, hot dog, dog, kite]\ncaptions: [{', '.join(entries)}, images, shards]")
    register_data(data)
    records = [DatasetCatalog.get(name) for name in data.names("captions")]
    assert [r["captions"] for r in records[0]] == [r["captions"] for r in records[1]]
    tags = [[r["tags"] for r in part] for part in records]
    assert tags == [[[0], [0, 1, 3]], [[3], [0, 1, 3]], [[], []], [[]], [[0], []]]  # cow, the file's tag, is no class
    again = pickle.loads(pickle.dumps(records[4])).numbered(np.arange(5, 7))
    assert [(r["image_id"], r["tags"]) for r in again] == [(5, [0]), (6, [])]
    assert "mine_captions_4: 0 of 1 images have tags: set tags: none" in caplog.text


# ---- the config


def test_the_config_follows_and_overrides_count(own, tmp_path):
    text = f"novel: [kite]\ntrain: {COCO}\nval: {COCO}\ncaptions: {{images: images, captions: caps.tsv}}"
    path = str(own(text).file)
    cfg = load_config(CLIM, ["DATASETS.DATA", path])
    sets = cfg.DATASETS
    assert (sets.TRAIN, sets.TEST, sets.CAPTIONS) == (("mine_train",), ("mine_val",), ("mine_captions",))
    assert (cfg.MODEL.VOCABULARY.NAMES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (["dog", "kite", "cat"], 3)
    assert cfg.MODEL.OPEN_VOCAB.BASE_CLASSES == "mine_train" and class_mask(cfg).tolist() == [1, 0, 1]
    (tmp_path / "child.yaml").write_text(f"_BASE_: {CLIM}\nDATASETS: {{DATA: {path}}}")
    assert load_config(str(tmp_path / "child.yaml"), []).DATASETS == sets  # registered again
    written = ["DATASETS.TEST", "('mini_ov_val',)", "MODEL.VOCABULARY.EMBEDDINGS", "x.npy"]
    cfg = load_config(CLIM, ["DATASETS.DATA", path, *written])
    assert (cfg.DATASETS.TEST, cfg.DATASETS.TRAIN) == (("mini_ov_val",), ("mine_train",))
    assert (cfg.MODEL.VOCABULARY.NAMES, cfg.MODEL.VOCABULARY.EMBEDDINGS) == ([], "x.npy")
    with pytest.raises(UserError, match="VLDet learns from tags that are nouns"):
        load_config(CLIM, ["DATASETS.DATA", path, "MODEL.METHOD.NAME", "VLDet"])
    all_have_boxes = own(text.removeprefix("novel: [kite]\n").replace("caps.tsv", "caps.tsv, tags: none"))
    cfg = load_config(CLIM, ["DATASETS.DATA", str(all_have_boxes.file)])
    assert cfg.MODEL.OPEN_VOCAB.BASE_CLASSES == "" and torch.equal(class_mask(cfg), torch.ones(3))
    assert cfg.MODEL.METHOD.DETIC.TAG_WEIGHT == 0


def test_single_sets_are_a_list_in_a_yaml(own, tmp_path):
    (tmp_path / "own.yaml").write_text(f"DATASETS:\n  OWN:\n  - [one, boxes, {tmp_path}/ann.json, {tmp_path}/images]\n")
    load_config(str(tmp_path / "own.yaml"), [])
    assert [a["category_id"] for a in DatasetCatalog.get("one")[0]["annotations"]] == [2, 0, 1, 0]


def test_a_name_of_another_set_is_not_replaced(own):
    data = own(f"train: {COCO}", name="mini_ov")  # mini_ov_train is the mini benchmark's
    with pytest.raises(UserError, match="mini_ov_train is another data set already: give .*mini_ov.yaml another name"):
        register_data(data)


# ---- mistakes


@pytest.mark.parametrize(
    "text, message",
    [
        (f"trian: {COCO}", "mine.yaml has the unknown key 'trian': do you mean train"),
        ("train: {images: images, box: ann.json}", "train of .*mine.yaml has the unknown key 'box': do you mean boxes"),
        ("train: {images: x, boxes: ann.json}", "images in train of .*: there is no folder .*/x"),
        ("train: ann.json", "images in train of .*/ann.json is a file. Lists of images are not read: give"),
        ("train: {images: images, boxes: x.json}", "x.json not found: correct train of .*mine.yaml"),
        ("train: {images: images, boxes: caps.tsv}", "boxes in train of .*caps.tsv is not there, or of another kind"),
        ("train: {images: [images], boxes: ann.json}", "images in train of .* is a list"),
        ("train: [[images]]", "train of .*mine.yaml must be a folder of images, or {images: FOLDER, boxes: F"),
        (
            f"train: {COCO}\nval: {COCO}\ntrain: {COCO}",
            r"mine.yaml is not valid YAML \(line 3: train is given twice, first in line 1",
        ),
        ("val: {images: images, boxes: empty}", "mine.yaml has no classes, and its boxes name none"),
        ("train: images", "boxes in train of .*: .*/labels is not there"),
        ("train: data set/images/x", "mine.yaml has no classes, and YOLO's boxes in .*labels/x are numbers"),
        (f"train: {COCO}\nclasses: cat, dog", "classes of .* is 'cat, dog': give a list"),
        (f"train: {COCO}\nclasses: [cat, [dog]]", "name 1 of classes of .* is a list"),
        (f"train: {COCO}\nclasses: [cat, dog, cat]", "name 2 of classes of .* is 'cat', like name 0"),
        (f"train: {COCO}\nnovel:\n  - cat\n  -", "name 1 of novel of .* is empty"),
        (
            f"train: {COCO}\nnames: {{1: cat, 2: dog}}",
            r"names of .* has the numbers \['1', '2'\]: they must be 0, 1, 2",
        ),
        (f"train: {COCO}\nnames: [cat]\nclasses: [cat]", "has classes and names"),
        (f"train: {COCO}\nclasses: [cat, Dog, kite]", "ann.json has 2 boxes of 'dog', .*do you mean Dog"),
        ("captions: {images: images, captions: x}", "captions in captions of .*/x is not there"),
        ("captions: {images: images, tags: yes}", "tags in captions of .* is 'yes': choose one of words, none"),
        ("classes: [cat]\ntrain:\nval: ~\ncaptions: null", "names no set"),
        ("- cat", "has no keys"),
        ("train: [", "mine.yaml is not valid YAML"),
        (f'train: {COCO}\nclasses: ["a\\nb"]', r"name 0 of classes of .* is 'a\\nb', which has a line break"),
        ('train: {images: "a\\tb"}', "images in train of .*, which has a line break or another control character"),
        (f"train: {COCO}\nnc: !!python/name:os.system", "line 2: the tag python/name:os.system could run code"),
        ("train: &a [*a]", "mine.yaml is not valid YAML .line 1: its aliases stand for too many values"),
    ],
)
def test_mistakes_are_one_sentence(own, text, message):
    with pytest.raises(UserError, match=message) as caught:
        register_data(own(text))
    assert "\n" not in str(caught.value)


def test_many_names_are_read_in_time(own):
    names = [f"word {i}" for i in range(20_000)]
    assert own(f"train: {COCO}\nclasses: [{', '.join(names)}]").classes == names
    with pytest.raises(UserError, match="name 20000 of classes of .* is 'word 0', like name 0"):
        own(f"train: {COCO}\nclasses: [{', '.join([*names, 'word 0'])}]")


@pytest.mark.parametrize(
    "categories, message",
    [
        ([], "ann.json has no categories"),
        ({"3": "dog"}, r'categories of \S*ann.json is {"3": "dog"}: it must be a list: correct train of'),
        ([{"id": 3}], r"categories\[0\] of \S*ann.json \(id 3\) has no name"),
        ([{"id": 3, "name": " "}], r"categories\[0\] of \S*ann.json \(id 3\) has an empty name"),
        ([{"id": 3, "name": "a\n"}], "has the name 'a.n', which holds a control character"),
        ([{"id": 3, "name": "\ud83d"}], "has the name .*, which holds half a character"),
        ([{"id": 3, "name": "a", "frequency": "x"}], r'categories\[0\].frequency of .* is "x": it must be "r", "c" or'),
        (
            [{"id": 3, "name": "a", "image_count": -1}],
            r"categories\[0\].image_count of .* is -1: it must be a number of",
        ),
        ([{"id": 3, "name": None}], r"categories\[0\].name of \S*ann.json \(id 3\) is null: it must be a text"),
        (
            [{"id": 3, "name": "dog"}, {"id": 3, "name": "cat"}],
            r"ann.json has the id 3 twice: categories\[0\] \(dog\) and categories\[1\] \(cat\) need ids of their",
        ),
        ([{"id": 3, "name": "dog"}, {"id": 4, "name": "dog"}], "ann.json has two categories 'dog'"),
    ],
)
def test_wrong_categories(own, tmp_path, categories, message):
    (tmp_path / "ann.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(UserError, match=message):
        register_data(own(f"train: {COCO}"))

"""Which classes a config asks for, and which of them have boxes."""

import json

import numpy as np
import pytest
import torch
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from torch.nn.functional import normalize

from clim.data.categories import BASE_INDICES, COCO_NAMES, NOVEL_INDICES
from clim.errors import UserError
from clim.modeling.vocabulary import class_mask, competing_classes, is_configured, num_classes, vocabulary_embeddings
from clim.text import build_text_tower
from mini.concepts import CONCEPTS

NOVEL = [4, 5, 15, 16, 19, 20, 25, 27, 31, 36, 41, 43, 55, 57, 66, 71, 76]


@pytest.fixture
def cfg(load_cfg):
    """A config with 4 classes of width 6 and no vocabulary, to be overridden."""

    def make(*overrides):
        small = ["MODEL.ROI_HEADS.NUM_CLASSES", 4, "MODEL.TEXT.DIM", 6, "MODEL.OPEN_VOCAB.BASE_CLASSES", ""]
        return load_cfg("Detic_CLIM_C4.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "", *small, *overrides)

    return make


def test_names_are_read_by_the_tower(cfg, hash_tower):
    tower = hash_tower(6)
    file = ("MODEL.VOCABULARY.EMBEDDINGS", "names/win/over/a.npy")
    named = cfg("MODEL.VOCABULARY.NAMES", ["dog", "cat"], "MODEL.VOCABULARY.PROMPT", "a", *file)
    assert num_classes(named) == 2 and is_configured(named)
    torch.testing.assert_close(vocabulary_embeddings(named, tower), hash_tower(6).encode(["a dog", "a cat"]))
    assert tower.asked == [["a dog", "a cat"]]


def test_a_file_under_the_data_root_and_files_that_do_not_fit(cfg, tmp_path, monkeypatch, hash_tower):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    array = np.arange(1, 25, dtype=np.float16).reshape(4, 6)
    np.save(tmp_path / "e.npy", array)
    filed = cfg("MODEL.VOCABULARY.EMBEDDINGS", "e.npy")
    assert num_classes(filed) == 4 and is_configured(filed)
    found, expected = vocabulary_embeddings(filed, None), torch.from_numpy(array.astype(np.float32))
    torch.testing.assert_close(normalize(found), normalize(expected))
    for shape in ((3, 6), (4, 5)):
        np.save(tmp_path / "e.npy", np.ones(shape, np.float32))
        with pytest.raises(UserError, match=rf"e.npy holds \({shape[0]}, {shape[1]}\).*\(4, 6\)"):
            vocabulary_embeddings(filed, None)
    with pytest.raises(UserError, match="5 dimensions.*MODEL.TEXT.DIM is 6"):
        vocabulary_embeddings(cfg("MODEL.VOCABULARY.NAMES", ["dog"]), hash_tower(5))
    gone = cfg("MODEL.VOCABULARY.EMBEDDINGS", "gone.npy", "MODEL.VOCABULARY.PROMPT", "a",
               "MODEL.ROI_HEADS.NUM_CLASSES", 133, "MODEL.TEXT.NAME", "ViT-B-16-quickgelu")  # fmt: skip
    with pytest.raises(UserError, match="--dataset coco_panoptic .*--prompt a --tower ViT-B-16-quickgelu"):
        vocabulary_embeddings(gone, None)
    of_65 = ["MODEL.VOCABULARY.EMBEDDINGS", "gone.npy", "MODEL.ROI_HEADS.NUM_CLASSES", 65]
    (tmp_path / "mini/annotations").mkdir(parents=True)
    mini = tmp_path / "mini/annotations/instances_val_all.json"
    mini.write_text(json.dumps({"categories": [{"id": i, "name": str(i), "split": "base"} for i in range(65)]}))
    for name, classes in (("coco_generalized_del_val", "coco_65"), ("mini_ov_val", mini)):
        with pytest.raises(UserError, match=f"--dataset {classes} "):
            vocabulary_embeddings(cfg(*of_65, "DATASETS.TRAIN", (), "DATASETS.TEST", (name,)), None)


def test_without_a_vocabulary_rows_wait_for_a_checkpoint(cfg):
    state = torch.get_rng_state()
    rows = vocabulary_embeddings(cfg(), None)
    assert rows.shape == (4, 6) and not is_configured(cfg())
    assert torch.equal(rows, vocabulary_embeddings(cfg(), None))
    assert torch.equal(torch.get_rng_state(), state)


def test_pseudo_words_compare_with_hidden_features(cfg, tiny_json):
    """Width of the tower's last layer, 16, not of its embeddings, 12; names are read by that layer."""
    tower = build_text_tower(name=tiny_json("vit"))
    words = ["MODEL.VOCABULARY.PROMPT", "a", "MODEL.TEXT.WORD_DIM"]
    assert vocabulary_embeddings(cfg(*words, 16), None, features="hidden").shape == (4, 16)
    named = cfg(*words, 16, "MODEL.VOCABULARY.NAMES", ["dog"])
    torch.testing.assert_close(vocabulary_embeddings(named, tower, features="hidden"), tower.encode_hidden(["a dog"]))
    with pytest.raises(UserError, match="16 dimensions, but MODEL.TEXT.WORD_DIM is 12"):
        vocabulary_embeddings(cfg(*words, 12, "MODEL.VOCABULARY.NAMES", ["dog"]), tower, features="hidden")


def test_ovcoco_masks_novel_and_unused_classes(load_cfg):
    mask = class_mask(load_cfg("Detic_C4_official.yaml"))
    assert mask.shape == (80,) and mask.sum() == 48
    assert mask[list(BASE_INDICES)].tolist() == [1] * 48
    assert mask[NOVEL].tolist() == [0] * 17
    assert mask[0] == 1 and mask[79] == 1  # person, toothbrush
    assert mask[9] == 0 and mask[[74, 75]].tolist() == [1, 1]  # traffic light; clock and vase
    of_65 = ("MODEL.ROI_HEADS.NUM_CLASSES", 65, "MODEL.OPEN_VOCAB.BASE_CLASSES", "coco_zeroshot_train_del")
    assert class_mask(load_cfg("Detic_C4.yaml", *of_65)).tolist() == mask[sorted(BASE_INDICES + NOVEL_INDICES)].tolist()
    assert class_mask(load_cfg("Detic_C4.yaml", "MODEL.VOCABULARY.NAMES", ["dog", "cat"])).tolist() == [1, 1]
    assert class_mask(load_cfg("Detic_C4.yaml", "MODEL.OPEN_VOCAB.BASE_CLASSES", "")).tolist() == [1] * 80
    # dog is novel, and nothing is known of yak; without a base class the names are free.
    for names, expected in ((["dog", "yak", "person"], [0, 0, 1]), (["dog", "yak"], [1, 1])):
        assert class_mask(load_cfg("Detic_C4.yaml", "MODEL.VOCABULARY.NAMES", names)).tolist() == expected
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    names = [COCO_NAMES[i] for i in order]
    assert class_mask(load_cfg("Detic_C4.yaml", "MODEL.VOCABULARY.NAMES", names)).tolist() == mask[order].tolist()
    competes = competing_classes(load_cfg("OVRCNN_C4.yaml", "MODEL.VOCABULARY.NAMES", [*names, "yak"])).tolist()
    assert competes == [i in {*BASE_INDICES, *NOVEL_INDICES} for i in order.tolist()] + [True]


def test_masks_of_a_data_set_and_of_a_cat_info_file(load_cfg, cfg, tiny_mini, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    mask = class_mask(load_cfg("mini/base_stage.yaml", "MODEL.OPEN_VOCAB.BASE_CLASSES", "mini_ov_train"))
    assert mask.tolist() == [float(not concept.novel) for concept in CONCEPTS] and mask.sum() == 48
    info = [{"id": i, "image_count": n} for i, n in ((7, 9), (1, 4), (3, 0), (9, 2))]
    (tmp_path / "cat_info.json").write_text(json.dumps(info))
    mask = class_mask(cfg("MODEL.OPEN_VOCAB.BASE_CLASSES", str(tmp_path / "cat_info.json")))
    torch.testing.assert_close(mask, torch.tensor([2, 0, 3, 2**0.5]))  # square roots of image counts, by ascending id
    (tmp_path / "named.json").write_text(json.dumps([row | {"name": str(row["id"])} for row in info]))
    named = cfg("MODEL.OPEN_VOCAB.BASE_CLASSES", str(tmp_path / "named.json"), "MODEL.VOCABULARY.EMBEDDINGS", "e.npy")
    (tmp_path / "e.names.json").write_text('["9", "7", "x", "1"]')
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    torch.testing.assert_close(class_mask(named), torch.tensor([2**0.5, 3, 0, 2]))
    lvis = ("MODEL.ROI_HEADS.NUM_CLASSES", 1203, "MODEL.OPEN_VOCAB.BASE_CLASSES")
    assert class_mask(cfg(*lvis, "lvis_v1_val")).sum() == 866
    info = [{"id": c["id"], "image_count": 4 * (c["frequency"] != "r")} for c in LVIS_CATEGORIES]
    for name in ("lvis/lvis_v1_train_norare_cat_info.json", "metadata/lvis_v1_train_cat_norare_info.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(info))
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        assert class_mask(cfg(*lvis, name)).sum() == 866 * 2
    (tmp_path / "none.json").write_text(json.dumps([{"id": i, "image_count": 0} for i in range(4)]))
    with pytest.raises(UserError, match="none.json has no base class: "):
        class_mask(cfg("MODEL.OPEN_VOCAB.BASE_CLASSES", str(tmp_path / "none.json")))
    with pytest.raises(UserError, match="ovcoco has 80 classes.* is 4"):
        class_mask(cfg("MODEL.OPEN_VOCAB.BASE_CLASSES", "ovcoco"))
    with pytest.raises(UserError, match="gone.json not found: MODEL.OPEN_VOCAB.BASE_CLASSES takes a cat_info json"):
        class_mask(cfg("MODEL.OPEN_VOCAB.BASE_CLASSES", str(tmp_path / "gone.json")))


def test_classes_that_compete_at_test(load_cfg):
    scored = sorted(BASE_INDICES + NOVEL_INDICES)
    for name, indices in (("ovcoco", scored), ("ovcoco_base", BASE_INDICES), ("ovcoco_novel", NOVEL_INDICES)):
        competes = competing_classes(load_cfg("OVRCNN_C4.yaml", "MODEL.OVRCNN.TEST_CLASSES", name))
        assert competes.shape == (80,) and competes.nonzero().flatten().tolist() == list(indices)
    assert competing_classes(load_cfg("OVRCNN_C4.yaml")).nonzero().flatten().tolist() == scored
    named = load_cfg("OVRCNN_C4.yaml", "MODEL.VOCABULARY.NAMES", ["dog", "cat"])
    assert competing_classes(named).tolist() == [True] * 2
    assert competing_classes(load_cfg("mini/ovrcnn.yaml")).sum() == 65
    for keys in (("MODEL.OVRCNN.TEST_CLASSES", "ovcoc"), ("MODEL.ROI_HEADS.NUM_CLASSES", 65)):
        with pytest.raises(UserError, match="TEST_CLASSES.*choose one of ovcoco, ovcoco_base, ovcoco_novel"):
            competing_classes(load_cfg("OVRCNN_C4.yaml", *keys))

"""From a command line to a checked config, and a checkpoint whose file alone builds the same detector anywhere."""

import logging
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm

from clim import Detector
from clim.checkpoints import load_model, read_description
from clim.data.categories import COCO_NAMES
from clim.data.names import vocabulary_names
from clim.engine import Trainer, load_config, setup
from clim.engine.setup import check_datasets, check_training, describe
from clim.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
CLIM = str(CONFIGS / "mini/detic_clim.yaml")


def test_a_json_is_no_checkpoint_and_no_config(tmp_path):
    (tmp_path / "ok.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="ok.json is neither a checkpoint that holds its config .* nor a YAML"):
        load_config(str(tmp_path / "ok.json"), [])


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "cpu"):
        assert load_config(CLIM, ["MODEL.DEVICE", device]).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_config(CLIM, ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"
    for device, words in {"cuda:2": "cuda:2, but this machine has 2 CUDA", "xpu": "has no XPU"}.items():
        with pytest.raises(UserError, match=words):
            load_config(CLIM, ["MODEL.DEVICE", device])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        load_config(CLIM, ["MODEL.DEVICE", "cpu"])


def test_setup_logs_and_keeps_the_config(tiny_mini, tiny_overrides, monkeypatch, capsys, arguments):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = Path(tiny_overrides[-1])
    cfg = setup(arguments("--config-file", CLIM, *tiny_overrides, "MODEL.DEVICE", "cuda"))
    kept = load_config(str(output / "config.yaml"), [])
    assert yaml.safe_load(kept.dump()) == yaml.safe_load(cfg.dump())  # as text, shared lists may differ by an anchor
    logging.getLogger("clim.anything").info("heard")
    log = (output / "log.txt").read_text()
    assert log.count("Running on the CPU: no CUDA device was found.") == 1
    assert "heard" in log and "heard" in capsys.readouterr().out

    wrong = ["--config-file", CLIM, *tiny_overrides, "DATASETS.TRAIN", "('x',)", "MODEL.METHOD.NAME", ""]
    with pytest.raises(UserError, match="MODEL.METHOD.NAME"):
        setup(arguments(*wrong))
    setup(arguments("--eval-only", *wrong))  # without training, its keys are not checked


def test_a_mistake_in_a_test_set_shows_before_the_training(tiny_overrides, tmp_path, arguments):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [], "annotations": [{"id": 3}], "categories": [{"id": 1, "name": "bee"}]}')
    own = f"[['broken', 'boxes', '{path}', '{tmp_path}']]"
    keys = ("DATASETS.OWN", own, "DATASETS.TEST", "('broken',)", "MODEL.VOCABULARY.NAMES", "['bee']")
    keys += ("DATASETS.TRAIN", "('broken',)", "MODEL.OPEN_VOCAB.BASE_CLASSES", "")
    try:
        setup(arguments("--eval-only", "--config-file", CLIM, *tiny_overrides, *keys))
        with pytest.raises(UserError, match=r"annotations\[0\] of .*broken.json \(id 3\)"):
            setup(arguments("--config-file", CLIM, *tiny_overrides, *keys))
    finally:
        DatasetCatalog.remove("broken")
        MetadataCatalog.remove("broken")


DEVICE = ("INPUT.MOSAIC.COMPOSE", "device")
NO_PAIRS = ("DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0)
NO_MOSAICS = ("DATALOADER.MOSAICS_PER_GPU", 0)
OFFICIAL = ("MODEL.METHOD.NAME", "OfficialDetic")
NO_LOSS = ("MODEL.METHOD.DETIC.CAPTION_WEIGHT", 0.0, "MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
NO_NOUNS = ("MODEL.METHOD.VLDET.CAPTION_WEIGHT", 0.0, "MODEL.METHOD.VLDET.NOUN_WEIGHT", 0.0)


@pytest.mark.parametrize(
    "config, overrides, named",
    [
        ("detic_clim", (), None),
        ("base_stage", (), None),
        ("detic_clim", ("MODEL.METHOD.NAME", ""), "MODEL.METHOD.NAME is '', with DATALOADER.CAPTIONS_PER_GPU 2"),
        ("detic_clim", NO_PAIRS, "MODEL.METHOD.NAME is 'Detic', with no image-text pairs"),
        ("detic_clim", ("DATALOADER.REGIONS_PER_GPU", 1), "REGIONS_PER_GPU is 1, .* OpenVocabRCNN"),
        ("ovrcnn_pretrain", ("DATALOADER.DETECTION_PER_GPU", 2), "DETECTION_PER_GPU is 2, .* GridTextModel"),
        ("clip_region_clip", ("DATALOADER.CAPTIONS_PER_GPU", 3), "CAPTIONS_PER_GPU is 3, .* RegionClip"),
        ("clip_clim", (*DEVICE, *NO_MOSAICS), None),
        ("clip_clim", (*DEVICE, "DATALOADER.MOSAICS_PER_GPU", 2), "INPUT.MOSAIC.COMPOSE"),
        ("detic_clim", (*DEVICE, *NO_MOSAICS), "INPUT.MOSAIC.COMPOSE"),
        ("ovrcnn_clim_pretrain", (*DEVICE, *NO_MOSAICS), "INPUT.MOSAIC.COMPOSE"),
        ("detic_clim", NO_LOSS, "TAG_WEIGHT are both 0"),
        ("detic_clim", ("MODEL.METHOD.NAME", "VLDet", *NO_NOUNS), "VLDET.CAPTION_WEIGHT and NOUN_WEIGHT are both 0"),
        ("detic_clim", (*OFFICIAL, *NO_MOSAICS), None),
        ("detic_clim", OFFICIAL, "MOSAICS_PER_GPU is 2, .* OfficialDetic does not learn"),
        ("detic_clim", (*OFFICIAL, *NO_MOSAICS, *NO_LOSS), "TAG_WEIGHT are both 0"),
    ],
)
def test_sources_and_what_learns_from_them_fit_each_other(tiny_cfg, config, overrides, named):
    cfg = tiny_cfg(*overrides, config=f"mini/{config}.yaml")
    with pytest.raises(UserError, match=named) if named else nullcontext():
        check_training(cfg)


UNKNOWN = "('mini_ov_vall',)"
NEAR = "names mini_ov_vall.* do you mean mini_ov_val"


@pytest.mark.parametrize(
    "key, value, training, named",
    [
        ("SEED", 1, True, None),
        ("DATASETS.TEST", "()", True, None),
        ("DATASETS.TEST", "()", False, "DATASETS.TEST is empty"),
        ("DATASETS.TEST", "('mini_val_regions',)", True, "has the type regions, .* is evaluated on ov_coco"),
        ("DATASETS.TRAIN", UNKNOWN, True, f"DATASETS.TRAIN {NEAR}"),
        ("DATASETS.TRAIN", UNKNOWN, False, None),  # not read without training
        ("DATASETS.CAPTIONS", UNKNOWN, True, f"DATASETS.CAPTIONS {NEAR}"),
        ("DATASETS.TEST", UNKNOWN, True, f"DATASETS.TEST {NEAR}"),
        ("DATASETS.TEST", "('coco_generalized_zeroshot_val',)", False, "is 'person', .* .MODEL.VOCABULARY. lacks"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 66, False, "minilm.names.json holds 65 names, but .*NUM_CLASSES is 66"),
        ("MODEL.VOCABULARY.NAMES", "['cat', 'dog']", True, "mini_ov_train .* is 'horse', .* where class 1 is 'cat'"),
        ("DATASETS.TRAIN", "('own_boxes',)", True, None),  # a set without class names
    ],
)
def test_data_sets_suit_the_model(tiny_cfg, key, value, training, named):
    DatasetCatalog.register("own_boxes", list)
    MetadataCatalog.get("own_boxes")
    try:
        with pytest.raises(UserError, match=named) if named else nullcontext():
            check_datasets(tiny_cfg(key, value), training=training)
    finally:
        DatasetCatalog.remove("own_boxes")
        MetadataCatalog.remove("own_boxes")


def test_a_model_that_cannot_be_evaluated(tiny_cfg):
    cfg = tiny_cfg(config="mini/ovrcnn_pretrain.yaml")
    check_datasets(cfg, training=True)
    with pytest.raises(UserError, match="GridTextModel cannot be evaluated"):
        check_datasets(cfg, training=False)


def test_a_moved_checkpoint_needs_nothing_else(tiny_cfg, tmp_path, monkeypatch):
    """Folders, data root and initial weights of the training are gone; weights and classes are those of the file."""
    cfg = tiny_cfg("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", "MODEL.TRUST_WEIGHTS", True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    file = tmp_path / "elsewhere/other name.pth"
    file.parent.mkdir()
    (tmp_path / "output/model_final.pth").rename(file)
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    description = read_description(file)
    assert description["train_sets"] == ["mini_ov_train"] and len(description["base_classes"]) == 48

    detector = Detector(file)
    assert (len(detector.names), len(detector.novel)) == (65, 17) and detector.names == description["class_names"]
    assert "dog" in [detector.names[k] for k in detector.novel] and not detector.cfg.MODEL.TRUST_WEIGHTS
    theirs, ours = torch.load(file, weights_only=True)["model"], detector.model.state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith("method.")}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_paths_and_sets_of_the_training_do_not_matter(tiny_cfg, tmp_path):
    """VLDet's noun embeddings, class embeddings, classes with boxes and own sets, none of which exists any more."""
    gone = str(tmp_path / "gone")
    cfg = tiny_cfg("DATASETS.TEST", "()", "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.OPEN_VOCAB.BASE_CLASSES", "")
    model = build_model(cfg)
    text = describe(cfg)["config"].replace("BASE_CLASSES: ''", f"BASE_CLASSES: {gone}")
    text = text.replace("EMBEDDINGS: ''", f"EMBEDDINGS: {gone}.npy").replace("CACHE: ''", f"CACHE: {gone}")
    text = text.replace("OWN: []", f"OWN: [[a, boxes, {gone}.json, {gone}]]").replace("NAME: Detic", "NAME: VLDet")
    assert text.count(gone) >= 5
    entry = describe(cfg) | {"config": text, "class_names": [f"c{i}" for i in range(65)]}
    file = tmp_path / "m.pth"
    torch.save({"model": model.state_dict(), "clim": entry}, file)
    detector = Detector(file)
    assert detector.names[64] == "c64" and not detector.novel

    evaluated = load_config(str(file), ["MODEL.TEXT.CACHE", "here"])  # as --config-file
    assert vocabulary_names(evaluated) == entry["class_names"]
    assert evaluated.MODEL.WEIGHTS == str(file) and evaluated.MODEL.TEXT.CACHE == "here"
    load_model(load_config(str(file), ["MODEL.METHOD.NAME", ""]))


def test_describe_names_the_classes_with_boxes(load_cfg):
    description = describe(load_cfg("Detic_C4.yaml"))
    assert description["class_names"] == list(COCO_NAMES) and len(description["base_classes"]) == 48
    assert describe(load_cfg("Detic_C4.yaml", "MODEL.OPEN_VOCAB.BASE_CLASSES", ""))["base_classes"] is None


def test_files_without_a_description(tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(1)}}, file)
    with pytest.raises(UserError, match=r"model.pth does not hold the config .* Detector\(path, config=…\)"):
        Detector(file)
    torch.save({"model": {}}, file, _use_new_zipfile_serialization=False)
    assert read_description(file) is None
    with pytest.raises(UserError, match="none.pth is not a file"):
        Detector(tmp_path / "none.pth")
    file.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError):
        Detector(file)


@pytest.mark.parametrize(
    "damage, words",
    [
        ({"config": None}, "Expected str, got null - at $.config"),
        ({"config": "- a"}, "holds ['a'] as its config, not sections of keys"),
        ({"config": "SOLVER: {BASE_LR: -1.0}"}, "SOLVER.BASE_LR is -1.0 (the config inside "),
        ({"class_names": "cat"}, "Expected array, got str - at $.class_names"),
        ({"class_names": ["cat", 3]}, "Expected str, got int - at $.class_names[1]"),
        ({"base_classes": [None]}, "at $.base_classes[0]"),
        ({"rows": 0}, "Expected int >= 1 - at $.rows"),
        ({"rows": 2}, "class_names with empty or equal ones, or more than 2 rows"),
        ({"class_names": ["cat", "cat"]}, "2 class_names with empty or equal ones"),
        ({"class_names": [" "]}, "1 class_names with empty or equal ones"),
        ({"train_sets": {}}, "Expected array, got object - at $.train_sets"),
        (None, "Expected object, got array"),
    ],
)
def test_a_damaged_description_is_named(tiny_cfg, tmp_path, damage, words):
    entry = [1] if damage is None else describe(tiny_cfg()) | damage
    torch.save({"model": {}, "clim": entry}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        Detector(tmp_path / "m.pth")
    assert "m.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_fewer_names_than_classes(tiny_cfg, tmp_path):
    cfg = tiny_cfg()
    entry = describe(cfg) | {"class_names": ["horse"]}
    torch.save({"model": build_model(cfg).state_dict(), "clim": entry}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="m.pth has 65 classes, but names 1: take another file"):
        Detector(tmp_path / "m.pth")


def test_a_description_runs_no_code(tiny_cfg, tmp_path):
    entry = describe(tiny_cfg()) | {"config": f"!!python/object/apply:os.mkdir [{tmp_path / 'made'}]"}
    torch.save({"model": {}, "clim": entry}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="the config inside .*m.pth is not valid YAML .*could run code"):
        load_config(str(tmp_path / "m.pth"), [])
    assert not (tmp_path / "made").exists()


def test_a_log_without_space_is_silent_and_names_that_are_no_utf8_are_escaped(tmp_path):
    path = tmp_path / "log.txt"
    code = f"""
import logging, threading
from clim.engine.setup import _log_stream, quiet_writing
from detectron2.utils.logger import setup_logger
quiet_writing()
logging.StreamHandler(_log_stream("/dev/full")).emit(logging.makeLogRecord({{"msg": "a line"}}))
setup_logger({str(path)!r}, name="clim").info("photo \\udcff.jpg")
threading.Thread(target=lambda: open("/nowhere/a")).start()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    assert "photo \\udcff.jpg" in path.read_text()

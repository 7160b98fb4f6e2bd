"""A checkpoint that describes itself: its file alone builds the same detector anywhere."""

import pytest
import torch
from detectron2.modeling import build_model

from clim import Detector
from clim.checkpoints import load_model, read_description
from clim.data.categories import COCO_NAMES
from clim.engine import Trainer, load_config
from clim.engine.description import describe
from clim.errors import UserError
from clim.modeling.vocabulary import vocabulary_names


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


def test_a_description_runs_no_code(tiny_cfg, tmp_path):
    entry = describe(tiny_cfg()) | {"config": f"!!python/object/apply:os.mkdir [{tmp_path / 'made'}]"}
    torch.save({"model": {}, "clim": entry}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="config cannot be read"):
        load_config(str(tmp_path / "m.pth"), [])
    assert not (tmp_path / "made").exists()

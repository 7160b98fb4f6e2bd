"""Detector: scores, names, classes at run time, odd images; heads of one stage and of three."""

import copy

import numpy as np
import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from PIL import Image
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.data.images import read_image
from clim.detector import Detector
from clim.errors import UserError
from clim.modeling import roi_heads
from clim.modeling.roi_heads import EfficientNetC4ROIHeads


@pytest.fixture
def scene(tiny_mini):
    return str(sorted((tiny_mini / "mini/val").glob("*.jpg"))[0])


def detect(detector, file_name, threshold=0.0):
    """Instances in one image file."""
    image = read_image(file_name, fmt=detector.input_format).image
    (found,) = detector.detect([image], threshold=threshold)
    return found


def test_scores_are_the_models_with_the_training_bias_left_in(tiny_cfg, scene):
    detector = Detector(tiny_cfg())
    assert len(detector.names) == 65 and len(detector.novel) == 17
    assert [detector.names.index(name) in detector.novel for name in ("dog", "horse")] == [True, False]
    classifier = detector.model.roi_heads.box_predictor.cls_score
    nn.init.constant_(classifier.cls_bias, -3.0)
    found = detect(detector, scene)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True) and len(found) == 100

    classifier._forward_hooks.clear()
    plain = detect(detector, scene)
    assert torch.equal(plain.pred_boxes.tensor, found.pred_boxes.tensor)
    assert torch.equal(plain.pred_classes, found.pred_classes)
    torch.testing.assert_close(plain.scores.logit() - 3.0, found.scores.logit(), rtol=0, atol=1e-4)


def test_models_that_do_not_detect(tiny_cfg):
    with pytest.raises(UserError, match="META_ARCHITECTURE GridTextModel detects nothing"):
        Detector(tiny_cfg(config="mini/ovrcnn_pretrain.yaml"))


def test_other_classes(tiny_cfg, scene, tmp_path):
    """By the config or at run time they win over those of the checkpoint, and the same name is the same class."""
    trained = Detector(tiny_cfg())
    before = trained.model.roi_heads.box_predictor.cls_score.class_embeddings
    torch.save({"model": trained.model.state_dict()}, tmp_path / "model.pth")
    names = ["zebra", "dog", "fire hydrant"]
    options = ("MODEL.WEIGHTS", str(tmp_path / "model.pth"), "MODEL.VOCABULARY.PROMPT", "a")  # the mini set's prompt
    configured = Detector(tiny_cfg(*options, "MODEL.VOCABULARY.NAMES", str(names)))
    detector = Detector(tiny_cfg(*options))
    detector.set_classes(names)
    for one in (configured, detector):
        predictor = one.model.roi_heads.box_predictor
        assert one.names == names and one.novel == {1, 2} and predictor.freq_weight.tolist() == [1, 0, 0]
        rows = torch.stack([before[trained.names.index(name)] for name in names[:2]])
        torch.testing.assert_close(predictor.cls_score.class_embeddings[:2], rows, atol=2e-3, rtol=0)
        assert set(detect(one, scene).pred_classes.tolist()) <= {0, 1, 2}
    rows = torch.eye(384)[:3]
    detector.set_classes(["a", "b", "c"], rows)
    assert torch.equal(predictor.cls_score.class_embeddings[:3], rows) and predictor.num_classes == 3
    for wrong in ([], ["a", "b"]):
        with pytest.raises(UserError, match="as many of both"):
            detector.set_classes(wrong, rows)
    assert detector.names == ["a", "b", "c"]


def test_boxes_are_in_pixels_of_the_upright_image(tiny_cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    path = tmp_path / "rotated.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (120, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    found = detect(Detector(tiny_cfg()), path)
    assert found.image_size == (300, 120)
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and boxes[:, 2].max() <= 120 and boxes[:, 3].max() <= 300
    assert boxes[:, 3].max() > 120  # not confined to an image that lies


# ---- A cascade: a predictor for each of three stages ---------------------------------------------


class Stages(nn.ModuleList):
    """Predictors of which the last one detects, as a C4 head calls it."""

    def forward(self, x):
        return self[-1](x)

    def inference(self, *arguments):
        return self[-1].inference(*arguments)


class ThreeStages(EfficientNetC4ROIHeads):
    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret = super().from_config(cfg, input_shape, text_encoder=text_encoder)
        ret["box_predictor"] = Stages(copy.deepcopy(ret["box_predictor"]) for _ in range(3))
        return ret


CASCADE = ("MODEL.ROI_HEADS.NAME", "ThreeStages")


@pytest.fixture
def cascade_cfg(tiny_cfg, monkeypatch):
    """``tiny_cfg`` with a head of three predictors."""
    monkeypatch.setitem(ROI_HEADS_REGISTRY._obj_map, "ThreeStages", ThreeStages)
    return lambda *overrides, **options: tiny_cfg(*CASCADE, *overrides, **options)


@pytest.mark.parametrize("config", ["mini/detic_clim.yaml", "mini/ovrcnn.yaml"])
def test_the_vocabulary_of_every_stage_is_checked(config, cascade_cfg, tmp_path):
    few = ["MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.OPEN_VOCAB.BASE_CLASSES", ""]
    unnamed = ["MODEL.VOCABULARY.EMBEDDINGS", ""]
    SafeCheckpointer(build_model(cascade_cfg(*few, *unnamed, config=config)), str(tmp_path)).save("five")
    detector = build_model(cascade_cfg(*unnamed, config=config))
    with pytest.raises(UserError, match=r"has 5 classes of 384 dimensions, but the config's detector 65"):
        SafeCheckpointer(detector, "").load(str(tmp_path / "five.pth"))
    for stage, predictor in enumerate(detector.roi_heads.predictors):
        key = f"roi_heads.box_predictor.{stage}.{predictor.vocabulary_key}"
        weights = {name: tensor for name, tensor in detector.state_dict().items() if name != key}
        torch.save({"model": weights}, tmp_path / "unnamed.pth")
        with pytest.raises(UserError, match="names the 65 classes: set MODEL.VOCABULARY"):
            SafeCheckpointer(detector, "").load(str(tmp_path / "unnamed.pth"))
    configured = build_model(cascade_cfg(config=config))  # the configured vocabulary wins at every stage
    SafeCheckpointer(configured, "").load(str(tmp_path / "five.pth"))
    for predictor in configured.roi_heads.predictors:
        assert predictor.get_buffer(predictor.vocabulary_key).shape[predictor.vocabulary_axis] == 66


def test_every_stage_gets_the_classes_and_the_threshold(cascade_cfg, scene):
    options = ("MODEL.VOCABULARY.NAMES", "['zebra', 'dog']", "MODEL.VOCABULARY.PROMPT", "a")
    detector = Detector(cascade_cfg(*options), score_threshold=0.25)
    predictors = detector.model.roi_heads.predictors
    assert len(predictors) == 3 and detector.model.classifier is predictors[-1].cls_score
    assert [p.freq_weight.tolist() for p in predictors] == [[1, 0]] * 3
    assert [p.test_score_thresh for p in predictors] == [0.25] * 3
    assert [len(p.cls_score._forward_hooks) for p in predictors] == [1] * 3
    detector.set_classes(["dog", "zebra", "unicorn"])
    assert [p.freq_weight.tolist() for p in predictors] == [[0, 1, 0]] * 3
    first = predictors[0].cls_score.class_embeddings
    assert all(p.num_classes == 3 and torch.equal(p.cls_score.class_embeddings, first) for p in predictors)
    assert set(detect(detector, scene).pred_classes.tolist()) <= {0, 1, 2}


def test_a_cascade_with_masks_and_many_names(tiny_cfg, mask_overrides, scene):
    """The threshold is for the fused scores, masks have the image's size, and 1,203 names are no trouble."""
    detector = Detector(tiny_cfg(*mask_overrides), score_threshold=0.3)
    for predictor in detector.model.roi_heads.predictors:
        nn.init.constant_(predictor.cls_score.cls_bias, -0.5)
    seen, scores_of = [], roi_heads.fused_scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_heads, "fused_scores", lambda *given: seen.append(scores_of(*given)) or seen[-1])
        found = detect(detector, scene, threshold=None)
    height, width = found.image_size
    assert found.pred_masks.shape == (len(found), height, width) and found.pred_masks.dtype == torch.bool
    assert 0 < len(found) <= 100 and found.scores.min() > 0.3
    assert found.scores.max().item() == pytest.approx(seen[0].max().item(), rel=1e-5)
    for box, mask in zip(found.pred_boxes.tensor, found.pred_masks, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            assert columns.min() >= box[0] - 1 and rows.min() >= box[1] - 1
            assert columns.max() <= box[2] + 1 and rows.max() <= box[3] + 1
    assert found.pred_masks.any()

    names = [f"class {i}" for i in range(1203)]
    detector.set_classes(names, torch.randn(1203, 384, generator=torch.Generator().manual_seed(0)))
    found = detect(detector, scene)
    assert found.pred_classes.max() > 65 and (found.scores.diff() <= 0).all()

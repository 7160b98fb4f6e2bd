"""Detector: scores, names, classes at run time, odd images; heads of one stage and of three."""

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from clim.checkpoints import SafeCheckpointer, load_model
from clim.data.images import read_image
from clim.detector import Detector
from clim.engine import load_config
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


def test_other_classes(tiny_cfg, scene, tmp_path, caplog):
    """By the config or at run time they win over those of the checkpoint, and the same name is the same class."""
    trained = Detector(tiny_cfg())
    before = trained.model.roi_heads.box_predictor.cls_score.class_embeddings
    torch.save({"model": trained.model.state_dict()}, tmp_path / "model.pth")
    names = ["zebra", "dog", "fire hydrant"]
    options = ("MODEL.WEIGHTS", str(tmp_path / "model.pth"), "MODEL.VOCABULARY.PROMPT", "a")  # the mini set's prompt
    configured = Detector(tiny_cfg(*options, "MODEL.VOCABULARY.NAMES", str(names)))
    assert "The checkpoint" not in caplog.text  # names are given on purpose: no warning of other classes or masks
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


@pytest.mark.parametrize("classes", ["dog", {"dog": "puppy"}, ["dog", ""], ["dog", 3], ["dog", "cat", "dog"]])
def test_classes_are_different_names_in_a_list(tiny_cfg, classes):
    detector = Detector(tiny_cfg())
    before = detector.names
    with pytest.raises(UserError, match="^The class"):
        detector.set_classes(classes)
    assert detector.names is before


def test_a_very_long_image_has_at_least_a_pixel_of_width(tiny_cfg):
    (found,) = Detector(tiny_cfg()).predict(np.zeros((20_000, 20, 3), np.uint8))
    assert (found.height, found.width) == (20_000, 20)


def test_synonyms_share_a_class_and_freeze_keeps_them(tiny_cfg, scene, tmp_path):
    """The score of a class is the highest of its words'; a frozen file needs no text tower."""
    detector = Detector(tiny_cfg("MODEL.VOCABULARY.PROMPT", "a"))
    nn.init.constant_(detector.model.roi_heads.box_predictor.cls_score.cls_bias, 0.0)
    words = detector.embed(["dog", "horse", "lemon", "pony"])
    detector.set_classes({"dog": [], "horse": ["pony", "horse"]}, words[[0, 1, 3]])
    predictor = detector.model.roi_heads.box_predictor
    assert detector.names == ["dog", "horse"] and detector.novel == {0} and predictor.freq_weight.tolist() == [0, 1, 1]
    assert predictor.synonyms.tolist() == [[0, 0], [1, 2]]

    image, boxes = [np.asarray(Image.open(scene))], torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40]])
    logits = torch.tensor([[0.1, 2.0, 1.0, 0.0], [0.3, -1.0, 1.5, 0.0]])
    ((found,), _) = predictor.detect([boxes], [logits], [(50, 50)])
    rows = zip(found.pred_classes.tolist(), found.pred_boxes.tensor.tolist(), found.scores, strict=True)
    of_class = {(k, box[0]): score.logit().item() for k, box, score in rows}
    assert of_class == pytest.approx({(0, 0.0): 0.1, (1, 0.0): 2.0, (0, 20.0): 0.3, (1, 20.0): 1.5}, abs=1e-5)

    before = detector.predict(image, threshold=0.0)
    detector.freeze(tmp_path / "frozen.pth")
    frozen = Detector(tmp_path / "frozen.pth")
    after = frozen.predict(image, threshold=0.0)
    assert frozen.names == ["dog", "horse"] and frozen.novel == {0} and "live" not in vars(frozen.model.text_encoder)
    np.testing.assert_array_equal(before[0].boxes, after[0].boxes)
    np.testing.assert_array_equal(before[0].scores, after[0].scores)
    frozen.set_classes(["lemon", "dog"], words[[2, 0]])
    assert frozen.names == ["lemon", "dog"] and frozen.novel == {0, 1} and predictor.synonyms is not None
    assert frozen.model.roi_heads.box_predictor.synonyms is None
    for options in ({"classes": ["zebra"]}, {"overrides": ["MODEL.VOCABULARY.NAMES", ["zebra"]]}):
        chosen = Detector(tmp_path / "frozen.pth", **options)
        assert chosen.names == ["zebra"] and chosen.model.roi_heads.box_predictor.num_classes == 1
    evaluated = load_model(load_config(str(tmp_path / "frozen.pth"), []))  # with its synonyms
    assert torch.equal(evaluated.roi_heads.box_predictor.synonyms, predictor.synonyms)
    renamed = load_model(load_config(str(tmp_path / "frozen.pth"), ["MODEL.VOCABULARY.NAMES", ["dog"]]))
    assert renamed.roi_heads.box_predictor.synonyms is None


def test_a_batch_equals_single_images_and_bfloat16_is_near(tiny_cfg, scene):
    """Of images of different sizes, too: none is padded to another's."""
    whole = np.asarray(Image.open(scene))
    images = [whole, whole[:90], np.ascontiguousarray(whole[:, ::-1]), whole[:90, ::-1]]
    cfg = tiny_cfg()
    detector = Detector(cfg)
    nn.init.constant_(detector.model.roi_heads.box_predictor.cls_score.cls_bias, 0.0)
    together, alone = detector.detect(images), [detector.detect([image])[0] for image in images]
    for both, one in zip(together, alone, strict=True):
        assert both.image_size == one.image_size and len(both) > 50
        torch.testing.assert_close(both.pred_boxes.tensor, one.pred_boxes.tensor, rtol=0, atol=1e-3)
        torch.testing.assert_close(both.scores, one.scores, rtol=0, atol=1e-5)
        assert torch.equal(both.pred_classes, one.pred_classes)
    assert detector.detect([]) == [] and len(detector.predict(images, batch=3)) == 4

    half = Detector(cfg, dtype=torch.bfloat16)
    half.model.load_state_dict(detector.model.state_dict())
    (near,), (exact,) = half.detect(images[:1]), together[:1]
    assert near.scores.dtype == exact.scores.dtype and near.pred_boxes.tensor.dtype == torch.float32
    assert abs(near.scores[:20].mean() - exact.scores[:20].mean()) < 0.02
    assert not torch.equal(near.scores, exact.scores)  # it does compute in bfloat16


def find_bright(images, *, threshold):
    """A detector of the pixels above 200: one box of class 0 an image, in a large image none, as if it were small."""
    found = []
    for image in images:
        rows, columns = (image[..., 0] > 200).nonzero()
        count = int(len(rows) > 0 and max(image.shape) <= 200)
        boxes = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if count else []
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores, instances.pred_classes = torch.full((count,), 0.06), torch.zeros(count, dtype=torch.int64)
        found.append(instances)
    return found


def test_slices_and_tracks(tiny_cfg, tmp_path, monkeypatch):
    detector = Detector(tiny_cfg())
    monkeypatch.setattr(detector, "detect", find_bright)
    large = np.zeros((500, 420, 3), np.uint8)
    large[440:460, 170:190] = 255  # where slices overlap
    assert len(detector.predict(large)[0]) == 0
    (found,) = detector.predict(large, slices=200)
    assert found.boxes.tolist() == [[170, 440, 190, 460]]

    pytest.importorskip("trackers")
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (160, 120))
    for number in range(6):
        frame = np.zeros((120, 160, 3), np.uint8)
        frame[40:80, 10 + 5 * number : 50 + 5 * number] = 255
        writer.write(frame)
    writer.release()
    photo = Image.fromarray(np.full((50, 50, 3), 255, np.uint8))
    results = detector.predict([tmp_path / "a.mp4", photo, tmp_path], tracks=True, batch=4, frames=5)
    assert [r.frame for r in results] == [0, 1, 2, 3, 4, None]  # one id for one object, whatever its score
    (number,) = {*results[1].track_ids.tolist(), *results[4].track_ids.tolist()}
    assert number >= 0 and results[5].track_ids is None


def test_what_cannot_work_is_told(tiny_cfg, tmp_path, encoded, caplog):
    cfg = tiny_cfg()
    detector = Detector(cfg)
    with pytest.raises(UserError, match="A webcam never ends"):
        detector.predict([0])
    wrong = [("slices", -3), ("slices", 1), ("batch", 0), ("batch", 2.5), ("top", 0), ("overlap", -1), ("threshold", 5)]
    for name, value in [*wrong, ("threshold", "high"), ("frames", -1), ("top", 1.5)]:
        with pytest.raises(UserError, match=f"^{name} is {value!r}: give "):
            detector.predict(np.zeros((9, 9, 3), np.uint8), **{name: value})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="The device is cuda:3, but this machine has no CUDA"):
            Detector(cfg, device="cuda:3")
    with pytest.raises(UserError, match="MODEL.DEVICE is 'gpu'"):
        Detector(cfg, device="gpu")
    (tmp_path / "mini").mkdir()
    for name in ("mini/drawing.jpg", "photo.jpg", "broken.jpg"):
        (tmp_path / name).write_bytes(encoded((80, 60)) if "broken" not in name else b"text")
    detector.predict(tmp_path / "mini")
    assert "drawings only" not in caplog.text
    for _ in range(2):  # the model of the mini benchmark says once that it knows no photos
        assert [item.reason for item in detector.predict(tmp_path).skipped] == ["not an image"]
    assert caplog.text.count("has seen drawings only (mini_ov_train)") == 1
    assert len(list(detector.stream(tmp_path))) == 2 and "Image left out: " in caplog.text


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

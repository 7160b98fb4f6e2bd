"""The classifiers against loops, and BARON's shipped detector on small images."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from clim.data.categories import COCO_NAMES
from clim.detector import Detector
from clim.errors import UserError
from clim.losses import matched_contrast
from clim.modeling.classifier import CosineClassifier, PseudoWordClassifier
from clim.text import build_text_tower, class_embeddings
from clim_commands.responder import head_embeddings

# ---- cosines


def cosine(**kwargs):
    torch.manual_seed(0)
    embeddings = torch.randn(4, 6) * torch.tensor([[1.0], [5.0], [0.1], [10.0]])  # not normalised, as Detic's files
    arguments = {"class_embeddings": embeddings, "temperature": 50.0} | kwargs
    return CosineClassifier(8, **arguments), embeddings


def slow_cosines(module, embeddings, x):
    """temperature · cos(Wx + b, t), one pair after the other, and 0 for the background."""
    rows = []
    for features in x:
        v = module.linear.weight @ features + module.linear.bias
        cosines = [sum(v * t) / (sum(v * v) * sum(t * t)) ** 0.5 for t in embeddings]
        rows.append([module.temperature * c.item() for c in cosines] + [0.0])
    return torch.tensor(rows)


def test_logits_are_temperature_times_cosine_and_zero_for_background():
    module, embeddings = cosine()
    x = torch.randn(5, 8)
    torch.testing.assert_close(module(x), slow_cosines(module, embeddings, x), rtol=1e-4, atol=1e-4)
    assert (module(x)[:, -1] == 0).all()
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "zs_weight": (6, 5), "linear.weight": (6, 8), "linear.bias": (6,),
    }  # fmt: skip
    assert torch.equal(module.train()(x), module.eval()(x))
    torch.testing.assert_close(module.class_embeddings[:4], embeddings / embeddings.norm(dim=1, keepdim=True))
    assert (module.class_embeddings[4:] == 0).all()
    for dtype in (torch.float16, torch.float64):
        module, _ = cosine(class_embeddings=embeddings.to(dtype))
        assert module.zs_weight.dtype == torch.float32
        torch.testing.assert_close(module.zs_weight.norm(dim=0), torch.tensor([1.0, 1, 1, 1, 0]))


def test_the_bias_is_added_in_training_only_and_stays_with_another_vocabulary():
    module, embeddings = cosine(temperature=25.0, train_bias=-20.0)
    x, others = torch.randn(5, 8), torch.randn(7, 6) * 3
    assert module.cls_bias.shape == (1,) and module.cls_bias.requires_grad
    for rows in (embeddings, others):
        module.set_vocabulary(rows)
        expected = slow_cosines(module, rows, x)
        torch.testing.assert_close(module.train()(x), expected - 20, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(module.eval()(x), expected, rtol=1e-4, atol=1e-4)
    assert module.state_dict()["zs_weight"].shape == (6, 8)


def test_a_learned_background_is_one_direction_more():
    module, embeddings = cosine(learned_background=True)
    x = torch.randn(5, 8)
    weight, bias = module.background.weight[:, 0].tolist(), module.background.bias.tolist()
    rows = torch.cat([embeddings, torch.tensor([[w + b for w, b in zip(weight, bias, strict=True)]])])
    torch.testing.assert_close(module(x), slow_cosines(module, rows, x)[:, :-1], rtol=1e-4, atol=1e-4)
    module(x)[:, -1].sum().backward()
    assert module.background.weight.grad.abs().sum() > 0
    module.set_vocabulary(torch.randn(2, 6))
    assert module(x).shape == (5, 3)


# ---- pseudo words

IN, WORDS, WORD_DIM, CLASSES = 8, 3, 16, 5
CLS = "roi_heads.box_predictor.cls_score."


@pytest.fixture(scope="module")
def tower(tiny_json):
    return build_text_tower(name=tiny_json("vit", text={"layers": 2}))


def pseudo_words(tower):
    torch.manual_seed(0)
    module = PseudoWordClassifier(
        IN, tower=tower, words=WORDS, dropout=0.5, class_embeddings=3 * torch.randn(CLASSES, WORD_DIM),
        temperature=25.0, train_bias=-20.0,
    )  # fmt: skip
    torch.nn.init.normal_(module.linear.weight)  # as built, words are too small to matter
    return module


def slow_readings(module, x, kept):
    """25 · cos of every region with every class; ``kept``: the words that are read of each region."""
    rows = []
    for features, places in zip(x, kept, strict=True):
        words = (module.linear.weight @ features + module.linear.bias).view(WORDS, WORD_DIM)[places]
        hidden = module.tower.encode_words(words[None], torch.tensor([len(places)])).hidden[0]
        cosines = [F.cosine_similarity(hidden, c, dim=0) for c in module.class_embeddings[:-1]]
        rows.append([25 * c.item() for c in cosines] + [0.0])
    return torch.tensor(rows)


def test_logits_read_all_words_at_test_and_drop_some_in_training_which_adds_the_bias(tower):
    module, x = pseudo_words(tower).eval(), torch.randn(12, IN)
    assert torch.equal(module.project(x), module.linear(x))
    expected = slow_readings(module, x, [[0, 1, 2]] * 12)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(module(x), module(x)) and (module(x)[:, -1] == 0).all()
    torch.manual_seed(4)
    logits = module.train()(x)
    torch.manual_seed(4)
    kept = [[i for i in range(WORDS) if row[i] >= 0.5] or [0] for row in torch.rand(12, WORDS).tolist()]
    assert {len(places) for places in kept} == {1, 2, 3}
    torch.testing.assert_close(logits, slow_readings(module, x, kept) - 20, rtol=1e-4, atol=1e-4)


def test_the_tower_is_neither_stored_nor_trained(tower):
    module = pseudo_words(tower)
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == {
        "linear.weight": (WORDS * WORD_DIM, IN), "linear.bias": (WORDS * WORD_DIM,),
        "zs_weight": (WORD_DIM, CLASSES + 1), "cls_bias": (1,),
    }  # fmt: skip
    assert list(module.children()) == [module.linear]
    x = torch.randn(3, IN, requires_grad=True)
    module.train()(x)[:, :-1].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (*module.parameters(), x))
    assert all(p.grad is None for p in tower.parameters())


def test_start_no_region_and_autocast(tower):
    arguments = {"class_embeddings": torch.eye(CLASSES, WORD_DIM), "temperature": 25.0}
    module = PseudoWordClassifier(512, tower=tower, words=WORDS, dropout=0.5, **arguments)
    assert module.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (module.linear.bias == 0).all() and not hasattr(module, "cls_bias")
    for training in (True, False):
        module = pseudo_words(tower).train(training)
        logits = module(torch.zeros(0, IN))
        assert logits.shape == (0, CLASSES + 1)
        logits.sum().backward()
        assert module.linear.weight.grad is not None
    x = torch.randn(4, IN)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, module(x), rtol=0, atol=1.0)  # the tower itself runs in half precision


# ---- the shipped detector


@pytest.fixture(scope="module")
def overrides(tiny_json):
    """KEY, VALUE, …: a tiny CLIP text half, small numbers of regions."""
    return [
        "MODEL.TEXT.NAME", tiny_json("vit", text={"context_length": 77}), "MODEL.TEXT.PRETRAINED", "",
        "MODEL.TEXT.DIM", 12, "MODEL.TEXT.WORD_DIM", WORD_DIM,
        "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.WEIGHTS", "",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 40, "MODEL.RPN.POST_NMS_TOPK_TEST", 15,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8,
        "INPUT.CAPTION.SHORT_SIDE", 64, "INPUT.CAPTION.LONG_SIDE", 96, "INPUT.MOSAIC.SIZE", 96,
        "INPUT.MOSAIC.GRIDS", [2],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def build(damp, load_cfg, overrides):
    """``build(config, "KEY", value, …)``."""

    def make(name, *more):
        torch.manual_seed(0)
        model = damp(build_model(load_cfg(name, *overrides, *more)))
        torch.nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=0.05)
        return model

    return make


@pytest.fixture(scope="module")
def model(build):
    return build("BARON_CLIM_C4.yaml")


def test_keys_and_shapes_of_the_whole_model(model):
    """Detic's, with pseudo words in the place of embeddings, and the positional embedding of the method."""
    manifest = json.loads((Path(__file__).parent / "detic_ovcoco_r50_keys.json").read_text())
    expected = manifest | {
        f"{CLS}linear.weight": [4 * WORD_DIM, 2048], f"{CLS}linear.bias": [4 * WORD_DIM],
        f"{CLS}zs_weight": [WORD_DIM, 81], f"{CLS}cls_bias": [1],
        "method.positional_embed.0.weight": [512, 512], "method.positional_embed.0.bias": [512],
        "method.positional_embed.1.weight": [512], "method.positional_embed.1.bias": [512],
        "method.positional_embed.2.weight": [4 * WORD_DIM, 512], "method.positional_embed.2.bias": [4 * WORD_DIM],
    }  # fmt: skip
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    assert model.classifier.tower is model.text_encoder.live
    assert not any(p is q for p in model.parameters() for q in model.classifier.tower.parameters())


def test_a_joint_step_has_every_loss_and_a_gradient_for_every_parameter(model, joint_batch, train_step):
    model, fresh = copy.deepcopy(model), copy.deepcopy(model)
    losses = train_step(model, joint_batch())
    assert set(losses) == {
        "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_bag", "loss_bag_mosaic",
    }  # fmt: skip
    assert all(loss.shape == () and torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.method.caption_queue.read()[1].tolist() == [11, 13, 14, 15, 11, 12]
    # The first loss of a mosaic, when nothing is queued yet: 10 · contrast of its bags and captions.
    (loss,) = train_step(fresh, joint_batch(detections=False, captions=False)).values()
    expected = matched_contrast(*fresh.method.bag_queue.read(), *fresh.method.caption_queue.read(), scale=30.0)
    torch.testing.assert_close(loss.detach(), 10 * expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_detections_rank_by_cosines_and_response_maps_read_every_location(model, make_image, detect):
    (found,) = detect(model, make_image(64, 96))
    assert len(found) > 0 and found.logits.abs().max() <= 25 + 1e-3
    assert torch.equal(found.logits.sort(descending=True).values, found.logits)
    torch.testing.assert_close(found.scores, found.logits.double().sigmoid())

    features = {"res4": torch.randn(2, 1024, 4, 6, generator=torch.Generator().manual_seed(1))}
    embeddings = head_embeddings(model.roi_heads, features)
    assert embeddings.shape == (2, WORD_DIM, 2, 3)
    cells = model.roi_heads.res5(features["res4"])
    for image, row, column in [(0, 0, 0), (1, 1, 2)]:
        words = model.classifier.linear(cells[image, :, row, column]).view(1, 4, WORD_DIM)
        hidden = model.classifier.tower.encode_words(words, torch.tensor([4])).hidden[0]
        torch.testing.assert_close(embeddings[image, :, row, column], F.normalize(hidden, dim=0))


def test_names_are_read_by_hidden_features(build, load_cfg, overrides, tmp_path):
    """A configured vocabulary stays, and a detector shows scores with the learnt bias."""
    names, path = ["dog", "red car", "bird"], str(tmp_path / "base.pth")
    torch.save({"model": build("BARON_BoxSup_C4.yaml").state_dict()}, path)
    asked = load_cfg(
        "BARON_BoxSup_C4.yaml", *overrides, "MODEL.VOCABULARY.NAMES", names, "MODEL.WEIGHTS", path,
        "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    shown = Detector(asked)
    expected = class_embeddings(shown.model.text_encoder, names, hidden=True)
    torch.testing.assert_close(shown.model.classifier.class_embeddings[:-1], expected)
    (found,) = shown.detect([torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()], threshold=0.0)
    assert found.scores.max() <= 1 / (1 + math.exp(-5 - 1e-3))  # 25 · cos - 20 at most


def test_a_file_of_other_features_is_told(load_cfg, overrides, model, tmp_path, caplog):
    hidden = class_embeddings(model.text_encoder, COCO_NAMES, hidden=True)
    others = F.normalize(torch.randn(hidden.shape), dim=1)
    for name, rows, told in (("attn12", hidden, False), ("final", others, True)):
        caplog.clear()
        np.save(tmp_path / f"{name}.npy", rows.numpy())
        build_model(load_cfg("BARON_C4.yaml", *overrides, "MODEL.VOCABULARY.EMBEDDINGS", f"{tmp_path}/{name}.npy"))
        assert (f"{name}.npy holds other features" in caplog.text) == told


@pytest.mark.parametrize("key, value, message", [
    ("OPEN_VOCAB.WORDS", 100, "100 pseudo words is longer than the 75 .* MODEL.OPEN_VOCAB.WORDS"),
    ("TEXT.WORD_DIM", 8, "16 dimensions, but MODEL.TEXT.WORD_DIM is 8"),
])  # fmt: skip
def test_errors(load_cfg, overrides, key, value, message):
    with pytest.raises(UserError, match=message):
        build_model(load_cfg("BARON_BoxSup_C4.yaml", *overrides, f"MODEL.{key}", value))

"""The detector whole, on small images: keys, checkpoints, inference, training steps, precision."""

import copy
import json
import logging
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import ImageList
from torchvision.ops import batched_nms, roi_align

from clim.checkpoints.checkpointer import SafeCheckpointer
from clim.errors import UserError
from clim.methods import detic

MANIFEST = json.loads((Path(__file__).parent / "detic_ovcoco_r50_keys.json").read_text())


@pytest.fixture(scope="module")
def official(build_detector, damp):
    return damp(build_detector("Detic_C4_official.yaml"))


@pytest.fixture(scope="module")
def mini(build_detector):
    """The same classes around EfficientNet-Lite0, in the CLIM release's preset."""
    return build_detector("mini/detic_clim.yaml")


def test_keys_and_shapes(official, build_detector):
    """Those of official Detic; the CLIM preset adds its biases only."""
    assert {k: list(v.shape) for k, v in official.state_dict().items()} == MANIFEST
    assert len(MANIFEST) == 279 and sum(1 for _ in official.named_parameters()) == 65
    clim = build_detector("Detic_CLIM_C4.yaml")
    added = {"roi_heads.box_predictor.cls_score.cls_bias", "method.bias.caption", "method.bias.tag"}
    assert set(clim.state_dict()) == set(MANIFEST) | added
    assert all(dict(clim.named_parameters())[name].item() == -20 for name in added)


def official_file(seed=7):
    """What an official file holds, the text tower of the caption configs included."""
    generator = torch.Generator().manual_seed(seed)
    state = {k: torch.randn(v, generator=generator) * 0.01 for k, v in MANIFEST.items()}
    state["text_encoder.positional_embedding"] = torch.zeros(77, 512)
    state["text_encoder.transformer.resblocks.0.attn.in_proj_weight"] = torch.zeros(1536, 512)
    return state


def test_official_files(build_detector, hash_tower, tmp_path, caplog, make_image, detect):
    """They load strictly; the checkpointer drops tensors of other shapes, and the configured vocabulary stays."""
    model, given = build_detector("Detic_C4_official.yaml"), official_file()
    model.load_state_dict(dict(given), strict=True)
    assert all(torch.equal(v, given[k]) for k, v in model.state_dict().items())
    torch.save({"model": given}, tmp_path / "official.pth")
    for names in (["dog", "cat", "bird"], [f"class {i}" for i in range(80)]):
        keys = ("MODEL.VOCABULARY.NAMES", names, "MODEL.VOCABULARY.PROMPT", "name")
        model = build_detector("Detic_C4_official.yaml", *keys)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            SafeCheckpointer(model, str(tmp_path)).load(str(tmp_path / "official.pth"))
        expected = torch.cat([hash_tower(512).encode(names), torch.zeros(1, 512)])
        torch.testing.assert_close(model.classifier.class_embeddings, expected)
        assert not any("configured vocabulary" in m for m in caplog.messages)  # it is named on purpose
        name = "roi_heads.box_predictor.bbox_pred.2.weight"
        assert torch.equal(model.state_dict()[name], given[name])
        (output,) = detect(model, make_image(64, 64))
        assert set(output.pred_classes.tolist()) <= set(range(len(names)))


def test_a_base_stage_without_a_method_starts_one_with_it(build_detector, tmp_path):
    base = build_detector("mini/base_stage.yaml")
    torch.save({"model": base.state_dict()}, tmp_path / "base.pth")
    model = build_detector("mini/detic_clim.yaml")
    torch.nn.init.zeros_(model.classifier.linear.weight)
    SafeCheckpointer(model, str(tmp_path)).load(str(tmp_path / "base.pth"))
    assert torch.equal(model.classifier.linear.weight, base.classifier.linear.weight)
    assert model.method.bias["caption"].item() == -20


@torch.no_grad()
def independent_detections(model, image, *, temperature, mean, std, resolution, threshold=0.05):
    """Features → RoIAlign → res5 → mean → linear → cosine → sigmoid → threshold → NMS by class → 100."""
    height, width = image.shape[1:]
    features = model.backbone(((image.float() - torch.tensor(mean).view(3, 1, 1)) / std)[None])["res4"]
    images = ImageList(image[None], [(height, width)])
    proposals = model.proposal_generator.propose(images, {"res4": features})[0].proposal_boxes.tensor
    pooled = roi_align(features, [proposals], (resolution,) * 2, 1 / 16, sampling_ratio=0, aligned=True)
    x = model.roi_heads.res5(pooled).mean(dim=(2, 3))
    state = model.roi_heads.box_predictor.state_dict()

    v = x @ state["cls_score.linear.weight"].T + state["cls_score.linear.bias"]
    text = state["cls_score.zs_weight"][:, :-1]
    cosines = v @ text / v.norm(dim=1, keepdim=True) / text.norm(dim=0)
    scores = 1 / (1 + (-temperature * cosines).exp())

    hidden = (x @ state["bbox_pred.0.weight"].T + state["bbox_pred.0.bias"]).clamp(min=0)
    dx, dy, dw, dh = (hidden @ state["bbox_pred.2.weight"].T + state["bbox_pred.2.bias"]).T
    w, h = proposals[:, 2] - proposals[:, 0], proposals[:, 3] - proposals[:, 1]
    cx, cy = proposals[:, 0] + w / 2 + dx / 10 * w, proposals[:, 1] + h / 2 + dy / 10 * h
    w, h = (w * (dw / 5).clamp(max=math.log(1000 / 16)).exp(), h * (dh / 5).clamp(max=math.log(1000 / 16)).exp())
    boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=1)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))

    row, label = (scores > threshold).nonzero(as_tuple=True)
    keep = batched_nms(boxes[row], scores[row, label], label, 0.5)[:100]
    return boxes[row[keep]], scores[row[keep], label[keep]], label[keep]


@pytest.mark.parametrize("name, facts", [
    ("official", {"temperature": 50.0, "mean": [103.53, 116.28, 123.675], "std": 1.0, "resolution": 14}),
    ("mini", {"temperature": 25.0, "mean": [127.0, 127.0, 127.0], "std": 128.0, "resolution": 7}),
])  # fmt: skip
def test_inference_equals_a_direct_implementation(request, name, facts, make_image, detect):
    model, image = request.getfixturevalue(name), make_image(64, 96, seed=5)
    (ours,) = detect(model, image)
    boxes, scores, labels = independent_detections(model, image, **facts)
    assert len(ours) == len(scores) == 100
    torch.testing.assert_close(ours.scores, scores.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.pred_boxes.tensor, boxes, rtol=1e-4, atol=1e-2)
    assert torch.equal(ours.pred_classes, labels)
    assert len(labels.unique()) > 10 and len(boxes.unique(dim=0)) > 3


DETECTION_LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
PAIR_LOSSES = {"loss_caption", "loss_tag", "loss_caption_mosaic", "loss_tag_mosaic"}


def test_a_joint_step_has_every_loss_once_and_reaches_all_that_learns(mini, joint_batch, train_step):
    """So DDP needs no search for unused parameters. Pairs reach backbone and head but not the RPN."""
    mini.zero_grad(set_to_none=True)
    losses = train_step(mini, joint_batch())
    assert set(losses) == DETECTION_LOSSES | PAIR_LOSSES
    assert all(loss.shape == () and torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in mini.named_parameters() if p.requires_grad and p.grad is None] == []

    mini.zero_grad(set_to_none=True)
    sum(train_step(mini, joint_batch(detections=False)).values()).backward()
    reached = {name for name, p in mini.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    head = {"method.bias.caption", "method.bias.tag", "roi_heads.box_predictor.cls_score.linear.weight"}
    assert head < reached and any(n.startswith("backbone.") for n in reached) and any("res5" in n for n in reached)
    assert not any("proposal_generator" in n or "bbox_pred" in n or "cls_bias" in n for n in reached)


def test_a_method_refuses_a_batch_of_boxes_alone(mini, detection):
    """Detectron2's DefaultTrainer would train a part of the losses."""
    mini.train()
    with pytest.raises(UserError, match="^Detic learns from pairs, but this batch has none: .* clim.engine.Trainer"):
        mini([detection()])


def test_sources_do_not_touch_each_others_losses(mini, joint_batch, train_step):
    model = copy.deepcopy(mini)
    model.method.num_groups = 0  # groups are drawn from the state that the heads sample their RoIs from
    together = train_step(model, joint_batch())
    assert set(train_step(model, joint_batch(captions=False, mosaics=False))) == DETECTION_LOSSES
    model.method.queue.image_ids.fill_(-1)
    losses = train_step(model, joint_batch(mosaics=False))
    assert set(losses) == DETECTION_LOSSES | {"loss_caption", "loss_tag"}
    torch.testing.assert_close({k: together[k] for k in losses}, losses)
    # The mosaics come last, and find the single captions in the queue: image 11 is in both.
    losses = train_step(model, joint_batch(detections=False, captions=False))
    assert set(losses) == {"loss_caption_mosaic", "loss_tag_mosaic"}
    torch.testing.assert_close({k: together[k] for k in losses}, losses)
    assert model.method.queue.read()[1].tolist() == [11, 13, 14, 15, 11, 12]


def test_sources_of_an_iteration_know_each_others_texts(mini, joint_batch, train_step, monkeypatch):
    losses, seen = mini.method.losses, []
    monkeypatch.setattr(mini.method, "losses", lambda *given: seen.append(given[2]) or losses(*given))
    for batch in (joint_batch(), joint_batch(captions=False)):
        train_step(mini, batch)
    captions, mosaics, alone = seen
    assert captions.others == [mosaics] and mosaics.others == [captions] and alone.others == []


def test_the_caption_loss_from_scratch(mini, joint_batch, train_step, monkeypatch):
    """Features of the canvas → pooled tiles and groups → the formula, with the queue's captions."""
    model = copy.deepcopy(mini)
    model.method.queue.image_ids.fill_(-1)
    train_step(model, joint_batch(detections=False, mosaics=False))
    batch = joint_batch(detections=False, captions=False)
    groups = torch.tensor([[True, True, False, False], [False, True, False, True]])
    monkeypatch.setattr(detic, "draw_groups", lambda *_: groups)
    loss = train_step(model, batch)["loss_caption_mosaic"]
    (mosaic,) = batch["mosaics"]
    with torch.no_grad():
        features = model.backbone(((mosaic["image"].float() - 127) / 128)[None])["res4"]
        boxes = torch.cat([mosaic["tiles"].boxes, torch.tensor([[0.0, 0, 64, 32], [32, 0, 64, 64]])])
        pooled = roi_align(features, [boxes], (7, 7), 1 / 16, sampling_ratio=0, aligned=True)
        v = model.classifier.linear(model.roi_heads.res5(pooled).mean(dim=(2, 3)))
        t = model.text_encoder.encode([*mosaic["tiles"].drawn, "caption 11", "caption 12"])
        logits = 25 * torch.nn.functional.cosine_similarity(v[:, None], t[None], dim=2) - 20
    ids = [11, 13, 14, 15, 11, 12]
    expected = 0.0
    for row, own in enumerate([{11}, {13}, {14}, {15}, {11, 13}, {13, 15}]):
        count = sum(i in own for i in ids)
        for column, i in enumerate(ids):
            z = logits[row, column].item()
            expected += math.log1p(math.exp(-z)) / count if i in own else 0.125 * math.log1p(math.exp(z))
    assert loss.item() == pytest.approx(0.025 * expected, rel=1e-4)


def test_an_image_without_boxes(mini, detection, joint_batch, train_step):
    model = copy.deepcopy(mini)
    torch.nn.init.zeros_(model.classifier.cls_bias)  # at -20 the loss of background rounds to 0
    batch = joint_batch(captions=False, mosaics=False)
    batch["detection"] = [detection(boxes=()), detection()]
    assert all(torch.isfinite(loss) for loss in train_step(model, batch).values())
    batch["detection"] = [detection(boxes=())]
    model.zero_grad(set_to_none=True)
    losses = train_step(model, batch)
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_loc"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    missing = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert missing == {"method.bias.caption", "method.bias.tag"}  # there were no pairs


def test_captions_only_needs_no_proposals(build_detector, monkeypatch, joint_batch, train_step):
    model = build_detector("mini/detic_clim.yaml", "MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
    monkeypatch.setattr(model.proposal_generator, "propose", None)
    assert set(train_step(model, joint_batch(detections=False))) == {"loss_caption", "loss_caption_mosaic"}


def test_official_training(official, joint_batch, train_step):
    """An iteration of boxes, then one of captions: no parameter of the method, no queue."""
    assert set(train_step(official, joint_batch(captions=False, mosaics=False))) == DETECTION_LOSSES
    losses = train_step(official, joint_batch(detections=False, mosaics=False))
    assert set(losses) == {"loss_caption", "loss_tag"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    assert not list(official.method.parameters())


@pytest.mark.parametrize("method, source, suffix", [("Detic", "mosaics", "_mosaic"), ("OfficialDetic", "captions", "")])
def test_stages_of_a_cascade(build_detector, joint_batch, train_step, cascade, monkeypatch, method, source, suffix):
    """Losses are summed over the stages, and the queue is filled once, with the captions of the last.

    The CLIM release draws captions anew for the second and third stage.
    """
    model = build_detector("mini/detic_clim.yaml", "MODEL.METHOD.NAME", method)
    monkeypatch.setattr(model.roi_heads, "embed_stages", cascade(384, (3.0, 1, 5, 2), (-4.0, 0, 3, 3)).embed_stages)
    losses_of_stage, stages, pushed = model.method.losses, [], []

    def losses(embeddings, regions, texts):
        stages.append((losses_of_stage(embeddings, regions, texts), texts))
        return stages[-1][0]

    monkeypatch.setattr(model.method, "losses", losses)
    monkeypatch.setattr(model.method, "update_queues", lambda _, texts: pushed.append(texts))
    batch = joint_batch()[source]
    for tiles in (canvas["tiles"] for canvas in batch):
        tiles.captions = [[drawn, *(f"{drawn}, {j}" for j in range(30))] for drawn in tiles.drawn]
    total, drawn = train_step(model, {source: batch}), [texts.tiles.drawn for _, texts in stages]
    assert len(stages) == 3 and pushed == [stages[2][1]]
    for name in ("loss_caption", "loss_tag"):
        torch.testing.assert_close(total[name + suffix], sum(stage[name] for stage, _ in stages))
    assert drawn[0] == [caption for canvas in batch for caption in canvas["tiles"].drawn]
    assert len({tuple(d) for d in drawn}) == {"Detic": 3, "OfficialDetic": 1}[method]


def test_a_text_tower_is_no_part_of_the_model_however_it_is_assigned(mini):
    """A module, which torch would store, move and train."""
    assert mini.text_encoder.dim == 384
    model = copy.deepcopy(mini)
    model.text_encoder = tower = torch.nn.Linear(1, 1)
    assert model.text_encoder is tower and model.state_dict().keys() == mini.state_dict().keys()
    assert not any(weight is tower.weight for weight in model.parameters())
    assert not any("text_encoder" in name for name, _ in model.named_modules())


@contextmanager
def precisions(model):
    """{place: types of its outputs} of what runs inside: backbone, RPN, last blocks, projection."""
    seen = {}
    places = {
        "backbone": model.backbone.stem[0],
        "rpn": model.proposal_generator.rpn_head.objectness_logits,
        "res5": model.roi_heads.res5.blocks[0],
        "linear": model.classifier.linear,
    }
    hooks = [
        layer.register_forward_hook(lambda m, i, out, place=place: seen.setdefault(place, set()).add(out.dtype))
        for place, layer in places.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


HALF, FULL = {torch.bfloat16}, {torch.float32}


@pytest.mark.parametrize("fp32_heads, rest", [(True, FULL), (False, HALF)])
def test_mixed_precision(build_detector, fp32_heads, rest, make_image, joint_batch, train_step, detect):
    """Official Detic: the backbone alone in half precision. CLIM release: the whole model."""
    model = build_detector("mini/detic_clim.yaml", "MODEL.OPEN_VOCAB.FP32_HEADS", fp32_heads)
    with precisions(model) as seen, torch.autocast("cpu", torch.bfloat16):
        losses = train_step(model, joint_batch())
    assert seen == {"backbone": HALF, "rpn": rest, "res5": rest, "linear": rest}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert model.backbone.trunk.blocks[-1]._project_conv.weight.grad.abs().sum() > 0
    with precisions(model) as seen, torch.autocast("cpu", torch.bfloat16):
        detect(model, make_image(64, 64))
    assert seen == {"backbone": HALF, "rpn": rest, "res5": rest, "linear": rest}
    with precisions(model) as seen:  # autocast is off
        train_step(model, joint_batch())
    assert seen == dict.fromkeys(seen, FULL)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_vldet(build_detector, joint_batch, train_step, tmp_path, precision):
    """A joint step; an iteration of one source; both reach the projection of the classifier."""
    np.save(tmp_path / "nouns.npy", np.random.default_rng(0).normal(size=(65, 384)))
    keys = ("MODEL.METHOD.NAME", "VLDet", "MODEL.METHOD.VLDET.EMBEDDINGS", str(tmp_path / "nouns.npy"))
    model = build_detector("mini/detic_clim.yaml", *keys)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        together = train_step(model, joint_batch())
        alone = [train_step(model, {source: joint_batch()[source]}) for source in ("captions", "mosaics")]
    names = {"loss_caption", "loss_noun", "loss_caption_mosaic", "loss_noun_mosaic"}
    assert set(together) == DETECTION_LOSSES | names and set(alone[0]) | set(alone[1]) == names
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) and loss > 0 for loss in together.values())
    assert together["loss_caption"] != alone[0]["loss_caption"]  # the mosaics' captions are further negatives
    sum(together[name] for name in names).backward()
    assert model.classifier.linear.weight.grad.abs().sum() > 0

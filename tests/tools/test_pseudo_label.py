"""Pseudo-labels of simple proposals and a tiny encoder: labels, interruptions, shards, the json and its data set."""

import json
import math
import multiprocessing
import os
import shlex
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

import clim.data.datasets  # noqa: F401  registers the data sets
import parse_nouns
import pseudo_label
from clim.data.datasets import register_own_set
from clim.data.images import read_image
from clim.data.readers import read_pseudo_labels
from clim.data.region_classification import crop_letterboxed
from clim.errors import UserError
from clim.files import write_json
from clim.modeling.backbones.encoder import ImageEncoder
from pseudo_labels.folder import LabelFolder, coco_format, label_images
from pseudo_labels.labeller import Proposer, PseudoLabeller

SIZES = [(40, 60), (60, 40), (48, 48), (30, 64), (64, 36), (50, 50), (33, 44)]
NOUNS = ["cat", "dog", "bus", "tree", "sky"]
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


class TinyEncoder(ImageEncoder):
    dim, native_size, stride = 6, 16, 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv2d(3, self.dim, 4, stride=4)

    def embed_images(self, images):
        assert images.shape[1:] == (3, 16, 16)
        return self.layer(images).mean((2, 3))


def propose(image):
    """0, 1 or 2 boxes, by the image's height."""
    height, width = image.shape[:2]
    boxes = torch.tensor([[1.5, 2, width - 3, height / 2], [0, 0, width, height]])
    return boxes[: height % 3]


def nouns_table():
    return F.normalize(torch.randn(len(NOUNS), 6, generator=torch.Generator().manual_seed(1)), dim=1)


def labeller(**changes):
    arguments = {"propose": propose, "encoder": TinyEncoder(), "nouns": nouns_table(), "pixel_mean": MEAN}
    return PseudoLabeller(**arguments | {"pixel_std": STD, "input_format": "RGB"} | changes)


@pytest.fixture
def records(make_photos):
    made = make_photos(SIZES)
    made[3]["file_name"] += ".gone"
    return made


def finish(folder, records, label, *, shard=0, shards=1):
    """Label one shard as the tool does. Returns the json's content if no image is missing."""
    store = LabelFolder(folder, {"a": 1})
    done = store.finished()
    mine = [r for r in records[shard::shards] if r["image_id"] not in done]
    with store.appending(shard, shards) as append:
        for _ in label_images(mine, label, append):
            pass
    lines = store.finished()
    if len(lines) < len(records):
        return None
    return coco_format(records, lines, nouns=NOUNS, image_root=str(Path(records[0]["file_name"]).parent))


def test_labels_equal_a_loop_over_crops(records):
    found = 0
    for record in (records[0], records[4], records[5]):
        image = read_image(record["file_name"], fmt="RGB").image
        labels, encoder = labeller()(image), TinyEncoder()
        assert torch.equal(torch.from_numpy(labels.boxes), propose(image))
        for box, noun, score in zip(*labels, strict=True):
            crop = torch.from_numpy(crop_letterboxed(image, box.astype(float), 16).astype(np.float32))
            pixels = ((crop - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
            row = encoder.embed_images(pixels[None])[0].tolist()
            cosines = [np.dot(row, n) / np.linalg.norm(row) / np.linalg.norm(n) for n in nouns_table().tolist()]
            assert noun == int(np.argmax(cosines)) and score == pytest.approx(max(cosines), abs=1e-5)
            found += 1
    assert found == 4


def test_channel_order_score_cut_and_no_proposals(records):
    image = read_image(records[1]["file_name"], fmt="RGB").image
    two = {"propose": lambda p: torch.tensor([[0, 0, 9, 9], [3, 3, 30, 30.0]])}
    rgb, swapped = labeller(**two)(image), TinyEncoder()
    swapped.layer.weight.data = swapped.layer.weight.data.flip(1)
    bgr = {"input_format": "BGR", "pixel_mean": MEAN[::-1], "pixel_std": STD[::-1], "encoder": swapped}
    np.testing.assert_allclose(labeller(**two, **bgr)(image).scores, rgb.scores, atol=1e-5)
    cut = float(rgb.scores.mean())
    kept = labeller(**two, min_score=cut)(image)
    assert len(kept.boxes) == len(kept.nouns) == len(kept.scores) == 1 and kept.scores[0] > cut
    assert [len(v) for v in labeller(propose=lambda p: torch.zeros(0, 4))(image)] == [0, 0, 0]
    with pytest.raises(UserError, match="7 dimensions, but the image encoder's 6"):
        labeller(nouns=torch.eye(7))


def test_names_of_images_in_shards_come_back(tmp_path):
    names = [f"tar://{tmp_path}/sub/a.tar?512+90#1.jpg", f"{tmp_path}/b.jpg"]
    records = [{"file_name": name, "image_id": i} for i, name in enumerate(names)]
    line = {"size": (9, 9), "boxes": [[1, 1, 5, 5]], "nouns": [0], "scores": [0.5]}
    content = coco_format(records, {0: line, 1: line}, nouns=NOUNS, image_root=str(tmp_path))
    assert [image["file_name"] for image in content["images"]] == ["tar://sub/a.tar?512+90#1.jpg", "b.jpg"]
    (tmp_path / "p.json").write_text(json.dumps(content))
    index = {i: i - 1 for i in range(1, len(NOUNS) + 1)}
    found = read_pseudo_labels(str(tmp_path / "p.json"), str(tmp_path), index=index, remedy="")
    assert [record["file_name"] for record in found] == names


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_killed_run_goes_on(records, tmp_path, stop):
    """A run is killed in the middle of a line. The next one keeps finished images and writes the same json."""
    calls, folder, left = [], tmp_path / "killed", [stop]

    def label(image):
        calls.append(image.shape[:2])
        if len(calls) == left[0]:
            raise KeyboardInterrupt
        return labeller()(image)

    with pytest.raises(KeyboardInterrupt):
        finish(folder, records, label)
    with open(folder / "0-of-1.jsonl", "ab") as file:
        file.write(b'{"image_id": 104, "boxes": [[1')
    before = len(LabelFolder(folder, {"a": 1}).finished())
    calls.clear()
    left.clear()
    left.append(None)
    expected = finish(tmp_path / "whole", records, labeller())
    assert json.dumps(finish(folder, records, label)) == json.dumps(expected)
    assert calls == [s for s in SIZES[before:] if s != SIZES[3]] and len(calls) == 7 - stop  # the fourth is unreadable


def test_shards_in_any_number_give_the_same_json(records, tmp_path):
    expected = finish(tmp_path / "one", records, labeller())
    found = [finish(tmp_path / "three", records, labeller(), shard=shard, shards=3) for shard in (2, 0, 1)]
    assert found == [None, None, expected]
    assert finish(tmp_path / "mixed", records, labeller(), shard=1, shards=2) is None
    assert finish(tmp_path / "mixed", records, labeller()) == expected  # the other half, alone


def hold(folder, held, ended):
    """Another process works on shard 0/2. Its child outlives it, as a decoding worker of a killed run."""
    with LabelFolder(folder, {}).appending(0, 2):
        if not os.fork():
            ended.wait(30)
            os._exit(0)
        held.set()
        time.sleep(60)


def test_two_processes_on_one_shard(tmp_path):
    context = multiprocessing.get_context("fork")
    held, ended = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, ended))
    other.start()
    try:
        assert held.wait(30)
        store = LabelFolder(tmp_path, {})
        with store.appending(1, 2):
            pass
        with pytest.raises(UserError, match="Another process works on shard 0/2"):
            with store.appending(0, 2):
                pass
        other.kill()
        other.join()
        with store.appending(0, 2) as append:  # free again, although its child still lives
            append({"image_id": 1})
        assert store.finished() == {1: {"image_id": 1}}
    finally:
        ended.set()
        other.kill()


def test_other_settings_and_damage_are_errors(tmp_path):
    LabelFolder(tmp_path, {"boxes": 20, "opts": ("a", "b")})
    LabelFolder(tmp_path, {"boxes": 20, "opts": ["a", "b"]})
    with pytest.raises(UserError, match="begun with boxes = 20, not 30"):
        LabelFolder(tmp_path, {"boxes": 30, "opts": ["a", "b"]})
    (tmp_path / "0-of-1.jsonl").write_bytes(b'{"image_id": 1}\n{"image\n{"image_id": 2}\n')
    with pytest.raises(UserError, match="line 2 of .*0-of-1.jsonl is not valid json .*: remove that line"):
        LabelFolder(tmp_path, {"boxes": 20, "opts": ["a", "b"]}).finished()


def test_proposals(tiny_cfg):
    """Boxes are in the image's pixels, large enough and apart, and no more than ``count`` (random weights)."""
    cfg = tiny_cfg(config="mini/base_stage.yaml")
    proposer = Proposer(cfg, count=5, overlap=0.5, min_area=100)
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    boxes = proposer(image)
    assert 1 < len(boxes) <= 5 and boxes.dtype == torch.float32
    assert (boxes >= 0).all() and (boxes[:, 2] <= 120).all() and (boxes[:, 3] <= 80).all() and boxes[:, 2].max() > 96
    assert ((boxes[:, 2:] - boxes[:, :2]).prod(1) >= 100).all()
    assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.5
    proposer.count = 2
    assert torch.equal(proposer(image), boxes[:2])
    proposer.min_area = 1e6
    assert proposer(image).shape == (0, 4)


def test_proposals_of_low_objectness_are_left_out(tiny_cfg):
    proposer = Proposer(tiny_cfg(config="mini/base_stage.yaml"), count=5, overlap=0.5, min_area=100)
    found = []
    proposer.model.proposal_generator.register_forward_hook(lambda module, inputs, output: found.append(output[0][0]))
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    boxes = proposer(image)
    proposals = zip(found[0].proposal_boxes.tensor.tolist(), found[0].objectness_logits.tolist(), strict=True)
    probabilities = {tuple(box): 1 / (1 + math.exp(-logit)) for box, logit in proposals}
    first, second, third = (probabilities[tuple(box)] for box in boxes[:3].tolist())
    assert first > second > third
    for cut, kept in ((0.0, 5), (third - 1e-9, 3), ((second + third) / 2, 2), (1.0, 0)):
        proposer.min_objectness = cut
        assert torch.equal(proposer(image), boxes[:kept])
    with pytest.raises(UserError, match="needs a detector with an RPN"):
        Proposer(tiny_cfg(config="mini/lvis_detic.yaml"), count=5, overlap=0.5, min_area=100, min_objectness=0.5)


def test_the_set_reads_what_was_written(records, tmp_path, capsys):
    """Lines hold rounded values, workers change nothing, and unreadable images are printed."""
    content = finish(tmp_path / "parts", records, labeller())
    assert content["categories"] == [{"id": i + 1, "name": n} for i, n in enumerate(NOUNS)]
    # Heights 40, 60, 48, (gone), 64, 50, 33 give 1, 0, 0, -, 1, 2, 0 boxes.
    assert [(i["height"], i["width"]) for i in content["images"]] == [SIZES[0], SIZES[4], SIZES[5]]
    assert [i["file_name"] for i in content["images"]] == ["0.png", "4.png", "5.png"]
    annotations = content["annotations"]
    assert [(a["id"], a["image_id"]) for a in annotations] == [(1, 100), (2, 104), (3, 105), (4, 105)]
    assert annotations[0]["bbox"] == [1.5, 2, 55.5, 18] and annotations[0]["area"] == 55.5 * 18
    first = labeller()(read_image(records[0]["file_name"], fmt="RGB").image)
    assert annotations[0]["category_id"] == first.nouns[0] + 1
    assert annotations[0]["score"] == pytest.approx(first.scores[0], abs=1e-4)

    lines = LabelFolder(tmp_path / "parts", {"a": 1}).finished()
    assert list(label_images(records, labeller(), lambda _: None, workers=1)) == list(lines.values())
    assert lines[103] == {"image_id": 103, "skipped": "missing"}
    pseudo_label.report(tmp_path / "x.json", content, pseudo_label.skipped_of(records, lines), total=len(records))
    assert "1 of 7 images could not be read" in capsys.readouterr().out
    write_json(tmp_path / "labels.json", content)
    name, root = "test_pseudo_labels", str(Path(records[0]["file_name"]).parent)
    register_own_set(name, "pseudo_labels", str(tmp_path / "labels.json"), root)
    try:
        loaded = DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == NOUNS
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert [r["image_id"] for r in loaded] == [100, 104, 105]
    for record in loaded:
        source = next(r for r in records if r["image_id"] == record["image_id"])
        assert record["file_name"] == source["file_name"] and "annotations" not in record
        image = read_image(source["file_name"], fmt="RGB").image
        assert record["boxes"].dtype == np.float32 and record["nouns"].dtype == np.int64
        np.testing.assert_allclose(record["boxes"], propose(image).numpy(), atol=0.01)
        np.testing.assert_array_equal(record["nouns"], labeller()(image).nouns)


def test_another_checkpoint_of_the_same_name_is_another_setting(tmp_path):
    path, config = tmp_path / "model_final.pth", SimpleNamespace(MODEL=SimpleNamespace(WEIGHTS=""))
    detector = SimpleNamespace(MODEL=SimpleNamespace(WEIGHTS=str(path)))
    words = "--dataset a --config-file a --encoder a --nouns a --embeddings a".split()
    args = pseudo_label.parse([*words, "--output", str(tmp_path / "labels.json")])
    found = []
    for content in ("one", "one", "other"):
        path.write_text(content)
        found.append(pseudo_label.settings_of(args, detector, config, ["dog"], np.ones((1, 2))))
    assert found[0] == found[1] != found[2] and found[0]["--encoder-weights"] == ""


MINI_ENCODER = ["MODEL.IMAGE_ENCODER.NAME", "EfficientNetLite0", "MODEL.IMAGE_ENCODER.PRETRAINED", ""]


def test_the_commands(tiny_mini, tiny_overrides, tmp_path, monkeypatch, capsys):
    """Captions → nouns → labels of the mini benchmark in two shards. A further call computes nothing."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    nouns, table, output = tmp_path / "nouns.json", tmp_path / "nouns.npy", tmp_path / "labels.json"
    captions = "mini_ov_captions"
    parse_nouns.main(["--captions", captions, "--min-count", "2", "--output", str(nouns)])
    categories = json.loads(nouns.read_text())["categories"]
    assert [c["id"] for c in categories] == list(range(1, len(categories) + 1)) and categories[0]["count"] >= 2
    with pytest.raises(UserError, match="lower --min-count"):
        parse_nouns.main(["--captions", captions, "--min-count", "99999", "--output", str(nouns)])
    with pytest.raises(UserError, match="not found: --captions takes registered sets and jsons"):
        parse_nouns.main(["--captions", "no_such_set", "--output", str(nouns)])

    rows = np.random.default_rng(0).normal(size=(len(categories), 384))
    np.save(table, rows)
    config = str(Path(__file__).parents[2] / "configs/mini/base_stage.yaml")
    command = [
        "--dataset", captions, "--config-file", config, "--encoder", config, "--nouns", str(nouns),
        "--embeddings", str(table), "--output", str(output), "--boxes", "3", "--workers", "0",
        "--encoder-opts", shlex.join([*tiny_overrides, *MINI_ENCODER]),
    ]  # fmt: skip
    pseudo_label.main([*command, "--shard", "1/2", *tiny_overrides])
    assert "8 of 16 images are left to other shards" in capsys.readouterr().out and not output.exists()
    pseudo_label.main([*command, "--shard", "0/2", *tiny_overrides])
    content = json.loads(output.read_text())
    assert f"boxes of {len({a['category_id'] for a in content['annotations']})} nouns" in capsys.readouterr().out
    assert len(content["images"]) == 16 and len(content["categories"]) == len(categories)
    assert {a["category_id"] for a in content["annotations"]} <= {c["id"] for c in categories}
    output.unlink()
    monkeypatch.setattr(pseudo_label, "build_labeller", None)  # nothing is computed again
    pseudo_label.main([*command, *tiny_overrides])
    assert json.loads(output.read_text()) == content

    changed = [(rows[:-1], [], "nouns: embed"), (rows + 1, [], "begun with --embeddings")]
    changed += [(rows, ["--min-objectness", "0.5"], "begun with --min-objectness = 0.0, not 0.5")]
    changed += [(rows, ["--shard", "2/2"], "give I/N"), (rows, ["--dataset", "no_such_set"], "is not registered")]
    for embeddings, more, message in changed:
        np.save(table, embeddings)
        with pytest.raises(UserError, match=message):
            pseudo_label.main([*command, *more, *tiny_overrides])

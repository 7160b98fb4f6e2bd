"""tools/convert_checkpoint.py: from a published file to one that the detector loads, and what it says."""

import shlex
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

import convert_checkpoint as tool
from clim.checkpoints import SafeCheckpointer
from clim.engine import load_config
from clim.errors import UserError
from conversion.rules import KINDS

ROOT = Path(__file__).resolve().parents[3]
HEAD = "roi_head.bbox_head."
CLASSES, DIM = 80, 12


@pytest.fixture(scope="module")
def state(official):
    """A base-stage file's tensors."""
    detector = official.mmdet()
    detector.state[f"{HEAD}cls_embeddings"] = F.normalize(detector.draw(CLASSES, DIM), dim=1)
    detector.state[f"{HEAD}bg_embedding"] = torch.zeros(1, DIM)
    detector.state[f"{HEAD}cls_bias"] = torch.tensor([-18.5])
    for name, rows in (("fc_cls", DIM), ("fc_reg.0", detector.out_channels), ("fc_reg.2", 4)):
        detector.linear(f"{HEAD}{name}", rows, detector.out_channels)
    return detector.state


@pytest.fixture
def published(state, tmp_path):
    """``published(extra tensors)``: path of a file as MMEngine writes it."""

    def write(**more):
        path = tmp_path / "published.pth"
        torch.save({"meta": {"iter": 90000}, "state_dict": state | more}, path)
        return str(path)

    return write


def test_a_published_file_loads_as_weights(published, state, official, load_cfg, tmp_path, capsys):
    ours = tmp_path / "ours.pth"
    tool.main([published(), "--output", str(ours)])
    told = capsys.readouterr().out
    assert "clim-detic: CLIM's Detic on R50-C4" in told
    assert f"taken      {len(state) - 1} tensors" in told
    assert "left out   1: the background's embedding" in told
    assert "not found  2, which training starts anew: method.bias.caption, method.bias.tag" in told
    assert "python train_net.py --eval-only --config-file configs/Detic_CLIM_C4.yaml" in told
    assert told.rstrip().endswith(f"MODEL.WEIGHTS {ours}")

    cfg = load_cfg(
        "Detic_CLIM_C4.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.TEXT.DIM", DIM, *official.tiny_resnet
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    SafeCheckpointer(model, "").load(str(ours))
    loaded = model.state_dict()
    for name, row in KINDS["clim-detic"].table.items():
        if name in state:
            torch.testing.assert_close(loaded[row.ours], row.change(state[name]), rtol=0, atol=0)
    # The file's classes, as no others are configured.
    torch.testing.assert_close(model.classifier.class_embeddings[:-1], state[f"{HEAD}cls_embeddings"])


def test_tensors_that_nobody_knows_are_told(published, tmp_path, capsys):
    path = published(**{"roi_head.mask_head.a": torch.ones(1), "roi_head.mask_head.b": torch.ones(1)})
    tool.main([path, "--output", str(tmp_path / "ours.pth")])
    told = capsys.readouterr().out
    assert "left out   2 that this kind does not know: roi_head.mask_head.a, roi_head.mask_head.b" in told


def test_mistakes_are_told(published, tmp_path):
    path = published()
    with pytest.raises(UserError, match="is the published file itself"):
        tool.main([path, "--output", path])
    with pytest.raises(UserError, match="is not a folder"):
        tool.main([path, "--output", str(tmp_path / "gone" / "ours.pth")])
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        tool.main([path, "--output", str(tmp_path)])
    with pytest.raises(UserError, match="--kind clim-fvlm: the file's tensors are those of kind clim-detic"):
        tool.main([path, "--output", str(tmp_path / "ours.pth"), "--kind", "clim-fvlm"])
    with pytest.raises(UserError, match="missing.pth"):
        tool.main([str(tmp_path / "missing.pth"), "--output", str(tmp_path / "ours.pth")])
    assert not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_command_that_is_printed_has_a_config(kind, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(kind.arguments)
    config = words.index("--config-file") + 1
    cfg = load_config(words[config], [*words[config + 1 :], "MODEL.WEIGHTS", "ours.pth"])
    assert cfg.MODEL.WEIGHTS == "ours.pth"

"""tools/convert_checkpoint.py: from a published file to one that the detector loads, and what it says."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

import convert_checkpoint as tool
from clim.checkpoints import SafeCheckpointer
from clim.errors import UserError
from conversion.convert import chosen_kind
from conversion.rules import KINDS

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
    """A file as MMEngine writes it, with two tensors that nobody knows."""
    more = {"roi_head.mask_head.a": torch.ones(1), "roi_head.mask_head.b": torch.ones(1)}
    torch.save({"meta": {"iter": 90000}, "state_dict": state | more}, tmp_path / "published.pth")
    return str(tmp_path / "published.pth")


def test_a_published_file_loads_as_weights(published, state, official, load_cfg, tmp_path, capsys):
    ours = tmp_path / "ours.pth"
    tool.main([published, "--output", str(ours)])
    told = capsys.readouterr().out
    assert "clim-detic: CLIM's Detic on R50-C4" in told
    assert f"taken      {len(state) - 1} tensors" in told
    assert "left out   1: the background's embedding" in told
    assert "not found  2, which training starts anew: method.bias.caption, method.bias.tag" in told
    assert "left out   2 that this kind does not know: roi_head.mask_head.a, roi_head.mask_head.b" in told
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


def test_mistakes_are_told(published, tmp_path):
    with pytest.raises(UserError, match="is the published file itself"):
        tool.main([published, "--output", published])
    with pytest.raises(UserError, match="--kind clim-fvlm: the file's tensors are those of kind clim-detic"):
        tool.main([published, "--output", str(tmp_path / "ours.pth"), "--kind", "clim-fvlm"])
    with pytest.raises(UserError, match="--kind fvlm is none of ovrcnn-pretrain"):
        chosen_kind({}, KINDS, "fvlm")
    with pytest.raises(UserError, match="missing.pth"):
        tool.main([str(tmp_path / "missing.pth"), "--output", str(tmp_path / "ours.pth")])
    assert not (tmp_path / "ours.pth").exists()

"""From a config and its weights to a model: parts that do not exist, weights that are missing or are half a mixture."""

import pytest
import torch

from clim.engine import build, load_ensemble, load_model
from clim.engine.weight_ensemble import START_FILE
from clim.errors import UserError


def save(model, folder, *, without=(), **content):
    """``folder``/file.pth with the weights whose names do not start with ``without``; its path."""
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(without))}
    torch.save({"model": weights, **content}, folder / "file.pth")
    return str(folder / "file.pth")


def test_a_part_that_no_registry_has(tiny_cfg):
    with pytest.raises(UserError, match="names a part that does not exist.*NoHeads"):
        load_model(tiny_cfg("MODEL.ROI_HEADS.NAME", "NoHeads"))


@pytest.mark.parametrize("load", [load_model, load_ensemble])
def test_a_file_without_the_weights_that_are_used(load, tiny_cfg, tmp_path):
    path = save(build(tiny_cfg()), tmp_path, without=["roi_heads."])
    with pytest.raises(UserError, match="file.pth lacks .* weights that this config's model learns, roi_heads"):
        load(tiny_cfg("MODEL.WEIGHTS", path))
    model = load_model(tiny_cfg("MODEL.WEIGHTS", path), parts=("backbone.", "proposal_generator."))
    assert not model.training
    path = save(model, tmp_path, without=["proposal_generator."])
    with pytest.raises(UserError, match="learns, proposal_generator"):
        load_model(tiny_cfg("MODEL.WEIGHTS", path), parts=("backbone.", "proposal_generator."))


@torch.no_grad()
def test_trained_weights_alone_are_warned_of_and_evaluation_mixes_them(tiny_cfg, tmp_path, caplog):
    trained = build(tiny_cfg())
    weight = trained.classifier.linear.weight
    start = {n: torch.zeros_like(p) for n, p in trained.named_parameters() if p.requires_grad}
    torch.save(start, tmp_path / START_FILE)
    path = save(trained, tmp_path, weight_ensemble=0.25)
    options = ("MODEL.WEIGHTS", path, "SOLVER.WEIGHT_ENSEMBLE", 0.25)
    assert torch.equal(load_model(tiny_cfg(*options)).classifier.linear.weight, weight)
    assert "holds the trained weights alone" in caplog.text
    with load_ensemble(tiny_cfg(*options)).mixed() as model:
        torch.testing.assert_close(model.classifier.linear.weight, 0.25 * weight)


def test_the_last_checkpoint_of_a_run_comes_first_where_it_is_asked_for(tiny_cfg, tmp_path):
    cfg = tiny_cfg("MODEL.WEIGHTS", save(build(tiny_cfg()), tmp_path))
    assert load_ensemble(cfg, resume=True).model is not None  # there is no checkpoint yet
    later = build(cfg)
    torch.nn.init.constant_(later.classifier.linear.bias, 7.0)
    torch.save({"model": later.state_dict()}, f"{cfg.OUTPUT_DIR}/model_0000001.pth")
    (tmp_path / "output/last_checkpoint").write_text("model_0000001.pth")
    assert (load_ensemble(cfg, resume=True).model.classifier.linear.bias == 7).all()
    assert not (load_ensemble(cfg).model.classifier.linear.bias == 7).any()

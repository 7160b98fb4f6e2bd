"""The mixed weights are the exact mean, training keeps its own, and clip.pt is written with every checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clim.engine import weight_ensemble
from clim.engine.weight_ensemble import PublishClip, WeightEnsemble
from clim.errors import UserError


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    return net


def train(net):
    torch.manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data += torch.randn_like(p)
    return {k: v.clone() for k, v in net.state_dict().items()}


def test_mixed_weights_are_the_weighted_mean_and_the_trained_ones_come_back(tmp_path):
    net = model()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    ensemble = WeightEnsemble(net, alpha=0.7)
    ensemble.save(tmp_path)
    trained = train(net)
    assert not torch.equal(trained["2.weight"], start["2.weight"])
    resumed = WeightEnsemble(net, alpha=0.7)  # it starts with the weights of a checkpoint
    resumed.load(tmp_path)
    for one in (ensemble, resumed):
        with pytest.raises(ZeroDivisionError), one.mixed() as inside:
            for name, weight in inside.named_parameters():
                torch.testing.assert_close(weight.data, 0.7 * trained[name] + 0.3 * start[name])
            1 / 0  # noqa: B018
        assert all(torch.equal(v, trained[k]) for k, v in net.state_dict().items())
    with pytest.raises(UserError, match=r"start_weights\.pth is not a file"):
        resumed.load(tmp_path / "elsewhere")


def test_alpha_1_writes_and_changes_nothing(tmp_path):
    net = model()
    ensemble = WeightEnsemble(net, alpha=1.0)
    ensemble.save(tmp_path)
    ensemble.load(tmp_path)
    trained = train(net)
    with ensemble.mixed():
        assert torch.equal(net[2].weight, trained["2.weight"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("period, published", [(0, [9]), (4, [3, 7, 9])])
def test_clip_file_is_written_with_every_checkpoint(period, published, tmp_path, monkeypatch):
    hook = PublishClip(WeightEnsemble(model(), alpha=1.0), str(tmp_path), name="ViT-B-16", period=period, epochs=5.0)
    monkeypatch.setattr(weight_ensemble, "clip_state_dict", lambda model: {})
    epochs = {}
    for iteration in range(10):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=10)
        hook.after_step()
        if (tmp_path / "clip.pt").is_file():
            epochs[iteration] = torch.load(tmp_path / "clip.pt")["epoch"]
            (tmp_path / "clip.pt").unlink()
    assert epochs == {iteration: round(5 * (iteration + 1) / 10) for iteration in published}

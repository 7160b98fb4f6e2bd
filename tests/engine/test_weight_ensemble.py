"""The mixed weights are the exact mean, training never notices them, and clip.pt is a file of open_clip's kind."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

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


def test_mixed_weights_are_the_weighted_mean_and_the_trained_ones_come_back():
    net = model()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    ensemble = WeightEnsemble(net, alpha=0.7)
    train(net)
    trained = {k: v.clone() for k, v in net.state_dict().items()}
    assert not torch.equal(trained["2.weight"], start["2.weight"])
    with ensemble.mixed() as inside:
        for name, weight in inside.named_parameters():
            torch.testing.assert_close(weight.data, 0.7 * trained[name] + 0.3 * start[name])
    assert all(torch.equal(v, trained[k]) for k, v in net.state_dict().items())
    with pytest.raises(RuntimeError), ensemble.mixed():
        raise RuntimeError
    assert all(torch.equal(v, trained[k]) for k, v in net.state_dict().items())


def test_a_resumed_run_mixes_with_the_first_start(tmp_path):
    net = model()
    first = WeightEnsemble(net, alpha=0.25)
    first.save(tmp_path)
    train(net)
    resumed = WeightEnsemble(net, alpha=0.25)  # what it was made with is the checkpoint's
    resumed.load(tmp_path)
    with first.mixed():
        expected = net[2].weight.detach().clone()
    with resumed.mixed():
        assert torch.equal(net[2].weight, expected)


def test_alpha_1_writes_and_changes_nothing(tmp_path):
    net = model()
    ensemble = WeightEnsemble(net, alpha=1.0)
    ensemble.save(tmp_path)
    ensemble.load(tmp_path)
    train(net)
    before = net[2].weight.detach().clone()
    with ensemble.mixed():
        assert torch.equal(net[2].weight, before)
    assert list(tmp_path.iterdir()) == []


def test_missing_initial_weights(tmp_path):
    with pytest.raises(UserError, match=r"start_weights\.pth is missing"):
        WeightEnsemble(model(), alpha=0.5).load(tmp_path)


@pytest.mark.parametrize("period, published", [(0, [9]), (4, [3, 7, 9])])
def test_clip_file_is_written_with_every_checkpoint(period, published, tmp_path, monkeypatch):
    hook = PublishClip(WeightEnsemble(model(), alpha=1.0), str(tmp_path), name="ViT-B-16", period=period, epochs=5.0)
    epochs = {}
    monkeypatch.setattr(hook, "publish", lambda epoch: epochs.setdefault(hook.trainer.iter, epoch))
    for iteration in range(10):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=10)
        hook.after_step()
    assert epochs == {iteration: round(5 * (iteration + 1) / 10) for iteration in published}

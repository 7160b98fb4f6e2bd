"""The moving average against its formula; what checkpoints, evaluation and a resumed run make of it; the best one."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.engine import Trainer, load_ensemble
from clim.engine.averaging import BestCheckpoint, MovingAverage
from clim.errors import UserError
from clim.evaluation import evaluate


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    return net


def states(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def trained(net, average, steps, start=0):
    """Random weights and statistics in each step."""
    for iteration in range(start, start + steps):
        net(torch.randn(8, 3))
        for p in filter(lambda p: p.requires_grad, net.parameters()):
            p.data += torch.randn_like(p)
        average.trainer = SimpleNamespace(iter=iteration)
        average.after_step()


def test_the_average_follows_its_formula():
    net = model()
    average, expected, seen = MovingAverage(net, decay=0.3), states(net), []
    for iteration in range(5):
        trained(net, average, 1, start=iteration)
        d = min(0.3, (2 + iteration) / (11 + iteration))
        seen.append(d)
        expected = {k: d * v + (1 - d) * net.state_dict()[k] for k, v in expected.items()}
    assert seen == [2 / 11, 3 / 12, 0.3, 0.3, 0.3]
    before = states(net)
    with pytest.raises(ZeroDivisionError), average.mixed() as inside:
        for name, value in inside.state_dict().items():
            whole = name.endswith("num_batches_tracked")  # a number, which is not averaged
            torch.testing.assert_close(value, before[name] if whole else expected[name])
        assert not torch.equal(inside[1].running_mean, before["1.running_mean"])
        1 / 0  # noqa: B018
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert average.average.keys() == {f"{i}.{k}" for i in (1, 2) for k in ("weight", "bias")} | {
        "1.running_mean", "1.running_var",
    }  # fmt: skip


def test_decay_0_keeps_and_changes_nothing():
    net = model()
    average = MovingAverage(net, decay=0.0)
    trained(net, average, 2)
    before = states(net)
    with average.mixed():
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert average.average == average.state_dict() == {}
    average.load_state_dict({})


def checkpointer(net, folder, average):
    found = SafeCheckpointer(net, str(folder), ema=average)
    found.published = average.mixed
    return found


def test_a_checkpoint_has_the_average_as_weights_and_continues_bit_by_bit(tmp_path):
    straight, first = model(), model()
    average, other = MovingAverage(straight, decay=0.9), MovingAverage(first, decay=0.9)
    trained(straight, average, 3)
    checkpointer(straight, tmp_path, average).save("model_0000002")
    with average.mixed():
        published = states(straight)
    stored = torch.load(tmp_path / "model_0000002.pth")
    assert all(torch.equal(stored["model"][name], value) for name, value in published.items())
    checkpointer(first, tmp_path, other).resume_or_load("", resume=True)
    for net, of_net in ((straight, average), (first, other)):
        torch.manual_seed(5)
        trained(net, of_net, 2, start=3)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in straight.state_dict().items())
    assert all(torch.equal(value, other.average[name]) for name, value in average.average.items())


def test_evaluation_and_files_use_the_average(tiny_cfg):
    """The figures in training, of --eval-only and of model_best.pth are those of one evaluation."""
    keys = ("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "bbox/AR_all", "SOLVER.BASE_LR", 0.01)
    cfg = tiny_cfg(*keys, "SOLVER.EMA", 0.9)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = []
    trainer.best.update = lambda found, iteration, update=trainer.best.update: (
        results.append(found), update(found, iteration)
    )  # fmt: skip
    seen, bias = [], trainer.raw_model.roi_heads.box_predictor.cls_score.linear.bias
    trainer.raw_model.register_forward_hook(lambda *_: seen.append(bias.detach().clone()))
    trainer.train()
    (figures,) = results
    files = [torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth") for name in ("model_best", "model_final")]
    key = "roi_heads.box_predictor.cls_score.linear.bias"
    assert all(torch.equal(seen[-1], file["model"][key]) for file in files)
    assert not torch.equal(seen[-1], bias)
    assert "optimizer" not in files[0] and files[0]["best"] == {"bbox/AR_all": figures["bbox"]["AR_all"]}
    weights = tiny_cfg(*keys, "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_best.pth")
    with load_ensemble(weights).mixed() as again:
        assert evaluate(weights, again)["bbox"] == pytest.approx(figures["bbox"], nan_ok=True)
    with pytest.raises(
        UserError, match="checkpoint's ema does not fit, in .*model_final.pth .*resume with the config of its training"
    ):
        Trainer(tiny_cfg(*keys)).resume_or_load(resume=True)


@pytest.mark.parametrize("figures, kept", [((math.nan, 1.0, 3.0, 2.0), [1, 2]), ((2.0, math.nan, 2.0), [0])])
def test_the_best_checkpoint_also_of_a_resumed_run(tmp_path, figures, kept):
    written = []

    def start(resume, metric="bbox/AP"):
        found = BestCheckpoint(SafeCheckpointer(nn.Linear(1, 1), str(tmp_path)), metric, resume=resume, extra={"a": 1})
        found.checkpointer.write = lambda name, write=found.checkpointer.write, **entries: (
            written.append(entries["iteration"]), write(name, **entries)
        )  # fmt: skip
        return found

    best = start(resume=False)
    for iteration, value in enumerate(figures):
        best.update({"bbox": {"AP": value}}, iteration)
        best = start(resume=True)
    assert written == kept
    stored = torch.load(tmp_path / "model_best.pth")
    assert stored["best"] == {"bbox/AP": figures[kept[-1]]} and stored["a"] == 1
    assert start(resume=False).value == start(resume=True, metric="bbox/AP50").value == -math.inf
    with pytest.raises(UserError, match="bbox/AP75 is not evaluated: choose one of bbox/AP, bbox/AP50"):
        start(resume=True, metric="bbox/AP75").update({"bbox": {"AP": 1.0, "AP50": 2.0}}, 9)
    start(resume=True, metric="").update({}, 9)

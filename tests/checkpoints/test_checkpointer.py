"""Checkpoints: whole or absent whenever the process dies; which weights fit a model."""

import collections
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from clim.checkpoints import SafeCheckpointer, load_model
from clim.engine import load_ensemble
from clim.engine.weight_ensemble import START_FILE
from clim.errors import UserError

FORK = multiprocessing.get_context("fork")


def filled(value):
    net = nn.Linear(3, 2)
    nn.init.constant_(net.weight, value)
    nn.init.constant_(net.bias, value)
    return net


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway(data, file):
    file.write(b"PK\x03\x04 the first half of a checkpoint")
    file.flush()
    die()


@pytest.mark.parametrize(
    "module, name, function",
    [(torch, "save", die_halfway), (os, "fsync", die), (os, "replace", die), (Path, "write_text", die)],
    ids=["while writing", "before the file is whole", "before it is in place", "before the pointer"],
)
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(tmp_path, module, name, function):
    SafeCheckpointer(filled(1.0), str(tmp_path)).save("model_0000001", iteration=1)

    def child():
        setattr(module, name, function)
        SafeCheckpointer(filled(2.0), str(tmp_path)).save("model_0000003", iteration=3)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    net = filled(0.0)
    rest = SafeCheckpointer(net, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 1 and (net.weight == 1).all()
    # The next attempt overwrites what the kill left.
    SafeCheckpointer(filled(2.0), str(tmp_path)).save("model_0000003", iteration=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last_checkpoint", "model_0000001.pth", "model_0000003.pth"]


STATE = {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE},
        {"model": STATE, "iteration": 89999, "optimizer": {"state": {}, "param_groups": []}},
        {"model": collections.OrderedDict(STATE), "scheduler": {"lr": np.float64(0.1), "last": np.int64(3)}},
        {"state_dict": STATE},
        STATE,
        {"model": {name: value.numpy() for name, value in STATE.items()}, "half": np.ones(2, np.float16)},
        {"model": {"module." + name: value for name, value in STATE.items()}},
    ],
    ids=["detic", "detectron2", "numpy numbers", "state_dict", "bare", "arrays", "module."],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_layouts_of_pth_files(tmp_path, content, zipped):
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    net = filled(0.0)
    SafeCheckpointer(net, "").load(str(tmp_path / "weights.pth"), checkpointables=[])
    assert (net.weight == 5).all() and (net.bias == 0).all()


def test_model_zoo_pickle_is_matched_by_name(tmp_path):
    """Detectron2's own .pkl (model, __author__) and Caffe2's (blobs) reach its name matching."""

    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    files = {
        "zoo": {"model": {"stem.conv1.weight": weight}, "__author__": "Detectron2"},
        "caffe2": {"blobs": {"conv1_w": weight, "conv1_w_momentum": weight}},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
        net = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 1, bias=False)})})
        SafeCheckpointer(net, "").load(str(tmp_path / f"{name}.pkl"))
        assert np.array_equal(net["stem"]["conv1"].weight.detach().numpy(), weight), name


def test_files_that_lack_weights(tmp_path):
    net = nn.ModuleDict({"method": filled(0.0), "head": filled(0.0)})
    net["head"].register_parameter("cls_bias", nn.Parameter(torch.zeros(1)))
    state, checkpointer = net.state_dict(), SafeCheckpointer(net, "")

    def load(*without, **changed):
        weights = {k: v for k, v in {**state, **changed}.items() if k not in without}
        torch.save({"model": weights}, tmp_path / "file.pth")
        checkpointer.load(str(tmp_path / "file.pth"))
        checkpointer.require_whole("file.pth")

    load(other=torch.ones(1))
    load("method.weight", "head.cls_bias")  # only training uses them
    assert checkpointer.lacking == ["method.weight", "head.cls_bias"]
    odd = torch.ones(7, 7)
    for without, changed in ((["head.weight", "head.cls_bias"], {}), ([], {"head.weight": odd})):
        with pytest.raises(UserError, match=r"file\.pth lacks 1 weights that this config's model needs, head\.weight"):
            load(*without, **changed)
    for changed in ({"conv.weight": odd}, {"head.weight": odd}):
        with pytest.raises(UserError, match="another architecture: none of its 1 weights"):
            load(*state.keys() - changed, **changed)
    net["head"].requires_grad_(False)
    with pytest.raises(UserError, match=r"lacks 1 weights that this config's model needs, head\.weight"):
        load("head.weight")
    load("head.weight", "head.bias", "head.cls_bias")  # another file has this part
    assert SafeCheckpointer(net, "").load("") == {}


# ---- to resume


def trained(folder, **options):
    """A checkpointer with an optimiser that has made a step, and a schedule."""
    net = filled(1.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return SafeCheckpointer(net, str(folder), optimizer=optimizer, scheduler=schedule, **options)


def with_state(content, state):
    content["optimizer"]["state"] = state


def with_first(content, **change):
    content["optimizer"]["state"][0] |= change


def with_group(content, **change):
    content["optimizer"]["param_groups"][0] |= change


@pytest.mark.parametrize("damage, words", [
    (lambda c: c.pop("optimizer"), 'has no "optimizer" of type dict'), (lambda c: c.update(scheduler=3), '"scheduler"'),
    (lambda c: with_state(c, {}), r"optimizer does not fit, in .*1.pth .*state.0.step is missing, not a tensor \(\)"),
    (lambda c: with_state(c, "x"), "optimizer does not fit"),
    (lambda c: c["optimizer"]["state"][1].pop("exp_avg"), "state.1.exp_avg is missing"),
    (lambda c: with_first(c, exp_avg=torch.ones(7)), r"exp_avg is a tensor \(7,\), not a tensor \(2, 3\)"),
    (lambda c: with_first(c, exp_avg=torch.ones(2, 3) / 0), "optimizer.state.0.exp_avg of .* nan or infinity"),
    (lambda c: with_group(c, lr=float("nan")), r"optimizer.param_groups.0.lr of .* nan"),
    (lambda c: with_group(c, lr="x"), r"param_groups.0.lr is str, not a number"),
    (lambda c: c["optimizer"]["param_groups"][0].pop("betas"), "param_groups.0.betas.0 is missing"),
    (lambda c: c["optimizer"].update(param_groups=[]), "optimizer does not fit"),
    (lambda c: c["scheduler"].pop("last_epoch"), "scheduler does not fit, in .*last_epoch is missing, not a number"),
])  # fmt: skip
def test_damaged_states_are_told(tmp_path, damage, words):
    trained(tmp_path).save("model_0000001", iteration=1)
    assert trained(tmp_path).resume_or_load("", resume=True) == {"iteration": 1}
    content = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "model_0000001.pth")
    with pytest.raises(UserError, match=words):
        trained(tmp_path).resume_or_load("", resume=True)
    assert SafeCheckpointer(filled(0.0), str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1


@pytest.mark.parametrize("before, now", [(None, True), (True, None), (True, True)])
def test_the_fused_kernel_of_a_gpu_comes_from_the_config_not_the_file(tmp_path, before, now):
    written, read = (trained(tmp_path) for _ in range(2))
    for checkpointer, fused in ((written, before), (read, now)):
        checkpointer.checkpointables["optimizer"].param_groups[0]["fused"] = fused
    written.save("model_0000001")
    read.resume_or_load("", resume=True)
    states = [c.checkpointables["optimizer"].state_dict() for c in (written, read)]
    assert states[1]["param_groups"][0].pop("fused") is now and states[0]["param_groups"][0].pop("fused") is before
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_weights_that_had_no_gradient_yet_have_no_state(tmp_path):
    trained(tmp_path).save("model_0000001")
    content = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    content["optimizer"]["state"].pop(1)
    torch.save(content, tmp_path / "model_0000001.pth")
    trained(tmp_path).resume_or_load("", resume=True)
    content["optimizer"]["state"][0].pop("exp_avg")
    torch.save(content, tmp_path / "model_0000001.pth")
    with pytest.raises(UserError, match="state.0.exp_avg is missing"):
        trained(tmp_path).resume_or_load("", resume=True)


def test_a_scaler_that_skipped_all_steps_leaves_an_optimiser_without_state(tmp_path):
    scaled = {"scaler": torch.amp.GradScaler("cpu")}
    trained(tmp_path, **scaled).save("model_0000001")
    content = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    with_state(content, {})
    torch.save(content, tmp_path / "model_0000001.pth")
    checkpointer = trained(tmp_path, **scaled)
    checkpointer.resume_or_load("", resume=True)
    assert not checkpointer.checkpointables["optimizer"].state


@pytest.mark.parametrize(
    "content", [b"", b"..", b"/etc/passwd", b"../other.pth", b"rank_states", b"\xff\xfe", b"a.pth\nb"]
)
def test_a_pointer_to_no_file_beside_it(tmp_path, content):
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(UserError, match="last_checkpoint "):
        SafeCheckpointer(filled(0.0), str(tmp_path)).resume_or_load("", resume=True)


# ---- models for use


def save(model, folder, *, without=(), **content):
    """``folder``/file.pth with the weights whose names do not start with ``without``; its path."""
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(without))}
    torch.save({"model": weights, **content}, folder / "file.pth")
    return str(folder / "file.pth")


@pytest.mark.parametrize("load", [load_model, load_ensemble])
def test_a_file_that_lacks_weights_of_the_parts_in_use(load, tiny_cfg, tmp_path):
    path = save(build_model(tiny_cfg()), tmp_path, without=["roi_heads."])
    with pytest.raises(UserError, match="file.pth lacks .* weights that this config's model needs, roi_heads"):
        load(tiny_cfg("MODEL.WEIGHTS", path))
    parts = ("backbone.", "proposal_generator.")
    model = load_model(tiny_cfg("MODEL.WEIGHTS", path), parts=parts)
    assert not model.training
    path = save(model, tmp_path, without=["proposal_generator."])
    with pytest.raises(UserError, match="needs, proposal_generator"):
        load_model(tiny_cfg("MODEL.WEIGHTS", path), parts=parts)


@torch.no_grad()
def test_trained_weights_alone_give_a_warning_and_evaluation_mixes_them(tiny_cfg, tmp_path, caplog):
    trained = build_model(tiny_cfg())
    weight = trained.classifier.linear.weight
    start = {n: torch.zeros_like(p) for n, p in trained.named_parameters() if p.requires_grad}
    torch.save(start, tmp_path / START_FILE)
    options = ("MODEL.WEIGHTS", save(trained, tmp_path, weight_ensemble=0.25), "SOLVER.WEIGHT_ENSEMBLE", 0.25)

    def warnings_of_loading():
        caplog.clear()
        assert torch.equal(load_model(tiny_cfg(*options)).classifier.linear.weight, weight)
        return "".join(r.getMessage() for r in caplog.records if r.name.startswith("clim") and r.levelname == "WARNING")

    message = warnings_of_loading()
    assert "file.pth holds only trained weights" in message and "clip.pt" not in message  # a detector's run writes none
    (tmp_path / "clip.pt").touch()
    assert f"{tmp_path / 'clip.pt'} holds the mixture" in warnings_of_loading()
    with load_ensemble(tiny_cfg(*options)).mixed() as model:
        torch.testing.assert_close(model.classifier.linear.weight, 0.25 * weight)
    (tmp_path / START_FILE).unlink()
    with pytest.raises(UserError, match="start_weights.pth is not a file.*SOLVER.WEIGHT_ENSEMBLE"):
        load_ensemble(tiny_cfg(*options))
    save(trained, tmp_path, weight_ensemble=1.0)  # no mixture
    assert not warnings_of_loading()
    with load_ensemble(tiny_cfg(*options)).mixed() as model:
        assert torch.equal(model.classifier.linear.weight, weight)


def test_the_last_checkpoint_of_a_run_comes_first_if_the_run_resumes(tiny_cfg, tmp_path):
    later = build_model(tiny_cfg())
    cfg = tiny_cfg("MODEL.WEIGHTS", save(later, tmp_path))
    assert load_ensemble(cfg, resume=True).model is not None  # there is no checkpoint yet
    nn.init.constant_(later.classifier.linear.bias, 7.0)
    SafeCheckpointer(later, cfg.OUTPUT_DIR).save("model_0000001")
    for resume in (True, False):
        assert (load_ensemble(cfg, resume=resume).model.classifier.linear.bias == 7).all() == resume

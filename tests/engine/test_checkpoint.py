"""Checkpoints: whole or absent whenever the process dies, and weight files that run no code."""

import collections
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clim.engine import build, checkpoint
from clim.engine.checkpoint import SafeCheckpointer, atomic_save, load_numpy_pickle
from clim.errors import UserError

FORK = multiprocessing.get_context("fork")


class Evil:
    """Unpickling it would leave ``mark`` behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def filled(value):
    net = nn.Linear(3, 2)
    nn.init.constant_(net.weight, value)
    nn.init.constant_(net.bias, value)
    return net


def killed_at(module, name, job):
    """Run ``job`` in a process that is killed (SIGKILL) when it calls ``module.name``."""

    def child():
        setattr(module, name, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
        job()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def half_written(data, file):
    file.write(b"PK\x03\x04 the first half of a checkpoint")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def test_round_trip_with_everything_that_is_stored(tmp_path):
    net = filled(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    SafeCheckpointer(net, str(tmp_path), optimizer=optimizer).save("model_0000004", iteration=4, data_seed=7)

    other = filled(0.0)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.9)
    rest = SafeCheckpointer(other, str(tmp_path), optimizer=other_optimizer).resume_or_load("", resume=True)
    assert rest["iteration"] == 4 and rest["data_seed"] == 7
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    restored = [state["momentum_buffer"] for state in other_optimizer.state.values()]
    torch.testing.assert_close(restored, momentum, rtol=0, atol=0)


def test_killed_while_writing_the_file(tmp_path, monkeypatch):
    SafeCheckpointer(filled(1.0), str(tmp_path)).save("model_final", iteration=0)
    monkeypatch.setattr(checkpoint.torch, "save", half_written)
    process = FORK.Process(target=lambda: SafeCheckpointer(filled(2.0), str(tmp_path)).save("model_final"))
    process.start()
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    net = filled(0.0)
    SafeCheckpointer(net, str(tmp_path)).resume_or_load("", resume=True)
    assert (net.weight == 1).all()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_before_the_file_is_in_place(tmp_path, call):
    SafeCheckpointer(filled(1.0), str(tmp_path)).save("model_0000001", iteration=1)
    killed_at(
        os, call, lambda: SafeCheckpointer(filled(2.0), str(tmp_path)).save("model_0000003", iteration=3)
    )
    net = filled(0.0)
    rest = SafeCheckpointer(net, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 1 and (net.weight == 1).all()
    # The next attempt overwrites what the kill left.
    SafeCheckpointer(filled(2.0), str(tmp_path)).save("model_0000003", iteration=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint", "model_0000001.pth", "model_0000003.pth"
    ]  # fmt: skip


def test_killed_between_the_file_and_the_pointer(tmp_path):
    SafeCheckpointer(filled(1.0), str(tmp_path)).save("model_0000001", iteration=1)
    killed_at(Path, "write_text", lambda: SafeCheckpointer(filled(2.0), str(tmp_path)).save("model_0000003"))
    assert (tmp_path / "model_0000003.pth").is_file()
    assert SafeCheckpointer(filled(0.0), str(tmp_path)).get_checkpoint_file().endswith("model_0000001.pth")


def test_atomic_save_leaves_nothing_but_the_file(tmp_path):
    atomic_save({"a": torch.arange(3)}, tmp_path / "x.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    assert torch.load(tmp_path / "x.pth")["a"].tolist() == [0, 1, 2]


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


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickled_arrays_load(tmp_path, protocol):
    arrays = {
        "conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scale": np.float32(2),
        "n": np.int64(1),
    }
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    loaded = load_numpy_pickle(tmp_path / "w.pkl")
    assert loaded["conv1_w"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["scale"] == 2 and loaded["n"] == 1


def test_model_zoo_pickle_is_matched_by_name(tmp_path):
    """Detectron2's own .pkl (model, __author__) and Caffe2's (blobs) reach its name matching."""

    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Module()
            self.stem.conv1 = nn.Conv2d(3, 4, 1, bias=False)

    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    files = {
        "zoo": {"model": {"stem.conv1.weight": weight}, "__author__": "Detectron2"},
        "caffe2": {"blobs": {"conv1_w": weight, "conv1_w_momentum": weight}},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
        net = Stem()
        SafeCheckpointer(net, "").load(str(tmp_path / f"{name}.pkl"))
        assert np.array_equal(net.stem.conv1.weight.detach().numpy(), weight), name


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl", "legacy.pth"])
def test_code_in_a_file_is_not_run(tmp_path, name):
    file, mark = tmp_path / name, tmp_path / "executed"
    content = {"model": STATE if name != "evil.pkl" else {}, "more": Evil(mark)}
    if name == "evil.pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=name == "evil.pth")
    with pytest.raises(UserError, match=f"{name}.* was not loaded.*MODEL.TRUST_WEIGHTS"):
        SafeCheckpointer(filled(0.0), "").load(str(file))
    assert not mark.exists()


def test_trusted_files_load_as_ever(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"model": STATE, "more": Evil(mark)}, tmp_path / "odd.pth")
    net = filled(0.0)
    SafeCheckpointer(net, "", trusted=True).load(str(tmp_path / "odd.pth"))
    assert (net.weight == 5).all() and mark.exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(filled(1.0), tmp_path / "module.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        SafeCheckpointer(filled(0.0), "").load(str(tmp_path / "module.pth"))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"], ids=["empty", "text", "cut"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"w.{suffix}"):
        SafeCheckpointer(filled(0.0), "").load(str(file))


def test_a_truncated_checkpoint_is_named(tmp_path):
    SafeCheckpointer(nn.Linear(200, 200), str(tmp_path)).save("whole")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.pth cannot be read"):
        SafeCheckpointer(nn.Linear(200, 200), "").load(str(tmp_path / "cut.pth"))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"weight": "text"}}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights"):
        SafeCheckpointer(filled(0.0), "").load(str(tmp_path / "w.pth"))


def test_weights_of_another_architecture(tmp_path):
    torch.save({"model": {"conv.weight": torch.ones(2, 3)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="None of the 1 weights .* another architecture"):
        SafeCheckpointer(filled(0.0), "").load(str(tmp_path / "other.pth"))
    torch.save({"model": {"weight": torch.ones(7, 7)}}, tmp_path / "shapes.pth")
    with pytest.raises(UserError, match="another architecture"):
        SafeCheckpointer(filled(0.0), "").load(str(tmp_path / "shapes.pth"))
    torch.save({"model": {"weight": torch.ones(2, 3), "conv": torch.ones(1)}}, tmp_path / "part.pth")
    net = filled(0.0)
    SafeCheckpointer(net, "").load(str(tmp_path / "part.pth"))  # a part is fine: fine-tuning adds parameters
    assert (net.weight == 1).all()


def test_no_path_loads_nothing():
    net = filled(3.0)
    assert SafeCheckpointer(net, "").load("") == {}
    assert (net.weight == 3).all()


class TestMissing:
    def message(self, path, save_dir=""):
        with pytest.raises(UserError) as caught:
            SafeCheckpointer(filled(0.0), str(save_dir)).load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_file(self):
        assert self.message("nowhere/weights.pth") == "MODEL.WEIGHTS: nowhere/weights.pth does not exist."

    @pytest.mark.parametrize(
        ("weights", "config", "published"),
        [
            ("output/BoxSup_C4/model_final.pth", "configs/BoxSup_C4.yaml", True),
            ("output/BoxSup_C4_official/model_final.pth", "configs/BoxSup_C4_official.yaml", True),
            ("output/mini/base/model_final.pth", "configs/mini/base_stage.yaml", False),
        ],
    )
    def test_base_stage(self, weights, config, published, monkeypatch):
        """The sentence names the config that trains what this one starts from."""
        root = Path(__file__).parents[2]
        if (root / weights).exists():
            pytest.skip("this checkout has trained its base stage")
        monkeypatch.chdir(root)
        message = self.message(weights)
        assert f"python train_net.py --config-file {config} first" in message
        assert ("BoxSup_OVCOCO_CLIP_R50_1x.pth" in message) == published

    def test_address(self, monkeypatch):
        def offline(*args, **kwargs):
            raise OSError("no network")

        monkeypatch.setattr("iopath.common.file_io.download", offline)
        message = self.message("detectron2://ImageNetPretrained/nowhere/R-50.pkl")
        assert "could not be fetched (no network)" in message
        assert "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/nowhere/R-50.pkl" in message
        assert '""' in message

    def test_what_the_pointer_names(self, tmp_path):
        (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
        with pytest.raises(UserError, match="last_checkpoint beside it names it"):
            SafeCheckpointer(filled(0.0), str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize("config", ["mini/detic_clim.yaml", "mini/ovrcnn.yaml"])
def test_a_vocabulary_of_another_size_is_told_where_none_is_configured(config, tmp_path, tiny_cfg):
    few = ["MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.OPEN_VOCAB.BASE_CLASSES", ""]
    unnamed = ["MODEL.VOCABULARY.EMBEDDINGS", ""]
    SafeCheckpointer(build(tiny_cfg(*few, *unnamed, config=config)), str(tmp_path)).save("five")
    path = str(tmp_path / "five.pth")
    detector = build(tiny_cfg(*unnamed, config=config))
    with pytest.raises(UserError, match=r"has 5 classes of 384 dimensions, but the config's detector 65"):
        SafeCheckpointer(detector, "").load(path)
    configured = build(tiny_cfg(config=config))
    predictor = configured.roi_heads.box_predictor
    names = predictor.get_buffer(predictor.vocabulary_key).clone()
    SafeCheckpointer(configured, "").load(path)
    assert torch.equal(predictor.get_buffer(predictor.vocabulary_key), names)


@pytest.mark.parametrize("config", ["mini/detic_clim.yaml", "mini/ovrcnn.yaml"])
def test_classes_that_neither_config_nor_file_names_are_told(config, tmp_path, tiny_cfg):
    detector = build(tiny_cfg("MODEL.VOCABULARY.EMBEDDINGS", "", config=config))
    predictor = detector.roi_heads.box_predictor
    key = f"roi_heads.box_predictor.{predictor.vocabulary_key}"
    weights = {name: tensor for name, tensor in detector.state_dict().items() if name != key}
    torch.save({"model": weights}, tmp_path / "unnamed.pth")
    with pytest.raises(UserError, match="what the 65 classes are: set MODEL.VOCABULARY"):
        SafeCheckpointer(detector, "").load(str(tmp_path / "unnamed.pth"))

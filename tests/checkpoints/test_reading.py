"""Files of weights: what they may hold, that none of their code runs, and sentences for missing ones."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.checkpoints.reading import read_pickle, readable
from clim.errors import UserError

STATE = {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}


class Evil:
    """Unpickling it would leave ``mark`` behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def load(path, net=None, **options):
    SafeCheckpointer(net or nn.Linear(3, 2), "", **options).load(str(path))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickled_arrays_load(tmp_path, protocol):
    arrays = {"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32(2), "n": np.int64(1)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    loaded = read_pickle(tmp_path / "w.pkl")
    assert loaded["conv1_w"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["scale"] == 2 and loaded["n"] == 1


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl", "legacy.pth"])
def test_code_in_a_file_is_not_run(tmp_path, name):
    file, mark = tmp_path / name, tmp_path / "executed"
    content = {"model": STATE if name != "evil.pkl" else {}, "more": Evil(mark)}
    if name == "evil.pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=name == "evil.pth")
    with pytest.raises(UserError, match=f"{name}.* was not loaded.*MODEL.TRUST_WEIGHTS"):
        load(file)
    assert not mark.exists()


def test_trusted_files_load_as_ever(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"model": STATE, "more": Evil(mark)}, tmp_path / "odd.pth")
    net = nn.Linear(3, 2)
    load(tmp_path / "odd.pth", net, trusted=True)
    assert (net.weight == 5).all() and mark.exists()


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"], ids=["empty", "text", "cut"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"w.{suffix}"):
        load(file)


def test_a_truncated_checkpoint_is_named(tmp_path):
    SafeCheckpointer(nn.Linear(200, 200), str(tmp_path)).save("whole")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.pth cannot be read"):
        load(tmp_path / "cut.pth", nn.Linear(200, 200))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"weight": "text"}}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path / "w.pth")


def test_a_user_error_stays_as_it_is():
    with pytest.raises(UserError, match="^w.pth is of another kind$"), readable("w.pth"):
        raise UserError("w.pth is of another kind")


@pytest.mark.parametrize(
    "path, named",
    [
        ("nowhere/weights.pth", ["MODEL.WEIGHTS: nowhere/weights.pth does not exist"]),
        ("output/BoxSup_C4/model_final.pth", ["OUTPUT_DIR output/BoxSup_C4", "docs/checkpoints.md"]),
        (
            "detectron2://ImageNetPretrained/nowhere/R-50.pkl",
            ["no network", "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/nowhere/R-50.pkl"],
        ),
    ],
)
def test_files_that_do_not_exist(path, named, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", offline)
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert all(part in message for part in named) and "\n" not in message


def test_a_missing_last_checkpoint(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match="last_checkpoint"):
        SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).resume_or_load("", resume=True)

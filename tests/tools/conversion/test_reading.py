"""Reading: all the formats of official files, and nothing run of what they hold."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from clim.errors import UserError
from conversion.reading import read_official

WEIGHTS = {"a": torch.arange(3.0), "b.bias": torch.ones(2, 2)}


class Evil:
    """Unpickling it would run ``call`` (of ``arguments``)."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def same(read):
    torch.testing.assert_close(read, WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "before 1.6"])
def test_where_the_weights_are(tmp_path, key, modern):
    data = {key: WEIGHTS, "iteration": 4, "optimizer": {"lr": 0.1}} if key else WEIGHTS
    torch.save(data, tmp_path / "x.pth", _use_new_zipfile_serialization=modern)
    same(read_official(str(tmp_path / "x.pth")))


def test_arrays_become_tensors(tmp_path):
    torch.save({"model": {"a": np.arange(3, dtype=np.float32)}}, tmp_path / "x.pth")
    assert torch.equal(read_official(str(tmp_path / "x.pth"))["a"], WEIGHTS["a"])


@pytest.fixture
def history_buffer(monkeypatch):
    """What MMEngine stores its logs in: arrays, and methods of the class itself, which pickle by ``getattr``."""
    module = types.ModuleType("mmengine_like")

    class HistoryBuffer:
        def __init__(self):
            self.log = np.arange(4.0)
            self.methods = {"mean": HistoryBuffer.mean}

        def mean(self):
            return self.log.mean()

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer


def test_objects_of_packages_that_are_not_here(tmp_path, history_buffer, monkeypatch):
    path = tmp_path / "iter_45000.pth"
    hub = {"log_scalars": {"train/loss": history_buffer()}}
    torch.save({"meta": {"iter": 45000}, "message_hub": hub, "state_dict": WEIGHTS}, path)
    monkeypatch.delitem(sys.modules, history_buffer.__module__)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    same(read_official(str(path)))


def leave_a_mark(path):
    open(path, "w").close()


@pytest.mark.parametrize("call", [leave_a_mark, exec, eval], ids=["ours", "exec", "eval"])
def test_nothing_in_the_file_runs(tmp_path, call):
    mark = tmp_path / "mark"
    argument = str(mark) if call is leave_a_mark else f"open({str(mark)!r}, 'w')"
    torch.save({"model": WEIGHTS, "log": Evil(call, argument)}, tmp_path / "x.pth")
    same(read_official(str(tmp_path / "x.pth")))
    assert not mark.exists()


def test_calls_of_the_operating_system_are_refused(tmp_path):
    torch.save({"model": WEIGHTS, "log": Evil(os.mkdir, str(tmp_path / "mark"))}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth .* was not loaded.*re-save its weights alone") as told:
        read_official(str(tmp_path / "x.pth"))
    assert "TRUST_WEIGHTS" not in str(told.value) and not (tmp_path / "mark").exists()


def test_weights_that_only_code_could_make(tmp_path):
    torch.save({"model": {"a": Evil(leave_a_mark, str(tmp_path / "mark"))}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_official(str(tmp_path / "x.pth"))


def test_missing_and_damaged_files(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(UserError, match="x.pth"):
        read_official(str(tmp_path / "x.pth"))
    with pytest.raises(UserError, match="gone.pth is not a file"):
        read_official(str(tmp_path / "gone.pth"))

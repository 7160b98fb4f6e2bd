"""Files are read without running their code; rules take, leave out and miss tensors; a file's kind is found."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from clim.errors import UserError
from conversion.convert import Kind, Rule, convert, find_kind, read_official
from conversion.rules import KINDS

PLAIN = Kind(
    name="plain",
    what="a test",
    arguments="--eval-only",
    fits=lambda state: "a.weight" in state,
    rules=[
        Rule("a.<weight,bias>", "ours.a.<>"),
        Rule("b", "ours.b", lambda x: x.reshape(2, 2).T),
        Rule("c", "ours.c", optional=True),
    ],
    left_out={"text.*": "frozen", "*.count": "counts"},
)
WEIGHTS = {"a": torch.arange(3.0), "b.bias": torch.ones(2, 2)}


def whole(**more):
    return {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b": torch.arange(4.0)} | more


def test_slots_of_a_rule():
    rule = Rule("a.<x,y>.<0-2>", "b.<>.c<1-3>")
    assert [(single.official, single.ours) for single in rule.singles()] == [
        (f"a.{word}.{i}", f"b.{word}.c{i + 1}") for word in "xy" for i in range(3)
    ]
    with pytest.raises(ValueError):
        list(Rule("a.<x,y>", "b.<p,q,r>").singles())


@pytest.mark.parametrize("wrapper", ["", "module."], ids=["plain", "distributed"])
def test_names_layouts_and_the_rest(wrapper):
    rest = {name: torch.ones(1) for name in ("text.x", "text.count", "z.count", "z")}
    state = {wrapper + name: tensor for name, tensor in whole(**rest).items()}
    assert find_kind(state, [PLAIN]) is PLAIN
    converted = convert(state, PLAIN)
    assert list(converted.weights) == ["ours.a.weight", "ours.a.bias", "ours.b"]
    assert converted.weights["ours.b"].tolist() == [[0, 2], [1, 3]]
    assert converted.left_out == {"frozen": ["text.x", "text.count"], "counts": ["z.count"]}
    assert converted.unknown == ["z"] and converted.missing == ["ours.c"]
    converted.weights["ours.a.weight"].zero_()
    assert state[f"{wrapper}a.weight"].eq(1).all()  # tensors are copies


@pytest.mark.parametrize(
    "state, kinds, message",
    [
        ({"q": torch.ones(1), "r": torch.ones(1)}, [PLAIN], r"no kind .*\(plain\): it holds q, r\.$"),
        ({"roi_heads.box_predictor.cls_score.zs_weight": torch.ones(1)}, KINDS.values(), "set MODEL.WEIGHTS to it"),
        ({"visual.conv1.weight": torch.ones(1)}, KINDS.values(), "set MODEL.IMAGE_ENCODER.PRETRAINED to it"),
        ({"a.weight": torch.ones(2, 3)}, [PLAIN], "lacks 2 of the 4 tensors of kind plain, a.bias, b"),
        (whole(b=torch.zeros(5)), [PLAIN], r"b has shape \(5,\)"),
        (whole(**{"backbone.layer3.22.w": torch.ones(1)}), [PLAIN], r"backbone has 1 tensors .* backbone\.layer3"),
    ],
)
def test_files_that_cannot_be_converted(state, kinds, message):
    with pytest.raises(UserError, match=message):
        convert(state, find_kind(state, kinds))


def read(path, data, **options):
    torch.save(data, path, **options)
    return read_official(str(path))


def same(weights):
    torch.testing.assert_close(weights, WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "before 1.6"])
def test_where_the_weights_are(tmp_path, key, modern):
    data = {key: WEIGHTS, "iteration": 4, "optimizer": {"lr": 0.1}} if key else WEIGHTS
    same(read(tmp_path / "x.pth", data, _use_new_zipfile_serialization=modern))


def test_objects_of_packages_that_are_not_here(tmp_path, monkeypatch):
    """MMEngine stores its logs as arrays, and methods of the class itself, which pickle by ``getattr``."""
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
    path = tmp_path / "iter_45000.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}}
        torch.save({"meta": {"iter": 45000}, "message_hub": hub, "state_dict": WEIGHTS}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    same(read_official(str(path)))


class Evil:
    """Unpickling it would run ``call`` (of ``arguments``)."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def leave_a_mark(path):
    open(path, "w").close()


@pytest.mark.parametrize("call", [leave_a_mark, exec, eval, os.mkdir], ids=["ours", "exec", "eval", "system"])
def test_nothing_in_the_file_runs(tmp_path, call):
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    argument = f"open({str(mark)!r}, 'w')" if call in (exec, eval) else str(mark)
    data = {"model": WEIGHTS, "log": Evil(call, argument)}
    if call is os.mkdir:  # a call of the operating system is refused
        with pytest.raises(UserError, match="x.pth .* was not loaded.*re-save its weights alone") as error:
            read(path, data)
        assert "TRUST_WEIGHTS" not in str(error.value)
    else:
        same(read(path, data))
    if call is leave_a_mark:  # weights that only code could make
        with pytest.raises(UserError, match="holds no weights"):
            read(path, {"model": {"a": Evil(call, argument)}})
    assert not mark.exists()


def test_missing_and_damaged_files(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(UserError, match="x.pth"):
        read_official(str(tmp_path / "x.pth"))
    with pytest.raises(UserError, match="gone.pth is not a file"):
        read_official(str(tmp_path / "gone.pth"))

"""Files read without running what they hold; what rules take, leave out, miss; how a kind is found."""

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


def whole(**more):
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b": torch.arange(4.0)}
    return state | more


def test_slots_of_a_rule():
    rule = Rule("a.<x,y>.<0-2>", "b.<>.c<1-3>")
    assert [(single.official, single.ours) for single in rule.singles()] == [
        (f"a.{word}.{i}", f"b.{word}.c{i + 1}") for word in "xy" for i in range(3)
    ]
    with pytest.raises(ValueError):
        list(Rule("a.<x,y>", "b.<p,q,r>").singles())


def test_names_layouts_and_the_rest():
    names = ("text.x", "text.count", "z.count", "z")
    state = whole(**{name: torch.ones(1) for name in names})
    converted = convert(state, PLAIN)
    assert list(converted.weights) == ["ours.a.weight", "ours.a.bias", "ours.b"]
    assert converted.weights["ours.b"].tolist() == [[0, 2], [1, 3]]
    assert converted.left_out == {"frozen": ["text.x", "text.count"], "counts": ["z.count"]}
    assert converted.unknown == ["z"] and converted.missing == ["ours.c"]
    converted.weights["ours.a.weight"].zero_()
    assert state["a.weight"].eq(1).all()  # tensors are copies


def test_names_of_a_distributed_model():
    state = {f"module.{name}": tensor for name, tensor in whole(c=torch.ones(1)).items()}
    assert find_kind(state, [PLAIN]) is PLAIN
    converted = convert(state, PLAIN)
    assert "ours.c" in converted.weights and not converted.missing and not converted.unknown


def test_files_of_no_kind():
    with pytest.raises(UserError, match=r"no kind .*\(plain\): it holds q, r\.$"):
        find_kind({"q": torch.ones(1), "r": torch.ones(1)}, [PLAIN])
    with pytest.raises(UserError, match="set MODEL.WEIGHTS to it as it is"):
        find_kind({"roi_heads.box_predictor.cls_score.zs_weight": torch.ones(1)}, KINDS.values())
    with pytest.raises(UserError, match="set MODEL.IMAGE_ENCODER.PRETRAINED to it as it is"):
        find_kind({"visual.conv1.weight": torch.ones(1)}, KINDS.values())


@pytest.mark.parametrize(
    "state, message",
    [
        ({"a.weight": torch.ones(2, 3)}, "lacks 2 of the 4 tensors of kind plain, a.bias, b"),
        (whole(b=torch.zeros(5)), r"b has shape \(5,\)"),
        (whole(**{"backbone.layer3.22.w": torch.ones(1)}), r"backbone has 1 tensors .* backbone\.layer3"),
    ],
)
def test_files_that_do_not_fit_their_kind(state, message):
    with pytest.raises(UserError, match=message):
        convert(state, PLAIN)


# ---- Reading


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

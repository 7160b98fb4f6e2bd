"""TorchScript archives: the weights that torch.jit.load gives, and no code of a file runs."""

import pickle
import zipfile
from typing import Optional

import pytest
import torch
from torch import nn

from clim.checkpoints.reading import read_content
from clim.errors import UserError


class Part(nn.Module):
    spare: Optional[torch.Tensor]  # noqa: UP045 (TorchScript knows no other form)

    def __init__(self):
        super().__init__()
        self.turned = nn.Parameter(torch.randn(3, 4).t())
        self.register_buffer("short", torch.randn(3).bfloat16())
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("none", None)
        self.plain, self.spare = torch.zeros(5), torch.ones(7)  # no weights
        self.number, self.tensors, self.words = 3, [torch.ones(1)], {"a": 1}

    def forward(self, x):
        return x + self.plain.sum() + self.number + len(self.tensors) + len(self.words)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Part(), Part()])
        self.named = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "norm": nn.BatchNorm1d(3)})
        self.shared = self.named["a"].weight
        self.seen = nn.Parameter(self.shared.data[1:3])  # a view of the same storage
        self.halves = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).half()
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return self.named["norm"](x) + self.named["a"](x)


def make_script(module):
    return torch.jit.script(module)


def make_trace(module):
    return torch.jit.trace(module, torch.zeros(2, 3))


def save(module, path):
    torch.jit.save(module, path)
    return path


def rewrite(path, change):
    """Rewrite the archive with ``change(name, data)`` as data; None leaves a file out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if (data := change(name, data)) is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize("make", [make_script, make_trace])
def test_weights_are_those_of_torch(tmp_path, make):
    path = save(make(Whole().eval()), tmp_path / "w.pt")
    expected, found = torch.jit.load(path).state_dict(), read_content(path)
    assert list(found) == list(expected) and "parts.1.short" in found
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
        assert found[name].stride() == tensor.stride(), name
    found["shared"].zero_()
    assert not found["named.a.weight"].any() and not found["seen"].any()  # as in torch, they share memory


def test_an_older_archive_declares_no_buffers(tmp_path):
    path = save(make_script(Whole().eval()), tmp_path / "w.pt")
    declared = read_content(path)

    def without(name, data):
        lines = data.splitlines(keepends=True) if name.endswith(".py") else [data]
        return b"".join(line for line in lines if not line.startswith(b"  __buffers__"))

    rewrite(path, without)
    found = read_content(path)
    assert found.keys() - declared.keys() == {f"parts.{i}.{name}" for i in (0, 1) for name in ("plain", "spare")}


class Writer(nn.Module):
    """Its ``__setstate__`` writes the file MARK when torch loads it."""

    def __init__(self, mark: str):
        super().__init__()
        self.weight, self.mark = nn.Parameter(torch.ones(3)), mark

    def forward(self, x):
        return x + self.weight

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.weight, self.mark, self.training = state
        torch.save(state[0], self.mark)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_code_does_not_run(tmp_path, capsys):
    mark = tmp_path / "mark"
    path = save(make_script(Writer(str(mark))), tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt is damaged or holds more than tensors"):
        read_content(path, trusted=True)
    assert not mark.exists()
    evil = pickle.dumps(Evil(), protocol=2)
    rewrite(path, lambda name, data: evil if name.endswith("/data.pkl") else data)
    with pytest.raises(UserError, match="w.pt is damaged or holds more than tensors"):
        read_content(path, trusted=True)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("part, change", [
    ("/data.pkl", lambda data: None), ("/data.pkl", lambda data: data[:40]), ("/data/0", lambda data: None),
    ("/data/0", lambda data: data[:-2]), (".py", lambda data: None),
    ("/data.pkl", lambda data: b"\x80\x02]q\x00h\x00a."),  # a list that holds itself
    ("/data.pkl", lambda data: b"\x80\x02}r\xff\xff\xff\x7f."),  # a memo of gigabytes
])  # fmt: skip
def test_damaged_archives_are_named(tmp_path, part, change):
    path = save(make_script(Whole().eval()), tmp_path / "w.pt")
    rewrite(path, lambda name, data: change(data) if name.endswith(part) else data)
    with pytest.raises(UserError, match="w.pt "):
        read_content(path)


def test_a_tensor_never_reaches_beyond_its_storage(tmp_path):
    path = save(make_script(nn.Linear(3, 2)), tmp_path / "w.pt")
    rewrite(path, lambda name, data: data.replace(b"K\x02K\x03", b"K\x7fK\x7f") if name.endswith("/data.pkl") else data)
    with pytest.raises(UserError, match="w.pt cannot be read"):
        read_content(path)

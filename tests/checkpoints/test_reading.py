"""Files of weights: what they may hold, that none of their code runs, sentences for missing ones, names."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.checkpoints.keys import IMAGE_ENCODER, translate
from clim.checkpoints.reading import read_content, read_description, readable
from clim.errors import UserError

STATE = {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}


class Evil:
    """Unpickling it makes the folder ``mark``."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class EvilModule(nn.Linear):
    """A whole module, as ``torch.save(model)`` writes it."""

    def __init__(self, mark):
        super().__init__(3, 2)
        self.mark = mark

    def __setstate__(self, state):
        os.mkdir(state["mark"])
        super().__setstate__(state)


def load(path, net=None, **options):
    SafeCheckpointer(net or nn.Linear(3, 2), "", **options).load(str(path))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_arrays_load(tmp_path, protocol):
    arrays = {"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32(2), "n": np.int64(1)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    loaded = read_content(tmp_path / "w.pkl")
    assert loaded["conv1_w"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["scale"] == 2 and loaded["n"] == 1


def with_code(mark):
    return {"model": STATE, "more": Evil(mark)}


@pytest.mark.parametrize("make", [with_code, EvilModule, lambda mark: {"model": EvilModule(mark)}])
@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl", "legacy.pth"])
def test_code_in_a_file_is_not_run_unless_it_is_trusted(tmp_path, name, make):
    file, mark = tmp_path / name, tmp_path / "executed"
    if name == "evil.pkl":
        file.write_bytes(pickle.dumps(make(str(mark))))
    else:
        torch.save(make(str(mark)), file, _use_new_zipfile_serialization=name == "evil.pth")
    with pytest.raises(UserError, match=f"{name}.* was not loaded.*MODEL.TRUST_WEIGHTS"):
        load(file)
    assert not mark.exists()
    if make is with_code and name != "evil.pkl":
        net = nn.Linear(3, 2)
        load(file, net, trusted=True)
        assert (net.weight == 5).all() and mark.exists()


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", None], ids=["empty", "text", "cut", "half"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    if content is None:
        torch.save(STATE, tmp_path / "whole.pth")
        content = (tmp_path / "whole.pth").read_bytes()
        content = content[: len(content) // 2]
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"w.{suffix}"):
        load(file)


def test_a_damaged_file_has_no_description(tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"model": STATE}, file)
    assert read_description(file) is None
    for content in (b"", file.read_bytes()[:200]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="w.pth cannot be read"):
            read_description(file)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"weight": "text"}}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path / "w.pth")


def changed(value):
    return lambda: {"model": STATE | {"weight": value(STATE["weight"])}}


@pytest.mark.parametrize("make, words", [
    (changed(lambda t: t * float("nan")), "weight of .*w.pth holds nan or infinity"),
    (changed(lambda t: t / 0), "weight of .*w.pth holds nan or infinity"),
    (changed(lambda t: t.long()), "w.pth .*weight has torch.int64, not torch.float32"),
    (changed(lambda t: t.to(torch.complex64)), "weight has torch.complex64"),
    (changed(lambda t: t.to_sparse()), "holds no weights"), (changed(lambda t: t.to("meta")), "holds no weights"),
    (changed(lambda t: np.array([None, 1])), "holds no weights"), (changed(lambda t: None), "holds no weights"),
    (lambda: {"model": dict(enumerate(STATE.values()))}, "holds no weights"),
])  # fmt: skip
def test_numbers_that_are_no_weights(tmp_path, make, words):
    torch.save(make(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=words):
        load(tmp_path / "w.pth")


def test_checksums(tmp_path):
    """A flipped bit in a tensor, or in the pickle, is found, also in TorchScript; files without checksums load."""
    torch.save({"model": {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}}, tmp_path / "w.pth")
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), tmp_path / "script.pt")
    for name, part in (("w.pth", "data/0"), ("w.pth", "data.pkl"), ("script.pt", "data/1")):
        data = bytearray((tmp_path / name).read_bytes())
        with zipfile.ZipFile(tmp_path / name) as archive:
            (entry,) = (one for one in archive.infolist() if one.filename.endswith(part))
            whole = archive.read(entry)
        data[data.index(whole) + 2] ^= 1
        (tmp_path / f"flipped-{name}").write_bytes(data)
        with pytest.raises(UserError, match=f"flipped-{name} cannot be read .*checksum of .*{part} is wrong"):
            read_content(tmp_path / f"flipped-{name}")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_content(tmp_path / "without.pth")["weight"], STATE["weight"])


def test_files_that_claim_more_than_they_hold(tmp_path):
    """A zip bomb, a pickle with a memo of gigabytes, a header of safetensors with 4 TB, a FIFO."""
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    (tmp_path / "memo.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "claim.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.mkfifo(tmp_path / "fifo.pth")
    for path in tmp_path.iterdir():
        if path.name == "memo.pkl":
            assert read_content(path) == {}
            continue
        with pytest.raises(UserError, match=f"{path.name} (cannot be read|is not a file)"):
            read_content(path)


def test_a_user_error_stays_as_it_is():
    with pytest.raises(UserError, match="^w.pth is of another kind$"), readable(__file__):
        raise UserError("w.pth is of another kind")


ZOO = "ImageNetPretrained/nowhere/R-50.pkl"


@pytest.mark.parametrize(
    "path, named",
    [
        ("nowhere/weights.pth", ["MODEL.WEIGHTS: nowhere/weights.pth does not exist"]),
        ("output/BoxSup_C4/model_final.pth", ["OUTPUT_DIR output/BoxSup_C4", "docs/checkpoints.md"]),
        (f"detectron2://{ZOO}", ["no network", f"https://dl.fbaipublicfiles.com/detectron2/{ZOO}"]),
        (None, ["model_0000009.pth", "last_checkpoint"]),
    ],
)
def test_files_that_do_not_exist(path, named, monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", offline)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError) as caught:
        SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).resume_or_load(path or "", resume=path is None)
    message = str(caught.value)
    assert all(part in message for part in named) and "\n" not in message


def test_names_are_translated_by_the_first_rule_that_matches_their_beginning():
    rules = [(r"a\.(\d)", r"b.\1"), (r"a\.", "c."), ("d|dd", lambda match: match[0].upper())]
    assert [translate(name, rules) for name in ("a.1.w", "a.x", "dd.w", "x.a.1")] == ["b.1.w", "c.x", "Dd.w", None]
    names = {
        "backbone.stem.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.res4.0.conv1.weight": "backbone.res4.0.conv1.weight",
        "backbone.res5.0.conv1.weight": "roi_heads.res5.0.conv1.weight",
        "emb_pred.bias": "roi_heads.box_predictor.emb_pred.bias",
        "stem.0.weight": "backbone.stem.0.weight",
        "blocks.0.w": "backbone.trunk.blocks.0.w",
        "blocks.10.w": "backbone.trunk.blocks.10.w",
        "blocks.11.w": "roi_heads.res5.blocks.0.w",
        "blocks.15.w": "roi_heads.res5.blocks.4.w",
        "projection.weight": "roi_heads.box_predictor.emb_pred.weight",
        "visual.conv1.weight": None,
    }
    assert {name: translate(f"image_encoder.{name}", IMAGE_ENCODER) for name in names} == names
